"""Losses: pure functions of logits and targets that return a **sum** over the targets. The loop divides.

A custom loss has the same form. Name it in the config: `loss: {name: my_lab.losses.focal, args: {gamma: 2}}`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer_loop.components import locate_source
from trainer_loop.errors import UserError


def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Negative log likelihood in nats, summed over the targets that are not -100, `[]`.

    Args:
        logits: `[N, C]`, computed in float32 or wider.
        targets: `[N]`, class indices.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: C factors, one per class; in a config also `auto`, see docs/customise.md. The loop divides the
            sum by the number of targets, while torch's mean divides it by the sum of their weights.

    Examples:
        >>> cross_entropy(torch.zeros(3, 4), torch.tensor([0, 2, -100]))  # two targets of log 4 each
        tensor(2.7726)
    """
    weights = None if class_weights is None else _on_device(tuple(class_weights), logits.device, logits.dtype)
    return F.cross_entropy(
        logits, targets, weight=weights, ignore_index=-100, label_smoothing=label_smoothing, reduction="sum"
    )


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, pos_weight: Sequence[float] | None = None) -> Tensor:
    """Negative log likelihood of independent binary classes in nats, summed over rows and classes, `[]`.

    Args:
        logits: `[N, C]`.
        targets: `[N, C]`, 1 if the row has the class, else 0.
        pos_weight: C factors, one per class, for the targets that are 1.
    """
    weight = None if pos_weight is None else _on_device(tuple(pos_weight), logits.device, logits.dtype)
    targets = targets.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="sum")


def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared errors, summed, `[]`. predictions, targets: numbers `[N]`, or `[N, K]`."""
    return F.mse_loss(predictions, targets.to(predictions.dtype), reduction="sum")


def l1(predictions: Tensor, targets: Tensor) -> Tensor:
    """Absolute errors, summed, `[]`. predictions, targets: numbers `[N]`, or `[N, K]`."""
    return F.l1_loss(predictions, targets.to(predictions.dtype), reduction="sum")


def huber(predictions: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """Huber loss, summed, `[]`: half the squared errors up to `delta`, above it `delta` times the absolute errors.

    `predictions` and `targets` are numbers `[N]` or `[N, K]`. See Huber, Robust Estimation of a Location Parameter
    (1964).
    """
    return F.huber_loss(predictions, targets.to(predictions.dtype), reduction="sum", delta=delta)


@functools.lru_cache(maxsize=8)
def _on_device(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy numbers to the device, once: a copy in every step would wait for the device."""
    return torch.tensor(numbers, device=device, dtype=dtype)


def explain_wrong_loss(loss: object) -> str | None:
    """Return what is wrong with the result of a loss, as the rest of a sentence; None if it is valid."""
    if not isinstance(loss, Tensor):
        return f"returns a {type(loss).__name__}; a loss is a tensor of one number, the sum over the targets"
    if loss.ndim != 0:
        return (
            f"returns a tensor of shape {list(loss.shape)}; a loss is one number, summed over the targets: use .sum()"
        )
    if not loss.requires_grad:
        return "returns a number that depends on nothing that learns; is something detached, or all frozen?"
    return None


def refuse_wrong_loss(loss: object, *, of: Callable[..., Any]) -> None:
    """Raise UserError if the result of a loss is not a single number with a gradient. of: the loss function."""
    if (wrong := explain_wrong_loss(loss)) is not None:
        raise UserError(f"{locate_source(of)} {wrong}")


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "l1": l1,
    "huber": huber,
}
