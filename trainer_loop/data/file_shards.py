"""Files as the shards of a stream: their rows one by one, from any row on.

Text files remember the byte that the next row begins at, so finding it again costs nothing however large the file is.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from trainer_loop.data.arrow_files import as_held, find_features
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.formats.by_suffix import open_file, read_each
from trainer_loop.data.row_functions import RowFunctions
from trainer_loop.data.shards import Batch, Mark, Shard, ShardedSplit
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat
from trainer_loop.errors import UserError

_HASHED_BYTES = 1 << 20  # of every file; all of them would take as long as reading the stream


def open_files(
    files: Sequence[str],
    *,
    columns: Sequence[str],
    text_format: TextFormat = DEFAULT_FORMAT,
    functions: RowFunctions | None = None,
) -> ShardedSplit:
    """Files, one after the other. Raises UserError with the problems of all files.

    columns: those that are read. functions: what is done to each row, with all its columns, before.
    """
    shards = read_each(files, partial(_open_file, columns=columns, text_format=text_format, functions=functions))
    parts = [f"{_digest_head(file)} {text_format.fingerprint(file)}".rstrip() for file in files]
    fingerprint = digest(*(part.encode() for part in parts))
    split = ShardedSplit(shards, files[0] if len(files) == 1 else f"{len(files):,} files", fingerprint)
    return split if functions is None else functions.mark_stream(split)


def _open_file(
    path: str, *, columns: Collection[str], text_format: TextFormat, functions: RowFunctions | None
) -> Shard:
    """A file of any known kind, with these columns in types that rows can hold."""
    shard = open_file(path, columns=None if functions is not None else columns, text_format=text_format)
    shard = shard if functions is None else functions.over_streamed(shard, columns=columns)
    if shard.whole_only is not None:
        raise UserError(shard.whole_only)
    if shard.schema is None:
        return shard
    features = find_features(shard.schema, path=path, wanted=columns)

    def read(mark: Mark | None) -> Iterator[Batch]:
        for batch in shard.batches(mark):
            assert isinstance(batch.rows, pa.Table), "a file with a schema has tables"
            yield replace(batch, rows=as_held(batch.rows, features))

    return replace(shard, batches=read, features=features)


def _digest_head(path: str) -> str:
    """A hash of the kind of a file, its size and its first MiB."""
    with Path(path).open("rb") as file:
        head = file.read(_HASHED_BYTES)
    return digest(Path(path).suffix.lower().encode(), str(Path(path).stat().st_size).encode(), head)
