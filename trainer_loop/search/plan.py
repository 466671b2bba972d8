"""What a search is about: the config, the space, the runs of each trial."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_loop.search.space import Space


@dataclass(frozen=True)
class Plan:
    """What is searched.

    config, overrides: of the run, without `run_dir`. metric: with its sign, as checkpoint.best. settings: what must be
    the same for all trials. command: that trains a config. url, name: of the study in the storage. sampler, pruner,
    seed: as in the keys of the search.
    """

    config: str | None
    overrides: Sequence[str]
    space: Space
    metric: str
    trials: int
    seeds: int | None
    folds: int | None
    directory: Path
    settings: Mapping[str, Any]
    command: Sequence[str]
    url: str
    name: str
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

    def spell(self, values: Sequence[str], run: Path, more: Sequence[str]) -> list[str]:
        """The command of a run.

        values: as `key=value`. run: its directory, by which trackers call it. Trials do not replace each other on the
        hub.
        """
        config = [] if self.config is None else [f"config={self.config}"]
        name = "-".join((self.directory.absolute().name, *run.relative_to(self.directory).parts))
        own = [f"run_dir={run}", f"log.name={name}", "resume=auto", "hub.every=never"]
        return [*self.command, *config, *self.overrides, *own, *values, *more]


def name_trial(number: int) -> str:
    """The folder of a trial in the search directory."""
    return f"trial-{number:04}"


def command_of(launch: str) -> list[str]:
    """The command that trains a config. launch: what stands before the name of the module: `accelerate launch -m`."""
    return [*(shlex.split(launch) or [sys.executable, "-m"]), "trainer_loop.run"]


def list_runs(seeds: int | None, folds: int | None) -> dict[str, list[str]]:
    """The runs of a trial by the names of their folders, and what each of them overrides.

    >>> list_runs(2, None), list_runs(None, None)
    ({'seed-1': ['seed=1'], 'seed-2': ['seed=2']}, {'': []})
    """
    of_seeds = {f"seed-{seed}": [f"seed={seed}"] for seed in range(1, (seeds or 0) + 1)} or {"": []}
    of_folds = {
        f"fold-{fold}": [f"data.fold={fold}/{folds}", "data.validation=", "data.validation_fraction="]
        for fold in range(1, (folds or 0) + 1)
    } or {"": []}
    return {
        f"{seed}/{fold}".strip("/"): [*one, *other]
        for seed, one in of_seeds.items()
        for fold, other in of_folds.items()
    }
