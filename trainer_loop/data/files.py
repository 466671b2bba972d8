"""Finds the files of a spec, reads them into one split, and opens them as a stream.

The marks of text files hold the byte offset of the next row, so a stream continues in a large file without reading the
rows before.
"""

import glob
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_types import cast_plain, find_features
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import make_dataset
from trainer_loop.data.fingerprint import check_unchanged, digest, digest_file, digest_rows
from trainer_loop.data.folders import find_saved_files
from trainer_loop.data.formats import EXTENSIONS, open_file, read_each
from trainer_loop.data.formats.arrow import map_arrow
from trainer_loop.data.formats.parquet import map_parquet
from trainer_loop.data.origins import Origins
from trainer_loop.data.row_cache import keep_converted
from trainer_loop.data.row_functions import NO_FUNCTIONS, RowCounts, RowFunctions
from trainer_loop.data.shards import Batch, Mark, Shard, ShardedSplit
from trainer_loop.data.split import Split
from trainer_loop.data.tables import read_table
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat
from trainer_loop.data.wording import did_you_mean, enumerate_names, enumerate_some
from trainer_loop.errors import Problems, UserError, in_one_line, refuse
from trainer_loop.runtime.host import expand_home

_INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"}
_JOINED_TYPES = {
    "large_string": {"string", "large_string", "string_view"},
    "int64": _INTEGERS,
    "float64": _INTEGERS | {"float16", "float32", "float64"},
}
# Suffixes of files that are not read. Else reviews.csv.gz would be a dotted path, and reviews.py would be imported.
_OTHER_EXTENSIONS = (
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".docx", ".pdf"),
    *(".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".hdf5", ".sqlite", ".pt", ".pth", ".bin", ".safetensors"),
    *(".py", ".ipynb", ".yaml", ".yml", ".md", ".html", ".xml"),
)
_HASHED_BYTES = 1 << 20  # of each file of a stream; hashing whole files would take as long as reading them


def is_file_spec(spec: str, *, hub: bool) -> bool:
    """Whether a spec means files or a folder.

    Args:
        spec: A value of `data.train` or another split.
        hub: `data.name` is set. Then brackets are a slice of a split, as in train[:1000]. Else the spec also means a
            file or folder if that exists, with any name.
    """
    wild = "*?" if hub else "*?["
    has_path_form = spec.lower().endswith((*EXTENSIONS, *_OTHER_EXTENSIONS)) or "/" in spec or os.sep in spec
    return has_path_form or any(character in spec for character in wild) or (not hub and os.path.exists(spec))  # noqa: PTH110


def find_files(specs: Sequence[str], *, key: str, split: str | None = None) -> list[str]:
    """Return the files of paths and globs. The files of a glob are sorted by name.

    Args:
        specs: Paths and globs.
        key: The config key that errors name.
        split: Accept folders that `save_to_disk` wrote too, and read this split of a `DatasetDict`; None: do not.

    Raises:
        UserError: With the problems of all specs.
    """
    problems = Problems()
    files: list[str] = []
    for spec in specs:
        files += problems.collect(f"{key}={spec}: ", _find, spec, split) or []
    resolved = [os.path.realpath(file) for file in files]
    repeated = sorted({file for file, path in zip(files, resolved, strict=True) if resolved.count(path) > 1})
    if repeated:
        problems.lines.append(
            f"{key}: each file may be given once, and these are more often: {enumerate_some(repeated)}"
        )
    problems.refuse()
    return files


def read_files(
    files: Sequence[str],
    *,
    split: str,
    columns: Columns | None,
    text_format: TextFormat = DEFAULT_FORMAT,
    functions: RowFunctions = NO_FUNCTIONS,
) -> Split:
    """Read the rows of all files, in the order of the files.

    Args:
        files: Paths of the files.
        split: Name of the split.
        columns: Columns that are read. None: all; each must have a known type that agrees in all files.
        text_format: Delimiter, quoting and encoding.
        functions: Applied to each row, with all its columns. The fingerprint is then a hash of the resulting rows.

    Raises:
        UserError: With the problems of all files.
    """
    row_counts: list[RowCounts] = []

    def read_one(file: str) -> Split:
        content, stamp = digest_file(Path(file)), _stamp(file)
        if functions:
            assert columns is not None, "functions are for tasks that declare columns"
            shard = open_file(file, columns=None, text_format=text_format)
            changed = functions.over(shard, columns=columns.stored, on_end=row_counts.append)
            part = read_table(changed, columns=columns.stored).as_split(columns)
        else:
            part = _read_file(file, content=content, columns=columns, text_format=text_format)
        if _stamp(file) != stamp:
            check_unchanged(file, content)
        fingerprint = f"{Path(file).suffix.lower()} {content} {text_format.fingerprint(file)}".rstrip()
        return replace(part, name=file, fingerprint=fingerprint)

    wanted = None if columns is None else columns.stored
    parts = read_each(files, read_one)
    if not functions:
        return join_files(split, parts, wanted=wanted)
    non_empty = [part for part in parts if len(part.rows)]
    if not non_empty:
        raise UserError(functions.explain_nothing(split))
    joined = join_files(split, non_empty, wanted=wanted)
    functions.report(split, row_counts)
    return replace(joined, fingerprint=digest_rows(joined.rows))


def open_files(
    files: Sequence[str],
    *,
    columns: Sequence[str],
    text_format: TextFormat = DEFAULT_FORMAT,
    functions: RowFunctions = NO_FUNCTIONS,
) -> ShardedSplit:
    """Open files as a stream, in the order of the files.

    Args:
        files: Paths of the files.
        columns: Columns that are read.
        text_format: Delimiter, quoting and encoding.
        functions: Applied to each row, with all its columns.

    Raises:
        UserError: With the problems of all files.
    """
    shards = read_each(files, partial(_open_file, columns=columns, text_format=text_format, functions=functions))
    parts = [f"{_digest_head(file)} {text_format.fingerprint(file)}".rstrip() for file in files]
    fingerprint = digest(*(part.encode() for part in parts))
    title = files[0] if len(files) == 1 else f"{len(files):,} files"
    return functions.mark_stream(ShardedSplit(shards, title, fingerprint))


def _open_file(path: str, *, columns: Collection[str], text_format: TextFormat, functions: RowFunctions) -> Shard:
    """Open a file of any known kind, with these columns converted to types that datasets can hold."""
    shard = open_file(path, columns=None if functions else columns, text_format=text_format)
    shard = functions.over_streamed(shard, columns=columns)
    if shard.whole_only is not None:
        raise UserError(shard.whole_only)
    if shard.schema is None:
        return shard
    features = find_features(shard.schema, path=path, wanted=columns)

    def read(mark: Mark | None) -> Iterator[Batch]:
        for batch in shard.batches(mark):
            assert isinstance(batch.rows, pa.Table), "a file with a schema has tables"
            yield replace(batch, rows=cast_plain(batch.rows, features))

    return replace(shard, batches=read, features=features)


def _digest_head(path: str) -> str:
    """Return a hash of the suffix of a file, its size and its first MiB."""
    with Path(path).open("rb") as file:
        head = file.read(_HASHED_BYTES)
    return digest(Path(path).suffix.lower().encode(), str(Path(path).stat().st_size).encode(), head)


def _find(spec: str, split: str | None) -> list[str]:
    path = expand_home(spec)
    try:
        return _find_by_path(path, spec, split)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # the system rejects the name
        raise UserError(f"no file can have this name: {in_one_line(error, at_most=100)}") from error


def _find_by_path(path: Path, spec: str, split: str | None) -> list[str]:
    if path.is_dir():
        saved_files = None if split is None else find_saved_files(path, split=split)
        if saved_files is not None:
            return saved_files
        kinds = sorted({entry.suffix.lower() for entry in path.iterdir()} & set(EXTENSIONS))
        example = Path(spec) / f"*{(kinds or EXTENSIONS)[0]}"
        raise UserError(f"this is a folder; give the files in it, such as {example}")
    if path.is_file():
        files = [str(path)]
    elif glob.has_magic(spec):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = sorted(match for match in matches if Path(match).is_file())
    else:
        listed = "; a list of files is written [a.csv,b.csv]" if "," in spec else ""
        raise UserError(f"there is no such file{listed or _describe_folder(path)}")
    if not files:
        raise UserError(f"no file matches{_describe_folder(path)}")
    unknown = [file for file in files if not file.lower().endswith(EXTENSIONS)]
    if unknown:
        raise UserError(
            f"{enumerate_some(unknown)}: of no known kind; known are {', '.join(EXTENSIONS)}; unpack or convert it"
        )
    return files


def _describe_folder(path: Path) -> str:
    folder = path.parent
    if glob.has_magic(str(folder)):
        return ""
    if not folder.is_dir():
        return f", nor a folder {folder} (relative paths begin in {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS))
    if not names:
        return f"; {folder.absolute()} has no data files"
    return did_you_mean(path.name, names) or f"; {folder.absolute()} has {enumerate_some(names)}"


def _read_file(path: str, *, content: str, columns: Columns | None, text_format: TextFormat) -> Split:
    """Read one file. `content` is a hash of its bytes."""
    wanted = None if columns is None else columns.stored
    shard = open_file(path, columns=wanted, text_format=text_format)
    match Path(path).suffix.lower():
        case ".parquet":
            rows, names = map_parquet(shard, content=content, wanted=wanted)
        case ".arrow" | ".feather":
            rows, names = map_arrow(path, wanted=wanted)
        case _:
            table = read_table(shard, columns=wanted)
            if not table.names:
                raise UserError(f"{table.origins.place(0)} and all rows behind it are objects without names")
            arrays = table.as_arrays(wanted=wanted or (), label=None if columns is None else columns.label)
            return Split(path, make_dataset(arrays, table.names, len(table)), table.origins, "", table.names)
    if not len(rows):
        raise UserError(f"{path} has no rows")
    return Split(path, rows, Origins.of(f"{path} row", len(rows)), "", names)


def _stamp(path: str) -> tuple[int, int, int]:
    """Return inode, size and time of a file, which change when it is written."""
    facts = Path(path).stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def join_files(name: str, parts: Sequence[Split], *, wanted: Collection[str] | None) -> Split:
    """Concatenate the rows of files. Columns are kept if all files have them with compatible types.

    Args:
        name: Name of the split.
        parts: The rows of each file; the name of a part is the name of its file.
        wanted: Columns that must be kept; None: all that are in every file.

    Raises:
        UserError: A file lacks a wanted column, or its types are not compatible.
    """
    if wanted is None:
        wanted = set.intersection(*(set(part.columns) for part in parts))
    problems: list[str] = []
    features = datasets.Features()
    features_of_parts = [part.rows.features for part in parts]  # read once: each access makes a copy
    for column in dict.fromkeys(column for part in features_of_parts for column in part):
        try:
            features[column] = _join_feature(column, parts, features_of_parts)
        except UserError as error:
            problems += error.problems if column in wanted else []
    refuse(problems)
    names = list(dict.fromkeys(column for part in parts for column in part.columns))
    if features:
        rows = datasets.concatenate_datasets([_cast(part, features) for part in parts])
    else:  # only the placeholder columns of `make_dataset`, which differ between files
        rows = make_dataset({}, names, sum(len(part.rows) for part in parts))
    fingerprint = digest(*(part.fingerprint.encode() for part in parts))
    return Split(name, rows, Origins.join([part.origins for part in parts]), fingerprint, names)


def _cast(part: Split, features: datasets.Features) -> datasets.Dataset:
    """Cast the columns of a part. Memory-mapped rows are cast into the cache; datasets would write next to the file."""
    rows = part.rows.select_columns(list(features))
    if rows.features == features:
        return rows
    try:
        if not rows.cache_files:
            return rows.cast(features)
        return keep_converted(
            part.name,
            key=digest(b"cast", part.fingerprint.encode(), json.dumps(features.to_dict()).encode()),
            convert=lambda target: rows.cast(features, cache_file_name=target, load_from_cache_file=False),
        )
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{part.name} does not go together with the others: {in_one_line(error)}; make them alike"
        ) from error


def _join_feature(column: str, parts: Sequence[Split], features_of_parts: Sequence[datasets.Features]) -> Any:
    """Return the common type of a column. Raises UserError if a file lacks it or has an incompatible type."""
    problems = [
        f"{part.name} has no column {column!r}; it has {enumerate_names(part.columns)}"
        f"{did_you_mean(column, part.columns)}"
        for part, features in zip(parts, features_of_parts, strict=True)
        if column not in features
    ]
    refuse(problems)
    common = features_of_parts[0][column]
    for part, features in zip(parts, features_of_parts, strict=True):
        merged = _common_feature(common, features[column])
        if merged is None:
            raise UserError(
                f"column {column!r} has one type in {parts[0].name} ({common}) and another in {part.name} "
                f"({features[column]}); make them alike"
            )
        common = merged
    return common


def _common_feature(one: Any, other: Any) -> Any | None:
    """Return the type that can hold the values of both columns, or None."""
    null = datasets.Value("null")
    if one == other or other == null:
        return one
    if one == null:
        return other
    if isinstance(one, datasets.Value) and isinstance(other, datasets.Value):
        for common, kinds in _JOINED_TYPES.items():
            if {one.dtype, other.dtype} <= kinds:
                return datasets.Value(common)
    return None
