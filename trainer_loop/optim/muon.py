"""Muon for the matrices of hidden layers and AdamW for all other parameters, as one optimizer."""

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW, Muon, Optimizer

from trainer_loop.optim.joined import JoinedOptimizer


class MuonWithAdamW(JoinedOptimizer):
    """`torch.optim.Muon` on the groups marked `is_hidden_matrix`, `torch.optim.AdamW` on the others.

    Muon's updates are scaled to the size of AdamW's updates (`match_rms_adamw`), so one learning rate fits both.
    `momentum`, `nesterov` and `ns_steps` are arguments of Muon; `betas`, `eps` and `fused` of AdamW.
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
        groups = list(params)
        muon_groups = [group for group in groups if group.get("is_hidden_matrix")]
        adamw_groups = [group for group in groups if not group.get("is_hidden_matrix")]
        shared_args: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        muon_args: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        parts: list[Optimizer] = []
        if muon_groups:
            parts.append(Muon(muon_groups, **shared_args, **muon_args, adjust_lr_fn="match_rms_adamw"))
        if adamw_groups:
            parts.append(AdamW(adamw_groups, **shared_args, betas=(betas[0], betas[1]), eps=eps, fused=fused))
        super().__init__(parts)
