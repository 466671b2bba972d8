"""The loop's own sums: what training steps report, kept on the device until something is logged."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer_loop.errors import UserError


@dataclass(frozen=True)
class Gradients:
    """L2 norms of an update's gradients before clipping; on the device."""

    names: Sequence[str]  # [P] of the parameters that have a gradient
    norm: Tensor  # [] over all of them
    norms: Tensor  # [P] of each


@dataclass(frozen=True)
class StepReport:
    """What one update did. Tensors stay on the device, so that reporting does not wait for it."""

    step: int  # from 1: updates done after this one
    loss_sum: Tensor  # [] over the targets of this process
    num_targets: float  # over all processes, each by the weight of its row
    gradients: Gradients
    lr: float
    num_rows: int  # rows and tokens: of this process
    num_tokens: int
    num_padded_tokens: int
    wait_seconds: float
    skipped: bool = False  # not finite, and left out as the user wishes
    extra_metrics: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)  # sum and count of what was logged


@dataclass(frozen=True)
class NonFinite:
    """The first update whose loss or gradient was not finite."""

    step: int
    loss: float
    grad_norm: float
    parameter: str | None  # the first one whose gradient is not finite

    def describe(self, origins: Sequence[str]) -> str:
        """For a person. origins: where the rows of the update stand in the user's data."""
        shown = ", ".join(origins[:8]) + (f" and {len(origins) - 8} more" if len(origins) > 8 else "")
        first = "" if self.parameter is None else f"; first bad gradient: {self.parameter}"
        return (
            f"step {self.step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}{first}; rows of this step: "
            f"{shown}; lower optimizer.lr, set train.max_grad_norm or train.on_nonfinite=skip, or look at these rows"
        )


_MOST_IN_A_ROW = 50  # not finite: by then a loss scaler has halved its scale to nothing, and no update was made
_NOTHING_YET = {"grad_norm": math.nan, "lr": math.nan, "bad_in_a_row": 0.0}  # of the last update
LOGGED = (
    *("loss", "grad_norm", "lr", "rows_per_second", "tokens_per_second", "padding", "data_wait", "skipped_steps"),
    *("step", "epoch", "tokens_per_second_per_device", "mfu", "peak_memory_bytes"),
)  # metrics of every training row
_COUNTS = ("rows", "tokens", "padded_tokens")  # of each process, added up when they are flushed
_SUMS = ("loss", "targets", *_COUNTS, "skipped", "wait_seconds", "seconds")


class Meter:
    """Sums over the updates since the last training row of the log.

    `flush` is the only place that waits for the device. `sum_over_processes` adds numbers up over all processes.
    """

    def __init__(self, *, sum_over_processes: Callable[[Sequence[float]], list[float]], scaled_gradients: bool = False):
        self._sum_over_processes = sum_over_processes
        self._scaled_gradients = scaled_gradients  # fp16: an overflow of a gradient is the loss scaler's business
        self._reports: list[StepReport] = []
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._last = dict(_NOTHING_YET)
        self.extra_metrics: list[str] = []

    def declare(self, names: Sequence[str]) -> None:
        """Names of metrics that reports may hold besides; the same on all processes. Call it before any update."""
        if taken := [name for name in names if name in LOGGED]:
            raise UserError(f"extra metrics: {', '.join(taken)}: every row has a metric of this name; rename it")
        for name in names:
            if name not in self.extra_metrics:
                self.extra_metrics.append(name)
                self._sums |= {f"sum of {name}": 0.0, f"count of {name}": 0.0}

    def add(self, report: StepReport) -> None:
        self._reports.append(report)

    def add_seconds(self, seconds: float) -> None:
        """Time that went into the updates themselves, without evaluation and saving."""
        self._sums["seconds"] += seconds

    def flush(self) -> NonFinite | None:
        """Bring what was reported to the host and add it up; called by all processes at the same step.

        Returns the first update that was not finite, the same on every process.
        """
        if not self._reports:
            return None
        reports, self._reports = self._reports, []
        mine = {name: float(sum(getattr(report, f"num_{name}") for report in reports)) for name in _COUNTS}
        losses = torch.stack([report.loss_sum for report in reports]).tolist()
        mine |= self._sum_extra_metrics([report for report in reports if not report.skipped])
        summed = self._sum_over_processes([*mine.values(), *losses])
        totals, losses = dict(zip(mine, summed[: len(mine)], strict=True)), summed[len(mine) :]
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
        """Sum and count of each on this process."""
        sums: dict[str, float] = {}
        for name in self.extra_metrics:
            logged = [report.extra_metrics[name] for report in reports if name in report.extra_metrics]
            sums[f"sum of {name}"] = float(torch.stack([value for value, _ in logged]).sum()) if logged else 0.0
            sums[f"count of {name}"] = float(sum(count for _, count in logged))
        return sums

    def _has_diverged(self, report: StepReport, loss: float, grad_norm: float) -> bool:
        """One that is not finite is enough, but for those that were skipped: of these, many in a row."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._last["bad_in_a_row"] = 0
            return False
        self._last["bad_in_a_row"] += 1
        forgiven = report.skipped or (self._scaled_gradients and math.isfinite(loss))
        return not forgiven or self._last["bad_in_a_row"] > _MOST_IN_A_ROW

    def read(self) -> dict[str, float]:
        """The training row of what was flushed: loss is a mean over targets; grad_norm and lr are the last step's."""
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
        """What was flushed since the last row; call `flush` first."""
        assert not self._reports, "flush before the sums are saved"
        return self._sums | self._last

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._sums = {name: state.get(name, 0.0) for name in self._sums}
        self._last = {name: state.get(name, before) for name, before in _NOTHING_YET.items()}


def zero_sum(device: torch.device) -> Tensor:
    """Zero, `[]`, to which the losses of many microbatches can be added."""
    return torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
