"""Images: read from a path, a data URI or bytes, and the processor that makes pixels of them."""

import base64
import binascii
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, PretrainedConfig

from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.hub import describe_unreachable, offline_unless_reachable

_DATA_URI = "data:image/"
_BACKEND = "pil"  # the same pixels on every machine, whatever else is installed


def read_source(value: Any) -> tuple[bytes, str]:
    """The bytes of an image and nothing, or nothing and its path.

    Args:
        value: A path, a data URI, bytes, or a dict of `bytes` and `path`, as datasets has images.

    Raises:
        ValueError: It is none of these; the message is the rest of a sentence.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith(_DATA_URI):
        try:
            return base64.b64decode(value.partition("base64,")[2], validate=True), ""
        except binascii.Error as error:
            raise ValueError(f"holds a data URI that is no base64: {shorten(value)}") from error
    if isinstance(value, str) and value:
        return b"", value
    if isinstance(value, (bytes, bytearray)) and value:
        return bytes(value), ""
    raise ValueError(f"holds no image but {shorten(value)}; allowed: a path, a data URI, or bytes")


def explain_fault(content: bytes, path: str, *, decodes: bool) -> str | None:
    """Why an image cannot be read, as the rest of a sentence; None: it can.

    Args:
        content, path: From `read_source`.
        decodes: All of it is decoded; else its first bytes are read.
    """
    from PIL import Image

    shown = path or "the bytes"
    try:
        with Image.open(path or BytesIO(content)) as image:
            if decodes:
                image.load()
    except FileNotFoundError:
        return f"names the image {shown}, and there is no such file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"has an image that cannot be read: {in_one_line(error)}"
    return None


def decode(content: bytes, path: str) -> Any:
    """The PIL image in RGB, upright as its camera noted. content, path: from `read_source`."""
    from PIL import Image, ImageOps

    with Image.open(path or BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def load_processor(name_or_path: str, *, trust_remote_code: bool) -> Any:
    """The image processor of a model in a local folder, or of a hub id. Raises UserError."""
    check_pillow()
    source, place = str(Path(name_or_path).expanduser()), f"image processor {name_or_path}"
    is_folder = Path(source).is_dir()
    reason = None if is_folder else describe_unreachable()
    with offline_unless_reachable() as reachable:
        try:
            return AutoImageProcessor.from_pretrained(
                source if is_folder else name_or_path, backend=_BACKEND, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # files of somebody else's may make transformers raise anything
            if reason is not None and not reachable:
                told = f"{reason} and it is not in the cache; name a local folder"
            else:
                told = f"it cannot be loaded: {in_one_line(error)}"
            hint = "; model.trust_remote_code=true lets its Python code run" if "trust_remote_code" in told else ""
            raise UserError(f"{place}: {told}{hint}") from error


def make_processor(config: PretrainedConfig) -> Any:
    """The image processor of a new model: with the usual values for its type, and the size of its images."""
    check_pillow()
    known = transformers.IMAGE_PROCESSOR_MAPPING
    if type(config) not in known:
        raise UserError(
            f"model.type: transformers has no image processor for a {config.model_type}; name one in model.tokenizer"
        )
    size = getattr(config, "image_size", None)
    sides = [size, size] if isinstance(size, int) else size
    given = {} if sides is None else {"size": {"height": sides[0], "width": sides[1]}}
    return known[type(config)][_BACKEND](**given)


def check_pillow() -> None:
    """Raise UserError if the library that reads images is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UserError("task.name: a task on images needs the package pillow: pip install pillow") from error
