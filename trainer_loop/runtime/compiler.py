"""torch.compile for a model whose input shapes change at every step."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from trainer_loop.errors import UserError

# Training, evaluation and single rows need up to eight graphs; a model that needs many more would compile for ever.
_MOST_GRAPHS = 32


def check_compiler(device_type: str) -> None:
    """Raise UserError where torch.compile lacks what it needs here: a compiler, triton or the headers of Python."""
    remedy = "or set model.compile=false"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device_type == "cuda" and find_spec("triton") is None:
        raise UserError(
            f"model.compile: triton, which makes code for the GPU, is missing: pip install triton, {remedy}"
        )
    if device_type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"model.compile: there is no C++ compiler {compiler}: install one (apt-get install g++), name it in the "
            f"environment variable CXX, {remedy}"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"model.compile: the headers of Python are not in {headers}: install them (apt-get install python3-dev), "
            f"{remedy}"
        )


def compile_model(model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the forward pass in place, for any rows and width. The model raises UserError for too many graphs."""
    import torch._dynamo

    settings = torch._dynamo.config
    settings.recompile_limit = _MOST_GRAPHS
    settings.fail_on_recompile_limit_hit = True  # otherwise torch continues without compiling and does not report it
    settings.specialize_float = True  # numbers in the model's code are constants; only shapes vary
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        settings.optimize_ddp = False  # DDP's buckets cannot split a region that is recomputed
    model.compile(dynamic=True, backend=backend)
    compiled = model._compiled_call_impl
    assert compiled is not None

    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return compiled(*arguments, **keywords)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise UserError(
                f"model.compile: {type(model).__name__} was compiled {_MOST_GRAPHS} times and needs to be again; the "
                "warning of torch above names what changes from batch to batch; set model.compile=false"
            ) from error

    model._compiled_call_impl = call
