"""Check that the weight files of a model folder exist and are complete, without reading the weights."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trainer_loop.data.wording import enumerate_some

# Names of weight files, in the order in which transformers looks for them.
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_LFS_POINTER = b"version https://git-lfs"
_LEGACY_TORCH = b"\x80\x02"  # a pickle, the format of torch before version 1.6


def check_weight_files(folder: Path, *, or_else: str = "") -> list[str]:
    """Return the problems of the weight files in a model's folder, without a config key.

    Args:
        or_else: text with another remedy, added if there are no weights.
    """
    path = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if path is None:
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
        return [f"{folder} has no weights ({_FILES[0]} or {_FILES[2]}); it has {present}; download them again{or_else}"]
    return _check_shards(path) if path.suffix == ".json" else find_fault(path)


def check_adapter_weights(folder: Path) -> list[str]:
    """Return the problems of the weight file in an adapter's folder."""
    path = next((folder / name for name in _ADAPTER_FILES if (folder / name).exists()), None)
    return [f"{folder} has no weights ({_ADAPTER_FILES[0]}); copy it again"] if path is None else find_fault(path)


def find_fault(path: Path) -> list[str]:
    """Return the problem of one weight file, or an empty list."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if not size:
            return [f"{path} is empty; download it again"]
        if start == _LFS_POINTER:
            return [f"{path} is a pointer of Git LFS and holds no weights; run `git lfs pull` there, or download it"]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return []
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror or error}"]
    except SafetensorError as error:
        return [f"{path} is damaged or not complete ({error}); download it again"]
    if zipfile.is_zipfile(path) or start.startswith(_LEGACY_TORCH):
        return []
    return [f"{path} is damaged or not complete: it is no file that torch has saved; download it again"]


def _check_shards(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        shards = [index.parent / name for name in names]
        if not shards or not isinstance(content["metadata"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{index} is damaged: it does not say which file holds which weight; download it again"]
    if outside := [name for name in names if ".." in Path(name).parts or Path(name).is_absolute()]:
        return [f"{index} names files outside of its folder, such as {outside[0]}; download it again"]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        return [
            f"{index.parent} lacks {enumerate_some(missing, at_most=3)}, which {index.name} names; download it again"
        ]
    return [problem for shard in shards for problem in find_fault(shard)]
