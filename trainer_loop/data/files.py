"""Files: what a spec stands for, reading files of any known kind into one split, and opening them as a stream.

Text files remember the byte that the next row begins at, so finding it again costs nothing however large the file is.
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
from trainer_loop.data.row_functions import NO_FUNCTIONS, Kept, RowFunctions
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
# Endings of files that are not read. Without them reviews.csv.gz would be a dotted path, and run a file reviews.py.
_OTHER_EXTENSIONS = (
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".docx", ".pdf"),
    *(".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".hdf5", ".sqlite", ".pt", ".pth", ".bin", ".safetensors"),
    *(".py", ".ipynb", ".yaml", ".yml", ".md", ".html", ".xml"),
)
_HASHED_BYTES = 1 << 20  # of every file of a stream; all of them would take as long as reading it


def is_file_spec(spec: str, *, hub: bool) -> bool:
    """Whether a spec means files or a folder. With a hub data set, brackets are a slice of a split: train[:1000].

    Where there is none, a file or folder that exists is meant, whatever it is called.
    """
    wild = "*?" if hub else "*?["
    is_spelled_so = spec.lower().endswith((*EXTENSIONS, *_OTHER_EXTENSIONS)) or "/" in spec or os.sep in spec
    return is_spelled_so or any(sign in spec for sign in wild) or (not hub and os.path.exists(spec))  # noqa: PTH110


def find_files(specs: Sequence[str], *, key: str, split: str | None = None) -> list[str]:
    """The files that paths and globs stand for; those of one glob are in the order of their names.

    key: the config key that errors name. split: also those of folders that `save_to_disk` wrote, of a `DatasetDict`
    those of this split. Raises UserError with all that is wrong.
    """
    problems = Problems()
    files: list[str] = []
    for spec in specs:
        files += problems.collect(f"{key}={spec}: ", _find, spec, split) or []
    resolved = [os.path.realpath(file) for file in files]
    twice = sorted({file for file, path in zip(files, resolved, strict=True) if resolved.count(path) > 1})
    if twice:
        problems.lines.append(f"{key}: each file may be given once, and these are more often: {enumerate_some(twice)}")
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
    """The rows of all files, one file after the other; other columns than those of the task are not read.

    columns: None for all; one whose type is not known, or not alike in all files, is then refused. functions: what is
    done to each row, with all its columns, before; the fingerprint is then that of the rows, which depend on code, too.
    Raises UserError with the problems of all files.
    """
    counts: list[Kept] = []

    def read_one(file: str) -> Split:
        content, before = digest_file(Path(file)), _stamp(file)
        if functions:
            assert columns is not None, "functions are for tasks that declare columns"
            shard = open_file(file, columns=None, text_format=text_format)
            changed = functions.over(shard, columns=columns.stored, on_end=counts.append)
            read = read_table(changed, columns=columns.stored).as_split(columns)
        else:
            read = _read_file(file, content=content, columns=columns, text_format=text_format)
        if _stamp(file) != before:
            check_unchanged(file, content)
        kind = f"{Path(file).suffix.lower()} {content} {text_format.fingerprint(file)}".rstrip()
        return replace(read, name=file, fingerprint=kind)

    wanted = None if columns is None else columns.stored
    parts = read_each(files, read_one)
    if not functions:
        return join_files(split, parts, wanted=wanted)
    kept = [part for part in parts if len(part.rows)]
    if not kept:
        raise UserError(functions.explain_nothing(split))
    joined = join_files(split, kept, wanted=wanted)
    functions.tell(split, counts)
    return replace(joined, fingerprint=digest_rows(joined.rows))


def open_files(
    files: Sequence[str],
    *,
    columns: Sequence[str],
    text_format: TextFormat = DEFAULT_FORMAT,
    functions: RowFunctions = NO_FUNCTIONS,
) -> ShardedSplit:
    """Files, one after the other. Raises UserError with the problems of all files.

    columns: those that are read. functions: what is done to each row, with all its columns, before.
    """
    shards = read_each(files, partial(_open_file, columns=columns, text_format=text_format, functions=functions))
    parts = [f"{_digest_head(file)} {text_format.fingerprint(file)}".rstrip() for file in files]
    fingerprint = digest(*(part.encode() for part in parts))
    title = files[0] if len(files) == 1 else f"{len(files):,} files"
    return functions.mark_stream(ShardedSplit(shards, title, fingerprint))


def _open_file(path: str, *, columns: Collection[str], text_format: TextFormat, functions: RowFunctions) -> Shard:
    """A file of any known kind, with these columns in types that rows can hold."""
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
    """A hash of the kind of a file, its size and its first MiB."""
    with Path(path).open("rb") as file:
        head = file.read(_HASHED_BYTES)
    return digest(Path(path).suffix.lower().encode(), str(Path(path).stat().st_size).encode(), head)


def _find(spec: str, split: str | None) -> list[str]:
    path = expand_home(spec)
    try:
        return _look_for(path, spec, split)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a name that the system refuses
        raise UserError(f"no file can have this name: {in_one_line(error, at_most=100)}") from error


def _look_for(path: Path, spec: str, split: str | None) -> list[str]:
    if path.is_dir():
        saved = None if split is None else find_saved_files(path, split=split)
        if saved is not None:
            return saved
        kinds = sorted({entry.suffix.lower() for entry in path.iterdir()} & set(EXTENSIONS))
        example = Path(spec) / f"*{(kinds or EXTENSIONS)[0]}"
        raise UserError(f"this is a folder; give the files in it, such as {example}")
    if path.is_file():
        found = [str(path)]
    elif glob.has_magic(spec):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(match for match in matches if Path(match).is_file())
    else:
        listed = "; a list of files is written [a.csv,b.csv]" if "," in spec else ""
        raise UserError(f"there is no such file{listed or _describe_folder(path)}")
    if not found:
        raise UserError(f"no file matches{_describe_folder(path)}")
    unknown = [file for file in found if not file.lower().endswith(EXTENSIONS)]
    if unknown:
        raise UserError(
            f"{enumerate_some(unknown)}: of no known kind; known are {', '.join(EXTENSIONS)}; unpack or convert it"
        )
    return found


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
    """content: a hash of its bytes."""
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
    """What tells one writing of a file from another."""
    facts = Path(path).stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def join_files(name: str, parts: Sequence[Split], *, wanted: Collection[str] | None) -> Split:
    """The rows of files, one after the other, with the columns that all have in types that go together.

    name: of the split. parts: the rows of each file, by its name; their fingerprints tell them from others. wanted:
    None for the columns that all files have. Raises UserError where a wanted column cannot be had.
    """
    if wanted is None:
        wanted = set.intersection(*(set(part.columns) for part in parts))
    problems: list[str] = []
    features = datasets.Features()
    types = [part.rows.features for part in parts]  # asked for once: each time it is a copy of all
    for column in dict.fromkeys(column for part in types for column in part):
        try:
            features[column] = _join_feature(column, parts, types)
        except UserError as error:
            problems += error.problems if column in wanted else []
    refuse(problems)
    names = list(dict.fromkeys(column for part in parts for column in part.columns))
    if features:
        rows = datasets.concatenate_datasets([_cast(part, features) for part in parts])
    else:  # one that stands in for none, and is not in all files
        rows = make_dataset({}, names, sum(len(part.rows) for part in parts))
    fingerprint = digest(*(part.fingerprint.encode() for part in parts))
    return Split(name, rows, Origins.join([part.origins for part in parts]), fingerprint, names)


def _cast(part: Split, features: datasets.Features) -> datasets.Dataset:
    """Where rows are mapped, into the cache: of its own datasets writes beside the file that they are mapped from."""
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


def _join_feature(column: str, parts: Sequence[Split], types: Sequence[datasets.Features]) -> Any:
    """The type of a column over all files. Raises UserError where a file lacks it or has an unlike type."""
    lacking = [
        f"{part.name} has no column {column!r}; it has {enumerate_names(part.columns)}"
        f"{did_you_mean(column, part.columns)}"
        for part, present in zip(parts, types, strict=True)
        if column not in present
    ]
    refuse(lacking)
    common = types[0][column]
    for part, present in zip(parts, types, strict=True):
        joined = _common_feature(common, present[column])
        if joined is None:
            raise UserError(
                f"column {column!r} has one type in {parts[0].name} ({common}) and another in {part.name} "
                f"({present[column]}); make them alike"
            )
        common = joined
    return common


def _common_feature(one: Any, other: Any) -> Any | None:
    """The type that holds the values of both columns, or None."""
    null = datasets.Value("null")
    if one == other or other == null:
        return one
    if one == null:
        return other
    if isinstance(one, datasets.Value) and isinstance(other, datasets.Value):
        for joined, kinds in _JOINED_TYPES.items():
            if {one.dtype, other.dtype} <= kinds:
                return datasets.Value(joined)
    return None
