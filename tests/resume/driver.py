"""Run the command with an injected fault: at the place FAULT_AT, the process does to itself what FAULT names.

    FAULT_AT=step:5 FAULT=kill python tests/resume/driver.py config=quickstart.yaml

FAULT_RANK: only this process has the fault. FAULT_ONCE: a file that the fault creates; if it exists, there is no fault.
RECORD: a file that gets one line per update, with the rows that this process trained on. START: the number of this
start, also in these lines.
"""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate")
_SECONDS_TO_RECEIVE = 30.0


def main() -> int:
    """Run `python -m trainer_loop.run` with the fault."""
    from trainer_loop.cli.run import main as run

    if "CLAIM_SECONDS" in os.environ:
        from trainer_loop.record import run_lock as claim

        claim._SECONDS_TO_WAIT = float(os.environ["CLAIM_SECONDS"])
    if "RECORD" in os.environ:
        _record_rows(Path(os.environ["RECORD"]))
    once = Path(os.environ.get("FAULT_ONCE", ""))
    rank = os.environ.get("RANK", "0")
    has_fault = os.environ.get("FAULT_RANK", rank) == rank
    if "FAULT_AT" in os.environ and has_fault and not once.is_file():
        place, _, which = os.environ["FAULT_AT"].partition(":")
        PLACES[place](_Fault(os.environ.get("FAULT", "kill"), once), int(which or 1))
    return run()


class _Fault:
    """The fault. It happens at most once in a process."""

    def __init__(self, what: str, once: Path):
        self.what, _, self.argument = what.partition(":")
        self.once = once
        self.happened = False
        self.received = threading.Event()
        if self.what == "signal":
            from trainer_loop.runtime.preempt import Preemption

            _hook(Preemption, "receive", after=lambda *_: self.received.set())

    def happen(self) -> None:
        if self.happened:
            return
        self.happened = True
        if self.once.name:
            self.once.touch()
        getattr(self, self.what)()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def signal(self) -> None:
        os.kill(os.getpid(), getattr(signal, self.argument))
        assert self.received.wait(_SECONDS_TO_RECEIVE)

    def signal_group(self) -> None:
        """Signal the process and all its children, as a scheduler does."""
        os.killpg(0, getattr(signal, self.argument))

    def hang(self) -> None:
        """Block in a system call, so that Python runs no signal handler."""
        Path(self.argument).touch()
        os.read(os.pipe()[0], 1)

    def touch(self) -> None:
        Path(self.argument).touch()

    def shell(self) -> None:
        subprocess.run(shlex.split(self.argument), check=True)

    def console(self) -> None:
        """Break standard output and standard error; an appended `:1` or `:2` breaks only one of them."""
        kind, _, which = self.argument.partition(":")
        reader, writer = os.pipe()
        os.close(reader)
        broken = {"full": os.open("/dev/full", os.O_WRONLY), "gone": writer}
        for descriptor in (1, 2):
            if which in ("", str(descriptor)):
                os.dup2(broken[kind], descriptor)

    def clock(self) -> None:
        """Make the clock of the process jump by this number of seconds."""
        real, seconds = time.time, float(self.argument)
        time.time = lambda: real() + seconds  # type: ignore[assignment]


# -------------------------------------------------------------------------------------------------------- places


def _at_fit(fault: _Fault, _which: int) -> None:
    """When training starts."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "fit", before=lambda *_: fault.happen())


def _at_step(fault: _Fault, step: int) -> None:
    """In step `step` (from 1), after its gradients and before its update."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "clip_gradients", before=lambda loop, _: loop.train_step_number == step and fault.happen())
    _number_steps()


def _at_updated(fault: _Fault, step: int) -> None:
    """After the update of step `step`, before it is logged."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "train_step", after=lambda _, batch: batch.step + 1 == step and fault.happen())


def _at_evaluation(fault: _Fault, number: int) -> None:
    """In the `number`-th evaluation of this process, after its first microbatch."""
    from trainer_loop.data.loader import EvaluationLoader

    iterate, count = EvaluationLoader.__iter__, 0

    def hooked(loader: EvaluationLoader) -> Iterator[Any]:
        nonlocal count
        count += 1
        for position, microbatch in enumerate(iterate(loader)):
            if count == number and position == 1:
                fault.happen()
            yield microbatch

    EvaluationLoader.__iter__ = hooked  # type: ignore[method-assign]


def _at_half_checkpoint(fault: _Fault, step: int) -> None:
    """After weights and optimizer of the checkpoint are written to the temporary directory, before the rest is."""
    from trainer_loop.record import checkpoint_writer

    def is_target(path: Path, _value: Any) -> bool:
        return path.name == "state.json" and f"{step:08d}" in path.parent.name

    _hook(checkpoint_writer, "write_json", before=lambda path, value: is_target(path, value) and fault.happen())


def _at_part(fault: _Fault, step: int) -> None:
    """Before this process writes its tensors of the checkpoint."""
    from trainer_loop.record import checkpoint_writer

    def is_target(file: Path) -> bool:
        return f"{step:08d}" in file.parent.name

    _hook(checkpoint_writer, "save_file", before=lambda _, file, **__: is_target(file) and fault.happen())


def _at_unsealed(fault: _Fault, step: int) -> None:
    """After all files of the checkpoint are written except the manifest."""
    from trainer_loop.record import checkpoint_writer

    _hook(checkpoint_writer, "seal", before=lambda manifest: manifest["step"] == step and fault.happen())


def _at_unnamed(fault: _Fault, step: int) -> None:
    """After the checkpoint is complete, before it gets its final name."""
    from trainer_loop.record import checkpoint_writer

    _hook(
        checkpoint_writer.os, "replace", before=lambda _, new: Path(new).name == f"step-{step:08d}" and fault.happen()
    )


def _at_latest(fault: _Fault, step: int) -> None:
    """After the checkpoint has its name, while `latest` still points to the one before."""
    _before_link(fault, "latest", step)


def _at_best(fault: _Fault, step: int) -> None:
    """After the checkpoint has its name, while `best` still points to the previous best."""
    _before_link(fault, "best", step)


def _at_rotation(fault: _Fault, step: int) -> None:
    """After the save of `step`, when the first file of the oldest checkpoint is deleted."""
    from trainer_loop.record.checkpoint_writer import CheckpointWriter

    rotating = False

    def begin(_writer: CheckpointWriter, target: Path, *_: Any, **__: Any) -> None:
        nonlocal rotating
        rotating = target.name == f"step-{step:08d}"

    _hook(CheckpointWriter, "_clear_up", before=begin)
    _hook(os, "unlink", after=lambda *_, **__: rotating and fault.happen())


def _at_row(fault: _Fault, step: int) -> None:
    """After half a row of this step is written to metrics.jsonl."""
    from trainer_loop.record import logs

    def write_half(path: Path, text: str) -> None:
        if path.name == "metrics.jsonl" and json.loads(text.splitlines()[-1])["step"] == step:
            with path.open("a") as file:
                file.write(text[: len(text) // 2])
            fault.happen()

    _hook(logs, "append_text", before=write_half)


def _at_rewriting(fault: _Fault, _which: int) -> None:
    """Before metrics.jsonl is replaced by a copy without the rows that the resumed run repeats."""
    from trainer_loop.record import logs

    _hook(logs.os, "replace", before=lambda _, target: Path(target).name == "metrics.jsonl" and fault.happen())


def _at_restored(fault: _Fault, _which: int) -> None:
    """After the checkpoint is loaded, before anything is written."""
    from trainer_loop.record.checkpoint import Checkpointer

    _hook(Checkpointer, "load", after=lambda *_: fault.happen())


def _at_half_export(fault: _Fault, _which: int) -> None:
    """After the model is written to a temporary directory, before the file that marks the run as complete."""
    from trainer_loop.record import export

    _hook(export, "write_json", before=lambda *_: fault.happen())


def _at_exported(fault: _Fault, _which: int) -> None:
    """Directly after model/ is in its place."""
    from trainer_loop import outputs

    _hook(outputs, "export_model", after=lambda *_, **__: fault.happen())


def _at_tokenising(fault: _Fault, _which: int) -> None:
    """While texts are tokenised, with the cache locked."""
    from trainer_loop.data import tokenise

    _hook(tokenise, "encode_rows", before=lambda *_, **__: fault.happen())


def _at_worker(fault: _Fault, _which: int) -> None:
    """In a data loader worker, before its own preparations."""
    from torch.utils.data._utils import signal_handling

    _hook(signal_handling, "_set_worker_signal_handlers", after=fault.happen)


def _at_file(fault: _Fault, number: int) -> None:
    """Before the `number`-th change to a file or folder of the run directory."""
    root = next(argument for argument in sys.argv if argument.startswith("run_dir=")).removeprefix("run_dir=")
    root = str(Path(root).absolute())
    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            path, mode, flags = arguments
            writing = any(sign in mode for sign in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        elif event in _WRITING:
            path, writing = (arguments[1] if event in ("os.rename", "os.symlink") else arguments[0]), True
        else:
            return
        # Deletions inside a folder use names relative to it.
        inside = str(path).startswith(root) or event in ("os.remove", "os.rmdir")
        if writing and inside:
            changes += 1
            if changes == number:
                fault.happen()

    sys.addaudithook(count)


PLACES: dict[str, Callable[[_Fault, int], None]] = {
    name.removeprefix("_at_"): place for name, place in list(globals().items()) if name.startswith("_at_")
}


def _before_link(fault: _Fault, name: str, step: int) -> None:
    from trainer_loop.record import checkpoint_writer

    def is_target(link: Path, target: Path) -> bool:
        return link.name == name and target.name.endswith(f"{step:08d}")

    _hook(checkpoint_writer, "make_link", before=lambda link, target: is_target(link, target) and fault.happen())


def _number_steps() -> None:
    from trainer_loop import TrainingLoop

    def store_step(loop: Any, batch: Any) -> None:
        loop.train_step_number = batch.step + 1

    _hook(TrainingLoop, "train_step", before=store_step)


def _record_rows(path: Path) -> None:
    from trainer_loop import TrainingLoop

    start = int(os.environ["START"])

    def write(_loop: TrainingLoop, batch: Any) -> None:
        rows = [row for microbatch in batch.microbatches if not microbatch.is_dummy for row in microbatch.rows]
        entry = {"step": batch.step + 1, "start": start, "rank": int(os.environ.get("RANK", 0)), "rows": rows}
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    _hook(TrainingLoop, "train_step", after=write)


def _hook(
    owner: Any, name: str, *, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> None:
    """Call `before` or `after` at each call of owner.name, with its arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, hooked)


if __name__ == "__main__":
    sys.exit(main())
