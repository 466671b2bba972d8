"""Files: what a spec stands for, and reading files of any known kind into one split."""

import glob
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable, MemoryMappedTable

from trainer_loop.data.arrow_files import find_features, is_arrow_stream, keep_converted, telling_damage
from trainer_loop.data.fingerprint import check_unchanged, digest, digest_file
from trainer_loop.data.parquet_files import map_parquet
from trainer_loop.data.split import Places, Split
from trainer_loop.data.text_files import Rows, read_delimited, read_json, read_json_lines, read_text_lines
from trainer_loop.data.wording import did_you_mean, enumerate_some
from trainer_loop.errors import UserError, in_one_line

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".txt")
_INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"}
_JOINED_TYPES = {
    "large_string": {"string", "large_string", "string_view"},
    "int64": _INTEGERS,
    "float64": _INTEGERS | {"float16", "float32", "float64"},
}


def is_file_spec(spec: str, *, hub: bool) -> bool:
    """Whether a spec means files. With a hub data set, brackets are a slice of a split: train[:1000]."""
    wild = "*?" if hub else "*?["
    return spec.lower().endswith(EXTENSIONS) or "/" in spec or os.sep in spec or any(sign in spec for sign in wild)


def find_files(specs: Sequence[str], *, key: str) -> list[str]:
    """The files that paths and globs stand for; those of one glob are in the order of their names.

    key: the config key that errors name. Raises UserError with all that is wrong.
    """
    problems: list[str] = []
    files: list[str] = []
    for spec in specs:
        try:
            files += _find(spec)
        except UserError as error:
            problems += [f"{key}={spec}: {problem}" for problem in error.problems]
    resolved = [os.path.realpath(file) for file in files]
    twice = sorted({file for file, path in zip(files, resolved, strict=True) if resolved.count(path) > 1})
    if twice:
        problems.append(f"{key}: each file may be given once, and these are more often: {enumerate_some(twice)}")
    if problems:
        raise UserError(problems)
    return files


def read_files(
    files: Sequence[str], *, split: str, texts: Collection[str], label: str | None, keeps_all: bool = False
) -> Split:
    """The rows of all files, one file after the other; only columns that all of them have are kept.

    texts: columns of text. label: column of the label, if the task has one. keeps_all: refuse a column whose type is
    not known, or not alike in all files, instead of leaving it out where it is neither. Raises UserError with the
    problems of all files.
    """
    problems: list[str] = []
    read: list[Rows] = []
    contents: list[str] = []
    for file in files:
        try:
            before = _stamp(file)
            contents.append(digest_file(Path(file)))
            read.append(_read_file(file, content=contents[-1], texts=texts, label=label, keeps_all=keeps_all))
            if _stamp(file) != before:
                check_unchanged(file, contents[-1])
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} cannot be read: {in_one_line(error)}")
    if problems:
        raise UserError(problems)
    wanted = {*texts, *([label] if label is not None else [])}
    if keeps_all:
        wanted |= set.intersection(*(set(rows.column_names) for rows, _ in read))
    rows = join_rows([rows for rows, _ in read], files=files, contents=contents, wanted=wanted)
    kinds = [Path(file).suffix.lower() for file in files]
    fingerprint = digest(*(f"{kind} {content}".encode() for kind, content in zip(kinds, contents, strict=True)))
    return Split(split, rows, Places.join([places for _, places in read]), fingerprint)


def _find(spec: str) -> list[str]:
    path = Path(spec).expanduser()
    if path.is_dir():
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
        raise UserError(f"{enumerate_some(unknown)}: of no known kind; known are {', '.join(EXTENSIONS)}")
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


def _read_file(path: str, *, content: str, texts: Collection[str], label: str | None, keeps_all: bool) -> Rows:
    """content: a hash of its bytes."""
    wanted = [*texts, *([label] if label is not None else [])]
    must_keep = None if keeps_all else wanted
    if not Path(path).stat().st_size:
        raise UserError(f"{path} is empty")
    match Path(path).suffix.lower():
        case ".csv":
            return read_delimited(path, delimiter=",", texts=texts, label=label)
        case ".tsv":
            return read_delimited(path, delimiter="\t", texts=texts, label=label)
        case ".json":
            return read_json(path, wanted=wanted)
        case ".jsonl":
            return read_json_lines(path, wanted=wanted)
        case ".txt":
            return read_text_lines(path)
        case ".parquet":
            rows = map_parquet(path, content=content, wanted=must_keep)
        case _:
            rows = _read_arrow(path, content=content, wanted=must_keep)
    if not len(rows):
        raise UserError(f"{path} has no rows")
    return rows, Places.of(f"{path} row", len(rows))


def _read_arrow(path: str, *, content: str, wanted: Collection[str] | None) -> datasets.Dataset:
    """Mapped into memory."""
    with telling_damage(path, "Arrow"):
        table = MemoryMappedTable.from_file(path) if is_arrow_stream(path) else InMemoryTable(_map_feather(path))
    columns = list(find_features(table.schema, path=path, wanted=wanted))
    return datasets.Dataset(table.select(columns), fingerprint=content)  # of its own it would read and copy all rows


def _map_feather(path: str) -> pa.Table:
    """What is compressed in it is in memory, though."""
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _stamp(path: str) -> tuple[int, int, int]:
    """What tells one writing of a file from another."""
    facts = Path(path).stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def join_rows(
    parts: Sequence[datasets.Dataset], *, files: Sequence[str], contents: Sequence[str], wanted: Collection[str]
) -> datasets.Dataset:
    """One after the other, with the columns that all have in types that go together.

    contents: what tells the rows of one file from others, such as a hash of its bytes. Raises UserError where a wanted
    column is not among them.
    """
    problems: list[str] = []
    features = datasets.Features()
    for name in dict.fromkeys(name for part in parts for name in part.column_names):
        try:
            features[name] = _join_feature(name, parts, files=files)
        except UserError as error:
            problems += error.problems if name in wanted else []
    if problems:
        raise UserError(problems)
    return datasets.concatenate_datasets(
        [
            _cast(part.select_columns(list(features)), features, path=file, content=content)
            for part, file, content in zip(parts, files, contents, strict=True)
        ]
    )


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


def _join_feature(name: str, parts: Sequence[datasets.Dataset], *, files: Sequence[str]) -> Any:
    """The type of a column over all files. Raises UserError where a file lacks it or has an unlike type."""
    problems = [
        f"{file} has no column {name!r}; it has {enumerate_some(part.column_names, at_most=10)}"
        + did_you_mean(name, part.column_names)
        for file, part in zip(files, parts, strict=True)
        if name not in part.column_names
    ]
    if problems:
        raise UserError(problems)
    common = parts[0].features[name]
    for file, part in zip(files, parts, strict=True):
        joined = _common_feature(common, part.features[name])
        if joined is None:
            raise UserError(
                f"column {name!r} has one type in {files[0]} ({common}) and another in {file} "
                f"({part.features[name]}); make them alike"
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
