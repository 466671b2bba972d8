"""Tokenizers and image processors of others: from a local folder, or from the hub."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import offline_unless_reachable

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_pretrained(auto: Any, name_or_path: str, *, noun: str, options: Mapping[str, Any]) -> Any:
    """What a local folder holds, or what a hub id names (from its cache where the hub does not answer).

    auto: the Auto class of transformers that loads it, with these options. noun: how errors call it. Raises UserError.
    """
    place = f"{noun} {name_or_path}"
    path = expand_home(name_or_path, place=noun)
    if path.is_dir():
        return _load(auto, str(path), place, options)
    if path.exists():
        raise UserError(f"{place} is a file; name the folder that it is in")
    if not _HUB_ID.fullmatch(name_or_path):
        raise UserError(f"{place}: there is no such folder{_describe_parent(path)}")
    with offline_unless_reachable() as offline:
        return _load(auto, name_or_path, place, options, offline=offline)


def _load(auto: Any, source: str, place: str, options: Mapping[str, Any], *, offline: str | None = None) -> Any:
    try:
        return auto.from_pretrained(source, **options)
    except Exception as error:  # files of somebody else's may make transformers raise anything
        if offline is not None:
            raise UserError(
                f"{place}: {offline} and it is not in the cache; name a local folder, or fill "
                f"the cache with transformers.{auto.__name__}.from_pretrained({source!r}) where there is network"
            ) from error
        hint = "; model.trust_remote_code=true lets its Python code run" if "trust_remote_code" in str(error) else ""
        raise UserError(f"{place} cannot be loaded: {in_one_line(error)}{hint}") from error


def _describe_parent(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
