"""What a model answers to rows, batch by batch: joined in the order of the rows, for one process or all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

_Part = tuple[np.ndarray, dict[str, np.ndarray]]  # numbers of rows, and their outputs by name


class RowOutputs:
    """Outputs of rows by name. Those of a batch are a tensor `[B, ...]`, or a list of one tensor for each row."""

    def __init__(self) -> None:
        self._numbers = [np.empty(0, dtype=np.int64)]
        self._batches: dict[str, list[Any]] = {}

    def add(self, numbers: Sequence[int], outputs: Mapping[str, Any]) -> None:
        """Add those of a batch with the numbers of its rows; what is None is left out."""
        self._numbers.append(np.array(numbers, dtype=np.int64))
        for name, output in outputs.items():
            if output is not None:
                self._batches.setdefault(name, []).append(output)

    def join(self) -> dict[str, np.ndarray]:
        """Those of this process in the order of the rows: arrays `[rows, ...]`; of lists arrays `[rows]` of arrays."""
        return _put_in_order([self._take()])

    def gather(self, num_rows: int) -> dict[str, np.ndarray]:
        """Likewise those of all processes, on each of them. num_rows: of all processes together."""
        parts = gather_object([self._take()])
        count = sum(len(numbers) for numbers, _ in parts)
        assert count == num_rows, f"{count} of {num_rows} rows were answered"
        return _put_in_order(parts)

    def _take(self) -> _Part:
        columns = {name: _join_batches(batches) for name, batches in self._batches.items()}
        return np.concatenate(self._numbers), columns


def _put_in_order(parts: Sequence[_Part]) -> dict[str, np.ndarray]:
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]), kind="stable")
    columns = [columns for _, columns in parts if columns]  # a process without rows knows no names
    names = dict.fromkeys(name for of_process in columns for name in of_process)
    return {name: np.concatenate([of_process[name] for of_process in columns])[order] for name in names}


def _join_batches(batches: Sequence[Tensor | Sequence[Tensor]]) -> np.ndarray:
    if isinstance(batches[0], Tensor):
        return _to_numpy(batches)
    rows = [row for batch in batches for row in batch]
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return np.fromiter(np.split(_to_numpy(rows), ends), dtype=object, count=len(rows))


def _to_numpy(tensors: Sequence[Any]) -> np.ndarray:
    """All in one array, by one copy from the device; bfloat16 as float32, because NumPy has no bfloat16."""
    joined = torch.cat(list(tensors)).cpu()
    return (joined.float() if joined.dtype == torch.bfloat16 else joined).numpy()
