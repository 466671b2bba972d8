"""Optimizers that need no schedule: they average the weights themselves, and evaluate and export the average."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_schedule_free(optimizer: Any) -> bool:
    """Whether it has two sets of weights, as those of the package schedulefree."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class ScheduleFreeAverages:
    """The averages of a schedule-free optimizer; between them and the weights it trains, `train` and `eval` move."""

    def __init__(self, model: nn.Module, optimizer: Any):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._weights: list[Tensor] = [parameter for _, parameter in named]
        self._optimizer = optimizer
        self._for_good = False
        optimizer.train()

    def update(self) -> None:
        """Nothing: the optimizer's own step keeps them."""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for its weights until the block ends."""
        if self._for_good:
            yield
            return
        # Computed back and forth they would not be the same bits.
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
        """The averages, those given or those of now, become the weights, for good."""
        self._for_good = True
        if averaged_weights is None:
            self._optimizer.eval()
        else:
            torch._foreach_copy_(self._weights, [averaged_weights[name] for name in self._names])

    def state_dict(self) -> dict[str, Tensor]:
        with self.in_place():
            return {name: weight.detach().clone() for name, weight in zip(self._names, self._weights, strict=True)}

    def load_state_dict(self, averaged_weights: Mapping[str, Tensor]) -> None:
        """Nothing: they follow from the weights and the optimizer's state."""

    def restart(self) -> None:
        """Nothing, likewise."""
