"""Reads folders as splits: folders that `save_to_disk` of datasets wrote, and folders of images, one for each class."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from trainer_loop.data.dataset_columns import make_dataset
from trainer_loop.data.fingerprint import digest
from trainer_loop.data.origins import Origins
from trainer_loop.data.split import Split
from trainer_loop.data.text_format import is_encodable
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import Problems, UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.plain_json import parse_json

_STATE_FILE, _DICT_FILE = "state.json", "dataset_dict.json"  # files that datasets writes next to the rows
_SUFFIXES = tuple(ImageFolder.EXTENSIONS)
_IGNORED_FILES = ("thumbs.db", "desktop.ini")
_DEPTHS = ("*", "*/*", "*/*/*")


def find_saved_files(folder: Path, *, split: str) -> list[str] | None:
    """Return the Arrow files of a folder that `save_to_disk` wrote, in order; None if it is another folder.

    Args:
        folder: The folder.
        split: The split that is read if the folder holds a `DatasetDict`.

    Raises:
        UserError: The folder has no such split, or is not complete.
    """
    if (folder / _DICT_FILE).is_file():
        splits = [str(name) for name in _read_json(folder / _DICT_FILE).get("splits") or ()]
        if split not in splits:
            message = f"this folder holds a DatasetDict of the splits {enumerate_some(splits, at_most=10)}"
            example = folder / (splits[0] if splits else "train")
            raise UserError(f"{message}, and none is called {split}; name one of them, such as {example}")
        folder = folder / split
    if not (folder / _STATE_FILE).is_file():
        return None
    try:
        names = [Path(str(entry["filename"])).name for entry in _read_json(folder / _STATE_FILE)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / _STATE_FILE} names no files, as save_to_disk does; write or copy it again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        reason = f"{enumerate_some(missing)}, which {_STATE_FILE} names" if missing else "rows"
        raise UserError(f"{folder} was written by save_to_disk and lacks {reason}; write or copy it again")
    return [str(folder / name) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}; write or copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object, as save_to_disk writes one; write or copy it again")
    return content


def is_image_folder(spec: str) -> bool:
    """Whether a spec names a folder with images in it or in up to two levels of folders inside."""
    folder = expand_home(spec)
    if not os.path.isdir(folder) or any(  # noqa: PTH112 - it returns False for invalid names
        (folder / name).is_file() for name in (_STATE_FILE, _DICT_FILE)
    ):
        return False
    return any(_is_image(path) for level in _DEPTHS for path in folder.glob(level))


def read_image_folder(spec: str, *, split: str) -> Split:
    """Read images from one folder per class: `image` is the path and `label` the name of the folder, sorted by name.

    Raises:
        UserError: With the problems of all folders.
    """
    folder = expand_home(spec)
    problems = Problems()
    if any(map(_is_image, folder.iterdir())):
        problems.lines.append(
            "there are images beside the folders of the classes; put each into the folder of its class, or give a .csv "
            "file of paths and labels"
        )
    if not is_encodable(str(folder)) or not all(is_encodable(path.name) for path in folder.iterdir()):
        problems.lines.append("it has folders whose names are no UTF-8; rename them")
    paths_by_folder = {path: problems.collect("", _list_images, path) for path in _list_folder(folder) if path.is_dir()}
    problems.refuse()
    images = {path.name: paths for path, paths in paths_by_folder.items() if paths is not None}
    labels = [name for name, paths in images.items() for _ in paths]
    columns = {"image": [path for paths in images.values() for path in paths], "label": labels}
    return Split(
        split,
        make_dataset(columns, list(columns), len(labels)),
        Origins.join([Origins.of(f"{folder / name} image", len(paths)) for name, paths in images.items()]),
        digest(*(f"{label} {path}".encode() for path, label in zip(*columns.values(), strict=True))),
        list(columns),
    )


def list_image_files(specs: Sequence[str]) -> list[str] | None:
    """Return the images of paths and globs, the images of a glob sorted by name; None if one names no images."""
    files: list[str] = []
    for spec in specs:
        path = str(expand_home(spec))
        paths = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]  # noqa: PTH207 - as files.py
        if not paths or not all(_is_image(Path(one)) for one in paths):
            return None
        files += paths
    return files


def read_images(specs: Sequence[str], *, split: str) -> Split:
    """Read images to predict: one row per image, with its path as `image`.

    Args:
        specs: Images and globs; or one folder, which holds images only, or folders as in `read_image_folder`. In the
            last case images have a `label` too.
        split: Name of the split.

    Raises:
        UserError: A folder holds other files.
    """
    images = list_image_files(specs)
    if images is None:
        folder = expand_home(specs[0])
        if not any(map(_is_image, folder.iterdir())):
            return read_image_folder(specs[0], split=split)
        if folders := [path.name for path in _list_folder(folder) if path.is_dir()]:
            raise UserError(f"there are images beside folders ({enumerate_some(folders)}); name one of the folders")
        images = _list_images(folder)
    origins = Origins.of(f"{specs[0]} image" if len(specs) == 1 else "image", len(images))
    return Split(split, make_dataset({"image": images}, ["image"], len(images)), origins, "")


def _list_images(folder: Path) -> list[str]:
    entries = list(_list_folder(folder))
    folders = [path.name for path in entries if path.is_dir()]
    if folders:
        raise UserError(
            f"{folder} has folders in it ({enumerate_some(folders)}); the folder of a class holds images alone: if its "
            f"folders are the classes, name {folder}"
        )
    if unnamed := [repr(path.name) for path in entries if not is_encodable(path.name)]:
        raise UserError(f"{folder} has names that are no UTF-8: {enumerate_some(unnamed)}; rename them")
    others = [path.name for path in entries if not _is_image(path) and path.name.lower() not in _IGNORED_FILES]
    if others:
        raise UserError(f"{folder} has files that are no images: {enumerate_some(others)}; put them elsewhere")
    images = [str(path) for path in entries if _is_image(path)]
    if not images:
        raise UserError(f"{folder} has no images; remove it, or give it some")
    return images


def _list_folder(folder: Path) -> Iterator[Path]:
    """Yield the content of a folder, sorted by name, without hidden files and folders."""
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and os.path.isfile(path)  # noqa: PTH113
