"""The model card, which the hub shows and searches. Only this module makes cards."""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache

from trainer_loop.record.adapter_config import ADAPTER_CONFIG
from trainer_loop.record.hub_access import is_name
from trainer_loop.record.run_dir import package_versions

Relation = Literal["finetune", "adapter"]
_LOCAL = "local"  # name of a local data set in model-index, where a name is required
_NOT_A_METRIC = ("loss", "rows")  # values that are not metrics of the hub
_MARKDOWN = re.compile(r"[\\`*<>#~|]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(")  # characters that Markdown would interpret
_BAR = re.compile(r"\\*\|")  # it would end a table cell


@dataclass(frozen=True)
class BaseModel:
    """The base model on the hub, and the license that it passes on."""

    name: str | None  # hub id; None: not known to be on the hub
    relation: Relation
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class Scores:
    """The metrics of one evaluated set."""

    title: str  # such as validation, test, validation matched
    dataset: str | None  # hub id of its data set; None: not on the hub
    split: str | None  # name of the split on the hub
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # lower and upper ends


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card states."""

    title: str
    task: str  # name, or dotted path of a custom task
    pipeline_tag: str | None  # the hub's name for the task
    library: str  # name on the hub: transformers, peft, pytorch
    reads: str | None  # text columns of the model, and its maximum length
    step: int
    num_steps: int
    base: BaseModel | None
    dataset: str | None  # hub id
    dataset_config: str | None
    data: Sequence[str]  # lines about the rows
    scores: Sequence[Scores]
    metric_names: Sequence[str]  # names that evaluate knows
    settings: Mapping[str, Any]  # config keys that determined the training
    environment: Mapping[str, str] = field(default_factory=dict)  # hardware and software of the run
    limits: Sequence[str] = ()  # sentences about unknown or bad properties
    has_report: bool = False  # the report of the run is pushed too
    tags: Sequence[str] = ()


def make_card(facts: CardFacts) -> str:
    """Return the text of README.md: front matter for the hub, then text for readers."""
    base = facts.base or BaseModel(None, "finetune")
    results = _list_results(facts)
    data = ModelCardData(
        base_model=base.name,
        base_model_relation=base.relation if base.name is not None else None,
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        library_name=facts.library,
        pipeline_tag=facts.pipeline_tag,
        datasets=[facts.dataset] if facts.dataset is not None else None,
        metrics=list(dict.fromkeys(facts.metric_names)) or None,
        tags=["trainer_loop", *facts.tags],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_write_body(facts)}"))


def make_short_card(model: Path) -> str:
    """Return a card for a model that was made elsewhere and has none, from its files."""
    try:
        text = (model / ADAPTER_CONFIG).read_text(encoding="utf-8")
        base = json.loads(text).get("base_model_name_or_path")
    except FileNotFoundError:
        data = ModelCardData(library_name="transformers")
    except (OSError, ValueError, AttributeError):  # peft reports the error
        data = ModelCardData(library_name="peft")
    else:
        name = base if isinstance(base, str) and is_name(base) and not Path(base).exists() else None
        data = ModelCardData(library_name="peft", base_model=name, base_model_relation="adapter" if name else None)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {model.resolve().name}\n"))


def find_base_model(name: str, *, relation: Relation) -> BaseModel:
    """Return the facts about a base model: a hub id, or a directory whose card may name one. Nothing is downloaded."""
    directory = Path(name).expanduser()
    is_local = directory.is_dir()
    readme = directory / "README.md" if is_local else is_name(name) and try_to_load_from_cache(name, "README.md")
    card = _read_front_matter(Path(readme)) if isinstance(readme, str | Path) else {}
    base = card.get("base_model") if is_local else name
    link = card.get("license_link")
    return BaseModel(
        name=base if isinstance(base, str) and is_name(base) else None,
        relation=relation,
        license=_text(card.get("license")),
        license_name=_text(card.get("license_name")),
        # A relative link points to a file beside that card, not beside this one.
        license_link=link if isinstance(link, str) and link.startswith(("http://", "https://")) else None,
    )


def _read_front_matter(path: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        return metadata_load(path) or {}
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _list_results(facts: CardFacts) -> list[EvalResult]:
    """Return the entries of `model-index`; none for a custom task, which has no name on the hub."""
    if facts.pipeline_tag is None:
        return []
    return [
        EvalResult(
            task_type=facts.pipeline_tag,
            dataset_type=scores.dataset or _LOCAL,
            dataset_name=f"{scores.dataset or 'local data'} ({scores.title})",
            dataset_config=facts.dataset_config if scores.dataset is not None else None,
            # The index has one entry for each set, identified by its split.
            dataset_split=scores.split if scores.dataset is not None else scores.title,
            metric_type=name.partition("/")[0],
            metric_name=name,
            metric_value=float(f"{value:.6g}"),
        )
        for scores in facts.scores
        for name, value in scores.metrics.items()
        if name not in _NOT_A_METRIC and math.isfinite(value)
    ]


def _write_body(facts: CardFacts) -> str:
    reads = f" on {facts.reads}" if facts.reads is not None else ""
    base = f" from `{facts.base.name}`" if facts.base is not None and facts.base.name is not None else ""
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items() if name != "numpy")
    environment = {**facts.environment, "versions": versions}
    settings = [(as_code(name), as_code(value)) for name, value in facts.settings.items()]
    parts = [
        f"# {escape(facts.title)}",
        f"Trained{base} with trainer_loop: task `{facts.task}`{reads}.\n"
        f"The weights are those of step {facts.step:,} of {facts.num_steps:,}.",
        *_write_results(facts.scores),
        *_write_list("## Data", facts.data),
        *_write_list("## Limits", facts.limits),
        *(["## Training", _write_table(("key", "value"), settings)] if facts.settings else []),
        *_write_list("## Environment", [f"{name}: {value}" for name, value in environment.items()]),
        *(["Curves, mistakes by class and length, and the whole config are in `report.html`."] * facts.has_report),
    ]
    return "\n\n".join(parts) + "\n"


def _write_results(scores: Sequence[Scores]) -> list[str]:
    """Return a table of all metrics, with their intervals where they are known."""
    heads = ["set", "metric", "value", "95 % interval"]
    rows = [
        [_name_set(of), escape(name), f"{value:.6g}", _spell_interval(of.intervals.get(name))]
        for of in scores
        for name, value in of.metrics.items()
        if name != "rows"
    ]
    if not rows:
        return []
    if not any(of.intervals for of in scores):
        return ["## Results", _write_table(heads[:3], [row[:3] for row in rows])]
    note = (
        "Intervals are bootstrap percentiles: how a metric would move with other rows of the same kind. They say "
        "nothing about another seed of the training."
    )
    return ["## Results", _write_table(heads, rows), note]


def _name_set(of: Scores) -> str:
    """Return the title of a set with its size, such as `test, 1,000 rows`."""
    rows = of.metrics.get("rows")
    return escape(of.title) if rows is None else f"{escape(of.title)}, {rows:,.0f} rows"


def _spell_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def as_code(value: Any) -> str:
    """Format a value as Markdown code, also inside a table."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).split())
    text = _BAR.sub(r"\\|", text)
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def escape(text: str) -> str:
    """Escape a text for Markdown: no emphasis, link, tag or line break."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _write_list(title: str, lines: Sequence[str]) -> list[str]:
    return [title, "\n".join(f"- {escape(line)}" for line in lines)] if lines else []


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
