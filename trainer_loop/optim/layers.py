"""Where in a model a parameter stands: before its layers, in one of them, or behind them."""

from torch import nn


def find_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of every parameter by its name, and the greatest depth there is.

    0: before the first layer, as embeddings are; 1 to L: in that layer; L + 1: behind the last, as a head is.
    Layers are the entries of the outermost `nn.ModuleList`s, in the order in which the model has them; of a model
    without one, those of its outermost `nn.Sequential`s that have parameters.
    """
    layers = _name_layers(model, nn.ModuleList) or _name_layers(model, nn.Sequential)
    depth_of = {layer: position for position, layer in enumerate(layers, start=1)}
    depths: dict[str, int] = {}
    passed = 0
    for name, _ in model.named_parameters():
        parts = name.split(".")
        own = next((depth for end in range(1, len(parts)) if (depth := depth_of.get(".".join(parts[:end])))), None)
        passed = max(passed, own or 0)
        behind = len(layers) + 1 if passed == len(layers) else passed
        depths[name] = own or behind
    return depths, len(layers) + 1


def _name_layers(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    inner = {f"{name}.{part}" if name else part for name, module in lists for part, _ in module.named_modules() if part}
    outermost = [(name, module) for name, module in lists if name not in inner]
    return [
        f"{name}.{part}" if name else part
        for name, module in outermost
        for part, entry in module.named_children()
        if any(True for _ in entry.parameters())
    ]
