"""Functions of the user on raw rows: `data.filter` keeps some of them, `data.map` gives them new columns."""

import copy
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trainer_loop.components import describe_own_line, locate
from trainer_loop.data.columns import Columns
from trainer_loop.data.fingerprint import digest, digest_file, digest_rows
from trainer_loop.data.images import as_plain
from trainer_loop.data.shards import BATCH_ROWS, Batch, Mark, Shard, ShardedSplit, Values
from trainer_loop.data.split import Split
from trainer_loop.data.tables import read_table
from trainer_loop.data.wording import plural, shorten
from trainer_loop.errors import Problems, UserError, in_one_line
from trainer_loop.own_files import find_own_files

Function = Callable[[dict[str, Any]], Any]


class Kept(NamedTuple):
    """How many rows were read, and how many of them were kept."""

    read: int
    kept: int


@dataclass(frozen=True)
class RowFunctions:
    """What is done to each raw row: first `filter` decides whether it is kept, then `map` changes it.

    filter, map: the dotted paths. keep, change: the functions; None for none of these: without both, rows stay as they
    are, and `bool` is false. say: is told how many rows were kept, in lines for a person.
    """

    filter: str | None = None
    map: str | None = None
    keep: Function | None = None
    change: Function | None = None
    say: Callable[[str], None] = lambda line: None

    def __bool__(self) -> bool:
        return self.keep is not None or self.change is not None

    def fingerprint(self) -> str:
        """Of the code: of the whole files in which the functions are, and of the user's files that these import."""
        parts = [str(self.filter), _read_code(self.keep), str(self.map), _read_code(self.change)]
        read = [getattr(function, "__module__", None) for function in (self.keep, self.change)]
        files = find_own_files(name for name in (self.filter, self.map, *read) if name is not None)
        for name, file in files.items():
            parts += [name, digest_file(file)] if name not in read else []
        return digest(*(part.encode(errors="replace") for part in parts))

    def over(
        self,
        shard: Shard,
        *,
        columns: Collection[str],
        on_end: Callable[[Kept], None],
        place: Callable[[int], str] | None = None,
    ) -> Shard:
        """A shard with all its columns, as one of the rows that are kept, with new columns.

        columns: of those that the shard has, the ones that are needed further on. on_end: is told how many rows were
        kept, each time that all of it was read. place: where a row stands, by its number; None: in the shard.
        """

        def read(mark: Mark | None) -> Iterator[Batch]:
            num_read = num_kept = 0
            for batch in shard.batches(mark):
                made = self._apply(batch, columns, place or shard.place)
                num_read, num_kept = num_read + len(batch), num_kept + len(made)
                if len(made):
                    yield made
            if mark is None:
                on_end(Kept(num_read, num_kept))

        count = shard.count if self.keep is None else None
        return replace(shard, batches=read, count=count, is_filtered=self.keep is not None)

    def over_streamed(self, shard: Shard, *, columns: Collection[str]) -> Shard:
        """As `over`, of a shard of a stream; it is told once how many of its rows were kept."""
        if not self:
            return shard
        is_told = False

        def tell(counts: Kept) -> None:
            nonlocal is_told
            if not is_told:
                self.tell("train", [counts], of=f" of {shard.title}")
            is_told = True

        return self.over(shard, columns=columns, on_end=tell)

    def mark_stream(self, split: ShardedSplit) -> ShardedSplit:
        """A stream whose shards are `over_streamed` ones: its rows are other ones than before."""
        if not self:
            return split
        fingerprint = digest(split.fingerprint.encode(), self.fingerprint().encode())
        return replace(split, fingerprint=fingerprint, num_rows=split.num_rows if self.keep is None else None)

    def over_split(self, split: Split, *, columns: Columns | None) -> Split:
        """The same for rows that are held in memory. Raises UserError."""
        if not self:
            return split
        assert columns is not None, "functions are for tasks that declare columns"
        batches = split.rows.with_format("arrow")
        metadata = split.rows.features.arrow_schema.metadata

        def read(mark: Mark | None) -> Iterator[Batch]:
            number = 0
            for table in batches.iter(batch_size=BATCH_ROWS):
                ends = [(number + row + 1,) for row in range(len(table))]
                yield Batch(table.replace_schema_metadata(metadata), ends, ("row",))
                number += len(table)

        def place(number: int) -> str:
            return split.origins.place(number - 1)

        counts: list[Kept] = []
        shard = Shard(split.name, "row", read, names=lambda: list(split.rows.column_names))
        changed = self.over(shard, columns=columns.stored, on_end=counts.append, place=place)
        made = read_table(changed, columns=columns.stored)
        if not len(made):
            raise UserError(self.explain_nothing(split.name))
        self.tell(split.name, counts)
        rows = replace(made, origins=split.origins.select(made.origins.numbers - 1)).as_split(columns)
        return replace(rows, name=split.name, fingerprint=digest_rows(rows.rows))

    def tell(self, split: str, counts: Sequence[Kept], *, of: str = "") -> None:
        """`train: 90 of 100 rows were kept by data.filter, 10 left out`. of: which part of the split it is about."""
        if self.filter is not None:
            read, kept = map(sum, zip(*counts, strict=True))
            told = f"{kept:,} of {plural(read, 'row')}{of} were kept by data.filter, {read - kept:,} left out"
            self.say(f"{split}: {told}")

    def explain_nothing(self, split: str) -> str:
        """No row of a split was kept."""
        return f"data.{split}: data.filter={self.filter} keeps no row of it; it must return True for some"

    def _apply(self, batch: Batch, columns: Collection[str], place: Callable[[int], str]) -> Batch:
        """Raises nothing of what is wrong with rows: these are faults of the batch."""
        rows, before = batch.values(), batch.values() if self.change and isinstance(batch.rows, pa.Table) else None
        kept: list[int] = []
        changed: list[dict[str, Any]] = []
        faults: dict[int, UserError] = {}
        for number, values in enumerate(rows):
            fault, is_kept, new = batch.faults.get(number), True, dict[str, Any]()
            if fault is None:
                try:
                    is_kept = self._decide(values)
                    new = self._change(values) if is_kept else {}
                except UserError as error:
                    fault = UserError([f"{place(batch.numbers[number])}: {told}" for told in error.problems])
            if fault is not None:
                faults[len(kept)] = fault
            if is_kept:
                kept.append(number)
                changed.append(new if before is None else _leave_out_equal(new, before[number]))
        return replace(batch.take(kept, columns), changed=changed if self.change else (), faults=faults)

    def _decide(self, values: Values) -> bool:
        if self.keep is None:
            return True
        found = _call(self.keep, values, f"data.filter={self.filter}")
        if not isinstance(found, (bool, np.bool_)):
            raise UserError(f"data.filter={self.filter} returned {shorten(found)}; it must return True or False")
        return bool(found)

    def _change(self, values: Values) -> dict[str, Any]:
        if self.change is None:
            return {}
        found = _call(self.change, values, f"data.map={self.map}")
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            told = f"data.map={self.map} returned {shorten(found)}"
            raise UserError(f"{told}; it must return a dict of the columns that are new or changed, by their names")
        return {name: as_plain(value) for name, value in found.items()}


NO_FUNCTIONS = RowFunctions()


def load_functions(filter: str | None, map: str | None, say: Callable[[str], None]) -> RowFunctions:
    """The functions at the dotted paths `data.filter` and `data.map`. Raises UserError."""
    problems = Problems()
    keep = problems.collect("", _load, filter, "data.filter")
    change = problems.collect("", _load, map, "data.map")
    problems.refuse()
    return RowFunctions(filter, map, keep, change, say)


def _load(dotted: str | None, key: str) -> Function | None:
    if dotted is None:
        return None
    found: Any = locate(dotted, place=key)
    if not callable(found):
        raise UserError(f"{key}={dotted} is no function but a {type(found).__name__}; it must take a row")
    try:
        inspect.signature(found).bind({})
    except TypeError as error:
        raise UserError(f"{key}={dotted}: it must take one argument, a row as a dict: {in_one_line(error)}") from error
    except ValueError:  # of a built-in function, whose parameters Python cannot tell
        pass
    return found  # type: ignore[no-any-return]


def _call(function: Function, values: Values, name: str) -> Any:
    try:
        return function(copy.deepcopy(dict(values)))  # what it changes in place is no result
    except Exception as error:
        told = describe_own_line(error) or f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{name} failed: {told}") from error


def _leave_out_equal(new: Mapping[str, Any], before: Values) -> dict[str, Any]:
    """Columns that a function returned as they were keep their types, such as the names of classes."""
    return {
        name: value
        for name, value in new.items()
        if name not in before or type(value) is not type(before[name]) or not _are_equal(value, before[name])
    }


def _are_equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except ValueError:  # of arrays of numpy in a list
        return False


def _read_code(function: Function | None) -> str:
    """The source of the file that a function is in; of one without a file, what Python has of it."""
    if function is None:
        return ""
    try:
        return inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError, KeyError, AttributeError):
        code = getattr(function, "__code__", None)
        return repr(function) if code is None else repr((code.co_code, code.co_consts))
