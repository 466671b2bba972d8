"""Losses: pure functions of logits and targets that return a **sum** over the targets. The loop divides.

A loss of your own has the same form; name it in the config: `loss: {name: my_lab.losses.focal, args: {gamma: 2}}`.
"""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Negative log likelihood in nats, summed over the targets that are not -100, `[]`.

    logits: `[N, C]`, computed in float32 or wider. targets: `[N]`, class indices.
    """
    return F.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=label_smoothing, reduction="sum")
