"""Sums of the loss and other metrics over training steps. They stay on the device until something is logged."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer_loop.errors import UserError


@dataclass(frozen=True)
class Gradients:
    """L2 norms of the gradients of an update before clipping, on the device."""

    names: Sequence[str]  # [P] names of the parameters that have a gradient
    norm: Tensor  # [] over all parameters
    norms: Tensor  # [P] of each parameter


@dataclass(frozen=True)
class StepReport:
    """Result of one update. Tensors stay on the device, so that a report does not wait for it."""

    step: int  # number of this update, from 1
    loss_sum: Tensor  # [] over the targets of this process
    num_targets: float  # over all processes, each times the weight of its row
    gradients: Gradients
    lr: float
    num_rows: int  # rows and tokens are those of this process
    num_tokens: int
    num_padded_tokens: int
    wait_seconds: float
    skipped: bool = False  # the update was not finite, and was skipped (train.on_nonfinite)
    extra_metrics: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)  # sum and count of logged metrics


@dataclass(frozen=True)
class NonFinite:
    """The first update whose loss or gradient was not finite."""

    step: int
    loss: float
    grad_norm: float
    parameter: str | None  # the first one whose gradient is not finite

    def describe(self, origins: Sequence[str]) -> str:
        """Return the error message. origins: file and line of the rows of the update."""
        shown = ", ".join(origins[:8]) + (f" and {len(origins) - 8} more" if len(origins) > 8 else "")
        first = "" if self.parameter is None else f"; first bad gradient: {self.parameter}"
        return (
            f"step {self.step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}{first}; rows of this step: "
            f"{shown}; lower optimizer.lr, set train.max_grad_norm or train.on_nonfinite=skip, or look at these rows"
        )


_MOST_IN_A_ROW = 50  # updates that are not finite; a loss scaler has then halved its scale to almost zero
_INITIAL = {"grad_norm": math.nan, "lr": math.nan, "bad_in_a_row": 0.0}  # values of the last update, before the first
LOGGED = (
    *("loss", "grad_norm", "lr", "rows_per_second", "tokens_per_second", "padding", "data_wait", "skipped_steps"),
    *("step", "epoch", "tokens_per_second_per_device", "mfu", "peak_memory_bytes"),
)  # metrics of every training row
_COUNTS = ("rows", "tokens", "padded_tokens")  # counted on each process, and summed when they are flushed
_SUMS = ("loss", "targets", *_COUNTS, "skipped", "wait_seconds", "seconds")


class Meter:
    """Sums over the updates since the last training row of the log.

    Only `flush` waits for the device.

    Args:
        sum_over_processes: Sums numbers over all processes.
        scaled_gradients: The run uses a loss scaler (fp16), which handles overflows of gradients itself.
    """

    def __init__(self, *, sum_over_processes: Callable[[Sequence[float]], list[float]], scaled_gradients: bool = False):
        self._sum_over_processes = sum_over_processes
        self._scaled_gradients = scaled_gradients
        self._reports: list[StepReport] = []
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._last = dict(_INITIAL)
        self.extra_metrics: list[str] = []

    def declare(self, names: Sequence[str]) -> None:
        """Declare extra metrics of reports. Call this before any update, with the same names on all processes."""
        if taken := [name for name in names if name in LOGGED]:
            raise UserError(f"extra metrics: {', '.join(taken)}: every row has a metric of this name; rename it")
        for name in names:
            if name not in self.extra_metrics:
                self.extra_metrics.append(name)
                self._sums |= {f"sum of {name}": 0.0, f"count of {name}": 0.0}

    def add(self, report: StepReport) -> None:
        self._reports.append(report)

    def add_seconds(self, seconds: float) -> None:
        """Add time spent on updates, without evaluation and saving."""
        self._sums["seconds"] += seconds

    def flush(self) -> NonFinite | None:
        """Move the reports to the host and sum them. All processes must call this at the same step.

        Returns:
            The first update that was not finite, the same on every process; or None.
        """
        if not self._reports:
            return None
        reports, self._reports = self._reports, []
        local = {name: float(sum(getattr(report, f"num_{name}") for report in reports)) for name in _COUNTS}
        local |= self._sum_extra_metrics([report for report in reports if not report.skipped])
        losses = torch.stack([report.loss_sum for report in reports]).tolist()
        summed = self._sum_over_processes([*local.values(), *losses])
        totals, losses = dict(zip(local, summed[: len(local)], strict=True)), summed[len(local) :]
        grad_norms = torch.stack([report.gradients.norm for report in reports]).tolist()
        for report, loss, grad_norm in zip(reports, losses, grad_norms, strict=True):
            if self._has_diverged(report, loss, grad_norm):
                bad = torch.isfinite(report.gradients.norms).logical_not().nonzero()
                parameter = report.gradients.names[int(bad[0])] if len(bad) else None
                return NonFinite(report.step, loss / report.num_targets, grad_norm, parameter)
            if report.skipped:
                self._sums["skipped"] += 1
                continue
            self._sums["loss"] += loss
            self._sums["targets"] += report.num_targets
            self._last["grad_norm"] = grad_norm
        self._last["lr"] = reports[-1].lr
        self._sums["wait_seconds"] += sum(report.wait_seconds for report in reports)
        for name, total in totals.items():
            self._sums[name] += total
        return None

    def _sum_extra_metrics(self, reports: Sequence[StepReport]) -> dict[str, float]:
        """Return sum and count of each extra metric on this process."""
        sums: dict[str, float] = {}
        for name in self.extra_metrics:
            logged = [report.extra_metrics[name] for report in reports if name in report.extra_metrics]
            sums[f"sum of {name}"] = float(torch.stack([value for value, _ in logged]).sum()) if logged else 0.0
            sums[f"count of {name}"] = float(sum(count for _, count in logged))
        return sums

    def _has_diverged(self, report: StepReport, loss: float, grad_norm: float) -> bool:
        """Return whether the run has diverged: an update is not finite, or too many skipped ones in a row are not."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._last["bad_in_a_row"] = 0
            return False
        self._last["bad_in_a_row"] += 1
        is_tolerated = report.skipped or (self._scaled_gradients and math.isfinite(loss))
        return not is_tolerated or self._last["bad_in_a_row"] > _MOST_IN_A_ROW

    def read(self) -> dict[str, float]:
        """Return the training row. `loss` is the mean over targets; `grad_norm` and `lr` are those of the last step."""
        sums = self._sums
        seconds = max(sums["seconds"], 1e-9)
        skipped = {"skipped_steps": int(sums["skipped"])} if sums["skipped"] else {}
        return skipped | {
            "loss": sums["loss"] / sums["targets"] if sums["targets"] else math.nan,
            "grad_norm": self._last["grad_norm"],
            "lr": self._last["lr"],
            "rows_per_second": sums["rows"] / seconds,
            "tokens_per_second": sums["tokens"] / seconds,
            "padding": 1 - sums["tokens"] / max(sums["padded_tokens"], 1),
            "data_wait": sums["wait_seconds"] / seconds,
            **{
                name: sums[f"sum of {name}"] / count
                for name in self.extra_metrics
                if (count := sums[f"count of {name}"])
            },
        }

    def clear(self) -> None:
        self._sums = dict.fromkeys(self._sums, 0.0)

    def state_dict(self) -> dict[str, float]:
        """Return the sums since the last row. Call `flush` first."""
        assert not self._reports, "flush before the sums are saved"
        return self._sums | self._last

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._sums = {name: state.get(name, 0.0) for name in self._sums}
        self._last = {name: state.get(name, initial) for name, initial in _INITIAL.items()}


def zero_sum(device: torch.device) -> Tensor:
    """Return a zero, `[]`, to sum losses: in float64, except on mps, which lacks it."""
    return torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
