"""How text files are written (delimiter, quoting, encoding), and their lines, from any byte on."""

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
_SCANNED_BYTES = 1 << 28  # behind the first byte that cannot be decoded
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
# Python reads these with a byte order mark only by names that do not say the order.
_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
_BY_MARK = {"utf-16": ("utf-16-le", "utf-16-be"), "utf-32": ("utf-32-le", "utf-32-be"), "utf-8-sig": ("utf-8",)}
_UNDEFINED_IN_1252 = b"\x81\x8d\x8f\x90\x9d"


@dataclass(frozen=True)
class TextFormat:
    """How text files are written.

    delimiter: one character between the fields of .csv and .tsv files; None: a comma or a tab, by the suffix.
    quoting: double: a field may stand in double quotes (RFC 4180). none: quotes are ordinary characters. auto: double,
    and a file is refused whose quotes seem to be ordinary characters.
    encoding: a name that Python knows; None: UTF-8, with or without a byte order mark.
    """

    delimiter: str | None = None
    quoting: str = "auto"
    encoding: str | None = None

    def delimiter_of(self, path: str) -> str:
        return self.delimiter or _SUFFIX_DELIMITERS.get(Path(path).suffix.lower(), ",")

    def fingerprint(self, path: str) -> str:
        """What the rows of this file depend on beside its bytes; empty for the default."""
        parts = []
        if Path(path).suffix.lower() in _SUFFIX_DELIMITERS:
            delimiter = self.delimiter_of(path)
            parts += [f"delimiter {delimiter}"] if delimiter != DEFAULT_FORMAT.delimiter_of(path) else []
            parts += ["no quotes"] if self.quoting == "none" else []
        codec = "utf-8" if self.encoding is None else codecs.lookup(self.encoding).name
        return " ".join(parts + ([f"encoding {codec}"] if codec not in ("utf-8", "utf-8-sig") else []))


DEFAULT_FORMAT = TextFormat()


class Lines:
    """The lines of a text file, each with its line break, from any line on.

    number, offset: lines and bytes that were read. mark: the `line` and `offset` behind which to begin; None: all.
    any_break: a carriage return alone ends a line too. Raises UserError where bytes are no text.
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
        """Go to the line that begins at the offset. Raises UserError where none does any more."""
        mark = _MARKS.get(codec, b"")
        file.seek(0)
        begin = len(mark) if mark and file.read(len(mark)) == mark else 0
        self.offset = max(self.offset, begin)
        if self.offset > begin:
            breaks = [character.encode(codec) for character in ("\n", "\r" if self._any_break else "\n")]
            file.seek(self.offset - len(breaks[0]))
            before = file.read(len(breaks[0]))
            # The last line may end without a line break.
            if before not in breaks and (len(before) < len(breaks[0]) or file.read(1)):
                raise UserError(
                    f"{self._path} was changed since the checkpoint: no line begins at byte {self.offset:,} of it any "
                    "more"
                )
        file.seek(self.offset)


def _find_codec(file: BinaryIO, encoding: str | None) -> str:
    """The codec by which lines can be decoded one by one: one that knows the order of the bytes."""
    name = "utf-8" if encoding is None else codecs.lookup(encoding).name
    choices = _BY_MARK.get(name, (name,))
    start = file.read(4)
    marked = [choice for choice in choices if start.startswith(_MARKS.get(choice, b"\0\0\0\0\0"))]
    return marked[0] if marked else choices[sys.byteorder == "big"] if len(choices) > 1 else choices[0]


def _split_lines(file: BinaryIO, newline: bytes) -> Iterator[bytes]:
    """Lines that end with these bytes, which stand at a multiple of their number from the line's beginning."""
    if newline == b"\n":
        yield from file
        return
    rest = b""
    while chunk := file.read(_READ_BYTES):
        rest += chunk
        start = found = 0
        while (found := rest.find(newline, found)) >= 0:
            if (found - start) % len(newline):
                found += 1
                continue
            found += len(newline)
            yield rest[start:found]
            start = found
        rest = rest[start:]
    if rest:
        yield rest


# ------------------------------------------------------------------------------------------------- bytes and their text


def _explain_bytes(
    path: str, encoding: str | None, codec: str, number: int, offset: int, error: UnicodeDecodeError
) -> str:
    """A line whose bytes are no text, and the encoding by which they may be. offset: of the line in the file."""
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
    """How many further lines cannot be decoded either; of a very large file not all are looked at."""
    bad = 0
    with Path(path).open("rb") as file:
        file.seek(offset)
        for raw in _split_lines(file, "\n".encode(codec)):
            bad += not _decodes(raw, codec)
            offset += len(raw)
            if offset > _SCANNED_BYTES:
                break
    return f" (and {bad:,} more lines are not)" if bad else ""


def suggest_encoding(sample: bytes) -> str:
    """The likeliest encoding of a text, by its byte order mark and the pattern of its bytes."""
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):  # the mark of UTF-32 begins with one of UTF-16
        if sample.startswith(_MARKS[name]):
            return name[:6]
    zeros = [sample[first::2].count(0) for first in (0, 1)]
    if sum(zeros) * 5 > len(sample):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    text = sample.decode("utf-8", errors="replace")
    beyond_ascii = [character for character in text if character > "\x7f"]
    if beyond_ascii.count("\ufffd") * 2 <= len(beyond_ascii):
        return "utf-8"
    # Western texts have single letters beyond ASCII, Chinese ones characters of two such bytes, one after the other.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", sample)]
    in_pairs = sum(length for length in runs if length >= 4)
    if in_pairs * 2 > sum(runs) and _decodes(sample, "gb18030", may_be_cut=True):
        return "gb18030"
    return "latin-1" if any(byte in sample for byte in _UNDEFINED_IN_1252) else "windows-1252"


def _decodes(raw: bytes, codec: str, *, may_be_cut: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(raw, final=not may_be_cut)
    except UnicodeDecodeError:
        return False
    return True


def is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
