"""The losses that are shipped: sums over the targets."""

import pytest
import torch
from torch import Tensor
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss

from trainer_loop.tasks.losses import LOSSES, cross_entropy
from trainer_loop.tasks.plan import make_up_outputs

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 2, -100, 1, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_sum_over_targets(name: str):
    problem_type = {"mse": "regression", "l1": "regression", "huber": "regression"}.get(name)
    if name == "binary_cross_entropy":
        problem_type = "multi_label_classification"
    loss, (outputs, targets) = LOSSES[name], make_up_outputs(problem_type, 3)
    parts = sum((loss(outputs[row : row + 1], targets[row : row + 1]) for row in range(4)), torch.zeros(()))
    torch.testing.assert_close(loss(outputs, targets), parts, check_dtype=False)


def test_targets_of_minus_100_are_left_out():
    parts = sum((cross_entropy(LOGITS[row : row + 1], TARGETS[row : row + 1]) for row in range(6)), torch.zeros(()))
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS), parts, check_dtype=False)
    assert cross_entropy(LOGITS[3:4], TARGETS[3:4]) == 0


def test_the_weights_of_positive_targets_are_torchs():
    logits, targets = make_up_outputs("multi_label_classification", 3)
    weights = [1.0, 4.0, 0.5]
    wanted = BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor(weights))(logits, targets)
    torch.testing.assert_close(LOSSES["binary_cross_entropy"](logits, targets, pos_weight=weights), wanted)


def test_label_smoothing_is_torchs():
    wanted: Tensor = CrossEntropyLoss(label_smoothing=0.2, reduction="sum")(LOGITS, TARGETS)
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS, label_smoothing=0.2), wanted)


def test_class_weights_are_factors_of_each_targets_loss():
    weights = [1.0, 2.0, 0.5]
    wanted = sum(
        weights[target] * cross_entropy(LOGITS[row : row + 1], TARGETS[row : row + 1])
        for row, target in enumerate(TARGETS.tolist())
        if target >= 0
    )
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS, class_weights=weights), wanted)


def test_class_weights_give_the_two_figures_of_the_docs():
    logits, targets = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    ours = cross_entropy(logits, targets, class_weights=[1.0, 3.5]) / 4
    torchs: Tensor = CrossEntropyLoss(weight=torch.tensor([1.0, 3.5]))(logits, targets)
    assert (round(ours.item(), 4), round(torchs.item(), 4)) == (1.9563, 1.2039)
