"""Arrow files: the streaming format, which datasets writes, and the file format, also called feather."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable, MemoryMappedTable

from trainer_loop.data.arrow_types import find_features, telling_damage, validate_and_cast
from trainer_loop.data.dataset_columns import as_rows, make_dataset
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark, Shard
from trainer_loop.errors import UserError


def open_arrow(path: str, *, columns: Collection[str] | None) -> Shard:
    """Open an Arrow file. `columns` are those that are read; None: all."""
    with telling_damage(path, "Arrow"):
        schema = _open(path).schema
        wanted = choose_columns(schema.names, columns)

    def read(mark: Mark | None) -> Iterator[Batch]:
        with telling_damage(path, "Arrow"):  # it costs nothing to skip a memory-mapped batch
            batches = (batch if wanted is None else batch.select(wanted) for batch in _read_batches(path))
            yield from number_batches(batches, begin=0, mark=mark)

    def count() -> int:
        with telling_damage(path, "Arrow"):
            return sum(len(batch) for batch in _read_batches(path))

    return Shard(path, "row", read, count, schema, names=lambda: schema.names)


def map_arrow(path: str, *, wanted: Collection[str] | None) -> tuple[datasets.Dataset, list[str]]:
    """Return the rows as a memory map (compressed files are loaded into memory), and the names of all columns."""
    with telling_damage(path, "Arrow"):
        is_stream = is_arrow_stream(path)
        table = MemoryMappedTable.from_file(path) if is_stream else InMemoryTable(_open(path).read_all())
        names = table.column_names
        features = find_features(table.schema, path=path, wanted=wanted)
    if not features:
        return make_dataset({}, names, table.num_rows), names
    with telling_damage(path, "Arrow"):
        selected = table.select(list(features))
        plain = validate_and_cast(selected.table, features)
    # A table of datasets remembers the file that it is mapped from.
    return as_rows(selected if plain.schema.types == selected.schema.types else InMemoryTable(plain)), names


def is_arrow_stream(path: str) -> bool:
    """Whether a file has the streaming format. Raises UserError for version 1 of feather, which is not Arrow."""
    with Path(path).open("rb") as file:
        start = file.read(6)
    if start.startswith(b"FEA1"):
        raise UserError(f"{path} is of version 1 of feather, which keeps no types of columns; write it as version 2")
    return start != b"ARROW1"


def choose_columns(names: Sequence[str], columns: Collection[str] | None) -> list[str] | None:
    """Return the columns of a file to read; None: all. If it has none of them, its first column gives the row count."""
    if columns is None:
        return None
    return [name for name in dict.fromkeys(names) if name in columns] or list(names[:1])


def number_batches(batches: Iterable[pa.RecordBatch], *, begin: int, mark: Mark | None) -> Iterator[Batch]:
    """Split record batches into `Batch`es with row numbers.

    Args:
        batches: Batches of any size.
        begin: Count of rows before the first batch.
        mark: Skip the rows up to this mark.

    Raises:
        pa.ArrowInvalid: A batch is damaged.
    """
    skipped = 0 if mark is None else mark["row"]
    for batch in batches:
        for start in range(max(skipped - begin, 0), len(batch), BATCH_ROWS):
            piece = pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
            piece.validate(full=True)
            yield Batch(piece, [(begin + start + row + 1,) for row in range(len(piece))], ("row",))
        begin += len(batch)


def _open(path: str) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    mapped = pa.memory_map(path)
    return pa.ipc.open_stream(mapped) if is_arrow_stream(path) else pa.ipc.open_file(mapped)


def _read_batches(path: str) -> Iterator[pa.RecordBatch]:
    batches = _open(path)
    if isinstance(batches, pa.RecordBatchFileReader):
        yield from (batches.get_batch(number) for number in range(batches.num_record_batches))
    else:
        yield from batches
