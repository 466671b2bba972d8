"""Parquet files: streamed a few rows at a time, or converted once to Arrow and memory-mapped."""

import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast

from trainer_loop.data.arrow_types import cast_plain, find_features, telling_damage
from trainer_loop.data.dataset_columns import make_dataset
from trainer_loop.data.fingerprint import check_unchanged, digest
from trainer_loop.data.formats.arrow import choose_columns, number_batches
from trainer_loop.data.row_cache import keep_converted
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark, Shard

_FORMAT = 2  # version of the converted files; a new number makes the cache convert again
_BYTES_AT_ONCE = 32 * 2**20  # of a batch, as the metadata of the file says
_READ_BYTES = 2**20  # that are read of a column at a time


def open_parquet(path: str, *, columns: Collection[str] | None) -> Shard:
    """Open a parquet file. `columns` are those that are read; None: all. Raises UserError if it cannot be read."""
    with telling_damage(path, "parquet"), _open(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        wanted = choose_columns(schema.names, columns)
        ends = list(accumulate(metadata.row_group(group).num_rows for group in range(file.num_row_groups)))

    def read(mark: Mark | None) -> Iterator[Batch]:
        first = 0 if mark is None else bisect_right(ends, mark["row"])  # the first group with a row after the mark
        with telling_damage(path, "parquet"), _open(path) as file:
            batches = _read_groups(file, range(first, len(ends)), wanted)
            yield from number_batches(batches, begin=[0, *ends][first], mark=mark)

    return Shard(path, "row", read, lambda: metadata.num_rows, schema, names=lambda: schema.names)


def map_parquet(shard: Shard, *, content: str, wanted: Collection[str] | None) -> tuple[datasets.Dataset, list[str]]:
    """Return the rows as a memory map, and the names of all columns.

    The first read converts the file into the cache of datasets. The reader of datasets is not used, because it loads
    whole row groups, which have some hundred megabytes each.

    Args:
        shard: From `open_parquet`.
        content: Hash of the bytes of the file.
        wanted: Columns that are read; None: all. If the file has none of them, the rows have one column of nulls.

    Raises:
        UserError: The file cannot be read or converted, or datasets cannot hold a column.
    """
    assert shard.schema is not None and shard.count is not None
    path, num_rows, names = shard.name, shard.count(), shard.schema.names
    features = find_features(shard.schema, path=path, wanted=wanted)
    if not features:
        return make_dataset({}, names, num_rows), names

    def convert(target: str) -> None:
        num_written = 0
        with pa.OSFile(target, "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
            for table in _join_small(_read_tables(shard, features)):
                writer.write_table(table)
                num_written += len(table)
        pa.default_memory_pool().release_unused()  # else the pool keeps the memory of the reader for a while
        assert num_written == num_rows, f"{num_written} rows of {num_rows}"
        check_unchanged(path, content)  # else the cache would hold rows of another content under this hash

    columns = json.dumps(features.to_dict()).encode()  # the types depend on the version of datasets
    key = digest(str(_FORMAT).encode(), content.encode(), columns)
    return keep_converted(path, key=key, convert=convert), names


def _open(path: str) -> pq.ParquetFile:
    # With pre_buffer all columns of a group are loaded, and buffer_size has no effect.
    return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)


def _read_groups(
    file: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some row groups in batches. A batch has rows of one group: Arrow cannot join all types of two.

    It uses one thread, because each thread would keep its own memory.
    """
    for group in groups:
        metadata = file.metadata.row_group(group)
        num_rows = _BYTES_AT_ONCE * metadata.num_rows // max(_count_bytes(metadata, columns), 1)
        yield from file.iter_batches(
            batch_size=max(1, min(num_rows, BATCH_ROWS)), row_groups=[group], columns=columns, use_threads=False
        )


def _count_bytes(group: pq.RowGroupMetaData, columns: Sequence[str] | None) -> int:
    """Return the bytes of these columns. The file stores parts of nested columns apart, as `answer.list.element`."""
    if columns is None:
        return group.total_byte_size
    parts = (group.column(number) for number in range(group.num_columns))
    # The dot at the end is needed because names may have dots too.
    is_named = tuple(f"{name}." for name in columns)
    return sum(part.total_uncompressed_size for part in parts if f"{part.path_in_schema}.".startswith(is_named))


def _read_tables(shard: Shard, features: datasets.Features) -> Iterator[pa.Table]:
    with telling_damage(shard.name, "parquet"):
        for batch in shard.batches(None):
            assert isinstance(batch.rows, pa.Table)
            yield table_cast(cast_plain(batch.rows, features), features.arrow_schema)


def _join_small(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables. Else a file with few rows per group would be cached as many small batches."""
    small: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        small.append(table)
        num_rows += len(table)
        num_bytes += table.nbytes
        if num_rows >= BATCH_ROWS or num_bytes >= _BYTES_AT_ONCE:
            yield pa.concat_tables(small).combine_chunks() if len(small) > 1 else table
            small, num_rows, num_bytes = [], 0, 0
    if small:
        yield pa.concat_tables(small).combine_chunks()
