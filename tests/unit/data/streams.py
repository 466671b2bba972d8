"""Shards in memory and a loader over them: what the tests of streams share."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from columns import make_columns

from trainer_loop.data.cut import Limits
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.shards import Batch, Mark, Shard, Values
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.data.stream_rows import Row, RowStream

CPU = torch.device("cpu")
LABELS = LabelNames(["even", "odd"], {0: 0, 1: 1})


def give_batches(rows: Sequence[Values], mark: Mark | None) -> Iterator[Batch]:
    """Two rows at a time."""
    for first in range(0 if mark is None else mark["row"], len(rows), 2):
        given = rows[first : first + 2]
        yield Batch(given, [(first + row + 1,) for row in range(len(given))], ("row",))


def make_shards(sizes: Sequence[int]) -> list[Shard]:
    """Shards of so many rows; the text of a row says its place, and has as many words as its number allows."""

    def make(shard: int, size: int) -> Shard:
        rows = [{"text": f"{shard}.{row} " + "w " * (row % 5), "label": row % 2} for row in range(1, size + 1)]
        return Shard(f"shard{shard}", "row", lambda mark: give_batches(rows, mark))

    return [make(shard, size) for shard, size in enumerate(sizes)]


def mark_behind(rows: Iterator[Row], count: int) -> Mark | None:
    """Where the row begins that follows the first ones, as a checkpoint keeps it; None if there are no such rows."""
    taken = list(islice(rows, count))
    return json.loads(json.dumps(taken[-1].mark)) if taken else None


def mark_in_shard(rows: Iterator[tuple[Values, int, Mark]], count: int) -> Mark | None:
    """As `mark_behind`, of a shard."""
    taken = list(islice(rows, count))
    return json.loads(json.dumps(taken[-1][2])) if taken else None


def make_stream(sizes: Sequence[int], *, seed: int = 7) -> RowStream:
    return RowStream(make_shards(sizes), seed=seed, columns=make_columns(), label_names=LABELS)


def encode(rows: Sequence[Row]) -> list[Row]:
    """A token per word."""
    encoded = []
    for row in rows:
        length = len(row.values["text"].split())
        ids = list(range(1, 1 + length))
        encoded.append(row._replace(values={"input_ids": ids, "label": row.values["label"]}, length=length))
    return encoded


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    padded = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(padded), "labels": torch.tensor([row["label"] for row in rows])}


def make_loader(
    sizes: Sequence[int],
    *,
    batch_size: int = 4,
    shuffle_rows: int = 6,
    num_processes: int = 1,
    max_tokens: int | None = None,
    per_device: int | None = None,
    **options: Any,
) -> StreamLoader:
    return StreamLoader(
        options.pop("stream", None) or make_stream(sizes, seed=options.get("seed", 7)),
        Limits(num_processes, max_tokens, per_device),
        encode=options.pop("encode", encode),
        collate=options.pop("collate", collate),
        count=lambda batch: len(batch["labels"]),
        batch_size=batch_size,
        shuffle_rows=shuffle_rows,
        seed=options.pop("seed", 7),
        device=CPU,
        **options,
    )
