"""Opens files of any known kind."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from trainer_loop.data.formats.arrow import open_arrow
from trainer_loop.data.formats.csv_files import open_delimited
from trainer_loop.data.formats.json_files import open_json
from trainer_loop.data.formats.parquet import open_parquet
from trainer_loop.data.formats.text_files import open_text_lines
from trainer_loop.data.shards import Shard
from trainer_loop.data.text_format import TextFormat
from trainer_loop.errors import UserError, in_one_line, refuse

_T = TypeVar("_T")
EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".txt")


def open_file(path: str, *, columns: Collection[str] | None, text_format: TextFormat) -> Shard:
    """Open a file of any known kind.

    Args:
        path: Path of the file; its suffix gives the kind.
        columns: Columns that are read, if the format can read some of them; None: all.
        text_format: Delimiter, quoting and encoding of text files.

    Raises:
        UserError: The content cannot be read.
        OSError: The disk cannot be read.
    """
    if not Path(path).stat().st_size:
        raise UserError(f"{path} is empty")
    match Path(path).suffix.lower():
        case ".csv" | ".tsv":
            return open_delimited(path, columns=columns, text_format=text_format)
        case ".json" | ".jsonl":
            return open_json(path, text_format=text_format)
        case ".txt":
            return open_text_lines(path, text_format=text_format)
        case ".parquet":
            return open_parquet(path, columns=columns)
        case _:
            return open_arrow(path, columns=columns)


def read_each(files: Iterable[str], read: Callable[[str], _T]) -> list[_T]:
    """Return the result of `read` for each file. Raises UserError with the problems of all files."""
    results: list[_T] = []
    problems: list[str] = []
    for file in files:
        try:
            results.append(read(file))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} cannot be read: {in_one_line(error)}")
    refuse(problems)
    return results
