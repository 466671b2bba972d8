"""The processes of the benchmark `scaling`."""

import statistics
import time
from pathlib import Path
from typing import Any

import pandas
import torch
import torch.distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.our_run import imdb_words
from benchmarks.scoring import Scorer
from benchmarks.watch import Watch
from trainer_loop import TrainingLoop
from trainer_loop.cli.run import main as run
from trainer_loop.parallel.processes import choose_precision, leave_process_group, make_accelerator
from trainer_loop.record.run_dir import RunDir

_STEPS_COUNTED = 4
_REDUCTIONS_TIMED = 5
_FEW = 100  # numbers; a larger reduction is one of gradients


def train(wanted: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch. All processes must call this; the result of process 0 counts."""
    watch = Watch()
    loops: list[TrainingLoop] = []
    train_step = TrainingLoop.train_step

    def watched(loop: TrainingLoop, step_batch: Any) -> Any:
        loops[:] = [loop]
        watch.begin_step()
        report = train_step(loop, step_batch)
        watch.end_step(loop.bare_model)
        return report

    TrainingLoop.train_step = watched
    _run(wanted, steps=None)
    totals = pandas.read_json(RunDir(Path(wanted["folder"])).metrics, lines=True).iloc[-1]
    scorer = Scorer(
        Path(wanted["held_out"]),
        Path(wanted["model"]),
        max_length=wanted["max_length"],
        precision=choose_precision("auto"),
    )
    return {
        "seconds": watch.seconds,
        "updates": watch.updates,
        "rows": int(totals["rows_seen"]),
        "tokens": int(totals["tokens_seen"]),
        "dearest_share": _share_of_dearest(loops[0].data.train.plan),
        "loss": scorer.score(loops[0].bare_model).loss,
    }


def count(wanted: dict[str, Any]) -> dict[str, float]:
    """Reductions per step over a few steps."""
    tally = _Tally()
    train_step = TrainingLoop.train_step
    all_reduce = torch.distributed.all_reduce

    def counted(loop: TrainingLoop, step_batch: Any) -> Any:
        if tally.steps == 0:
            loop.model.register_comm_hook(None, tally.reduce_bucket)
            tally.parameters = sum(parameter.numel() for parameter in loop.engine.parameters)
        tally.steps += 1
        tally.microbatches += len(step_batch.microbatches)
        torch.distributed.all_reduce = tally.count_small(all_reduce)
        try:
            return train_step(loop, step_batch)
        finally:
            torch.distributed.all_reduce = all_reduce

    TrainingLoop.train_step = counted
    _run(wanted, steps=_STEPS_COUNTED)
    return {
        "microbatches": tally.microbatches / tally.steps,
        "times_reduced": tally.values / tally.parameters / tally.steps,
        "bytes": tally.bytes / tally.steps,
        "megabytes": tally.bytes / tally.steps / 2**20,
        "small_sums": tally.small / tally.steps,
    }


def time_all_reduce(num_bytes: int) -> float:
    """The median of a few sums of fp32 numbers; a first sum opens the connections."""
    make_accelerator(precision="no")
    numbers = torch.ones(num_bytes // 4)
    seconds = []
    for _ in range(1 + _REDUCTIONS_TIMED):
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(numbers)
        seconds.append(time.perf_counter() - began)
    leave_process_group()
    return statistics.median(seconds[1:])


class _Tally:
    """Counts reductions over the processes."""

    def __init__(self) -> None:
        self.steps = 0
        self.microbatches = 0
        self.parameters = 0
        self.values = 0  # number of gradient values
        self.bytes = 0
        self.small = 0

    def reduce_bucket(self, state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DistributedDataParallel's own reduction, counted."""
        self.values += bucket.buffer().numel()
        self.bytes += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(torch.distributed.group.WORLD, bucket)

    def count_small(self, all_reduce: Any) -> Any:
        def counted(tensor: torch.Tensor, *further: Any, **options: Any) -> Any:
            self.small += tensor.numel() < _FEW
            return all_reduce(tensor, *further, **options)

        return counted


def _run(wanted: dict[str, Any], *, steps: int | None) -> None:
    wanted = dict(wanted)
    max_tokens = wanted.pop("max_tokens")
    words = imdb_words(**wanted, steps=steps)
    code = run(words if max_tokens is None else [*words, f"batch.max_tokens={max_tokens}"])
    assert code == 0, f"the command ended with exit code {code}"


def _share_of_dearest(plan: Any) -> float:
    """The share of an epoch's padded tokens computed by the busiest process of each step."""
    dearest = total = 0
    for step in range(plan.steps_per_epoch):
        costs = [share.num_padded_tokens for share in plan.step(step).shares]
        dearest += max(costs)
        total += sum(costs)
    return dearest / total
