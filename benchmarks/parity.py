"""The gradient of one update in four microbatches compared with one microbatch: trainer_loop and Trainer.

    python -m benchmarks.parity

Every model is tiny and made from its config, with the same random weights for all sides, in float64 and without
dropout. An update has 16 rows of 24 to 3 tokens, longest first, so that both loops make the same four microbatches of
four rows. The microbatches of a language model then have different numbers of targets. The gradient is the one that the
optimizer (SGD) receives, without clipping. A difference is that of the weight whose gradient differs most: the norm of
the difference over the norm of the weight's gradient in one microbatch (or over a millionth of the norm of all weights,
if that is more).

- trainer_loop: TrainingLoop with `per_device` 4 and with no limit, its tasks, its loader and its plan.
- Trainer: `gradient_accumulation_steps` 4 and batches of 4 against 1 and batches of 16, the model's own loss, the
  collators of transformers that pad each microbatch to its longest row.
- Trainer, padded alike: every row is padded to 24 tokens.
- Trainer, compute_loss_func: with a loss function that itself divides by `num_items_in_batch`.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, describe_machine
from benchmarks.page import read_method
from benchmarks.parity_models import MODELS
from benchmarks.parity_sides import (
    MICROBATCHES,
    ROWS_TOGETHER,
    Gradient,
    compare_gradients,
    divide_by_items,
    measure_ours,
    measure_trainer,
)
from trainer_loop.runtime.quiet import quieten_libraries

_PAGE = Path(__file__).parents[1] / "docs/parity.md"
_OURS = "trainer_loop"
_PACKAGES = ("torch", "transformers", "accelerate")
_NOTABLE = 0.01  # a larger difference is named above the tables
_WHY_ACCUMULATION = (
    "Trainer passes `num_items_in_batch` to every model whose `forward` takes `**kwargs`, and the model has to divide. "
    "A head that ignores it returns the mean of each microbatch, and these means are added up "
    "([transformers 47688](https://github.com/huggingface/transformers/issues/47688)). A constant factor does not "
    "change Adam's update (except through its eps), but it changes SGD's update and clipping at `max_grad_norm`."
)
_WHY_COUNT = (
    "Where it is smaller, Trainer also counted the first token of each row, which nothing predicts. Trainer leaves it "
    "out only if the name of the model's class contains ForCausalLM, and GPT2LMHeadModel's does not."
)

SIDES: dict[str, Callable[[str, int], Gradient]] = {
    _OURS: lambda name, cut: measure_ours(name, per_device=ROWS_TOGETHER if cut > 1 else None),
    "Trainer": lambda name, cut: measure_trainer(name, microbatches=cut),
    "Trainer, padded alike": lambda name, cut: measure_trainer(name, microbatches=cut, padded_alike=True),
    "Trainer, compute_loss_func": lambda name, cut: measure_trainer(
        name, microbatches=cut, loss_function=divide_by_items
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file that is written")
    parser.add_argument("--page", type=Path, default=_PAGE, help="the page that is written")
    options = parser.parse_args(argv)
    quieten_libraries()
    models = {}
    for name in MODELS:
        models[name] = measure(name)
        norms = ", ".join(f"{side} {figures['four']['norm_ratio']:.6g}" for side, figures in models[name].items())
        print(f"{name}: norm of four microbatches over one: {norms}", flush=True)
    results = {"machine": describe_machine(), "models": models}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "parity.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    options.page.write_text(write_page(results), encoding="utf-8")
    print(f"written to {options.page}")
    return 0


def measure(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """For each side: `four`, four microbatches against one; `one`, one microbatch against trainer_loop's one."""
    whole = {side: gradient(name, 1) for side, gradient in SIDES.items()}
    return {
        side: {
            "four": compare_gradients(gradient(name, MICROBATCHES), whole[side]),
            "one": compare_gradients(whole[side], whole[_OURS]),
        }
        for side, gradient in SIDES.items()
    }


def write_page(results: Mapping[str, Any]) -> str:
    """The text of docs/parity.md for these results."""
    versions = results["machine"]["versions"]
    models = results["models"]
    largest = max(figures[_OURS]["four"]["difference"] for figures in models.values())
    measured_with = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES)
    parts = [
        "# Parity: what accumulation does to the gradient",
        f"This page is written by the command below, with {measured_with}.",
        read_method("parity"),
        "## What was measured",
        f"**trainer_loop**: four microbatches give the gradient of one, up to a difference of {largest:.1e}. "
        "[A test](../tests/numerics/test_accumulation.py) keeps it within 1e-6, on one process and on two.",
        f"**Trainer** {versions['transformers']} with the model's own loss, four microbatches compared with one: "
        + _name_notable(models, "four", why=_WHY_ACCUMULATION),
        "**Trainer beside trainer_loop**, both in one microbatch: " + _name_notable(models, "one", why=_WHY_COUNT),
        "## Norm of the gradient: four microbatches divided by one",
        _write_table(models, "four", "norm_ratio", "{:.6g}"),
        "## Largest difference of a weight's gradient: four microbatches compared with one",
        _write_table(models, "four", "difference", "{:.1e}"),
        "## Norm of the gradient in one microbatch, divided by that of trainer_loop",
        _write_table(models, "one", "norm_ratio", "{:.6g}"),
    ]
    return "\n\n".join(part if "\n" in part else _wrap(part) for part in parts) + "\n"


def _name_notable(models: Mapping[str, Any], cut: str, *, why: str) -> str:
    """The models for which Trainer's gradient differs, the ratio of the norms, and the reason."""
    by_ratio: dict[str, list[str]] = {}
    for name, figures in models.items():
        if figures["Trainer"][cut]["difference"] > _NOTABLE:
            by_ratio.setdefault(f"{figures['Trainer'][cut]['norm_ratio']:.4g}", []).append(name)
    if not by_ratio:
        return "the gradient is the same for all models."
    told = "; ".join(
        f"the gradient's norm is {ratio} times as large for {', '.join(names)}" for ratio, names in by_ratio.items()
    )
    return f"{told}; for all others it is the same. {why}"


def _wrap(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def _write_table(models: Mapping[str, Any], cut: str, figure: str, form: str) -> str:
    lines = ["| | " + " | ".join(SIDES) + " |", "|---" * (1 + len(SIDES)) + "|"]
    for name, figures in models.items():
        lines.append(f"| {name} | " + " | ".join(form.format(figures[side][cut][figure]) for side in SIDES) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
