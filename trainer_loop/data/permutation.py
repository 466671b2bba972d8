"""Shuffles of more rows than an array should hold: each position of the order is computed on request."""

from typing import Protocol

import numpy as np

from trainer_loop.data.origins import Indices
from trainer_loop.runtime.randomness import derive_seed, permute

MANY_ROWS = 10**8  # above this, no array holds the order of an epoch: it would take 0.8 GB, and seconds to shuffle
_ROUNDS = 8


class Order(Protocol):
    """The rows of an epoch in their order: an array, or an object that computes any slice of it."""

    def __getitem__(self, places: slice, /) -> Indices: ...


def shuffle(count: int, *parts: int | str) -> Order:
    """Return the numbers below `count` in an order that is a hash of the seed's parts."""
    return permute(count, *parts) if count <= MANY_ROWS else Permutation(count, *parts)


class Permutation:
    """The numbers below `count` in an order that is a hash of the seed's parts. It takes 64 bytes for any count.

    A Feistel network permutes the numbers of as many bits as `count` needs: each round combines one half of the bits
    with a hash of the other half by XOR, so it is invertible. A number that is not below `count` is permuted again
    until it is (cycle walking; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), less than twice on
    average.
    All arithmetic is on 64-bit integers, so the order is the same on every machine.

    >>> order = Permutation(10, "some seed")
    >>> order[:10].tolist(), order[np.array([7, 2])].tolist()
    ([8, 5, 3, 0, 6, 4, 2, 9, 7, 1], [9, 3])
    """

    def __init__(self, count: int, *parts: int | str):
        assert 0 < count < 2**62
        self._count = count
        bits = (count - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._masks = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)  # of the high, low half
        self._keys = [np.uint64(derive_seed(*parts, count, "round", number)) for number in range(_ROUNDS)]

    def __getitem__(self, places: slice | Indices) -> Indices:
        """Return the numbers at these positions, which must not be negative."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(self._count))
        numbers = self._permute_bits(places.astype(np.uint64))
        while len(outside := np.flatnonzero(numbers >= self._count)):
            numbers[outside] = self._permute_bits(numbers[outside])
        return numbers.astype(np.int64)

    def _permute_bits(self, numbers: np.ndarray) -> np.ndarray:
        high_mask, low_mask = self._masks
        high, low = numbers >> self._low_bits, numbers & low_mask
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            high ^= _mix(low + first) & high_mask
            low ^= _mix(high + second) & low_mask
        mixed: np.ndarray = high << self._low_bits | low
        return mixed


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Spread each bit of 64-bit numbers over all bits, in place: the last steps of SplitMix64 (Steele et al., 2014)."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
