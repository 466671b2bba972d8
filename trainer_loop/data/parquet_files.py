"""Parquet files: read a few rows at a time, and mapped into memory as Arrow, to which they are converted once."""

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast

from trainer_loop.data.row_cache import make_once
from trainer_loop.errors import UserError, in_one_line

_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 32 * 2**20  # of the rows of a batch, as far as the file tells
_READ_BYTES = 2**20  # of the file at a time; unlimited, they would be a column of a whole group of rows


def map_parquet(path: str, *, content: str) -> datasets.Dataset:
    """The rows, mapped from the cache of datasets, where the file is converted when it is first read.

    The reader of datasets would hold whole groups of rows meanwhile, some hundred megabytes each. content: a hash of
    the bytes of the file. Raises UserError where it cannot be read or converted.
    """
    converted = Path(datasets.config.HF_DATASETS_CACHE) / "trainer_loop" / f"{content}.arrow"
    try:
        file = open_parquet(path)
        schema = datasets.Features.from_arrow_schema(file.schema_arrow).arrow_schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _explain(path, error) from error
    with file:
        try:
            return make_once(
                converted,
                load=lambda: _map(converted, file.metadata.num_rows),
                make=lambda: _convert(path, file, converted, schema),
            )
        except (OSError, NotImplementedError) as error:  # the latter where files cannot be locked
            raise UserError(
                f"{path} cannot be converted to Arrow in {converted.parent}: {in_one_line(error)}; let the environment "
                "variable HF_DATASETS_CACHE name a directory with room that can be written"
            ) from error


def open_parquet(path: str) -> pq.ParquetFile:
    """To be read by `read_groups`."""
    return pq.ParquetFile(path, buffer_size=_READ_BYTES)


def read_groups(
    file: pq.ParquetFile, groups: Iterable[int], *, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Some groups of rows, a few rows at a time, which are of one group: Arrow cannot join all types over two.

    By one thread: with more of them each would keep memory of its own.
    """
    for group in groups:
        facts = file.metadata.row_group(group)
        fitting = _BYTES_AT_ONCE * facts.num_rows // max(facts.total_byte_size, 1)
        yield from file.iter_batches(
            batch_size=max(1, min(fitting, _ROWS_AT_ONCE)), row_groups=[group], columns=columns, use_threads=False
        )


def _map(converted: Path, num_rows: int) -> datasets.Dataset | None:
    """None where it is not there, or not whole."""
    try:
        rows = datasets.Dataset.from_file(str(converted))
    except (OSError, pa.ArrowException):
        return None
    return rows if len(rows) == num_rows else None


def _convert(path: str, file: pq.ParquetFile, converted: Path, schema: pa.Schema) -> datasets.Dataset:
    """What is converted appears whole or not at all."""
    partial = converted.with_name(f"{converted.stem}.{uuid.uuid4().hex}.partial")  # locks do not bind all file systems
    try:
        with partial.open("xb") as sink:
            with pa.ipc.new_stream(sink, schema) as writer:
                for table in _read_tables(path, file, schema):
                    writer.write_table(table)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(converted)
    finally:
        partial.unlink(missing_ok=True)
    pa.default_memory_pool().release_unused()  # what it read with; else its pool keeps that for a while
    return datasets.Dataset.from_file(str(converted))


def _read_tables(path: str, file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.Table]:
    try:
        for batch in read_groups(file, range(file.num_row_groups)):
            yield table_cast(pa.Table.from_batches([batch]), schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _explain(path, error) from error


def _explain(path: str, error: Exception) -> UserError:
    """Of what Arrow raises, only errors of the system have a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{path} cannot be read: {in_one_line(error)}")
    return UserError(f"{path} is no readable parquet file: {in_one_line(error)}")
