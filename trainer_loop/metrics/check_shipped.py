"""Whether a shipped metric can be computed, and fits the task and its classes: found out before anything loads."""

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any, get_args

from trainer_loop.components import check_arguments
from trainer_loop.metrics.shipped import SHIPPED, ShippedMetric
from trainer_loop.metrics.values import Average


def check_shipped(
    metric: ShippedMetric,
    arguments: Mapping[str, Any],
    *,
    place: str,
    num_labels: int | None,
    outputs: Mapping[str, str] | None,
    written: Mapping[str, str],
) -> list[str]:
    """All problems, one line each. place: the config key of the entry; for the others see `check_metrics`."""
    if outputs is not None and not metric.fits(outputs) and metric.fits({**outputs, **written}):
        return [
            f"{place}: {metric.name} compares texts that the model writes, and without a length it writes none in an "
            "evaluation; set evaluate.generate.max_new_tokens, such as 64"
        ]
    if outputs is not None and not metric.fits(outputs):
        fitting = ", ".join(other.name for other in SHIPPED.values() if other.fits(outputs)) or "none"
        return [f"{place}: {metric.name} does not fit this task; those that do: {fitting}"]
    problems = check_arguments(metric.function, arguments, place=f"{place}.args", given=metric.columns)
    if metric.package is not None and importlib.util.find_spec(metric.package) is None:
        problems.append(f"{place}: {metric.name} needs the package {metric.package}: pip install {metric.package}")
    if metric.num_classes is not None and num_labels not in (None, metric.num_classes):
        problems.append(
            f"{place}: {metric.name} is for {metric.num_classes} classes and this task has {num_labels}; "
            "instead set accuracy and {name: f1, args: {average: macro}}"
        )
    if metric.has_average and not problems:
        return _check_average(metric, arguments, place=place, num_labels=num_labels)
    return problems


def _check_average(
    metric: ShippedMetric, arguments: Mapping[str, Any], *, place: str, num_labels: int | None
) -> list[str]:
    """Problems of `average`, and of `labels` and `pos_label` beside it."""
    average = arguments.get("average", inspect.signature(metric.function).parameters["average"].default)
    if average not in (*get_args(Average), None):
        return [f"{place}.args.average: {average!r} is unknown; allowed: {', '.join(get_args(Average))}, null"]
    if average == "binary" and num_labels not in (None, 2):
        return [
            f"{place}: {metric.name} with average: binary is for 2 classes and this task has {num_labels}; "
            f"set {{name: {metric.name}, args: {{average: macro}}}} (or micro, weighted, null)"
        ]
    if average != "binary" and "pos_label" in arguments:
        return [f"{place}.args.pos_label: only average: binary scores one class, not {average or 'null'}; remove one"]
    labels = arguments.get("labels")
    if not isinstance(labels, list | None):
        return [f"{place}.args.labels: {labels!r} is no list; set the class numbers, such as labels: [0, 1, 2]"]
    if num_labels is None:
        return []
    classes = {"labels": labels or [], "pos_label": [arguments.get("pos_label", 0)]}
    return [
        f"{place}.args.{argument}: {value!r} is not a class number; allowed: 0 to {num_labels - 1}, in the order of "
        "the label names, which is sorted unless data.label_names says another"
        for argument, values in classes.items()
        for value in values
        if value not in range(num_labels)
    ]
