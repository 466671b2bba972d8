"""From the config to a loop. Beside what judges the config, this is all that knows both it and the components."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from trainer_loop.components import check_parameters, fingerprint_own, full_name, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.load import flatten, public_values, values_of, write_resolved
from trainer_loop.config.named_sets import parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.loader import EvaluationLoader, StepLoader, TrainLoader
from trainer_loop.data.stream import StreamLoader
from trainer_loop.data.tokens import TokenisedSplit, describe_tokenizer
from trainer_loop.errors import UserError
from trainer_loop.judge.components import adapter_of, metric_entries
from trainer_loop.judge.judge import judge
from trainer_loop.judge.parts import Given, Parts
from trainer_loop.judge.rows import check_given_rows, prepare_rows
from trainer_loop.loop import TrainingLoop
from trainer_loop.metrics.load import load_metrics
from trainer_loop.models.adapters import add_adapter, merge_adapter
from trainer_loop.models.config import count_tokens, drops_layers, find_text_config
from trainer_loop.models.embedding_noise import use_embedding_noise
from trainer_loop.models.loading import count_weights, describe_frozen, make_model
from trainer_loop.models.packing import use_packing
from trainer_loop.models.trials import (
    Reach,
    can_answer,
    find_reach,
    freeze_unused,
    make_row,
    make_rows,
    pad_rows,
    try_padding,
)
from trainer_loop.ops.attention import describe_attention_dropout, use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.optim.ema import Ema
from trainer_loop.optim.groups import (
    GroupRule,
    ParameterGroup,
    check_patterns,
    describe_groups,
    freeze,
    make_groups,
)
from trainer_loop.optim.optimizers import make_optimizer, takes_hidden_matrices_apart
from trainer_loop.optim.schedule_free import ScheduleFreeAverages, is_schedule_free
from trainer_loop.optim.schedules import count_steps, describe_warmup, draw_schedule, follows_metric, make_scheduler
from trainer_loop.parallel.processes import (
    assert_same_on_all_processes,
    make_accelerator,
    process_index_from_environment,
)
from trainer_loop.publishing import describe_model, make_publisher
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.export import ExportRecord, export_model
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.predictions import write_predictions
from trainer_loop.record.run_dir import RunDir, describe_environment, describe_refusal, write_json
from trainer_loop.record.state import TrainState
from trainer_loop.record.trackers import start_trackers
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget
from trainer_loop.runtime.compiler import compile_model
from trainer_loop.runtime.host import expect_many_shapes
from trainer_loop.runtime.preempt import Preemption
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.runtime.randomness import seed_everything
from trainer_loop.runtime.shares import take_share
from trainer_loop.tasks.shipped import TASKS
from trainer_loop.tasks.task import RowTask, TextTask

# Keys that may change on resume but not on a run that is complete, where they would have no effect; see `run`.
_LENGTH = ("train.epochs", "train.steps")
_TUNED = [name for name, key in KEYS.items() if key.on_resume == "planned anew" and name not in _LENGTH]
_WORKERS_BESIDE_A_GPU = 2
_COMPUTE_TYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_STEPS_LOOKED_AT = 200  # of an epoch, to tell how it is cut
_OF_A_MODEL_MADE_HERE = ("model.overrides", "model.from_scratch", "model.attention", "model.gradient_checkpointing")
_OF_AN_OPTIMIZER_MADE_HERE = (
    *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.args", "optimizer.layer_decay"),
    "optimizer.groups",
)
_WAYS_TO_COMPUTE = ("loss", "predict", "loss_and_predict")  # methods of a task that call its model
_NAMES_OF_CODE = ("task.name", "model.type", "loop.name", "loss.name", "optimizer.name", "scheduler.name")
# The argument by which a tracker calls a run.
_NAME_OF_RUN = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
_PUSHES = {"end": "the end", "checkpoint": "each checkpoint and at the end", "never": "your command"}
_WINDOW = 32  # batches whose rows are sorted together where the config names no number


def build(
    config: Config,
    *,
    task: RowTask | None = None,
    model: nn.Module | None = None,
    rows: Mapping[str, Any] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    problems: Sequence[str] = (),
    console: Console | None = None,
    preemption: Preemption | None = None,
) -> TrainingLoop:
    """A loop that is ready to `fit`; nothing is written yet but the token cache.

    task, model, optimizer: in the place of those that the config names; the optimizer is made of a model on its device.
    rows: likewise, by split: `train`, `validation`, `test`, or one of several sets, `validation.hard`. A task on texts
    takes a datasets.Dataset, a pandas, polars or Arrow table, a torch Dataset or a list of dicts with the columns that
    `data` names; any other task takes whatever has rows by number, each a dict.
    problems: what is already known to be wrong with the config. Raises UserError with these and all others: the whole
    config and all data are judged before the model loads.
    """
    quieten_libraries()
    console = console or Console(enabled=process_index_from_environment() == 0)
    loop_class, loop_problems = _find_loop_class(config)
    given = Given(task, model, check_given_rows(rows))
    parts = judge(config, problems=[*problems, *loop_problems], console=console, given=given)
    run_dir = RunDir(config.run_dir)
    accelerator = make_accelerator(
        precision=parts.precision,
        tf32=config.train.tf32,
        trackers=config.log.trackers,
        project_dir=str(run_dir.root),
        timeout_minutes=config.train.timeout_minutes,
        threads=config.train.threads,
    )
    train_loader = _make_train_loader(config, parts, accelerator)
    run_plan = _describe_run(config, parts, train_loader)
    assert_same_on_all_processes(accelerator, run_plan, what="the data or the config")
    own_code = _fingerprint_own_code(config)
    steps_per_epoch = train_loader.steps_per_epoch
    num_steps = config.train.steps or math.ceil(take_share(config.train.epochs or 0, steps_per_epoch or 0))

    model_is_given = model is not None
    model, calls = _make_model(config, parts, accelerator, console, model)
    _freeze(config, model, num_steps)
    groups = _make_groups(config, model, num_steps, calls)
    _refuse_idle_groups(groups, num_steps)
    if unfreezing := [group.unfreeze_at for group in groups if group.unfreeze_at]:
        run_plan["unfreezing"] = unfreezing
    if (frozen := describe_frozen(model)) is not None:
        run_plan["frozen_weights"] = frozen
    torch_optimizer = optimizer(model) if optimizer is not None else _make_optimizer(config, groups, accelerator.device)
    _warn_of_unheeded(config, console, given_model=model_is_given, given_optimizer=optimizer is not None)
    if optimizer is not None:
        run_plan["optimizer.name"] = full_name(type(torch_optimizer))
    if task is not None:
        run_plan["task.name"] = full_name(type(task))
    plateau_metric = config.scheduler.metric or "-loss"
    scheduler = make_scheduler(
        torch_optimizer,
        name=config.scheduler.name,
        warmup=config.scheduler.warmup,
        num_steps=num_steps,
        args=config.scheduler.args,
        metric=plateau_metric,
    )
    if follows_metric(scheduler) and (config.evaluate.every == "never" or not _has_validation(parts)):
        raise UserError(
            f"scheduler.name: {config.scheduler.name} follows an evaluation; set evaluate.every and data.validation"
        )
    record_of = functools.partial(_make_record, config, parts, num_steps, run_plan | own_code)
    card_of = functools.partial(describe_model, config, parts, given)
    prepared_model, prepared_optimizer = accelerator.prepare(model, torch_optimizer)
    averaged_weights = _make_averaged_weights(
        config, model, torch_optimizer
    )  # now every process has the weights of process 0
    return loop_class(
        accelerator=accelerator,
        task=parts.task,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        train_loader=train_loader,
        validation_loaders=_make_evaluation_loaders(config, parts, accelerator, "validation"),
        test_loaders=_make_evaluation_loaders(config, parts, accelerator, "test"),
        num_steps=num_steps,
        seed=config.seed,
        checkpointer=Checkpointer(
            run_dir,
            accelerator=accelerator,
            scheduler=scheduler,
            console=console,
            plan=run_plan,
            config=public_values(config) | own_code,
            replanned=[*own_code, *(name for name, key in KEYS.items() if key.on_resume == "planned anew")],
            resume_anyway=config.resume_anyway,
            averaged_weights=averaged_weights,
            keep_last=config.checkpoint.keep_last,
            background=config.checkpoint.background,
        ),
        console=console,
        metric_log=MetricLog(run_dir.metrics, warn=console.warn),
        metrics=load_metrics(
            metric_entries(config, parts.task), num_labels=None if parts.label_names is None else len(parts.label_names)
        ),
        max_grad_norm=config.train.max_grad_norm,
        max_grad_value=config.train.max_grad_value,
        skip_nonfinite=config.train.on_nonfinite == "skip",
        allow_unused=config.train.unused_parameters == "allow" or _drops_layers(parts),
        averaged_weights=averaged_weights,
        groups=groups,
        evaluate_every=_interval(config.evaluate.every, steps_per_epoch),
        evaluate_at_start=config.evaluate.at_start,
        checkpoint_every=_interval(config.checkpoint.every, steps_per_epoch),
        log_every=config.log.every,
        best=config.checkpoint.best,
        plateau_metric=plateau_metric,
        patience=config.train.patience,
        resume=config.resume,
        preemption=preemption,
        max_time_minutes=config.train.max_time_minutes,
        export=functools.partial(_export, config, run_dir, parts.tokenizer, record_of, card_of),
        keep_predictions=functools.partial(_keep_predictions, run_dir, parts),
        describe=functools.partial(_record_what_it_is, config, run_dir),
        make_loader=functools.partial(_make_loader_of_rows, config, parts, accelerator, console),
        publisher=make_publisher(config, parts, console, record_of=record_of, card_of=card_of)
        if accelerator.is_main_process
        else None,
        **config.loop.args,
    )


def describe_plan(config: Config, loop: TrainingLoop) -> list[str]:
    """What is going to happen, in lines for a person."""
    accelerator = loop.accelerator
    trained, total = count_weights(loop.bare_model)
    warmup = describe_warmup(config.scheduler.name, config.scheduler.warmup, loop.num_steps)
    evaluation = "none" if loop.evaluate_every is None else f"every {loop.evaluate_every:,} steps"
    saving = "never" if loop.checkpoint_every is None else f"every {loop.checkpoint_every:,} steps"
    return [
        f"model: {type(loop.bare_model).__name__}, {total:,} parameters, "
        + ("all trained" if trained == total else f"{trained:,} of them ({trained / total:.2%}) trained")
        + (", compiled" if config.model.compile else ""),
        f"hardware: {accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}, "
        f"{torch.get_num_threads()} threads per process",
        *_describe_batches(loop.train_loader, num_steps=loop.num_steps, process_index=accelerator.process_index),
        f"optimizer: {config.optimizer.name}, learning rate {config.optimizer.lr:g}, {config.scheduler.name} with "
        f"{warmup}",
        f"evaluation: {evaluation}; checkpoints: {saving}, in {config.run_dir}",
        *([f"hub: {config.hub.push}, at {_PUSHES[config.hub.every]}"] if config.hub.push is not None else []),
        *(f"{name}: {told}" for name, told in _fingerprint_own_code(config).items()),
        *(_describe_optimizer(config, loop) if config.dry_run else []),
    ]


def _describe_optimizer(config: Config, loop: TrainingLoop) -> list[str]:
    """The table of groups and the curve of the learning rate."""
    frozen = {name: weight for name, weight in loop.bare_model.named_parameters() if not weight.requires_grad}
    curve = draw_schedule(
        name=config.scheduler.name,
        lr=config.optimizer.lr,
        warmup=config.scheduler.warmup,
        num_steps=loop.num_steps,
        args=config.scheduler.args,
    )
    table = describe_groups(loop.groups, frozen)
    return ["groups of parameters:", *(f"  {line}" for line in table), f"schedule: {curve}"]


def _describe_batches(loader: StepLoader, *, num_steps: int, process_index: int) -> list[str]:
    budget = "no limit" if loader.max_tokens is None else f"at most {loader.max_tokens:,} padded tokens"
    if isinstance(loader, StreamLoader):
        rows = "a stream" if loader.num_rows is None else f"{loader.num_rows:,}"
        epoch = "" if loader.steps_per_epoch is None else f"{loader.steps_per_epoch:,} steps per epoch, "
        return [
            f"rows: {rows}, {loader.batch_size:,} per step; {epoch}{num_steps:,} steps in all",
            f"microbatches: {budget}",
        ]
    assert isinstance(loader, TrainLoader)
    plan = loader.plan
    steps = plan.sample(_STEPS_LOOKED_AT)
    microbatches = [len(step.shares[process_index].microbatches) for step in steps]
    padding = 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)
    return [
        f"rows: {len(plan.lengths):,}, {plan.batch_size:,} per step; {plan.steps_per_epoch:,} steps per epoch, "
        f"{num_steps:,} in all",
        f"microbatches per step and process: {min(microbatches)} to {max(microbatches)} ({budget}); "
        f"padding {padding:.1%}",
    ]


# ------------------------------------------------------------------------------------------------ parts of the loop


def _find_loop_class(config: Config) -> tuple[type[TrainingLoop], list[str]]:
    """The class of the loop, and all that is wrong with its name and its arguments."""
    if config.loop.name is None:
        return TrainingLoop, [f"loop.args.{name}: TrainingLoop takes none; set loop.name" for name in config.loop.args]
    try:
        found: Any = locate(config.loop.name, place="loop.name")
    except UserError as error:
        return TrainingLoop, error.problems
    if not (isinstance(found, type) and issubclass(found, TrainingLoop)):
        return TrainingLoop, [f"loop.name: {config.loop.name} is no subclass of trainer_loop.loop.TrainingLoop"]
    parts = inspect.signature(TrainingLoop.__init__).parameters
    own = [
        parameter
        for parameter in inspect.signature(found.__init__).parameters.values()
        if parameter.name not in parts and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return found, check_parameters(own, config.loop.args, name=config.loop.name, place="loop.args")


def _make_model(
    config: Config, parts: Parts, accelerator: Accelerator, console: Console, given: nn.Module | None
) -> tuple[nn.Module, Sequence[str]]:
    """The model on its device, before accelerate has prepared it, and its modules as they are called, where known."""
    if not isinstance(parts.task, TextTask):
        return _make_plain_model(config, given).to(accelerator.device), ()
    assert parts.model_config is not None and parts.tokenizer is not None
    num_known = getattr(find_text_config(parts.model_config), "vocab_size", None)  # before embeddings are added
    model, new_weights = (
        (given, [])
        if given is not None
        else make_model(
            parts.model_config,
            model_class=parts.task.model_class,
            name=config.model.name,
            from_scratch=config.model.from_scratch,
            attention=config.model.attention,
            gradient_checkpointing=config.model.gradient_checkpointing,
            quantize=None if config.model.quantize is None else _COMPUTE_TYPES[accelerator.mixed_precision],
            trust_remote_code=config.model.trust_remote_code,
            num_tokens=count_tokens(parts.tokenizer),
            seed=config.seed,
            is_resized=bool(config.model.overrides),
        )
    )
    if new_weights:
        console.say(f"model: {len(new_weights)} weights are new: {', '.join(new_weights[:6])}")
    model = model.to(accelerator.device)
    if config.model.attention == "auto" and not config.model.compile:
        use_attention(model)
    if accelerator.device.type == "cpu":
        expect_many_shapes()
        use_cpu_modules(model)
        if (cost := describe_attention_dropout(model, max_length=config.data.max_length)) is not None:
            console.say(cost)
    reach = _try_model(config, parts, model, new_weights, console)
    if config.model.compile:
        compile_model(model)
    if config.model.packing:
        use_packing(model, rows_at_head=parts.task.rows_at_head)
    if config.model.neftune_alpha is not None:
        use_embedding_noise(model, alpha=config.model.neftune_alpha)
    calls = reach.calls
    if (adapter := adapter_of(config)) is not None:
        kind, arguments, place = adapter
        calls = tuple(f"base_model.model.{name}" if name else "base_model.model" for name in calls)
        model = add_adapter(
            model,
            kind=kind,
            arguments=arguments,
            task_type=parts.task.adapter_type,
            place=place,
            seed=config.seed,
            new_weights=new_weights,
            new_tokens=[] if num_known is None else range(num_known, count_tokens(parts.tokenizer)),
            idle_layers=reach.idle,
        )
    return model, calls


def _try_model(config: Config, parts: Parts, model: nn.Module, new_weights: Sequence[str], console: Console) -> Reach:
    """Let the model answer a few rows: padding may change its answers, and parts of it may take none."""
    task, max_length = parts.task, config.data.max_length
    if not isinstance(task, TextTask) or not isinstance(task, tuple(TASKS.values())):
        return Reach()  # what another task asks its model is not known
    rows = _choose_rows(parts, model, max_length=max_length)
    if not config.model.packing:
        trial = try_padding(model, task, rows)
        task.use_padding(trial.side)
        pads = (config.batch.per_device, config.evaluate.per_device) != (1, 1)
        if pads and not trial.is_harmless:
            console.warn(trial.describe(type(model).__name__))
    if any(name in vars(type(task)) for name in _WAYS_TO_COMPUTE) and type(task) not in TASKS.values():
        return Reach()  # a loss of the user's own may reach more than the logits do
    device = next(model.parameters()).device
    reach = find_reach(model, pad_rows(task, rows, device))
    if reach.unused or reach.idle:  # some parts are for long rows only
        longest = max_length if parts.stream is not None else int(parts.splits["train"].lengths.max())
        row = make_row(task, longest, max_length=max_length)
        reach = reach.without(find_reach(model, pad_rows(task, row, device)))
    if (line := freeze_unused(model, reach, new_weights=new_weights)) is not None:
        console.say(line)
    return reach


def _choose_rows(parts: Parts, model: nn.Module, *, max_length: int) -> list[dict[str, Any]]:
    """Made-up rows to try the model on: short ones, or, where it cannot answer those, some as long as the data has."""
    task: Any = parts.task
    rows = make_rows(task, model, max_length=max_length)
    if parts.stream is not None or can_answer(model, task, rows[:1]):
        return rows
    lengths = np.sort(parts.splits["train"].lengths)
    special = task.tokenizer.num_special_tokens_to_add()
    own = [max(1, int(lengths[place]) - special) for place in (0, len(lengths) // 2, -1)]
    return make_rows(task, model, max_length=max_length, lengths=own)


def _drops_layers(parts: Parts) -> bool:
    """Whether a parameter may get no gradient in a step because the model left its layer out."""
    return parts.model_config is not None and drops_layers(parts.model_config)


def _make_plain_model(config: Config, given: nn.Module | None) -> nn.Module:
    """A model that knows nothing of transformers; its new weights are a function of the seed."""
    if given is not None:
        return given
    factory: Any = locate(str(config.model.type), place="model.type")
    seed_everything(config.seed, "model")
    model = factory(**config.model.overrides)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.type: {config.model.type} makes a {type(model).__name__}; it must make an nn.Module")
    return model


def _make_optimizer(config: Config, groups: Sequence[ParameterGroup], device: torch.device) -> Optimizer:
    return make_optimizer(
        groups,
        name=config.optimizer.name,
        lr=config.optimizer.lr,
        args=config.optimizer.args,
        device=device,
    )


def _has_validation(parts: Parts) -> bool:
    return any(parse_set(name)[0] == "validation" for name in parts.splits)


def _warn_of_unheeded(config: Config, console: Console, *, given_model: bool, given_optimizer: bool) -> None:
    """Keys that say what a part made in Python decides itself."""
    values = values_of(config)
    for part, is_given, names in (
        ("model", given_model, _OF_A_MODEL_MADE_HERE),
        ("optimizer", given_optimizer, _OF_AN_OPTIMIZER_MADE_HERE),
    ):
        unheeded = [name for name in names if is_given and values[name] != KEYS[name].default]
        if unheeded:
            console.warn(f"{', '.join(unheeded)}: not heeded, for the {part} was given and is taken as it is")


def _freeze(config: Config, model: nn.Module, num_steps: int) -> None:
    """Raises UserError for patterns that mean nothing: of a plain model they could not be judged before."""
    frozen = config.optimizer.freeze
    if problems := check_patterns(model, frozen=frozen, rules=_group_rules(config, num_steps)):
        raise UserError(problems)
    freeze(model, frozen)


def _make_groups(config: Config, model: nn.Module, num_steps: int, calls: Sequence[str]) -> list[ParameterGroup]:
    optimizer = config.optimizer
    return make_groups(
        model,
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        rules=_group_rules(config, num_steps),
        layer_decay=optimizer.layer_decay or 1.0,
        unfreeze_every=count_steps(optimizer.unfreeze_every or 0, num_steps),
        hidden_matrices_apart=takes_hidden_matrices_apart(optimizer.name),
        calls=calls,
    )


def _refuse_idle_groups(groups: Sequence[ParameterGroup], num_steps: int) -> None:
    """Raises UserError where nothing learns from the first step on, or something would never."""
    never = [group.about for group in groups if group.unfreeze_at >= num_steps]
    if never:
        raise UserError(
            f"optimizer.unfreeze_every and optimizer.groups: {', '.join(never)} would not learn in any of the "
            f"{num_steps:,} steps; unfreeze earlier, or say so with optimizer.freeze"
        )
    if all(group.unfreeze_at for group in groups):
        raise UserError("optimizer.groups: no parameter learns at the first step; let one begin with unfreeze_at: 0")


def _make_averaged_weights(config: Config, model: nn.Module, optimizer: Optimizer) -> Ema | ScheduleFreeAverages | None:
    """What is evaluated and exported in the place of the weights."""
    if is_schedule_free(optimizer):
        if config.ema.decay is not None:
            raise UserError(
                f"ema.decay: a {type(optimizer).__name__} keeps an average of the weights itself; set it to null"
            )
        return ScheduleFreeAverages(model, optimizer)
    return None if config.ema.decay is None else Ema(model, decay=config.ema.decay)


def _make_train_loader(config: Config, parts: Parts, accelerator: Accelerator) -> TrainLoader | StreamLoader:
    batches: dict[str, Any] = {
        "batch_size": _batch_size(config, accelerator.num_processes),
        "seed": config.seed,
        "num_processes": accelerator.num_processes,
        "max_tokens": _token_budget(config.batch.max_tokens, parts, accelerator.device, training=True),
        "per_device": config.batch.per_device,
        "microbatch_tokens": choose_microbatch_tokens(accelerator.device.type),
        "packed": config.model.packing,
    }
    process: dict[str, Any] = {
        "collate": parts.task.collate,
        "count": parts.task.count,
        "device": accelerator.device,
        "process_index": accelerator.process_index,
    }
    if parts.stream is not None:
        return StreamLoader(
            parts.stream.rows,
            encode=parts.stream.encode,
            shuffle_rows=config.data.shuffle_rows,
            num_rows=parts.stream.num_rows,
            **batches,
            **process,
        )
    train = parts.splits["train"]
    return TrainLoader(
        BatchPlan(train.lengths, window=_window(config), **batches),
        train.rows,
        num_workers=_num_workers(config, accelerator),
        origin_of=train.origins.place,
        **process,
    )


def _make_evaluation_loaders(
    config: Config, parts: Parts, accelerator: Accelerator, name: str
) -> dict[str, EvaluationLoader]:
    """The loaders of a split: by the names of its sets, or by the empty text where it has none."""
    sets = {parse_set(full_name): split for full_name, split in parts.splits.items()}
    workers = _num_workers(config, accelerator)
    return {
        part: _make_evaluation_loader(config, parts, accelerator, split, num_workers=workers)
        for (of, part), split in sets.items()
        if of == name
    }


def _make_evaluation_loader(
    config: Config,
    parts: Parts,
    accelerator: Accelerator,
    split: TokenisedSplit,
    *,
    labelled: bool = True,
    num_workers: int = 0,
) -> EvaluationLoader:
    """labelled: its targets are counted, and its rows shared by the processes; else each process has all of them."""
    return EvaluationLoader(
        split.rows,
        split.lengths,
        collate=parts.task.collate,
        count=parts.task.count if labelled else lambda batch: 0,
        device=accelerator.device,
        num_processes=accelerator.num_processes if labelled else 1,
        process_index=accelerator.process_index if labelled else 0,
        max_tokens=_token_budget(config.evaluate.max_tokens, parts, accelerator.device, training=False),
        per_device=config.evaluate.per_device or _rows_judged_at_once(config, parts, accelerator),
        microbatch_tokens=choose_microbatch_tokens(accelerator.device.type),
        packed=config.model.packing,
        num_workers=num_workers,
    )


# ------------------------------------------------------------------------------------------ values the config implies


def _batch_size(config: Config, num_processes: int) -> int:
    batch = config.batch
    if batch.size is not None:
        return batch.size
    assert batch.per_device is not None and batch.accumulate is not None
    return batch.per_device * batch.accumulate * num_processes


def _rows_judged_at_once(config: Config, parts: Parts, accelerator: Accelerator) -> int | None:
    """Rows without tokens have no budget of them: as many as training has in one microbatch. None: a budget says it."""
    if isinstance(parts.task, TextTask):
        return None
    return config.batch.per_device or math.ceil(
        _batch_size(config, accelerator.num_processes) / accelerator.num_processes
    )


def _num_workers(config: Config, accelerator: Accelerator) -> int:
    """Processes that prepare batches: beside a GPU they are ready when it is; on a CPU they would take its cores."""
    if config.data.num_workers != "auto":
        return int(config.data.num_workers)
    return 0 if accelerator.device.type == "cpu" else _WORKERS_BESIDE_A_GPU


def _window(config: Config) -> int | None:
    """Batches whose rows are sorted by length among each other; None: batches are a plain shuffle."""
    return (config.batch.window or _WINDOW) if config.batch.order == "window" else None


def _token_budget(setting: Any, parts: Parts, device: torch.device, *, training: bool) -> int | None:
    """Padded tokens of one microbatch at most; None: no limit."""
    if setting != "auto":
        return setting  # type: ignore[no-any-return]
    if not isinstance(parts.task, TextTask):
        return None  # its rows have no tokens: batch.per_device limits them
    logits_per_token = parts.task.logits_per_token(parts.model_config)
    return choose_token_budget(device.type, training=training, logits_per_token=logits_per_token)


def _interval(setting: Any, steps_per_epoch: int | None) -> int | None:
    """Steps between two occasions; None: never."""
    if isinstance(setting, float):
        return None if steps_per_epoch is None else max(1, round(take_share(setting, steps_per_epoch)))
    return {"epoch": steps_per_epoch, "never": None}.get(setting, setting)


def _group_rules(config: Config, num_steps: int) -> list[GroupRule]:
    rules = []
    for entry in config.optimizer.groups:
        unfreeze_at = entry.get("unfreeze_at")
        steps = None if unfreeze_at is None else count_steps(unfreeze_at, num_steps)
        rules.append(GroupRule(entry["match"], entry.get("lr"), entry.get("weight_decay"), steps))
    return rules


def _describe_run(config: Config, parts: Parts, loader: TrainLoader | StreamLoader) -> dict[str, Any]:
    """What decides the updates, as plain JSON: who goes on from a checkpoint must have the same.

    Of data and batches it is what came of the config, not the words that led there: a file may be moved.
    """
    if isinstance(loader, StreamLoader):
        assert parts.stream is not None
        data, tokens, batch_size = f"a stream {parts.stream.fingerprint}", parts.stream.tokens, loader.batch_size
    else:
        train = parts.splits["train"]
        data, batch_size = f"{len(train.rows)} rows {train.fingerprint}", loader.plan.batch_size
        told = None if parts.tokenizer is None else describe_tokenizer(parts.tokenizer)
        tokens = digest(loader.plan.lengths.tobytes(), json.dumps(told, sort_keys=True).encode())
    values = public_values(config) | {"task.name": config.task.name}  # the exported record names the task itself
    return {
        "data": data,
        "tokens": tokens,
        "data.label_names": parts.label_names,
        "batch.size": batch_size,
    } | {name: values[name] for name, key in KEYS.items() if key.on_resume == "refused"}


def _fingerprint_own_code(config: Config) -> dict[str, str]:
    """What the user wrote: a checksum by the key that names it, so that a run tells when it was changed."""
    values = values_of(config)
    found = {name: locate(str(values[name]), place=name) for name in _NAMES_OF_CODE if "." in str(values[name])}
    own = {f"{name} (its code)": fingerprint_own(component) for name, component in found.items()}
    return {name: told for name, told in own.items() if told is not None}


def _record_what_it_is(config: Config, run_dir: RunDir, loop: TrainingLoop) -> None:
    """What the run is and what it runs on; from here on the run directory is written."""
    accelerator = loop.accelerator
    if accelerator.is_main_process:
        run_dir.make()
        environment = describe_environment(
            run=loop.checkpointer.run,
            device=str(accelerator.device),
            num_processes=accelerator.num_processes,
            precision=accelerator.mixed_precision,
        )
        for path, write in (
            (run_dir.config, functools.partial(write_resolved, config)),
            (run_dir.environment, functools.partial(write_json, value=environment)),
        ):
            try:
                write(path)
            except OSError as error:
                raise UserError(f"run_dir: {describe_refusal(error, path)}") from error
        loop.console.keep_in(run_dir.log)
    if config.log.trackers:
        named = {
            tracker: {_NAME_OF_RUN[tracker]: run_dir.root.name} if tracker in _NAME_OF_RUN else {}
            for tracker in config.log.trackers
        }
        start_trackers(
            accelerator,
            project=config.log.project,
            config=flatten(config),
            arguments={
                tracker: name | dict(config.log.tracker_args.get(tracker) or {}) for tracker, name in named.items()
            },
            warn=loop.console.warn,
        )


def _make_loader_of_rows(
    config: Config, parts: Parts, accelerator: Accelerator, console: Console, rows: Any, labelled: bool
) -> EvaluationLoader:
    """A loader of rows that somebody holds in hand."""
    split, kept = prepare_rows(config, parts, rows, labelled=labelled, say=console.say)
    loader = _make_evaluation_loader(config, parts, accelerator, split, labelled=labelled)
    loader.kept = kept
    return loader


def _keep_predictions(
    run_dir: RunDir, parts: Parts, name: str, predictions: np.ndarray, references: np.ndarray
) -> None:
    split = parts.splits[f"test.{name}" if name else "test"]
    write_predictions(
        run_dir.predictions / f"{name or 'test'}.jsonl",
        predictions=predictions,
        references=references,
        origin_of=split.origins.place,
        label_names=parts.label_names,
    )


def _describe_evaluation(config: Config, parts: Parts) -> dict[str, Any] | None:
    """What `python -m trainer_loop.predict` needs to evaluate as the run did."""
    if parts.labels is None:
        return None
    by_id = sorted(parts.labels.ids.items(), key=lambda pair: pair[1])
    return {
        "label": config.data.label,
        "values": [raw for raw, _ in by_id],
        "metrics": metric_entries(config, parts.task),
        "loss": {"name": config.loss.name, "args": config.loss.args},
    }


def _make_record(
    config: Config, parts: Parts, num_steps: int, run_plan: dict[str, Any], state: TrainState
) -> ExportRecord:
    on_texts = parts.tokenizer is not None
    return ExportRecord(
        task=run_plan["task.name"],
        text=config.data.text if on_texts else None,
        text_pair=config.data.text_pair,
        max_length=config.data.max_length if on_texts else None,
        step=state.best_step or state.step,
        num_steps=num_steps,
        metrics=state.figures,
        plan=run_plan | {name: value for name, value in public_values(config).items() if name in _TUNED},
        evaluation=_describe_evaluation(config, parts),
    )


def _export(
    config: Config,
    run_dir: RunDir,
    tokenizer: Any,
    record_of: Callable[[TrainState], ExportRecord],
    card_of: Callable[[ExportRecord], str],
    model: nn.Module,
    state: TrainState,
) -> None:
    record = record_of(state)
    adapter = adapter_of(config)
    if adapter is not None and (config.model.lora.merge or config.model.peft.merge):
        model = merge_adapter(model, place=f"{adapter[2]}.merge")
    export_model(run_dir, model, tokenizer, record, card=card_of(record))
