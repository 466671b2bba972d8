"""Batches of a data set that is streamed: read row by row and never held in memory as a whole.

An epoch is read in consecutive blocks of `shuffle_rows` rows. The rows of a block are permuted by a hash of (seed,
epoch, first row of the block); consecutive runs of `batch_size` permuted rows are the batches. So a position is an
epoch, a block and a number of rows, and a resumed run only reads that block again. Every process reads all rows and
tokenises its own: row i of a batch belongs to process i modulo the number of processes.
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

_STEPS_AHEAD = 4  # steps that are read and tokenised while the loop trains
_STEPS_REMEMBERED = 10_000  # latest steps whose rows `origins` can name

_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """The position in the stream at which an update starts."""

    epoch: int = 0
    first: int = 0  # number in the epoch of the first row of the block
    used: int = 0  # shuffled rows of the block that earlier updates used
    start: Mark | None = None  # the start of the block in the stream; None: the start of the epoch


@dataclass(frozen=True)
class StreamBatch:
    """The rows of one update over all processes."""

    begin: Position
    end: Position  # the start of the next update
    rows: list[Row]


def read_batches(
    stream: Stream, position: Position, *, batch_size: int, shuffle_rows: int, seed: int, num_rows: int | None = None
) -> Iterator[StreamBatch]:
    """Iterate over the batches from a position on, without end. The last batch of an epoch has the remaining rows.

    Args:
        num_rows: Rows of one epoch; None: not counted.

    Raises:
        UserError: An epoch has no rows, or not `num_rows`.
    """
    rows: list[Row] = []
    begin = position
    while True:
        rows_of_epoch = stream.read(position.epoch, position.start)
        first, used, is_epoch_over, block_end = position.first, position.used, False, position.start
        while not is_epoch_over:
            start, block = block_end, list[Row]()
            for row in islice(rows_of_epoch, shuffle_rows):
                # The mark is dropped, because so many dicts would slow down Python's garbage collector.
                block.append(row._replace(mark=None, number=first + len(block)))
                block_end = row.mark
            is_epoch_over = len(block) < shuffle_rows
            order = permute(len(block), seed, "stream", position.epoch, first).tolist()
            for index in range(used, len(block)):
                here = Position(position.epoch, first, index, start)
                if len(rows) == batch_size:
                    yield StreamBatch(begin, here, rows)
                    rows = []
                begin = begin if rows else here
                rows.append(block[order[index]])
            first, used = first + len(block), 0
        _check_count(first, num_rows, epoch=position.epoch)
        position = Position(position.epoch + 1)
        if rows:
            yield StreamBatch(begin, position, rows)
            rows = []


def _check_count(num_read: int, num_rows: int | None, *, epoch: int) -> None:
    if not num_read:
        raise UserError("data.train has no rows")
    if num_rows is not None and num_read != num_rows:
        raise UserError(
            f"data.train: epoch {epoch + 1} has {num_read:,} rows, and {num_rows:,} were counted before training, or "
            "told by the description of the data set; files must not change while a run reads them, and train.steps "
            "needs no count"
        )


@dataclass(frozen=True)
class _EncodedStep:
    """An update of this process before the cut. The cut is made late, because the token budget may change."""

    batch: StreamBatch
    mine: list[Row]  # the encoded rows of this process; if it has none, one row of the batch
    is_idle: bool  # this process has no rows


@dataclass(eq=False)
class StreamLoader:
    """Loads the updates of this process from a stream; see `StepLoader`.

    All rows of a microbatch have the same source and the same weight.
    """

    stream: Stream
    limits: Limits
    _: KW_ONLY
    encode: Callable[[Sequence[Row]], list[Row]]  # raw rows -> the same number of encoded rows
    collate: Collate
    count: Count
    batch_size: int
    shuffle_rows: int
    seed: int
    device: torch.device
    process_index: int = 0
    draws: bool = False
    num_rows: int | None = None  # of one epoch; None: not counted
    sources: Sequence[str] = ()  # names of the sources of a mixture
    _step: int = field(default=0, init=False)  # the next update
    _position: Position = field(default=Position(), init=False)  # the start of the next update
    _current: _EncodedStep | None = field(default=None, init=False)  # the update that the loop trains on
    _begins: dict[int, Position] = field(default_factory=dict, init=False)  # the starts of the latest updates

    @property
    def steps_per_epoch(self) -> int | None:
        return None if self.num_rows is None else math.ceil(self.num_rows / self.batch_size)

    def steps(self, *, start: int, stop: int) -> Iterator[StepBatch]:
        """Iterate over the updates start, start + 1, ..., stop - 1. `start` must be the restored step."""
        if start != self._step:
            raise UserError(
                "data.streaming: the checkpoint is of a run that did not stream its rows, so there is no place in the "
                "stream to go on from; choose another run_dir"
            )
        encoded_steps = islice(self._encode_steps(self._position), stop - start)
        with contextlib.closing(_read_ahead(encoded_steps, depth=_STEPS_AHEAD)) as prefetched:
            while self._step < stop:
                start_time = time.perf_counter()
                self._current = next(prefetched)
                self._begins[self._step] = self._current.batch.begin
                self._begins.pop(self._step - _STEPS_REMEMBERED, None)
                step_batch = self._make_step(self._step, self._current)
                # The saved position is the start of the next update, regardless of the prefetched ones.
                self._step, self._position = self._step + 1, self._current.batch.end
                step_batch.wait_seconds = time.perf_counter() - start_time
                yield step_batch

    def count_epochs(self, step: int) -> float | None:
        """Return the passes over the rows; only complete ones if the rows were not counted. None for a mixture."""
        if self.sources:
            return None
        if self.num_rows is None:
            return float(self._position.epoch)
        return count_epochs(step, num_rows=self.num_rows, batch_size=self.batch_size)

    def origins(self, step: int) -> list[str]:
        """Return the places of the rows of update `step`. This reads them from the stream again."""
        begin = self._begins.get(step)
        return ["no longer known"] if begin is None else [row.place for row in next(self._read(begin)).rows]

    def dummy_microbatch(self, step: int) -> Microbatch:
        shortest = min(self._get_current(step).mine, key=lambda row: max(row.length, 1))
        return as_dummy(self._collate([shortest], step))

    def cut_smaller(self, step: int) -> StepBatch | None:
        """See `StepLoader`. Each process encodes all rows of the batch here, so all find the same size."""
        encoded_step = self._get_current(step)
        rows = self.encode(encoded_step.batch.rows)
        num_processes = self.limits.num_processes
        dealt = [range(process, len(rows), num_processes) for process in range(num_processes)]
        microbatches = [self._cut(list(mine), rows).microbatches for mine in dealt if mine]
        half = halve_dearest(microbatches, self.limits.pad(np.array(_lengths(rows))), packed=self.limits.packed)
        if half is None:
            return None
        self.limit_tokens(half)
        return self._make_step(step, encoded_step)

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

    def _encode_steps(self, position: Position) -> Iterator[_EncodedStep]:
        for batch in self._read(position):
            mine = batch.rows[self.process_index :: self.limits.num_processes]
            raw = mine or batch.rows[:1]
            encoded = self.encode(raw)
            if len(encoded) != len(raw):
                raise UserError(
                    f"the task's encode gave {len(encoded)} rows for {len(raw)} texts; a task that does not make "
                    "one row of every text must always name the text of each in a column `source`"
                )
            yield _EncodedStep(batch, encoded, is_idle=not mine)

    def _get_current(self, step: int) -> _EncodedStep:
        assert self._current is not None and step == self._step - 1, "only the update that was given last is kept"
        return self._current

    def _make_step(self, step: int, encoded_step: _EncodedStep) -> StepBatch:
        # A collate with random augmentation must give the same result when the step is repeated.
        seed_everything(self.seed, "collate", step, self.process_index)
        mine = encoded_step.mine
        if encoded_step.is_idle:
            # The gradient reduction waits for every process, so a process without rows runs a dummy microbatch.
            return StepBatch(step, [as_dummy(self._collate(mine, step))], 0, 0, 0)
        share = self._cut(list(range(len(mine))), mine)
        microbatches = [self._collate([mine[number] for number in rows], step) for rows in share.microbatches]
        return StepBatch(step, microbatches, share.num_rows, share.num_tokens, share.num_padded_tokens)

    def _cut(self, numbers: Rows, rows: Sequence[Row]) -> Share:
        """Cut the rows of one process into its microbatches. `numbers` are the indices of these rows in `rows`."""
        mine = [rows[number] for number in numbers]
        (share,) = cut_batch(numbers, _lengths(mine), replace(self.limits, num_processes=1), groups=_group(mine))
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
    """Return a number for each row, `[N]`, the same for rows of one source and weight; None if all are equal."""
    kinds = [(row.source or "", row.weight) for row in rows]
    numbers = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
    return None if len(numbers) == 1 else np.array([numbers[kind] for kind in kinds])


def _lengths(rows: Sequence[Row]) -> list[int]:
    """Return the tokens of each row, at least 1, because an empty row is padded too."""
    return [max(row.length, 1) for row in rows]


def _read_ahead(items: Iterator[_T], *, depth: int) -> Generator[_T, None, None]:
    """Iterate over `items`, and compute the next `depth` ones in a thread. Errors are raised when their item is due.

    Closing the generator waits for the item that is being computed.
    """
    end = object()
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        try:
            pending.extend(thread.submit(next, items, end) for _ in range(depth))
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in pending:
                future.cancel()
