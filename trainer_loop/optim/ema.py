"""An exponential moving average of the weights, used in their place for evaluation and export."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of the trainable parameters.

    After every update: `average = decay * average + (1 - decay) * weight`. It starts at the weights that the model has
    when this object is made. The averages are kept in float32 or wider, because 16 bits would round away the change of
    one update.

    Args:
        model: the model whose trainable parameters are averaged.
        decay: share of the average that remains after an update, in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.decay = decay
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._weights: list[Tensor] = [parameter for _, parameter in named]
        self._averages = [_widen(parameter.detach()).clone() for parameter in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one update to the average."""
        torch._foreach_lerp_(self._averages, [_widen(weight) for weight in self._weights], 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights as the weights of the model until the block ends."""
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
        """Replace the weights of the model by the averaged weights, for good.

        Args:
            averaged_weights: averaged weights to use instead of the current ones.
        """
        if averaged_weights is not None:
            self.load_state_dict(averaged_weights)
        torch._foreach_copy_(self._weights, self._averages)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average at the current weights of the model."""
        torch._foreach_copy_(self._averages, self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the parameters."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, averaged_weights: dict[str, Tensor]) -> None:
        """Load averaged weights.

        Raises:
            KeyError, RuntimeError: the averaged weights belong to another model.
        """
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(averaged_weights[name])


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
