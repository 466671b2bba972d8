"""The exported model: what `AutoModel.from_pretrained` loads, with its tokenizer, label names and a model card."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from trainer_loop.errors import UserError, in_one_line
from trainer_loop.record.run_dir import (
    EXPORT_RECORD,
    RunDir,
    explain_disk_error,
    flush,
    is_disk_error,
    package_versions,
    read_json,
    write_json,
)


@dataclass(frozen=True)
class ExportRecord:
    """What whoever predicts with the model must know, beside what transformers saves itself."""

    task: str  # name or dotted path
    text: str | None  # columns it was trained on; None: no texts
    text_pair: str | None
    max_length: int | None
    step: int  # of the exported weights
    num_steps: int  # of the finished run
    metrics: dict[str, float]  # of the exported weights
    plan: dict[str, Any]  # what decided the updates of the run, see Checkpointer
    # How the run was evaluated: `label` (its column), `values` (of the column, by class), `metrics` and `loss` (as the
    # config has them). None where there are no classes.
    evaluation: dict[str, Any] | None = None

    @classmethod
    def read(cls, model_dir: Path) -> "ExportRecord | None":
        """The record beside an exported model; None for a model that was not exported here.

        Raises UserError where it cannot be read.
        """
        path = model_dir / EXPORT_RECORD
        try:
            return cls(**read_json(path)) if path.exists() else None
        except (ValueError, TypeError) as error:  # damaged, or of another version
            raise UserError(f"{path} cannot be read: {in_one_line(error)}; export the model again") from error


def export_model(run_dir: RunDir, model: nn.Module, tokenizer: Any, record: ExportRecord, *, title: str) -> Path:
    """Write model/ beside and rename it; the model that stood there before is replaced. Main process only.

    Raises UserError where the disk refuses.
    """
    target = run_dir.model
    temporary = target.with_name(".model.tmp")
    try:
        _write(target, temporary, model, tokenizer, record, title=title)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{target} could not be written: {explain_disk_error(error, target.parent)}; make room, and the same "
            "command goes on from the last checkpoint"
        ) from error
    return target


def _write(
    target: Path, temporary: Path, model: nn.Module, tokenizer: Any, record: ExportRecord, *, title: str
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(temporary)  # type: ignore[operator]
        model.config.save_pretrained(temporary)  # type: ignore[union-attr, operator] # an adapter comes without
    else:
        save_model(model, temporary / "model.safetensors")
    if tokenizer is not None:
        # What the last call has left there depends on whether this very process has tokenised.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(_model_card(record, title=title), encoding="utf-8")
    write_json(temporary / EXPORT_RECORD, vars(record))
    flush([*temporary.iterdir(), temporary])
    retired = target.with_name(".model.old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        os.replace(target, retired)
    os.replace(temporary, target)
    flush([target.parent])
    shutil.rmtree(retired, ignore_errors=True)


def _model_card(record: ExportRecord, *, title: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items() if name != "numpy")
    columns = f"`{record.text}`" + (f" and `{record.text_pair}`" if record.text_pair else "")
    texts = f" on column {columns}, texts cut at {record.max_length} tokens" if record.text is not None else ""
    library = "transformers" if record.text is not None else "pytorch"
    return f"""---
library_name: {library}
{_pipeline_tag(record.task)}---

# {title}

Trained with trainer_loop: task `{record.task}`{texts}.
The weights are those of step {record.step:,} of {record.num_steps:,}.

{_metrics_table(record.metrics)}
Versions: {versions}.
"""


def _pipeline_tag(task: str) -> str:
    """The line by which the hub knows what a model is for; a task of one's own has none."""
    tag = {"sequence_classification": "text-classification", "causal_lm": "text-generation"}.get(task)
    return "" if tag is None else f"pipeline_tag: {tag}\n"


def _metrics_table(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in metrics.items())
    return f"| metric | value |\n|---|---|\n{rows}\n"
