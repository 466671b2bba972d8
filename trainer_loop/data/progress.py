"""Hide the progress bars of the datasets library."""

import contextlib
from collections.abc import Iterator

import datasets
from datasets import config


@contextlib.contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Hide the bars of datasets inside, unless `shown`; a user's HF_DATASETS_DISABLE_PROGRESS_BARS goes first."""
    if shown or config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
