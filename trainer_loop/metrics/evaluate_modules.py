"""Metrics of the form of the evaluate library: classes at a dotted path, scripts, and names on the hub.

Importing evaluate takes seconds, so only a metric of this form does it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer_loop.components import check_arguments
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.metrics.named_metric import COLUMNS
from trainer_loop.metrics.shipped import BENCHMARKS
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import describe_unreachable, hub_is_reachable

if TYPE_CHECKING:
    import evaluate

_GIVEN = ("self", *COLUMNS)  # arguments of `_compute` that are not the user's


def check_class(found: object, arguments: Mapping[str, Any], *, name: str, place: str) -> list[str]:
    """Which arguments do not fit `_compute` of what is at a dotted path; raise UserError where that is no metric."""
    import evaluate

    if not (isinstance(found, type) and issubclass(found, evaluate.Metric)):
        raise UserError(
            f"{place}: {name} is {found!r}; a metric is a function, or a class derived from evaluate.Metric"
        )
    if check_arguments(found, {}, place=place, given=()):
        raise UserError(f"{place}: {name}() needs arguments; give them defaults, since args go to _compute")
    metric: type[evaluate.Metric] = found
    return check_arguments(metric._compute, arguments, place=f"{place}.args", given=_GIVEN)


def check_module(module: "evaluate.Metric", arguments: Mapping[str, Any], *, name: str, place: str) -> list[str]:
    """What can be said of a metric only when it is loaded: its columns and, for a script, its arguments."""
    features = module.features if isinstance(module.features, list) else [module.features]
    if set(features[0]) != set(COLUMNS):
        return [f"{place}: {name} works on {', '.join(features[0])}; a task gives predictions and references"]
    return check_arguments(type(module)._compute, arguments, place=f"{place}.args", given=_GIVEN)


def read_columns(module: "evaluate.Metric") -> dict[str, type[np.generic] | None]:
    """What the metric compares: whole numbers, where it says so. evaluate itself would cut 0.9 down to 0."""
    from datasets import Value

    features = module.features if isinstance(module.features, dict) else {}
    kinds = {name: features.get(name) for name in COLUMNS}
    return {name: np.int64 if isinstance(kind, Value) and "int" in kind.dtype else None for name, kind in kinds.items()}


def load_module(name: str, *, script: Path | None, no_hub: str | None) -> "evaluate.Metric":
    """A metric on the hub or in a script, its rows kept in memory; raise UserError with the reason it cannot be loaded.

    no_hub: why the hub cannot be asked; a metric in evaluate's cache is still loaded then.
    """
    import evaluate

    benchmark, _, data_set = name.partition("/")
    path, config_name = (benchmark, data_set) if benchmark in BENCHMARKS else (name, None)
    before = evaluate.config.HF_EVALUATE_OFFLINE
    if no_hub is not None:  # evaluate does not read HF_HUB_OFFLINE; this makes it answer at once from its cache
        evaluate.config.HF_EVALUATE_OFFLINE = True
    try:
        return evaluate.load(str(script or path), config_name, module_type="metric", keep_in_memory=True)
    except (OSError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(no_hub if no_hub and isinstance(error, FileNotFoundError) else in_one_line(error)) from error
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


def find_script(name: str, *, place: str) -> Path:
    """The file of a metric script; its name may be that of the folder it is in."""
    path = expand_home(name, place=place)
    script = path / f"{path.name}.py" if path.is_dir() else path
    if not script.is_file():
        raise UserError(f"{place}: no metric script at {str(script)!r}; give the path of a .py file")
    return script


def why_no_hub() -> str | None:
    """Why the hub cannot be asked, found out within seconds; None when it can."""
    import evaluate

    if evaluate.config.HF_EVALUATE_OFFLINE:
        return "it is not in evaluate's cache, and HF_EVALUATE_OFFLINE is set"
    return None if hub_is_reachable() else f"it is not in evaluate's cache, and {describe_unreachable()}"
