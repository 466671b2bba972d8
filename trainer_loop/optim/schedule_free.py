"""Schedule-free optimizers: they average the weights themselves; the average is evaluated and exported."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from trainer_loop.parallel.sharding import WholeTensor, copy_into


def is_schedule_free(optimizer: Any) -> bool:
    """Whether an optimizer has two sets of weights, like those of the package schedulefree."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class ScheduleFreeAverages:
    """The averaged weights of a schedule-free optimizer, with the interface of `Ema`.

    The optimizer's `train` and `eval` switch between the trained and the averaged weights. This object begins with
    `train`.
    """

    def __init__(self, model: nn.Module, optimizer: Any):
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
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
        trained = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            self._set(trained)

    def copy_to_model(self, averaged_weights: Mapping[str, WholeTensor] | None = None) -> None:
        """Replace the weights of the model by the averaged weights, or by those that are given, for good."""
        self._for_good = True
        if averaged_weights is None:
            self._optimizer.eval()
        else:
            self._set(averaged_weights)

    def _set(self, weights: Mapping[str, WholeTensor]) -> None:
        for name, weight in self._weights.items():
            copy_into(weight, weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the averaged weights by the names of the parameters."""
        with self.in_place():
            return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def load_state_dict(self, averaged_weights: Mapping[str, WholeTensor]) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""

    def restart(self) -> None:
        """Does nothing: the averages follow from the weights and the optimizer state."""
