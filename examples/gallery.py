"""Writes pages of a few runs to look at: `python -m examples.gallery FOLDER`.

Shipped configs learn from made-up data, with small new models, in two minutes and without network. Their numbers say
nothing of the configs; the pages show what a report and a comparison look like.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_loop.quickstart import reviews

_BERT = "model={name: null, type: bert, tokenizer: train, vocab_size: 600}"
_SMALL = (
    "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128, initializer_range: 0.1, \
hidden_dropout_prob: 0.0}"
)
_REVIEWS = [
    *(
        "config=imdb.yaml",
        _BERT,
        f"model.overrides={_SMALL}",
        "data.name=null",
        "data.max_length=64",
        "log.every=20",
        "train.precision=no",
    ),
    *("data.train=train.jsonl", "data.validation=[like_train.jsonl,other_patterns.jsonl]"),
]

# Name of a run, what its page shows, and its arguments, with paths below the folder of the data.
RUNS = {
    "imdb": (
        "a classifier of texts (imdb.yaml): scores by label with intervals, confusions, calibration, errors by length "
        "and by file",
        [*_REVIEWS, "optimizer.lr=1e-3"],
    ),
    "imdb-low-lr": ("the same with a lower learning rate", [*_REVIEWS, "optimizer.lr=2e-4"]),
    "ner": (
        "a tagger (ner.yaml): scores by tag, confusions, the words that are tagged wrong",
        [
            *("config=ner.yaml", _BERT, f"model.overrides={_SMALL}", "data.name=null", "optimizer.lr=2e-3"),
            *("data.train=tagged.jsonl", "data.validation=tagged_validation.jsonl", "data.test=tagged_test.jsonl"),
        ],
    ),
    "wikitext": (
        "a language model (wikitext.yaml): perplexity, how the loss is spread, the rows that surprise it most",
        [
            *("config=wikitext.yaml", "model={name: null, type: gpt2, tokenizer: train, vocab_size: 600}"),
            *("model.overrides={n_embd: 64, n_layer: 2, n_head: 4}", "data.name=null", "data.config=null"),
            *("data.train=lines.txt", "data.validation=lines_validation.txt", "data.test=lines_test.txt"),
            *("data.max_length=128", "optimizer.lr=3e-3", "log.every=2"),
        ],
    ),
}
COMPARED = ("imdb", "imdb-low-lr")

_PLACES = ("Kiel", "Lower Bay", "Port Ellen", "Nova", "Saint Malo", "Izmir")
_PERSONS = ("Anna Berg", "Omar", "Mei Lin", "Lucas", "Priya Rao", "Ida")
_GROUPS = ("Bay Ferries", "the Harbour Board", "North Line", "Green Island Club")
_SENTENCES = (
    "{person} takes the ferry from {place} to {place}",
    "{group} opened an office in {place} , said {person}",
    "in winter , when the ice is thick , {person} walks to {place}",
    "the boat of {group} is late , as {person} told {person}",
    "{person} joined {group} and moved to {place}",
    "nobody in {place} knows why {group} left",
    "the crossing takes an hour",
)
_NAMES = {"{person}": ("person", _PERSONS), "{place}": ("location", _PLACES), "{group}": ("group", _GROUPS)}
_WRONG = 0.08  # share of labels, as people make mistakes


def write_data(folder: Path) -> None:
    """Reviews, sentences with the tags of names, and texts; the same on every call."""
    generator = random.Random(1)
    train, others = reviews.train(), reviews.validation()
    _write(folder / "train.jsonl", (_mislabel(row, generator) for row in train[:5000]))
    _write(folder / "like_train.jsonl", (_mislabel(row, generator) for row in train[-200:]))
    _write(folder / "other_patterns.jsonl", (_mislabel(row, generator) for row in others[:200]))
    for name, count in (("tagged", 600), ("tagged_validation", 150), ("tagged_test", 150)):
        _write(folder / f"{name}.jsonl", (_tag_sentence(generator) for _ in range(count)))
    for name, count in (("lines", 400), ("lines_validation", 60), ("lines_test", 60)):
        sentences = [" ".join(_tag_sentence(generator)["tokens"]) for _ in range(count * 3)]
        (folder / f"{name}.txt").write_text("".join(f"{sentence} .\n" for sentence in sentences), encoding="utf-8")


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _mislabel(row: Mapping[str, str], generator: random.Random) -> dict[str, str]:
    other = {"positive": "negative", "negative": "positive"}[row["label"]]
    return {**row, "label": other if generator.random() < _WRONG else row["label"]}


def _tag_sentence(generator: random.Random) -> dict[str, list[str]]:
    words, tags = map(list, zip(*_tag_words(generator), strict=True))
    if generator.random() < _WRONG:
        tags[generator.randrange(len(tags))] = "O"
    return {"tokens": words, "ner_tags": tags}


def _tag_words(generator: random.Random) -> Iterator[tuple[str, str]]:
    for word in generator.choice(_SENTENCES).split():
        kind, names = _NAMES.get(word, ("", (word,)))
        for place, part in enumerate(generator.choice(names).split()):
            yield part, f"{'I' if place else 'B'}-{kind}" if kind else "O"


def write_gallery(folder: Path) -> None:
    """Write a page for each run, and one of two runs compared, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_data(work)
        for name, (_, arguments) in RUNS.items():
            _call(["trainer_loop.run", *arguments, f"run_dir=runs/{name}", "seed=1"], work)
            shutil.copy(work / "runs" / name / "report.html", folder / f"{name}.html")
        _call(["trainer_loop.compare", *(f"runs/{name}" for name in COMPARED)], work)
        shutil.copy(work / "compare.html", folder / "compare.html")


def _call(arguments: list[str], directory: Path) -> None:
    """A command of the package, in a directory."""
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", *arguments], cwd=directory, check=True, env={**os.environ, "PYTHONPATH": str(root)}
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_gallery(Path(sys.argv[1]))
