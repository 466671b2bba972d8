"""Reads the lines of text files from any byte, and describes their delimiter, quoting and encoding."""

import codecs
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer_loop.errors import UserError

_SUFFIX_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_READ_BYTES = 1 << 20
_SCANNED_BYTES = 1 << 28  # after the first byte that cannot be decoded
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
# Codecs with a fixed byte order decode the mark as a character, so `Lines` skips it.
_BYTE_ORDER_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
_CODECS_BY_MARK = {"utf-16": ("utf-16-le", "utf-16-be"), "utf-32": ("utf-32-le", "utf-32-be"), "utf-8-sig": ("utf-8",)}
_UNDEFINED_IN_1252 = b"\x81\x8d\x8f\x90\x9d"


@dataclass(frozen=True)
class TextFormat:
    """Format of text files.

    Attributes:
        delimiter: Character between the fields of .csv and .tsv files; None: a comma or a tab, by the suffix.
        quoting: `double`: a field may be in double quotes (RFC 4180). `none`: quotes are ordinary characters. `auto`:
            like `double`, but files whose quotes seem to be ordinary characters are rejected.
        encoding: A name that Python knows; None: UTF-8, with or without a byte order mark.
    """

    delimiter: str | None = None
    quoting: str = "auto"
    encoding: str | None = None

    def delimiter_of(self, path: str) -> str:
        return self.delimiter or _SUFFIX_DELIMITERS.get(Path(path).suffix.lower(), ",")

    def fingerprint(self, path: str) -> str:
        """Return text for the settings that change the rows of this file; empty for the defaults."""
        parts = []
        if Path(path).suffix.lower() in _SUFFIX_DELIMITERS:
            delimiter = self.delimiter_of(path)
            parts += [f"delimiter {delimiter}"] if delimiter != DEFAULT_FORMAT.delimiter_of(path) else []
            parts += ["no quotes"] if self.quoting == "none" else []
        codec = "utf-8" if self.encoding is None else codecs.lookup(self.encoding).name
        return " ".join(parts + ([f"encoding {codec}"] if codec not in ("utf-8", "utf-8-sig") else []))


DEFAULT_FORMAT = TextFormat()


class Lines:
    """Iterates over the lines of a text file, with their line breaks, from any line.

    Args:
        path: Path of the file.
        encoding: A name that Python knows; None: UTF-8.
        mark: Start after this `line` and `offset`; None: at the first line.
        any_break: A single carriage return ends a line too.

    Attributes:
        number: Count of lines that were read.
        offset: Count of bytes that were read.

    Raises:
        UserError: The bytes cannot be decoded, or no line starts at the mark.
    """

    def __init__(
        self, path: str, encoding: str | None, mark: Mapping[str, int] | None = None, *, any_break: bool = False
    ):
        self.number, self.offset = (0, 0) if mark is None else (mark["line"], mark["offset"])
        self._path = path
        self._encoding = encoding
        self._any_break = any_break

    def __iter__(self) -> Iterator[str]:
        with Path(self._path).open("rb") as file:
            codec = _find_codec(file, self._encoding)
            self._seek(file, codec)
            for raw in _split_lines(file, "\n".encode(codec)):
                try:
                    text = raw.decode(codec)
                except UnicodeDecodeError as error:
                    place = self.number + 1, self.offset
                    raise UserError(_explain_bytes(self._path, self._encoding, codec, *place, error)) from error
                if self.number == 0 and self._encoding is None and "\0" in text:
                    order = "be" if text.startswith("\0") else "le"
                    raise UserError(
                        f"{self._path} line 1 has characters of number 0: the file seems to be UTF-16; set "
                        f"data.files.encoding=utf-16-{order}"
                    )
                has_breaks = self._any_break and "\r" in text and "\r" in text.removesuffix("\n").removesuffix("\r")
                for line in _LINE.findall(text) if has_breaks else [text]:
                    self.number += 1
                    self.offset += len(line.encode(codec)) if has_breaks else len(raw)
                    yield line

    def _seek(self, file: BinaryIO, codec: str) -> None:
        """Go to the line that starts at the offset. Raises UserError if no line starts there any more."""
        order_mark = _BYTE_ORDER_MARKS.get(codec, b"")
        file.seek(0)
        first_byte = len(order_mark) if order_mark and file.read(len(order_mark)) == order_mark else 0
        self.offset = max(self.offset, first_byte)
        if self.offset > first_byte:
            breaks = [character.encode(codec) for character in ("\n", "\r" if self._any_break else "\n")]
            file.seek(self.offset - len(breaks[0]))
            last_break = file.read(len(breaks[0]))
            # The last line may have no line break.
            if last_break not in breaks and (len(last_break) < len(breaks[0]) or file.read(1)):
                raise UserError(
                    f"{self._path} was changed since the checkpoint: no line begins at byte {self.offset:,} of it any "
                    "more"
                )
        file.seek(self.offset)


def _find_codec(file: BinaryIO, encoding: str | None) -> str:
    """Return a codec with a fixed byte order, which can decode single lines."""
    name = "utf-8" if encoding is None else codecs.lookup(encoding).name
    candidates = _CODECS_BY_MARK.get(name, (name,))
    start = file.read(4)
    matches = [codec for codec in candidates if start.startswith(_BYTE_ORDER_MARKS.get(codec, b"\0\0\0\0\0"))]
    return matches[0] if matches else candidates[sys.byteorder == "big"] if len(candidates) > 1 else candidates[0]


def _split_lines(file: BinaryIO, newline: bytes) -> Iterator[bytes]:
    """Yield lines that end with these bytes, at a multiple of their length from the start of the line."""
    if newline == b"\n":
        yield from file
        return
    rest = b""
    while chunk := file.read(_READ_BYTES):
        rest += chunk
        start = end = 0
        while (end := rest.find(newline, end)) >= 0:
            if (end - start) % len(newline):
                end += 1
                continue
            end += len(newline)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


# ------------------------------------------------------------------------------------------------- bytes and their text


def _explain_bytes(
    path: str, encoding: str | None, codec: str, number: int, offset: int, error: UnicodeDecodeError
) -> str:
    """Return the message for a line that cannot be decoded, with a likely encoding. `offset` is that of the line."""
    with Path(path).open("rb") as file:
        sample = file.read(_READ_BYTES)
        file.seek(offset)
        sample += file.read(_READ_BYTES) if offset >= _READ_BYTES else b""
    likely = suggest_encoding(sample)
    if encoding is None and likely.startswith(("utf-16", "utf-32")):
        return (
            f"{path} is {likely.upper()}; set data.files.encoding={likely}, or save it as UTF-8, for example with "
            f"`iconv -f {likely} -t utf-8`"
        )
    byte = error.object[error.start]
    where = f"{path} line {number}: byte 0x{byte:02x} at offset {offset + error.start} of the file is not"
    more = _count_more(path, codec, offset + len(error.object))
    if encoding is not None:
        remedy = "null, for it seems to be UTF-8" if likely == "utf-8" else likely
        return f"{where} {encoding}{more}; set data.files.encoding={remedy}"
    if likely == "utf-8":
        return f"{where} UTF-8{more}, as other characters of the file are; correct the line"
    return (
        f"{where} UTF-8{more}; set data.files.encoding={likely}, or save the file as UTF-8, for example with "
        f"`iconv -f {likely} -t utf-8`"
    )


def _count_more(path: str, codec: str, offset: int) -> str:
    """Return text with the count of further lines that cannot be decoded. Very large files are not read to the end."""
    num_bad = 0
    with Path(path).open("rb") as file:
        file.seek(offset)
        for raw in _split_lines(file, "\n".encode(codec)):
            num_bad += not _can_decode(raw, codec)
            offset += len(raw)
            if offset > _SCANNED_BYTES:
                break
    return f" (and {num_bad:,} more lines are not)" if num_bad else ""


def suggest_encoding(sample: bytes) -> str:
    """Return the most likely encoding of a text, from its byte order mark and the pattern of its bytes."""
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):  # the mark of UTF-32 starts with that of UTF-16
        if sample.startswith(_BYTE_ORDER_MARKS[name]):
            return name[:6]
    zeros = [sample[first::2].count(0) for first in (0, 1)]
    if sum(zeros) * 5 > len(sample):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    text = sample.decode("utf-8", errors="replace")
    beyond_ascii = [character for character in text if character > "\x7f"]
    if beyond_ascii.count("\ufffd") * 2 <= len(beyond_ascii):
        return "utf-8"
    # Western texts have single bytes above 0x7f. Chinese texts have long runs of them, two for each character.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", sample)]
    in_pairs = sum(length for length in runs if length >= 4)
    if in_pairs * 2 > sum(runs) and _can_decode(sample, "gb18030", may_be_cut=True):
        return "gb18030"
    return "latin-1" if any(byte in sample for byte in _UNDEFINED_IN_1252) else "windows-1252"


def _can_decode(raw: bytes, codec: str, *, may_be_cut: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(raw, final=not may_be_cut)
    except UnicodeDecodeError:
        return False
    return True


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8. Half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
