"""Checkpoints of a model that is spread over the processes: each writes its part, and a run reads the rows it needs.

`part-00002-of-00004.safetensors` has the second quarter of the rows of every tensor that is spread, by the name of the
file that would hold it and its keys there: `optimizer.bin/state/0/exp_avg`. `parts.json` has the shapes of the whole
tensors. A tensor is cut as `torch.chunk` cuts it, so names and shapes tell where each row is.
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

_STANDS_FOR = "tensor of the parts"  # the key of what a file has in the place of a tensor that is spread


def split_snapshot(snapshot: Snapshot) -> Snapshot:
    """The files that this process writes of a snapshot with tensors that are spread over the processes.

    Process 0 writes all that is not spread. Of several copies of a part, the first is written.
    """
    spread: dict[str, DTensor] = {}
    rest = {file: _cut(content, file, spread) for file, content in snapshot.items()}
    assert spread, "something learns, and is spread"
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
    """The value with a reference in the place of each tensor that is spread; those are added to `spread`."""
    if isinstance(value, DTensor):
        spread[name] = value
        return {_STANDS_FOR: name}
    if isinstance(value, Mapping):
        return {key: _cut(item, f"{name}/{key}", spread) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_cut(item, f"{name}/{number}", spread) for number, item in enumerate(value)])
    return value


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in one safetensors file, or with equal numbers of its rows in several; reads only what is asked for."""

    name: str
    shape: tuple[int, ...]
    files: Sequence[Any]  # open, in the order of the rows

    def __getitem__(self, place: Any) -> Tensor:
        """The part that slices name, one for each dimension; `...` for the whole. Copy it before you change it."""
        if len(self.files) == 1:
            return self._read(0, place)
        rows, *others = (slice(None),) * len(self.shape) if place is ... else place
        begin, end, _ = rows.indices(self.shape[0])
        size = math.ceil(self.shape[0] / len(self.files))
        pieces = [
            self._read(number, (slice(max(begin - number * size, 0), min(end - number * size, size)), *others))
            for number in range(begin // size, math.ceil(end / size))
            if begin < end
        ]
        if not pieces:
            return self._read(0, (slice(0, 0), *others))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read(self, number: int, place: Any) -> Tensor:
        return self.files[number]().get_slice(self.name)[place]  # type: ignore[no-any-return]


class CheckpointReader:
    """The tensors and states of a verified checkpoint, whatever layout of processes saved it."""

    def __init__(self, path: Path):
        self._path = path
        self.has_parts = (path / INDEX).exists()
        index: dict[str, Any] = read_json_object(path / INDEX) if self.has_parts else {"num_parts": 0, "shapes": {}}
        num_parts = index["num_parts"]
        self._parts = [self._opener(part_name(number, num_parts)) for number in range(num_parts)]
        self._spread = {name: StoredTensor(name, tuple(shape), self._parts) for name, shape in index["shapes"].items()}

    def tensors(self, file: str) -> dict[str, StoredTensor]:
        """The tensors of `model.safetensors` or `averages.safetensors`, by name; empty where there is no such file."""
        if not self.has_parts:
            if not (self._path / file).exists():
                return {}
            opener = self._opener(file)
            return {name: _in_one_file(name, opener) for name in opener().keys()}  # noqa: SIM118 - no mapping
        stored = {name: _in_one_file(name, self._parts[0]) for name in self._parts[0]().keys()} | self._spread  # noqa: SIM118
        return {name.removeprefix(f"{file}/"): tensor for name, tensor in stored.items() if name.startswith(f"{file}/")}

    def load(self, file: str, *, mmap: bool = False) -> Any:
        """The state in a file; a `StoredTensor` stands for each tensor that is in parts.

        mmap: the tensors of the file are read when they are used; each must be copied.
        """
        state = load(self._path / file, map_location="cpu", mmap=mmap)
        if not self.has_parts:
            return state
        return tree_map(
            lambda leaf: self._spread[leaf[_STANDS_FOR]] if _is_reference(leaf) else leaf, state, is_leaf=_is_reference
        )

    def load_whole(self, file: str) -> Any:
        """The state in a file, with all of each tensor."""
        return tree_map(lambda leaf: leaf[...].clone() if isinstance(leaf, StoredTensor) else leaf, self.load(file))

    def _opener(self, file: str) -> Any:
        """Opens a file of tensors at its first use: of a thousand parts, a process needs two or three."""
        return functools.cache(lambda: safe_open(self._path / file, framework="pt"))


def _in_one_file(name: str, opener: Any) -> StoredTensor:
    return StoredTensor(name, tuple(opener().get_slice(name).get_shape()), [opener])


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_STANDS_FOR}
