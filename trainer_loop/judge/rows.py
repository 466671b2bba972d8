"""Rows that are taken as they are, and rows that somebody holds in hand."""

import dataclasses
from typing import Any

from trainer_loop.config.component import check_arguments, locate
from trainer_loop.config.fields import Config
from trainer_loop.config.load import values_of
from trainer_loop.config.named_sets import name_sets
from trainer_loop.config.schema import KEYS
from trainer_loop.data.checks import check_splits, count_labels
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.given_rows import as_dataset, cut_rows, take_rows
from trainer_loop.data.source import call_rows_function, given_split
from trainer_loop.data.tokens import TokenisedSplit, tokenise_split
from trainer_loop.errors import UserError
from trainer_loop.judge.components import check_figures, metric_entries
from trainer_loop.judge.parts import Given, Parts, attempt
from trainer_loop.metrics.load import check_metrics
from trainer_loop.tasks.task import RowTask, TextTask

_FOR_TEXTS = (
    *("data.name", "data.config", "data.streaming", "data.text", "data.label", "data.label_names"),
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
        split = attempt(problems, lambda: _take_split(name, spec, is_given=name in given.rows, seed=config.seed))  # noqa: B023
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
        split = read_files(files, split=name, texts=(), label=None, keeps_all=True)
        return take_rows(split.rows, name=name, place=name, places=split.places, fingerprint=split.fingerprint)
    return take_rows(call_rows_function(spec, split=name, seed=seed), name=name, place=f"data.{name}={spec}")


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
