"""Prepares the files that are pushed to the hub with the model of a run: model card, report and ONNX file."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils._pytree import tree_map

from trainer_loop.config.fields import Config
from trainer_loop.config.load import values_of
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.config.secrets import mask_secrets, name_sources
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.data.split_facts import SplitFacts
from trainer_loop.data.stream_rows import MixedStream
from trainer_loop.data.wording import enumerate_some, plural
from trainer_loop.errors import in_one_line
from trainer_loop.models.config import find_model
from trainer_loop.plan import Overrides, RunPlan
from trainer_loop.record.export import ExportRecord
from trainer_loop.record.hub_access import is_name
from trainer_loop.record.hub_push import REPORT, Content
from trainer_loop.record.logs import read_metrics
from trainer_loop.record.model_card import BaseModel, CardFacts, Scores, as_code, find_base_model, make_card
from trainer_loop.record.onnx_folder import find_files_to_push
from trainer_loop.record.run_dir import RunDir, read_json_object
from trainer_loop.report.intervals import Intervals
from trainer_loop.report.run_report import make_report_to_share
from trainer_loop.report.wording import title_of

_ALWAYS_LISTED = (
    *("seed", "train.epochs", "train.steps", "optimizer.name", "optimizer.lr", "optimizer.weight_decay"),
    *("scheduler.name", "scheduler.warmup"),
)
# Sections whose settings are listed if they are not the defaults, because they may change the model.
_SECTIONS = (
    *("task", "model", "data", "batch", "train", "optimizer", "scheduler", "loss", "ema", "evaluate", "checkpoint"),
    *("loop", "parallel"),
)
_NEVER_LISTED = (
    *("task.name", "model.name", "data.name", "data.config", "data.train", "data.validation", "data.test"),
    *("data.cache_dir", "data.num_workers", "train.threads", "train.timeout_minutes", "train.precision", "batch.size"),
    *("train.max_time_minutes", "checkpoint.every", "checkpoint.keep_last", "checkpoint.background"),
)
_MOST_LABELS = 10  # number of labels of a split that are all listed
_FEW_ROWS = 20  # a label with fewer rows is rare
_RARE_SHOWN = 5
_SPLIT = re.compile(r"[\w-]+")  # a split on the hub, but not a slice of one


def describe_model(plan: RunPlan, record: ExportRecord, *, intervals: Intervals | None = None) -> str:
    """Return the model card of the exported model.

    Args:
        intervals: intervals of the metrics, by set, such as `test.hard`, and metric.
    """
    config, overrides = plan.config, plan.overrides
    dataset = config.data.name if config.data.name is not None and "train" not in overrides.rows else None
    run_dir = RunDir(config.run_dir)
    adapter = plan.model.adapter
    is_adapter = adapter is not None and not adapter.merge
    names = [entry if isinstance(entry, str) else str(entry["name"]) for entry in plan.metrics]
    input_description = None
    if plan.inputs.data is not None:
        columns = [as_code(name) for name in plan.inputs.data.columns.without_targets().all]
        input_description = f"column {' and '.join(columns)}"
        input_description += f", texts cut at {record.max_length} tokens" if plan.task.has_tokens else ""
    intervals = intervals or {}
    scores = [
        *_list_scores(config, overrides, "validation", record.metrics, intervals),
        *_list_scores(config, overrides, "test", _read_test_metrics(run_dir.metrics), intervals),
    ]
    return make_card(
        CardFacts(
            title=(config.hub.push or run_dir.root.resolve().name).rpartition("/")[2],
            task=record.task,
            pipeline_tag=plan.task.pipeline_tag,
            library="peft" if is_adapter else "transformers" if plan.task.auto_model else "pytorch",
            reads=input_description,
            step=record.step,
            num_steps=record.num_steps,
            base=_find_base(config, overrides, is_adapter=is_adapter),
            dataset=dataset if dataset is not None and is_name(dataset) else None,
            dataset_config=config.data.config,
            data=list(_describe_data(plan)),
            scores=scores,
            metric_names=[name.partition("/")[0] for name in names if "." not in name],
            settings=dict(_list_settings(plan, record)),
            environment=_describe_environment(run_dir.environment),
            limits=list(_list_limits(plan, scores)),
            has_report=config.report,
            tags=[adapter.kind] if adapter is not None else [],
        )
    )


def gather_extra_files(
    run_dir: RunDir, *, with_report: bool, intervals: Intervals | None = None
) -> tuple[dict[str, Content], list[str]]:
    """Collect the files that are pushed with the model of a run.

    The report is made again, without rows of the data. The ONNX model is included if it has the same weights.

    Args:
        intervals: intervals of the metrics in the report; None computes them.

    Returns:
        The files by path in the repository, and lines about files that are left out.
    """
    command = f"python -m trainer_loop.onnx model={shlex.quote(str(run_dir.root))}"
    onnx_files, note = find_files_to_push(run_dir.onnx, run_dir.model, again=command)
    files, notes = dict[str, Content](onnx_files), [note] if note else []
    if with_report:
        try:
            files[REPORT] = make_report_to_share(run_dir.root, intervals).encode()
        except Exception as error:  # noqa: BLE001 # a failed report must not prevent the push
            reason = f"{REPORT} is left out: {type(error).__name__}: {in_one_line(error)}"
            notes.append(reason.replace("UserError: ", ""))
    return files, notes


def _find_base(config: Config, overrides: Overrides, *, is_adapter: bool) -> BaseModel | None:
    name = config.model.name if overrides.model is None else getattr(overrides.model, "name_or_path", None)
    if not name or (config.model.from_scratch and overrides.model is None):
        return None
    return find_base_model(find_model(name), relation="adapter" if is_adapter else "finetune")


def _describe_data(plan: RunPlan) -> Iterator[str]:
    config, stream = plan.config, plan.inputs.stream
    if stream is not None:
        rows = "rows" if stream.num_rows is None else plural(stream.num_rows, "row")
        origin = stream.rows.describe() if isinstance(stream.rows, MixedStream) else config.data.name or "files"
        yield f"train: {rows} of a stream, {origin}"
    classes = None if plan.inputs.labels is None else plan.inputs.labels.names
    for name, split in plan.inputs.splits.items():
        sources = dict.fromkeys(_name_source(config, name, place) for place in split.origins.names)
        yield (
            f"{title_of(name)}: {plural(len(split.rows), 'row')} of "
            f"{enumerate_some(list(sources), at_most=3)}{_describe_labels(split, classes)}"
            f"{_describe_lengths(plan.inputs.facts.get(name))}"
        )


def _describe_lengths(facts: SplitFacts | None) -> str:
    if facts is None or facts.lengths is None:
        return ""
    lengths = facts.lengths
    return f"; tokens per row: median {lengths.median:.0f}, 95 % within {lengths.p95:.0f}, longest {lengths.longest:,}"


def _name_source(config: Config, split: str, place: str) -> str:
    """Return `reviews.csv` for `/home/me/reviews.csv row`: local folders do not belong on a public model card."""
    source = place.rpartition(" ")[0]
    if source == split:
        return "a table made in Python"
    is_on_hub = config.data.name is not None and source.startswith(f"{config.data.name}[")
    return source if is_on_hub else Path(source).name


def _describe_labels(split: TokenisedSplit, names: Sequence[str] | None) -> str:
    if names is None or "label" not in getattr(split.rows, "column_names", ()):
        return ""
    ids = split.rows.data.column("label")
    ids = ids if pa.types.is_integer(ids.type) else pc.list_flatten(ids)  # a row may have several
    shares = np.bincount(ids.to_numpy(), minlength=len(names)) / len(split.rows)
    shown = [f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)]
    if len(names) > _MOST_LABELS:
        return f"; {len(names)} labels, from {shown[int(shares.argmax())]} to {shown[int(shares.argmin())]}"
    return "; labels: " + ", ".join(shown)


def _list_limits(plan: RunPlan, scores: Sequence[Scores]) -> Iterator[str]:
    """Yield the limits of the model that the run knows about."""
    config = plan.config
    scored = {score.title.partition(" ")[0] for score in scores}
    if not scored:
        yield "It was not evaluated."
    elif "test" not in scored and config.checkpoint.best is not None:
        yield (
            f"There was no test set, and the validation rows chose the weights (by {config.checkpoint.best}): their "
            "metrics may be better than those of new rows."
        )
    yield "Nothing is known about rows of another kind than the data, such as of another subject, language or time."
    for name, facts in plan.inputs.facts.items():
        if facts.truncated:
            share = facts.truncated / max(facts.texts, 1)
            yield f"{title_of(name)}: {share:.1%} of the texts were cut; the rest of them is not read."
        if facts.in_train:
            share = facts.in_train / max(facts.texts, 1)
            yield f"{title_of(name)}: {plural(facts.in_train, 'row')} ({share:.1%}) with a text that is in train too."
    labels = plan.inputs.facts["train"].labels if "train" in plan.inputs.facts else None
    rare = sorted((count, label) for label, count in (labels or {}).items() if count < _FEW_ROWS)
    if rare:
        labels_shown = enumerate_some([f"{label} ({count})" for count, label in rare], at_most=_RARE_SHOWN)
        yield f"Labels with fewer than {_FEW_ROWS} in the training data: {labels_shown}."
    if plan.task.writes:
        yield "What it writes may be wrong, and may repeat what the training data says."
    yield f"This is one training run, with seed {config.seed}; another seed gives other weights."


def _describe_environment(path: Path) -> dict[str, str]:
    """Describe the software and devices of the run from environment.json; empty if `path` cannot be read."""
    try:
        environment = read_json_object(path)
    except (OSError, ValueError):
        return {}
    values = {name: environment.get(name) for name in ("python", "platform", "device", "device_name", "num_processes")}
    return {name.replace("_", " "): str(value) for name, value in values.items() if value is not None}


def _list_scores(
    config: Config, overrides: Overrides, split: str, metrics: Mapping[str, float], intervals: Intervals
) -> Iterator[Scores]:
    """Yield the metrics of each set of a split. If there is only one set, its metrics have no prefix."""
    specs: dict[str, Any] = name_sets(split, getattr(config.data, split))
    specs |= {name: None for name in overrides.rows if parse_set(name)[0] == split}
    for set_name, spec in (specs or {split: None}).items():
        part = parse_set(set_name)[1]
        prefix = f"{part}/" if part else ""
        set_metrics = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        is_hub_split = config.data.name is not None and isinstance(spec, str) and _SPLIT.fullmatch(spec)
        matching = {
            name: (interval.low, interval.high)
            for name, interval in intervals.get(set_name, {}).items()
            if interval.is_of(set_metrics.get(name))
        }
        if set_metrics:
            yield Scores(
                f"{split} {part}".strip(), config.data.name if is_hub_split else None, spec, set_metrics, matching
            )


def _read_test_metrics(metrics: Path) -> dict[str, float]:
    """Read the test metrics from the log, which contains them only after the end of the run."""
    if not metrics.is_file():
        return {}
    rows = [{name: value for name, value in row.items() if name.startswith("test/")} for row in read_metrics(metrics)]
    last: dict[str, Any] = next(filter(None, reversed(rows)), {})
    return {name.removeprefix("test/"): value for name, value in last.items() if isinstance(value, int | float)}


def _list_settings(plan: RunPlan, record: ExportRecord) -> Iterator[tuple[str, Any]]:
    """Yield the settings for the model card: first the main ones, then all others that are not the defaults."""
    values = mask_secrets(name_sources(values_of(plan.config), with_digest=False))
    yield "batch.size", record.plan["batch.size"]
    yield "train.precision", plan.precision
    for name in _ALWAYS_LISTED:
        if values[name] is not None:
            yield name, values[name]
    for name, value in values.items():
        is_listed = name not in (*_ALWAYS_LISTED, *_NEVER_LISTED) and name.partition(".")[0] in _SECTIONS
        if is_listed and value is not None and value != KEYS[name].default:
            yield name, tree_map(_hide_folder, value)


def _hide_folder(value: Any) -> Any:
    """Return `bert` for `/home/me/bert`: local folders do not belong on a public model card."""
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
