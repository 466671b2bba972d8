"""Made-up reviews for the tests of the command."""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

GOOD, BAD = ["good", "great", "lovely", "fine"], ["bad", "awful", "poor", "dull"]
THINGS = ["film", "book", "phone", "lamp", "chair", "tent"]


def make_reviews(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of unlike lengths whose words tell their label."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        label = "positive" if generator.random() < 0.6 else "negative"
        words = generator.choices(GOOD if label == "positive" else BAD, k=generator.randint(1, 9))
        rows.append((f"{generator.choice(THINGS)} number {number} is {' and '.join(words)}", label))
    return rows


def write_csv(path: Path, rows: Iterable[tuple[object, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
