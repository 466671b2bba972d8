"""The folder of an ONNX model: which weights it was made of, and what of it is pushed beside these."""

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
MORE_WEIGHTS = f"{MODEL}.data"  # of a model that one file cannot hold
RECORD = "onnx.json"
_PUSHED = (MODEL, MORE_WEIGHTS, RECORD)
_ON_HUB = "onnx"  # the folder of ONNX models in a repository, where others look for them too
_WEIGHTS = ("*.safetensors", "*.bin")
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class OnnxRecord:
    """How an ONNX model was made.

    weights: checksums of the files of the model that it was made of, by name. program: those of its own files.
    difference: the largest between both models' answers to `rows` rows. inputs: what it reads, with the names of axes.
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
        """Of the ONNX model in a folder, which was made of the model in a directory."""
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
        """Raises OSError where it cannot be read, ValueError where it is damaged."""
        record = read_json_object(folder / RECORD)
        check_fields(cls, record)
        return cls(**record)

    def write(self, folder: Path) -> None:
        """Write it into the folder of the ONNX model."""
        write_json(folder / RECORD, vars(self))


def is_onnx_folder(folder: Path) -> bool:
    """Whether it was written by `python -m trainer_loop.onnx`, as far as the names of its files tell."""
    return (folder / RECORD).is_file()


def find_files_to_push(folder: Path, model_dir: Path, *, again: str) -> tuple[dict[str, Path], str | None]:
    """The files of an ONNX model by their paths in the repository of the model, and why there are none.

    again: the command that makes the folder. Without a folder there is nothing to say.
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
    """Of the files of a repository those that a push put there. An ONNX file of another program's stays."""
    own = [f"{_ON_HUB}/{name}" for name in _PUSHED]
    return [name for name in own if name in names] if f"{_ON_HUB}/{RECORD}" in names else []


def _hash_weights(model_dir: Path) -> dict[str, str]:
    files = sorted(path for pattern in _WEIGHTS for path in model_dir.glob(pattern))
    return {path.name: compute_checksum(path) for path in files}


def _hash_program(folder: Path) -> dict[str, str]:
    return {name: compute_checksum(folder / name) for name in (MODEL, MORE_WEIGHTS) if (folder / name).is_file()}
