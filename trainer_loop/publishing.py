"""From the config and what was judged to the model card, and to the pushes of a run."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from trainer_loop.config.fields import Config
from trainer_loop.config.load import values_of
from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.config.schema import KEYS
from trainer_loop.config.secrets import name_sources
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.data.wording import enumerate_some, plural
from trainer_loop.models.config import find_model
from trainer_loop.plan import Overrides, RunPlan
from trainer_loop.record.checkpoint import AveragedWeights
from trainer_loop.record.export import ExportRecord, copy_weights, write_files
from trainer_loop.record.hub_access import is_name, push_command
from trainer_loop.record.hub_push import Pushed, gather_run, push_files
from trainer_loop.record.logs import Console, read_metrics
from trainer_loop.record.model_card import BaseModel, CardFacts, Scores, find_base_model, make_card
from trainer_loop.record.publisher import Publisher
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.state import TrainState

_ALWAYS_TOLD = (
    *("seed", "train.epochs", "train.steps", "optimizer.name", "optimizer.lr", "optimizer.weight_decay"),
    *("scheduler.name", "scheduler.warmup"),
)
_TOLD_WHERE_SET = (
    *("model.lora.r", "model.lora.alpha", "model.peft.name", "model.quantize", "model.neftune_alpha", "loss.name"),
    *("train.max_grad_norm", "optimizer.layer_decay", "ema.decay"),
)
_MOST_LABELS = 10  # told of a split
_SPLIT = re.compile(r"[\w-]+")  # of the hub; not a slice of one
_SCRATCH = ".push"


def describe_model(config: Config, plan: RunPlan, overrides: Overrides, record: ExportRecord) -> str:
    """The model card of the exported model."""
    dataset = config.data.name if config.data.name is not None and "train" not in overrides.rows else None
    run_dir = RunDir(config.run_dir)
    adapter = plan.model.adapter
    stays_apart = adapter is not None and not adapter.merge
    names = [entry if isinstance(entry, str) else str(entry["name"]) for entry in plan.metrics]
    reads = None
    if plan.inputs.data is not None:
        columns = [f"`{name}`" for name in plan.inputs.data.columns.without_targets().all]
        reads = f"column {' and '.join(columns)}"
        reads += f", texts cut at {record.max_length} tokens" if plan.task.has_tokens else ""
    return make_card(
        CardFacts(
            title=(config.hub.push or run_dir.root.resolve().name).rpartition("/")[2],
            task=record.task,
            library="peft" if stays_apart else "transformers" if plan.task.auto_model else "pytorch",
            reads=reads,
            step=record.step,
            num_steps=record.num_steps,
            base=_find_base(config, overrides, is_adapter=stays_apart),
            dataset=dataset if dataset is not None and is_name(dataset) else None,
            dataset_config=config.data.config,
            data=list(_describe_data(config, plan)),
            scores=[
                *_list_scores(config, overrides, "validation", record.metrics),
                *_list_scores(config, overrides, "test", _read_test_figures(run_dir.metrics)),
            ],
            metric_names=[name.partition("/")[0] for name in names if "." not in name],
            settings=dict(_list_settings(config, plan, record)),
            tags=[adapter.kind] if adapter is not None else [],
        )
    )


def make_publisher(
    config: Config,
    plan: RunPlan,
    console: Console,
    *,
    record_of: Callable[[TrainState], ExportRecord],
    card_of: Callable[[ExportRecord], str],
) -> Publisher | None:
    """What pushes for this run, on process 0; None where the run pushes nothing.

    record_of, card_of: of what is exported in a state of the run.
    """
    repo, run_dir = config.hub.push, RunDir(config.run_dir)
    if repo is None or config.hub.every == "never":
        return None
    # Another thread may tokenise a stream with the one of the run, whose settings saving would change.
    tokenizer = copy.deepcopy(plan.inputs.tokenizer)

    def push(folder: Path, what: str) -> Pushed:
        files = gather_run(folder, run_dir.config)
        return push_files(files, repo, private=config.hub.private, message=f"Upload {what}")

    def snapshot(
        model: nn.Module, state: TrainState, averaged_weights: AveragedWeights | None
    ) -> Callable[[Path], None]:
        record = record_of(_without_other_metrics(state))
        card, weights = (
            card_of(record),
            copy_weights(model, None if averaged_weights is None else averaged_weights.state_dict()),
        )
        return lambda folder: write_files(folder, model, tokenizer, record, card=card, weights=weights)

    return Publisher(
        push,
        snapshot=snapshot if config.hub.every == "checkpoint" else None,
        model=run_dir.model,
        scratch=run_dir.root / _SCRATCH,
        console=console,
        again=push_command(config.run_dir, repo),
    )


def _without_other_metrics(state: TrainState) -> TrainState:
    """The state of the weights of now: those of the best step are not pushed before the end, nor their metrics."""
    state = copy.copy(state)
    if state.evaluated_step != state.step or state.best_step not in (None, state.step):
        state.metrics = {}
    state.best_step = None
    return state


def _find_base(config: Config, overrides: Overrides, *, is_adapter: bool) -> BaseModel | None:
    name = config.model.name if overrides.model is None else getattr(overrides.model, "name_or_path", None)
    if not name or (config.model.from_scratch and overrides.model is None):
        return None
    return find_base_model(find_model(name), relation="adapter" if is_adapter else "finetune")


def _describe_data(config: Config, plan: RunPlan) -> Iterator[str]:
    if plan.inputs.stream is not None:
        rows = "rows" if plan.inputs.stream.num_rows is None else plural(plan.inputs.stream.num_rows, "row")
        yield f"train: {rows} of a stream, {config.data.name or 'files'}"
    for name, split in plan.inputs.splits.items():
        sources = dict.fromkeys(_name_source(config, name, place) for place in split.origins.names)
        yield (
            f"{' '.join(filter(None, parse_set(name)))}: {plural(len(split.rows), 'row')} of "
            f"{enumerate_some(list(sources), at_most=3)}{_describe_labels(split, plan.inputs.label_names)}"
        )


def _name_source(config: Config, split: str, place: str) -> str:
    """`reviews.csv` of `/home/me/reviews.csv row`: where a file lies here is of no use elsewhere."""
    source = place.rpartition(" ")[0]
    if source == split:
        return "a table made in Python"
    of_hub = config.data.name is not None and source.startswith(f"{config.data.name}[")
    return source if of_hub else Path(source).name


def _describe_labels(split: TokenisedSplit, names: Sequence[str] | None) -> str:
    if names is None or "label" not in getattr(split.rows, "column_names", ()):
        return ""
    if len(names) > _MOST_LABELS:
        return f"; {len(names)} labels"
    counts = np.bincount(split.rows.data.column("label").to_numpy(), minlength=len(names))
    return "; labels: " + ", ".join(
        f"{name} {number / counts.sum():.1%}" for name, number in zip(names, counts, strict=True)
    )


def _list_scores(config: Config, overrides: Overrides, split: str, figures: Mapping[str, float]) -> Iterator[Scores]:
    """The figures by their sets; those of an only set have no name before them."""
    specs: dict[str, Any] = name_sets(split, getattr(config.data, split))
    specs |= {name: None for name in overrides.rows if parse_set(name)[0] == split}
    for name, spec in (specs or {split: None}).items():
        part = parse_set(name)[1]
        own = {
            figure.removeprefix(f"{part}/"): value
            for figure, value in figures.items()
            if not part or figure.startswith(f"{part}/")
        }
        is_hub_split = config.data.name is not None and isinstance(spec, str) and _SPLIT.fullmatch(spec)
        if own:
            yield Scores(f"{split} {part}".strip(), config.data.name if is_hub_split else None, spec, own)


def _read_test_figures(metrics: Path) -> dict[str, float]:
    """Those in the log of the finished run; it has them only at the end."""
    if not metrics.is_file():
        return {}
    rows = [row for row in read_metrics(metrics) if any(name.startswith("test/") for name in row)]
    figures = rows[-1] if rows else {}
    return {
        name.removeprefix("test/"): value
        for name, value in figures.items()
        if name.startswith("test/") and isinstance(value, int | float)
    }


def _list_settings(config: Config, plan: RunPlan, record: ExportRecord) -> Iterator[tuple[str, Any]]:
    values = name_sources(values_of(config), with_digest=False)
    yield "batch.size", record.plan["batch.size"]
    yield "train.precision", plan.precision
    for name in (*_ALWAYS_TOLD, *_TOLD_WHERE_SET):
        value = values[name]
        if value is not None and (name in _ALWAYS_TOLD or value != KEYS[name].default):
            yield name, value
