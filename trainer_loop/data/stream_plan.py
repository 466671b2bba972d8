"""Prepare a streamed training split: read and describe its first rows, and count all rows if needed."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.arrow_types import infer_label
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import make_dataset, whole_column
from trainer_loop.data.files import join_files
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.missing import Holes, has_classes, settle_missing
from trainer_loop.data.mixture_sources import Source, naming_source
from trainer_loop.data.plain_columns import join_values, with_plain_columns
from trainer_loop.data.section import DataSection
from trainer_loop.data.shards import BATCH_ROWS, Batch, Shard, ShardedSplit, read_batches
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.split_facts import describe_data, measure_data
from trainer_loop.data.stream_rows import ChunkStream, MixedStream, Row, RowStream, Stream
from trainer_loop.data.tables import WholeTable, join_batches
from trainer_loop.data.tokenise import Encoding, RowEncoder, tokenise_split
from trainer_loop.data.wording import plural
from trainer_loop.errors import Problems, UserError
from trainer_loop.runtime.randomness import derive_seed

_HEAD = "train, first rows"  # the name of the split in messages
HEAD_ROWS = 1000
_MOST_ROWS_READ = 100 * BATCH_ROWS  # of one shard, to find rows without holes


@dataclass(frozen=True)
class TrainStream:
    """A streamed training split."""

    rows: Stream
    encode: Callable[[Sequence[Row]], list[Row]]  # rows of `rows` -> the same number of encoded rows
    num_rows: int | None  # of one epoch; None: not counted
    fingerprint: str  # changes with the data
    tokens: str  # a hash of the encoded first rows


def read_head(split: ShardedSplit, *, columns: Columns, missing: str) -> Split:
    """Read the first rows of a training split, and at least one row of every local file, to check its columns.

    Rows with holes are kept here. With `missing=drop` they do not count towards the number of rows to read.

    Raises:
        UserError: All problems of the shards, or there are no rows.
    """
    holes = Holes.of(columns)
    problems = Problems()
    heads: list[tuple[Shard, list[Batch]]] = []
    num_rows = 0
    for shard in split.shards:
        if num_rows >= HEAD_ROWS and not split.is_local:
            break
        max_rows = max(HEAD_ROWS - num_rows, 1)
        head = problems.collect("", _read_first, shard, max_rows, columns, holes if missing == "drop" else None)
        if head is None:
            continue
        batches, num_kept = head
        if batches:
            heads.append((shard, batches))
        elif split.is_local and not shard.is_filtered:
            problems.lines.append(f"{shard.name} has no rows")
        num_rows += num_kept
    if not heads and not problems:
        is_filtered = any(shard.is_filtered for shard in split.shards)
        missing_rows = "no rows that data.filter keeps" if is_filtered else "no rows"
        problems.lines.append(f"data.train: {split.title} has {missing_rows}")
    problems.refuse()
    return _join(heads, split, columns, missing)


def prepare_stream(
    split: ShardedSplit, head: Split, encoding: Encoding, section: DataSection, *, is_counted: bool
) -> TrainStream:
    """Describe a training split by its first rows, and count its rows if the run needs epochs.

    Args:
        head: The first rows, which were checked.

    Raises:
        UserError: The rows cannot be counted, or there is no row to train on.
    """
    say, missing = encoding.say, section.missing
    texts = _open(split, encoding, columns=section.train_columns, seed=section.seed, missing=missing)
    encode = RowEncoder(encoding.task, max_length=encoding.max_length)
    changes_number = encode.changes_number(_first_row(texts))
    if changes_number and is_counted:
        raise UserError(
            "train.epochs: this task makes another number of rows of its texts, and to count these a stream would be "
            "tokenised twice; "
            "set train.steps, and evaluate.every and checkpoint.every to numbers of steps"
        )
    # If rows may be dropped, the number in the description of the data set is too large.
    stated_rows = None if missing == "drop" else split.num_rows
    num_rows = (stated_rows or _count(split, texts, say)) if is_counted else None
    size = "not counted" if num_rows is None else f"{plural(num_rows, 'row')} an epoch"
    say(f"train: {split.title}, streamed, {size}; shuffled within {plural(section.shuffle_rows, 'row')}")
    tokens = _describe_head(head, encoding)
    return TrainStream(
        rows=ChunkStream(texts, encode, encode.texts_per_call) if changes_number else texts,
        encode=list if changes_number else encode,
        num_rows=num_rows,
        fingerprint=_fingerprint(split, missing),
        tokens=tokens,
    )


def prepare_mixture(sources: Sequence[Source], encoding: Encoding, section: DataSection) -> TrainStream:
    """Describe the sources of a mixture by their first rows, and mix their encoded rows.

    A task that joins texts joins them within each source.

    Raises:
        UserError: A source has no row to train on.
    """
    seed, missing = section.seed, section.missing
    # All sources share one encoder and its lock, because two threads cannot use a tokenizer at the same time.
    encode = RowEncoder(encoding.task, max_length=encoding.max_length)
    texts: dict[str, RowStream] = {}
    fingerprints: list[bytes] = []
    tokens: list[bytes] = []
    changes_number = False
    for source in sources:
        assert source.stream is not None, "it is streamed"
        source_encoding, source_seed = _encoding_of(source, encoding), derive_seed(seed, "mixture", source.name)
        texts[source.name] = _open(
            source.stream, source_encoding, columns=source.columns, seed=source_seed, missing=missing
        )
        fingerprints.append(f"{source.name} {_fingerprint(source.stream, missing)}".encode())
        with naming_source(source.name):
            changes_number |= encode.changes_number(_first_row(texts[source.name]))
            source_encoding.say(f"train: {source.stream.title}")
            tokens.append(_describe_head(source.split, source_encoding).encode())
    mixed = MixedStream(
        {name: ChunkStream(stream, encode, encode.texts_per_call) for name, stream in texts.items()}
        if changes_number
        else texts,
        weights=[source.weight for source in sources],
        loss_weights=[source.loss_weight for source in sources],
        seed=seed,
    )
    encoding.say(f"train: {mixed.describe()}; streamed, shuffled within {plural(section.shuffle_rows, 'row')}")
    return TrainStream(
        rows=mixed,
        encode=list if changes_number else encode,
        num_rows=None,
        fingerprint=digest(*fingerprints),
        tokens=digest(*tokens),
    )


def _open(split: ShardedSplit, encoding: Encoding, *, columns: Columns, seed: int, missing: str) -> RowStream:
    return RowStream(
        split.shards,
        seed=seed,
        columns=columns,
        label_names=encoding.label_names,
        num_numbers=encoding.num_numbers,
        missing=missing,
        say=encoding.say,
    )


def _encoding_of(source: Source, encoding: Encoding) -> Encoding:
    """Return the encoding with the column names of this source."""
    names = {role: source.columns.names[role] for role in encoding.columns.names}
    return dataclasses.replace(
        encoding,
        columns=Columns(encoding.columns.declared, names),
        say=lambda line: encoding.say(f"{source.name}: {line}"),
    )


def _describe_head(head: Split, encoding: Encoding) -> str:
    """Describe the first rows of a stream; return a hash of their encoded form."""
    tokenised = tokenise_split(dataclasses.replace(head, name=_HEAD), encoding)
    facts = measure_data(
        {_HEAD: tokenised}, splits={_HEAD: head}, columns=encoding.columns, label_names=encoding.label_names
    )
    for line in describe_data(facts):
        encoding.say(line)
    return _digest_tokens(tokenised, encoding.max_length)


def _fingerprint(split: ShardedSplit, missing: str) -> str:
    """Return the fingerprint of the training rows; it depends on how holes are treated.

    `refuse` and `drop` share one: a run that refuses holes stops at the first one, and up to there both have the same
    rows, so it may continue with `drop`. `empty` has other rows.
    """
    return digest(split.fingerprint.encode(), b"null texts are empty") if missing == "empty" else split.fingerprint


def _first_row(texts: RowStream) -> Row:
    for row in texts.read(0):
        return row
    raise UserError("data.train: no row is left when those without a text or a label are dropped (data.missing=drop)")


def _count(split: ShardedSplit, texts: RowStream, say: Callable[[str], None]) -> int:
    say(f"train: counting the rows of {split.title}")
    start_time = time.perf_counter()
    num_rows = texts.count_rows()
    say(f"train: {plural(num_rows, 'row')} counted in {time.perf_counter() - start_time:.1f} s")
    return num_rows


def _digest_tokens(head: TokenisedSplit, max_length: int) -> str:
    """Return a hash of the encoded rows and of max_length, which may matter only for rows after the first ones."""
    if "input_ids" in head.rows.column_names:
        ids = pc.list_flatten(whole_column(head.rows, "input_ids"), recursive=True)
        content = ids.to_numpy().astype(np.int64).tobytes()
    else:
        content = json.dumps(head.rows[:], default=repr).encode()
    return digest(str(max_length).encode(), head.lengths.tobytes(), content)


def _read_first(shard: Shard, max_rows: int, columns: Columns, holes: Holes | None) -> tuple[list[Batch], int]:
    """Read rows until `max_rows` of them have no holes; return all rows read, and how many have no holes."""
    batches: list[Batch] = []
    num_rows = num_kept = 0
    are_classes = has_classes(shard.features, columns.single_label)
    for batch in read_batches(shard):
        for row, values in enumerate(batch.values()):
            if row in batch.faults:
                raise batch.faults[row]
            num_rows += 1
            values = join_values(values, columns.joined)
            num_kept += holes is None or not holes.columns_of(values, are_classes=are_classes)
            if num_kept == max_rows or num_rows == _MOST_ROWS_READ:
                return [*batches, batch.first(row + 1)], num_kept
        batches.append(batch)
    return batches, num_kept


def _join(heads: Sequence[tuple[Shard, Sequence[Batch]]], split: ShardedSplit, columns: Columns, missing: str) -> Split:
    label, stored = columns.label, columns.stored
    tables = [join_batches(shard, batches, columns=stored).select(stored) for shard, batches in heads]
    arrays = [table.as_arrays(wanted=stored, label=None) for table in tables]
    if label is not None:
        _type_labels(tables, arrays, label)
    parts = [
        Split(shard.name, make_dataset(array, table.names, len(table), table.metadata), table.origins, "", table.names)
        for (shard, _), table, array in zip(heads, tables, arrays, strict=True)
    ]
    head = with_plain_columns(join_files("train", parts, wanted=stored), columns)
    settled, _ = settle_missing(head, columns, missing=missing)
    return dataclasses.replace(settled, fingerprint=split.fingerprint)


def _type_labels(tables: Sequence[WholeTable], arrays: Sequence[dict[str, pa.Array]], label: str) -> None:
    """Convert the labels of .csv and .tsv files, in place, to their common type: integers, true/false or texts."""
    with_labels = [array for table, array in zip(tables, arrays, strict=True) if table.has_fields and label in array]
    if not all(
        pa.types.is_string(array[label].type) or pa.types.is_null(array[label].type) for array in with_labels
    ):  # data.map has converted them
        return
    typed = infer_label([value for array in with_labels for value in array[label].to_pylist()])
    start = 0
    for array in with_labels:
        count = len(array[label])
        array[label] = typed.slice(start, count)
        start += count
