"""A task on texts: its splits, labels, tokenizer and model are judged together, and its rows tokenised."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import parse_set
from trainer_loop.data.checks import check_splits
from trainer_loop.data.given_rows import as_dataset
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.report import describe_data
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.source import load_splits, open_splits
from trainer_loop.data.split import Split
from trainer_loop.data.tokenizer import load_tokenizer, train_tokenizer
from trainer_loop.data.tokens import TokenisedSplit, tokenise_split
from trainer_loop.data.train_stream import TrainStream, prepare_stream
from trainer_loop.errors import UserError
from trainer_loop.judge.components import adapter_of, check_figures, check_loss, check_model_parts, metric_entries
from trainer_loop.judge.parts import Given, Parts, attempt
from trainer_loop.judge.rows import text_format_of
from trainer_loop.metrics.load import check_metrics
from trainer_loop.models.config import (
    check_given_overrides,
    check_model_class,
    check_model_config,
    check_outputs,
    count_outputs,
    find_model,
    find_text_config,
    fit_model_config,
    load_model_config,
    make_empty_model,
)
from trainer_loop.models.weight_files import check_weight_files
from trainer_loop.record.logs import Console
from trainer_loop.tasks.task import TextTask


def judge_texts(
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
        problems += check_metrics(
            metric_entries(config, task),
            num_labels=num_labels,
            outputs=task.outputs,
            trust_remote_code=config.model.trust_remote_code,
        )
        problems += check_figures(config, task, num_labels, given)
    num_problems = len(problems)
    model_config = attempt(problems, lambda: _get_model_config(config, given))
    tokenizer = None
    # The tokenizer of a model is loaded with its config.json too: what is wrong with that is told once.
    if not any(" cannot be loaded: " in problem for problem in problems[num_problems:]):
        tokenizer = attempt(problems, lambda: _get_tokenizer(config, task, splits, problems, console, given))
    if given.model is not None and model_config is not None and label_names is not None:
        problems += check_outputs(model_config, len(label_names.names))
    names = None if label_names is None else label_names.names
    if task is not None and model_config is not None and tokenizer is not None:
        problems += _check_model(config, task, model_config, tokenizer, names, console, given)
    num_classes = len(names) if names is not None else count_outputs(model_config, tokenizer)
    if task is not None and num_classes is not None:
        problems += check_loss(config, task, num_classes)
    if problems:
        return None
    assert task is not None and tokenizer is not None and model_config is not None
    end_token = find_text_config(model_config).eos_token_id if model_config.is_encoder_decoder else None
    task.bind(tokenizer, packs=config.model.packing, end_token=end_token)
    tokenised, stream = _tokenise(config, task, tokenizer, splits, streamed, label_names, console)
    return Parts(task, tokenised, stream, label_names, tokenizer, model_config, "")


def _check_model(
    config: Config,
    task: TextTask,
    model_config: PretrainedConfig,
    tokenizer: Any,
    label_names: Sequence[str] | None,
    console: Console,
    given: Given,
) -> list[str]:
    """Fit the model's config to data and tokenizer -> what does not go together, found without weights."""
    model = config.model
    place = f"model.name: {model.name}" if model.name is not None else f"model.type: {model.type}"
    problems = [] if given.model is not None else _check_files(config, model_config, place, task)
    problems += check_given_overrides(
        model.overrides, label_names=label_names, tokenizer=tokenizer if model.name is None else None
    )
    if problems:
        return problems
    for line in fit_model_config(
        model_config,
        tokenizer=tokenizer,
        new_vocabulary=model.name is None and given.model is None,
        vocab_size=model.overrides.get("vocab_size"),
        label_names=label_names,
    ):
        console.say(line)
    empty = given.model if adapter_of(config) is None else None
    if empty is None:
        make = functools.partial(make_empty_model, model_config, model_class=task.model_class)
        empty = attempt(problems, lambda: make(trust_remote_code=model.trust_remote_code))
    if empty is None:
        return problems
    problems += check_model_config(
        model_config,
        empty=empty,
        tokenizer=tokenizer,
        own_tokenizer=model.tokenizer is None and given.model is None,
        max_length=config.data.max_length,
        needs_end=model_config.is_encoder_decoder and task.reads_end,
    )
    return problems + check_model_parts(config, task, empty)


def _check_files(config: Config, model_config: PretrainedConfig, place: str, task: TextTask) -> list[str]:
    """Whether the model's folder has what the task needs, and weights that can be read."""
    model = config.model
    problems = check_model_class(
        model_config, model_class=task.model_class, place=place, trust_remote_code=model.trust_remote_code
    )
    if model.name is not None and not model.from_scratch:
        folder = Path(find_model(model.name))
        or_else = ", or build a new model from its config with model.from_scratch=true"
        faults = check_weight_files(folder, or_else=or_else) if folder.is_dir() else []
        problems += [f"model.name: {fault}" for fault in faults]
        if getattr(model_config, "quantization_config", None) is not None:
            problems.append(
                f"{place} holds weights that were quantised before, which cannot learn; take the model they were made "
                "from, and model.quantize=4bit with an adapter"
            )
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
        "text_format": text_format_of(config),
        "missing": data.missing,
        "say": console.say,
    }
    if not _take_given_rows(asked, given, problems, columns=[data.text, data.text_pair, label]):
        return {}, None, None
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
        missing=data.missing,
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


def _take_given_rows(
    asked: dict[str, Any], given: Given, problems: list[str], *, columns: Sequence[str | None]
) -> bool:
    """Put rows that were made in Python in the place of what the config names; whether all of them can be read."""
    wanted = [column for column in columns if column is not None]
    tables = {
        name: attempt(problems, lambda: as_dataset(rows, place=f"rows[{name!r}]", columns=wanted))  # noqa: B023
        for name, rows in given.rows.items()
    }
    for name, table in tables.items():
        split, part = parse_set(name)
        named = asked[split] if isinstance(asked[split], Mapping) else {}
        asked[split] = {**named, part: table} if part else table
    return None not in tables.values()


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
            framed=task.model_class != "AutoModelForCausalLM",
            vocab_size=config.model.vocab_size,
            max_length=config.data.max_length,
        )
    # A model that was given brings its own, wherever it comes from: the config may name another model.
    name = config.model.tokenizer or getattr(given.model, "name_or_path", None) or config.model.name
    if not name:
        if given.model is not None:
            raise UserError("model.tokenizer: the model that was given does not say where its tokenizer is; set it")
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
            missing=data.missing,
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
