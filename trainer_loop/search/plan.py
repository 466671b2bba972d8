"""The plan of a search: the config, the space, the runs of each trial."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_loop.search.space import Space


@dataclass(frozen=True)
class Plan:
    """The settings of a search."""

    config: str | None  # of the runs, without `run_dir`
    overrides: Sequence[str]
    space: Space
    metric: str  # with its sign, as in checkpoint.best
    trials: int
    seeds: int | None
    folds: int | None
    directory: Path
    settings: Mapping[str, Any]  # values that must be the same for all trials of a study
    command: Sequence[str]  # trains a config
    url: str  # of the storage
    name: str  # of the study in the storage
    sampler: str
    pruner: str
    seed: int

    @property
    def metric_name(self) -> str:
        return self.metric.removeprefix("-")

    @property
    def maximize(self) -> bool:
        return not self.metric.startswith("-")

    @property
    def runs(self) -> dict[str, list[str]]:
        return list_runs(self.seeds, self.folds)

    def make_command(self, values: Sequence[str], run: Path, more: Sequence[str]) -> list[str]:
        """Return the command of a run. It pushes nothing to the hub, where trials would replace each other.

        Args:
            values: As `key=value`.
            run: The directory of the run, which also gives its name in trackers.
        """
        config = [] if self.config is None else [f"config={self.config}"]
        name = "-".join((self.directory.absolute().name, *run.relative_to(self.directory).parts))
        run_keys = [f"run_dir={run}", f"log.name={name}", "resume=auto", "hub.every=never"]
        return [*self.command, *config, *self.overrides, *run_keys, *values, *more]


def name_trial(number: int) -> str:
    """Return the folder of a trial in the search directory."""
    return f"trial-{number:04}"


def command_of(launch: str) -> list[str]:
    """Return the command that trains a config. launch: its part before the module's name: `accelerate launch -m`."""
    return [*(shlex.split(launch) or [sys.executable, "-m"]), "trainer_loop.run"]


def list_runs(seeds: int | None, folds: int | None) -> dict[str, list[str]]:
    """Return the runs of a trial: the name of their folder -> their overrides.

    >>> list_runs(2, None), list_runs(None, None)
    ({'seed-1': ['seed=1'], 'seed-2': ['seed=2']}, {'': []})
    """
    seed_runs = {f"seed-{seed}": [f"seed={seed}"] for seed in range(1, (seeds or 0) + 1)} or {"": []}
    fold_runs = {
        f"fold-{fold}": [f"data.fold={fold}/{folds}", "data.validation=", "data.validation_fraction="]
        for fold in range(1, (folds or 0) + 1)
    } or {"": []}
    return {
        f"{seed}/{fold}".strip("/"): [*seed_keys, *fold_keys]
        for seed, seed_keys in seed_runs.items()
        for fold, fold_keys in fold_runs.items()
    }
