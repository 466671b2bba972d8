"""Finds config keys that contradict each other. values.py checks single keys."""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import is_query, name_sets
from trainer_loop.config.schema import KEYS, MUST_NOT_CHANGE, value_of
from trainer_loop.config.values import shown
from trainer_loop.errors import suggest

LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes, characters
_PATHS = ("run_dir", "resume", "model.name", "model.tokenizer", "data.name", "data.cache_dir")
_ALWAYS_ALLOWED, _PER_CORE = 64, 4  # limits on data.num_workers and train.threads
_TRAIN_BY_DEFAULT = ("data.train", KEYS["data.train"].default)
# (keys in conflict, problem). The problem names the keys, their values and the remedy.
Conflict = tuple[tuple[str, ...], str]


def conflicts(config: Config) -> Iterator[Conflict]:
    """Yield every conflict between keys, and every key that is missing because of another one."""
    yield from _model_conflicts(config)
    yield from _adapter_conflicts(config)
    yield from _data_conflicts(config)
    yield from _stream_conflicts(config)
    yield from _batch_conflicts(config)
    yield from _length_conflicts(config)
    yield from _best_conflicts(config)
    yield from _resume_conflicts(config)
    yield from _hub_conflicts(config)
    yield from _machine_conflicts(config)


def has_validation(config: Config) -> bool:
    """Return whether the config names validation rows, or uses a part of train for validation."""
    data = config.data
    return any(part is not None for part in (data.validation, data.validation_fraction, data.fold))


def missing_parts(config: Config) -> dict[str, str]:
    """Return the required parts (model, train, validation) that the config lacks, each with its problem.

    Python code may pass these parts instead.
    """
    missing = {}
    if config.model.name is None and config.model.type is None:
        missing["model"] = (
            "neither model.name nor model.type is given; set model.name to a hub id or a local directory, "
            "or model.type to build a new model, such as bert, or begin with a shipped file: config=quickstart.yaml"
        )
    names_no_rows = ("data.train", config.data.train) == _TRAIN_BY_DEFAULT and not config.data.mixture
    if config.data.name is None and names_no_rows:
        missing["train"] = (
            "data.train is 'train', the name of a split, but data.name is null; "
            "set data.name to a hub id, or data.train to a file such as train.csv"
        )
    if not has_validation(config):
        metrics = {"checkpoint.best": config.checkpoint.best, "train.patience_metric": config.train.patience_metric}
        for name, metric in metrics.items():
            if metric is not None and "validation" not in missing:
                missing["validation"] = (
                    f"{name} is {shown(metric)}, but there is no validation set to measure it on; "
                    f"set data.validation or data.validation_fraction, or {name} to null"
                )
    return missing


def _model_conflicts(config: Config) -> Iterator[Conflict]:
    model = config.model
    if model.name is not None and model.type is not None:
        for keys, problem in _exclusive(config, "model.name", "model.type"):
            yield keys, f"{problem}; model.from_scratch=true builds a new model of the named one's shape"
    elif model.name is not None and model.tokenizer == "train" and not model.from_scratch:
        yield (
            ("model.tokenizer", "model.name", "model.from_scratch"),
            f"model.tokenizer is 'train', but the weights of {model.name} know only their own tokens; "
            "leave model.tokenizer out, or write model.from_scratch=true",
        )
    if model.packing and model.compile:
        yield (
            ("model.packing", "model.compile"),
            "model.packing and model.compile are true, but packed rows would be compiled anew for each microbatch; "
            "set one of them to false",
        )
    if model.packing and model.attention != "auto":
        yield (
            ("model.packing", "model.attention"),
            f"model.packing is true and model.attention is {shown(model.attention)}, but packed rows bring their own "
            "attention; set model.attention=auto",
        )


def _adapter_conflicts(config: Config) -> Iterator[Conflict]:
    lora, peft = config.model.lora, config.model.peft
    yield from _exclusive(config, "model.lora.r", "model.peft.name")
    is_new = config.model.from_scratch or config.model.name is None
    for section, settings, switch in (("lora", lora, lora.r), ("peft", peft, peft.name)):
        if switch is not None:
            if is_new and not settings.merge:
                yield (
                    (f"model.{section}.merge", "model.from_scratch", "model.type"),
                    f"model.{section}.merge is false, but the model is new, and an adapter alone is of no use without "
                    f"it; set model.{section}.merge=true, or model.name to a model that is trained already",
                )
            continue
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if value != KEYS[f"model.{section}.{field.name}"].default:
                other, other_switch = ("peft", peft.name) if section == "lora" else ("lora", lora.r)
                remedy = f"set model.{section}.{'r' if section == 'lora' else 'name'}"
                if other_switch is not None:
                    remedy = f"this run's adapter is that of model.{other}, which has keys of its own"
                    remedy += f": set model.{other}.merge" if field.name == "merge" else ""
                yield (
                    (f"model.{section}.{field.name}",),
                    f"model.{section}.{field.name} is {shown(value)}, but there is no such adapter; {remedy}",
                )


def _data_conflicts(config: Config) -> Iterator[Conflict]:
    data = config.data
    yield from _exclusive(config, "data.validation", "data.validation_fraction")
    yield from _exclusive(config, "data.validation", "data.fold")
    yield from _exclusive(config, "data.validation_fraction", "data.fold")
    if data.mixture and ("data.train", data.train) != _TRAIN_BY_DEFAULT:
        yield (
            ("data.mixture", "data.train"),
            f"data.mixture and data.train ({shown(data.train)}) are both given; leave data.train out, or set it to "
            "its default, train",
        )
    if data.split_by is not None and data.validation_fraction is None and data.fold is None:
        yield (
            ("data.split_by", "data.validation_fraction"),
            f"data.split_by={data.split_by} says how validation rows are cut off; set data.validation_fraction or "
            "data.fold",
        )
    if data.sampling == "balanced" and data.mixture:
        yield (
            ("data.sampling", "data.mixture"),
            "data.sampling=balanced and data.mixture each say how the rows of an epoch are drawn; leave one out",
        )
    if data.name is not None:
        return
    sets = name_sets("data.validation", data.validation) | name_sets("data.test", data.test)
    for name, split in ({"data.train": data.train} | sets).items():
        if (name, split) == _TRAIN_BY_DEFAULT:
            continue  # see missing_parts
        for word in split if isinstance(split, list) else [split]:
            if isinstance(word, str) and re.fullmatch(r"[A-Za-z0-9_-]+", word) and not os.path.isdir(word):  # noqa: PTH112
                yield (
                    (".".join(name.split(".")[:2]), "data.name"),
                    f"{name} is {shown(word)}, the name of a split, but data.name is null; "
                    f"set data.name to a hub id, or {name} to a file such as {word}.csv",
                )


def _stream_conflicts(config: Config) -> Iterator[Conflict]:
    data, train = config.data, config.train
    if not data.streaming:
        return
    reasons: dict[str, str] = {}
    if is_query(data.train):
        reasons["data.train"] = "a database is not streamed; set data.streaming=false, or write its rows to a file"
    if data.deduplicate:
        reasons["data.deduplicate"] = "the rows of a stream are not known before they are read; leave it out"
    if any(entry.get("deduplicate") for entry in data.mixture):
        reasons["data.mixture"] = "the rows of a stream are not known before they are read; leave deduplicate out"
    for name in ("data.validation_fraction", "data.fold"):
        if value_of(config, name) is not None:
            reasons[name] = "no part of a stream can be cut off; set it to null, and data.validation to other rows"
    if data.limit.train is not None:
        reasons["data.limit.train"] = "no sample of a stream can be drawn; set train.steps instead"
    if data.num_workers not in ("auto", 0):
        reasons["data.num_workers"] = "a stream is read ahead by a thread of its own; leave data.num_workers out"
    if data.sampling == "balanced":
        reasons["data.sampling"] = "the classes of a stream are not counted; set data.sampling=shuffle"
    if config.batch.order == "window":
        reasons["batch.order"] = "the rows of a stream are not known before they are read; set batch.order=shuffle"
    if config.model.tokenizer == "train":
        reasons["model.tokenizer"] = (
            "a stream is not read before training; "
            "name a tokenizer, such as one trained by a run without data.streaming"
        )
    for name, reason in reasons.items():
        yield (name, "data.streaming"), f"{name} is {shown(value_of(config, name))}, but {reason}"
    if data.mixture and train.steps is None:
        yield (
            ("train.steps", "data.mixture", "data.streaming"),
            "train.steps is null, but a data.mixture that is streamed has no epochs that end; set train.steps, and "
            "evaluate.every and checkpoint.every to numbers of steps",
        )
    counted = "" if data.mixture else ", or set train.epochs in place of train.steps: then they are counted"
    for name, every, is_used in (
        ("evaluate.every", config.evaluate.every, data.validation is not None),
        ("checkpoint.every", config.checkpoint.every, True),
    ):
        if train.steps is not None and (every == "epoch" or isinstance(every, float)) and is_used:
            yield (
                (name, "train.steps", "data.streaming"),
                f"{name} is {shown(every)}, but with train.steps the rows of a stream are not counted; set {name} "
                f"to a number of steps{counted}",
            )


def _batch_conflicts(config: Config) -> Iterator[Conflict]:
    batch = config.batch
    if batch.window is not None and batch.order != "window":
        yield (
            ("batch.window", "batch.order"),
            f"batch.window is {batch.window}, but batch.order is {shown(batch.order)}, which has none; "
            "set batch.order=window, or leave batch.window out",
        )
    if batch.accumulate is None:
        return
    yield from _exclusive(config, "batch.size", "batch.accumulate")
    if batch.per_device is None:
        yield (
            ("batch.accumulate", "batch.per_device"),
            f"batch.accumulate is {batch.accumulate}, which counts microbatches of batch.per_device rows; "
            "set batch.per_device",
        )


def _length_conflicts(config: Config) -> Iterator[Conflict]:
    train = config.train
    if train.epochs is not None and train.steps is not None:
        yield (
            ("train.epochs", "train.steps"),
            f"train.epochs is {train.epochs:g} and train.steps is {train.steps}, but one excludes the other; "
            "set train.epochs=null or train.steps=null",
        )
    for name, steps in (
        ("scheduler.warmup", config.scheduler.warmup),
        ("optimizer.unfreeze_every", config.optimizer.unfreeze_every),
        *(("optimizer.groups", group.get("unfreeze_at")) for group in config.optimizer.groups),
    ):
        if steps is not None and steps > 1 and not float(steps).is_integer():
            yield ((name,), f"{name} is {steps:g}; below 1 it is a share of all steps, from 1 a whole number of steps")


def _best_conflicts(config: Config) -> Iterator[Conflict]:
    patience, best = config.train.patience, config.checkpoint.best
    metric = config.train.patience_metric
    if patience is not None and metric is None and best is None:
        yield (
            ("train.patience", "train.patience_metric", "checkpoint.best"),
            f"train.patience is {patience}, which counts evaluations without a better metric; set "
            "train.patience_metric or checkpoint.best to a metric, such as -loss",
        )
    if metric is not None and patience is None:
        yield (
            ("train.patience_metric", "train.patience"),
            f"train.patience_metric is {shown(metric)}, but train.patience is null; set it to a number of evaluations, "
            "or train.patience_metric to null",
        )
    yield from _metric_conflicts(config, "train.patience_metric", "evaluate.every")
    yield from _metric_conflicts(config, "checkpoint.best", "evaluate.every", "checkpoint.every")


def _metric_conflicts(config: Config, name: str, *intervals: str) -> Iterator[Conflict]:
    """Check the metric of key `name`. The keys `intervals` must not be never if the metric is set."""
    metric = value_of(config, name)
    if metric is None:
        return
    if not metric.removeprefix("-"):
        yield (name,), f"{name} is '-'; a metric follows the sign, such as -loss"
    for every in intervals:
        if value_of(config, every) == "never":
            yield (
                (every, name),
                f"{name} is {shown(metric)}, but {every} is never; set it to epoch or a number of steps, "
                f"or {name} to null",
            )


def _resume_conflicts(config: Config) -> Iterator[Conflict]:
    for name in config.resume_anyway:
        if name not in MUST_NOT_CHANGE:
            hint = suggest(name, MUST_NOT_CHANGE) or f"; those are {', '.join(MUST_NOT_CHANGE)}"
            yield ("resume_anyway",), f"resume_anyway: {name} is nothing that a resumed run is refused for{hint}"


def _hub_conflicts(config: Config) -> Iterator[Conflict]:
    if config.hub.every != "checkpoint":
        return
    if config.hub.push is None:
        yield (
            ("hub.every", "hub.push"),
            "hub.every is 'checkpoint', but hub.push is null; set hub.push to the name of a repository: me/imdb-bert",
        )
    if config.checkpoint.every == "never":
        yield (
            ("hub.every", "checkpoint.every"),
            "hub.every is 'checkpoint', but checkpoint.every is never; set checkpoint.every to epoch or a number of "
            "steps, or hub.every=end",
        )
    for section, settings in (("lora", config.model.lora), ("peft", config.model.peft)):
        if settings.merge:
            yield (
                ("hub.every", f"model.{section}.merge"),
                f"hub.every is 'checkpoint' and model.{section}.merge is true, but an adapter is merged once, at the "
                f"end; set hub.every=end or model.{section}.merge=false",
            )


def _exclusive(config: Config, first: str, second: str) -> Iterator[Conflict]:
    one, other = value_of(config, first), value_of(config, second)
    if one is not None and other is not None:
        yield (
            (second, first),
            f"{first} is {shown(one)} and {second} is {shown(other)}, but one excludes the other; "
            f"set {first}=null or {second}=null",
        )


def unusable_paths(config: Config) -> Iterator[Conflict]:
    """Yield names that are too long for a file system. Any attempt to open them would fail."""
    data = config.data
    sets = name_sets("data.validation", data.validation) | name_sets("data.test", data.test)
    metrics = [entry if isinstance(entry, str) else entry.get("name") for entry in config.evaluate.metrics]
    named: dict[str, Any] = {name: value_of(config, name) for name in _PATHS}
    for name, value in (named | {"evaluate.metrics": metrics, "data.train": data.train} | sets).items():
        for path in value if isinstance(value, list) else [] if is_query(value) else [value]:
            spelled = str(path).encode(errors="replace")
            if count_longest_name(path) > LONGEST_NAME or len(str(path)) > _LONGEST_PATH:
                yield (
                    (".".join(name.split(".")[:2]),),
                    f"{name} is {shown(path)}, of {len(spelled):,} bytes; a path has at most {_LONGEST_PATH:,}, and "
                    f"{LONGEST_NAME} between two /",
                )


def count_longest_name(path: object) -> int:
    """Return the length of the longest file or folder name in a path, in bytes."""
    return max(map(len, str(path).encode(errors="replace").split(b"/")))


def _machine_conflicts(config: Config) -> Iterator[Conflict]:
    """Refuse numbers of processes and threads that could overload this machine."""
    cores = os.cpu_count() or 1
    most = max(_ALWAYS_ALLOWED, _PER_CORE * cores)
    for name, number in (("data.num_workers", config.data.num_workers), ("train.threads", config.train.threads)):
        if isinstance(number, int) and number > most:
            yield (
                (name,),
                f"{name} is {number:,}; on this machine of {cores} cores at most {most:,} are allowed; set {name}=auto",
            )
