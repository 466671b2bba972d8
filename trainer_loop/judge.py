"""The whole config and all data, judged before a model loads or a process meets another: every problem at once."""

import dataclasses
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trainer_loop.adapters import add_adapter, check_adapter, check_targets
from trainer_loop.config.checks import missing_parts
from trainer_loop.config.component import check_arguments, choose, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.data.checks import check_splits, count_labels
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.given_rows import as_dataset, cut_rows, take_rows
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.report import describe_data
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.source import call_rows_function, given_split, load_splits, open_splits
from trainer_loop.data.split import Split
from trainer_loop.data.tokenizer import load_tokenizer, train_tokenizer
from trainer_loop.data.tokens import TokenisedSplit, tokenise_split
from trainer_loop.data.train_stream import TrainStream, prepare_stream
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.metrics.load import SHIPPED, check_metrics, reported_keys
from trainer_loop.model import (
    check_model_config,
    find_model,
    fit_model_config,
    load_model_config,
    make_empty_model,
)
from trainer_loop.optim.groups import GroupRule, check_patterns
from trainer_loop.optim.optimizers import check_optimizer, find_optimizer
from trainer_loop.optim.schedule_free import is_schedule_free
from trainer_loop.optim.schedules import check_scheduler, needs_metric
from trainer_loop.record.logs import Console
from trainer_loop.runtime.compiler import check_compiler
from trainer_loop.runtime.distributed import choose_precision
from trainer_loop.tasks.losses import LOSSES
from trainer_loop.tasks.shipped import TASKS
from trainer_loop.tasks.task import RowTask, TextTask

_SMALLER_IS_BETTER = ("loss", "perplexity")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Parts:
    """What was judged and found good."""

    task: RowTask
    splits: dict[str, TokenisedSplit]  # without train where that is streamed
    stream: TrainStream | None
    labels: LabelNames | None
    tokenizer: Any | None  # this and the next: of a task on texts
    model_config: PretrainedConfig | None
    precision: str

    @property
    def label_names(self) -> list[str] | None:
        return None if self.labels is None else self.labels.names


@dataclass(frozen=True)
class Given:
    """What was made in Python, and takes the place of what the config names."""

    task: RowTask | None = None
    model: nn.Module | None = None
    rows: Mapping[str, Any] = field(default_factory=dict)  # train, validation, test, or one of several: test.hard

    @property
    def sets(self) -> list[str]:
        """The validation sets among the rows, by their names."""
        return [part for split, part in map(parse_set, self.rows) if split == "validation"]


def judge(config: Config, *, problems: Sequence[str], console: Console, given: Given) -> Parts:
    """Judge everything in one go, then tokenise.

    problems: what is already known to be wrong with the config. Raises UserError with these and all others.
    """
    problems = list(problems)
    precision = _attempt(problems, lambda: choose_precision(config.train.precision))
    if config.model.compile:
        _attempt(problems, lambda: check_compiler("cuda" if torch.cuda.is_available() else "cpu"))
    task = given.task or _attempt(problems, lambda: _make_task(config))
    is_given = {"model": given.model is not None, "train": "train" in given.rows, "validation": bool(given.sets)}
    missing = {part: problem for part, problem in missing_parts(config).items() if not is_given[part]}
    problems += missing.values()
    problems += _check_components(config, task, given)
    if task is None or isinstance(task, TextTask):
        parts = _judge_texts(config, task, problems, console, given, has_rows="train" not in missing)
    else:
        parts = _judge_rows(config, task, problems, given)
    if problems:
        raise UserError(list(dict.fromkeys(problems)))  # one cause may be found in two places
    assert parts is not None and precision is not None
    return dataclasses.replace(parts, precision=precision)


def _judge_rows(config: Config, task: RowTask, problems: list[str], given: Given) -> Parts | None:
    """A task that takes rows as they are; its model is any `nn.Module`."""
    data, model = config.data, config.model
    if given.model is None and model.type is not None and "." in model.type:
        if (factory := _attempt(problems, lambda: locate(str(model.type), place="model.type"))) is not None:
            problems += check_arguments(factory, model.overrides, place="model.overrides", given=())  # type: ignore[arg-type]
    elif given.model is None:
        problems.append(
            f"model.type: {model.type or model.name}: the task {config.task.name} takes rows as they are, so its model "
            "is the dotted path of what makes an nn.Module, with model.overrides for its arguments"
        )
    problems += check_metrics(metric_entries(config, task), num_labels=None)
    specs = {"train": data.train, **name_sets("validation", data.validation), **name_sets("test", data.test)}
    splits: dict[str, TokenisedSplit] = {}
    for name, spec in (specs | dict(given.rows)).items():
        split = _attempt(problems, lambda: _take_split(name, spec, is_given=name in given.rows, seed=config.seed))  # noqa: B023
        if split is not None:
            splits[name] = split
    if problems:
        return None
    splits = cut_rows(
        splits,
        fraction=data.validation_fraction,
        limit=dataclasses.asdict(data.limit),
        seed=config.seed,
    )
    return Parts(task, splits, None, None, None, None, "")


def _take_split(name: str, spec: Any, *, is_given: bool, seed: int) -> TokenisedSplit:
    if is_given:
        return take_rows(spec, name=name, place=f"rows[{name!r}]")
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        files = find_files([spec] if isinstance(spec, str) else list(spec), key=f"data.{name}")
        split = read_files(files, split=name, texts=(), label=None)
        return take_rows(split.rows, name=name, place=name, places=split.places, fingerprint=split.fingerprint)
    return take_rows(call_rows_function(spec, split=name, seed=seed), name=name, place=f"data.{name}={spec}")


def _judge_texts(
    config: Config, task: TextTask | None, problems: list[str], console: Console, given: Given, *, has_rows: bool
) -> Parts | None:
    """A task on texts; where it is None, because it is wrong itself, the rest as far as it can be judged."""
    splits: dict[str, Split] = {}
    streamed: ShardedSplit | None = None  # the training split; among `splits` are its first rows
    label_names: LabelNames | None = None
    # Rows are judged even where something else is wrong, but not by keys that are, nor where no data is named.
    if task is not None and has_rows and not any(" data." in problem or " task." in problem for problem in problems):
        splits, streamed, label_names = _read_splits(config, task, problems, console, given)
    if task is not None:
        num_labels = None if label_names is None else len(label_names.names)
        problems += check_metrics(metric_entries(config, task), num_labels=num_labels)
    tokenizer = _attempt(problems, lambda: _get_tokenizer(config, task, splits, problems, console, given))
    model_config = _attempt(problems, lambda: _get_model_config(config, given))
    if tokenizer is not None and model_config is not None:
        fit_model_config(
            model_config,
            tokenizer=tokenizer,
            new_vocabulary=config.model.name is None and given.model is None,
            label_names=None if label_names is None else label_names.names,
        )
        problems += check_model_config(
            model_config,
            tokenizer=tokenizer,
            own_tokenizer=config.model.tokenizer is None,
            max_length=config.data.max_length,
        )
        if task is not None:
            problems += _check_model_parts(config, task, model_config)
    classes = tokenizer if label_names is None else label_names.names
    if task is not None and classes is not None:
        problems += _check_loss(config, task, len(classes))
    if problems:
        return None
    assert task is not None and tokenizer is not None and model_config is not None
    tokenised, stream = _tokenise(config, task, tokenizer, splits, streamed, label_names, console)
    return Parts(task, tokenised, stream, label_names, tokenizer, model_config, "")


def prepare_rows(config: Config, parts: Parts, rows: Any, *, labelled: bool) -> TokenisedSplit:
    """Rows that somebody holds in hand, as the model sees them; with `labelled` false their labels are left out.

    Raises UserError with all that is wrong with them.
    """
    if not isinstance(parts.task, TextTask):
        return take_rows(rows, name="rows", place="rows")
    data = config.data
    label = data.label if labelled and parts.task.needs_label else None
    split = given_split(as_dataset(rows, place="rows"), name="rows")
    problems, _, _ = check_splits(
        {"rows": split}, text=data.text, text_pair=data.text_pair, label=None, label_names=None
    )
    if label is not None and label not in split.rows.column_names:
        problems.append(
            f"data.label={label}: the rows have no such column; they have {', '.join(split.rows.column_names)}"
        )
    elif label is not None and parts.labels is not None:
        strangers = sorted(str(raw) for raw in count_labels(split, label) if raw not in parts.labels.ids)
        if strangers:
            known, told = ", ".join(str(raw) for raw in parts.labels.ids), ", ".join(strangers[:5])
            problems.append(f"data.label={label}: the rows have labels that were not trained: {told}; known: {known}")
    if problems:
        raise UserError([problem.replace("data.rows", "rows") for problem in problems])
    return tokenise_split(
        split,
        task=parts.task,
        tokenizer=parts.tokenizer,
        text=data.text,
        text_pair=data.text_pair,
        label=label,
        label_names=None if label is None else parts.labels,
        max_length=data.max_length,
        cache_dir=data.cache_dir,
        show_progress=False,
        say=lambda line: None,
    )


def metric_entries(config: Config, task: RowTask) -> list[str | Mapping[str, Any]]:
    """The metrics the config names, else the task's own."""
    return list(config.evaluate.metrics or task.default_metrics)


def _attempt(problems: list[str], function: Callable[[], _T]) -> _T | None:
    """The result, or None with its problems put to the others."""
    try:
        return function()
    except UserError as error:
        problems += error.problems
        return None


def _make_task(config: Config) -> RowTask:
    factory: Any = choose(config.task.name, TASKS, place="task.name")
    if not (isinstance(factory, type) and issubclass(factory, RowTask)):
        raise UserError(
            f"task.name: {config.task.name} is no subclass of TextTask or RowTask, see trainer_loop/tasks/task.py"
        )
    if missing := sorted(factory.__abstractmethods__):
        raise UserError(f"task.name: {config.task.name} lacks {', '.join(missing)}; see trainer_loop/tasks/task.py")
    problems = check_arguments(factory, config.task.args, place="task.args", given=("loss_function",))
    arguments: dict[str, Any] = dict(config.task.args)
    if config.loss.name is not None or config.loss.args:
        loss = choose(config.loss.name or "cross_entropy", LOSSES, place="loss.name")
        if not callable(loss):
            raise UserError(f"loss.name: {config.loss.name} is no function (logits, targets) -> sum")
        # The first two parameters are what the task passes, whatever they are called.
        try:
            passed = list(inspect.signature(loss).parameters)[:2]
        except ValueError:  # a built-in that does not tell: calling it will
            passed = []
        problems += check_arguments(loss, config.loss.args, place="loss.args", given=passed)
        arguments["loss_function"] = functools.partial(loss, **config.loss.args)
    if config.data.text_pair is not None and not (issubclass(factory, TextTask) and factory.takes_pairs):
        problems.append(
            f"data.text_pair: {config.data.text_pair}: the task {config.task.name} takes one text; remove it"
        )
    if config.model.packing and not (issubclass(factory, TextTask) and factory.can_pack):
        problems.append(f"model.packing: the task {config.task.name} knows no packed batches; set model.packing=false")
    if problems:
        raise UserError(problems)
    return factory(**arguments)


def _check_loss(config: Config, task: TextTask, num_classes: int) -> list[str]:
    """A loss that the config names must add up: of rows given twice it is twice as much. A mean depends on the cut."""
    loss_function = getattr(task, "loss_function", None)
    if loss_function is None or (config.loss.name is None and not config.loss.args):
        return []
    place = f"loss.name: {config.loss.name}" if config.loss.name is not None else "loss.args: cross_entropy"
    targets = torch.tensor([0, 1, 1, 0])
    logits = torch.linspace(-9, 9, 4 * num_classes).sin().view(4, num_classes).requires_grad_()
    try:
        once = loss_function(logits, targets)
        twice = loss_function(logits.repeat(2, 1), targets.repeat(2))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and is told where
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = in_one_line(error, at_most=200)
        return [
            f"{place} fails on logits [4, {num_classes}] and targets [4]: {type(error).__name__}: {told} "
            f"({frame.filename}:{frame.lineno})"
        ]
    if not isinstance(once, torch.Tensor) or once.ndim != 0:
        shape = (
            f"a tensor of shape {list(once.shape)}" if isinstance(once, torch.Tensor) else f"a {type(once).__name__}"
        )
        return [f"{place} returns {shape}; it must be one number, the sum over the targets: use .sum()"]
    if not once.requires_grad:
        return [f"{place} returns a number that does not depend on the logits, so nothing can be learnt"]
    if not torch.isclose(twice, 2 * once, rtol=1e-3):
        return [
            f"{place} gives {once.item():.4g} for four rows and {twice.item():.4g} for them twice; "
            "it must be a sum over the targets (reduction='sum'), for the loop alone divides"
        ]
    return []


def _check_components(config: Config, task: RowTask | None, given: Given) -> list[str]:
    """Names and arguments of everything the config names, by signature."""
    from accelerate.tracking import get_available_trackers

    problems = check_optimizer(
        config.optimizer.name, weight_decay=config.optimizer.weight_decay, args=config.optimizer.args
    )
    if not problems and config.ema.decay is not None and is_schedule_free(find_optimizer(config.optimizer.name)):
        problems.append(
            f"ema.decay: {config.ema.decay}: {config.optimizer.name} keeps an average of the weights itself; "
            "set it to null"
        )
    problems += check_scheduler(config.scheduler.name, args=config.scheduler.args)
    if task is not None:
        entries = metric_entries(config, task)
        problems += _check_fit(entries, task)
        keys = reported_keys(entries, num_labels=None)
        problems += [] if keys is None else _check_figures(config, [*keys, "loss"], given)
    problems += _check_schedule_metric(config, given)
    if (adapter := adapter_of(config)) is not None:
        kind, arguments, place = adapter
        problems += check_adapter(kind, arguments, name_place=place, place=f"{place}.args")
    for place, figure in _figures(config).items():
        if figure.rpartition("/")[2] in _SMALLER_IS_BETTER and not figure.startswith("-"):
            problems.append(f"{place}: {figure} would pick the largest {figure}; smaller is better: write -{figure}")
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.log.trackers:
        if tracker not in installed:
            problems.append(
                f"log.trackers: {tracker} is unknown to accelerate or not installed; "
                f"installed: {', '.join(installed) or 'none'}; try pip install {tracker}"
            )
    return problems


def _figures(config: Config) -> dict[str, str]:
    """The figures of an evaluation that something follows, by the key that names them."""
    named = {"checkpoint.best": config.checkpoint.best, "scheduler.metric": config.scheduler.metric}
    return {place: figure for place, figure in named.items() if figure is not None}


def _name_validation_sets(config: Config, given: Given) -> list[str]:
    """Those that have names."""
    named = list(config.data.validation) if isinstance(config.data.validation, dict) else []
    return named + [name for name in given.sets if name]


def _check_figures(config: Config, reported: Sequence[str], given: Given) -> list[str]:
    """Figures that something follows and no evaluation has. reported: those of one set."""
    sets = _name_validation_sets(config, given)
    all_reported = [f"{name}/{figure}" for name in sets for figure in reported] or list(reported)
    return [
        f"{place}: {figure} is not reported; evaluations have: {', '.join(all_reported)}"
        for place, figure in _figures(config).items()
        if figure.removeprefix("-") not in all_reported
    ]


def adapter_of(config: Config) -> tuple[str, dict[str, Any], str] | None:
    """The adapter that the config names, its arguments and the section they are from; None: the model itself learns."""
    lora, peft = config.model.lora, config.model.peft
    if lora.r is not None:
        arguments = {
            "r": lora.r,
            "lora_alpha": 2 * lora.r if lora.alpha is None else lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": lora.target_modules or "all-linear",
            "use_dora": lora.dora,
        }
        return "lora", arguments, "model.lora"
    return None if peft.name is None else (peft.name, dict(peft.args), "model.peft")


def _check_schedule_metric(config: Config, given: Given) -> list[str]:
    """A schedule that moves by evaluations needs them, and no other has a metric."""
    name, metric = config.scheduler.name, config.scheduler.metric
    if not needs_metric(name):
        return [] if metric is None else [f"scheduler.metric: {metric}: {name} follows none; remove it"]
    if config.evaluate.every == "never":
        return [f"scheduler.name: {name} follows the validation loss; set evaluate.every"]
    if config.data.validation is None and config.data.validation_fraction is None and not given.sets:
        return [f"scheduler.name: {name} follows the validation loss; set data.validation or data.validation_fraction"]
    if metric is None and (sets := _name_validation_sets(config, given)):
        return [f"scheduler.name: {name} follows one of several sets; set scheduler.metric, such as -{sets[0]}/loss"]
    return []


def _check_model_parts(config: Config, task: TextTask, model_config: PretrainedConfig) -> list[str]:
    """The adapter, and patterns of parameter names, on a model without weights."""
    optimizer, adapter = config.optimizer, adapter_of(config)
    if not optimizer.freeze and not optimizer.groups and adapter is None:
        return []
    model = make_empty_model(
        model_config, model_class=task.model_class, trust_remote_code=config.model.trust_remote_code
    )
    if adapter is not None:
        kind, arguments, place = adapter
        if problems := check_targets(model, config.model.lora.target_modules, place="model.lora.target_modules"):
            return problems
        try:
            model = add_adapter(
                model, kind=kind, arguments=arguments, task_type=task.adapter_type, place=place, seed=config.seed
            )
        except UserError as error:
            return error.problems
    rules = [GroupRule(entry["match"]) for entry in optimizer.groups]
    return check_patterns(model, frozen=optimizer.freeze, rules=rules)


def _check_fit(entries: Sequence[str | Mapping[str, Any]], task: RowTask) -> list[str]:
    """Shipped metrics that compare something else than what the task predicts."""
    problems = []
    for index, entry in enumerate(entries):
        name = entry if isinstance(entry, str) else entry["name"]
        if task.fitting_metrics is not None and name in SHIPPED and name not in task.fitting_metrics:
            fitting = ", ".join(task.fitting_metrics)
            problems.append(f"evaluate.metrics[{index}]: {name} does not fit this task; those that do: {fitting}")
    return problems


def _read_splits(
    config: Config, task: TextTask, problems: list[str], console: Console, given: Given
) -> tuple[dict[str, Split], ShardedSplit | None, LabelNames | None]:
    """The raw splits, the one that is streamed, and the label names; what is wrong with them goes to `problems`.

    Of a training split that is streamed the first rows are among the splits.
    """
    data = config.data
    label = data.label if task.needs_label else None
    asked: dict[str, Any] = {
        "name": data.name,
        "config": data.config,
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
        "limit": dataclasses.asdict(data.limit),
        "text": data.text,
        "text_pair": data.text_pair,
        "label": label,
        "seed": config.seed,
        "show_progress": console.on_terminal,
    }
    for name, rows in given.rows.items():
        table = _attempt(problems, lambda: as_dataset(rows, place=f"rows[{name!r}]"))  # noqa: B023
        split, part = parse_set(name)
        asked[split] = {**(asked[split] or {}), part: table} if part else table
    streamed = None
    if data.streaming:
        splits, streamed, wrong = open_splits(**asked)
    else:
        splits, wrong = load_splits(**asked, validation_fraction=data.validation_fraction)
    problems += wrong
    wrong, warnings, label_names = check_splits(
        splits,
        text=data.text,
        text_pair=data.text_pair,
        label=label,
        label_names=data.label_names,
        is_streamed=data.streaming,
    )
    if data.validation_fraction is not None:  # both were one file: what is wrong with all of it is told once
        told = set(wrong)
        wrong = [
            problem
            for problem in wrong
            if "data.validation" not in problem or problem.replace("data.validation", "data.train") not in told
        ]
    problems += wrong
    for warning in warnings:
        console.warn(warning)
    return splits, streamed, label_names


def _get_tokenizer(
    config: Config,
    task: TextTask | None,
    splits: Mapping[str, Split],
    problems: Sequence[str],
    console: Console,
    given: Given,
) -> Any | None:
    """The tokenizer named, or one trained on the training texts where these are in order."""
    if config.model.tokenizer == "train":
        if problems or task is None:
            return None
        return train_tokenizer(
            _texts(splits["train"], config.data.text, config.data.text_pair),
            style=task.tokenizer_style,
            vocab_size=config.model.vocab_size,
            max_length=config.data.max_length,
        )
    name = config.model.tokenizer or config.model.name or getattr(given.model, "name_or_path", None)
    if not name:
        return None  # the config was told so already
    name = find_model(name)
    return load_tokenizer(name, trust_remote_code=config.model.trust_remote_code, say=console.say)


def _get_model_config(config: Config, given: Given) -> PretrainedConfig | None:
    model = config.model
    if given.model is not None:
        if not isinstance(given.model, PreTrainedModel):
            raise UserError(
                f"model: a {type(given.model).__name__} was given; a task on texts needs a model of transformers"
            )
        own: PretrainedConfig = given.model.config
        return own
    if model.name is None and model.type is None:
        return None  # the config was told so already
    return load_model_config(
        name=model.name, model_type=model.type, overrides=model.overrides, trust_remote_code=model.trust_remote_code
    )


def _tokenise(
    config: Config,
    task: TextTask,
    tokenizer: Any,
    splits: Mapping[str, Split],
    streamed: ShardedSplit | None,
    label_names: LabelNames | None,
    console: Console,
) -> tuple[dict[str, TokenisedSplit], TrainStream | None]:
    """The rows as the model sees them, and the report of the data; of a stream it is that of its first rows."""
    data = config.data
    task.bind(tokenizer, packs=config.model.packing)
    asked: dict[str, Any] = {
        "task": task,
        "tokenizer": tokenizer,
        "text": data.text,
        "text_pair": data.text_pair,
        "label": data.label if task.needs_label else None,
        "label_names": label_names,
        "max_length": data.max_length,
        "cache_dir": data.cache_dir,
        "show_progress": console.on_terminal,
        "say": console.say,
    }
    stream = None
    if streamed is not None:
        stream = prepare_stream(
            streamed,
            splits["train"],
            **asked,
            is_counted=config.train.steps is None,
            shuffle_rows=data.shuffle_rows,
            seed=config.seed,
        )
        splits = {name: split for name, split in splits.items() if name != "train"}
    tokenised = {name: tokenise_split(split, **asked) for name, split in splits.items()}
    for line in describe_data(
        tokenised, splits=splits, text=data.text, text_pair=data.text_pair, label_names=label_names
    ):
        console.say(line)
    return tokenised, stream


def _texts(split: Split, text: str, text_pair: str | None) -> Iterator[str]:
    """Every text of a split, one after the other, without holding them all."""
    columns = [text] if text_pair is None else [text, text_pair]
    for batch in split.rows.select_columns(columns).iter(batch_size=1000):
        for column in columns:
            yield from batch[column]
