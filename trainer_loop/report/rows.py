"""The rows of a scored set: finds the worst, formats them, and reads them from a file."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from trainer_loop.data import images
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.errors import UserError
from trainer_loop.report.scores import Errors, measure_errors
from trainer_loop.tasks.task import Task

WORST = 50
_SHOWN = 1000  # most characters of a value
_THUMBNAIL = 96  # pixels
_DETAILS = ("probability", "reference_probability", "tokens")


def find_worst(
    kinds: Mapping[str, str], predictions: np.ndarray, references: np.ndarray, details: Mapping[str, np.ndarray]
) -> list[int]:
    """Return the numbers of the wrong rows, the worst first, at most `WORST`. Equally wrong rows keep their order."""
    errors = measure_errors(kinds.get("predictions"), predictions, references, details) if len(predictions) else None
    if errors is None:
        return []
    return [row for row in np.argsort(-errors.rank, kind="stable").tolist() if errors.amounts[row] > 0][:WORST]


def spell_row(split: TokenisedSplit, number: int, task: Task) -> dict[str, str]:
    """Return the inputs of an encoded row, by the task's columns, as texts; an image as a small data URI."""
    if split.raw is None:
        return {}
    if task.joins_texts:  # the raw row would only have the start of the text
        return {"text": _shorten(task.tokenizer.decode(split.rows[int(number)]["input_ids"]))}
    row = split.raw.read(int(split.raw.sources[number]))
    inputs = {name: value for name, value in row.items() if not task.columns[name].target and value is not None}
    return {name: _spell(value, task.columns[name].kind) for name, value in inputs.items()}


def _spell(value: Any, kind: str) -> str:
    if kind == "image":
        return _make_thumbnail(value)
    if kind == "words":
        return _shorten(" ".join(value))
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "role" in value[0]:
        return _shorten("\n".join(f"{message['role']}: {message.get('content')}" for message in value))
    if kind == "choices":
        texts = value["text"] if isinstance(value, Mapping) else value
        return _shorten("\n".join(f"{place}. {text}" for place, text in enumerate(texts)))
    return _shorten(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... and {len(text) - _SHOWN:,} more characters"


def _make_thumbnail(value: Any) -> str:
    """Return a data URI of a small image; empty if the image can no longer be read."""
    try:
        image = images.decode(*images.read_source(value))
    except (UserError, ValueError):
        return ""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = BytesIO()
    image.save(content, "PNG" if max(image.size) < _THUMBNAIL // 2 else "JPEG", quality=80)
    mime = "png" if content.getvalue().startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{mime};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a file of predictions, as they were in `Scores`. kinds: of the task's outputs."""

    kinds: Mapping[str, str]
    places: Sequence[str]
    predictions: np.ndarray  # [N, ...]
    references: np.ndarray  # [N, ...]
    details: Mapping[str, np.ndarray]  # [N] numbers by name
    names: Sequence[str]  # of the classes

    @property
    def kind(self) -> str | None:
        return self.kinds.get("predictions")

    @property
    def sources(self) -> list[str]:
        """The source of each row, such as its file."""
        return [place.rsplit(" ", 2)[0] for place in self.places]  # `reviews.csv` of `reviews.csv row 17`

    def without_folders(self) -> "ScoredRows":
        """Return a copy that has `reviews.csv row 17` instead of `/home/me/reviews.csv row 17`."""
        names = {source: Path(source).name for source in set(self.sources)}
        ends = [place.removeprefix(source) for place, source in zip(self.places, self.sources, strict=True)]
        places = [names[source] + end for source, end in zip(self.sources, ends, strict=True)]
        return replace(self, places=places)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns that metrics compare: outputs of the task by name."""
        columns = {"predictions": self.predictions, "references": self.references}
        by_kind = {self.kinds.get(name): column for name, column in columns.items()}
        return columns | {
            name: by_kind[kind] for name, kind in self.kinds.items() if kind in by_kind and name not in columns
        }

    def measure_errors(self) -> Errors | None:
        return measure_errors(self.kind, self.predictions, self.references, self.details)

    def flatten(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return predicted and right classes, `[M]`, of rows or words; None if rows have no class or several."""
        if self.kind == "class":
            return self.predictions, self.references
        if self.kind != "tags":
            return None
        pairs = [np.concatenate(list(column)) for column in (self.predictions, self.references)]
        has_label = pairs[1] >= 0
        return pairs[0][has_label], pairs[1][has_label]


def read_rows(
    path: Path, kinds: Mapping[str, str], names: Sequence[str] | None, *, count: float | None = None
) -> ScoredRows:
    """Read a file that `write_predictions` wrote.

    Args:
        kinds: Kinds of the task's outputs.
        names: Names of the classes; None: the names in the file, in alphabetical order.
        count: Number of scored rows; None: it is unknown.

    Raises:
        ValueError: The file is not such a file, or incomplete.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("place", "prediction", "reference", *_DETAILS)}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for name in columns.keys() & row.keys():
                columns[name].append(row[name])
    kind, values = kinds.get("predictions"), (columns["prediction"], columns["reference"])
    num_rows = len(columns["place"])
    if not num_rows or any(len(column) not in (0, num_rows) for column in columns.values()):
        raise ValueError("it has no rows, or some that lack a value")
    if not all(isinstance(place, str) for place in columns["place"]):
        raise ValueError("some rows have a place that is no text")
    if count not in (None, num_rows):
        raise ValueError(f"it has {num_rows:,} rows, and {count:,} were scored")
    if names is None and kind in ("class", "tags", "label_set"):
        names = sorted({value for column in values for value in _list_texts(column)})
    ids = {name: number for number, name in enumerate(names or ())}
    predictions, references = (_as_column(column, kind, ids) for column in values)
    details = {name: np.array(columns[name], dtype=float) for name in _DETAILS if columns[name]}
    return ScoredRows(kinds, columns["place"], predictions, references, details, list(map(str, names or ())))


def _as_column(values: Sequence[Any], kind: str | None, ids: Mapping[str, int]) -> np.ndarray:
    if kind == "class":
        classes = np.array([ids[value] if isinstance(value, str) else value for value in values], dtype=np.int64)
        if classes.min() < 0 or (ids and classes.max() >= len(ids)):
            raise ValueError("some rows have a class that is none")
        return classes
    if kind == "label_set":
        table = np.zeros((len(values), len(ids)), dtype=bool)
        for row, labels in enumerate(values):
            table[row, [ids[label] for label in labels]] = True
        return table
    if kind == "tags":
        lists = [
            np.array([-1 if tag is None else ids.get(tag, tag) for tag in tags], dtype=np.int64) for tags in values
        ]
        return np.fromiter(lists, dtype=object, count=len(lists))
    if kind == "text" or kind is None:
        return np.fromiter(values, dtype=object, count=len(values))
    return np.array(values, dtype=float)


def _list_texts(values: Sequence[Any]) -> list[str]:
    nested = [value if isinstance(value, list) else [value] for value in values]
    return [value for own in nested for value in own if isinstance(value, str)]
