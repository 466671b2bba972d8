"""The losses that are shipped: sums over the targets."""

import pytest
import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss

from trainer_loop.tasks.losses import LOSSES, cross_entropy

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 2, -100, 1, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_sum_over_targets_and_leaves_out_those_of_minus_100(name):
    loss = LOSSES[name]
    parts = sum((loss(LOGITS[row : row + 1], TARGETS[row : row + 1]) for row in range(6)), torch.zeros(()))
    torch.testing.assert_close(loss(LOGITS, TARGETS), parts, check_dtype=False)
    assert loss(LOGITS[3:4], TARGETS[3:4]) == 0


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
