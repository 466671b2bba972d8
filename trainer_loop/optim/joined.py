"""Joins several optimizers to one, for schedules, checkpoints and data parallelism."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """An optimizer whose `step` runs a step of each part; the parts share its groups and state.

    Args:
        parts: torch optimizers over disjoint parameters. A custom training step may call their `step` one by one.
    """

    def __init__(self, parts: Sequence[Optimizer]):
        self.parts = list(parts)
        # The same dict objects as in the parts: a learning rate set here is set there.
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Run a step of each part in turn; `closure` is not supported."""
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
