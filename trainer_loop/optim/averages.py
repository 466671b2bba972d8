"""Averaged weights, which are evaluated and exported instead of the trained weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer_loop.parallel.sharding import WholeTensor, copy_into, local_part, swap_values


class Ema:
    """The exponential moving average of the trainable parameters.

    After every update: `average = decay * average + (1 - decay) * weight`, with `decay` in [0, 1). It starts at the
    weights that the model has when this object is made. The averages are kept in float32 or wider, because 16 bits
    would round away the change of one update.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: _widen(weight.detach()).clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one update to the average."""
        weights = [_widen(local_part(weight)) for weight in self._weights.values()]
        averages = [local_part(average) for average in self._averages.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights as the weights of the model until the block ends."""
        trained = {}
        for name, weight in self._weights.items():
            trained[name] = swap_values(weight, self._averages[name].to(weight.dtype))
        try:
            yield
        finally:
            for name, weight in self._weights.items():
                swap_values(weight, trained[name])

    @torch.no_grad()
    def copy_to_model(self, averaged_weights: Mapping[str, WholeTensor] | None = None) -> None:
        """Replace the weights of the model permanently, by `averaged_weights` or by the current average."""
        if averaged_weights is not None:
            self.load_state_dict(averaged_weights)
        for name, weight in self._weights.items():
            weight.copy_(self._averages[name])

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average at the current weights of the model."""
        for name, average in self._averages.items():
            average.copy_(self._weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, averaged_weights: Mapping[str, WholeTensor]) -> None:
        """Load averaged weights. Raises KeyError or ValueError if they belong to another model."""
        for name, average in self._averages.items():
            copy_into(average, averaged_weights[name])


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_schedule_free(optimizer: Any) -> bool:
    """Whether an optimizer switches between two sets of weights, like those of the package schedulefree."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class ScheduleFreeAverages:
    """The averaged weights of a schedule-free optimizer, with the interface of `Ema`.

    The optimizer's `train` and `eval` switch between the trained and the averaged weights. The constructor calls
    `train`.
    """

    def __init__(self, model: nn.Module, optimizer: Any):
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimizer = optimizer
        self._is_permanent = False
        optimizer.train()

    def update(self) -> None:
        """Does nothing: the step of the optimizer updates the averages."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights as the weights of the model until the block ends."""
        if self._is_permanent:
            yield
            return
        # Arithmetic back and forth would change bits, so the trained weights are restored from a copy.
        trained = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            self._set(trained)

    def copy_to_model(self, averaged_weights: Mapping[str, WholeTensor] | None = None) -> None:
        """Replace the weights of the model permanently, by `averaged_weights` or by the current average."""
        self._is_permanent = True
        if averaged_weights is None:
            self._optimizer.eval()
        else:
            self._set(averaged_weights)

    def _set(self, weights: Mapping[str, WholeTensor]) -> None:
        for name, weight in self._weights.items():
            copy_into(weight, weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights by parameter name."""
        with self.in_place():
            return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def load_state_dict(self, averaged_weights: Mapping[str, WholeTensor]) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""

    def restart(self) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""


AveragedWeights = Ema | ScheduleFreeAverages
