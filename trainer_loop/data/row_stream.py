"""The training rows of a stream, epoch after epoch, each of them judged when it is read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from trainer_loop.data.labels import LabelNames, RawLabel
from trainer_loop.data.shards import Mark, Reader, Shard, Values, read_on
from trainer_loop.data.text_files import is_encodable, read_field
from trainer_loop.data.wording import did_you_mean, enumerate_some, shorten
from trainer_loop.errors import UserError
from trainer_loop.runtime.randomness import derive_seed


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and where it stands in the user's data.

    values: `text`, `pair` and `label` (a class id) where the task has them; once encoded, what the model sees.
    """

    values: dict[str, Any]
    place: str


class EpochRows(Protocol):
    """The rows of one epoch from some place on."""

    def __iter__(self) -> Iterator[Row]: ...

    def mark(self) -> Mark:
        """Where the row begins that follows the last one given."""
        ...


class Stream(Protocol):
    """Rows that are read from the first to the last, once an epoch."""

    def read(self, epoch: int, mark: Mark | None = None) -> EpochRows:
        """The rows of this epoch from a mark on, None for all; the same ones every time."""
        ...


class RowStream:
    """The raw rows of all shards, whose order is another one in every epoch and a hash of seed and epoch.

    text, text_pair, label: their columns; label_names: the classes, where there is a label.
    A row that cannot be trained on is a UserError with its place.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        seed: int,
        text: str,
        text_pair: str | None,
        label: str | None,
        label_names: LabelNames | None,
    ):
        assert (label is None) == (label_names is None), "a label needs its names"
        self._shards = shards
        self._seed = seed
        self._texts = {"text": text} if text_pair is None else {"text": text, "pair": text_pair}
        self._label = label
        self._ids: dict[RawLabel, int] = {} if label_names is None else label_names.ids
        self._label_kind = type(next(iter(self._ids), None))

    def read(self, epoch: int, mark: Mark | None = None) -> EpochRows:
        order = permute(len(self._shards), self._seed, "shards", epoch)
        return _ShardsOfEpoch([self._shards[index] for index in order], self._judge, mark)

    def count_rows(self) -> int:
        """Rows of one epoch; those that nothing but reading tells are read, and judged."""
        return sum(self._read_through(shard) if shard.count is None else shard.count() for shard in self._shards)

    def _read_through(self, shard: Shard) -> int:
        num_rows = 0
        for values, number in read_on(shard, shard.read(None)):
            self._judge(values, shard, number)
            num_rows += 1
        return num_rows

    def _judge(self, values: Values, shard: Shard, number: int) -> Row:
        place = shard.place(number)
        judged: dict[str, Any] = {}
        for name, column in self._texts.items():
            judged[name] = values.get(column)
            if (problem := self._find_fault(judged[name])) is not None:
                raise UserError(f"data.train: column {column!r} {problem} in {place}; correct or remove the row")
        if self._label is not None:
            judged["label"] = self._find_class(values.get(self._label), shard, place)
        return Row(judged, place)

    def _find_fault(self, text: object) -> str | None:
        if text is None:
            return "is null"
        if not isinstance(text, str):
            return f"holds no text but {shorten(text)}"
        if not text.isascii() and not is_encodable(text):
            return "holds half of a surrogate pair, which is no character,"
        # A running text has blank lines; a text with a label needs something to tell it by.
        return "is empty" if self._label is not None and not text.strip() else None

    def _find_class(self, raw: Any, shard: Shard, place: str) -> int:
        if raw is None:
            raise UserError(f"data.train: column {self._label!r} is null in {place}; fill it in or remove the row")
        value = read_field(raw, self._label_kind) if shard.has_fields else raw
        if type(value) is self._label_kind and value in self._ids:  # 1, 1.0 and true are one key to a dict
            return self._ids[value]
        allowed = enumerate_some([shorten(name) for name in self._ids], at_most=10)
        meant = did_you_mean(value, map(str, self._ids)) if isinstance(value, str) else ""
        raise UserError(
            f"data.train: column {self._label!r} has an unknown label in {place} ({shorten(raw)}); "
            f"labels may be {allowed}: correct it or remove the row{meant}"
        )


class _ShardsOfEpoch:
    """The rows of one shard after the other. judge: `(values, shard, number)` -> the row; raises UserError."""

    def __init__(self, shards: Sequence[Shard], judge: Callable[[Values, Shard, int], Row], mark: Mark | None):
        self._shards = shards
        self._judge = judge
        self._position: int = 0 if mark is None else mark["shard"]
        self._start: Mark | None = None if mark is None else mark["from"]
        self._reader: Reader | None = None

    def __iter__(self) -> Iterator[Row]:
        for position in range(self._position, len(self._shards)):
            self._position = position
            shard = self._shards[position]
            self._reader = shard.read(self._start)
            self._start = None
            for values, number in read_on(shard, self._reader):
                yield self._judge(values, shard, number)

    def mark(self) -> Mark:
        return {"shard": self._position, "from": self._start if self._reader is None else self._reader.mark()}


class ChunkStream:
    """The rows of a task that joins texts: what `encode` makes of each `num_texts` texts, in their order.

    Every process encodes all of them, for a chunk may hold several texts and a text may be in several chunks.
    """

    def __init__(self, texts: Stream, encode: Callable[[Sequence[Row]], list[Row]], *, num_texts: int):
        self._texts = texts
        self._encode = encode
        self._num_texts = num_texts

    def read(self, epoch: int, mark: Mark | None = None) -> EpochRows:
        texts = self._texts.read(epoch, None if mark is None else mark["texts"])
        return _ChunksOfEpoch(texts, self._encode, num_texts=self._num_texts, used=0 if mark is None else mark["used"])


class _ChunksOfEpoch:
    """used: chunks to leave out of those made of the first texts."""

    def __init__(self, texts: EpochRows, encode: Callable[[Sequence[Row]], list[Row]], *, num_texts: int, used: int):
        self._texts = texts
        self._encode = encode
        self._num_texts = num_texts
        self._start = texts.mark()
        self._used = used

    def __iter__(self) -> Iterator[Row]:
        texts = iter(self._texts)
        while group := list(islice(texts, self._num_texts)):
            for chunk in self._encode(group)[self._used :]:
                self._used += 1
                yield chunk
            self._start, self._used = self._texts.mark(), 0

    def mark(self) -> Mark:
        return {"texts": self._start, "used": self._used}


def permute(count: int, *seed: int | str) -> np.ndarray:
    """`[count]` the numbers below it in an order that is a hash of the seed's parts."""
    return np.random.Generator(np.random.Philox(derive_seed(*seed))).permutation(count)
