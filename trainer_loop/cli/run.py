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

# Of columns that hold no text, in the printed command.
_EXAMPLES = {"image": "photo.jpg", "choices": "this | that", "tools": "[]"}
_SECONDS_FOR_PROCESS_0 = 10.0  # a launcher ends the others well within, on a busy machine too
_SECONDS_WHERE_IT_IS_LOST = 3.0  # process 0 may be on another machine, whose launcher cannot end this one
_PROCESSES = "trainer_loop.parallel.processes"  # a module that imports torch; until then there is no process group

if TYPE_CHECKING:
    from trainer_loop.config.fields import Config
    from trainer_loop.loop import TrainingLoop
    from trainer_loop.record.state import TrainState


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. What a user can mend is told in lines, without a traceback."""
    prepare_environment()
    quieten_loggers()
    with safe_streams(), catch_signals() as preemption:
        try:
            return _run(sys.argv[1:] if argv is None else argv, preemption)
        except UserError as error:
            _tell(error)
            return error.exit_code
        except Preempted as stop:
            return stop.exit_code
        finally:
            if _PROCESSES in sys.modules:
                from trainer_loop.parallel.processes import leave_process_group

                leave_process_group()


def _tell(error: UserError) -> None:
    """One line a problem. Process 0 speaks first; others only where it did not end, and take them along, at once."""
    rank = process_index_from_environment()
    if rank > 0:
        time.sleep(_SECONDS_WHERE_IT_IS_LOST if isinstance(error, ProcessLost) else _SECONDS_FOR_PROCESS_0)
    report(error, speaker=f"process {rank}: " if rank > 0 else "")


def _run(argv: list[str], preemption: Preemption) -> int:
    from trainer_loop.config.find import find_config
    from trainer_loop.config.load import read_config, split_arguments

    name, overrides, asked = split_arguments(argv)
    if asked is not None:
        print(_help(asked))
        return 0
    if name is not None:
        find_config(name)  # told at once, without the seconds that the rest takes
    reading = read_config(name, overrides)
    config = reading.config
    claim = RunLock(RunDir(config.run_dir), enabled=process_index_from_environment() == 0 and not config.dry_run)
    with _tell_scripts_how_it_ends(claim) as state_so_far:
        claim.acquire()
        if reading.key_problems:  # told at once, before torch is imported
            raise UserError(reading.problems)
        _train(config, reading.conflicts, preemption=preemption, claim=claim, state_so_far=state_so_far)
    return 0


def _help(asked: str) -> str:
    """asked: a key or section; empty: everything."""
    if not asked:
        from trainer_loop.config.reference import help_text

        return help_text()
    from trainer_loop.cli.help import help_about  # torch and transformers: seconds

    return help_about(asked)


def _train(
    config: "Config", problems: list[str], *, preemption: Preemption, claim: RunLock, state_so_far: "list[TrainState]"
) -> None:
    """Build, restore and fit; puts the state that `fit` advances into `state_so_far`."""
    with importing_torch():  # seconds
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
    on_process_0(loop.accelerator, claim.make)  # what is read there from here on, nobody else changes
    if _is_complete(config, loop):
        loop.console.say(
            f"{config.run_dir} is complete: {loop.options.num_steps:,} steps; nothing was changed "
            "(on a finished run evaluate, checkpoint, log, train.patience and data.test have no effect)"
        )
        loop.output.publish(preemption)  # what a run that was killed in its push has left undone
        if not claim.run_dir.status.exists():  # killed after its export
            claim.end("finished", exit_code=0, step=loop.options.num_steps)
            loop.output.write_report("finished")
    else:
        state_so_far.append(loop.restore())
        on_process_0(loop.accelerator, claim.begin)
        try:
            loop.fit(state_so_far[0])
        except Preempted as stop:
            _tell_report(config, loop)
            loop.console.say(str(stop))
            raise
        except UserError as error:
            for problem in error.problems:
                loop.console.log(f"error: {problem}")
            if isinstance(error, Diverged):
                loop.output.write_report("diverged")
                _tell_report(config, loop)
            raise
        except Exception as error:
            told = describe_own_line(error)
            if preemption.signalled:  # the signal went to all processes of the job: to the compilers of a step, too
                traceback.print_exc()  # on every process: only the first one says more
                loop.console.say(
                    f"preempted by {preemption.reason}; what was under way was lost ({told or in_one_line(error)}); "
                    f"{loop.checkpointer.describe_newest()}: the same command goes on from there"
                )
                raise Preempted from error
            if told is not None:
                loop.console.warn(f"ended by {told}")  # in train.log too; its traceback follows
            raise
        finally:
            if config.log.trackers:
                loop.accelerator.end_training()
    _tell_how_to_predict(config, loop)


def _is_complete(config: "Config", loop: "TrainingLoop") -> bool:
    """Whether the run directory holds the model of this very run, trained for at least this many steps.

    Raises UserError where it holds the model of another run, or one with nothing to go on from: it would be lost.
    """
    from trainer_loop.parallel.processes import assert_same_on_all_processes
    from trainer_loop.record.checkpoint_files import describe_changes, find_changes, list_checkpoints, use_current_names
    from trainer_loop.record.export import ExportRecord

    run_dir = RunDir(config.run_dir)
    exported = ExportRecord.read(run_dir.model)
    assert_same_on_all_processes(
        loop.accelerator, exported and vars(exported), what=f"the run directory {config.run_dir}"
    )
    if exported is None:
        return False
    checkpointer = loop.checkpointer
    now = checkpointer.config | checkpointer.run_facts
    before = use_current_names(exported.plan, now)
    changes = find_changes(before, {name: now.get(name) for name in before})
    must_stay = checkpointer.run_facts.keys() - set(checkpointer.resume_anyway)
    fixed = {name: change for name, change in changes.items() if name in must_stay}
    if fixed:
        raise UserError(
            f"run_dir: {config.run_dir} holds the model of another run ({describe_changes(fixed)}); choose another, or "
            "delete it"
        )
    if config.resume != "never" and exported.num_steps >= loop.options.num_steps:
        if changes:
            raise UserError(
                f"run_dir: {config.run_dir} is complete, so this has no effect: {describe_changes(changes)}; choose "
                "another, or raise train.epochs to go on"
            )
        return True
    if not list_checkpoints(run_dir):
        raise UserError(
            f"run_dir: {config.run_dir} holds the model of a run of {exported.num_steps:,} steps and no checkpoint "
            "to go on from; choose another run_dir, or delete this one"
        )
    return False


@contextlib.contextmanager
def _tell_scripts_how_it_ends(claim: RunLock) -> "Iterator[list[TrainState]]":
    """Write status.json, which is not there until then, at the end. Yields a list for the state of the run."""
    state_so_far: list[TrainState] = []
    ended, exit_code = "error", 1
    in_use = False
    try:
        yield state_so_far
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

        lost = find_lost_processes(error)
        if lost is None:
            raise
        exit_code = lost.exit_code
        raise lost from error
    finally:
        if not in_use:
            claim.end(ended, exit_code=exit_code, step=state_so_far[0].step if state_so_far else None)
        claim.release()


def _tell_report(config: "Config", loop: "TrainingLoop") -> None:
    path = RunDir(config.run_dir).report
    if config.report and path.is_file():
        loop.console.say(f"report: {path}")


def _tell_how_to_predict(config: "Config", loop: "TrainingLoop") -> None:
    from trainer_loop.data.columns import bind_columns
    from trainer_loop.record.hub_access import push_command
    from trainer_loop.tasks.find import list_tasks, load_task

    run_dir = RunDir(config.run_dir)
    _tell_report(config, loop)
    loop.console.say(f"model: {run_dir.model}")
    if config.task.name in list_tasks():  # predict knows no others
        declared = load_task(config.task.name).columns
        texts = bind_columns(declared, config.data.columns, task=config.task.name).without_targets().names
        sentences = cycle(loop.task.example_texts)
        given = " ".join(
            f'{"text" if kind == "words" else own}="{_EXAMPLES.get(kind) or next(sentences)}"'
            for own, kind in ((own, declared[own].kind) for own in texts)
        )
        command = f"{_python()} -m trainer_loop.predict model={shlex.quote(config.run_dir)}"
        trust = " trust_remote_code=true" if config.model.trust_remote_code else ""
        loop.console.say(f"predict: {command} {given}{trust}")
    if config.hub.push is not None and config.hub.every == "never":
        loop.console.say(f"push: {push_command(config.run_dir, config.hub.push)}")


def _python() -> str:
    """How to call this very interpreter: `python` where that is it, else its path."""
    executable = Path(sys.executable).absolute()
    is_python = Path(shutil.which("python") or "").absolute() == executable
    return "python" if is_python else shlex.quote(displayed(executable))
