"""A training split that is streamed, made ready: its first rows are read and described, and its rows counted."""

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

_HEAD = "train, first rows"  # as the split is called in lines for a person
HEAD_ROWS = 1000
_MOST_ROWS_READ = 100 * BATCH_ROWS  # of a shard, for a row without holes


@dataclass(frozen=True)
class TrainStream:
    """Training rows that are read while they are trained on.

    encode: rows of `rows` -> the same ones as the model sees them. num_rows: of one epoch; None: not counted.
    fingerprint, tokens: of the source, and of what its first rows become; they change when either does.
    """

    rows: Stream
    encode: Callable[[Sequence[Row]], list[Row]]
    num_rows: int | None
    fingerprint: str
    tokens: str


def read_head(split: ShardedSplit, *, columns: Columns, missing: str) -> Split:
    """The first rows of a training split; of files, at least one row of each, so that one that lacks a column is found.

    Of rows with holes none is dropped here: the more are read. Raises UserError.
    """
    holes = Holes.of(columns)
    problems = Problems()
    read: list[tuple[Shard, list[Batch]]] = []
    num_rows = 0
    for shard in split.shards:
        if num_rows >= HEAD_ROWS and not split.is_local:
            break
        wanted = max(HEAD_ROWS - num_rows, 1)
        first = problems.collect("", _read_first, shard, wanted, columns, holes if missing == "drop" else None)
        if first is None:
            continue
        batches, kept = first
        if batches:
            read.append((shard, batches))
        elif split.is_local and not shard.is_filtered:
            problems.lines.append(f"{shard.name} has no rows")
        num_rows += kept
    if not read and not problems:
        is_filtered = any(shard.is_filtered for shard in split.shards)
        left = "no rows that data.filter keeps" if is_filtered else "no rows"
        problems.lines.append(f"data.train: {split.title} has {left}")
    problems.refuse()
    return _join(read, split, columns, missing)


def prepare_stream(
    split: ShardedSplit, head: Split, encoding: Encoding, section: DataSection, *, is_counted: bool
) -> TrainStream:
    """Describe a training split by its first rows, and count it where epochs are to be known.

    head: its first rows, judged. Raises UserError where rows cannot be counted, or not be trained on.
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
    # Where rows may be dropped, the description of the data set does not tell how many are left.
    described = None if missing == "drop" else split.num_rows
    num_rows = (described or _count(split, texts, say)) if is_counted else None
    counted = "not counted" if num_rows is None else f"{plural(num_rows, 'row')} an epoch"
    say(f"train: {split.title}, streamed, {counted}; shuffled within {plural(section.shuffle_rows, 'row')}")
    tokens = _describe_head(head, encoding)
    return TrainStream(
        rows=ChunkStream(texts, encode, encode.texts_per_call) if changes_number else texts,
        encode=list if changes_number else encode,
        num_rows=num_rows,
        fingerprint=_fingerprint(split, missing),
        tokens=tokens,
    )


def prepare_mixture(sources: Sequence[Source], encoding: Encoding, section: DataSection) -> TrainStream:
    """Describe the sources of a mixture by their first rows, and mix what the model sees as their rows.

    The texts of a task that joins them are joined within each source. Raises UserError where a source has no row to
    train on.
    """
    seed, missing = section.seed, section.missing
    # One for all sources: its lock keeps two threads apart.
    encode = RowEncoder(encoding.task, max_length=encoding.max_length)
    texts: dict[str, RowStream] = {}
    fingerprints: list[bytes] = []
    tokens: list[bytes] = []
    changes_number = False
    for source in sources:
        assert source.stream is not None, "it is streamed"
        own, own_seed = _encoding_of(source, encoding), derive_seed(seed, "mixture", source.name)
        texts[source.name] = _open(source.stream, own, columns=source.columns, seed=own_seed, missing=missing)
        fingerprints.append(f"{source.name} {_fingerprint(source.stream, missing)}".encode())
        with naming_source(source.name):
            changes_number |= encode.changes_number(_first_row(texts[source.name]))
            own.say(f"train: {source.stream.title}")
            tokens.append(_describe_head(source.split, own).encode())
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
    """How the rows of a source are encoded: by its own names of the task's columns."""
    names = {own: source.columns.names[own] for own in encoding.columns.names}
    return dataclasses.replace(
        encoding,
        columns=Columns(encoding.columns.declared, names),
        say=lambda line: encoding.say(f"{source.name}: {line}"),
    )


def _describe_head(head: Split, encoding: Encoding) -> str:
    """Describe the first rows of a stream; a hash of what they become."""
    tokenised = tokenise_split(dataclasses.replace(head, name=_HEAD), encoding)
    facts = measure_data(
        {_HEAD: tokenised}, splits={_HEAD: head}, columns=encoding.columns, label_names=encoding.label_names
    )
    for line in describe_data(facts):
        encoding.say(line)
    return _digest_tokens(tokenised, encoding.max_length)


def _fingerprint(split: ShardedSplit, missing: str) -> str:
    """Of the content that is trained on.

    A run that refuses holes ends at the first, so up to there its rows are those of one that drops them: it may go on
    as one. With empty texts in the place of holes there are other rows.
    """
    return digest(split.fingerprint.encode(), b"null texts are empty") if missing == "empty" else split.fingerprint


def _first_row(texts: RowStream) -> Row:
    for row in texts.read(0):
        return row
    raise UserError("data.train: no row is left when those without a text or a label are dropped (data.missing=drop)")


def _count(split: ShardedSplit, texts: RowStream, say: Callable[[str], None]) -> int:
    say(f"train: counting the rows of {split.title}")
    began = time.perf_counter()
    num_rows = texts.count_rows()
    say(f"train: {plural(num_rows, 'row')} counted in {time.perf_counter() - began:.1f} s")
    return num_rows


def _digest_tokens(head: TokenisedSplit, max_length: int) -> str:
    """Later rows may be the first that a new max_length cuts, so it counts by itself."""
    if "input_ids" in head.rows.column_names:
        ids = pc.list_flatten(whole_column(head.rows, "input_ids"), recursive=True)
        content = ids.to_numpy().astype(np.int64).tobytes()
    else:
        content = json.dumps(head.rows[:], default=repr).encode()
    return digest(str(max_length).encode(), head.lengths.tobytes(), content)


def _read_first(shard: Shard, most: int, columns: Columns, holes: Holes | None) -> tuple[list[Batch], int]:
    """As many rows as there are up to `most` without holes, and how many those are."""
    read: list[Batch] = []
    num_rows = kept = 0
    are_classes = has_classes(shard.features, columns.single_label)
    for batch in read_batches(shard):
        for row, values in enumerate(batch.values()):
            if row in batch.faults:
                raise batch.faults[row]
            num_rows += 1
            values = join_values(values, columns.joined)
            kept += holes is None or not holes.columns_of(values, are_classes=are_classes)
            if kept == most or num_rows == _MOST_ROWS_READ:
                return [*read, batch.first(row + 1)], kept
        read.append(batch)
    return read, kept


def _join(read: Sequence[tuple[Shard, Sequence[Batch]]], split: ShardedSplit, columns: Columns, missing: str) -> Split:
    label, wanted = columns.label, columns.stored
    tables = [join_batches(shard, batches, columns=wanted).select(wanted) for shard, batches in read]
    arrays = [table.as_arrays(wanted=wanted, label=None) for table in tables]
    if label is not None:
        _type_labels(tables, arrays, label)
    parts = [
        Split(shard.name, make_dataset(made, table.names, len(table), table.metadata), table.origins, "", table.names)
        for (shard, _), table, made in zip(read, tables, arrays, strict=True)
    ]
    head = with_plain_columns(join_files("train", parts, wanted=wanted), columns)
    settled, _ = settle_missing(head, columns, missing=missing)
    return dataclasses.replace(settled, fingerprint=split.fingerprint)


def _type_labels(tables: Sequence[WholeTable], arrays: Sequence[dict[str, pa.Array]], label: str) -> None:
    """The labels of .csv and .tsv files as what all of them stand for: integers, true/false or texts."""
    chosen = [made for table, made in zip(tables, arrays, strict=True) if table.has_fields and label in made]
    if not all(
        pa.types.is_string(made[label].type) or pa.types.is_null(made[label].type) for made in chosen
    ):  # data.map
        return
    typed = infer_label([value for made in chosen for value in made[label].to_pylist()])
    start = 0
    for made in chosen:
        count = len(made[label])
        made[label] = typed.slice(start, count)
        start += count
