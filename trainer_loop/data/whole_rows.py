"""Rows with all their columns, from what `data.train` may name, so that they can be written again with more of them."""

from typing import Any

from trainer_loop.config.named_sets import is_query
from trainer_loop.data.columns import Columns
from trainer_loop.data.database import read_query
from trainer_loop.data.files import find_files
from trainer_loop.data.folders import is_image_folder, list_image_files, read_images
from trainer_loop.data.split import Split
from trainer_loop.data.tables import WholeTable, read_whole
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import enumerate_names
from trainer_loop.errors import UserError, under

_KEY, _SPLIT = "file", "predict"  # the split that is read of a `DatasetDict`


def find_whole(spec: Any) -> list[str]:
    """The files that a spec stands for; none for a query and for images. Raises UserError where there is none."""
    if is_query(spec) or _names_images(spec):
        return []
    return find_files(_list(spec), key=_KEY, split=_SPLIT)


def read_whole_rows(spec: Any, files: list[str], *, columns: Columns, text_format: TextFormat) -> WholeTable:
    """The rows of files, of a query, or of images.

    Images are rows of their path and, in folders in a folder, of the name of the folder as their label.

    Args:
        spec: Files and globs, folders that `save_to_disk` wrote, a folder of images, images, or a query of a database.
        files: From `find_whole`.
        columns: Those that a model reads; rows of images have these names.
        text_format: How text files are written.

    Raises:
        UserError: The rows cannot be read.
    """
    if files:
        return read_whole(files, text_format=text_format)
    if is_query(spec):
        with under(f"{_KEY}: "):
            return _as_table(read_query(**spec, columns=None))
    specs = _list(spec)
    images = columns.of_kind("image")
    with under(f"{_KEY}={specs[0]}: "):
        if not images:
            told = f"it names images, and this model reads {enumerate_names(columns.without_targets().all)}"
            raise UserError(f"{told}; give a file of rows")
        read = read_images(specs, split=_SPLIT)
    new = {"image": images[0], **({} if columns.label is None else {"label": columns.label})}
    table = _as_table(read)
    named = {new[name]: column for name, column in table.columns.items() if name in new}
    return WholeTable(named, list(named), table.origins, has_fields=False)


def _names_images(spec: Any) -> bool:
    specs = _list(spec)
    return (len(specs) == 1 and is_image_folder(specs[0])) or list_image_files(specs) is not None


def _list(spec: Any) -> list[str]:
    return [spec] if isinstance(spec, str) else list(spec)


def _as_table(split: Split) -> WholeTable:
    table = split.rows.with_format("arrow")[:]
    columns = dict(zip(table.column_names, table.columns, strict=True))
    metadata = split.rows.features.arrow_schema.metadata
    return WholeTable(columns, list(split.columns or columns), split.origins, has_fields=False, metadata=metadata)
