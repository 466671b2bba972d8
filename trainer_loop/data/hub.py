"""Data sets of the Hugging Face hub, or of its cache on this machine."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping

import datasets
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from trainer_loop.data.fingerprint import digest
from trainer_loop.data.split import Origins, Split
from trainer_loop.data.wording import did_you_mean, enumerate_some
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import offline_unless_reachable

SLICE = re.compile(r"[\[+]")  # train[:1000], train+test


def load_hub_splits(name: str, *, config: str | None, specs: Mapping[str, str]) -> tuple[dict[str, Split], list[str]]:
    """Splits of a hub data set, from the hub or its cache -> the splits that are there, and what is wrong.

    specs: our name of a split -> its name there, or a slice of it such as `train[:1000]`.
    """
    try:
        with reach_hub(name, config):
            present = datasets.load_dataset(name, config)
            return _choose_splits(name, config, specs, present)
    except UserError as error:
        return {}, error.problems


@contextlib.contextmanager
def reach_hub(name: str, config: str | None) -> Iterator[None]:
    """Inside, a data set is asked for, from the cache where the hub does not answer.

    Raises UserError where it is not to be had, or is none of the hub's.
    """
    if expand_home(name, place="data.name").exists():
        raise UserError(
            f"data.name={name} is a local path; use data.name=null and give its files, data.train={name}/..."
        )
    with offline_unless_reachable() as offline:
        try:
            yield
        except DatasetNotFoundError as error:
            told = f"data.name={name}: {in_one_line(error)}; check the name, or log in with `hf auth login`"
            raise UserError(told) from error
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            told = f"data.name={name} data.config={config or 'null'}: {in_one_line(error)}"
            if offline is not None:
                told = _explain_offline(name, config, reason=offline, error=error)
            raise UserError(told) from error


def explain_missing(name: str, ours: str, theirs: str, present: Iterable[str]) -> str:
    """A split that the data set does not have."""
    there = f"{name} has {enumerate_some(list(present), at_most=10)}"
    return f"data.{ours}={theirs}: no such split; {there}{did_you_mean(theirs, present)}"


def _choose_splits(
    name: str, config: str | None, specs: Mapping[str, str], present: Mapping[str, datasets.Dataset]
) -> tuple[dict[str, Split], list[str]]:
    splits: dict[str, Split] = {}
    problems: list[str] = []
    for ours, theirs in specs.items():
        rows = present.get(theirs)
        if rows is None and SLICE.search(theirs):
            try:
                rows = datasets.load_dataset(name, config, split=theirs)
            except (ValueError, DatasetsError) as error:
                problems.append(f"data.{ours}={theirs}: {in_one_line(error)}")
                continue
        if rows is None:
            problems.append(explain_missing(name, ours, theirs, present))
        elif not len(rows):
            problems.append(f"data.{ours}={theirs}: this split of {name} has no rows")
        else:
            # datasets derives it from the files' revision and the chosen rows.
            fingerprint = digest(rows._fingerprint.encode())
            splits[ours] = Split(ours, rows, Origins.of(f"{name}[{theirs}] row", len(rows)), fingerprint)
    return splits, problems


def _explain_offline(name: str, config: str | None, *, reason: str, error: Exception) -> str:
    fill = f"datasets.load_dataset({name!r}{f', {config!r}' if config else ''})"
    # Where the cache holds another configuration of it, datasets says which.
    cached = f" ({in_one_line(error)})" if isinstance(error, ValueError) else ""
    return (
        f"data.name={name}: {reason} and the data set is not in the cache "
        f"{datasets.config.HF_DATASETS_CACHE}{cached}; use local files (data.name=null data.train=train.csv), or fill "
        f"the cache with {fill} where there is network"
    )
