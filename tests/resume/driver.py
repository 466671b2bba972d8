"""The command with a fault in it: at the place that FAULT_AT names, the process does to itself what FAULT says.

    FAULT_AT=step:5 FAULT=kill python tests/resume/driver.py config=quickstart.yaml

FAULT_RANK: only this process of several has the fault. FAULT_ONCE: a file; where it exists there is no fault, and the
fault makes it. RECORD: a file that gets a line for every update, with the rows this process trained on, and with START,
the number of this start.
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
    """As `python -m trainer_loop.run`."""
    from trainer_loop.cli.run import main as run

    if "CLAIM_SECONDS" in os.environ:
        from trainer_loop.record import run_lock as claim

        claim._SECONDS_TO_WAIT = float(os.environ["CLAIM_SECONDS"])
    if "RECORD" in os.environ:
        _record_rows(Path(os.environ["RECORD"]))
    once = Path(os.environ.get("FAULT_ONCE", ""))
    rank = os.environ.get("RANK", "0")
    mine = os.environ.get("FAULT_RANK", rank) == rank
    if "FAULT_AT" in os.environ and mine and not once.is_file():
        place, _, which = os.environ["FAULT_AT"].partition(":")
        PLACES[place](_Fault(os.environ.get("FAULT", "kill"), once), int(which or 1))
    return run()


class _Fault:
    """What happens, at most once in a process."""

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
        """As a scheduler does it: to the process and all that it has started."""
        os.killpg(0, getattr(signal, self.argument))

    def hang(self) -> None:
        """Where Python runs no signal handler."""
        Path(self.argument).touch()
        os.read(os.pipe()[0], 1)

    def touch(self) -> None:
        Path(self.argument).touch()

    def shell(self) -> None:
        subprocess.run(shlex.split(self.argument), check=True)

    def console(self) -> None:
        """Standard output and standard error can no longer be written; with `1` or `2` behind it only one of them."""
        kind, _, which = self.argument.partition(":")
        reader, writer = os.pipe()
        os.close(reader)
        broken = {"full": os.open("/dev/full", os.O_WRONLY), "gone": writer}
        for descriptor in (1, 2):
            if which in ("", str(descriptor)):
                os.dup2(broken[kind], descriptor)

    def clock(self) -> None:
        """The clock of the machine jumps by so many seconds."""
        real, seconds = time.time, float(self.argument)
        time.time = lambda: real() + seconds  # type: ignore[assignment]


# -------------------------------------------------------------------------------------------------------- places


def _at_fit(fault: _Fault, _which: int) -> None:
    """When training begins."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "fit", before=lambda *_: fault.happen())


def _at_step(fault: _Fault, step: int) -> None:
    """In step `step` (from 1): its gradients are there and the update is not."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "clip_gradients", before=lambda loop, _: loop.train_step_number == step and fault.happen())
    _number_steps()


def _at_updated(fault: _Fault, step: int) -> None:
    """After the update of step `step`, of which nothing is noted yet."""
    from trainer_loop import TrainingLoop

    _hook(TrainingLoop, "train_step", after=lambda _, batch: batch.step + 1 == step and fault.happen())


def _at_evaluation(fault: _Fault, number: int) -> None:
    """In the `number`-th evaluation of this process, after its first microbatch."""
    from trainer_loop.data.loader import EvaluationLoader

    iterate, begun = EvaluationLoader.__iter__, 0

    def hooked(loader: EvaluationLoader) -> Iterator[Any]:
        nonlocal begun
        begun += 1
        for position, microbatch in enumerate(iterate(loader)):
            if begun == number and position == 1:
                fault.happen()
            yield microbatch

    EvaluationLoader.__iter__ = hooked  # type: ignore[method-assign]


def _at_half_checkpoint(fault: _Fault, step: int) -> None:
    """Weights and optimizer of the checkpoint are written, beside; the rest is not."""
    from trainer_loop.record import checkpoint_writer

    def is_it(path: Path, _value: Any) -> bool:
        return path.name == "state.json" and f"{step:08d}" in path.parent.name

    _hook(checkpoint_writer, "write_json", before=lambda path, value: is_it(path, value) and fault.happen())


def _at_part(fault: _Fault, step: int) -> None:
    """The checkpoint has no tensors of this process yet."""
    from trainer_loop.record import checkpoint_writer

    def is_it(file: Path) -> bool:
        return f"{step:08d}" in file.parent.name

    _hook(checkpoint_writer, "save_file", before=lambda _, file, **__: is_it(file) and fault.happen())


def _at_unsealed(fault: _Fault, step: int) -> None:
    """All files of the checkpoint are written; its manifest is not."""
    from trainer_loop.record import checkpoint_writer

    _hook(checkpoint_writer, "seal", before=lambda manifest: manifest["step"] == step and fault.happen())


def _at_unnamed(fault: _Fault, step: int) -> None:
    """The checkpoint is complete and has not its name yet."""
    from trainer_loop.record import checkpoint_writer

    _hook(
        checkpoint_writer.os, "replace", before=lambda _, new: Path(new).name == f"step-{step:08d}" and fault.happen()
    )


def _at_latest(fault: _Fault, step: int) -> None:
    """The checkpoint has its name; `latest` still means the one before."""
    _before_link(fault, "latest", step)


def _at_best(fault: _Fault, step: int) -> None:
    """The checkpoint has its name; `best` still means the best before."""
    _before_link(fault, "best", step)


def _at_rotation(fault: _Fault, step: int) -> None:
    """After the save of `step`, when the first file of the oldest checkpoint is gone."""
    from trainer_loop.record.checkpoint_writer import CheckpointWriter

    rotating = False

    def begin(_writer: CheckpointWriter, target: Path, *_: Any, **__: Any) -> None:
        nonlocal rotating
        rotating = target.name == f"step-{step:08d}"

    _hook(CheckpointWriter, "_clear_up", before=begin)
    _hook(os, "unlink", after=lambda *_, **__: rotating and fault.happen())


def _at_row(fault: _Fault, step: int) -> None:
    """Half a row of this step is in metrics.jsonl."""
    from trainer_loop.record import logs

    def write_half(path: Path, text: str) -> None:
        if path.name == "metrics.jsonl" and json.loads(text.splitlines()[-1])["step"] == step:
            with path.open("a") as file:
                file.write(text[: len(text) // 2])
            fault.happen()

    _hook(logs, "append_text", before=write_half)


def _at_rewriting(fault: _Fault, _which: int) -> None:
    """What the resumed run does again is taken out of metrics.jsonl, beside it."""
    from trainer_loop.record import logs

    _hook(logs.os, "replace", before=lambda _, target: Path(target).name == "metrics.jsonl" and fault.happen())


def _at_restored(fault: _Fault, _which: int) -> None:
    """The checkpoint is loaded and nothing is written yet."""
    from trainer_loop.record.checkpoint import Checkpointer

    _hook(Checkpointer, "load", after=lambda *_: fault.happen())


def _at_half_export(fault: _Fault, _which: int) -> None:
    """The model is written, beside; what says that the run is complete is not."""
    from trainer_loop.record import export

    _hook(export, "write_json", before=lambda *_: fault.happen())


def _at_exported(fault: _Fault, _which: int) -> None:
    """model/ is in its place, and nothing came after."""
    from trainer_loop import outputs

    _hook(outputs, "export_model", after=lambda *_, **__: fault.happen())


def _at_tokenising(fault: _Fault, _which: int) -> None:
    """Inside the lock on the cache."""
    from trainer_loop.data import tokenise

    _hook(tokenise, "encode_rows", before=lambda *_, **__: fault.happen())


def _at_worker(fault: _Fault, _which: int) -> None:
    """In a process that loads data, before it has come to its own preparations."""
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
        # A folder is emptied by names relative to it.
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

    def is_it(link: Path, target: Path) -> bool:
        return link.name == name and target.name.endswith(f"{step:08d}")

    _hook(checkpoint_writer, "point", before=lambda link, target: is_it(link, target) and fault.happen())


def _number_steps() -> None:
    from trainer_loop import TrainingLoop

    def note(loop: Any, batch: Any) -> None:
        loop.train_step_number = batch.step + 1

    _hook(TrainingLoop, "train_step", before=note)


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
    """Call `before` or `after` with the arguments of owner.name whenever that is called."""
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
