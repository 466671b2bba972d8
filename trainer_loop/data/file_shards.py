"""Files as the shards of a stream: their rows one by one, from any row on.

Text files remember the byte that the next row begins at, so finding it again costs nothing however large the file is.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from trainer_loop.data.arrow_files import find_features, hold, is_arrow_stream, telling_damage
from trainer_loop.data.delimited import Records
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.parquet_files import open_parquet, read_groups
from trainer_loop.data.shards import Mark, Shard, ShardedSplit, Values
from trainer_loop.data.text_files import parse_json, strip_line_end
from trainer_loop.data.text_format import DEFAULT_FORMAT, Lines, TextFormat
from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

_HASHED_BYTES = 1 << 20  # of every file; all of them would take as long as reading the stream
_ROWS_AT_ONCE = 1000  # that Arrow turns into Python values


def open_files(
    files: Sequence[str], *, columns: Sequence[str], text_format: TextFormat = DEFAULT_FORMAT
) -> ShardedSplit:
    """Files, one after the other. columns: those that are read. Raises UserError with the problems of all files."""
    problems: list[str] = []
    shards: list[Shard] = []
    for file in files:
        try:
            shards.append(_open_file(file, columns=columns, text_format=text_format))
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} cannot be read: {in_one_line(error)}")
    if problems:
        raise UserError(problems)
    written = [text_format.fingerprint(file) for file in files]
    parts = [f"{_digest_head(file)} {how}".rstrip() for file, how in zip(files, written, strict=True)]
    fingerprint = digest(*(part.encode() for part in parts))
    return ShardedSplit(shards, files[0] if len(files) == 1 else f"{len(files):,} files", fingerprint)


def _open_file(path: str, *, columns: Sequence[str], text_format: TextFormat) -> Shard:
    """A file of any known kind; no other columns of it are given, and where it keeps them apart, read."""
    if not Path(path).stat().st_size:
        raise UserError(f"{path} is empty")
    match Path(path).suffix.lower():
        case ".csv" | ".tsv":
            read = partial(_DelimitedReader, path, text_format=text_format, columns=columns)
            header = partial(Records, path, text_format=text_format, texts=columns)
            return Shard(path, "row", lambda mark: read(mark=mark), names=lambda: header().header, has_fields=True)
        case ".txt":
            lines = partial(_LineReader, path, text_format, _as_text_row)
            return Shard(path, "line", lines, names=lambda: ["text"])
        case ".json" | ".jsonl" as kind:
            if kind == ".json":
                _refuse_list(path, text_format)
            return Shard(path, "line", lambda mark: _LineReader(path, text_format, _as_json_row, mark))
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

    def __init__(self, path: str, text_format: TextFormat, parse: Callable[[str, str], Values], mark: Mark | None):
        self._path = path
        self._parse = parse
        start = {"line": 0, "offset": 0} if mark is None else mark
        self._lines = Lines(path, encoding=text_format.encoding, number=start["line"], offset=start["offset"])

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        for line in self._lines:
            if line.strip():
                yield self._parse(line, f"{self._path} line {self._lines.number}"), self._lines.number

    def mark(self) -> Mark:
        return {"line": self._lines.number, "offset": self._lines.offset}


def _as_text_row(text: str, _place: str) -> Values:
    return {"text": strip_line_end(text)}


def _as_json_row(text: str, place: str) -> Values:
    row = parse_json(text, place)
    if not isinstance(row, dict):
        raise UserError(f"{place} is {shorten(row)}; every line must be one JSON object")
    return row


def _refuse_list(path: str, text_format: TextFormat) -> None:
    first = next((line for line in Lines(path, encoding=text_format.encoding) if line.strip()), "")
    if first.lstrip().startswith("["):
        raise UserError(
            f"{path} is one JSON list, which can only be read as a whole; a stream needs one object per line: "
            f"jq -c '.[]' {path} > {Path(path).with_suffix('.jsonl')}"
        )


class _DelimitedReader:
    """A .csv or .tsv file with a header. Every field is a text, an empty one is None.

    columns: those that are given; by their own names all of them are.
    """

    def __init__(self, path: str, *, text_format: TextFormat, columns: Sequence[str], mark: Mark | None):
        self._path = path
        self._format = text_format
        self._columns = columns
        self._mark: Mark = {"row": 0, "line": 0, "offset": 0} if mark is None else mark
        self._records: Records | None = None

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        self._records = records = Records(self._path, text_format=self._format, texts=self._columns, **self._mark)
        wanted = [(place, name) for place, name in enumerate(records.header) if name in self._columns]
        for record, first_line in records:
            if len(record) != len(records.header):
                raise UserError(records.explain_fields(record, first_line))
            yield {name: record[place] or None for place, name in wanted}, records.row

    def mark(self) -> Mark:
        records = self._records
        return self._mark if records is None else {"row": records.row, "line": records.line, "offset": records.offset}


# --------------------------------------------------------------------------------------------------------- Arrow files


class _BatchReader:
    """Rows of Arrow batches. read: rows that may be left out -> how many it left out, and the batches that follow."""

    def __init__(
        self,
        read: Callable[[int], tuple[int, Iterator[pa.RecordBatch]]],
        features: datasets.Features,
        mark: Mark | None,
    ):
        self._read = read
        self._features = features
        self._row: int = 0 if mark is None else mark["row"]

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        first, batches = self._read(self._row)  # first: row of the batch that comes
        for batch in batches:
            for start in range(max(self._row - first, 0), len(batch), _ROWS_AT_ONCE):
                piece = batch.slice(start, _ROWS_AT_ONCE)
                rows = hold(pa.Table.from_batches([piece]), self._features).to_pylist() if self._features else None
                for values in rows or [{}] * len(piece):
                    self._row += 1
                    yield values, self._row
            first += len(batch)

    def mark(self) -> Mark:
        return {"row": self._row}


def _open_parquet(path: str, columns: Sequence[str]) -> Shard:
    with open_parquet(path) as file, telling_damage(path, "parquet"):
        names = file.schema_arrow.names
        features, sizes = find_features(file.schema_arrow, path=path, wanted=columns), _group_sizes(file)

    def read(most: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        group = bisect_right(ends, most)  # the first group that has a row after these
        # Without a column the number of rows is not told either.
        return ([0, *ends][group]), _read_groups(path, range(group, len(ends)), list(features) or names[:1])

    ends = list(accumulate(sizes))
    return Shard(
        path, "row", lambda mark: _BatchReader(read, features, mark), lambda: sum(sizes), features, lambda: names
    )


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _read_groups(path: str, groups: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        yield from read_groups(file, groups, columns=columns)


def _open_arrow(path: str, columns: Sequence[str]) -> Shard:
    with telling_damage(path, "Arrow"):
        schema = _open_mapped(path).schema
        features = find_features(schema, path=path, wanted=columns)
        names = list(features) or schema.names[:1]

    def read(_most: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        return 0, (batch.select(names) for batch in _map_batches(path))  # leaving out a mapped batch costs nothing

    def count() -> int:
        return sum(len(batch) for batch in _map_batches(path))

    return Shard(path, "row", lambda mark: _BatchReader(read, features, mark), count, features, lambda: schema.names)


def _open_mapped(path: str) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """Mapped into memory, in either of Arrow's two formats."""
    mapped = pa.memory_map(path)
    return pa.ipc.open_stream(mapped) if is_arrow_stream(path) else pa.ipc.open_file(mapped)


def _map_batches(path: str) -> Iterator[pa.RecordBatch]:
    batches = _open_mapped(path)
    if isinstance(batches, pa.RecordBatchFileReader):
        yield from (batches.get_batch(number) for number in range(batches.num_record_batches))
    else:
        yield from batches
