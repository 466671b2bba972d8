"""What the libraries say and the user has no use for is not shown; their errors are."""

import logging
import warnings


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
    # accelerate still calls an option of DDP by its old name.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    # Of torch's own: how its schedules count before the first step, and barriers that guess their device.
    warnings.filterwarnings("ignore", module=r"torch\.(optim\.lr_scheduler|distributed\.)")
