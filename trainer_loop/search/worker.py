"""A process that works on a study: it claims trials, trains one after the other, and stores the results."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_loop.config.checks import has_validation
from trainer_loop.config.load import read_config, spell_config
from trainer_loop.errors import Preempted, UserError
from trainer_loop.record.run_dir import SEARCH_PAGE, describe_refusal, write_text
from trainer_loop.search.page import make_page
from trainer_loop.search.plan import Plan, name_trial
from trainer_loop.search.runs import Ending, Watch, read_problems, run_to_end, start_process, stop
from trainer_loop.search.space import spell_values
from trainer_loop.search.study import ClaimedTrial, Row, Study
from trainer_loop.search.table import (
    FEWEST_FOR_IMPORTANCE,
    average,
    count_finished,
    describe_importance,
    describe_runs,
    describe_trials,
    explain_importance,
    find_best,
)

_FIRST = 3  # trials; if all of them are refused, the error is in the config


class Worker:
    """Works on the trials of a study until none are left."""

    def __init__(
        self,
        plan: Plan,
        study: Study,
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
        poll_seconds: float,
    ):
        self.plan, self.study, self.should_stop, self.say = plan, study, should_stop, say
        self.poll_seconds = poll_seconds

    def work(self) -> None:
        """Train all trials. Raises Preempted if the search must stop, UserError if no trial can be run."""
        checked = any(row.ended not in ("running", "refused") for row in self.study.list_rows())
        while True:
            self._raise_if_stopped()
            trial = self.study.claim_trial()
            if trial is None:
                if not self.study.is_busy():
                    return
                time.sleep(self.poll_seconds)  # if another process is killed, its trial is claimed here
                continue
            self.say(f"trial {trial.number}: {' '.join(spell_values(self.plan.space, trial.values))}".rstrip(": "))
            problems = [] if checked else self._try_dry_run(trial)
            if problems:
                self._refuse(trial, problems)
            else:
                checked = True
                self._train(trial)

    def _raise_if_stopped(self) -> None:
        if self.should_stop():
            raise Preempted("the search was asked to stop; the same command goes on")

    def _try_dry_run(self, trial: ClaimedTrial) -> list[str]:
        """Return the problems of config, data or metric, before a training starts."""
        self.say(f"trial {trial.number}: checked by a dry run first")
        check_keys = ["dry_run=true", "train.patience=1", f"train.patience_metric={self.plan.metric}"]
        name, more = next(iter(self.plan.runs.items()))
        command = self.plan.make_command(
            spell_values(self.plan.space, trial.values), self._root(trial) / name, [*more, *check_keys]
        )
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = start_process(command, output)
            while process.poll() is None and not self.should_stop():
                time.sleep(self.poll_seconds)
            stop(process)
            self._raise_if_stopped()
            output.seek(0)
            text = output.read()
        if process.returncode == 0:
            return []
        problems = read_problems(text) or text.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return [problem.replace("train.patience_metric", "search.metric") for problem in problems]

    def _refuse(self, trial: ClaimedTrial, problems: Sequence[str]) -> None:
        """Store a refused trial as a result. Raise UserError if the config is refused with any values."""
        if not any(key in problem for problem in problems for key in self.plan.space):
            self.study.withdraw(trial)
            raise UserError(problems)
        self._finish(trial, {}, Ending("refused", problems[0]))
        rows = self.study.list_rows()
        if len(rows) >= min(_FIRST, self.plan.trials) and all(row.ended == "refused" for row in rows):
            raise UserError(
                [*problems, f"search.space: the first {len(rows)} trials were refused; see the lines above"]
            )

    def _root(self, trial: ClaimedTrial) -> Path:
        return self.plan.directory / name_trial(trial.number)

    def _train(self, trial: ClaimedTrial) -> None:
        endings: dict[str, Ending] = {}
        for position, (name, more) in enumerate(self.plan.runs.items()):
            root = self._root(trial) / name
            command = self.plan.make_command(spell_values(self.plan.space, trial.values), root, more)

            def report(number: int, value: float, name: str = name, is_first: bool = position == 0) -> bool:
                self.say(
                    f"trial {trial.number}: {f'{name} ' if name else ''}evaluation {number}: "
                    f"{self.plan.metric_name} {value:.4g}"
                )
                return is_first and self.study.report(trial, number, value)

            watch = Watch(self.plan.metric_name, report, self.should_stop, self.say, self.poll_seconds)
            ending = endings[name] = run_to_end(command, root, watch)
            if ending.how != "finished":
                break
        self._finish(trial, endings, list(endings.values())[-1])

    def _finish(self, trial: ClaimedTrial, endings: dict[str, Ending], last: Ending) -> None:
        runs = endings.values() if last.how == "finished" else [last]  # the mean of some runs is not that of all
        values = [ending.value for ending in runs if ending.value is not None]
        mean, spread = average(values) if values else (None, None)
        result: dict[str, Any] = {
            "ended": last.how,
            "reason": last.reason,
            "value": mean,
            "spread": spread,
            "steps": sum(ending.step for ending in endings.values()),
            "seconds": sum(ending.seconds for ending in endings.values()),
            "runs": {name: ending.value for name, ending in endings.items() if name},
        }
        self.study.finish(trial, result)
        metric = "" if mean is None else f", {self.plan.metric_name} {mean:.4g}"
        self.say(f"trial {trial.number}: {last.how}{metric}{f': {last.reason}' if last.reason else ''}")
        rows = self.study.list_rows()
        self._write_page(rows, find_best(rows, maximize=self.plan.maximize))

    def describe(self) -> list[str]:
        """Return the table of the trials, the best of them, and the importance of the keys.

        Also writes `best.yaml` and search.html, which shows the same with charts.
        """
        plan, rows = self.plan, self.study.list_rows()
        best = find_best(rows, maximize=plan.maximize)
        lines = ["", *describe_trials(rows, plan.metric_name, list(plan.space), best=best), ""]
        if best is None:
            return [*lines, "no trial has finished", *self._write_page(rows, None)]
        importance: Mapping[str, float] = {}
        if len(plan.space) > 1 and count_finished(rows) >= FEWEST_FOR_IMPORTANCE:
            importance = self.study.weigh_keys()
            lines += [*describe_importance(importance), ""]
        elif len(plan.space) > 1:
            lines += [explain_importance(rows), ""]
        lines += [*runs, ""] if (runs := describe_runs(best, plan.metric_name)) else []
        path, config = self._write_best(best)
        return [
            *lines,
            f"best: trial {best.number}, {plan.metric_name} {best.value:.6g}: {self._name_place(best)}",
            f"its config, to be run by config=: {path}",
            *self._write_page(rows, best, importance, config),
        ]

    def _name_place(self, best: Row) -> str:
        root = self.plan.directory / name_trial(best.number)
        return str(root) if root.is_dir() else "in the directory of another search"

    def _write_page(
        self, rows: Sequence[Row], best: Row | None, importance: Mapping[str, float] = {}, config: str = ""
    ) -> list[str]:
        """Write search.html; returns a line that says so, or nothing after a warning if it cannot be written."""
        path = self.plan.directory / SEARCH_PAGE
        try:
            with self.study.locked():
                write_text(path, make_page(self.plan, rows, best, importance, config))
        except OSError as error:
            self.say(f"warning: {describe_refusal(error, path)}")
            return []
        return [f"all trials, with charts: {path}"]

    def _write_best(self, best: Row) -> tuple[Path, str]:
        """Write the config with the best values; returns its path and its text."""
        plan, path = self.plan, self.plan.directory / "best.yaml"
        values = spell_values(plan.space, best.values)
        overrides = [*plan.overrides, *values, f"run_dir={plan.directory / 'best'}"]
        config = read_config(plan.config, overrides).config
        if not has_validation(config):  # each fold had its own; this config trains on all rows
            overrides += ["checkpoint.best=", "train.patience=", "train.patience_metric=", "data.split_by="]
            config = read_config(plan.config, overrides).config
        head = f"# Trial {best.number} of {plan.directory}, {plan.metric_name} {best.value:.6g}: {' '.join(values)}\n"
        text = head + spell_config(config)
        try:
            with self.study.locked():
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    write_text(path, text)
        except OSError as error:
            raise UserError(f"search.dir: {describe_refusal(error, path)}") from error
        return path, text
