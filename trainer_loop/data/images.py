"""Images: read from a path, a data URI or bytes, and the processor that makes pixels of them."""

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import transformers
from transformers import PretrainedConfig

from trainer_loop.data.fingerprint import digest
from trainer_loop.data.pretrained import load_pretrained
from trainer_loop.data.wording import shorten
from trainer_loop.errors import UserError, in_one_line

_DATA_URI = "data:image/"
_UNBOUNDED = ("I", "F")  # modes of PIL with 32 bits a value
_FORMATS_OF_STRANGERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow starts other programs for some of the others
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
    return {"bytes": datasets.features.image.image_to_bytes(image), "path": None}


def as_plain(value: Any) -> Any:
    """What a scalar of numpy or torch, or an image of PIL, stands for."""
    if type(value).__module__.startswith("PIL."):
        return spell_image(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def list_paths(column: pa.ChunkedArray) -> list[str | None]:
    """The paths in a column of images, without reading the bytes of images that are in it; None for these."""
    if pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        has_bytes = pc.is_valid(pc.struct_field(column, "bytes"))
        column = pc.if_else(has_bytes, pa.scalar(None, pa.string()), pc.struct_field(column, "path"))
    elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [None] * len(column)
    paths: list[str | None] = column.to_pylist()
    return paths


def fingerprint_files(paths: Iterable[str | None]) -> str:
    """The sizes of these files as a hash: a file that changes mostly changes its size."""
    sizes = (Path(path).stat().st_size if path is not None and _is_file(path) else -1 for path in paths)
    return digest(np.fromiter(sizes, dtype=np.int64).tobytes())


def _is_file(path: str) -> bool:
    try:
        return not path.startswith(_DATA_URI) and Path(path).is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def load_processor(name_or_path: str, *, trust_remote_code: bool) -> Any:
    """The image processor of a model in a local folder, or of a hub id. Raises UserError."""
    check_pillow()
    options = {"backend": _BACKEND, "trust_remote_code": trust_remote_code}
    return load_pretrained(transformers.AutoImageProcessor, name_or_path, noun="image processor", options=options)


def make_processor(config: PretrainedConfig) -> Any:
    """The image processor of a new model: with the usual values for its type, and the size of its images."""
    check_pillow()
    from PIL import Image

    known = transformers.IMAGE_PROCESSOR_MAPPING
    if type(config) not in known or _BACKEND not in known[type(config)]:
        raise UserError(
            f"model.type: transformers has no image processor for a {config.model_type}; name one in model.tokenizer"
        )
    make, size = known[type(config)][_BACKEND], getattr(config, "image_size", None)
    if size is None:
        return make()
    height, width = (size, size) if isinstance(size, int) else size
    default = make()
    whole = {"height": height, "width": width}
    given = {"size": {"shortest_edge": min(height, width)} if "shortest_edge" in (default.size or {}) else whole}
    processor = make(**given, **({"crop_size": whole} if getattr(default, "crop_size", None) else {}))
    made = processor(images=Image.new("RGB", (2 * width, 3 * height)), return_tensors="pt")["pixel_values"].shape
    if tuple(made[-2:]) != (height, width):
        raise UserError(
            f"model.type: the image processor of a {config.model_type} makes images of {made[-2]} x {made[-1]}, and "
            f"its config says {height} x {width}; name a processor in model.tokenizer"
        )
    return processor


def check_pillow() -> None:
    """Raise UserError if the library that reads images is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UserError("task.name: a task on images needs the package pillow: pip install pillow") from error
