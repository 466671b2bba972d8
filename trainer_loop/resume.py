"""What a run takes from its checkpoints: at its start, where things may have changed since, and at its end."""

from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer_loop.data.run_data import RunData
from trainer_loop.engine import Engine
from trainer_loop.errors import UserError
from trainer_loop.optim.replan import read_groups, replan
from trainer_loop.options import LoopOptions
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.checkpoint_files import list_checkpoints
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.state import TrainState
from trainer_loop.selection import find_metric

Changes = Mapping[str, tuple[Any, Any]]  # key -> what it was and what it is

_SCORED_ON = ("data.validation", "data.limit.validation", "evaluate.metrics")  # where these change, the best is another


def restore_run(
    checkpointer: Checkpointer, engine: Engine, data: RunData, options: LoopOptions, console: Console
) -> TrainState:
    """Restore weights, optimizer, schedule and position in `data` from the checkpoint that `options.resume` names.

    Returns where the run stands: at the checkpoint, or at its beginning where there is none.

    Raises:
        UserError: where the checkpoint is not of this run.
    """
    optimizer, scheduler = engine.optimizer, engine.scheduler
    planned = read_groups(optimizer)
    state = checkpointer.load(options.resume)
    if state is None:
        return TrainState(num_steps=options.num_steps)
    changes = checkpointer.changes
    engine.schedule_step = state.step if state.schedule_step is None else state.schedule_step
    if state.step > options.num_steps:
        raise UserError(
            f"the checkpoint is at step {state.step:,} and the run ends at {options.num_steps:,}; "
            "raise train.epochs or train.steps, or choose another run_dir"
        )
    _check_schedule(scheduler, state, changes, options.num_steps)
    if state.num_steps != options.num_steps or any(name.startswith(("optimizer.", "scheduler.")) for name in changes):
        args = {name for given in changes.get("optimizer.args", ()) for name in given or ()}
        replan(optimizer, scheduler, groups=planned, args=args, step=engine.schedule_step)
    # A new average of the weights gives other metrics than before, too.
    has_new_average = None in changes.get("ema.decay", ())
    is_scored_otherwise = has_new_average or any(name.startswith(_SCORED_ON) for name in changes)
    if is_scored_otherwise or state.best_by not in (None, options.best):
        state.forget_best()
    if is_scored_otherwise or state.patience_by != options.patience_metric:
        state.restart_patience()
    if state.max_tokens is not None and "batch.max_tokens" not in changes:
        data.limit_tokens(state.max_tokens)
        console.say(f"microbatches of at most {state.max_tokens:,} padded tokens, since more did not fit")
    if state.stream is not None:
        data.train.load_state_dict(state.stream)
    return state


def is_evaluation_pending(state: TrainState, options: LoopOptions) -> bool:
    """Whether the run was saved, or begins, before an evaluation that was due."""
    if state.evaluated_step == state.step:
        return False
    if state.step == 0:
        return options.evaluate_at_start
    return options.is_due(options.evaluate_every, state.step, is_last=state.step == state.num_steps)


def take_weights_to_export(
    state: TrainState, engine: Engine, checkpointer: Checkpointer, best: str | None, console: Console
) -> bool:
    """Give the model the best weights where there is a best, and the averages where there are averages.

    Returns whether it has the weights that the last step left.
    """
    if state.best_step is not None and state.best_step != state.step:
        fault = checkpointer.load_weights(engine.bare_model, state.best_step)
        if fault is None:
            value = find_metric(state.metrics, str(best), place="checkpoint.best")
            console.say(f"the best weights are those of step {state.best_step:,}: {best} {value:.4g}")
            return False
        console.warn(f"the best weights, of step {state.best_step:,}, are lost: {fault}; the last are taken")
        state.forget_best()
    if engine.averaged_weights is not None:
        engine.averaged_weights.copy_to_model()
    return engine.averaged_weights is None


def warn_of_checkpoints(run_dir: RunDir, console: Console) -> bool:
    """Warn where a run directory holds weights that were trained and not restored; returns whether it does."""
    found = bool(list_checkpoints(run_dir))
    if found:
        console.warn(
            f"these are the weights that the run begins with; loop.restore() takes those of its newest checkpoint "
            f"in {run_dir.root}, fit() trains"
        )
    return found


def _check_schedule(scheduler: LRScheduler, state: TrainState, changes: Changes, num_steps: int) -> None:
    """Only a schedule that is a function of the step can be changed, or be given another length."""
    changed = sorted(name for name in changes if name.startswith("scheduler."))
    if changed and not isinstance(scheduler, LambdaLR):
        raise UserError(
            f"{', '.join(changed)}: a {type(scheduler).__name__} has a memory of its own and cannot be "
            "changed, or taken up, when a run goes on; give what the run was begun with, or choose another run_dir"
        )
    if state.num_steps != num_steps and hasattr(scheduler, "total_steps"):
        raise UserError(
            f"scheduler.name: a {type(scheduler).__name__} that was planned for {state.num_steps:,} steps "
            f"cannot become one of {num_steps:,}; give the length the run was begun with, or choose another "
            "run_dir"
        )
