"""Schedule-free optimizers: they average the weights themselves; the average is evaluated and exported."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_schedule_free(optimizer: Any) -> bool:
    """Whether an optimizer has two sets of weights, like those of the package schedulefree."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class ScheduleFreeAverages:
    """The averaged weights of a schedule-free optimizer, with the interface of `Ema`.

    The optimizer's `train` and `eval` switch between the trained and the averaged weights.

    Args:
        model: the model that the optimizer trains.
        optimizer: the schedule-free optimizer; it is switched to `train`.
    """

    def __init__(self, model: nn.Module, optimizer: Any):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._weights: list[Tensor] = [parameter for _, parameter in named]
        self._optimizer = optimizer
        self._for_good = False
        optimizer.train()

    def update(self) -> None:
        """Does nothing: the step of the optimizer updates the averages."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights as the weights of the model until the block ends."""
        if self._for_good:
            yield
            return
        # Arithmetic back and forth would change bits, so the trained weights are restored from a copy.
        trained = [weight.detach().clone() for weight in self._weights]
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            with torch.no_grad():
                torch._foreach_copy_(self._weights, trained)

    @torch.no_grad()
    def copy_to_model(self, averaged_weights: Mapping[str, Tensor] | None = None) -> None:
        """Replace the weights of the model by the averaged weights, for good.

        Args:
            averaged_weights: averaged weights to use instead of the current ones.
        """
        self._for_good = True
        if averaged_weights is None:
            self._optimizer.eval()
        else:
            torch._foreach_copy_(self._weights, [averaged_weights[name] for name in self._names])

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the averaged weights by the names of the parameters."""
        with self.in_place():
            return {name: weight.detach().clone() for name, weight in zip(self._names, self._weights, strict=True)}

    def load_state_dict(self, averaged_weights: Mapping[str, Tensor]) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""

    def restart(self) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""
