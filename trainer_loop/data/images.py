"""Reads and checks images from a path, a data URI or bytes."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

DATA_URI = "data:image/"
_UNBOUNDED = ("I", "F")  # modes of PIL with 32 bits per value
_SAFE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow starts other programs for some other formats


def read_source(value: Any) -> tuple[bytes, str]:
    """Return the bytes of an image and an empty path, or no bytes and its path.

    Args:
        value: A path, a data URI, bytes, or a dict of `bytes` and `path`, as in datasets.

    Raises:
        ValueError: The value is none of these; the message is the end of a sentence.
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
    """Return why an image cannot be read, as the end of a sentence; None if it can be read.

    Args:
        content: From `read_source`.
        path: From `read_source`.
        decodes: Decode the whole image; else only its header is read.
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
    """Return why an image from an untrusted sender is not decoded, as the end of a sentence; None if it may be."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=_SAFE_FORMATS) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return f"holds bytes that are no image; allowed: {', '.join(_SAFE_FORMATS)}"
    if width * height > max_pixels:
        return f"has {width * height:,} pixels ({width} x {height}); allowed: {max_pixels:,}"
    return None


def decode(content: bytes, path: str) -> Any:
    """Return the PIL image in RGB, rotated as its EXIF data say. `content` and `path` are from `read_source`.

    Raises UserError if the image was damaged after the check.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path or BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
    except OSError as error:
        raise UserError(f"the image {path or 'in the data'} cannot be read any more: {in_one_line(error)}") from error
    if upright.mode.startswith("I;16"):  # `convert` would clip the values at 255
        upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
    return upright.convert("RGB")


def spell_image(image: Any) -> dict[str, Any]:
    """Convert a PIL image to the form that datasets stores."""
    from datasets.features.image import image_to_bytes

    return {"bytes": image_to_bytes(image), "path": None}


def as_plain(value: Any) -> Any:
    """Convert a scalar of numpy or torch, or a PIL image, to a plain value; return other values unchanged."""
    if type(value).__module__.startswith("PIL."):
        return spell_image(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
