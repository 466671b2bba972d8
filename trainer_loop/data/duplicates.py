"""Finds and drops training rows whose inputs another row has too."""

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

_READ_ROWS = 1000  # rows that are read at a time
_PHRASES = {"train": "an earlier one has"}


def read_texts(split: Split, columns: Columns) -> Iterator[str]:
    """Yield the texts of each row, joined and normalised."""
    names = columns.of_kind(*KINDS_OF_TEXTS)
    if not names:
        return
    for batch in split.rows.select_columns(names).with_format(None).iter(batch_size=_READ_ROWS):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield normalise(" ".join(list_texts(value)) for value in values)


def normalise(texts: Iterator[str]) -> str:
    """Join texts to one, in lower case and with single spaces.

    >>> normalise(iter(["A  good\\nbook ", "IT is"]))
    'a good book\\nit is'
    """
    joined = "\n".join(" ".join(text.casefold().split()) for text in texts)
    return joined if joined.strip() else ""


def drop_duplicates(splits: Mapping[str, Split], columns: Columns, *, whole: Collection[int] = ()) -> tuple[Split, str]:
    """Drop training rows whose inputs an earlier training row, or a row of another split, has too.

    Texts are compared after `normalise`, with the answers of conversations; images by their bytes, other inputs by
    their values. Targets are not compared, except answers. A row without a text is kept.

    Args:
        splits: The raw rows, with `train`; their columns may have faults.
        columns: The columns that are read.
        whole: Numbers of the sources of a mixture whose rows are all kept.

    Returns:
        The training rows, and a message on what was dropped.

    Raises:
        UserError: No row is left, or none of a source of a mixture.
    """
    train = splits["train"]
    compared = {
        role: name
        for role, name in columns.names.items()
        if not columns.declared[role].target or columns.declared[role].kind in ("answer", "conversation")
    }
    inputs = Columns(columns.declared, compared)
    seen: dict[str, str] = {}
    for name, split in splits.items():
        if name != "train":
            seen |= {key: name for key in _read_keys(split, inputs) if key}
    kept_rows: list[int] = []
    dropped: Counter[str] = Counter()
    is_exempt = np.isin(train.origins.source_of_rows, list(whole))
    for row, key in enumerate(_read_keys(train, inputs)):
        if key and key in seen and not is_exempt[row]:
            dropped[seen[key]] += 1
        else:
            kept_rows.append(row)
            seen[key] = "train"
    if not dropped:
        return train, "no row was dropped (data.deduplicate)"
    parts = [f"{plural(dropped[name], 'row')} that {_PHRASES.get(name, f'{name} has')}" for name in sorted(dropped)]
    message = f"{', '.join(parts)} too {'was' if dropped.total() == 1 else 'were'} dropped (data.deduplicate)"
    rest = train.select(np.array(kept_rows, dtype=np.int64))
    if len(np.unique(rest.origins.source_of_rows)) < len(np.unique(train.origins.source_of_rows)):
        raise UserError(f"data.train: no row is left of it, or of one of its sources; {message}")
    return rest, message


def _read_keys(split: Split, columns: Columns) -> Iterator[str]:
    """Yield a hash of the inputs of each row; an empty text for a row without a text."""
    kinds: dict[str, Kind] = {name: columns.declared[role].kind for role, name in columns.names.items()}
    if not kinds.keys() <= set(split.rows.column_names):  # `check_splits` reports this
        return
    for batch in split.rows.select_columns(list(kinds)).with_format(None).iter(batch_size=_READ_ROWS):
        for values in zip(*(batch[name] for name in kinds), strict=True):
            texts = normalise(_compare_as(value, kind) for value, kind in zip(values, kinds.values(), strict=True))
            yield digest(texts.encode(errors="surrogatepass")) if texts else ""


def _compare_as(value: Any, kind: Kind) -> str:
    """Return the text by which a value is compared. For faulty values, which `check_splits` reports, it is the repr."""
    if value is None:
        return ""
    if kind == "image" and find_fault(value, kind, None) is None:
        content, path = read_source(value)
        return digest(content or Path(path).read_bytes())
    return " \0 ".join(list_texts(value)) if kind in KINDS_OF_TEXTS else repr(value)
