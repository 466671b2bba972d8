"""Batches of a data set that is read row by row and never held in memory.

An epoch is read in consecutive blocks of `shuffle_rows` rows. The rows of a block are permuted by a hash of (seed,
epoch, first row of the block), and consecutive runs of `batch_size` rows of what comes of it are the batches. So a
position is an epoch, a block and a number of rows, and a run that goes on reads no more than that block again.
Every process reads all rows and tokenises its own: row i of a batch is that of process i modulo their number.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from trainer_loop.data.batch_plan import Rows, Share, cut_batch, halve_dearest
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import Collate, Count, Microbatch, StepBatch, add_draws, as_dummy, count_epochs, weigh
from trainer_loop.data.shards import Mark
from trainer_loop.data.stream_rows import Row, Stream
from trainer_loop.errors import UserError
from trainer_loop.runtime.plain_json import check_fields, is_count
from trainer_loop.runtime.randomness import permute, seed_everything

_STEPS_AHEAD = 4  # read and tokenised while the loop trains
_STEPS_REMEMBERED = 10_000  # whose rows can still be named

_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """Where an update begins.

    first: number in its epoch of the first row of the block. used: rows of the block, as shuffled, that were had
    before. start: where the block begins in the stream; None where the epoch does.
    """

    epoch: int = 0
    first: int = 0
    used: int = 0
    start: Mark | None = None


@dataclass(frozen=True)
class StreamBatch:
    """The rows of one update over all processes."""

    begin: Position
    end: Position  # where the next one begins
    rows: list[Row]


def read_batches(
    stream: Stream, position: Position, *, batch_size: int, shuffle_rows: int, seed: int, num_rows: int | None = None
) -> Iterator[StreamBatch]:
    """The batches from a position on, without end. The last one of an epoch holds what rows are left.

    num_rows: of one epoch, where they were counted; raises UserError where other ones come.
    """
    rows: list[Row] = []
    begin = position
    while True:
        rest = stream.read(position.epoch, position.start)
        first, used, is_over, behind = position.first, position.used, False, position.start
        while not is_over:
            start, block = behind, list[Row]()
            for row in islice(rest, shuffle_rows):
                # Without its mark: as many marks would keep Python's garbage collector busy.
                block.append(row._replace(mark=None, number=first + len(block)))
                behind = row.mark
            is_over = len(block) < shuffle_rows
            order = permute(len(block), seed, "stream", position.epoch, first).tolist()
            for index in range(used, len(block)):
                place = Position(position.epoch, first, index, start)
                if len(rows) == batch_size:
                    yield StreamBatch(begin, place, rows)
                    rows = []
                begin = begin if rows else place
                rows.append(block[order[index]])
            first, used = first + len(block), 0
        _check_count(first, num_rows, epoch=position.epoch)
        position = Position(position.epoch + 1)
        if rows:
            yield StreamBatch(begin, position, rows)
            rows = []


def _check_count(found: int, num_rows: int | None, *, epoch: int) -> None:
    if not found:
        raise UserError("data.train has no rows")
    if num_rows is not None and found != num_rows:
        raise UserError(
            f"data.train: epoch {epoch + 1} has {found:,} rows, and {num_rows:,} were counted before training, or told "
            "by the description of the data set; files must not change while a run reads them, and train.steps needs "
            "no count"
        )


@dataclass(frozen=True)
class _Prepared:
    """An update of this process, not cut yet: the cut depends on the token budget, which may change.

    mine: the encoded rows of this process; one row of the batch where it has none.
    """

    batch: StreamBatch
    mine: list[Row]
    is_idle: bool


@dataclass(eq=False)
class StreamLoader:
    """The updates of this process, made from a stream; see `StepLoader`.

    encode: raw rows of the stream -> as many rows as the model sees them. num_rows: of one epoch; None: not counted.
    sources: of a mixture; rows of unlike sources or weights share no microbatch.
    """

    stream: Stream
    limits: Limits
    _: KW_ONLY
    encode: Callable[[Sequence[Row]], list[Row]]
    collate: Collate
    count: Count
    batch_size: int
    shuffle_rows: int
    seed: int
    device: torch.device
    process_index: int = 0
    draws: bool = False
    num_rows: int | None = None
    sources: Sequence[str] = ()
    _step: int = field(default=0, init=False)  # of the update that the loop is going to ask for
    _position: Position = field(default=Position(), init=False)  # where that begins
    _current: _Prepared | None = field(default=None, init=False)  # the update that the loop has
    _begins: dict[int, Position] = field(default_factory=dict, init=False)  # of the updates that were had

    @property
    def steps_per_epoch(self) -> int | None:
        return None if self.num_rows is None else math.ceil(self.num_rows / self.batch_size)

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Updates start, start + 1, ..., stop - 1; the first is the one that the position was restored for."""
        if start != self._step:
            raise UserError(
                "data.streaming: the checkpoint is of a run that did not stream its rows, so there is no place in the "
                "stream to go on from; choose another run_dir"
            )
        prepared = islice(self._prepare(self._position), stop - start)
        with contextlib.closing(_read_ahead(prepared, depth=_STEPS_AHEAD)) as ready:
            while self._step < stop:
                asked = time.perf_counter()
                self._current = next(ready)
                self._begins[self._step] = self._current.batch.begin
                self._begins.pop(self._step - _STEPS_REMEMBERED, None)
                step_batch = self._make_step(self._step, self._current)
                # What was read ahead does not count: saved is where the update after this one begins.
                self._step, self._position = self._step + 1, self._current.batch.end
                step_batch.wait_seconds = time.perf_counter() - asked
                yield step_batch

    def count_epochs(self, step: int) -> float | None:
        """Of a stream whose rows were not counted: the passes that are over. A mixture has no epochs."""
        if self.sources:
            return None
        if self.num_rows is None:
            return float(self._position.epoch)
        return count_epochs(step, num_rows=self.num_rows, batch_size=self.batch_size)

    def origins(self, step: int) -> list[str]:
        """Read again from the stream."""
        begin = self._begins.get(step)
        return ["no longer known"] if begin is None else [row.place for row in next(self._read(begin)).rows]

    def dummy_microbatch(self, step: int) -> Microbatch:
        shortest = min(self._get_current(step).mine, key=lambda row: max(row.length, 1))
        return as_dummy(self._collate([shortest], step))

    def cut_smaller(self, step: int) -> StepBatch | None:
        """Every process encodes the rows of all, this once, and so comes to the same size without communication."""
        prepared = self._get_current(step)
        rows = self.encode(prepared.batch.rows)
        num_processes = self.limits.num_processes
        dealt = [range(process, len(rows), num_processes) for process in range(num_processes)]
        cut = [self._cut(list(mine), rows).microbatches for mine in dealt if mine]
        half = halve_dearest(cut, self.limits.pad(np.array(_lengths(rows))), packed=self.limits.packed)
        if half is None:
            return None
        self.limit_tokens(half)
        return self._make_step(step, prepared)

    @property
    def max_tokens(self) -> int | None:
        return self.limits.max_tokens

    def limit_tokens(self, max_tokens: int) -> None:
        self.limits = replace(self.limits, max_tokens=min(max_tokens, self.max_tokens or max_tokens))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, **asdict(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        position = dict(state)
        step = position.pop("step", None)
        try:
            check_fields(Position, position)
            if not is_count(step):
                raise ValueError(f"step is {step!r}")
        except ValueError as error:
            raise UserError(f"the place in the stream where the run goes on is damaged: {error}") from error
        self._step, self._position = step, Position(**position)

    def _read(self, position: Position) -> Iterator[StreamBatch]:
        return read_batches(
            self.stream,
            position,
            batch_size=self.batch_size,
            shuffle_rows=self.shuffle_rows,
            seed=self.seed,
            num_rows=self.num_rows,
        )

    def _prepare(self, position: Position) -> Iterator[_Prepared]:
        for batch in self._read(position):
            mine = batch.rows[self.process_index :: self.limits.num_processes]
            chosen = mine or batch.rows[:1]
            encoded = self.encode(chosen)
            if len(encoded) != len(chosen):
                raise UserError(
                    f"the task's encode gave {len(encoded)} rows for {len(chosen)} texts; a task that does not make "
                    "one row of every text must always name the text of each in a column `source`"
                )
            yield _Prepared(batch, encoded, is_idle=not mine)

    def _get_current(self, step: int) -> _Prepared:
        assert self._current is not None and step == self._step - 1, "only the update that was given last is kept"
        return self._current

    def _make_step(self, step: int, prepared: _Prepared) -> StepBatch:
        # A collate that augments at random must do the same when the step is repeated.
        seed_everything(self.seed, "collate", step, self.process_index)
        if prepared.is_idle:
            # The reduction of gradients waits for every process: an idle one goes through the motions with one row.
            return StepBatch(step, [as_dummy(self._collate(prepared.mine, step))], 0, 0, 0)
        share = self._cut(list(range(len(prepared.mine))), prepared.mine)
        microbatches = [self._collate([prepared.mine[place] for place in rows], step) for rows in share.microbatches]
        return StepBatch(step, microbatches, share.num_rows, share.num_tokens, share.num_padded_tokens)

    def _cut(self, numbers: Rows, rows: Sequence[Row]) -> Share:
        """The rows of one process, by their places in `rows`, cut into its microbatches."""
        chosen = [rows[number] for number in numbers]
        (share,) = cut_batch(numbers, _lengths(chosen), replace(self.limits, num_processes=1), groups=_group(chosen))
        return share

    def _collate(self, rows: Sequence[Row], step: int) -> Microbatch:
        values, numbers = [row.values for row in rows], [row.number for row in rows]
        batch = self.collate(add_draws(values, numbers, self.seed, "collate", step) if self.draws else values)
        first, num_tokens = rows[0], sum(_lengths(rows))
        microbatch = Microbatch(numbers, batch, self.count(batch), source=first.source, num_tokens=num_tokens)
        microbatch = weigh(microbatch, first.weight)
        if self.device.type == "cuda":
            microbatch.pin_memory()
        return microbatch.to(self.device)


def _group(rows: Sequence[Row]) -> np.ndarray | None:
    """`[N]` a number for each row: rows of one source and one weight have the same; None: all rows."""
    kinds = [(row.source or "", row.weight) for row in rows]
    numbers = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
    return None if len(numbers) == 1 else np.array([numbers[kind] for kind in kinds])


def _lengths(rows: Sequence[Row]) -> list[int]:
    """Tokens of each row; at least 1, for an empty one is padded too."""
    return [max(row.length, 1) for row in rows]


def _read_ahead(items: Iterator[_T], *, depth: int) -> Generator[_T, None, None]:
    """The same items, made in a thread while the caller is busy with those before; what is raised there comes in turn.

    Closing it waits for the item that is being made.
    """
    is_over = object()
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        try:
            waiting.extend(thread.submit(next, items, is_over) for _ in range(depth))
            while (item := waiting.popleft().result()) is not is_over:
                waiting.append(thread.submit(next, items, is_over))
                yield item
        finally:
            for future in waiting:
                future.cancel()
