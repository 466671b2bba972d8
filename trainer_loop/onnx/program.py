"""A model of transformers as an ONNX program, through transformers' own exporter, and its answers by ONNX Runtime."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.memory import is_out_of_memory

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_IN_ONE_FILE = 1_500_000_000  # bytes of weights: a file of protobuf holds 2 GB
_SYMBOL = re.compile(r"\bs\d+\b")  # torch's name of a size that varies

Answers = dict[str, np.ndarray]


def check_packages() -> list[str]:
    """What is not installed and needed, with the remedy."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    told = f"ONNX needs the packages {', '.join(missing)}: pip install {' '.join(missing)}, or trainer_loop[onnx]"
    problems = [told] if missing else []
    if not (find_spec("transformers.exporters") and find_spec("transformers.exporters.metadata")):  # 5.20 had others
        problems.append("ONNX needs a newer exporter of transformers: pip install 'transformers>=5.23'")
    return problems


def make_program(model: nn.Module, inputs: Mapping[str, Tensor], axes: Sequence[str]) -> Any:
    """Trace a model.

    Args:
        model: In evaluation mode, on the CPU.
        inputs: What it is called with, at least 2 long along each axis.
        axes: The names of the first axes of all inputs; their lengths vary. Those of other axes are fixed.

    Returns:
        An `onnx_ir.Model` without traces of the machine that it was made on.

    Raises:
        UserError: The model cannot be traced, or has operations that ONNX lacks.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    shapes = {name: dict.fromkeys(range(len(axes)), Dim.DYNAMIC) for name in inputs}
    try:
        with _quiet():
            exported = OnnxExporter().export(model, dict(inputs), OnnxConfig(dynamic=True, dynamic_shapes=shapes))
    except Exception as error:  # the code of a model may make torch raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"a {type(model).__name__} cannot be written as ONNX: {type(error).__name__}: {in_one_line(error)}"
        ) from error
    program = exported.program
    ClearMetadataAndDocStringPass()(program)
    _name_axes(program.graph, axes)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch and transformers print and log about an export; their errors are raised."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _name_axes(graph: Any, axes: Sequence[str]) -> None:
    """Give the sizes that vary the names of their axes, in place of torch's s18 and s41."""
    import onnx_ir

    names = {str(size.value): axis for value in graph.inputs for size, axis in zip(value.shape, axes, strict=False)}
    of_nodes = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *of_nodes):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else str(size.value) for size in value.shape]
            named = [
                size if isinstance(size, int) else _SYMBOL.sub(lambda found: names.get(found[0], found[0]), size)
                for size in sizes
            ]
            value.shape = onnx_ir.Shape(named)


def write_program(program: Any, path: Path) -> None:
    """Write a program; weights that are too many for one file go to a second one beside it, `model.onnx.data`."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, path, external_data=f"{path.name}.data" if size > _IN_ONE_FILE else None)


class OnnxModel:
    """A file at work on the CPU.

    inputs: names of what it reads, each with the names or sizes of its axes. outputs: those of its answers.
    """

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the errors of ONNX Runtime have no class in common
            raise UserError(f"ONNX Runtime cannot load what was written: {in_one_line(error)}") from error
        self.inputs = {value.name: list(value.shape) for value in self._session.get_inputs()}
        self.outputs = {value.name: list(value.shape) for value in self._session.get_outputs()}

    def answer(self, inputs: Mapping[str, Tensor]) -> Answers:
        """All outputs by name."""
        given = {name: inputs[name].numpy() for name in self.inputs}
        try:
            values = self._session.run(list(self.outputs), given)
        except Exception as error:  # as above
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
            raise UserError(f"ONNX Runtime cannot answer {sizes}: {in_one_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))
