"""The training rows of a stream, from one source or from a mixture. Each row is checked when it is read."""

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
_DRAWN = 1000  # rows whose sources are computed together


class Row(NamedTuple):
    """A row of a stream, raw or encoded."""

    values: dict[str, Any]  # raw: by the names of the task's columns, with class ids; encoded: the input of the model
    place: str  # in the user's data
    length: int = 0  # tokens of an encoded row
    weight: float = 1.0  # the factor of its loss
    source: str | None = None  # the name of its source; None without a mixture
    mark: Mark | None = None  # the position after this row
    number: int = 0  # in the epoch before the shuffle; set for rows of a batch


class Stream(Protocol):
    """Rows that are read in sequence, once per epoch."""

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        """Iterate over the rows of this epoch from a mark on (None: all). Repeated calls give the same rows."""
        ...


@dataclass(eq=False)
class RowStream:
    """The raw rows of all shards. The order of the shards is a hash of (seed, epoch).

    Raises UserError with the place of a row that cannot be used for training.
    """

    shards: Sequence[Shard]
    _: KW_ONLY
    seed: int
    columns: Columns
    label_names: LabelNames | None  # the classes, if a column has labels
    num_numbers: int | None = None  # the number of regression targets of a row, if any
    missing: str = "refuse"  # the treatment of rows with holes, see `settle_missing`; an epoch has no dropped rows
    say: Callable[[str], None] = lambda line: None  # receives lines about dropped rows

    def __post_init__(self) -> None:
        assert (self.columns.label is None) == (self.label_names is None), "a label needs its names"
        self._label = self.columns.label
        self._kinds = {role: self.columns.kind_of(role) for role in self.columns.names}
        self._ids: dict[RawLabel, int] = {} if self.label_names is None else self.label_names.ids
        self._label_kind = type(next(iter(self._ids), None))
        self._holes = Holes.of(self.columns, missing=self.missing)
        self._is_announced = False
        self._counted: set[tuple[str, str]] = set()  # shards whose number of dropped rows was reported

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        first = 0 if mark is None else mark["shard"]
        order = permute(len(self.shards), self.seed, "shards", epoch)
        for place in range(first, len(order)):
            begin = mark["from"] if mark is not None and place == first else None
            yield from self._read_shard(self.shards[order[place]], place, begin)

    def count_rows(self) -> int:
        """Count the rows of one epoch. Shards without a quick count are read, and their rows are checked."""
        must_read = self.missing == "drop"
        return sum(
            sum(1 for _ in self._read_shard(shard, 0, None)) if shard.count is None or must_read else shard.count()
            for shard in self.shards
        )

    def _read_shard(self, shard: Shard, place: int, begin: Mark | None) -> Iterator[Row]:
        """Iterate over the checked rows of a shard from `begin` on. `place` is the shard's index in the epoch."""
        are_classes = has_classes(shard.features, self._label)
        dropped = dict.fromkeys(self.columns.all, 0)
        for stored, number, mark in shard.read(begin):
            values = join_values(stored, self.columns.joined) if self.columns.joined else stored
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
        fields: dict[str, Any] = {}
        for role, name in self.columns.names.items():
            kind = self._kinds[role]
            value: Any = values.get(name)
            if kind == "class":
                fields[role] = self._find_class(value, shard, place)
                continue
            if kind == "text" and self.missing == "empty" and self._holes.is_in(name, value):
                value = ""
            if (problem := self._find_fault(role, value, values)) is not None:
                hint = ", or set data.missing=drop (or empty)" if kind == "text" and problem in _HOLES else ""
                hint = ", or set data.missing=drop" if kind != "text" and is_hole(value, kind) else hint
                raise UserError(f"data.train: column {name!r} {problem} in {place}; correct or remove the row{hint}")
            if kind == "joined_classes":
                value = list_flagged(value)
            fields[role] = [self._find_class(label, shard, place) for label in value] if "classes" in kind else value
        fields.pop(GROUP, None)
        weight = read_number(fields.pop(WEIGHT, 1.0))
        assert weight is not None, "it was checked"
        return Row(fields, place, weight=weight, mark=mark)

    def _find_fault(self, role: str, value: Any, values: Values) -> str | None:
        name, column = self.columns.names[role], self.columns.declared[role]
        if column.kind == "text":
            if isinstance(value, str) and not value.isascii() and not is_encodable(value):
                return "holds half of a surrogate pair, which is no character,"
            if self._holes.is_in(name, value):
                return _IS_EMPTY if isinstance(value, str) else _IS_NULL
            return None if isinstance(value, str) else f"holds no text but {shorten(value)}"
        if value is None:
            return _IS_NULL
        per_value = None if column.per is None else values.get(self.columns.names.get(column.per, ""))
        count = self.num_numbers if name == self.columns.numbers else None
        return find_fault(value, self._kinds[role], per_value, num_numbers=count)

    def _find_class(self, raw: Any, shard: Shard, place: str) -> int:
        value = read_field(raw, self._label_kind) if shard.has_fields and isinstance(raw, str) else raw
        if self._label_kind is int and isinstance(value, (float, Decimal)) and float(value).is_integer():
            value = int(value)  # some libraries store integers with holes as floats
        if type(value) is self._label_kind and value in self._ids:  # 1, 1.0 and True are the same key of a dict
            return self._ids[value]
        if lacks_label(value, are_classes=has_classes(shard.features, self._label)):
            problem = "is null" if value != HIDDEN else f"is {HIDDEN}, which stands for a label that is kept secret,"
            raise UserError(
                f"data.train: column {self._label!r} {problem} in {place}; fill it in or remove the row, or set "
                "data.missing=drop"
            )
        allowed = enumerate_some([shorten(name) for name in self._ids], at_most=10)
        suggestion = did_you_mean(value, map(str, self._ids)) if isinstance(value, str) else ""
        raise UserError(
            f"data.train: column {self._label!r} has an unknown label in {place} ({shorten(raw)}); "
            f"labels may be {allowed}: correct it or remove the row{suggestion}"
        )


@dataclass(frozen=True)
class ChunkStream:
    """The encoded rows of a task that joins texts: `encode` of each group of `num_texts` texts, in order.

    Every process encodes all texts, because a chunk may have several texts, and a text may be in several chunks.
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
    """The rows of several streams, drawn by weights. Each stream is repeated epoch after epoch.

    The mixture has one endless epoch. A mark has the number of rows drawn, and the epoch and mark of each source.
    """

    streams: Mapping[str, Stream]  # by the names of the sources
    _: KW_ONLY
    weights: Sequence[float]  # of the sources, in any unit
    loss_weights: Sequence[float]  # factors of the weights of their rows
    seed: int

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        start = mark or {"drawn": 0, "sources": {}}
        if epoch or "sources" not in start:
            raise UserError(
                "data.mixture: the checkpoint is of a stream without a mixture, so there is no place in the sources to "
                "go on from; choose another run_dir"
            )
        names, num_drawn = list(self.streams), start["drawn"]
        places = {name: start["sources"].get(name, {"epoch": 0, "from": None}) for name in names}
        readers = [self._repeat(name, places[name]) for name in names]
        while True:
            for number in draw_sources(num_drawn, _DRAWN, weights=self.weights, seed=self.seed).tolist():
                name, loss_weight = names[number], self.loss_weights[number]
                row, places[name] = next(readers[number])
                num_drawn += 1
                mark = {"drawn": num_drawn, "sources": dict(places)}
                yield row._replace(weight=row.weight * loss_weight, source=name, mark=mark)

    def _repeat(self, name: str, start: Mark) -> Iterator[tuple[Row, Mark]]:
        """Iterate over the rows of a source from `start` on, without end, each with the position after it."""
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
        """Return a one-line summary of the shares."""
        total = sum(self.weights)
        shares = [f"{name} {weight / total:.1%}" for name, weight in zip(self.streams, self.weights, strict=True)]
        return f"mixture: {'; '.join(shares)}"


def draw_sources(start: int, count: int, *, weights: Sequence[float], seed: int) -> Indices:
    """Return the numbers of the sources of rows `start`, `start + 1`, ... of a mixed stream, `[count]`.

    Row i is at the point i times the golden ratio, plus a hash of the seed, modulo 1 (a Weyl sequence). Each source has
    a part of the interval from 0 to 1 that is as long as its share. Any consecutive points fill the interval evenly: of
    any 10,000 consecutive rows, the number of rows of each source differs from its share by at most five.

    >>> draw_sources(0, 12, weights=[2, 1], seed=0).tolist()
    [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    >>> draw_sources(9, 3, weights=[2, 1], seed=0).tolist()
    [1, 0, 1]
    """
    rows = np.arange(start, start + count, dtype=np.uint64)
    places = rows * np.uint64(_GOLDEN) + np.uint64(2 * derive_seed(seed, "mixture"))  # modulo 2^64: exact for any row
    ends = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1]
    return np.searchsorted(ends, places / 2.0**64, side="right")
