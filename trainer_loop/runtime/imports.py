"""Imports that take seconds."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Disable garbage collection during the first import of torch, transformers and libraries built on them.

    The imports create 800,000 permanent objects. The collector would check these again and again: 1.6 s of 6 s of
    processor time. Later collections skip them too. If torch is already imported, this does nothing.
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
