"""An exponential moving average of the weights, used in their place for evaluation and export."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


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
        weights = [_widen(weight) for weight in self._weights.values()]
        torch._foreach_lerp_(list(self._averages.values()), weights, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights as the weights of the model until the block ends."""
        trained = {name: weight.data for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            weight.data = self._averages[name].to(weight.dtype)
        try:
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = trained[name]

    @torch.no_grad()
    def copy_to_model(self, averaged_weights: Mapping[str, Tensor] | None = None) -> None:
        """Replace the weights of the model by the averaged weights, or by those that are given, for good."""
        if averaged_weights is not None:
            self.load_state_dict(averaged_weights)
        for name, weight in self._weights.items():
            weight.copy_(self._averages[name])

    def restart(self) -> None:
        """Restart the average at the current weights of the model."""
        self.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the parameters."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, averaged_weights: Mapping[str, Tensor]) -> None:
        """Load averaged weights; KeyError or RuntimeError where they belong to another model."""
        for name, average in self._averages.items():
            average.copy_(averaged_weights[name])


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
