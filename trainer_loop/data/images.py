"""Images: read from a path, a data URI or bytes, and what is wrong with one."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

DATA_URI = "data:image/"
_UNBOUNDED = ("I", "F")  # modes of PIL with 32 bits a value
_FORMATS_OF_STRANGERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow starts other programs for some of the others


def read_source(value: Any) -> tuple[bytes, str]:
    """The bytes of an image and nothing, or nothing and its path.

    Args:
        value: A path, a data URI, bytes, or a dict of `bytes` and `path`, as datasets has images.

    Raises:
        ValueError: It is none of these; the message is the rest of a sentence.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith(DATA_URI):
        try:
            value = base64.b64decode(value.partition(";base64,")[2], validate=True)
        except ValueError as error:
            raise ValueError(f"holds a data URI that is no base64: {shorten(value)}") from error
        if not value:
            raise ValueError("holds a data URI without base64 behind `;base64,`")
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
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path or BytesIO(content)) as image:
            if image.mode in _UNBOUNDED:
                return f"has an image of mode {image.mode}, whose range is not known; save it with 8 or 16 bits a value"
            if decodes:
                image.load()
    except FileNotFoundError:
        return f"names the image {shorten(path)}, and there is no such file"
    except UnidentifiedImageError:
        return f"has {shorten(path) if path else 'bytes'} for an image, which is of no kind that Pillow knows"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"has an image that cannot be read: {in_one_line(error)}"
    return None


def explain_fault_of_strangers(content: bytes, *, max_pixels: int) -> str | None:
    """Why an image of an unknown sender is not decoded, as the rest of a sentence; None: it may be."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=_FORMATS_OF_STRANGERS) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return f"holds bytes that are no image; allowed: {', '.join(_FORMATS_OF_STRANGERS)}"
    if width * height > max_pixels:
        return f"has {width * height:,} pixels ({width} x {height}); allowed: {max_pixels:,}"
    return None


def decode(content: bytes, path: str) -> Any:
    """The PIL image in RGB, upright as its camera noted. content, path: from `read_source`.

    Raises UserError if it was damaged since it was looked at.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path or BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
    except OSError as error:
        raise UserError(f"the image {path or 'in the data'} cannot be read any more: {in_one_line(error)}") from error
    if upright.mode.startswith("I;16"):  # which `convert` would cut off at 255
        upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
    return upright.convert("RGB")


def spell_image(image: Any) -> dict[str, Any]:
    """A PIL image, as it is now, in the form that datasets has images in."""
    from datasets.features.image import image_to_bytes

    return {"bytes": image_to_bytes(image), "path": None}


def as_plain(value: Any) -> Any:
    """What a scalar of numpy or torch, or an image of PIL, stands for."""
    if type(value).__module__.startswith("PIL."):
        return spell_image(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
