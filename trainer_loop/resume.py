"""Restores a run from its checkpoints: at the start, where the config may have changed, and at the end."""

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

Changes = Mapping[str, tuple[Any, Any]]  # config key -> its value in the checkpoint, and its value now

# If one of these keys changes, metrics before and after the resume cannot be compared.
_EVALUATION_KEYS = ("data.validation", "data.limit.validation", "evaluate.metrics")


def restore_run(
    checkpointer: Checkpointer, engine: Engine, data: RunData, options: LoopOptions, console: Console
) -> TrainState:
    """Restore weights, optimizer, scheduler and position in `data` from the checkpoint that `options.resume` selects.

    Returns:
        The state of the checkpoint, or the initial state if there is none.

    Raises:
        UserError: The checkpoint does not fit this run.
    """
    optimizer, scheduler = engine.optimizer, engine.scheduler
    planned_groups = read_groups(optimizer)
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
        args = {name for arguments in changes.get("optimizer.args", ()) for name in arguments or ()}
        replan(optimizer, scheduler, groups=planned_groups, args=args, step=engine.schedule_step)
    # Metrics of averaged weights cannot be compared with those of the weights themselves.
    starts_or_ends_average = None in changes.get("ema.decay", ())
    metrics_changed = starts_or_ends_average or any(name.startswith(_EVALUATION_KEYS) for name in changes)
    if metrics_changed or state.best_by not in (None, options.best):
        state.forget_best()
    if metrics_changed or state.patience_by != options.patience_metric:
        state.restart_patience()
    if state.max_tokens is not None and "batch.max_tokens" not in changes:
        data.limit_tokens(state.max_tokens)
        console.say(f"microbatches of at most {state.max_tokens:,} padded tokens, since more did not fit")
    if state.stream is not None:
        data.train.load_state_dict(state.stream)
    return state


def is_evaluation_pending(state: TrainState, options: LoopOptions) -> bool:
    """Return whether an evaluation is due at the step of `state` and has not been done."""
    if state.evaluated_step == state.step:
        return False
    if state.step == 0:
        return options.evaluate_at_start
    return options.is_due(options.evaluate_every, state.step, is_last=state.step == state.num_steps)


def load_weights_to_export(
    state: TrainState, engine: Engine, checkpointer: Checkpointer, best: str | None, console: Console
) -> bool:
    """Load the best weights into the model; without them, the averaged weights if the run keeps an average.

    Returns:
        Whether the model still has the weights of the last step.
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


def warn_if_not_restored(run_dir: RunDir, console: Console) -> bool:
    """Warn that the model was not restored if the run directory has checkpoints; return whether it has."""
    has_checkpoints = bool(list_checkpoints(run_dir))
    if has_checkpoints:
        console.warn(
            f"the model has its initial weights; loop.restore() loads those of the newest checkpoint in "
            f"{run_dir.root}, and fit() trains"
        )
    return has_checkpoints


def _check_schedule(scheduler: LRScheduler, state: TrainState, changes: Changes, num_steps: int) -> None:
    """Refuse changes of a scheduler that is not a pure function of the step."""
    changed = sorted(name for name in changes if name.startswith("scheduler."))
    if changed and not isinstance(scheduler, LambdaLR):
        raise UserError(
            f"{', '.join(changed)}: a {type(scheduler).__name__} keeps a state of its own and cannot be "
            "changed, or added, when a run resumes; restore the previous settings, or choose another run_dir"
        )
    if state.num_steps != num_steps and hasattr(scheduler, "total_steps"):
        raise UserError(
            f"scheduler.name: a {type(scheduler).__name__} that was planned for {state.num_steps:,} steps "
            f"cannot become one of {num_steps:,}; keep the previous length, or choose another run_dir"
        )
