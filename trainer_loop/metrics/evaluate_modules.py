"""Metrics of the evaluate library: classes at a dotted path, scripts, and names on the hub.

Importing evaluate takes seconds, so only these metrics import it.
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

_PASSED = ("self", *COLUMNS)  # arguments of `_compute` that the user does not set


def check_class(component: object, arguments: Mapping[str, Any], *, name: str, place: str) -> list[str]:
    """Return the problems of the arguments of a metric class. Raises UserError if `component` is no metric class."""
    import evaluate

    if not (isinstance(component, type) and issubclass(component, evaluate.Metric)):
        raise UserError(
            f"{place}: {name} is {component!r}; a metric is a function, or a class derived from evaluate.Metric"
        )
    if check_arguments(component, {}, place=place, given=()):
        raise UserError(f"{place}: {name}() needs arguments; give them defaults, since args go to _compute")
    metric: type[evaluate.Metric] = component
    return check_arguments(metric._compute, arguments, place=f"{place}.args", given=_PASSED)


def check_module(module: "evaluate.Metric", arguments: Mapping[str, Any], *, name: str, place: str) -> list[str]:
    """Return the problems of a loaded metric: of its columns and its arguments."""
    features = module.features if isinstance(module.features, list) else [module.features]
    if set(features[0]) != set(COLUMNS):
        return [f"{place}: {name} works on {', '.join(features[0])}; a task gives predictions and references"]
    return check_arguments(type(module)._compute, arguments, place=f"{place}.args", given=_PASSED)


def read_columns(module: "evaluate.Metric") -> dict[str, type[np.generic] | None]:
    """Return the columns of a metric, with int64 for whole numbers. evaluate itself would turn 0.9 into 0."""
    from datasets import Value

    features = module.features if isinstance(module.features, dict) else {}
    kinds = {name: features.get(name) for name in COLUMNS}
    return {name: np.int64 if isinstance(kind, Value) and "int" in kind.dtype else None for name, kind in kinds.items()}


def load_module(name: str, *, script: Path | None, no_hub: str | None) -> "evaluate.Metric":
    """Load a metric from the hub or a script; it keeps its rows in memory.

    Args:
        no_hub: Why the hub cannot be reached, or None. A metric in evaluate's cache is loaded in any case.

    Raises:
        UserError: The metric cannot be loaded. The message is the reason.
    """
    import evaluate

    benchmark, _, data_set = name.partition("/")
    path, config_name = (benchmark, data_set) if benchmark in BENCHMARKS else (name, None)
    before = evaluate.config.HF_EVALUATE_OFFLINE
    if no_hub is not None:  # evaluate ignores HF_HUB_OFFLINE; this makes it use its cache at once
        evaluate.config.HF_EVALUATE_OFFLINE = True
    try:
        return evaluate.load(str(script or path), config_name, module_type="metric", keep_in_memory=True)
    except (OSError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(no_hub if no_hub and isinstance(error, FileNotFoundError) else in_one_line(error)) from error
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


def find_script(name: str, *, place: str) -> Path:
    """Return the file of a metric script. `name` is the file, or its folder if both have the same name."""
    path = expand_home(name, place=place)
    script = path / f"{path.name}.py" if path.is_dir() else path
    if not script.is_file():
        raise UserError(f"{place}: no metric script at {str(script)!r}; give the path of a .py file")
    return script


def why_no_hub() -> str | None:
    """Return why the hub cannot be reached, within seconds; None if it can."""
    import evaluate

    if evaluate.config.HF_EVALUATE_OFFLINE:
        return "it is not in evaluate's cache, and HF_EVALUATE_OFFLINE is set"
    return None if hub_is_reachable() else f"it is not in evaluate's cache, and {describe_unreachable()}"
