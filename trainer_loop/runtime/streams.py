"""Standard output and standard error that may fail: a command continues without them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from trainer_loop.errors import UserError, printable


class SafeStream:
    """A text stream that drops text that cannot be written: the disk is full, or the reader or terminal is closed."""

    def __init__(self, stream: "TextIO | SafeStream | None"):
        self._stream: Any = stream._stream if isinstance(stream, SafeStream) else stream
        self.fault: str | None = None  # why text was dropped; None if everything was written

    def write(self, text: str) -> int:
        if self._stream is None:
            self.fault = "it is closed"
            return len(text)
        try:
            self._stream.write(_encodable(text, self._stream))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.fault = _reason(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self.fault = _reason(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # during a copy of the object
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Until the block ends, no write to standard output or standard error raises an error, in any code.

    At the end, unwritten text is dropped. Otherwise the interpreter would try to write it again and change the exit
    code.
    """
    fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(before[0]), SafeStream(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            drop_unwritten(stream)


def report(error: UserError, *, speaker: str = "") -> None:
    """Print the problems of an error on standard error, one line each."""
    stream = SafeStream(sys.stderr)
    for problem in error.problems:
        print(f"{speaker}error: {printable(problem)}", file=stream, flush=True)


def put_out(text: str) -> None:
    """Print the result of a command. A reader that closed the pipe (`| head`) is not an error.

    Raises:
        UserError: if standard output cannot be written, so the result is lost.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed; open it, or send it to a file")
    try:
        sys.stdout.write(_encodable(text, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        drop_unwritten(sys.stdout)
    except (OSError, ValueError) as error:
        drop_unwritten(sys.stdout)
        raise UserError(f"standard output cannot be written: {_reason(error)}; send the output elsewhere") from error


def _encodable(text: str, stream: Any) -> str:
    """Replace characters that the encoding of a stream lacks by escape sequences."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        pass
    return text


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def fill_standard_descriptors() -> None:
    """Open /dev/null for closed descriptors 0, 1 and 2. Otherwise the next opened file would become the console."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # this descriptor is the lowest free number


def drop_unwritten(stream: TextIO | None) -> None:
    """Drop the text that a stream still holds if it cannot be written."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, stream.fileno())
            os.close(null_device)
