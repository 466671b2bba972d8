"""The trials of a search in optuna's storage, which all processes of the search share."""

import contextlib
import fcntl
import inspect
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from trainer_loop.components import choose
from trainer_loop.config.secrets import mask_text
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.record.run_lock import try_to_lock
from trainer_loop.runtime.randomness import derive_seed
from trainer_loop.search.plan import Plan, name_trial
from trainer_loop.search.space import Choices, Range, list_grid

_DIRECTORY, _VALUES, _RESULT, _SETTINGS = "directory", "values", "result", "settings"
_SECONDS_TO_WAIT = 60  # for another process that writes to SQLite
_TRIES = 3  # to open a storage, because another process may be creating its tables
_SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # never asked for values, see `Study._draw`
}
_PRUNERS = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
_INFORMATIVE = ("pruned", "diverged", "out of memory", "refused")  # endings that a sampler learns from


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this process works on. values: of the keys of the space. lock: held until the process ends."""

    number: int
    values: Mapping[str, Any]
    frozen: FrozenTrial
    lock: IO[bytes]


@dataclass(frozen=True)
class Row:
    """A trial in a table. result: see `Study.finish`; empty while it runs. value: None if it did not finish."""

    number: int
    values: Mapping[str, Any]
    value: float | None
    result: Mapping[str, Any]

    @property
    def last_value(self) -> float | None:
        """The value; for a trial that did not finish, the value of its last evaluation."""
        return self.value if self.value is not None else self.result.get("value")

    @property
    def ended(self) -> str:
        """How the trial ended, see `Ending`, or `running`."""
        return str(self.result.get("ended", "running"))


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn errors of the database into a UserError of one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = mask_text(in_one_line(error.__cause__ or error))
        raise UserError(f"search.storage: {reason}; give the same command again") from error


class Study:
    """A study of optuna, whose trials are claimed by processes.

    A process holds a POSIX lock on the file of its trial, which the kernel releases when the process ends. A trial that
    is running but not locked is claimed again, with its values, by any process of the same directory.
    """

    @_storage_errors()
    def __init__(self, plan: Plan):
        """Open or create the study. Raises UserError."""
        self._plan = plan
        self._distributions = {key: _make_distribution(parameter) for key, parameter in plan.space.items()}
        self._locks = plan.directory / ".locks"
        self._make_sampler(0)  # raises now if the sampler cannot be made
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"search.dir: {self._locks} cannot be made: {error.strerror}") from error
        with self.locked():
            self._storage = _open_storage(plan.url)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=plan.name,
                direction="maximize" if plan.maximize else "minimize",
                pruner=_make("pruner", plan.pruner, _PRUNERS, optuna.pruners.BasePruner),
                load_if_exists=True,
            )
            self._id = self._storage.get_study_id_from_name(plan.name)
            self._directory = self._read_identity()
            self._check_settings()

    # ------------------------------------------------------------------------------------------------- which trial

    @_storage_errors()
    def claim_trial(self) -> ClaimedTrial | None:
        """Claim a trial whose process has ended, or a new one; None if no trials are left."""
        with self.locked():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.user_attrs.get(_DIRECTORY) == self._directory:
                    lock = self._lock(trial.number)
                    if lock is None:
                        continue
                    trial = self._storage.get_trial(trial._trial_id)
                    if trial.state == TrialState.RUNNING:
                        return self._prepare(trial, lock)
                    lock.close()  # it has ended since the trials were read
            if len(trials) >= self._plan.trials:
                return None
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, user_attrs={_DIRECTORY: self._directory}, system_attrs={}
            )
            template.datetime_start = datetime.now()
            trial = self._storage.get_trial(self._storage.create_new_trial(self._id, template))
            lock = self._lock(trial.number)
            assert lock is not None, "its number is new"
            return self._prepare(trial, lock)

    @_storage_errors()
    def is_busy(self) -> bool:
        """Return whether other processes of this directory work on trials."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return any(trial.user_attrs.get(_DIRECTORY) == self._directory for trial in trials)

    def _prepare(self, trial: FrozenTrial, lock: IO[bytes]) -> ClaimedTrial:
        """Draw the values of a trial and store all of them at once, unless this was done before."""
        values = trial.user_attrs.get(_VALUES)
        if values is None:
            values = self._draw(trial)
            self._storage.set_trial_user_attr(trial._trial_id, _VALUES, values)
        for name, distribution in self._distributions.items():
            if name not in trial.params:
                internal = distribution.to_internal_repr(values[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, distribution)
        return ClaimedTrial(trial.number, values, self._storage.get_trial(trial._trial_id), lock)

    def _draw(self, trial: FrozenTrial) -> dict[str, Any]:
        """Draw the values of a trial: a function of the seed, its number, and the trials that have ended."""
        if self._plan.sampler == "grid":
            grid = list_grid(self._plan.space)
            return grid[trial.number % len(grid)]
        sampler = self._study.sampler = self._make_sampler(trial.number)
        sampler.before_trial(self._study, trial)
        together = sampler.infer_relative_search_space(self._study, trial)
        values = sampler.sample_relative(self._study, trial, together)
        for name, distribution in self._distributions.items():
            if name not in values:
                values[name] = sampler.sample_independent(self._study, trial, name, distribution)
        return {name: values[name] for name in self._distributions}

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._plan.seed, "trial", number) % 2**32
        sampler: optuna.samplers.BaseSampler = _make(
            "sampler", self._plan.sampler, _SAMPLERS, optuna.samplers.BaseSampler, seed=seed
        )
        return sampler

    # --------------------------------------------------------------------------------------------- how a trial goes

    @_storage_errors()
    def report(self, trial: ClaimedTrial, number: int, value: float) -> bool:
        """Store an evaluation of a trial; returns whether to stop the trial. Storing it twice changes nothing."""
        self._storage.set_trial_intermediate_value(trial.frozen._trial_id, number, value)
        return self._study.pruner.prune(self._study, self._storage.get_trial(trial.frozen._trial_id))

    @_storage_errors()
    def finish(self, trial: ClaimedTrial, result: Mapping[str, Any]) -> None:
        """Store the result of a trial. result: values for tables, with `ended` and `value`."""
        self._storage.set_trial_user_attr(trial.frozen._trial_id, _RESULT, dict(result))
        state = TrialState.COMPLETE if result["ended"] == "finished" else TrialState.FAIL
        if result["ended"] in _INFORMATIVE:
            state = TrialState.PRUNED
        value = result["value"] if state == TrialState.COMPLETE else None
        self._study.tell(trial.number, value, state=state, skip_if_finished=True)
        trial.lock.close()

    @_storage_errors()
    def withdraw(self, trial: ClaimedTrial) -> None:
        """Delete the study if this is its only trial, so that it can be started with another config."""
        with self.locked():
            if len(self._study.get_trials(deepcopy=False)) == 1:
                self._storage.delete_study(self._id)
        trial.lock.close()

    @_storage_errors()
    def list_rows(self) -> list[Row]:
        """Return all trials in order."""
        return [
            Row(
                trial.number,
                trial.user_attrs.get(_VALUES, {}),
                trial.value if trial.state == TrialState.COMPLETE else None,
                trial.user_attrs.get(_RESULT, {}) if trial.state.is_finished() else {},
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def weigh_keys(self) -> dict[str, float]:
        """Return the share of the differences between finished trials that comes from each key (fANOVA), largest first.

        The default of optuna 5 looks at the best trials only, which answers another question.
        """
        values = {row.value for row in self.list_rows() if row.value is not None}
        if len(values) < 2:
            return dict.fromkeys(self._distributions, 0.0)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self._plan.seed)
        weights = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {key: float(weight) for key, weight in weights.items()}

    # ------------------------------------------------------------------------------------------- storage and locks

    def _check_settings(self) -> None:
        before, settings = self._study.user_attrs.get(_SETTINGS), json.loads(json.dumps(self._plan.settings))
        if before is None:
            self._study.set_user_attr(_SETTINGS, settings)
            return
        keys = dict.fromkeys([*before, *settings])
        changed = [key for key in keys if before.get(key) != settings.get(key)]
        if changed:
            changes = ", ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in changed[:5])
            raise UserError(
                f"search.name: the study {self._plan.name} was started with other values ({changes}); give the same "
                "values, or choose another search.dir"
            )

    def _read_identity(self) -> str:
        """Return the identity of the directory, which marks its trials in a storage that others use too."""
        path = self._locks / "identity"
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        return path.read_text()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which a process of this directory claims a trial or writes results."""
        with (self._locks / "study").open("a+b") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def _lock(self, number: int) -> IO[bytes] | None:
        """Return the lock of a trial; None if another process holds it."""
        file = (self._locks / name_trial(number)).open("a+b")
        if try_to_lock(file):
            return file
        file.close()
        return None


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    arguments = {"connect_args": {"timeout": _SECONDS_TO_WAIT}} if url.startswith("sqlite") else {}
    for tries in range(1, _TRIES + 1):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        except ImportError as error:
            raise UserError(
                f"search.storage: the driver of this database is not installed: {in_one_line(error.__cause__ or error)}"
            ) from error
        except (SQLAlchemyError, RuntimeError) as error:
            if tries == _TRIES:
                raise UserError(f"search.storage cannot be opened: {mask_text(in_one_line(error))}") from error
            time.sleep(tries)
    raise AssertionError("not reached")


def _make_distribution(parameter: Range | Choices) -> BaseDistribution:
    if isinstance(parameter, Choices):
        return CategoricalDistribution(parameter.values)
    if parameter.is_whole:
        low, high = int(parameter.low), int(parameter.high)
        return IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _make(what: str, name: str, kinds: Mapping[str, Any], base: type, *, seed: int | None = None) -> Any:
    """Make the sampler or pruner of this name, or at this dotted path. seed: passed if it is accepted."""
    make: Any = choose(name, kinds, place=f"search.{what}")
    try:
        takes_seed = seed is not None and "seed" in inspect.signature(make).parameters
        result = make(**({"seed": seed} if takes_seed else {}))
    except Exception as error:  # a custom class may raise anything
        raise UserError(f"search.{what}: {name} cannot be made without arguments: {in_one_line(error)}") from error
    if not isinstance(result, base):
        raise UserError(f"search.{what}: {name} makes a {type(result).__name__}, not a {what} of optuna")
    return result
