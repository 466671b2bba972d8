"""The folder of an ONNX model: the checksums of the model's weights, and the files to push with them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer_loop.errors import in_one_line
from trainer_loop.record.checkpoint_files import compute_checksum
from trainer_loop.record.run_dir import read_json_object, write_json
from trainer_loop.runtime.plain_json import check_fields

MODEL = "model.onnx"
MORE_WEIGHTS = f"{MODEL}.data"  # of a model that is too large for one file
RECORD = "onnx.json"
_PUSHED = (MODEL, MORE_WEIGHTS, RECORD)
_ON_HUB = "onnx"  # the usual folder of ONNX models in a repository
_WEIGHTS = ("*.safetensors", "*.bin")
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class OnnxRecord:
    """How an ONNX model was made.

    Attributes:
        weights: Checksums of the weight files of the source model, by name.
        program: Checksums of the ONNX files, by name.
        difference: The largest difference between the outputs of both models on `rows` rows.
        inputs: The names of the inputs, each with the names of its axes.
    """

    weights: dict[str, str]
    program: dict[str, str]
    difference: float
    tolerance: float
    rows: int
    inputs: dict[str, list[Any]]
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        folder: Path,
        model_dir: Path,
        *,
        difference: float,
        tolerance: float,
        rows: int,
        inputs: Mapping[str, Sequence[Any]],
    ) -> "OnnxRecord":
        """Make the record of the ONNX model in a folder."""
        return cls(
            weights=_hash_weights(model_dir),
            program=_hash_program(folder),
            difference=difference,
            tolerance=tolerance,
            rows=rows,
            inputs={name: list(axes) for name, axes in inputs.items()},
            versions={name: version(name) for name in _PACKAGES},
        )

    @classmethod
    def read(cls, folder: Path) -> "OnnxRecord":
        """Read the record. Raises OSError if it cannot be read, ValueError if it is damaged."""
        record = read_json_object(folder / RECORD)
        check_fields(cls, record)
        return cls(**record)

    def write(self, folder: Path) -> None:
        """Write the record into the folder of the ONNX model."""
        write_json(folder / RECORD, vars(self))


def is_onnx_folder(folder: Path) -> bool:
    """Return whether `python -m trainer_loop.onnx` has written a folder, judging by the names of its files."""
    return (folder / RECORD).is_file()


def find_files_to_push(folder: Path, model_dir: Path, *, again: str) -> tuple[dict[str, Path], str | None]:
    """Return the files of an ONNX model by their paths in the model's repository, and a note if they are left out.

    Args:
        again: The command that makes the folder.
    """
    if not is_onnx_folder(folder):
        return {}, None
    try:
        record = OnnxRecord.read(folder)
        is_of_model, is_whole = record.weights == _hash_weights(model_dir), record.program == _hash_program(folder)
    except (OSError, ValueError) as error:
        return {}, f"{folder} is left out: {in_one_line(error)}; {again} makes it anew"
    if not is_of_model:
        return {}, f"{folder} is left out: it was made of other weights; {again} makes it anew"
    if not is_whole:
        return {}, f"{folder} is left out: {MODEL} is not the one that was compared; {again} makes it anew"
    return {f"{_ON_HUB}/{name}": folder / name for name in _PUSHED if (folder / name).is_file()}, None


def list_names_on_hub(names: Collection[str]) -> list[str]:
    """Return the ONNX files of a repository that a push has written. Files of other programs are not listed."""
    pushed = [f"{_ON_HUB}/{name}" for name in _PUSHED]
    return [name for name in pushed if name in names] if f"{_ON_HUB}/{RECORD}" in names else []


def _hash_weights(model_dir: Path) -> dict[str, str]:
    files = sorted(path for pattern in _WEIGHTS for path in model_dir.glob(pattern))
    return {path.name: compute_checksum(path) for path in files}


def _hash_program(folder: Path) -> dict[str, str]:
    return {name: compute_checksum(folder / name) for name in (MODEL, MORE_WEIGHTS) if (folder / name).is_file()}
