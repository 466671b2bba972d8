import math

import pytest
import torch

from trainer_loop.metrics.meter import Gradients, Meter, StepReport


def make_report(
    step: int, *, loss_sum: float = 4.0, grad_norms: tuple[float, ...] = (3.0, 4.0), **changes
) -> StepReport:
    norms = torch.tensor(grad_norms)
    values = {
        "num_targets": 2,
        "lr": 0.1 * step,
        "num_rows": 2,
        "num_tokens": 10,
        "num_padded_tokens": 16,
        "wait_seconds": 0.5,
    }
    return StepReport(
        step=step,
        loss_sum=torch.tensor(loss_sum, dtype=torch.float64),
        gradients=Gradients(("first", "second"), torch.linalg.vector_norm(norms), norms),
        **values | changes,
    )


def make_meter(**options) -> Meter:
    return Meter(sum_over_processes=lambda values: values, **options)


def test_the_loss_is_a_mean_over_targets_not_over_steps():
    meter = make_meter()
    meter.add(make_report(1, loss_sum=10.0, num_targets=1))
    meter.add(make_report(2, loss_sum=2.0, num_targets=5))
    assert meter.flush() is None
    assert meter.read()["loss"] == pytest.approx(2.0)


def test_rates_and_shares_come_from_the_seconds_of_the_steps_alone():
    meter = make_meter()
    for step in (1, 2):
        meter.add(make_report(step))
    meter.flush()
    meter.add_seconds(4.0)
    values = meter.read()
    assert values == pytest.approx(
        {
            "loss": 2.0,
            "grad_norm": 5.0,
            "lr": 0.2,
            "rows_per_second": 1.0,
            "tokens_per_second": 5.0,
            "padding": 1 - 20 / 32,
            "data_wait": 0.25,
        }
    )


def test_losses_of_all_processes_are_added_up():
    meter = Meter(
        sum_over_processes=lambda values: [2 * value for value in values]
    )  # as if another process had the same
    meter.add(make_report(1, loss_sum=3.0, num_targets=4))
    meter.flush()
    assert meter.read()["loss"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("bad", "parameter"),
    [
        ({"loss_sum": math.nan}, None),
        ({"grad_norms": (1.0, math.inf)}, "second"),
        ({"grad_norms": (math.nan, 1.0)}, "first"),
    ],
)
def test_the_first_step_that_is_not_finite_is_known_exactly(bad, parameter):
    meter = make_meter()
    meter.add(make_report(1))
    meter.add(make_report(2, **bad))
    meter.add(make_report(3, loss_sum=math.nan))
    found = meter.flush()
    assert found is not None
    assert (found.step, found.parameter) == (2, parameter)


def test_an_overflowing_gradient_is_the_loss_scalers_business_but_a_bad_loss_is_not():
    meter = make_meter(scaled_gradients=True)
    meter.add(make_report(1, grad_norms=(math.inf, 1.0)))
    assert meter.flush() is None
    meter.add(make_report(2, loss_sum=math.inf))
    assert meter.flush() is not None


def test_gradients_that_overflow_without_end_are_a_divergence():
    meter = make_meter(scaled_gradients=True)
    for step in range(1, 60):
        meter.add(make_report(step, grad_norms=(math.nan, 1.0)))
    found = meter.flush()
    assert found is not None
    assert (found.step, found.parameter) == (51, "first")


def test_sums_survive_a_checkpoint_in_mid_interval():
    whole, first, second = make_meter(), make_meter(), make_meter()
    for step in (1, 2, 3):
        whole.add(make_report(step, loss_sum=float(step)))
    whole.flush()
    first.add(make_report(1, loss_sum=1.0))
    first.flush()
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        second.add(make_report(step, loss_sum=float(step)))
    second.flush()
    assert second.read() == whole.read()
