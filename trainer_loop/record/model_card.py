"""The model card: what the hub shows of a model and finds it by. The only place where one is made."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from trainer_loop.record.adapter_config import ADAPTER_CONFIG
from trainer_loop.record.hub_access import is_name
from trainer_loop.record.run_dir import package_versions

Relation = Literal["finetune", "adapter"]
_PIPELINE_TAGS = {"sequence_classification": "text-classification", "causal_lm": "text-generation"}
_LOCAL = "local"  # what model-index calls a data set that is not on the hub: it must name one
_NOT_A_METRIC = ("loss", "rows")  # figures of ours that are no metric of the hub


@dataclass(frozen=True)
class BaseModel:
    """The model on the hub that a model was made from, and the license that it hands on."""

    name: str | None  # hub id; None: it is on no hub that we know of
    relation: Relation
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class Scores:
    """The figures of one set that was evaluated."""

    title: str  # validation, test, validation matched
    dataset: str | None  # hub id of the data set it is a split of; None: it is not on the hub
    split: str | None  # its name there
    figures: Mapping[str, float]


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells."""

    title: str
    task: str  # name, or the dotted path of one's own
    library: str  # as the hub calls it: transformers, peft, pytorch
    reads: str | None  # the columns a model on texts reads, and where it cuts them
    step: int
    num_steps: int
    base: BaseModel | None
    dataset: str | None  # hub id
    dataset_config: str | None
    data: Sequence[str]  # a line each about the rows
    scores: Sequence[Scores]
    metric_names: Sequence[str]  # names known to evaluate
    settings: Mapping[str, Any]  # config keys that decided the training
    tags: Sequence[str] = ()


def make_card(facts: CardFacts) -> str:
    """The text of README.md: front matter as the hub wants it, then what a person reads."""
    base = facts.base
    tag = _PIPELINE_TAGS.get(facts.task)
    results = _list_results(facts, tag)
    data = ModelCardData(
        base_model=base.name if base is not None else None,
        base_model_relation=base.relation if base is not None and base.name is not None else None,
        license=base.license if base is not None else None,
        license_name=base.license_name if base is not None else None,
        license_link=base.license_link if base is not None else None,
        library_name=facts.library,
        pipeline_tag=tag,
        datasets=[facts.dataset] if facts.dataset is not None else None,
        metrics=list(dict.fromkeys(facts.metric_names)) or None,
        tags=["trainer_loop", *facts.tags],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_write_body(facts)}"))


def make_short_card(model: Path) -> str:
    """The card of a model that was made elsewhere and brings none: what its files tell."""
    try:
        text = (model / ADAPTER_CONFIG).read_text(encoding="utf-8")
        base = json.loads(text).get("base_model_name_or_path")
    except FileNotFoundError:
        data = ModelCardData(library_name="transformers")
    except (OSError, ValueError, AttributeError):  # peft will say what is wrong with it
        data = ModelCardData(library_name="peft")
    else:
        name = base if isinstance(base, str) and is_name(base) and not Path(base).exists() else None
        data = ModelCardData(library_name="peft", base_model=name, base_model_relation="adapter" if name else None)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {model.resolve().name}\n"))


def find_base_model(name: str, *, relation: Relation) -> BaseModel:
    """What is known of the model that `name`, a hub id or local directory, stands for; nothing is downloaded.

    A local directory is no id on the hub: its own card may tell which model it was made from.
    """
    directory = Path(name).expanduser()
    is_local = directory.is_dir()
    card = _read_front_matter(directory / "README.md" if is_local else _find_in_cache(name))
    told = card.get("base_model") if is_local else name
    link = card.get("license_link")
    return BaseModel(
        name=told if isinstance(told, str) and is_name(told) else None,
        relation=relation,
        license=_text(card.get("license")),
        license_name=_text(card.get("license_name")),
        # A relative one leads to a file that lies beside that card, and not beside this one.
        license_link=link if isinstance(link, str) and link.startswith(("http://", "https://")) else None,
    )


def _find_in_cache(name: str) -> Path | None:
    if not is_name(name):
        return None
    found = try_to_load_from_cache(name, "README.md")
    return Path(found) if isinstance(found, str) else None


def _read_front_matter(path: Path | None) -> dict[str, Any]:
    """Of a card that somebody else wrote: what cannot be read says nothing."""
    if path is None or not path.is_file():
        return {}
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        before, opening, rest = path.read_text(encoding="utf-8-sig").partition("---\n")
        front = yaml.safe_load(rest.partition("\n---")[0]) if opening and not before.strip() else None
        return front if isinstance(front, dict) else {}
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _list_results(facts: CardFacts, tag: str | None) -> list[EvalResult]:
    """For `model-index`; a task of one's own has no name on the hub, and no results there."""
    if tag is None:
        return []
    return [
        EvalResult(
            task_type=tag,
            dataset_type=scores.dataset or _LOCAL,
            dataset_name=f"{scores.dataset or 'local data'} ({scores.title})",
            dataset_config=facts.dataset_config if scores.dataset is not None else None,
            # One entry of the index for each set, which goes by its split.
            dataset_split=scores.split if scores.dataset is not None else scores.title,
            metric_type=name.partition("/")[0],
            metric_name=name,
            metric_value=float(f"{value:.6g}"),
        )
        for scores in facts.scores
        for name, value in scores.figures.items()
        if name not in _NOT_A_METRIC and math.isfinite(value)
    ]


def _write_body(facts: CardFacts) -> str:
    reads = f" on {facts.reads}" if facts.reads is not None else ""
    base = f" from `{facts.base.name}`" if facts.base is not None and facts.base.name is not None else ""
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items() if name != "numpy")
    parts = [
        f"# {facts.title}",
        f"Trained{base} with trainer_loop: task `{facts.task}`{reads}.\n"
        f"The weights are those of step {facts.step:,} of {facts.num_steps:,}.",
        _write_results(facts.scores),
        "## Data\n\n" + "\n".join(f"- {line}" for line in facts.data) if facts.data else "",
        "## Training\n\n" + _write_table(("key", "value"), [(f"`{k}`", f"`{v}`") for k, v in facts.settings.items()])
        if facts.settings
        else "",
        f"Versions: {versions}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _write_results(scores: Sequence[Scores]) -> str:
    rows = [(of.title, name, f"{value:.6g}") for of in scores for name, value in of.figures.items()]
    return "## Results\n\n" + _write_table(("set", "metric", "value"), rows) if rows else ""


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
