"""torch.compile for a model whose input shapes change at every step."""

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_loop.errors import UserError

# Training, evaluation and single rows need up to eight graphs; a model that needs many more would compile for ever.
_MOST_GRAPHS = 32


def check_compiler(device_type: str) -> None:
    """Raise UserError if torch.compile cannot work here: it needs a compiler, triton or the headers of Python."""
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
    """Compile the forward pass in place, for any number of rows and any width.

    The model raises UserError if it needs too many graphs.
    """
    _configure([model])
    model.compile(dynamic=True, backend=backend)
    model._compiled_call_impl = _refuse_many_graphs(model._compiled_call_impl, type(model).__name__, _MOST_GRAPHS)


def compile_layers(layers: Sequence[nn.Module], *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile these layers of a sharded model in place. The hooks that gather their weights are not compiled.

    Layers of one class share graphs, unless the code depends on numbers of a layer, such as its position.
    """
    _configure(layers)
    for layer in layers:
        compiled = torch.compile(layer.forward, dynamic=True, backend=backend)
        layer.forward = _refuse_many_graphs(compiled, type(layer).__name__, _MOST_GRAPHS * len(layers))


def _configure(models: Sequence[nn.Module]) -> None:
    import torch._dynamo  # it takes a second

    settings = torch._dynamo.config
    settings.recompile_limit = _MOST_GRAPHS * len(models)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, settings.recompile_limit)
    settings.fail_on_recompile_limit_hit = True  # otherwise torch continues without compiling and does not report it
    settings.specialize_float = True  # numbers in the model's code are constants; only shapes vary
    if any(getattr(module, "gradient_checkpointing", False) for model in models for module in model.modules()):
        settings.optimize_ddp = False  # DDP's buckets cannot split a region that is recomputed


def _refuse_many_graphs(compiled: Any, name: str, limit: int) -> Callable[..., Any]:
    import torch._dynamo

    @functools.wraps(compiled)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return compiled(*arguments, **keywords)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise UserError(
                f"model.compile: {name} was compiled {limit} times and needs to be again; the "
                "warning of torch above names what changes from batch to batch; set model.compile=false"
            ) from error

    return call
