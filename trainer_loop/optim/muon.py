"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from trainer_loop.errors import UserError


class MuonWithAdamW(Optimizer):
    """`torch.optim.Muon` on the groups marked `is_hidden_matrix`, `torch.optim.AdamW` on the others.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate fits both.
    momentum, nesterov, ns_steps: of Muon. betas, eps, fused: of AdamW. Raises UserError where torch has no Muon.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ):
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"optimizer.name: muon needs torch 2.9 or newer, and this is {torch.__version__}")
        groups = list(params)
        of_muon = [group for group in groups if group.get("is_hidden_matrix")]
        of_adamw = [group for group in groups if not group.get("is_hidden_matrix")]
        self._parts: list[Optimizer] = []
        if of_muon:
            self._parts.append(
                torch.optim.Muon(
                    of_muon,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    nesterov=nesterov,
                    ns_steps=ns_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if of_adamw:
            self._parts.append(
                AdamW(of_adamw, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps, fused=fused)
            )
        # The very dicts of the parts, which fill in their defaults: whoever sets a learning rate here sets it there.
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Both of them. closure: not supported."""
        assert closure is None
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Each part has its groups, and all of them one state, which is saved and loaded as a whole."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
