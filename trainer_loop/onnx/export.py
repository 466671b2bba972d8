"""Writes the ONNX folder of a model, if both have the same outputs."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer_loop.data.columns import RESERVED, bind_columns
from trainer_loop.data.tokenise import encode_rows
from trainer_loop.errors import UserError, refuse
from trainer_loop.models.adapters import is_adapter, merge_adapter
from trainer_loop.onnx.program import Answers, OnnxModel, make_program, write_program
from trainer_loop.predictor import Predictor
from trainer_loop.record.export import replace_folder, save_processor
from trainer_loop.record.onnx_folder import MODEL, OnnxRecord
from trainer_loop.record.run_dir import EXPORT_RECORD, explain_disk_error, find_remedy, flush, is_disk_error, remove
from trainer_loop.tasks.find import list_tasks, load_task
from trainer_loop.tasks.task import Rows, Task

_ALONE = 8  # the first rows, which are also predicted one by one
_SIZES = (2, 3, 5, 8, 16)  # numbers of rows of the batches, in turn
_TIMES = (1, 4, 40)  # the texts of the example rows are repeated so often


@dataclass(frozen=True)
class Comparison:
    """The largest difference between the outputs of both models."""

    difference: float  # infinite if one of two numbers is not finite
    place: str  # of the row with this difference
    rows: int  # number of compared rows


def check_task(name: str) -> list[str]:
    """Return the reasons why a model of this task cannot be written."""
    if _can_export(load_task(name)):
        return []
    tasks = ", ".join(other for other in list_tasks() if _can_export(load_task(other)))
    return [f"a model of the task {name} writes texts token by token, and is not written as ONNX; tasks: {tasks}"]


def _can_export(task: type[Task]) -> bool:
    return not task().writes


def make_example_rows(predictor: Predictor) -> Rows:
    """Return the inputs of the example rows of the task, and longer ones made of them."""
    task = predictor.task
    names = [*bind_columns(task.columns, {}, task=type(task).__name__).without_targets().names]
    rows = {
        role: [_repeat(row[role], task.columns[role].kind, times) for times in _TIMES for row in task.example]
        for role in names
    }
    if task.auto_model == "AutoModelForMaskedLM":
        rows["text"] = [f"{predictor.processor.mask_token} {text}" for text in rows["text"]]
    if "text_pair" in predictor.columns:
        rows["text_pair"] = rows["text"][::-1]
    return rows


def _repeat(value: Any, kind: str, times: int) -> Any:
    if kind == "text":
        return " ".join([value] * times)
    return list(value) * times if kind == "words" else value


def export_onnx(
    predictor: Predictor,
    model_dir: Path,
    target: Path,
    *,
    rows: Rows,
    origin_of: Callable[[int], str],
    tolerance: float,
) -> Comparison:
    """Write a model, its config and its tokenizer into the folder `target`, after the outputs are compared.

    Args:
        predictor: The model. It cannot be used afterwards, because an adapter is merged into it.
        model_dir: The folder that it was loaded from.
        rows: The rows to compare, by the columns of the task.
        origin_of: Returns the name of a row in errors, by its number from 0.
        tolerance: The largest allowed difference between two numbers of the outputs.

    Raises:
        UserError: The model cannot be written, or the outputs differ; `target` stays as it is.
    """
    model: Any = predictor.model.cpu()
    if is_adapter(model_dir):
        model = merge_adapter(model, place=f"model={model_dir}")
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # a cache is no output
    task = predictor.task
    batches = list(_make_batches(task, rows, max_length=predictor.max_length, origin_of=origin_of))
    largest = max(batches, key=lambda batch: next(iter(batch.inputs.values())).numel()).inputs
    # Twice the rows, because torch treats an axis of length 1 as one that is always 1.
    sample = {name: torch.cat([values, values]) for name, values in largest.items()}
    program = make_program(model, sample, _name_axes(task, sample))
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        write_program(program, temporary / MODEL)
        onnx_model = OnnxModel(temporary / MODEL)
        if more := onnx_model.inputs.keys() - sample.keys():
            name = type(model).__name__
            raise UserError(f"a {name} cannot be written as ONNX: it also needs the inputs {', '.join(sorted(more))}")
        comparison = _compare(model, onnx_model, batches)
        if not comparison.difference <= tolerance:
            raise UserError(
                f"the answers of the ONNX model differ by {comparison.difference:.2g} ({comparison.place}), more than "
                f"tolerance={tolerance:g}; nothing was written"
            )
        _write_beside(temporary, model, predictor.processor, model_dir)
        difference, num_rows = comparison.difference, comparison.rows
        record = OnnxRecord.of(
            temporary, model_dir, difference=difference, tolerance=tolerance, rows=num_rows, inputs=onnx_model.inputs
        )
        record.write(temporary)
        flush([*(path for path in temporary.iterdir() if path.is_file()), temporary])
        replace_folder(target, temporary)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, UserError) or not isinstance(error, Exception) or not is_disk_error(error):
            raise
        cause = explain_disk_error(error, target.parent)
        raise UserError(f"{target} could not be written: {cause}; {find_remedy(error)}") from error
    return comparison


def _write_beside(folder: Path, model: Any, processor: Any, model_dir: Path) -> None:
    """Write the files that are needed to encode rows and to decode outputs."""
    model.config.save_pretrained(folder)
    save_processor(processor, folder)
    if (model_dir / EXPORT_RECORD).is_file():
        shutil.copyfile(model_dir / EXPORT_RECORD, folder / EXPORT_RECORD)


@dataclass(frozen=True)
class _Batch:
    """The inputs of a model, and the places of their rows."""

    inputs: Mapping[str, Tensor]
    places: Sequence[str]


def _make_batches(task: Task, rows: Rows, *, max_length: int, origin_of: Callable[[int], str]) -> Iterator[_Batch]:
    """Yield the first rows alone, then all rows in padded batches of different sizes."""
    encoded, faults = encode_rows(task, task.encode_alone, rows, max_length=max_length)
    sources = encoded["source"]
    refuse([f"{origin_of(sources[place])} {reason}" for place, reason in faults.items()])
    columns = {name: values for name, values in encoded.items() if name not in RESERVED}
    total, start = len(sources), 0
    spans = [range(place, place + 1) for place in range(min(_ALONE, total))]
    while start < total:
        size = _SIZES[len(spans) % len(_SIZES)]
        spans.append(range(start, min(start + size, total)))
        start += size
    for span in spans:
        batch = task.collate([{name: values[place] for name, values in columns.items()} for place in span])
        inputs = {name: value for name, value in task.model_inputs(batch).items() if isinstance(value, Tensor)}
        yield _Batch(inputs, [origin_of(sources[place]) for place in span])


def _name_axes(task: Task, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    if not task.has_tokens:
        return ("rows",)
    return ("rows", "choices", "tokens") if inputs["input_ids"].ndim == 3 else ("rows", "tokens")


@torch.no_grad()
def _compare(model: Any, onnx_model: OnnxModel, batches: Sequence[_Batch]) -> Comparison:
    largest, place, answered = 0.0, batches[0].places[0], set[str]()
    for batch in batches:
        expected = model(**batch.inputs)
        values = {name: value.numpy() for name, value in expected.items() if isinstance(value, Tensor)}
        difference, row = _find_largest(values, onnx_model.answer(batch.inputs), batch, onnx_model.outputs)
        answered |= set(batch.places)
        if difference > largest:
            largest, place = difference, batch.places[row]
    return Comparison(largest, place, len(answered))


def _find_largest(
    expected: Answers, answers: Answers, batch: _Batch, outputs: Mapping[str, Sequence[Any]]
) -> tuple[float, int]:
    """Return the largest difference, and the number of its row in the batch. outputs: axes of each output by name."""
    if missing := answers.keys() - expected.keys():
        raise UserError(f"the ONNX model answers {', '.join(sorted(missing))}, and the model does not")
    if missing := expected.keys() - answers.keys():
        raise UserError(f"the ONNX model does not answer {', '.join(sorted(missing))}, and the model does")
    largest, row = 0.0, 0
    mask = batch.inputs.get("attention_mask")  # [B, T], 0 for padding
    for name, values in answers.items():
        other, by_token = expected[name], outputs[name][1:2] == ["tokens"]
        if other.shape != values.shape:
            return np.inf, 0
        with np.errstate(invalid="ignore"):
            distance = np.where(other == values, 0.0, np.abs(other.astype(np.float64) - values))
        distance = np.nan_to_num(distance, nan=np.inf, posinf=np.inf)
        if mask is not None and by_token:  # outputs at padding are not used
            distance[mask.numpy() == 0] = 0.0
        has_rows = len(distance) % len(batch.places) == 0
        row_distances = distance.reshape(len(batch.places), -1).max(axis=1) if has_rows else distance.max()
        if np.max(row_distances) > largest:
            largest, row = float(np.max(row_distances)), int(np.argmax(row_distances))
    return largest, row
