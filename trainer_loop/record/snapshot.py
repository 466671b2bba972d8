"""The content of a checkpoint in memory: the tensors of the training, or copies that the training does not change."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from trainer_loop.runtime.memory import place_in_memory

Snapshot = Mapping[str, Any]  # the state of a run between two updates: file name in its checkpoint -> content


def select_saved(model: nn.Module) -> dict[str, Tensor]:
    """Return all that training changes: trained parameters, and buffers. A tied tensor has its first name only."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    saved: dict[str, Tensor] = {}
    places = set()
    for name, tensor in model.state_dict().items():
        place = place_in_memory(tensor)
        if name not in frozen and (place not in places or not tensor.numel()):
            places.add(place)
            saved[name] = tensor.contiguous()  # safetensors requires it
    return saved


class HostMemory:
    """Copies snapshots to host memory. It reuses the last copy's memory: allocating takes longer than copying."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, ...], Tensor] = {}  # place of a tensor -> its copy

    def copy(self, snapshot: Snapshot) -> Snapshot:
        """Return a copy, which overwrites the copy before."""
        before, self._copies = self._copies, {}
        return tree_map(  # type: ignore[no-any-return]
            lambda leaf: self._copy(leaf, before) if isinstance(leaf, Tensor) else deepcopy(leaf), snapshot
        )

    def _copy(self, tensor: Tensor, before: dict[tuple[int, ...], Tensor]) -> Tensor:
        place = place_in_memory(tensor)  # tied weights stay one tensor, so that the file holds them once
        if place not in self._copies:
            old = before.get(place)
            if old is None or old.dtype != tensor.dtype:
                old = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            self._copies[place] = old.copy_(tensor.detach())
        return self._copies[place]
