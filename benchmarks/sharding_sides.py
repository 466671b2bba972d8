"""The processes of the benchmark `sharding`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
from torch import Tensor

from benchmarks.measure import time_of
from benchmarks.our_run import imdb_words
from benchmarks.watch import Watch
from trainer_loop import TrainingLoop
from trainer_loop.cli.run import main as run
from trainer_loop.parallel.sharding import local_part
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.run_dir import RunDir


def train(wanted: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch, save, and load what was saved. All processes must call this; the result of process 0 counts."""
    shard = wanted.pop("shard")
    watch, held = Watch(), {}
    checkpoint: dict[str, float] = {}
    train_step, clip, save = TrainingLoop.train_step, TrainingLoop.clip_gradients, Checkpointer.save
    loops: list[TrainingLoop] = []

    def watched(loop: TrainingLoop, step_batch: Any) -> Any:
        loops[:] = [loop]
        watch.begin_step()
        for microbatch in step_batch.microbatches:
            if not microbatch.is_dummy:
                watch.see(microbatch.batch)
        report = train_step(loop, step_batch)
        watch.end_step(loop.bare_model)
        return report

    def counted(loop: TrainingLoop, step: int) -> Any:
        held.update(count_held(loop))
        return clip(loop, step)

    def timed(checkpointer: Checkpointer, state: Any) -> None:
        wait = checkpointer.accelerator.wait_for_everyone
        wait()
        saving = time_of(lambda: save(checkpointer, state))
        wait()
        if not checkpoint:  # the end of the run saves the same step, which is there already
            loading = time_of(lambda: checkpointer.load("auto"))  # what the run goes on with
            checkpoint.update(save_seconds=saving, load_seconds=loading)

    TrainingLoop.train_step, TrainingLoop.clip_gradients = watched, counted  # type: ignore[method-assign]
    Checkpointer.save = timed  # type: ignore[method-assign]
    words = imdb_words(**wanted, evaluates=True)
    words += [f"parallel.shard={shard}", "train.precision=no", "evaluate.every=epoch", "checkpoint.every=epoch"]
    code = run(words)
    assert code == 0, f"the command ended with exit code {code}"
    rows = pandas.read_json(RunDir(Path(wanted["folder"])).metrics, lines=True)
    names = ("seconds", "updates", "rows", "tokens")
    return {
        **{name: getattr(watch, name) for name in names},
        **held,
        "parameters": sum(parameter.numel() for parameter in loops[0].bare_model.parameters()),
        **checkpoint,
        "loss": float(rows["validation/loss"].dropna().iloc[-1]),
    }


def count_held(loop: TrainingLoop) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer state in this process."""
    parameters = list(loop.bare_model.parameters())
    state = [value for of_one in loop.optimizer.state.values() for value in of_one.values()]
    return {
        "weights": _count_bytes(parameters),
        "gradients": _count_bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer": _count_bytes(value for value in state if isinstance(value, Tensor)),
    }


def _count_bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(part.numel() * part.element_size() for part in map(local_part, tensors)))
