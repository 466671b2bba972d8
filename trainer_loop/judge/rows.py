"""Rows that are taken as they are, and rows that somebody holds in hand."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from trainer_loop.components import check_arguments, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.load import values_of
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.data.checks import check_splits
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.given_rows import as_dataset, cut_rows, take_rows
from trainer_loop.data.loader import KeptRows
from trainer_loop.data.missing import Holes, settle_missing
from trainer_loop.data.source import call_rows_function, given_split
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.tokens import TokenisedSplit, tokenise_split
from trainer_loop.data.wording import did_you_mean
from trainer_loop.errors import UserError
from trainer_loop.judge.components import check_figures, metric_entries
from trainer_loop.judge.parts import Given, Parts, attempt
from trainer_loop.metrics.load import check_metrics
from trainer_loop.tasks.task import RowTask, TextTask

_SPLITS = ("train", "validation", "test")
_SET_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FOR_TEXTS = (
    *("data.name", "data.config", "data.streaming", "data.missing", "data.text", "data.label", "data.label_names"),
    *("data.max_length", "model.tokenizer", "model.vocab_size", "model.from_scratch", "model.attention"),
    *("model.compile", "model.quantize", "model.neftune_alpha", "model.gradient_checkpointing"),
    *("model.lora.r", "model.peft.name", "model.trust_remote_code"),
)


def judge_rows(config: Config, task: RowTask, problems: list[str], given: Given) -> Parts | None:
    """A task that takes rows as they are; its model is any `nn.Module`."""
    data, model = config.data, config.model
    if given.model is None and model.type is not None and "." in model.type:
        if (factory := attempt(problems, lambda: locate(str(model.type), place="model.type"))) is not None:
            problems += check_arguments(factory, model.overrides, place="model.overrides", given=())  # type: ignore[arg-type]
    elif given.model is None:
        problems.append(
            f"model.type: {model.type or model.name}: the task {config.task.name} takes rows as they are, so its model "
            "is the dotted path of what makes an nn.Module, with model.overrides for its arguments"
        )
    problems += check_metrics(
        metric_entries(config, task),
        num_labels=None,
        outputs=task.outputs,
        trust_remote_code=config.model.trust_remote_code,
    )
    problems += check_figures(config, task, None, given)
    values = values_of(config)
    problems += [
        f"{name}: {values[name]}: the task {config.task.name} takes rows as they are, and this is for texts; remove it"
        for name in _FOR_TEXTS
        if values[name] != KEYS[name].default
    ]
    if data.validation_fraction is not None and given.sets:
        problems.append(
            f"data.validation_fraction: {data.validation_fraction}: validation rows are given; set it to null"
        )
    specs = {"train": data.train, **name_sets("validation", data.validation), **name_sets("test", data.test)}
    splits: dict[str, TokenisedSplit] = {}
    for name, spec in (specs | dict(given.rows)).items():
        split = attempt(problems, lambda: _take_split(config, name, spec, is_given=name in given.rows))  # noqa: B023
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


def _take_split(config: Config, name: str, spec: Any, *, is_given: bool) -> TokenisedSplit:
    if is_given:
        return take_rows(spec, name=name, place=f"rows[{name!r}]")
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        files = find_files([spec] if isinstance(spec, str) else list(spec), key=f"data.{name}")
        split = read_files(files, split=name, texts=(), label=None, keeps_all=True, text_format=text_format_of(config))
        return take_rows(split.rows, name=name, place=name, origins=split.origins, fingerprint=split.fingerprint)
    rows = call_rows_function(spec, split=name, seed=config.seed)
    return take_rows(rows, name=name, place=f"data.{name}={spec}")


def text_format_of(config: Config) -> TextFormat:
    files = config.data.files
    return TextFormat(files.delimiter, files.quoting, files.encoding)


def prepare_rows(
    config: Config, parts: Parts, rows: Any, *, labelled: bool, say: Callable[[str], None]
) -> tuple[TokenisedSplit, KeptRows | None]:
    """Rows that somebody holds in hand, as the model sees them, and which of them were kept; None: all.

    labelled: they have labels; else those are left out. Raises UserError with all that is wrong with them.
    """
    if not isinstance(parts.task, TextTask):
        return take_rows(rows, name="rows", place="rows"), None
    data = config.data
    label = data.label if labelled and parts.task.needs_label else None
    texts = [data.text] if data.text_pair is None else [data.text, data.text_pair]
    wanted = [*texts, *([] if label is None else [label])]
    named = given_split(as_dataset(rows, place="rows", columns=wanted), name="rows", texts=texts, label=label)
    try:
        split, told = settle_missing(named, Holes(texts, label, blank=parts.task.needs_label), missing=data.missing)
        problems, _, _ = check_splits(
            {"rows": split},
            text=data.text,
            text_pair=data.text_pair,
            label=label,
            label_names=None,
            missing=data.missing,
            known=parts.labels,
            may_be_blank=not parts.task.needs_label,
        )
        if problems:
            raise UserError(problems)
    except UserError as error:
        raise UserError([problem.replace("data.rows", "rows") for problem in error.problems]) from error
    for line in told:
        say(line)
    kept = split.origins.number - 1 if len(split.rows) < len(named.rows) else None  # numbers count from 1
    tokenised = tokenise_split(
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
    return tokenised, None if kept is None else KeptRows(kept, len(named.rows))


def check_given_rows(rows: Any) -> dict[str, Any]:
    """Rows that were made in Python, by the split whose place they take. Raises UserError where a name is no split."""
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
    if problems:
        raise UserError(problems)
    return dict(rows)
