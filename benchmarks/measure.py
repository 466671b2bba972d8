"""What every benchmark needs: rounds in turn, medians with their spread, the machine, and a file of results."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_loop.record.run_dir import package_versions

RESULTS = Path(__file__).parent / "results"


def take_turns(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Run every side once a round, so that what else the machine does strikes all alike; their figures by name.

    The order turns from round to round. A side returns its own figure, such as seconds.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            figures[name].append(sides[name]())
    return figures


def time_of(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and the figures themselves."""
    return {
        "median": statistics.median(values),
        "smallest": min(values),
        "largest": max(values),
        "rounds": list(values),
    }


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": dict(package_versions()),
    }


def keep(name: str, results: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n", encoding="utf-8")
    return path
