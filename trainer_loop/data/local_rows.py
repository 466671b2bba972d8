"""Read splits that are not on the hub: files, folders, queries, functions that return rows, and in-memory rows."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import datasets

from trainer_loop.components import locate
from trainer_loop.config.named_sets import is_query, parse_set
from trainer_loop.data.columns import Columns
from trainer_loop.data.database import name_database, read_query
from trainer_loop.data.files import EXTENSIONS, find_files, is_file_spec, read_files
from trainer_loop.data.fingerprint import digest_rows
from trainer_loop.data.folders import is_image_folder, list_image_files, read_image_folder, read_images
from trainer_loop.data.given_rows import as_dataset, read_dicts
from trainer_loop.data.origins import Origins
from trainer_loop.data.plain_columns import with_plain_columns
from trainer_loop.data.row_functions import NO_FUNCTIONS, RowFunctions
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import Split
from trainer_loop.data.tables import WholeTable, read_whole
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import enumerate_names
from trainer_loop.errors import UserError, under

_FILE, _PREDICT = "file", "predict"  # the key of the predict command, and the split that it reads of a `DatasetDict`


def read_local(spec: Any, split: str, section: DataSection, functions: RowFunctions) -> Split:
    """Read the rows of files, of a query or of a dotted path, or take in-memory rows. Raises UserError.

    Args:
        functions: `data.filter` and `data.map`, applied to each row with all its columns.
    """
    columns = section.columns_of(split)
    key, columns_to_read = f"data.{split}", None if functions else columns  # functions need all columns
    if isinstance(spec, Split):
        return functions.over_split(given_split(spec, name=split, columns=columns_to_read), columns=columns)
    if not is_query(spec):
        check_spec(spec, key=key)
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        return read_source(spec, split=split, columns=columns, text_format=section.files, functions=functions)
    if "." not in spec:
        raise UserError(
            f"{key}={spec}: neither a file ({', '.join(EXTENSIONS)}) nor a dotted path such as my_lab.data.train; "
            "for a split of a hub data set give data.name too"
        )
    place = f"{key}={spec}"
    returned = call_rows_function(spec, split=split, seed=section.seed)
    stored = None if columns_to_read is None else columns_to_read.stored
    rows = _as_split(returned, place=place, dotted=spec, columns=stored)
    if not len(rows.rows):
        raise UserError(f"{place} returned no rows")
    return functions.over_split(_name_rows(rows, split, place=spec, columns=columns_to_read), columns=columns)


def read_source(
    spec: Any, *, split: str, columns: Columns | None, text_format: TextFormat, functions: RowFunctions = NO_FUNCTIONS
) -> Split:
    """Read a query, files, folders that `save_to_disk` wrote, or a folder of images. Raises UserError.

    See `read_files` for `columns` and `functions`.
    """
    key = f"data.{split}"
    if is_query(spec):
        columns_to_read = None if functions else columns
        with under(f"{key}: "):
            rows = read_query(**spec, columns=None if columns_to_read is None else columns_to_read.stored)
        rows = _name_rows(rows, split, place=name_database(spec["connection"]), columns=columns_to_read)
        return functions.over_split(rows, columns=columns)
    specs = _as_list(spec)
    with under(f"{key}={specs[0]}: "):
        images = read_image_folder(specs[0], split=split) if len(specs) == 1 and is_image_folder(specs[0]) else None
    if images is not None:
        return functions.over_split(images, columns=columns)
    files = find_files(specs, key=key, split=parse_set(split)[0])
    return read_files(files, split=split, columns=columns, text_format=text_format, functions=functions)


def check_spec(spec: Any, *, key: str) -> list[str]:
    """Return the files, globs or names in a spec. Raises UserError if it is empty or has other values."""
    specs = [spec] if isinstance(spec, str) else list(spec) if isinstance(spec, Iterable) else [spec]
    if not specs or not all(isinstance(item, str) and item for item in specs):
        raise UserError(f"{key}={spec!r}: it must be a text, or a list of files and globs that is not empty")
    return specs


def given_split(given: Split, *, name: str, columns: Columns | None) -> Split:
    """Return in-memory rows as the split `name`. Raises UserError if there are none.

    Args:
        columns: The columns that are read; None: all.
    """
    if not len(given.rows):
        raise UserError(f"data.{name}: no rows were given")
    return _name_rows(given, name, place=name, columns=columns)


def _name_rows(rows: Split, name: str, *, place: str, columns: Columns | None) -> Split:
    """Set name, origins and fingerprint of rows that are not in a file. The fingerprint is of the columns read."""
    split = replace(rows, name=name, origins=Origins.of(f"{place} row", len(rows.rows)))
    split = split if columns is None else with_plain_columns(split, columns)
    return replace(split, fingerprint=digest_rows(split.rows))


def call_rows_function(spec: str, *, split: str, seed: int) -> Any:
    """Call the user's function at a dotted path; return its result. Raises UserError if there is no such function."""
    function: Any = locate(spec, place=f"data.{split}")
    place = f"data.{split}={spec}"
    if not callable(function):
        raise UserError(
            f"{place} is no function but a {type(function).__name__}; it must be a function that returns rows"
        )
    parameters = inspect.signature(function).parameters.values()
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name != "seed"
    ]
    if required:
        raise UserError(f"{place} needs {', '.join(required)}; it may have no required parameter but seed")
    takes_seed = any(parameter.name == "seed" for parameter in parameters)
    return function(seed=seed) if takes_seed else function()


def _as_split(returned: Any, *, place: str, dotted: str, columns: Collection[str] | None) -> Split:
    if isinstance(returned, datasets.Dataset) or hasattr(returned, "__arrow_c_stream__"):
        return as_dataset(returned, place=place, columns=columns)
    is_rows = isinstance(returned, Iterable) and not isinstance(
        returned, (str, bytes, Mapping, datasets.IterableDataset)
    )
    if not is_rows:
        raise UserError(
            f"{place} returned a {type(returned).__name__}; it must return a datasets.Dataset or an iterable of dicts"
        )
    rows = list(returned)
    if not rows:
        raise UserError(f"{place} returned no rows")
    with under(f"{place}: "):
        return read_dicts(rows, place=dotted, columns=columns)


def find_whole(spec: Any) -> list[str]:
    """Return the files of a spec; empty for a query and for images. Raises UserError if no file is found."""
    if is_query(spec) or _names_images(spec):
        return []
    return find_files(_as_list(spec), key=_FILE, split=_PREDICT)


def read_whole_rows(spec: Any, files: list[str], *, columns: Columns, text_format: TextFormat) -> WholeTable:
    """Read the rows of files, of a query, or of images.

    A row of an image has its path. If the images are in folders, the name of the folder is the label.

    Args:
        spec: Files and globs, folders that `save_to_disk` wrote, a folder of images, images, or a query of a database.
        files: The result of `find_whole`.
        columns: The columns that the model reads. Rows of images get these names.
        text_format: The format of text files.

    Raises:
        UserError: The rows cannot be read.
    """
    if files:
        return read_whole(files, text_format=text_format)
    if is_query(spec):
        with under(f"{_FILE}: "):
            return _as_table(read_query(**spec, columns=None))
    specs = _as_list(spec)
    images = columns.of_kind("image")
    with under(f"{_FILE}={specs[0]}: "):
        if not images:
            message = f"it names images, and this model reads {enumerate_names(columns.without_targets().all)}"
            raise UserError(f"{message}; give a file of rows")
        rows = read_images(specs, split=_PREDICT)
    new_names = {"image": images[0], **({} if columns.label is None else {"label": columns.label})}
    table = _as_table(rows)
    renamed = {new_names[name]: column for name, column in table.columns.items() if name in new_names}
    return WholeTable(renamed, list(renamed), table.origins, has_fields=False)


def _names_images(spec: Any) -> bool:
    specs = _as_list(spec)
    return (len(specs) == 1 and is_image_folder(specs[0])) or list_image_files(specs) is not None


def _as_list(spec: Any) -> list[str]:
    return [spec] if isinstance(spec, str) else list(spec)


def _as_table(split: Split) -> WholeTable:
    table = split.rows.with_format("arrow")[:]
    columns = dict(zip(table.column_names, table.columns, strict=True))
    metadata = split.rows.features.arrow_schema.metadata
    return WholeTable(columns, list(split.columns or columns), split.origins, has_fields=False, metadata=metadata)
