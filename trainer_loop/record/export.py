"""The exported model: files for `AutoModel.from_pretrained`, tokenizer or image processor, label names, model card."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from trainer_loop.data.processors import as_tokenizer
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.parallel.sharding import gather_tensor, is_spread
from trainer_loop.record.run_dir import (
    EXPORT_RECORD,
    RunDir,
    explain_disk_error,
    find_remedy,
    flush,
    is_disk_error,
    read_json_object,
    remove,
    write_json,
)
from trainer_loop.runtime.memory import place_in_memory
from trainer_loop.runtime.plain_json import check_fields


@dataclass(frozen=True)
class ExportRecord:
    """Facts about an exported model that prediction needs in addition to the files of transformers."""

    task: str  # name or dotted path
    # Column of the task -> column of the training data, as `data.columns`; empty: the task takes rows as they are.
    columns: dict[str, str | list[str]]
    max_length: int | None
    step: int  # of the exported weights
    num_steps: int  # length of the finished run
    metrics: dict[str, float]  # of the exported weights
    plan: dict[str, Any]  # the run facts, see Checkpointer
    # How the run was evaluated: `values` (of the label column, by class), `metrics` and `loss` (as in the config).
    # None if the task has no target column.
    evaluation: dict[str, Any] | None = None
    tuned: dict[str, Any] = field(default_factory=dict)  # arguments of the task that the run chose, such as a threshold

    @classmethod
    def read(cls, model_dir: Path) -> "ExportRecord | None":
        """Read the record of an exported model; None if trainer_loop did not export it. Raises UserError if damaged."""
        path = model_dir / EXPORT_RECORD
        try:
            record = _rename_columns(read_json_object(path))
            check_fields(cls, record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:  # damaged, or written by another version
            reason = (isinstance(error, OSError) and error.strerror) or in_one_line(error)
            raise UserError(
                f"{path} cannot be read: {reason}; remove {model_dir}, and the command that trained it writes it anew"
            ) from error
        return cls(**record)


def _rename_columns(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of version 0.1, which has a key for the text, for the second text and for the label."""
    if "columns" in record or "text" not in record:
        return record
    evaluation = record.get("evaluation")
    label = evaluation.get("label") if isinstance(evaluation, dict) else None
    columns = {"text": record.pop("text"), "text_pair": record.pop("text_pair", None), "label": label}
    return record | {"columns": {role: name for role, name in columns.items() if name is not None}}


def export_model(
    run_dir: RunDir,
    model: nn.Module,
    processor: Any,
    record: ExportRecord,
    *,
    card: str,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model/ under a temporary name and rename it; an existing model is replaced. Only process 0 calls this.

    Args:
        weights: A copy from `copy_weights`, for a sharded model; None: the weights of the model.
    """
    target = run_dir.model
    temporary = target.with_name(".model.tmp")
    try:
        write_files(temporary, model, processor, record, card=card, weights=weights)
        flush([*temporary.iterdir(), temporary])
        replace_folder(target, temporary)
    except Exception as error:  # tokenizers raises plain Exception
        if not is_disk_error(error):
            raise
        remove(temporary)
        raise UserError(
            f"{target} could not be written: {explain_disk_error(error, target.parent)}; {find_remedy(error)}: it goes "
            "on from the last checkpoint"
        ) from error


def write_files(
    directory: Path,
    model: nn.Module,
    processor: Any,
    record: ExportRecord,
    *,
    card: str,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files of an exported model into a new directory; an existing one is removed.

    Args:
        card: The text of README.md.
        weights: A copy from `copy_weights`; None: the current weights of the model.
    """
    remove(directory)
    directory.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        arguments = {} if weights is None else {"state_dict": dict(weights)}
        model.save_pretrained(directory, **arguments)  # type: ignore[operator]
        model.config.save_pretrained(directory)  # type: ignore[union-attr, operator] # adapters have none
    elif weights is None:
        save_model(model, directory / "model.safetensors")
    else:
        # The file holds each tensor once, under its first name.
        names = {id(tensor): name for name, tensor in reversed(list(weights.items()))}.values()
        save_file({name: weights[name] for name in names}, directory / "model.safetensors")
    if processor is not None:
        save_processor(processor, directory)
    (directory / "README.md").write_text(card, encoding="utf-8")
    write_json(directory / EXPORT_RECORD, vars(record))


def save_processor(processor: Any, directory: Path) -> None:
    """Write the files of a tokenizer or of an image processor."""
    # These settings depend on the last call, so on whether this process has tokenised.
    if as_tokenizer(processor) is not None:
        processor.backend_tokenizer.no_truncation()
        processor.backend_tokenizer.no_padding()
    processor.save_pretrained(directory)


@torch.no_grad()
def copy_weights(
    model: nn.Module, averaged_weights: Mapping[str, Tensor] | None = None, *, copy: bool = True
) -> dict[str, Any]:
    """Return the state of a model in training, with averaged weights instead of its own where they exist.

    Trained tensors and whole sharded tensors are copied to host memory. With shards, all processes call this.

    Args:
        averaged_weights: By name.
        copy: False: return None in place of each copy, on a process that does not need them.
    """
    averaged_weights = averaged_weights or {}
    copies: dict[tuple[int, ...], Tensor | None] = {}  # tied weights remain one tensor
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if not isinstance(tensor, Tensor) or (is_frozen and not is_spread(tensor)):
            weights[name] = tensor
            continue
        place = place_in_memory(tensor)
        if place not in copies:
            whole = gather_tensor(averaged_weights.get(name, tensor).detach())
            copies[place] = whole.to("cpu", tensor.dtype, copy=True).contiguous() if copy else None
        weights[name] = copies[place]
    return weights


def replace_folder(target: Path, temporary: Path) -> None:
    """Rename the folder `temporary` to `target`. An existing target stays until then, and is removed."""
    retired = target.with_name(f".{target.name}.old")
    remove(retired)
    if os.path.lexists(target):
        os.replace(target, retired)
    try:
        os.replace(temporary, target)
    except OSError:
        if os.path.lexists(retired):
            os.replace(retired, target)
        raise
    flush([target.parent])
    remove(retired)
