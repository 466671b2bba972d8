"""What the libraries say and the user has no use for is not shown; their errors are."""

import logging
import warnings

_LIBRARIES = (
    *("accelerate", "bitsandbytes", "datasets", "evaluate", "huggingface_hub", "multiprocess", "numpy", "pandas"),
    *("peft", "pyarrow", "sklearn", "tokenizers", "torch", "trainer_loop", "transformers"),
)


def quieten_loggers() -> None:
    """Only errors of libraries that log while they are imported; before that, and without importing any."""
    for name in ("accelerate", "bitsandbytes", "evaluate", "huggingface_hub", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quieten_libraries() -> None:
    """Only errors of transformers, accelerate, datasets and the like; no bars while weights load."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    quieten_loggers()
    # Their warnings are for whoever calls them, which is this package; those of the user's own code are shown.
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})(\.|$)")
