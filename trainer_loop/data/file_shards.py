"""Files as the shards of a stream: their rows one by one, from any row on.

Text files remember the byte that the next row begins at, so finding it again costs nothing however large the file is.
"""

import csv
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from trainer_loop.data.arrow_files import find_features, is_arrow_stream, telling_damage
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.parquet_files import open_parquet, read_groups
from trainer_loop.data.shards import Mark, Shard, ShardedSplit, Values
from trainer_loop.data.text_files import (
    check_header,
    explain_byte,
    explain_fields,
    explain_json,
    explain_quoting,
    long_fields,
)
from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HASHED_BYTES = 1 << 20  # of every file; all of them would take as long as reading the stream
_ROWS_AT_ONCE = 1000  # that Arrow turns into Python values


def open_files(files: Sequence[str], *, columns: Sequence[str]) -> ShardedSplit:
    """Files, one after the other. Raises UserError with the problems of all of them."""
    problems: list[str] = []
    shards: list[Shard] = []
    for file in files:
        try:
            shards.append(_open_file(file, columns=columns))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} cannot be read: {in_one_line(error)}")
    if problems:
        raise UserError(problems)
    fingerprint = digest(*(_digest_head(file).encode() for file in files))
    return ShardedSplit(shards, files[0] if len(files) == 1 else f"{len(files):,} files", fingerprint)


def _open_file(path: str, *, columns: Sequence[str]) -> Shard:
    """A file of any known kind; of those that keep columns apart no other ones are read."""
    if not Path(path).stat().st_size:
        raise UserError(f"{path} is empty")
    match Path(path).suffix.lower():
        case ".csv" | ".tsv" as kind:
            read = partial(_DelimitedReader, path, delimiter="," if kind == ".csv" else "\t", texts=columns)
            return Shard(path, "row", lambda mark: read(mark=mark), has_fields=True)
        case ".txt":
            return Shard(path, "line", lambda mark: _LineReader(path, _as_text_row, mark))
        case ".json" | ".jsonl" as kind:
            if kind == ".json":
                _refuse_list(path)
            return Shard(path, "line", lambda mark: _LineReader(path, _as_json_row, mark))
        case ".parquet":
            return _open_parquet(path, columns)
        case _:
            return _open_arrow(path, columns)


def _digest_head(path: str) -> str:
    """A hash of the kind of a file, its size and its first MiB."""
    with Path(path).open("rb") as file:
        head = file.read(_HASHED_BYTES)
    return digest(Path(path).suffix.lower().encode(), str(Path(path).stat().st_size).encode(), head)


# ---------------------------------------------------------------------------------------------------------- text files


class _LineReader:
    """A row per line that is not blank. parse: `(text, its place)` -> the row; raises UserError."""

    def __init__(self, path: str, parse: Callable[[str, str], Values], mark: Mark | None):
        self._path = path
        self._parse = parse
        start = {"line": 0, "offset": 0} if mark is None else mark
        self._line, self._offset = start["line"], start["offset"]

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        with Path(self._path).open("rb") as file:
            _seek_line(file, self._path, self._offset)
            for raw in file:
                text = _decode(raw, self._path, line=self._line + 1, offset=self._offset)
                self._line += 1
                self._offset += len(raw)
                if text.strip():
                    yield self._parse(text, f"{self._path} line {self._line}"), self._line

    def mark(self) -> Mark:
        return {"line": self._line, "offset": self._offset}


def _as_text_row(text: str, _place: str) -> Values:
    return {"text": text.removesuffix("\n").removesuffix("\r")}


def _as_json_row(text: str, place: str) -> Values:
    try:
        row = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(explain_json(place, error)) from error
    if not isinstance(row, dict):
        raise UserError(f"{place} is {shorten(row)}; every line must be one JSON object")
    return row


def _refuse_list(path: str) -> None:
    with Path(path).open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    if first.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        raise UserError(
            f"{path} is one JSON list, which can only be read as a whole; a stream needs one object per line: "
            f"jq -c '.[]' {path} > {Path(path).with_suffix('.jsonl')}"
        )


class _DelimitedReader:
    """A .csv or .tsv file with a header. Every field is a text, an empty one is None."""

    def __init__(self, path: str, *, delimiter: str, texts: Sequence[str], mark: Mark | None):
        self._path = path
        self._delimiter = delimiter
        self._texts = texts
        start = {"row": 0, "line": 0, "offset": 0} if mark is None else mark
        self._row, self._line, self._offset = start["row"], start["line"], start["offset"]

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        header, lines, offset = _read_header(self._path, delimiter=self._delimiter, texts=self._texts)
        if self._offset == 0:
            self._line, self._offset = lines, offset
        with Path(self._path).open("rb") as file, long_fields():
            _seek_line(file, self._path, self._offset)
            records = csv.reader(self._read_lines(file), delimiter=self._delimiter, strict=True)
            first_line = self._line + 1  # of the record that comes: one may have many lines
            try:
                for record in records:
                    if record:  # a blank line is no row
                        self._row += 1
                        yield self._as_row(record, header, first_line), self._row
                    first_line = self._line + 1
            except csv.Error as error:
                place = f"{self._path} row {self._row + 1}, which begins on line {first_line}"
                raise UserError(explain_quoting(place, self._line, error)) from error

    def mark(self) -> Mark:
        return {"row": self._row, "line": self._line, "offset": self._offset}

    def _read_lines(self, file: BinaryIO) -> Iterator[str]:
        """The csv module takes no more lines than the record needs, so what was taken is where the next one begins."""
        for raw in file:
            text = _decode(raw, self._path, line=self._line + 1, offset=self._offset)
            self._line += 1
            self._offset += len(raw)
            yield text

    def _as_row(self, record: list[str], header: list[str], first_line: int) -> Values:
        if len(record) != len(header):
            place = f"{self._path} row {self._row} (line {first_line})"
            raise UserError(explain_fields(place, len(record), header, delimiter=self._delimiter))
        return {name: field or None for name, field in zip(header, record, strict=True)}


def _read_header(path: str, *, delimiter: str, texts: Sequence[str]) -> tuple[list[str], int, int]:
    """The names of the columns, and how many lines and bytes they take."""
    taken: list[bytes] = []

    def lines(file: BinaryIO) -> Iterator[str]:
        for raw in file:
            taken.append(raw)
            yield _decode(raw, path, line=len(taken), offset=sum(map(len, taken[:-1])))

    with Path(path).open("rb") as file:
        try:
            header = next(csv.reader(lines(file), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise UserError(explain_quoting(f"{path} line 1", len(taken), error)) from error
    check_header(path, header, delimiter=delimiter, texts=texts)
    names = [name or f"column_{position}" for position, name in enumerate(header, start=1)]
    return names, len(taken), sum(map(len, taken))


def _decode(raw: bytes, path: str, *, line: int, offset: int) -> str:
    try:
        return (raw.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else raw).decode()
    except UnicodeDecodeError as error:
        if line == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            told = f"{path} is UTF-16; save it as UTF-8, for example with `iconv -f utf-16 -t utf-8`"
            raise UserError(told) from error
        told = explain_byte(path, line, offset=offset + error.start, byte=raw[error.start])
        raise UserError(told) from error


def _seek_line(file: BinaryIO, path: str, offset: int) -> None:
    """Go to the line that begins at this byte. Raises UserError where none does any more."""
    if offset == 0:
        return
    file.seek(offset - 1)
    before = file.read(1)
    if before != b"\n" and (not before or file.read(1)):  # the last line may end without a line break
        raise UserError(f"{path} was changed since the checkpoint: no line begins at byte {offset:,} of it any more")


# --------------------------------------------------------------------------------------------------------- Arrow files


class _BatchReader:
    """Rows of Arrow batches. read: rows that may be left out -> how many it left out, and the batches that follow."""

    def __init__(self, read: Callable[[int], tuple[int, Iterator[pa.RecordBatch]]], mark: Mark | None):
        self._read = read
        self._row: int = 0 if mark is None else mark["row"]

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        first, batches = self._read(self._row)  # first: row of the batch that comes
        for batch in batches:
            for start in range(max(self._row - first, 0), len(batch), _ROWS_AT_ONCE):
                for values in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                    self._row += 1
                    yield values, self._row
            first += len(batch)

    def mark(self) -> Mark:
        return {"row": self._row}


def _open_parquet(path: str, columns: Sequence[str]) -> Shard:
    with open_parquet(path) as file:
        features, sizes = find_features(file.schema_arrow, path=path, wanted=columns), _group_sizes(file)
    present = [name for name in features if name in columns]

    def read(most: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        group = bisect_right(ends, most)  # the first group that has a row after these
        return ([0, *ends][group]), _read_groups(path, range(group, len(ends)), present)

    ends = list(accumulate(sizes))
    return Shard(path, "row", lambda mark: _BatchReader(read, mark), lambda: sum(sizes), features)


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _read_groups(path: str, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        yield from read_groups(file, groups, columns=columns)


def _open_arrow(path: str, columns: Sequence[str]) -> Shard:
    with telling_damage(path, "Arrow"):
        first = next(_map_batches(path), None)
    features = find_features(pa.schema([]) if first is None else first.schema, path=path, wanted=columns)
    present = [name for name in features if name in columns]

    def read(_most: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        return 0, (batch.select(present) for batch in _map_batches(path))  # leaving out a mapped batch costs nothing

    def count() -> int:
        return sum(len(batch) for batch in _map_batches(path))

    return Shard(path, "row", lambda mark: _BatchReader(read, mark), count, features)


def _map_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Mapped into memory, in either of Arrow's two formats."""
    if is_arrow_stream(path):
        yield from pa.ipc.open_stream(pa.memory_map(path))
    else:
        batches = pa.ipc.open_file(pa.memory_map(path))
        yield from (batches.get_batch(number) for number in range(batches.num_record_batches))
