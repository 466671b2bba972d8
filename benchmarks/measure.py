"""Shared by all benchmarks: rounds in turn, medians with their spread, the machine, and the file of results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from trainer_loop.record.run_dir import package_versions

RESULTS = Path(__file__).parent / "results"
_PEERS = ("lightning", "pytorch-accelerated")

T = TypeVar("T")


def take_turns(sides: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """Run every side once per round, so that other load on the machine affects all sides alike.

    The order of the sides changes from round to round.

    Args:
        sides: functions by name; each returns one or several values, such as seconds.
        rounds: number of rounds.

    Returns:
        The results of all rounds, by side.
    """
    figures: dict[str, list[T]] = {name: [] for name in sides}
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
    """Median, extremes and the values themselves."""
    return {
        "median": statistics.median(values),
        "smallest": min(values),
        "largest": max(values),
        "rounds": list(values),
    }


def compare(
    title: str, unit: str, figures: Mapping[str, Sequence[float]], *, base: str | None = None, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """A comparison of several sides as plain JSON.

    Args:
        title: title of the comparison.
        unit: unit of the values.
        figures: values of all rounds, by side.
        base: the side by whose median the others are divided; None for no ratios. The extremes of a ratio are those of
            the rounds.
        notes: sentences that a reader needs.
    """
    ratios = {}
    if base is not None:
        for name in figures:
            pairs = [one / other for one, other in zip(figures[name], figures[base], strict=True)]
            ratio = statistics.median(figures[name]) / statistics.median(figures[base])
            ratios[name] = {"ratio": ratio, "smallest": min(pairs), "largest": max(pairs)}
    sides = {name: summarise(values) for name, values in figures.items()}
    return {"title": title, "unit": unit, "base": base, "sides": sides, "ratios": ratios, "notes": list(notes)}


def tell(comparison: Mapping[str, Any]) -> None:
    """Print a comparison."""
    width = max(len(name) for name in comparison["sides"])
    print(f"\n{comparison['title']}, {comparison['unit']}")
    for name, summary in comparison["sides"].items():
        spread = f"({format_figure(summary['smallest'])} to {format_figure(summary['largest'])})"
        line = f"  {name:<{width}}  {format_figure(summary['median']):>9} {spread:<24}"
        if name in comparison["ratios"]:
            ratio = comparison["ratios"][name]
            line += f"  {ratio['ratio']:.3f} ({ratio['smallest']:.3f} to {ratio['largest']:.3f})"
        print(line.rstrip())
    if comparison["base"] is not None:
        print(f"  last column: over {comparison['base']}")
    for note in comparison["notes"]:
        print(f"  {note}")


def format_figure(value: float) -> str:
    """A number with four significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe_machine() -> dict[str, Any]:
    """The machine and the versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bf16_units": [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)],
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {**package_versions(), **_peer_versions()},
    }


def publish(
    name: str, comparisons: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any], folder: Path = RESULTS
) -> None:
    """Print the comparisons and write them to NAME.json in the results folder, with the machine and the settings."""
    for comparison in comparisons:
        tell(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    results = {"machine": describe_machine(), "settings": dict(settings), "comparisons": list(comparisons)}
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


def _peer_versions() -> dict[str, str]:
    versions = {}
    for package in _PEERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
