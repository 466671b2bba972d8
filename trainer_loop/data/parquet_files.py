"""Parquet files: read a few rows at a time, and mapped into memory as Arrow, to which they are converted once."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast

from trainer_loop.data.arrow_columns import find_features
from trainer_loop.data.fingerprint import digest_file
from trainer_loop.data.row_cache import load_or_make
from trainer_loop.errors import UserError, in_one_line

_FORMAT = 1  # of what is converted; with a new number, nothing converted before is found
_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 32 * 2**20  # of the rows of a batch, as far as the file tells
_READ_BYTES = 2**20  # of a column at a time


def map_parquet(path: str, *, content: str, wanted: Collection[str]) -> datasets.Dataset:
    """The rows, mapped from the cache of datasets, where the file is converted when it is first read.

    The reader of datasets would hold whole groups of rows meanwhile, some hundred megabytes each. content: a hash of
    the bytes of the file. Columns that datasets cannot hold are left out. Raises UserError where a wanted one is such,
    or the file cannot be read or converted.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "trainer_loop"
    with open_parquet(path) as file:
        features = find_features(file.schema_arrow, path=path, wanted=wanted)

        def convert(target: str) -> None:
            with pa.OSFile(target, "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
                for table in _join_small(_read_tables(path, file, features)):
                    writer.write_table(table)
            pa.default_memory_pool().release_unused()  # what it read with; else its pool keeps that for a while
            _check_unchanged(path, content)  # or the rows of another content would be kept as those of this one

        try:
            return load_or_make(cache / f"{content}-{_FORMAT}", convert)
        except OSError as error:
            raise UserError(
                f"{path} cannot be converted to Arrow in {cache}: {in_one_line(error)}; let the environment variable "
                "HF_DATASETS_CACHE name a directory with room that can be written"
            ) from error


def open_parquet(path: str) -> pq.ParquetFile:
    """To be read by `read_groups`. Raises UserError where it cannot be."""
    try:
        # pre_buffer would hold all columns of a group as they are in the file, whatever buffer_size says
        return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _explain(path, error) from error


def read_groups(file: pq.ParquetFile, groups: Iterable[int], *, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some groups of rows, a few rows at a time, which are of one group: Arrow cannot join all types over two.

    By one thread: with more of them each would keep memory of its own.
    """
    for group in groups:
        facts = file.metadata.row_group(group)
        num_bytes = sum(
            facts.column(number).total_uncompressed_size
            for number in range(facts.num_columns)
            if _is_part_of(facts.column(number).path_in_schema, columns)
        )
        fitting = _BYTES_AT_ONCE * facts.num_rows // max(num_bytes, 1)
        yield from file.iter_batches(
            batch_size=max(1, min(fitting, _ROWS_AT_ONCE)), row_groups=[group], columns=columns, use_threads=False
        )


def _is_part_of(path: str, columns: Sequence[str]) -> bool:
    """Whether what the file keeps apart, such as `answer.list.element`, belongs to one of these columns."""
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _read_tables(path: str, file: pq.ParquetFile, features: datasets.Features) -> Iterator[pa.Table]:
    try:
        for batch in read_groups(file, range(file.num_row_groups), columns=list(features)):
            yield table_cast(pa.Table.from_batches([batch]), features.arrow_schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _explain(path, error) from error


def _join_small(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Of files with a few rows in a group, or every batch that is read would stay one for good."""
    small: list[pa.Table] = []
    for table in tables:
        small.append(table)
        if sum(map(len, small)) >= _ROWS_AT_ONCE or sum(table.nbytes for table in small) >= _BYTES_AT_ONCE:
            yield small[0] if len(small) == 1 else pa.concat_tables(small).combine_chunks()
            small = []
    if small:
        yield pa.concat_tables(small).combine_chunks()


def _check_unchanged(path: str, content: str) -> None:
    try:
        changed = digest_file(Path(path)) != content
    except OSError as error:
        raise _explain(path, error) from error
    if changed:
        raise UserError(f"{path} was changed while it was read; start again when it is complete")


def _explain(path: str, error: Exception) -> UserError:
    """Of what Arrow raises, only errors of the system have a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{path} cannot be read: {in_one_line(error)}")
    return UserError(f"{path} is no readable parquet file: {in_one_line(error)}")
