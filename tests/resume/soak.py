"""Kill runs at random moments, hundreds of times, and count those that do not end like an uninterrupted run.

    make soak
    PYTHONPATH=tests python tests/resume/soak.py --kills 50 --seed 7

Uses every case of the harness in turn, on one process and two, or, for sharded models, on two and four. Directories of
runs with a mismatch are kept, and their path is printed.
"""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from harness import CASES, SHARDED, Bench, Run, assert_same, kill_at_random

KILLS_PER_RUN = 12
EPOCHS = "train.epochs=6"
ALL = CASES | SHARDED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after this time")
    parser.add_argument("--cases", nargs="*", default=list(ALL), help="names of cases in the harness; default: all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    start = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    dice = random.Random(options.seed)
    kills = runs = mismatches = 0
    kinds = [(case, number) for case in options.cases for number in ((2, 4) if case in SHARDED else (1, 2))]
    bench = Bench.make(directory / "bench")
    for number, (case, num_processes) in enumerate(itertools.cycle(kinds)):
        if kills >= options.kills or time.monotonic() - start > 60 * options.minutes:
            break
        run = bench.run(directory / f"run-{number}", *ALL[case], EPOCHS, num_processes=num_processes)
        runs += 1
        killed, problem = kill_and_compare(run, bench, dice, max_kills=min(KILLS_PER_RUN, options.kills - kills))
        kills += killed
        mismatches += problem is not None
        print(f"{case}, {num_processes} processes: {killed} kills, {problem or 'the same bits'}", flush=True)
        if problem is None:
            shutil.rmtree(run.directory)
    minutes = (time.monotonic() - start) / 60
    print(
        f"soak: {kills} kills in {runs} runs of {min(runs, len(kinds))} kinds, seed {options.seed}, "
        f"{minutes:.1f} minutes: {mismatches} mismatches"
    )
    if mismatches:
        print(f"what they left: {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if mismatches else 0


def kill_and_compare(run: Run, bench: Bench, dice: random.Random, *, max_kills: int) -> tuple[int, str | None]:
    """Kill the run up to `max_kills` times, let it end, and compare it; return the kills and the mismatch or None."""
    options = run.arguments[len(bench.run(run.directory).arguments) :]
    kills = 0
    try:
        whole = bench.whole(*options, num_processes=run.num_processes)
        while kills < max_kills and not (run.path / "model").exists():
            kills += kill_at_random(run, dice, seconds=0.25)
        run.finish()
        assert_same(run, whole)
    except AssertionError as problem:
        run.kill()
        return kills, f"MISMATCH: {problem}"
    return kills, None


if __name__ == "__main__":
    sys.exit(main())
