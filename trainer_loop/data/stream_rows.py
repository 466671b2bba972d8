"""The training rows of a stream, of one source or of a mixture of several, each of them checked when it is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from trainer_loop.data.arrow_types import read_field
from trainer_loop.data.columns import GROUP, WEIGHT, Columns
from trainer_loop.data.labels import LabelNames, RawLabel
from trainer_loop.data.missing import HIDDEN, Holes, has_classes, lacks_label
from trainer_loop.data.mixture_sources import naming_source
from trainer_loop.data.origins import Indices
from trainer_loop.data.plain_columns import join_values
from trainer_loop.data.shards import Mark, Shard, Values
from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.values import find_fault, is_hole, list_flagged, read_number
from trainer_loop.data.wording import did_you_mean, enumerate_some, shorten
from trainer_loop.errors import UserError
from trainer_loop.runtime.randomness import derive_seed, permute

_IS_NULL, _IS_EMPTY = _HOLES = ("is null", "is empty")
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_DRAWN = 1000  # rows whose sources are found together


class Row(NamedTuple):
    """A row, and where it stands in the user's data.

    values: by the names of the task's columns, labels as class ids; once encoded, what the model sees. length: once
    encoded, its tokens. weight: the factor of its loss. source: the name of its source, where there is a mixture. mark:
    where the row begins that follows it. number: in the epoch, before the shuffle, once the row is in a batch.
    """

    values: dict[str, Any]
    place: str
    length: int = 0
    weight: float = 1.0
    source: str | None = None
    mark: Mark | None = None
    number: int = 0


class Stream(Protocol):
    """Rows that are read from the first to the last, once an epoch."""

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        """The rows of this epoch from a mark on, None for all; the same ones every time."""
        ...


@dataclass(eq=False)
class RowStream:
    """The raw rows of all shards, whose order is another one in every epoch and a hash of seed and epoch.

    label_names: the classes, if a column holds labels. num_numbers: that each row has to predict, if any. missing: what
    becomes of a row with holes, see `settle_missing`; one that is dropped is no row of the epoch, and `say` is told of
    them.
    A row that cannot be trained on is a UserError with its place.
    """

    shards: Sequence[Shard]
    _: KW_ONLY
    seed: int
    columns: Columns
    label_names: LabelNames | None
    num_numbers: int | None = None
    missing: str = "refuse"
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        assert (self.columns.label is None) == (self.label_names is None), "a label needs its names"
        self._label = self.columns.label
        self._kinds = {own: self.columns.kind_of(own) for own in self.columns.names}
        self._ids: dict[RawLabel, int] = {} if self.label_names is None else self.label_names.ids
        self._label_kind = type(next(iter(self._ids), None))
        self._holes = Holes.of(self.columns, missing=self.missing)
        self._is_announced = False
        self._counted: set[tuple[str, str]] = set()  # shards whose dropped rows were told

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        first = 0 if mark is None else mark["shard"]
        order = permute(len(self.shards), self.seed, "shards", epoch)
        for place in range(first, len(order)):
            begin = mark["from"] if mark is not None and place == first else None
            yield from self._read_shard(self.shards[order[place]], place, begin)

    def count_rows(self) -> int:
        """Rows of one epoch; those that nothing but reading tells are read, and checked."""
        must_read = self.missing == "drop"
        return sum(
            sum(1 for _ in self._read_shard(shard, 0, None)) if shard.count is None or must_read else shard.count()
            for shard in self.shards
        )

    def _read_shard(self, shard: Shard, place: int, begin: Mark | None) -> Iterator[Row]:
        """The rows of a shard that can be trained on. place: of the shard in the epoch. begin: None for all rows."""
        are_classes = has_classes(shard.features, self._label)
        dropped = dict.fromkeys(self.columns.all, 0)
        for read, number, mark in shard.read(begin):
            values = join_values(read, self.columns.joined) if self.columns.joined else read
            if self.missing == "drop" and (lacking := self._holes.columns_of(values, are_classes=are_classes)):
                dropped[lacking[0]] += 1
                if not self._is_announced:
                    self._is_announced = True
                    self.say(
                        f"train: {shard.place(number)} has no {lacking[0]!r} and is dropped, as all such rows are "
                        "(data.missing=drop); their number is told at the end of each file"
                    )
            else:
                yield self._check(values, shard, number, {"shard": place, "from": mark})
        if begin is None and (shard.name, shard.noun) not in self._counted:
            self._counted.add((shard.name, shard.noun))
            for line in self._holes.describe_dropped(shard.name, dropped):
                self.say(f"train: {line}")

    def _check(self, values: Values, shard: Shard, number: int, mark: Mark) -> Row:
        place = shard.place(number)
        checked: dict[str, Any] = {}
        for own, name in self.columns.names.items():
            kind = self._kinds[own]
            value: Any = values.get(name)
            if kind == "class":
                checked[own] = self._find_class(value, shard, place)
                continue
            if kind == "text" and self.missing == "empty" and self._holes.is_in(name, value):
                value = ""
            if (problem := self._find_fault(own, value, values)) is not None:
                more = ", or set data.missing=drop (or empty)" if kind == "text" and problem in _HOLES else ""
                more = ", or set data.missing=drop" if kind != "text" and is_hole(value, kind) else more
                raise UserError(f"data.train: column {name!r} {problem} in {place}; correct or remove the row{more}")
            if kind == "joined_classes":
                value = list_flagged(value)
            checked[own] = [self._find_class(one, shard, place) for one in value] if "classes" in kind else value
        checked.pop(GROUP, None)
        weight = read_number(checked.pop(WEIGHT, 1.0))
        assert weight is not None, "it was checked"
        return Row(checked, place, weight=weight, mark=mark)

    def _find_fault(self, own: str, value: Any, values: Values) -> str | None:
        name, column = self.columns.names[own], self.columns.declared[own]
        if column.kind == "text":
            if isinstance(value, str) and not value.isascii() and not is_encodable(value):
                return "holds half of a surrogate pair, which is no character,"
            if self._holes.is_in(name, value):
                return _IS_EMPTY if isinstance(value, str) else _IS_NULL
            return None if isinstance(value, str) else f"holds no text but {shorten(value)}"
        if value is None:
            return _IS_NULL
        beside = None if column.per is None else values.get(self.columns.names.get(column.per, ""))
        count = self.num_numbers if name == self.columns.numbers else None
        return find_fault(value, self._kinds[own], beside, num_numbers=count)

    def _find_class(self, raw: Any, shard: Shard, place: str) -> int:
        value = read_field(raw, self._label_kind) if shard.has_fields and isinstance(raw, str) else raw
        if self._label_kind is int and isinstance(value, (float, Decimal)) and float(value).is_integer():
            value = int(value)  # of a library that has no integers with holes
        if type(value) is self._label_kind and value in self._ids:  # 1, 1.0 and true are one key to a dict
            return self._ids[value]
        if lacks_label(value, are_classes=has_classes(shard.features, self._label)):
            found = "is null" if value != HIDDEN else f"is {HIDDEN}, which stands for a label that is kept secret,"
            raise UserError(
                f"data.train: column {self._label!r} {found} in {place}; fill it in or remove the row, or set "
                "data.missing=drop"
            )
        allowed = enumerate_some([shorten(name) for name in self._ids], at_most=10)
        meant = did_you_mean(value, map(str, self._ids)) if isinstance(value, str) else ""
        raise UserError(
            f"data.train: column {self._label!r} has an unknown label in {place} ({shorten(raw)}); "
            f"labels may be {allowed}: correct it or remove the row{meant}"
        )


@dataclass(frozen=True)
class ChunkStream:
    """The rows of a task that joins texts: what `encode` makes of each `num_texts` texts, in their order.

    Every process encodes all of them, for a chunk may hold several texts and a text may be in several chunks.
    """

    texts: Stream
    encode: Callable[[Sequence[Row]], list[Row]]
    num_texts: int

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        begin, used = (None, 0) if mark is None else (mark["texts"], mark["used"])
        texts = self.texts.read(epoch, begin)
        while group := list(islice(texts, self.num_texts)):
            for number, chunk in enumerate(self.encode(group)[used:], start=used + 1):
                yield chunk._replace(mark={"texts": begin, "used": number})
            begin, used = group[-1].mark, 0


@dataclass(frozen=True)
class MixedStream:
    """The rows of several streams, each of which is read again and again, epoch after epoch.

    It has one epoch without an end. A mark holds how many rows were drawn, and the epoch and the mark of each source.

    streams: by the names of the sources. weights: of the sources, in any unit. loss_weights: factors of the weights of
    their rows.
    """

    streams: Mapping[str, Stream]
    _: KW_ONLY
    weights: Sequence[float]
    loss_weights: Sequence[float]
    seed: int

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        start = mark or {"drawn": 0, "sources": {}}
        if epoch or "sources" not in start:
            raise UserError(
                "data.mixture: the checkpoint is of a stream without a mixture, so there is no place in the sources to "
                "go on from; choose another run_dir"
            )
        names, drawn = list(self.streams), start["drawn"]
        places = {name: start["sources"].get(name, {"epoch": 0, "from": None}) for name in names}
        readers = [self._go_through(name, places[name]) for name in names]
        while True:
            for number in draw_sources(drawn, _DRAWN, weights=self.weights, seed=self.seed).tolist():
                name, loss_weight = names[number], self.loss_weights[number]
                row, places[name] = next(readers[number])
                drawn += 1
                mark = {"drawn": drawn, "sources": dict(places)}
                yield row._replace(weight=row.weight * loss_weight, source=name, mark=mark)

    def _go_through(self, name: str, start: Mark) -> Iterator[tuple[Row, Mark]]:
        """The rows of a source from a place on, without end, each with the place behind it."""
        epoch, mark = start["epoch"], start["from"]
        with naming_source(name):
            while True:
                is_empty = mark is None
                for row in self.streams[name].read(epoch, mark):
                    is_empty = False
                    yield row, {"epoch": epoch, "from": row.mark}
                if is_empty:
                    raise UserError("data.train has no rows")
                epoch, mark = epoch + 1, None

    def describe(self) -> str:
        """A line for a person."""
        total = sum(self.weights)
        shares = [f"{name} {weight / total:.1%}" for name, weight in zip(self.streams, self.weights, strict=True)]
        return f"mixture: {'; '.join(shares)}"


def draw_sources(start: int, count: int, *, weights: Sequence[float], seed: int) -> Indices:
    """`[count]` the numbers of the sources of the rows `start`, `start + 1`, ... of a mixed stream.

    Row i stands at i times the golden ratio, plus a hash of the seed, modulo 1 (a Weyl sequence), and each source has
    a part of the interval from 0 to 1 that is as long as its share. The places fill the interval evenly, wherever the
    sequence is entered: of any 10,000 consecutive rows each source has its share, give or take five rows.

    >>> draw_sources(0, 12, weights=[2, 1], seed=0).tolist()
    [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    >>> draw_sources(9, 3, weights=[2, 1], seed=0).tolist()
    [1, 0, 1]
    """
    rows = np.arange(start, start + count, dtype=np.uint64)
    places = rows * np.uint64(_GOLDEN) + np.uint64(2 * derive_seed(seed, "mixture"))  # modulo 2^64: exact for any row
    ends = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1]
    return np.searchsorted(ends, places / 2.0**64, side="right")
