"""Converts a model of transformers to ONNX, by transformers' exporter, and runs it by ONNX Runtime."""

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
_IN_ONE_FILE = 1_500_000_000  # bytes of weights: a protobuf file holds at most 2 GB
_SYMBOL = re.compile(r"\bs\d+\b")  # torch's name of a dynamic size

Answers = dict[str, np.ndarray]


def check_packages() -> list[str]:
    """Return the missing packages, with the remedy."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    packages = " ".join(missing)
    message = f"ONNX needs the packages {', '.join(missing)}: pip install {packages}, or trainer_loop[onnx]"
    problems = [message] if missing else []
    # transformers 5.20 has another interface.
    if not (find_spec("transformers.exporters") and find_spec("transformers.exporters.metadata")):
        problems.append("ONNX needs a newer exporter of transformers: pip install 'transformers>=5.23'")
    return problems


def make_program(model: nn.Module, inputs: Mapping[str, Tensor], axes: Sequence[str]) -> Any:
    """Trace a model and convert it to ONNX.

    Args:
        model: In evaluation mode, on the CPU.
        inputs: Example inputs, with a length of at least 2 along each axis.
        axes: The names of the first axes of all inputs, which are dynamic. Other axes have fixed lengths.

    Returns:
        An `onnx_ir.Model` without stack traces, which have paths of this machine.

    Raises:
        UserError: The model cannot be traced, or has operations that ONNX does not have.
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
    """Hide the output and the logs of torch and transformers; their errors are raised."""
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
    """Name dynamic sizes after their axes, instead of torch's s18 and s41."""
    import onnx_ir

    names = {str(size.value): axis for value in graph.inputs for size, axis in zip(value.shape, axes, strict=False)}
    node_outputs = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *node_outputs):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else str(size.value) for size in value.shape]
            named = [
                size if isinstance(size, int) else _SYMBOL.sub(lambda match: names.get(match[0], match[0]), size)
                for size in sizes
            ]
            value.shape = onnx_ir.Shape(named)


def write_program(program: Any, path: Path) -> None:
    """Write a program. Weights that are too large for one file go to a second file, `model.onnx.data`."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, path, external_data=f"{path.name}.data" if size > _IN_ONE_FILE else None)


class OnnxModel:
    """Runs an ONNX file on the CPU.

    `inputs` has the names of the inputs, each with the names or sizes of its axes. `outputs` has those of the outputs.
    """

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the errors of ONNX Runtime have no common class
            raise UserError(f"ONNX Runtime cannot load what was written: {in_one_line(error)}") from error
        self.inputs = {value.name: list(value.shape) for value in self._session.get_inputs()}
        self.outputs = {value.name: list(value.shape) for value in self._session.get_outputs()}

    def answer(self, inputs: Mapping[str, Tensor]) -> Answers:
        """Run the model; returns all outputs by name."""
        arrays = {name: inputs[name].numpy() for name in self.inputs}
        try:
            values = self._session.run(list(self.outputs), arrays)
        except Exception as error:  # as above
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items())
            raise UserError(f"ONNX Runtime cannot answer {sizes}: {in_one_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))
