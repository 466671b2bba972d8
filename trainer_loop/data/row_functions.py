"""User functions on raw rows: `data.filter` selects rows, `data.map` adds or changes columns."""

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


class RowCounts(NamedTuple):
    """Number of rows that were read, and of those that were kept."""

    read: int
    kept: int


@dataclass(frozen=True)
class RowFunctions:
    """Functions that are applied to each raw row: first `filter`, then `map`. Without both, `bool` is false.

    Attributes:
        filter: Dotted path of the filter.
        map: Dotted path of the map.
        keep: The function of `filter`; returns whether a row is kept.
        change: The function of `map`; returns new and changed columns.
        say: Receives one line of text per split, such as `train: 90 of 100 rows were kept`.
    """

    filter: str | None = None
    map: str | None = None
    keep: Function | None = None
    change: Function | None = None
    say: Callable[[str], None] = lambda line: None

    def __bool__(self) -> bool:
        return self.keep is not None or self.change is not None

    def fingerprint(self) -> str:
        """Return a hash of the files with the functions, and of the user's files that they import."""
        parts = [str(self.filter), _read_code(self.keep), str(self.map), _read_code(self.change)]
        modules = [getattr(function, "__module__", None) for function in (self.keep, self.change)]
        files = find_own_files(name for name in (self.filter, self.map, *modules) if name is not None)
        for name, file in files.items():
            parts += [name, digest_file(file)] if name not in modules else []
        return digest(*(part.encode(errors="replace") for part in parts))

    def over(
        self,
        shard: Shard,
        *,
        columns: Collection[str],
        on_end: Callable[[RowCounts], None],
        place: Callable[[int], str] | None = None,
    ) -> Shard:
        """Return a shard with the functions applied.

        Args:
            shard: A shard with all its columns.
            columns: Columns of the shard that are kept.
            on_end: Called with the counts after each full pass over the shard.
            place: Returns the origin of a row by its number, for messages; None: `shard.place`.
        """

        def read(mark: Mark | None) -> Iterator[Batch]:
            num_read = num_kept = 0
            for batch in shard.batches(mark):
                result = self._apply(batch, columns, place or shard.place)
                num_read, num_kept = num_read + len(batch), num_kept + len(result)
                if len(result):
                    yield result
            if mark is None:
                on_end(RowCounts(num_read, num_kept))

        count = shard.count if self.keep is None else None
        return replace(shard, batches=read, count=count, is_filtered=self.keep is not None)

    def over_streamed(self, shard: Shard, *, columns: Collection[str]) -> Shard:
        """Like `over`, for a shard of a stream; the counts are reported after its first full pass."""
        if not self:
            return shard
        is_reported = False

        def report(counts: RowCounts) -> None:
            nonlocal is_reported
            if not is_reported:
                self.report("train", [counts], of=f" of {shard.title}")
            is_reported = True

        return self.over(shard, columns=columns, on_end=report)

    def mark_stream(self, split: ShardedSplit) -> ShardedSplit:
        """Update fingerprint and row count of a stream whose shards come from `over_streamed`."""
        if not self:
            return split
        fingerprint = digest(split.fingerprint.encode(), self.fingerprint().encode())
        return replace(split, fingerprint=fingerprint, num_rows=split.num_rows if self.keep is None else None)

    def over_split(self, split: Split, *, columns: Columns | None) -> Split:
        """Apply the functions to rows in memory. Raises UserError for faults, and if no row is kept."""
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

        counts: list[RowCounts] = []
        shard = Shard(split.name, "row", read, names=lambda: list(split.rows.column_names))
        changed = self.over(shard, columns=columns.stored, on_end=counts.append, place=place)
        table = read_table(changed, columns=columns.stored)
        if not len(table):
            raise UserError(self.explain_nothing(split.name))
        self.report(split.name, counts)
        rows = replace(table, origins=split.origins.select(table.origins.numbers - 1)).as_split(columns)
        return replace(rows, name=split.name, fingerprint=digest_rows(rows.rows))

    def report(self, split: str, counts: Sequence[RowCounts], *, of: str = "") -> None:
        """Report how many rows the filter kept. `of` names a part of the split, if the counts are for that only."""
        if self.filter is not None:
            read, kept = map(sum, zip(*counts, strict=True))
            message = f"{kept:,} of {plural(read, 'row')}{of} were kept by data.filter, {read - kept:,} left out"
            self.say(f"{split}: {message}")

    def explain_nothing(self, split: str) -> str:
        """Return the message for a split of which no row is kept."""
        return f"data.{split}: data.filter={self.filter} keeps no row of it; it must return True for some"

    def _apply(self, batch: Batch, columns: Collection[str], place: Callable[[int], str]) -> Batch:
        """Apply the functions to a batch. Errors of single rows become faults of the batch; they are not raised."""
        rows, unchanged = batch.values(), batch.values() if self.change and isinstance(batch.rows, pa.Table) else None
        kept_rows: list[int] = []
        changed: list[dict[str, Any]] = []
        faults: dict[int, UserError] = {}
        for number, values in enumerate(rows):
            fault, is_kept, new_values = batch.faults.get(number), True, dict[str, Any]()
            if fault is None:
                try:
                    is_kept = self._decide(values)
                    new_values = self._change(values) if is_kept else {}
                except UserError as error:
                    fault = UserError([f"{place(batch.numbers[number])}: {problem}" for problem in error.problems])
            if fault is not None:
                faults[len(kept_rows)] = fault
            if is_kept:
                kept_rows.append(number)
                changed.append(new_values if unchanged is None else _leave_out_equal(new_values, unchanged[number]))
        return replace(batch.take(kept_rows, columns), changed=changed if self.change else (), faults=faults)

    def _decide(self, values: Values) -> bool:
        if self.keep is None:
            return True
        result = _call(self.keep, values, f"data.filter={self.filter}")
        if not isinstance(result, (bool, np.bool_)):
            raise UserError(f"data.filter={self.filter} returned {shorten(result)}; it must return True or False")
        return bool(result)

    def _change(self, values: Values) -> dict[str, Any]:
        if self.change is None:
            return {}
        result = _call(self.change, values, f"data.map={self.map}")
        if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
            message = f"data.map={self.map} returned {shorten(result)}"
            raise UserError(f"{message}; it must return a dict of the columns that are new or changed, by their names")
        return {name: as_plain(value) for name, value in result.items()}


NO_FUNCTIONS = RowFunctions()


def load_functions(filter: str | None, map: str | None, say: Callable[[str], None]) -> RowFunctions:
    """Load the functions at the dotted paths `data.filter` and `data.map`. Raises UserError."""
    problems = Problems()
    keep = problems.collect("", _load, filter, "data.filter")
    change = problems.collect("", _load, map, "data.map")
    problems.refuse()
    return RowFunctions(filter, map, keep, change, say)


def _load(dotted: str | None, key: str) -> Function | None:
    if dotted is None:
        return None
    function: Any = locate(dotted, place=key)
    if not callable(function):
        raise UserError(f"{key}={dotted} is no function but a {type(function).__name__}; it must take a row")
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        raise UserError(f"{key}={dotted}: it must take one argument, a row as a dict: {in_one_line(error)}") from error
    except ValueError:  # a built-in function without a signature
        pass
    return function  # type: ignore[no-any-return]


def _call(function: Function, values: Values, name: str) -> Any:
    try:
        return function(copy.deepcopy(dict(values)))  # changes in place have no effect
    except Exception as error:
        reason = describe_own_line(error) or f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{name} failed: {reason}") from error


def _leave_out_equal(values: Mapping[str, Any], before: Values) -> dict[str, Any]:
    """Remove values that are unchanged, so that their columns keep their types, such as ClassLabel."""
    return {
        name: value
        for name, value in values.items()
        if name not in before or type(value) is not type(before[name]) or not _are_equal(value, before[name])
    }


def _are_equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except ValueError:  # numpy arrays in a list
        return False


def _read_code(function: Function | None) -> str:
    """Return the source of the file of a function; without a file, its compiled code."""
    if function is None:
        return ""
    try:
        return inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError, KeyError, AttributeError):
        code = getattr(function, "__code__", None)
        return repr(function) if code is None else repr((code.co_code, code.co_consts))
