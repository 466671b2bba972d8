"""Folders as splits: what `save_to_disk` of datasets wrote, and images in folders that are named by their class."""

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

_SAVED, _SAVED_DICT = "state.json", "dataset_dict.json"  # which datasets writes beside the rows
_ENDINGS = tuple(ImageFolder.EXTENSIONS)
_OF_FILE_MANAGERS = ("thumbs.db", "desktop.ini")
_LEVELS = ("*", "*/*", "*/*/*")


def find_saved_files(folder: Path, *, split: str) -> list[str] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in their order; None if it is no such folder.

    split: that is read of a `DatasetDict`. Raises UserError if the folder has no such split, or is not whole.
    """
    if (folder / _SAVED_DICT).is_file():
        splits = [str(name) for name in _read_json(folder / _SAVED_DICT).get("splits") or ()]
        if split not in splits:
            there = f"this folder holds a DatasetDict of the splits {enumerate_some(splits, at_most=10)}"
            example = folder / (splits[0] if splits else "train")
            raise UserError(f"{there}, and none is called {split}; name one of them, such as {example}")
        folder = folder / split
    if not (folder / _SAVED).is_file():
        return None
    try:
        names = [Path(str(entry["filename"])).name for entry in _read_json(folder / _SAVED)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / _SAVED} names no files, as save_to_disk does; write or copy it again") from error
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking or not names:
        told = f"{enumerate_some(lacking)}, which {_SAVED} names" if lacking else "rows"
        raise UserError(f"{folder} was written by save_to_disk and lacks {told}; write or copy it again")
    return [str(folder / name) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {in_one_line(error)}; write or copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object, as save_to_disk writes one; write or copy it again")
    return found


def is_image_folder(spec: str) -> bool:
    """Whether a spec names a folder with images in it, or in folders in it, or in folders in these."""
    folder = expand_home(spec)
    if not os.path.isdir(folder) or any(  # noqa: PTH112 - of a name that no folder can have it is false
        (folder / name).is_file() for name in (_SAVED, _SAVED_DICT)
    ):
        return False
    return any(_is_image(path) for level in _LEVELS for path in folder.glob(level))


def read_image_folder(spec: str, *, split: str) -> Split:
    """A row for each image in the folders of a folder, in the order of their names: `image`, its path, and `label`,
    the name of its folder. Raises UserError with everything that does not fit.
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
    read = {path: problems.collect("", _list_images, path) for path in _list_folder(folder) if path.is_dir()}
    problems.refuse()
    images = {path.name: paths for path, paths in read.items() if paths is not None}
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
    """The images that paths and globs name, those of a glob in the order of their names; None: some name no images."""
    found: list[str] = []
    for spec in specs:
        path = str(expand_home(spec))
        named = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]  # noqa: PTH207 - as files.py
        if not named or not all(_is_image(Path(one)) for one in named):
            return None
        found += named
    return found


def read_images(specs: Sequence[str], *, split: str) -> Split:
    """A row for each image to predict: `image`, its path.

    Args:
        specs: Images and globs of them; or one folder, of images alone, or of folders as in `read_image_folder`, by
            which images have a `label` too.
        split: The name of the split.

    Raises:
        UserError: A folder holds something else.
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
    inside = list(_list_folder(folder))
    folders = [path.name for path in inside if path.is_dir()]
    if folders:
        raise UserError(
            f"{folder} has folders in it ({enumerate_some(folders)}); the folder of a class holds images alone: if its "
            f"folders are the classes, name {folder}"
        )
    if unnamed := [repr(path.name) for path in inside if not is_encodable(path.name)]:
        raise UserError(f"{folder} has names that are no UTF-8: {enumerate_some(unnamed)}; rename them")
    others = [path.name for path in inside if not _is_image(path) and path.name.lower() not in _OF_FILE_MANAGERS]
    if others:
        raise UserError(f"{folder} has files that are no images: {enumerate_some(others)}; put them elsewhere")
    images = [str(path) for path in inside if _is_image(path)]
    if not images:
        raise UserError(f"{folder} has no images; remove it, or give it some")
    return images


def _list_folder(folder: Path) -> Iterator[Path]:
    """What is in it by name, but for hidden files and folders."""
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and not path.name.startswith(".") and os.path.isfile(path)  # noqa: PTH113
