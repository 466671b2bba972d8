"""An exponential moving average of the weights, evaluated and exported in their place."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """`average = decay * average + (1 - decay) * weight` after every update, over the trainable parameters.

    It begins at the weights that the model has when this is made, and is kept in float32 or wider: what one update adds
    would be lost in the rounding of 16 bits.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.decay = decay
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._weights: list[Tensor] = [parameter for _, parameter in named]
        self._averages = [_widen(parameter.detach()).clone() for parameter in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one update in."""
        torch._foreach_lerp_(self._averages, [_widen(weight) for weight in self._weights], 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for its weights until the block ends."""
        trained = [weight.data for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.data = average.to(weight.dtype)
        try:
            yield
        finally:
            for weight, data in zip(self._weights, trained, strict=True):
                weight.data = data

    @torch.no_grad()
    def copy_to_model(self, averaged_weights: dict[str, Tensor] | None = None) -> None:
        """The averages, those given or those of now, become the weights, for good."""
        if averaged_weights is not None:
            self.load_state_dict(averaged_weights)
        torch._foreach_copy_(self._weights, self._averages)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the weights the model has now."""
        torch._foreach_copy_(self._averages, self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, averaged_weights: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError where the averages are of another model."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(averaged_weights[name])


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
