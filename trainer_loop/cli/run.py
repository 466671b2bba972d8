"""`python -m trainer_loop.run config=imdb.yaml key=value ...`: config -> build -> fit -> exit code."""

import contextlib
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_loop.components import describe_own_line
from trainer_loop.errors import Diverged, Preempted, ProcessLost, UserError, displayed, in_one_line
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.run_lock import RunDirInUse, RunLock
from trainer_loop.runtime.host import prepare_environment, process_index_from_environment
from trainer_loop.runtime.imports import importing_torch
from trainer_loop.runtime.preempt import Preemption, catch_signals
from trainer_loop.runtime.quiet import quieten_loggers
from trainer_loop.runtime.streams import report, safe_streams

# Example values of columns that hold no text, for the printed predict command.
_EXAMPLES = {"image": "photo.jpg", "choices": "this | that", "tools": "[]"}
# Other processes wait for this long before they report an error, so that the launcher ends them after process 0.
_SECONDS_FOR_PROCESS_0 = 10.0
_SECONDS_AFTER_A_LOSS = 3.0  # shorter: process 0 may be on another machine, whose launcher cannot end this process
_PROCESSES = "trainer_loop.parallel.processes"  # importing it imports torch; before, there is no process group

if TYPE_CHECKING:
    from trainer_loop.config.fields import Config
    from trainer_loop.loop import TrainingLoop
    from trainer_loop.record.state import TrainState


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code. A `UserError` is reported line by line, without a traceback."""
    prepare_environment()
    quieten_loggers()
    with safe_streams(), catch_signals() as preemption:
        try:
            return _run(sys.argv[1:] if argv is None else argv, preemption)
        except UserError as error:
            _report_error(error)
            return error.exit_code
        except Preempted as stop:
            return stop.exit_code
        finally:
            if _PROCESSES in sys.modules:
                from trainer_loop.parallel.processes import leave_process_group

                leave_process_group()


def _report_error(error: UserError) -> None:
    """Print the problems of an error. Processes other than 0 wait first, so that each problem is printed once."""
    rank = process_index_from_environment()
    if rank > 0:
        time.sleep(_SECONDS_AFTER_A_LOSS if isinstance(error, ProcessLost) else _SECONDS_FOR_PROCESS_0)
    report(error, speaker=f"process {rank}: " if rank > 0 else "")


def _run(argv: list[str], preemption: Preemption) -> int:
    from trainer_loop.config.find import find_config
    from trainer_loop.config.load import read_config, split_arguments

    name, overrides, help_topic = split_arguments(argv)
    if help_topic is not None:
        print(_help(help_topic))
        return 0
    if name is not None:
        find_config(name)  # fails fast for a wrong name
    reading = read_config(name, overrides)
    config = reading.config
    lock = RunLock(RunDir(config.run_dir), enabled=process_index_from_environment() == 0 and not config.dry_run)
    with _writing_status(lock) as current_state:
        lock.acquire()
        if reading.key_problems:  # report these before torch is imported
            raise UserError(reading.problems)
        _train(config, reading.conflicts, preemption=preemption, lock=lock, current_state=current_state)
    return 0


def _help(topic: str) -> str:
    """Return the help for a key or section, or the whole help for an empty topic."""
    if not topic:
        from trainer_loop.config.reference import help_text

        return help_text()
    from trainer_loop.cli.help import help_about  # imports torch and transformers, which takes seconds

    return help_about(topic)


def _train(
    config: "Config", problems: list[str], *, preemption: Preemption, lock: RunLock, current_state: "list[TrainState]"
) -> None:
    """Build, restore and fit. Adds the state that `fit` advances to `current_state`."""
    with importing_torch():  # takes seconds
        from trainer_loop.assembly import build
        from trainer_loop.description import describe_plan
        from trainer_loop.parallel.processes import on_process_0

    loop = build(config, problems=problems, preemption=preemption)
    loop.output.plan_lines = describe_plan(config, loop)
    for line in loop.output.plan_lines:
        loop.console.say(line)
    if config.dry_run:
        loop.console.say(
            "dry run: everything is in order; nothing was trained, and nothing written but caches of rows and tokens"
        )
        return
    on_process_0(loop.accelerator, lock.make)  # from here on no other run changes files in the run directory
    if _is_complete(config, loop):
        loop.console.say(
            f"{config.run_dir} is complete: {loop.options.num_steps:,} steps; nothing was changed "
            "(on a finished run evaluate, checkpoint, log, train.patience and data.test have no effect)"
        )
        loop.output.publish(preemption)  # completes the push of a run that was killed while it pushed
        if not lock.run_dir.status.exists():  # the run was killed after its export
            lock.end("finished", exit_code=0, step=loop.options.num_steps)
            loop.output.write_report("finished")
    else:
        current_state.append(loop.restore())
        on_process_0(loop.accelerator, lock.begin)
        try:
            loop.fit(current_state[0])
        except Preempted as stop:
            _print_report_path(config, loop)
            loop.console.say(str(stop))
            raise
        except UserError as error:
            for problem in error.problems:
                loop.console.log(f"error: {problem}")
            if isinstance(error, Diverged):
                loop.output.write_report("diverged")
                _print_report_path(config, loop)
            raise
        except Exception as error:
            user_line = describe_own_line(error)
            if preemption.signalled:  # the signal may have ended child processes, such as compilers of a step
                traceback.print_exc()  # on every process; the lines below appear on process 0 only
                reason = user_line or in_one_line(error)
                loop.console.say(
                    f"preempted by {preemption.reason}; what was under way was lost ({reason}); "
                    f"{loop.checkpointer.describe_newest()}: the same command goes on from there"
                )
                raise Preempted from error
            if user_line is not None:
                loop.console.warn(f"ended by {user_line}")  # also in train.log; the traceback follows
            raise
        finally:
            if config.log.trackers:
                loop.accelerator.end_training()
    _print_next_commands(config, loop)


def _is_complete(config: "Config", loop: "TrainingLoop") -> bool:
    """Return whether the run directory holds the model of this run, trained for at least this many steps.

    Raises:
        UserError: The directory holds a model that training would overwrite: of another run, or without a checkpoint
            to continue from.
    """
    from trainer_loop.parallel.processes import assert_same_on_all_processes
    from trainer_loop.record.checkpoint_files import describe_changes, find_changes, list_checkpoints, use_current_names
    from trainer_loop.record.export import ExportRecord

    run_dir = RunDir(config.run_dir)
    record = ExportRecord.read(run_dir.model)
    assert_same_on_all_processes(loop.accelerator, record and vars(record), what=f"the run directory {config.run_dir}")
    if record is None:
        return False
    checkpointer = loop.checkpointer
    now = checkpointer.config | checkpointer.run_facts
    before = use_current_names(record.plan, now)
    changes = find_changes(before, {name: now.get(name) for name in before})
    identifying = checkpointer.run_facts.keys() - set(checkpointer.resume_anyway)
    conflicts = {name: change for name, change in changes.items() if name in identifying}
    if conflicts:
        raise UserError(
            f"run_dir: {config.run_dir} holds the model of another run ({describe_changes(conflicts)}); choose "
            "another, or delete it"
        )
    if config.resume != "never" and record.num_steps >= loop.options.num_steps:
        if changes:
            raise UserError(
                f"run_dir: {config.run_dir} is complete, so this has no effect: {describe_changes(changes)}; choose "
                "another, or raise train.epochs to go on"
            )
        return True
    if not list_checkpoints(run_dir):
        raise UserError(
            f"run_dir: {config.run_dir} holds the model of a run of {record.num_steps:,} steps and no checkpoint "
            "to go on from; choose another run_dir, or delete this one"
        )
    return False


@contextlib.contextmanager
def _writing_status(lock: RunLock) -> "Iterator[list[TrainState]]":
    """Write status.json when the block ends, and release the lock.

    Yields:
        An empty list. The block adds the state of the run to it, so that status.json can report the step.
    """
    current_state: list[TrainState] = []
    ended, exit_code = "error", 1
    in_use = False
    try:
        yield current_state
        ended, exit_code = "finished", 0
    except Preempted as stop:
        ended, exit_code = "preempted", stop.exit_code
        raise
    except UserError as error:
        ended, exit_code = "diverged" if isinstance(error, Diverged) else "error", error.exit_code
        in_use = isinstance(error, RunDirInUse)
        raise
    except Exception as error:
        if _PROCESSES not in sys.modules:
            raise
        from trainer_loop.parallel.processes import find_lost_processes

        process_lost = find_lost_processes(error)
        if process_lost is None:
            raise
        exit_code = process_lost.exit_code
        raise process_lost from error
    finally:
        if not in_use:
            lock.end(ended, exit_code=exit_code, step=current_state[0].step if current_state else None)
        lock.release()


def _print_report_path(config: "Config", loop: "TrainingLoop") -> None:
    path = RunDir(config.run_dir).report
    if config.report and path.is_file():
        loop.console.say(f"report: {path}")


def _print_next_commands(config: "Config", loop: "TrainingLoop") -> None:
    """Print where the model is, and the commands to predict with it and to push it."""
    from trainer_loop.data.columns import bind_columns
    from trainer_loop.record.hub_access import push_command
    from trainer_loop.tasks.find import list_tasks, load_task

    run_dir = RunDir(config.run_dir)
    _print_report_path(config, loop)
    loop.console.say(f"model: {run_dir.model}")
    if config.task.name in list_tasks():  # `predict` loads no custom tasks
        declared = load_task(config.task.name).columns
        texts = bind_columns(declared, config.data.columns, task=config.task.name).without_targets().names
        sentences = cycle(loop.task.example_texts)
        arguments = " ".join(
            f'{"text" if kind == "words" else own}="{_EXAMPLES.get(kind) or next(sentences)}"'
            for own, kind in ((own, declared[own].kind) for own in texts)
        )
        command = f"{_python()} -m trainer_loop.predict model={shlex.quote(config.run_dir)}"
        trust = " trust_remote_code=true" if config.model.trust_remote_code else ""
        loop.console.say(f"predict: {command} {arguments}{trust}")
    if config.hub.push is not None and config.hub.every == "never":
        loop.console.say(f"push: {push_command(config.run_dir, config.hub.push)}")


def _python() -> str:
    """Return the shell command of this Python interpreter: `python` if that starts it, else its path."""
    executable = Path(sys.executable).absolute()
    is_python = Path(shutil.which("python") or "").absolute() == executable
    return "python" if is_python else shlex.quote(displayed(executable))
