"""Files: what a spec stands for, and reading files of any known kind into one split."""

import contextlib
import glob
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from trainer_loop.data.arrow_files import keep_converted
from trainer_loop.data.arrow_types import make_dataset
from trainer_loop.data.columns import Columns
from trainer_loop.data.fingerprint import check_unchanged, digest, digest_file, digest_rows
from trainer_loop.data.folders import find_saved_files
from trainer_loop.data.formats.arrow import map_arrow
from trainer_loop.data.formats.by_suffix import EXTENSIONS, open_file, read_each
from trainer_loop.data.formats.parquet import map_parquet
from trainer_loop.data.row_functions import RowFunctions
from trainer_loop.data.split import Origins, Split
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
    functions: RowFunctions | None = None,
) -> Split:
    """The rows of all files, one file after the other; other columns than those of the task are not read.

    columns: None for all; one whose type is not known, or not alike in all files, is then refused. functions: what is
    done to each row, with all its columns, before. Raises UserError with the problems of all files.
    """
    if functions is not None:
        assert columns is not None, "functions are for tasks that declare columns"
        return _read_changed(files, split=split, columns=columns, text_format=text_format, functions=functions)

    def read_one(file: str) -> tuple[NamedRows, Origins, str]:
        content = digest_file(Path(file))
        with _unchanged(file, content):
            return *_read_file(file, content=content, columns=columns, text_format=text_format), content

    parts, origins, contents = zip(*read_each(files, read_one), strict=True)
    wanted = set.intersection(*(set(part.names) for part in parts)) if columns is None else set(columns.stored)
    joined, names = join_rows(parts, files=files, contents=contents, wanted=wanted)
    kinds = [
        f"{Path(file).suffix.lower()} {content} {text_format.fingerprint(file)}".rstrip()
        for file, content in zip(files, contents, strict=True)
    ]
    fingerprint = digest(*(kind.encode() for kind in kinds))
    return Split(split, joined, Origins.join(origins), fingerprint, names)


def _read_changed(
    files: Sequence[str], *, split: str, columns: Columns, text_format: TextFormat, functions: RowFunctions
) -> Split:
    """As `read_files`; the fingerprint is that of the rows, for they depend on code, too."""

    def read_one(file: str) -> Split:
        with _unchanged(file, digest_file(Path(file))):
            shard = open_file(file, columns=None, text_format=text_format)
            return read_table(functions.over(shard, columns=columns.stored), columns=columns.stored).as_split(columns)

    read = list(zip(files, read_each(files, read_one), strict=True))
    kept = [(file, part) for file, part in read if len(part.rows)]
    if not kept:
        raise UserError(functions.explain_nothing(split))
    named = [file for file, _ in kept]
    parts = [NamedRows(part.rows, part.columns) for _, part in kept]
    joined, names = join_rows(parts, files=named, contents=named, wanted=set(columns.stored))
    return Split(split, joined, Origins.join([part.origins for _, part in kept]), digest_rows(joined), names)


@contextlib.contextmanager
def _unchanged(path: str, content: str) -> Iterator[None]:
    """Raises UserError where a file is written while it is read. content: a hash of its bytes."""
    before = _stamp(path)
    yield
    if _stamp(path) != before:
        check_unchanged(path, content)


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
    """What is there instead of a file that is not."""
    folder = path.parent
    if glob.has_magic(str(folder)):
        return ""
    if not folder.is_dir():
        return f", nor a folder {folder} (relative paths begin in {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS))
    if not names:
        return f"; {folder.absolute()} has no data files"
    return did_you_mean(path.name, names) or f"; {folder.absolute()} has {enumerate_some(names)}"


def _read_file(
    path: str, *, content: str, columns: Columns | None, text_format: TextFormat
) -> tuple["NamedRows", Origins]:
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
            return NamedRows(make_dataset(arrays, table.names, len(table)), table.names), table.origins
    if not len(rows):
        raise UserError(f"{path} has no rows")
    return NamedRows(rows, names), Origins.of(f"{path} row", len(rows))


def _stamp(path: str) -> tuple[int, int, int]:
    """What tells one writing of a file from another."""
    facts = Path(path).stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


class NamedRows(NamedTuple):
    """Rows of one file, and the names of all its columns, of which some were read."""

    rows: datasets.Dataset
    names: Sequence[str]


def join_rows(
    parts: Sequence[NamedRows], *, files: Sequence[str], contents: Sequence[str], wanted: Collection[str]
) -> tuple[datasets.Dataset, list[str]]:
    """One after the other, with the columns that all have in types that go together; and the names of all columns.

    contents: what tells the rows of one file from others, such as a hash of its bytes. Raises UserError where a wanted
    column is not among them.
    """
    problems: list[str] = []
    features = datasets.Features()
    types = [part.rows.features for part in parts]  # asked for once: each time it is a copy of all
    for name in dict.fromkeys(name for part in types for name in part):
        try:
            features[name] = _join_feature(name, parts, types, files=files)
        except UserError as error:
            problems += error.problems if name in wanted else []
    refuse(problems)
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    if not features:  # one that stands in for none, and is not in all files
        return make_dataset({}, names, sum(len(part.rows) for part in parts)), names
    joined = [
        _cast(part.rows.select_columns(list(features)), features, path=file, content=content)
        for part, file, content in zip(parts, files, contents, strict=True)
    ]
    return datasets.concatenate_datasets(joined), names


def _cast(rows: datasets.Dataset, features: datasets.Features, *, path: str, content: str) -> datasets.Dataset:
    """Where rows are mapped, into the cache: of its own datasets writes beside the file that they are mapped from."""
    if rows.features == features:
        return rows
    try:
        if not rows.cache_files:
            return rows.cast(features)
        return keep_converted(
            path,
            key=digest(b"cast", content.encode(), json.dumps(features.to_dict()).encode()),
            convert=lambda target: rows.cast(features, cache_file_name=target, load_from_cache_file=False),
        )
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} does not go together with the others: {in_one_line(error)}; make them alike"
        ) from error


def _join_feature(
    name: str, parts: Sequence[NamedRows], types: Sequence[datasets.Features], *, files: Sequence[str]
) -> Any:
    """The type of a column over all files. Raises UserError where a file lacks it or has an unlike type."""
    problems = [
        f"{file} has no column {name!r}; it has {enumerate_names(part.names)}{did_you_mean(name, part.names)}"
        for file, part, present in zip(files, parts, types, strict=True)
        if name not in present
    ]
    refuse(problems)
    common = types[0][name]
    for file, present in zip(files, types, strict=True):
        joined = _common_feature(common, present[name])
        if joined is None:
            raise UserError(
                f"column {name!r} has one type in {files[0]} ({common}) and another in {file} ({present[name]}); make "
                "them alike"
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
