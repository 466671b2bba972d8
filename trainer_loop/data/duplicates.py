"""Rows that are the same for a model: what they are compared by, and training rows that are left out for it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer_loop.data.columns import Columns, Kind
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.images import read_source
from trainer_loop.data.split import Split
from trainer_loop.data.values import KINDS_OF_TEXTS, find_fault, list_texts
from trainer_loop.data.wording import plural
from trainer_loop.errors import UserError

_READ_ROWS = 1000  # at a time
_NAMES = {"train": "an earlier one has"}


def read_texts(split: Split, columns: Columns) -> Iterator[str]:
    """The texts of each row as one, without case and runs of spaces."""
    names = columns.of_kind(*KINDS_OF_TEXTS)
    if not names:
        return
    for batch in split.rows.select_columns(names).with_format(None).iter(batch_size=_READ_ROWS):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield normalise(" ".join(list_texts(value)) for value in values)


def normalise(texts: Iterator[str]) -> str:
    """Texts as one, without case and runs of spaces.

    >>> normalise(iter(["A  good\\nbook ", "IT is"]))
    'a good book\\nit is'
    """
    joined = "\n".join(" ".join(text.casefold().split()) for text in texts)
    return joined if joined.strip() else ""


def drop_duplicates(splits: Mapping[str, Split], columns: Columns, *, whole: Collection[int] = ()) -> tuple[Split, str]:
    """The training rows without those whose inputs an earlier one has too, or a row of another split.

    Texts are compared as by `read_texts`, and in conversations those of answers too; images by their bytes, all else by
    their values. Labels, numbers and texts that are learned are not compared. A row without a text is kept.

    Args:
        splits: The raw rows, `train` among them; their columns need not be good.
        columns: The columns that are read.
        whole: The numbers of the sources of a mixture of which every row is kept.

    Returns:
        The rows, and a line for a person on what was dropped.

    Raises:
        UserError: No row is left, or none of a source of a mixture.
    """
    train = splits["train"]
    compared = {
        own: name
        for own, name in columns.names.items()
        if not columns.declared[own].target or columns.declared[own].kind in ("answer", "conversation")
    }
    inputs = Columns(columns.declared, compared)
    seen: dict[str, str] = {}
    for name, split in splits.items():
        if name != "train":
            seen |= {key: name for key in _read_keys(split, inputs) if key}
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    is_kept = np.isin(train.origins.source_of_rows, list(whole))
    for number, key in enumerate(_read_keys(train, inputs)):
        if key and key in seen and not is_kept[number]:
            dropped[seen[key]] += 1
        else:
            kept.append(number)
            seen[key] = "train"
    if not dropped:
        return train, "no row was dropped (data.deduplicate)"
    parts = [f"{plural(dropped[name], 'row')} that {_NAMES.get(name, f'{name} has')}" for name in sorted(dropped)]
    told = f"{', '.join(parts)} too {'was' if dropped.total() == 1 else 'were'} dropped (data.deduplicate)"
    left = train.select(np.array(kept, dtype=np.int64))
    if len(np.unique(left.origins.source_of_rows)) < len(np.unique(train.origins.source_of_rows)):
        raise UserError(f"data.train: no row is left of it, or of one of its sources; {told}")
    return left, told


def _read_keys(split: Split, columns: Columns) -> Iterator[str]:
    """A hash of what a model reads of each row; the empty text where a row has no text."""
    kinds: dict[str, Kind] = {name: columns.declared[own].kind for own, name in columns.names.items()}
    if not kinds.keys() <= set(split.rows.column_names):  # which the check of the rows tells
        return
    for batch in split.rows.select_columns(list(kinds)).with_format(None).iter(batch_size=_READ_ROWS):
        for values in zip(*(batch[name] for name in kinds), strict=True):
            texts = normalise(_spell(value, kind) for value, kind in zip(values, kinds.values(), strict=True))
            yield digest(texts.encode(errors="surrogatepass")) if texts else ""


def _spell(value: Any, kind: Kind) -> str:
    """What a value is compared by; of one that is wrong, which the check of the rows tells, what Python prints."""
    if value is None:
        return ""
    if kind == "image" and find_fault(value, kind, None) is None:
        content, path = read_source(value)
        return digest(content or Path(path).read_bytes())
    return " \0 ".join(list_texts(value)) if kind in KINDS_OF_TEXTS else repr(value)
