"""Finds the position of a parameter in a model: before the layers, in one of them, or behind them."""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR_LAYERS = (nn.Linear, Conv1D)  # layers that multiply by a matrix; Conv1D is used by GPT-2


def find_depths(model: nn.Module, calls: Sequence[str] = ()) -> tuple[dict[str, int], int]:
    """Return the depth of every parameter by its name, and the greatest depth.

    Depth 0 is before the first layer (embeddings), depths 1 to L are the layers, and L + 1 is behind the last layer
    (head). Layers are the entries of the outermost `nn.ModuleList`s. A model without one uses the entries of its
    outermost `nn.Sequential`s that have parameters. A parameter between two layers has the depth of the first.

    Args:
        calls: names of modules in the order of their first call in a forward pass. With them, a parameter gets the
            depth at which it acts: relative positions that all layers share are at depth 0, wherever they are
            registered, and several lists of which each layer uses one entry count as one. Without them, the order of
            the parameters decides.
    """
    first_call: dict[str, int] = {}  # includes modules of which only parts are called
    for position, name in enumerate(calls):
        for module in [name, *modules_above(name)]:
            first_call.setdefault(module, position)
    depth_of = _number_layers(model, first_call)
    top = max(depth_of.values(), default=0) + 1
    depths: dict[str, int] = {}
    deepest = 0  # the deepest layer so far
    for name, _ in model.named_parameters():
        above = modules_above(name)
        own = next((depth_of[module] for module in above if module in depth_of), None)
        call = next((first_call[module] for module in above if module in first_call), None)
        if own is None and call is not None:
            deepest = max((depth for layer, depth in depth_of.items() if first_call[layer] < call), default=0)
        deepest = deepest if own is None else max(deepest, own)
        depths[name] = own if own is not None else top if deepest == top - 1 else deepest
    return depths, top


def modules_above(name: str) -> list[str]:
    """Return the names of the modules that contain a parameter or module, innermost first; the last is the model."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _number_layers(model: nn.Module, first_call: Mapping[str, int]) -> dict[str, int]:
    """Return the depth of every layer by its name, from 1. With `first_call`, only layers that are called count."""
    if not first_call:
        lists = _list_layers(model, nn.ModuleList) or _list_layers(model, nn.Sequential)
        layers = [layer for entries in lists for layer in entries]
        return {layer: depth for depth, layer in enumerate(layers, start=1)}
    steps: list[tuple[str, ...]] = []
    remaining = [[layer for layer in entries if layer in first_call] for entries in _list_called_layers(model)]
    while remaining:
        first, *remaining = remaining
        parallel = [other for other in remaining if _interleave(first, other, first_call)]
        steps += zip(first, *parallel, strict=True)
        remaining = [other for other in remaining if other not in parallel]
    steps.sort(key=lambda step: first_call[step[0]])
    return {layer: depth for depth, step in enumerate(steps, start=1) for layer in step}


def _interleave(one: Sequence[str], other: Sequence[str], first_call: Mapping[str, int]) -> bool:
    """Whether each layer uses one entry of both lists."""
    return len(one) == len(other) > 1 and first_call[one[0]] < first_call[other[0]] < first_call[one[-1]]


def _list_called_layers(model: nn.Module) -> list[list[str]]:
    """Like `_list_layers`, but replaces a list inside a list by its entries: the list itself is not called."""
    lists = []
    for entries in _list_layers(model, nn.ModuleList) or _list_layers(model, nn.Sequential):
        inner = [name for name in entries if isinstance(model.get_submodule(name), nn.ModuleList)]
        lists += [[f"{name}.{part}" for part, _ in model.get_submodule(name).named_children()] for name in inner]
        lists += [[name for name in entries if name not in inner]]
    return lists


def _list_layers(model: nn.Module, kind: type[nn.Module]) -> list[list[str]]:
    """Return the names of the entries with parameters of each outermost container of class `kind`."""
    containers = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    inside = {inner for name, module in containers for inner, _ in module.named_modules(prefix=name) if inner != name}
    return [
        [
            f"{name}.{part}".removeprefix(".")
            for part, entry in module.named_children()
            if next(entry.parameters(), None) is not None
        ]
        for name, module in containers
        if name not in inside
    ]
