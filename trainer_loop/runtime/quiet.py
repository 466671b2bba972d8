"""Hides messages of the libraries that do not concern the user; their errors are shown."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LIBRARIES = (
    *("accelerate", "bitsandbytes", "datasets", "evaluate", "huggingface_hub", "multiprocess", "numpy", "pandas"),
    *("peft", "pyarrow", "sklearn", "tokenizers", "torch", "trainer_loop", "transformers"),
)


def quieten_loggers() -> None:
    """Show only errors of libraries that log during their import, without importing them."""
    for name in ("accelerate", "bitsandbytes", "evaluate", "huggingface_hub", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quieten_libraries() -> None:
    """Show only errors of transformers, accelerate, datasets and others, and no progress bars while weights load."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    quieten_loggers()
    # The libraries warn their caller, which is this package. Warnings of the user's code are still shown.
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})(\.|$)")


@contextlib.contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Hide the progress bars of datasets inside the block unless `shown`.

    The variable HF_DATASETS_DISABLE_PROGRESS_BARS takes precedence.
    """
    import datasets

    if shown or datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
