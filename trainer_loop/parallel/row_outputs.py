"""Collects the outputs of a model per row, and joins them in row order, for one process or for all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

_Part = tuple[np.ndarray, dict[str, np.ndarray]]  # numbers of rows, and their outputs by name


class RowOutputs:
    """Outputs of rows by name. The output of a batch is a tensor `[B, ...]`, or a list with one tensor per row."""

    def __init__(self) -> None:
        self._numbers = [np.empty(0, dtype=np.int64)]
        self._batches: dict[str, list[Any]] = {}

    def add(self, numbers: Sequence[int], outputs: Mapping[str, Any]) -> None:
        """Add the outputs of a batch, except those that are None. `numbers` are the numbers of its rows."""
        self._numbers.append(np.array(numbers, dtype=np.int64))
        for name, output in outputs.items():
            if output is not None:
                self._batches.setdefault(name, []).append(output)

    def join(self) -> dict[str, np.ndarray]:
        """Join the outputs of this process in row order.

        Returns:
            By name an array `[rows, ...]`; for outputs that are lists, an array `[rows]` of arrays.
        """
        return _put_in_order([self._take()])

    def gather(self, num_rows: int) -> dict[str, np.ndarray]:
        """Join the outputs of all processes, `num_rows` rows in total, as `join` does. All processes must call this."""
        parts = gather_object([self._take()])
        count = sum(len(numbers) for numbers, _ in parts)
        assert count == num_rows, f"{count} of {num_rows} rows were answered"
        return _put_in_order(parts)

    def _take(self) -> _Part:
        columns = {name: _join_batches(batches) for name, batches in self._batches.items()}
        return np.concatenate(self._numbers), columns


def _put_in_order(parts: Sequence[_Part]) -> dict[str, np.ndarray]:
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]), kind="stable")
    columns = [columns for _, columns in parts if columns]  # a process without rows has no columns
    names = dict.fromkeys(name for part in columns for name in part)
    return {name: np.concatenate([part[name] for part in columns])[order] for name in names}


def _join_batches(batches: Sequence[Tensor | Sequence[Tensor]]) -> np.ndarray:
    if isinstance(batches[0], Tensor):
        return _to_numpy(batches)
    rows = [row for batch in batches for row in batch]
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return np.fromiter(np.split(_to_numpy(rows), ends), dtype=object, count=len(rows))


def _to_numpy(tensors: Sequence[Any]) -> np.ndarray:
    """Concatenate tensors to one array with one copy from the device. NumPy has no bfloat16; it becomes float32."""
    joined = torch.cat(list(tensors)).cpu()
    return (joined.float() if joined.dtype == torch.bfloat16 else joined).numpy()
