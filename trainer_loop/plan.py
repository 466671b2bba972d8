"""Checks the config and the data, and turns them into a `RunPlan`. All problems are reported together.

A component offers a function `plan_x`, whose parameters are the keys of its section. It returns a plan that can make
the component, or raises `UserError` with all problems of the section, under keys relative to it. If the plan has the
same fields as the section, it is a dataclass with a method `check` instead. Planning loads no weights and creates no
process group.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from trainer_loop.components import check_arguments, check_parameters, locate
from trainer_loop.config.checks import has_validation, missing_parts
from trainer_loop.config.fields import Config, GenerateConfig
from trainer_loop.config.load import values_of
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.data.columns import Columns, bind_columns
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.plan import DataPlan, plan_data, take_splits
from trainer_loop.data.processors import as_tokenizer
from trainer_loop.data.section import DataSection
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.data.split_facts import SplitFacts
from trainer_loop.data.stream_plan import TrainStream
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.wording import did_you_mean
from trainer_loop.errors import Problems, UserError, refuse
from trainer_loop.loop import TrainingLoop
from trainer_loop.metrics.load import check_metrics, reported_keys
from trainer_loop.metrics.logged import check_names
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.models.config import count_outputs, drops_layers, find_text_config
from trainer_loop.models.plan import ModelPlan, plan_model
from trainer_loop.optim.optimizers import OptimizerPlan, find_optimizer
from trainer_loop.optim.schedules import SchedulerPlan
from trainer_loop.parallel.plan import ShardingPlan, changes_the_step
from trainer_loop.parallel.processes import choose_precision, process_index_from_environment
from trainer_loop.parallel.sharding import check_optimizer_class
from trainer_loop.record.hub_access import check_access, push_command
from trainer_loop.record.logs import Console
from trainer_loop.record.trackers import check_trackers
from trainer_loop.runtime.compiler import check_compiler
from trainer_loop.tasks.find import find_task
from trainer_loop.tasks.generation import Generation
from trainer_loop.tasks.plan import LossPlan, make_up_outputs, name_own_loss, plan_loss, plan_task
from trainer_loop.tasks.task import Task

_SPLITS = ("train", "validation", "test")
_SET_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SMALLER_IS_BETTER = {"loss", *(key for metric in SHIPPED.values() for key in metric.smaller_is_better)}
_KEYS_OF_COLUMNS = (  # these have no effect on a task that takes rows as they are
    *("data.streaming", "data.missing", "data.label_names", "data.max_length", "data.filter", "data.map"),
    *("data.deduplicate", "data.weight", "data.sampling", "data.split_by"),
)
_KEYS_OF_AUTO_MODELS = (  # these need a model that an auto class of transformers loads
    *("model.tokenizer", "model.vocab_size", "model.from_scratch", "model.attention", "model.quantize"),
    *("model.neftune_alpha", "model.gradient_checkpointing", "model.lora.r", "model.peft.name"),
    "model.trust_remote_code",
)

Entries = Sequence[str | Mapping[str, Any]]  # entries of `evaluate.metrics`


@dataclass(frozen=True)
class Overrides:
    """Objects created in Python that replace those that the config names.

    Attributes:
        rows: Rows by split: `train`, `validation`, `test`, or a named set such as `test.hard`.
        has_optimizer: The optimizer is created in Python.
    """

    task: Task | None = None
    model: nn.Module | None = None
    rows: Mapping[str, Any] = field(default_factory=dict)
    has_optimizer: bool = False

    @property
    def validation_sets(self) -> list[str]:
        """Names of the validation sets in `rows`. A single set without a name is the empty string."""
        return [part for split, part in map(parse_set, self.rows) if split == "validation"]


@dataclass(frozen=True)
class Inputs:
    """Encoded rows of all splits, with processor and model config.

    Attributes:
        splits: Encoded splits by name, without `train` if it is streamed.
        data: None for a task that takes rows as they are.
        facts: Counts and lengths of each split, for the report.
    """

    splits: Mapping[str, TokenisedSplit]
    stream: TrainStream | None = None
    labels: LabelNames | None = None
    data: DataPlan | None = None
    processor: Any | None = None
    model_config: PretrainedConfig | None = None
    facts: Mapping[str, SplitFacts] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any | None:
        """The processor if it is a tokenizer, else None."""
        return as_tokenizer(self.processor)

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, or of the numbers of a regression with several targets."""
        return None if self.data is None else self.data.output_names

    @property
    def has_validation(self) -> bool:
        return any(parse_set(name)[0] == "validation" for name in self.splits)


@dataclass(frozen=True)
class RunPlan:
    """Everything that a run is built from, fully checked, and the config and overrides it was made of."""

    loop_class: type[TrainingLoop]
    precision: str
    task: Task
    metrics: Entries
    model: ModelPlan
    optimizer: OptimizerPlan
    scheduler: SchedulerPlan
    inputs: Inputs
    sharding: ShardingPlan
    config: Config
    overrides: Overrides
    loss: LossPlan | None = None  # None: the loss of the task


def plan_run(config: Config, overrides: Overrides, *, problems: Sequence[str] = (), console: Console) -> RunPlan:
    """Check the whole config and all data.

    Args:
        problems: Problems that are already known.

    Raises:
        UserError: There are problems: the known ones and those found here, one line each.
    """
    return _Planner(config, overrides, problems, console).plan()


def find_loop_class(name: str | None, args: Mapping[str, Any]) -> type[TrainingLoop]:
    """Return the class that `loop.name` names. Raises UserError with all problems of its name and arguments."""
    if name is None:
        if args:
            raise UserError([f"loop.args.{argument}: TrainingLoop takes none; set loop.name" for argument in args])
        return TrainingLoop
    loop_class: Any = locate(name, place="loop.name")
    if not (isinstance(loop_class, type) and issubclass(loop_class, TrainingLoop)):
        raise UserError(f"loop.name: {name} is no subclass of trainer_loop.loop.TrainingLoop")
    inherited = inspect.signature(TrainingLoop.__init__).parameters
    added = [
        parameter
        for parameter in inspect.signature(loop_class.__init__).parameters.values()
        if parameter.name not in inherited and parameter.kind is not parameter.VAR_KEYWORD
    ]
    refuse(check_parameters(added, args, name=name, place="loop.args"))
    return loop_class


def name_splits(rows: Any) -> dict[str, Any]:
    """Check and return rows that Python code passed, by split. Raises UserError for a name that is no split."""
    if rows is None:
        return {}
    if not isinstance(rows, Mapping):
        raise UserError(f"rows is a {type(rows).__name__}; it is a dict of rows by split: rows={{'train': ...}}")
    problems: list[str] = []
    for name in map(str, rows):
        split, part = parse_set(name)
        is_named = "." in name
        if split not in _SPLITS or (is_named and (split == "train" or not _SET_NAME.fullmatch(part))):
            allowed = "train, validation, test, or one of several sets such as validation.hard"
            near = did_you_mean(name, _SPLITS) if split not in _SPLITS else ""
            problems.append(f"rows[{name!r}] is no split; allowed: {allowed}{near}")
        elif is_named and split in rows:
            problems.append(f"rows has {split!r} and {name!r}; give all its sets names, or none")
    refuse(problems)
    return dict(rows)


class _Planner:
    """Checks the parts of a config one by one, and collects their problems in `problems`.

    `task`, `loss` and `data` are None until they are planned, and stay None if they have problems of their own. Checks
    that need them are then skipped.
    """

    def __init__(self, config: Config, overrides: Overrides, problems: Sequence[str], console: Console):
        self.config, self.overrides, self.console = config, overrides, console
        self.problems = Problems(problems)
        self.values = values_of(config)
        self.task: Task | None = None
        self.loss: LossPlan | None = None
        self.data: DataPlan | None = None
        self.task_name = config.task.name if overrides.task is None else type(overrides.task).__name__
        self.has_validation = has_validation(config) or bool(overrides.validation_sets)
        named = [parse_set(name)[1] for name in name_sets("validation", config.data.validation)]
        self.validation_sets = [name for name in [*named, *overrides.validation_sets] if name]  # sets with a name
        # Metrics that select weights, end the run or drive the scheduler, by the keys that name them.
        keys = ("checkpoint.best", "train.patience_metric", "scheduler.metric")
        self.followed_metrics: dict[str, str] = {key: self.values[key] for key in keys if self.values[key] is not None}

    def plan(self) -> RunPlan:
        """See `plan_run`."""
        config, overrides, problems = self.config, self.overrides, self.problems
        loop_class = problems.collect("", find_loop_class, config.loop.name, config.loop.args)
        precision = problems.collect("", choose_precision, config.train.precision)
        sharding = problems.collect(
            "",
            ShardingPlan(**vars(config.parallel)).check,
            self.values | {"train.precision": precision},
            has_own_step=loop_class is not None and changes_the_step(loop_class, TrainingLoop),
        )
        if config.model.compile:
            problems.collect("", check_compiler, "cuda" if torch.cuda.is_available() else "cpu")
        named_task = overrides.task or Problems().collect("", find_task, config.task.name, place="")
        self.loss = problems.collect("loss.", plan_loss, **vars(config.loss), default=name_own_loss(named_task))
        self.task = self._plan_task()
        is_overridden = {
            "model": overrides.model is not None,
            "train": "train" in overrides.rows,
            "validation": bool(overrides.validation_sets),
        }
        missing = {part: problem for part, problem in missing_parts(config).items() if not is_overridden[part]}
        problems.lines += missing.values()
        optimizer = problems.collect("optimizer.", OptimizerPlan(**vars(config.optimizer)).check)
        if optimizer is not None and config.ema.decay is not None and optimizer.keeps_averaged_weights:
            problems.lines.append(
                f"ema.decay: {config.ema.decay}: {optimizer.name} keeps an average of the weights itself; set it to "
                "null"
            )
        if optimizer is not None and sharding is not None and sharding.is_sharded and not overrides.has_optimizer:
            problems.collect("", check_optimizer_class, find_optimizer(optimizer.name))
        scheduler = problems.collect("scheduler.", SchedulerPlan(**vars(config.scheduler)).check)
        sections = {"lora": vars(config.model.lora), "peft": vars(config.model.peft)}
        model = plan_model(ModelPlan(**(vars(config.model) | sections), given=overrides.model), problems)
        if scheduler is not None and scheduler.needs_metric:
            self._check_scheduler_metric(scheduler)
        self._check_metric_signs()
        problems.lines += check_trackers(config.log.trackers, config.log.tracker_args)
        self._check_hub()
        inputs = self._plan_inputs(model, has_rows="train" not in missing)
        if sharding is not None and sharding.is_sharded and inputs is not None and drops_layers(inputs.model_config):
            problems.lines.append(
                f"parallel.shard: {sharding.shard}: this model skips layers at random, each process others, and their "
                "weights are gathered by all together; set its layerdrop to 0 in model.overrides"
            )
        problems.refuse()
        task = self.task
        assert loop_class and precision and task and optimizer and scheduler and inputs and sharding
        return RunPlan(
            loop_class,
            precision,
            task,
            self._list_metrics(),
            model,
            optimizer,
            scheduler,
            inputs,
            sharding,
            config,
            overrides,
            self.loss,
        )

    # ------------------------------------------------------------------------------ checks across several sections

    def _plan_task(self) -> Task | None:
        config, problems, task, loss = self.config, self.problems, self.overrides.task, self.loss
        if task is None:
            task = problems.collect("", plan_task, **vars(config.task), loss=loss)
        else:
            problems.lines += [
                f"{key}: {self.values[key]}: the task that was given, a {self.task_name}, has its own; remove it"
                for key in ("task.args", "loss.name", "loss.args")
                if self.values[key]
            ]
        if config.data.sampling == "balanced" and loss is not None and loss.needs_counts:
            name = loss.needs_counts[0]
            problems.lines.append(
                f"loss.args.{name}: auto: data.sampling=balanced draws all classes alike; leave one out"
            )
        if task is not None:
            options = {name: value for name, value in vars(config.evaluate.generate).items() if name != "samples"}
            task.generation = Generation(**options)
            problems.lines += self._list_task_conflicts(task)
        return task

    def _list_task_conflicts(self, task: Task) -> Iterator[str]:
        """Yield the problems of keys that ask for something the task cannot do."""
        data, name = self.config.data, f"the task {self.task_name}"
        if task.tunes and not self.has_validation:
            yield (
                f"task.args: {dict(self.config.task.args)}: there are no validation rows to choose by; set "
                "data.validation or data.validation_fraction"
            )
        if not task.generates and self.config.evaluate.generate != GenerateConfig():
            yield f"evaluate.generate: {name} writes no texts; remove it"
        if task.refers and data.streaming:
            yield f"data.streaming: {name} compares each row with the model before the first update; set it to false"
        if task.scales and data.streaming:
            yield (
                "task.args.scale: true: a stream is not searched for the mean of its numbers; write it, {mean: 3.2, "
                "std: 1.1}, or set data.streaming=false"
            )
        if task.mixes and data.streaming:
            yield f"data.streaming: {name} mixes each row with any other, and a stream holds few; set it to false"
        for key in ("data.weight", "data.mixture", "data.sampling") if task.mixes else ():
            if self._is_set(key):
                yield f"{key}: {name} mixes each row with any other, all alike; leave one out"
        if self.config.model.packing and not task.can_pack:
            yield f"model.packing: {name} knows no packed batches; set model.packing=false"

    def _is_set(self, key: str) -> bool:
        """Return whether the value of a key differs from its default."""
        return bool(self.values[key] != KEYS[key].default)

    def _check_scheduler_metric(self, scheduler: SchedulerPlan) -> None:
        """Check that a scheduler that follows a metric gets evaluations that report it."""
        name, metric, sets = scheduler.name, scheduler.metric, self.validation_sets
        followed = "the validation loss" if metric is None else metric.removeprefix("-")
        if self.config.evaluate.every == "never":
            self.problems.lines.append(f"scheduler.name: {name} follows {followed}; set evaluate.every")
        elif not self.has_validation:
            self.problems.lines.append(
                f"scheduler.name: {name} follows {followed}; set data.validation or data.validation_fraction"
            )
        elif metric is None and sets:
            self.problems.lines.append(
                f"scheduler.name: {name} follows one of several sets; set scheduler.metric, such as -{sets[0]}/loss"
            )

    def _check_metric_signs(self) -> None:
        for key, metric in self.followed_metrics.items():
            # In mse/valence the first part names the metric; in matched/mse, with the set first, the second does.
            first, *rest = metric.split("/")
            name = rest[0] if first in self.validation_sets and rest else first
            if name in _SMALLER_IS_BETTER or metric.rpartition("/")[2] in _SMALLER_IS_BETTER:
                self.problems.lines.append(
                    f"{key}: {metric} would pick the largest {metric}; smaller is better: write -{metric}"
                )

    def _check_hub(self) -> None:
        """Check that the run may push. Only process 0 asks the hub, because the hub limits the rate of requests."""
        hub = self.config.hub
        if hub.push is None or hub.every == "never" or process_index_from_environment() > 0:
            return
        command = push_command(self.config.run_dir, hub.push)
        later = f"set hub.every=never, and push later where there is network: {command}"
        key = f"hub.push: {hub.push}"
        problems, notes = check_access(hub.push, private=hub.private, place=key, later=later)
        self.problems.lines += problems
        for note in notes:
            self.console.warn(f"{key}: {note}")

    # ------------------------------------------------------------------------------------------ data, model and metrics

    def _plan_inputs(self, model: ModelPlan, *, has_rows: bool) -> Inputs | None:
        """Plan the rows and the model config; return None if there are problems. All checks run in any case."""
        config, problems, task = self.config, self.problems, self.task
        # Rows are checked even if other sections have problems, but not if the keys of data or task have problems.
        data_keys_are_valid = not any(" data." in line or " task." in line for line in problems.lines)
        columns = task and problems.collect("", bind_columns, task.columns, config.data.columns, task=self.task_name)
        splits: dict[str, TokenisedSplit] = {}
        if task and columns and has_rows and data_keys_are_valid:
            splits = self._plan_rows(task, columns)
        if self.loss is not None:
            problems.collect("loss.", _weigh_classes, self.loss, self.data)
        if task is not None:
            self._check_metrics(task)
            self._check_unused(task)
        if task is not None and task.auto_model is not None and not task.columns:
            problems.lines.append(
                f"task.name: {self.task_name} has a model of transformers and declares no columns; declare what it "
                "reads of a row in `columns`, or let auto_model be None"
            )
        if task is not None and task.auto_model is None:
            self._check_plain_model()
            model_config, processor = None, self._load_processor(model, None)
        else:
            model_config, processor = self._fit_model(model)
        if problems:
            return None
        assert task is not None
        data = self.data
        if data is None:
            return Inputs(splits)
        is_encoder_decoder = model_config is not None and model_config.is_encoder_decoder
        end_token = find_text_config(model_config).eos_token_id if is_encoder_decoder else None
        task.bind(processor, label_names=data.output_names, packs=config.model.packing, end_token=end_token)
        if task.scales:
            task.scale_by(data.list_numbers())
        say = self.console.say
        splits, stream, facts = data.encode(task, processor, counts_stream=config.train.steps is None, say=say)
        return Inputs(splits, stream, data.labels, data, processor, model_config, facts)

    def _plan_rows(self, task: Task, columns: Columns) -> dict[str, TokenisedSplit]:
        """Plan the rows of a task with columns, as `self.data`. For other tasks return the rows as they are."""
        config, console = self.config, self.console
        keys = {"files": TextFormat(**vars(config.data.files)), "limit": vars(config.data.limit), "columns": columns}
        section = DataSection(**(vars(config.data) | keys), seed=config.seed)
        if not task.columns:
            return take_splits(section, given=self.overrides.rows, problems=self.problems)
        self.data = plan_data(
            section,
            given=self.overrides.rows,
            show_progress=console.on_terminal,
            say=console.say,
            warn=console.warn,
            problems=self.problems,
        )
        return {}

    def _load_processor(self, model: ModelPlan, model_config: PretrainedConfig | None) -> Any | None:
        """Call `ModelPlan.load_processor`. If there are problems, it gets no texts and trains no tokenizer."""
        texts = None if self.data is None or self.problems else self.data.iterate_texts
        max_length, say = self.config.data.max_length, self.console.say
        return self.problems.collect(
            "", model.load_processor, self.task, model_config, texts=texts, max_length=max_length, say=say
        )

    def _fit_model(self, model: ModelPlan) -> tuple[PretrainedConfig | None, Any | None]:
        """Load the config of a transformers model, fit it to data and processor, and return it with the processor."""
        config, problems, task, data = self.config, self.problems, self.task, self.data
        label_names = None if data is None else data.output_names
        model_config = problems.collect("", model.load_config)
        processor = None
        if model_config is not None or model.has_foreign_processor:
            processor = self._load_processor(model, model_config)
        num_outputs = None if label_names is None else len(label_names)
        are_numbers = task is not None and task.problem_type == "regression"
        if task is not None and are_numbers:
            reads_several = any(column.kind == "numbers" for column in task.columns.values())
            num_outputs = 1 if not reads_several else None if data is None else data.num_numbers
        if model_config is not None and num_outputs is not None:
            problems.collect("", model.check_outputs, model_config, num_outputs, are_numbers=are_numbers)
        tokenizer = as_tokenizer(processor)
        if task is not None and model_config is not None and processor is not None:
            lines = problems.collect(
                "",
                model.fit,
                model_config,
                task=task,
                tokenizer=tokenizer,
                label_names=label_names,
                max_length=config.data.max_length,
                frozen=config.optimizer.freeze,
                groups=config.optimizer.groups,
                seed=config.seed,
            )
            for line in lines or ():
                self.console.say(line)
        num_classes = count_outputs(model_config, tokenizer) if num_outputs is None else num_outputs
        if self.loss is not None and task is not None and num_classes is not None:
            problems.collect("loss.", _check_loss, self.loss, task, num_classes)
        return model_config, processor

    def _check_unused(self, task: Task) -> None:
        """Report keys that have no effect on this task."""
        unused = [] if task.columns else [(key, "takes rows as they are") for key in _KEYS_OF_COLUMNS]
        kinds = [column.kind for column in task.columns.values()]
        if kinds and not {"class", "classes"} & {*kinds}:
            unused.append(("data.label_names", "has no classes"))
        if kinds and "class" not in kinds:
            unused.append(("data.sampling", "has no single class a row"))
        if task.joins_texts:
            unused.append(("data.weight", "joins texts to rows, which then have no weight of their own"))
        used = ("model.tokenizer", "model.trust_remote_code") if task.auto_processor else ()
        model_keys = [] if task.auto_model else [key for key in _KEYS_OF_AUTO_MODELS if key not in used]
        unused += [(key, "has a model that is not of transformers") for key in model_keys]
        self.problems.lines += [
            f"{key}: {self.values[key]}: the task {self.task_name} {reason}; remove it"
            for key, reason in unused
            if self._is_set(key)
        ]

    def _check_plain_model(self) -> None:
        """Check the keys of a model that is any `nn.Module`, not one of transformers."""
        model, problems = self.config.model, self.problems
        if self.overrides.model is not None:
            return
        if model.type is None or "." not in model.type:
            problems.lines.append(
                f"model.type: {model.type or model.name}: the model of the task {self.task_name} is the dotted path of "
                "what makes an nn.Module, with model.overrides for its arguments"
            )
            return
        factory: Any = problems.collect("", locate, model.type, place="model.type")
        if factory is not None:
            problems.lines += check_arguments(factory, model.overrides, place="model.overrides", given=())

    def _list_metrics(self) -> Entries:
        """Return the metrics that the config names, else those of the task."""
        return list(self.config.evaluate.metrics or (self.task.metrics if self.task is not None else ()))

    def _check_metrics(self, task: Task) -> None:
        """Report metrics that cannot be computed, and followed metrics that no evaluation reports."""
        entries = self._list_metrics()
        label_names = None if self.data is None else self.data.output_names  # None also if no classes were found
        num_labels = None if label_names is None else len(label_names)
        self.problems.lines += check_metrics(
            entries,
            num_labels=num_labels,
            outputs=task.list_outputs(),
            written=task.written_outputs,
            label_names=label_names,
            trust_remote_code=self.config.model.trust_remote_code,
        )
        has_classes = any(column.kind in ("class", "classes") for column in task.columns.values())
        keys = reported_keys(
            entries, num_labels=num_labels, label_names=label_names if label_names or has_classes else ()
        )
        if wrong := check_names(task.extra_metrics, owner=f"the task {self.task_name}", reported=keys or ()):
            self.problems.lines += wrong
            return
        if keys is None:
            return
        reported = [*keys, "loss", *task.extra_metrics]
        all_reported = [f"{name}/{metric}" for name in self.validation_sets for metric in reported] or reported
        self.problems.lines += [
            f"{key}: {metric} is not reported; evaluations have: {', '.join(all_reported)}"
            for key, metric in self.followed_metrics.items()
            if metric.removeprefix("-") not in all_reported
        ]


def _weigh_classes(loss: LossPlan, data: DataPlan | None) -> None:
    """Compute the loss arguments that are `auto` from class counts. Raises UserError if no classes can be counted."""
    arguments = loss.needs_counts
    if not arguments or (data is not None and data.labels is None and data.columns.label is not None):
        return  # missing classes are already reported
    counts = None if data is None else data.count_classes()
    if counts is None:
        reason = "auto: there are no classes in memory that could be counted; write a list of numbers"
        raise UserError([f"args.{name}: {reason}" for name in arguments])
    assert data is not None, "classes were counted"
    loss.weigh_classes(counts, len(data.splits["train"].rows))


def _check_loss(loss: LossPlan, task: Task, num_classes: int) -> None:
    loss.check_fits(task.problem_type)
    if not loss.needs_counts:  # else the class counts are missing, which is already reported
        loss.check_sum(*make_up_outputs(task.problem_type, num_classes))
