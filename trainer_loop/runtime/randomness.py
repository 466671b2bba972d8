"""Derives seeds as hashes of their purpose, so a step can be repeated without saved random states."""

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing them takes time
    import numpy
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
def keeping_random_state() -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch, also of this device, at the end of the block."""
    import numpy
    import torch

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Set a model to evaluation mode inside the block, and restore the mode of each module at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@functools.cache
def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
