"""Metrics of a run: summed during training, written to metrics.jsonl, the trackers and the console."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer_loop.data.loader import Microbatch, StepLoader
from trainer_loop.data.wording import shorten
from trainer_loop.errors import Diverged
from trainer_loop.metrics.logged import LoggedMetrics
from trainer_loop.metrics.meter import Meter, StepReport
from trainer_loop.parallel.processes import sum_on_hosts
from trainer_loop.record.logs import Console, MetricLog, Values
from trainer_loop.record.predictions import Sample
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.memory import read_peak_memory

Samples = Mapping[str, Sequence[Sample]]  # by set
_SHOWN = 200  # characters of a sample


class Recorder:
    """Records the metrics of one run. Every process has a recorder, and all call it at the same steps.

    `flush` is the only method that waits for the device.
    """

    def __init__(self, *, accelerator: Accelerator, console: Console, metric_log: MetricLog):
        self.accelerator = accelerator
        self.console = console
        self.metric_log = metric_log
        self.meter = Meter(
            sum_over_processes=lambda values: sum_on_hosts(accelerator, values),
            scaled_gradients=accelerator.scaler is not None,
        )
        self._step_metrics = LoggedMetrics(self.meter.extra_metrics)  # logged in the current step
        self._sources: tuple[str, ...] = ()
        self._rows_of, self._tokens_of = Counter[str](), Counter[str]()  # of the current step, by source
        self._mark = 0.0  # time at which the clock of the training steps was last read
        self._flops_per_token: float | None = None
        self._peak_rate = math.inf

    def declare_metrics(self, names: Iterable[str], *, sources: Sequence[str] = ()) -> None:
        """Declare the names for `log_metric`, before the first step and the same on all processes.

        Args:
            sources: Of a mixture. For each, every training row has its loss and its shares of rows and tokens.

        Raises:
            UserError: A name is in use.
        """
        self._sources = (*self._sources, *sources)
        source_metrics = [f"{name}/{metric}" for name in sources for metric in ("loss", "row_share", "token_share")]
        self.meter.declare([*names, *source_metrics])

    def log_mfu(self, flops_per_token: float, *, peak_rate: float) -> None:
        """Log the model FLOPs utilisation. peak_rate: operations a second of the device."""
        self._flops_per_token, self._peak_rate = flops_per_token, peak_rate

    def begin(self, state: TrainState, *, num_steps: int, evaluation_pending: bool) -> None:
        """Continue at `state`: metrics that the run will log again are removed."""
        self.meter.load_state_dict(state.interval)
        if self.accelerator.is_main_process:
            self.metric_log.forget_after(state.step, evaluated=state.step > 0 and not evaluation_pending)
        if state.step:
            self.console.say(f"resumed at step {state.step:,} of {num_steps:,}")
        if state.num_steps != num_steps:
            self.console.warn(
                f"the run was planned for {state.num_steps:,} steps: from here on the learning rate follows a schedule "
                f"of {num_steps:,}, which is not what a run of that length from its beginning would do"
            )
            state.num_steps = num_steps
        self.console.start_progress(total=num_steps, done=state.step)

    # ---------------------------------------------------------------------------------------------------- in a step

    def log_metric(self, name: str, value: Tensor, *, count: float) -> None:
        """Add to a metric of the current step. value: `[]`, a sum over `count`; it stays on its device."""
        self._step_metrics.add(name, value, count=count)

    def log_source(self, microbatch: Microbatch, loss: Tensor) -> None:
        """Add a microbatch of the current step to the metrics of its source, if it has one. loss: `[]`, a sum."""
        if microbatch.source is None or microbatch.is_dummy:
            return
        self.log_metric(f"{microbatch.source}/loss", loss, count=microbatch.num_targets)
        self._rows_of[microbatch.source] += len(microbatch.rows)
        self._tokens_of[microbatch.source] += microbatch.num_tokens

    def take_step_metrics(self) -> Mapping[str, tuple[Tensor, float]]:
        """Return and clear the metrics of the step. The loop also calls this to drop those of a failed pass."""
        for metric, counts in (("row_share", self._rows_of), ("token_share", self._tokens_of)):
            total = counts.total()
            for name in self._sources if total else ():
                self.log_metric(f"{name}/{metric}", torch.tensor(float(counts[name])), count=total)
            counts.clear()
        return self._step_metrics.take()

    def add(self, report: StepReport) -> None:
        self.meter.add(report)
        self.console.advance_progress()

    # ---------------------------------------------------------------------------------------------- between the steps

    def restart_clock(self) -> None:
        """Exclude the time until now from the time of training steps."""
        self._mark = time.perf_counter()

    def flush(self, loader: StepLoader) -> None:
        """Copy the reports to the host. Raises Diverged on all processes, with the rows, for a non-finite update."""
        bad = self.meter.flush()
        now = time.perf_counter()
        self.meter.add_seconds(now - self._mark)
        self._mark = now
        if bad is not None:
            raise Diverged(bad.describe(loader.origins(bad.step - 1)))

    def state_dict(self) -> dict[str, float]:
        """Return the sums since the last training row, for a checkpoint; call `flush` first."""
        return self.meter.state_dict()

    def log_training(self, state: TrainState, *, epoch: float | None) -> None:
        """Log a row with the updates since the last one, and add their totals to `state`."""
        values = self.meter.read()
        rate = values["tokens_per_second"] / self.accelerator.num_processes
        if self._flops_per_token is not None:
            values["mfu"] = rate * self._flops_per_token / self._peak_rate
        device_values = {
            "tokens_per_second_per_device": rate,
            "peak_memory_bytes": read_peak_memory(self.accelerator.device),
        }
        sums = self.meter.state_dict()
        state.rows_seen += int(sums["rows"])
        state.tokens_seen += int(sums["tokens"])
        state.targets_seen += sums["targets"]
        state.skipped_steps += int(sums["skipped"])
        state.train_seconds += sums["seconds"]
        self.meter.clear()
        self._write(values | device_values, step=state.step, epoch=epoch)
        self.console.show_training(_name_place(state.step, epoch) | values)

    def log_validation(self, metrics: Mapping[str, float], samples: Samples, *, step: int, epoch: float | None) -> None:
        title = f"validation at step {step:,}" + ("" if epoch is None else f", epoch {epoch:.4g}")
        self._log_evaluation("validation", title, metrics, samples, step=step, epoch=epoch)

    def log_test(self, metrics: Mapping[str, float], samples: Samples, *, step: int, epoch: float | None) -> None:
        title = "test, with the exported weights"
        self._log_evaluation("test", title, metrics, samples, step=step, epoch=epoch)

    def _log_evaluation(
        self, split: str, title: str, metrics: Mapping[str, float], samples: Samples, *, step: int, epoch: float | None
    ) -> None:
        """Log the metrics of an evaluation, and generated texts of each set as samples."""
        values = {f"{split}/{name}": value for name, value in metrics.items()}
        texts = {f"{split}/{name}/samples" if name else f"{split}/samples": of_set for name, of_set in samples.items()}
        self._write(values, step=step, epoch=epoch, texts=texts)
        self.console.show_evaluation(title, metrics)
        for sample in chain.from_iterable(samples.values()):
            texts_shown = {name: shorten(text, at_most=_SHOWN) for name, text in sample.items() if text is not None}
            self.console.say("  " + "; ".join(f"{name}: {text}" for name, text in texts_shown.items()))

    def report_early_stop(self, state: TrainState, num_steps: int, metric: str | None) -> None:
        """Report that the run ends before its last step. metric: the one that did not improve."""
        if state.step < num_steps:
            self.console.say(
                f"stopped at step {state.step:,} of {num_steps:,}: {state.evaluations_without_best} evaluations "
                f"without a better {metric}"
            )

    def log_totals(self, state: TrainState, *, epoch: float | None) -> None:
        """Log the last row of a run, and a line about it."""
        totals = {
            "train_seconds": state.train_seconds,
            "rows_seen": state.rows_seen,
            "tokens_seen": state.tokens_seen,
            "targets_seen": round(state.targets_seen),
            "peak_memory_bytes": read_peak_memory(self.accelerator.device),
        }
        if self._flops_per_token is not None:
            totals["flops_per_token"] = self._flops_per_token
        self._write(totals, step=state.step, epoch=epoch)
        rate = state.rows_seen / max(state.train_seconds, 1e-9)
        self.console.say(
            f"trained {state.step:,} steps in {state.train_seconds:,.1f} seconds, {rate:,.4g} rows a second"
        )
        if state.skipped_steps:
            self.console.warn(f"{state.skipped_steps:,} steps were not finite and were skipped")

    def _write(
        self, values: Values, *, step: int, epoch: float | None, texts: Mapping[str, Sequence[Sample]] | None = None
    ) -> None:
        if self.accelerator.is_main_process:
            self.metric_log.append({**_name_place(step, epoch), **values, **(texts or {})})
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=step)


def _name_place(step: int, epoch: float | None) -> dict[str, float]:
    """Return the step and the epoch of a row; without `epoch` if the data has no epochs."""
    return {"step": step} if epoch is None else {"step": step, "epoch": epoch}
