"""In-memory rows: a data set, a table, a list, a torch Dataset."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer_loop.data.arrow_types import find_features, make_arrays, telling_damage, validate_and_cast
from trainer_loop.data.dataset_columns import as_rows, make_dataset
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.images import as_plain
from trainer_loop.data.loader import RowSource
from trainer_loop.data.origins import Origins
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.wording import enumerate_some, shorten
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.randomness import seed_everything

_SHOWN = 5  # rows of the wrong type that a message shows
_HASHED_ROWS = 64  # rows in the fingerprint of rows that a task takes as they are


def as_dataset(rows: Any, *, place: str, columns: Collection[str] | None = None) -> Split:
    """Convert a datasets.Dataset, a pandas, polars or Arrow table, or rows that are dicts to a split without a name.

    Args:
        place: The name of the rows in messages.
        columns: The columns that are read; None: all.

    Raises:
        UserError: `rows` are of another type, are empty, or cannot be converted.
    """
    if isinstance(rows, datasets.Dataset):
        return make_split(rows, rows.column_names, place)
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):  # pandas, polars or pyarrow
        return _read_table(rows, place=place, columns=columns)
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, (Iterable, torch.utils.data.Dataset)):
        hint = f"; to read files, name them in the config: data.train={rows}" if isinstance(rows, str) else ""
        raise UserError(
            f"{place} is a {type(rows).__name__}; rows are a datasets.Dataset, a pandas, polars or Arrow table, a "
            f"torch Dataset or a list of dicts{hint}"
        )
    listed: list[Any]
    if isinstance(rows, torch.utils.data.Dataset):  # it may not be iterable
        numbers = range(len(rows))  # type: ignore[arg-type]
        listed = [rows[number] for number in numbers]
    else:
        listed = list(rows)
    if not listed:
        raise UserError(f"{place} has no rows")
    return read_dicts(listed, place=place, columns=columns)


def _read_table(rows: Any, *, place: str, columns: Collection[str] | None) -> Split:
    library = type(rows).__module__.partition(".")[0]
    names: list[str] | None = None
    if library in ("pandas", "polars") and columns is not None:
        by_name = {str(name): name for name in rows.columns}
        names = list(by_name)
        selected = [by_name[name] for name in names if name in columns]
        if not selected:
            return make_split(make_dataset({}, names, len(rows)), names, place)
        rows = rows[selected]  # other columns may have objects that Arrow cannot store
    try:
        table = pa.table(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        if library == "pandas" and columns is not None:  # this error does not name the row
            return read_dicts(rows.to_dict("records"), place=place, columns=columns)
        raise UserError(f"{place}: these rows make no table: {in_one_line(error)}") from error
    table = table.select([name for name in table.column_names if not name.startswith("__index_level_")])
    return _table_to_split(table, names or table.column_names, place=place, columns=columns)


def _table_to_split(table: pa.Table, names: list[str], *, place: str, columns: Collection[str] | None) -> Split:
    features = find_features(table.schema, path=place, wanted=columns)
    if not features:
        return make_split(make_dataset({}, names, table.num_rows), names, place)
    with telling_damage(place, "Arrow"):
        return make_split(as_rows(validate_and_cast(table, features)), names, place)


def make_split(rows: datasets.Dataset, names: Sequence[str], place: str) -> Split:
    """Return a split without name and fingerprint. `names` are of all columns; `place` is the origin of the rows."""
    return Split("", rows, Origins.of(f"{place} row", len(rows)), "", names)


def read_dicts(rows: Sequence[Any], *, place: str, columns: Collection[str] | None) -> Split:
    """Convert rows that are dicts to columns. A key that a row lacks becomes null.

    Args:
        place: The name of the rows in messages.
        columns: The columns that are read, with NaN as null. None: all; a column of mixed types is stored as JSON.
    """

    def place_of(row: int) -> str:
        return f"{place} row {row + 1}"

    wrong_rows = [row for row, value in enumerate(rows) if not isinstance(value, Mapping)]
    if wrong_rows:
        shown = [f"{place_of(row)} is {shorten(rows[row])}" for row in wrong_rows[:_SHOWN]]
        raise UserError(f"every row must be an object of named values: {enumerate_some(shown, total=len(wrong_rows))}")
    keys = {str(name): name for values in rows for name in values}
    if not keys:
        raise UserError(f"{place}: its rows have no columns")
    names = list(keys)
    selected = [name for name in names if columns is None or name in columns]
    if not selected:
        return make_split(make_dataset({}, names, len(rows)), names, place)
    values_by_name = {name: [as_plain(values.get(keys[name])) for values in rows] for name in selected}
    table = pa.table(make_arrays(values_by_name, wanted=columns or (), place=place_of))
    return _table_to_split(table, names, place=place, columns=columns)


def take_rows(
    rows: Any, *, name: str, place: str, origins: Origins | None = None, fingerprint: str | None = None
) -> TokenisedSplit:
    """Return the split of a task that takes rows as they are, each a dict.

    Args:
        name: The name of the split.
        place: The name of the rows in messages.
        origins: See `TokenisedSplit`; None: the numbers of the rows.
        fingerprint: See `TokenisedSplit`; None: a hash of some rows.

    Raises:
        UserError: There are no rows, or they have no length or no access by index.
    """
    if hasattr(rows, "__arrow_c_stream__") and not isinstance(rows, datasets.Dataset):
        rows = as_dataset(rows, place=place).rows
    elif not hasattr(rows, "__getitem__") and isinstance(rows, Iterable):
        rows = list(rows)
    if isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise UserError(
            f"{place} is a {type(rows).__name__}; rows are a torch Dataset, a datasets.Dataset or a list, and each row "
            "a dict"
        )
    if not len(rows):
        raise UserError(f"{place} has no rows")
    return TokenisedSplit(
        name=name,
        rows=rows,
        lengths=np.broadcast_to(np.int32(1), len(rows)),  # broadcasting takes no memory
        num_truncated=0,
        origins=origins or Origins.of(f"{place} row", len(rows)),
        fingerprint=fingerprint or _digest_some(rows, place),
    )


def _digest_some(rows: RowSource, place: str) -> str:
    """Return a hash of rows at regular distances. Reading all rows might take as long as training on them.

    Raises:
        UserError: One of these rows is not a dict.
    """
    numbers = np.unique(np.linspace(0, len(rows) - 1, _HASHED_ROWS).astype(np.int64)).tolist()
    parts = [str(len(rows))]
    for number in numbers:
        seed_everything("fingerprint", number)  # a Dataset may augment a row at random whenever it is read
        row: Any = rows[number]
        if not isinstance(row, Mapping):
            problem = f"row {number + 1} is a {type(row).__name__}; a row is a dict"
            raise UserError(f"{place}: {problem}, such as {{'image': ..., 'label': 3}}")
        parts += [f"{name}={_spell(value)}" for name, value in sorted(row.items())]
    return digest(*(part.encode() for part in parts))


def _spell(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if hasattr(value, "tobytes"):  # arrays and images
        return f"{getattr(value, 'dtype', '')}{getattr(value, 'shape', '')}{digest(value.tobytes())}"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}={_spell(item)}' for name, item in sorted(value.items()))}}}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"[{','.join(_spell(item) for item in value)}]"
    # The repr of other objects may have their memory address.
    return repr(value) if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
