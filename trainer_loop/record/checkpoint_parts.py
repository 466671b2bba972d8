"""Checkpoints of a sharded model: each process writes its part, and a run reads only the rows that it needs.

`part-00002-of-00004.safetensors` has the second quarter of the rows of every sharded tensor. The name of a tensor is
the file that would hold it without shards, and its keys there: `optimizer.bin/state/0/exp_avg`. `parts.json` has the
shapes of the whole tensors. Tensors are cut as `torch.chunk` cuts them, so names and shapes say where each row is.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import load
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from trainer_loop.parallel.sharding import find_place, local_part
from trainer_loop.record.checkpoint_files import AVERAGES, INDEX, WEIGHTS, part_name
from trainer_loop.record.run_dir import read_json_object
from trainer_loop.record.snapshot import Snapshot

_REFERENCE = "tensor of the parts"  # the key of the reference that a file has in place of a sharded tensor


def split_snapshot(snapshot: Snapshot) -> Snapshot:
    """Return the files that this process writes of a snapshot with sharded tensors.

    Process 0 also writes everything that is not sharded. If several processes have the same part, the first writes it.
    """
    spread: dict[str, DTensor] = {}
    rest = {file: _cut(content, file, spread) for file, content in snapshot.items()}
    assert spread, "at least one trained tensor is sharded"
    place = find_place(next(iter(spread.values())))
    if place.is_copy:
        return {}
    part = {name: local for name, tensor in spread.items() if (local := local_part(tensor)).numel()}
    files: dict[str, Any] = {part_name(place.index, place.num_parts): part}
    if place.index == 0:
        for file in {WEIGHTS, AVERAGES} & rest.keys():
            content = rest.pop(file)
            part |= {f"{file}/{name}": tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
        shapes = {name: list(tensor.shape) for name, tensor in spread.items()}
        files |= rest | {INDEX: {"num_parts": place.num_parts, "shapes": shapes}}
    return files


def _cut(value: Any, name: str, spread: dict[str, DTensor]) -> Any:
    """Return the value with a reference in place of each sharded tensor; the tensors are added to `spread`."""
    if isinstance(value, DTensor):
        spread[name] = value
        return {_REFERENCE: name}
    if isinstance(value, Mapping):
        return {key: _cut(item, f"{name}/{key}", spread) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_cut(item, f"{name}/{number}", spread) for number, item in enumerate(value)])
    return value


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in one safetensors file, or with equal numbers of rows in several. Only the requested part is read."""

    name: str
    shape: tuple[int, ...]
    files: Sequence[Any]  # functions that open a file, in the order of the rows

    def __getitem__(self, place: Any) -> Tensor:
        """Read a part: one slice for each dimension, or `...` for all. Copy the result before you change it."""
        if len(self.files) == 1:
            return self._read(0, place)
        rows, *others = (slice(None),) * len(self.shape) if place is ... else place
        start, end, _ = rows.indices(self.shape[0])
        size = math.ceil(self.shape[0] / len(self.files))
        pieces = [
            self._read(number, (slice(max(start - number * size, 0), min(end - number * size, size)), *others))
            for number in range(start // size, math.ceil(end / size))
            if start < end
        ]
        if not pieces:
            return self._read(0, (slice(0, 0), *others))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read(self, number: int, place: Any) -> Tensor:
        return self.files[number]().get_slice(self.name)[place]  # type: ignore[no-any-return]


class CheckpointReader:
    """Reads the tensors and states of a verified checkpoint, saved by any number of processes."""

    def __init__(self, path: Path):
        self._path = path
        self.has_parts = (path / INDEX).exists()
        index: dict[str, Any] = read_json_object(path / INDEX) if self.has_parts else {"num_parts": 0, "shapes": {}}
        num_parts = index["num_parts"]
        self._parts = [self._opener(part_name(number, num_parts)) for number in range(num_parts)]
        self._spread = {name: StoredTensor(name, tuple(shape), self._parts) for name, shape in index["shapes"].items()}

    def tensors(self, file: str) -> dict[str, StoredTensor]:
        """Return the tensors of `model.safetensors` or `averages.safetensors` by name; empty without such a file."""
        if not self.has_parts:
            if not (self._path / file).exists():
                return {}
            opener = self._opener(file)
            return {name: _in_one_file(name, opener) for name in opener().keys()}  # noqa: SIM118 - no mapping
        stored = {name: _in_one_file(name, self._parts[0]) for name in self._parts[0]().keys()} | self._spread  # noqa: SIM118
        return {name.removeprefix(f"{file}/"): tensor for name, tensor in stored.items() if name.startswith(f"{file}/")}

    def load(self, file: str, *, mmap: bool = False) -> Any:
        """Return the state in a file, with a `StoredTensor` for each tensor that is in parts.

        Args:
            mmap: Read the tensors of the file when they are used; the caller must copy each.
        """
        state = load(self._path / file, map_location="cpu", mmap=mmap)
        if not self.has_parts:
            return state
        return tree_map(
            lambda leaf: self._spread[leaf[_REFERENCE]] if _is_reference(leaf) else leaf, state, is_leaf=_is_reference
        )

    def load_whole(self, file: str) -> Any:
        """Return the state in a file, with whole tensors."""
        return tree_map(lambda leaf: leaf[...].clone() if isinstance(leaf, StoredTensor) else leaf, self.load(file))

    def _opener(self, file: str) -> Any:
        """Return a function that opens a file at its first call: of a thousand parts, a process needs two or three."""
        return functools.cache(lambda: safe_open(self._path / file, framework="pt"))


def _in_one_file(name: str, opener: Any) -> StoredTensor:
    return StoredTensor(name, tuple(opener().get_slice(name).get_shape()), [opener])


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_REFERENCE}
