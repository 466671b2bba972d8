"""Several optimizers as one, so that schedules, checkpoints and processes see one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """`step` takes a step of each of the `parts`, which share the groups and the state of the whole.

    parts: torch optimizers over parameters of their own. A step of your own may take theirs one by one.
    """

    def __init__(self, parts: Sequence[Optimizer]):
        self.parts = list(parts)
        # The very dicts of the parts: whoever sets a learning rate here sets it there.
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Of each part in turn. closure: not supported."""
        assert closure is None
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
