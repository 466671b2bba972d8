"""Derives seeds as hashes of their purpose, so a step can be repeated without saved random states."""

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing them takes time
    import numpy
    import torch
    from torch import nn


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a 63-bit seed. Unlike a sum, this is different for (seed 1, step 2) and (seed 2, step 1)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def permute(count: int, *parts: int | str) -> "numpy.ndarray":
    """Return a permutation of the integers from 0 to `count - 1`, `[count]`, with the seed `derive_seed(*parts)`."""
    import numpy

    return numpy.random.Generator(numpy.random.Philox(derive_seed(*parts))).permutation(count)


def seed_everything(*parts: int | str) -> None:
    """Seed the generators of Python, NumPy and torch (all devices) with `derive_seed(*parts)`."""
    import numpy
    import torch

    seed = derive_seed(*parts)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # same effect without an accelerator, 70 microseconds faster


@contextlib.contextmanager
def keeping_random_state(device: "torch.device | None" = None) -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch at the end of the block.

    Args:
        device: The generator of this device is restored too; None: that of the current CUDA device, if there is one.
    """
    import numpy
    import torch

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Set a model to evaluation mode inside the block, and restore the mode of each module at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(
            modes[model]
        )  # not by setting `training`: some modules override `train`, for example to clear caches
        for module, mode in modes.items():
            if module.training != mode:
                module.train(mode)


@functools.cache
def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
