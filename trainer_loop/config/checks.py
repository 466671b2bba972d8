"""What must hold between keys; what one key alone may be stands in fields.py."""

import dataclasses
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from trainer_loop.config.fields import Config
from trainer_loop.config.named_sets import name_sets
from trainer_loop.config.schema import KEYS, MUST_NOT_CHANGE
from trainer_loop.config.values import shown

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes, characters
_ALWAYS_ALLOWED, _FOR_EACH_CORE = 64, 4  # workers of a process, and threads
_TRAIN_BY_DEFAULT = ("data.train", KEYS["data.train"].default)
# (the keys a problem is about, the problem); the message names them, their values and the remedy.
Conflict = tuple[tuple[str, ...], str]


def conflicts(config: Config) -> Iterator[Conflict]:
    """Every pair of keys that contradict each other, and every key that another one calls for."""
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


def missing_parts(config: Config) -> dict[str, str]:
    """What the config does not name and a run cannot be without, unless it is given in Python: part -> the problem."""
    missing = {}
    if config.model.name is None and config.model.type is None:
        missing["model"] = (
            "neither model.name nor model.type is given; set model.name to a hub id or a local directory, "
            "or model.type to build a new model, such as bert, or begin with a shipped file: config=quickstart.yaml"
        )
    if config.data.name is None and ("data.train", config.data.train) == _TRAIN_BY_DEFAULT:
        missing["train"] = (
            "data.train is 'train', the name of a split, but data.name is null; "
            "set data.name to a hub id, or data.train to a file such as train.csv"
        )
    if config.data.validation is None and config.data.validation_fraction is None:
        followed = {"checkpoint.best": config.checkpoint.best, "train.patience_metric": config.train.patience_metric}
        for name, metric in followed.items():
            if metric is not None and "validation" not in missing:
                missing["validation"] = (
                    f"{name} is {shown(metric)}, but there is no validation set to measure it on; "
                    f"set data.validation or data.validation_fraction, or {name} to null"
                )
    return missing


def _model_conflicts(config: Config) -> Iterator[Conflict]:
    model = config.model
    if model.name is not None and model.type is not None:
        yield (
            ("model.type", "model.name"),
            f"model.name is {shown(model.name)} and model.type is {shown(model.type)}, but one excludes the other; "
            "set model.name=null or model.type=null; "
            "model.from_scratch=true builds a new model of the named one's shape",
        )
    elif model.type is not None and "." not in model.type and model.tokenizer is None:
        yield (
            ("model.type", "model.tokenizer"),
            f"model.type is {shown(model.type)}, which brings no tokenizer; set model.tokenizer to a hub id, "
            "a local directory or train",
        )
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
    if lora.r is not None and peft.name is not None:
        yield (
            ("model.peft.name", "model.lora.r"),
            f"model.lora.r is {lora.r} and model.peft.name is {shown(peft.name)}, but one excludes the other; "
            "set model.lora.r=null or model.peft.name=null",
        )
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
                other, others_switch = ("peft", peft.name) if section == "lora" else ("lora", lora.r)
                remedy = f"set model.{section}.{'r' if section == 'lora' else 'name'}"
                if others_switch is not None:
                    remedy = f"this run's adapter is that of model.{other}, which has keys of its own"
                    remedy += f": set model.{other}.merge" if field.name == "merge" else ""
                yield (
                    (f"model.{section}.{field.name}",),
                    f"model.{section}.{field.name} is {shown(value)}, but there is no such adapter; {remedy}",
                )


def _data_conflicts(config: Config) -> Iterator[Conflict]:
    data = config.data
    if data.validation is not None and data.validation_fraction is not None:
        yield (
            ("data.validation_fraction", "data.validation"),
            f"data.validation is {shown(data.validation)} and data.validation_fraction is {data.validation_fraction}, "
            "but one excludes the other; set data.validation=null or data.validation_fraction=null",
        )
    if data.name is not None:
        return
    sets = name_sets("data.validation", data.validation) | name_sets("data.test", data.test)
    for name, split in ({"data.train": data.train} | sets).items():
        if (name, split) == _TRAIN_BY_DEFAULT:
            continue  # see missing_parts
        for word in split if isinstance(split, list) else [split]:
            if word is not None and re.fullmatch(r"[A-Za-z0-9_-]+", word):
                yield (
                    (".".join(name.split(".")[:2]), "data.name"),
                    f"{name} is {shown(word)}, the name of a split, but data.name is null; "
                    f"set data.name to a hub id, or {name} to a file such as {word}.csv",
                )


def _stream_conflicts(config: Config) -> Iterator[Conflict]:
    data, train = config.data, config.train
    if not data.streaming:
        return
    if data.validation_fraction is not None:
        yield (
            ("data.validation_fraction", "data.streaming"),
            f"data.validation_fraction is {data.validation_fraction}, but no part of a stream can be cut off; "
            "set data.validation to files or a split of their own",
        )
    if data.limit.train is not None:
        yield (
            ("data.limit.train", "data.streaming"),
            f"data.limit.train is {data.limit.train}, but no sample of a stream can be drawn; set train.steps instead",
        )
    if data.num_workers not in ("auto", 0):
        yield (
            ("data.num_workers", "data.streaming"),
            f"data.num_workers is {data.num_workers}, but a stream is read ahead by a thread of its own; "
            "leave data.num_workers out",
        )
    if config.batch.order == "window":
        yield (
            ("batch.order", "data.streaming"),
            "batch.order is 'window', but the rows of a stream are not known before they are read; "
            "set batch.order=shuffle",
        )
    if config.model.tokenizer == "train":
        yield (
            ("model.tokenizer", "data.streaming"),
            "model.tokenizer is 'train', but a stream is not read before training; "
            "name a tokenizer, such as one trained by a run without data.streaming",
        )
    for name, every, is_used in (
        ("evaluate.every", config.evaluate.every, data.validation is not None),
        ("checkpoint.every", config.checkpoint.every, True),
    ):
        if train.steps is not None and (every == "epoch" or isinstance(every, float)) and is_used:
            yield (
                (name, "train.steps", "data.streaming"),
                f"{name} is {shown(every)}, but with train.steps nobody counts the rows of a stream; set {name} to a "
                "number of steps, or set train.epochs in place of train.steps: then they are counted",
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
    if batch.size is not None:
        yield (
            ("batch.accumulate", "batch.size"),
            f"batch.size is {batch.size} and batch.accumulate is {batch.accumulate}, but one excludes the other; "
            "set batch.size=null or batch.accumulate=null",
        )
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
            yield (
                (name,),
                f"{name} is {steps:g}; below 1 it is a share of all steps, from 1 a whole number of steps",
            )


def _best_conflicts(config: Config) -> Iterator[Conflict]:
    best = config.checkpoint.best
    yield from _patience_conflicts(config)
    if best is None:
        return
    if not best.removeprefix("-"):
        yield ("checkpoint.best",), "checkpoint.best is '-'; a metric follows the sign, such as -loss"
    for name, every in (("evaluate.every", config.evaluate.every), ("checkpoint.every", config.checkpoint.every)):
        if every == "never":
            yield (
                (name, "checkpoint.best"),
                f"checkpoint.best is {shown(best)}, but {name} is never; set it to epoch or a number of steps, "
                "or checkpoint.best to null",
            )


def _patience_conflicts(config: Config) -> Iterator[Conflict]:
    patience, metric = config.train.patience, config.train.patience_metric
    if patience is not None and metric is None and config.checkpoint.best is None:
        yield (
            ("train.patience", "train.patience_metric", "checkpoint.best"),
            f"train.patience is {patience}, which counts evaluations without a better metric; set "
            "train.patience_metric or checkpoint.best to a metric, such as -loss",
        )
    if metric is None:
        return
    if not metric.removeprefix("-"):
        yield ("train.patience_metric",), "train.patience_metric is '-'; a metric follows the sign, such as -loss"
    if patience is None:
        yield (
            ("train.patience_metric", "train.patience"),
            f"train.patience_metric is {shown(metric)}, but train.patience is null; set it to a number of evaluations, "
            "or train.patience_metric to null",
        )
    if config.evaluate.every == "never":
        yield (
            ("evaluate.every", "train.patience_metric"),
            f"train.patience_metric is {shown(metric)}, but evaluate.every is never; set it to epoch or a number of "
            "steps, or train.patience_metric to null",
        )


def _resume_conflicts(config: Config) -> Iterator[Conflict]:
    for name in config.resume_anyway:
        if name not in MUST_NOT_CHANGE:
            close = get_close_matches(name, MUST_NOT_CHANGE, n=1)
            meant = f"did you mean {close[0]}?" if close else f"those are {', '.join(MUST_NOT_CHANGE)}"
            yield ("resume_anyway",), f"resume_anyway: {name} is nothing that a resumed run is refused for; {meant}"


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


def unusable_paths(config: Config) -> Iterator[Conflict]:
    """Names that no file system takes; nothing that looks for them can go on."""
    data, model = config.data, config.model
    sets = name_sets("data.validation", data.validation) | name_sets("data.test", data.test)
    metrics = [entry if isinstance(entry, str) else entry.get("name") for entry in config.evaluate.metrics]
    named: dict[str, Any] = {
        "run_dir": config.run_dir,
        "resume": config.resume,
        "model.name": model.name,
        "model.tokenizer": model.tokenizer,
        "data.name": data.name,
        "data.cache_dir": data.cache_dir,
        "evaluate.metrics": metrics,
        "data.train": data.train,
    } | sets
    for name, value in named.items():
        for path in value if isinstance(value, list) else [value]:
            longest = max(map(len, str(path).encode(errors="replace").split(b"/")))
            if longest > _LONGEST_NAME or len(str(path)) > _LONGEST_PATH:
                yield (
                    (".".join(name.split(".")[:2]),),
                    f"{name} is {shown(path)}, of {len(str(path).encode(errors='replace')):,} bytes; a path has at "
                    f"most {_LONGEST_PATH:,}, and {_LONGEST_NAME} between two /",
                )


def _machine_conflicts(config: Config) -> Iterator[Conflict]:
    """Processes and threads in numbers that no machine of this size has a use for, and that would bring it down."""
    cores = os.cpu_count() or 1
    most = max(_ALWAYS_ALLOWED, _FOR_EACH_CORE * cores)
    for name, number in (("data.num_workers", config.data.num_workers), ("train.threads", config.train.threads)):
        if isinstance(number, int) and number > most:
            yield (
                (name,),
                f"{name} is {number:,}; on this machine of {cores} cores at most {most:,} are allowed; set {name}=auto",
            )
