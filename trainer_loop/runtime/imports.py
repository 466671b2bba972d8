"""Imports that take seconds."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Leave garbage collection out of the first import of torch, transformers and what is built on them.

    They make 800,000 objects that stay. The collector would look through these again and again: 1.6 s of 6 s of
    processor time. Later collections leave them out, too. Where torch was imported already, this does nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
