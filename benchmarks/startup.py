"""From the command to the first step: importing, with and without cached tokens, beside a plain Trainer script.

    python -m benchmarks.startup --data path/to/imdb

Both sides are separate commands: `python -m trainer_loop.run` with configs/imdb.yaml, and benchmarks/peer_trainer.py,
which imports what a tutorial's script imports. They are timed from outside until they print the loss of their first
step, which is the end of that step. The start of the step is found by subtracting the training time that the side
itself reports: this one step and, for Trainer, some preparation. "Nothing cached" means empty caches in every round.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import module_path
from benchmarks.measure import compare, publish, take_turns, time_of
from benchmarks.our_run import files_of, imdb_words
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.workplace import Workplace, make_workplace

_TOKENISED = re.compile(r"([\d,]+) rows? tokenised in ([\d.]+) s")
_FIRST_STEP = {"trainer_loop": "step=1 ", "Trainer": "'loss'"}
_TRAINED = {
    "trainer_loop": re.compile(r"trained 1 steps in ([\d.,]+) seconds"),
    "Trainer": re.compile(r"'train_runtime': '?([\d.]+)"),
}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=5)
    add_texts(parser, rows=25_000, held_out=None)
    add_size(parser, "--batch-size", 32, "rows of the first step")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=None, data=options.data, model=options.model) as place:
        imports = take_turns(
            {
                "python alone": lambda: _time_python("pass"),
                "import trainer_loop": lambda: _time_python("import trainer_loop"),
                "import torch": lambda: _time_python("import torch"),
                "import torch, transformers.Trainer": lambda: _time_python("from transformers import Trainer"),
            },
            rounds=options.rounds,
        )
        starts = _Starts(place, max_length=options.max_length, batch_size=options.batch_size)
        first = take_turns(
            {side: lambda side=side: starts.measure(side) for side in _FIRST_STEP}, rounds=options.rounds
        )
        settings = place.described | {
            name: getattr(options, name) for name in ("rows", "max_length", "batch_size", "rounds")
        }
    if differences := find_differences(first, equal=["rows"], close={}):
        tell_differences(differences)
        return 1
    seconds = {
        moment: {
            f"{side}, {cache}": [result[f"{moment}, {cache}"] for result in results]
            for cache in ("tokens cached", "nothing cached")
            for side, results in first.items()
        }
        for moment in ("begin", "end")
    }
    rates = {side: [result["rows a second"] for result in results] for side, results in first.items()}
    comparisons = [
        compare("a Python process that does no more", "seconds", imports),
        compare("from the command to the first step", "seconds", seconds["begin"]),
        compare("from the command to the end of the first step", "seconds", seconds["end"]),
        compare("tokenising", "rows a second", rates, base="Trainer"),
    ]
    publish("startup", comparisons, settings=settings, folder=options.results)
    return 0


class _Starts:
    """Starts each side twice: with empty caches, and with the caches of the first start."""

    def __init__(self, place: Workplace, *, max_length: int, batch_size: int):
        self._place = place
        self._max_length = max_length
        self._batch_size = batch_size
        self._count = 0

    def measure(self, side: str) -> dict[str, float]:
        """Measure one side with `nothing cached` and with `tokens cached`.

        Returns:
            Seconds to the `begin` and the `end` of the first step; with empty caches also `rows a second` of
            tokenising.
        """
        self._count += 1
        caches = self._place.root / f"start-{self._count}"
        words = self._our_words if side == "trainer_loop" else self._trainer_words
        environment = {
            **self._place.environment,
            "HF_DATASETS_CACHE": str(caches / "datasets"),
            "TRAINER_LOOP_CACHE": str(caches / "tokens"),
        }
        cold, lines = _time_to_first_step(side, words(caches / "cold"), environment)
        warm, _ = _time_to_first_step(side, words(caches / "warm"), environment)
        found = _find(_TOKENISED, lines)
        rows = int(found[1].replace(",", ""))
        rate = rows / max(float(found[2]), 0.05)  # the output has tenths of a second
        return {
            **{f"{moment}, nothing cached": seconds for moment, seconds in cold.items()},
            **{f"{moment}, tokens cached": seconds for moment, seconds in warm.items()},
            "rows": rows,
            "rows a second": rate,
        }

    def _our_words(self, folder: Path) -> list[str]:
        files = {**files_of(self._place), "held_out": None}
        sizes = {"max_length": self._max_length, "batch_size": self._batch_size, "steps": 1}
        return ["trainer_loop.run", *imdb_words(**files, folder=str(folder), **sizes), "log.every=1"]

    def _trainer_words(self, folder: Path) -> list[str]:
        return [
            "benchmarks.peer_trainer",
            *("--model", str(self._place.model), "--train", str(self._place.train), "--folder", str(folder)),
            *("--max-length", str(self._max_length), "--batch-size", str(self._batch_size), "--max-steps", "1"),
        ]


def _time_python(code: str) -> float:
    """Seconds of a Python process that runs this code."""
    environment = {**os.environ, "PYTHONPATH": module_path()}
    return time_of(lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment))


def _time_to_first_step(
    side: str, words: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, float], list[str]]:
    """Seconds from the start of `python -m words` to the `begin` and `end` of the first step, and its output lines."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *words],
        env={**os.environ, "PYTHONPATH": module_path(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    end = None
    lines = []
    for line in process.stdout:
        if end is None and _FIRST_STEP[side] in line:
            end = time.perf_counter() - began
        lines.append(line)
    code = process.wait()
    if code != 0 or end is None:
        raise RuntimeError(f"{words[0]} ended with exit code {code}:\n{''.join(lines[-30:])}")
    return {"begin": end - float(_find(_TRAINED[side], lines)[1].replace(",", "")), "end": end}, lines


def _find(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str]:
    """The first match in these lines; a side must print such a line."""
    found = next((match for match in map(pattern.search, lines) if match), None)
    assert found is not None, f"no line says {pattern.pattern}"
    return found


if __name__ == "__main__":
    sys.exit(main())
