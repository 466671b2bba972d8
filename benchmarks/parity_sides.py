"""The gradient of one update, as trainer_loop's loop and transformers.Trainer pass it to the optimizer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.parity_models import LONGEST, MODELS, make_model, make_rows, make_tokenizer
from benchmarks.plain_loop import make_plain_loop
from trainer_loop import Task
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.ops.attention import use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.parallel.processes import leave_process_group
from trainer_loop.record.logs import Console

MICROBATCHES = 4
ROWS = 16
ROWS_TOGETHER = ROWS // MICROBATCHES

Gradient = dict[str, Tensor]  # name of a weight -> float64, on the CPU
LossFunction = Callable[[Any, Tensor, Any], Tensor]


def make_plan(
    rows: Sequence[dict[str, Any]],
    *,
    per_device: int | None = None,
    max_tokens: int | None = None,
    num_processes: int = 1,
) -> BatchPlan:
    """A plan of one update of all rows; one microbatch unless a limit is given."""
    return BatchPlan(
        [len(row["input_ids"]) for row in rows],
        Limits(num_processes, max_tokens, per_device),
        batch_size=len(rows),
        seed=0,
    )


def measure_ours(
    name: str, *, per_device: int | None = None, max_tokens: int | None = None, num_processes: int = 1
) -> Gradient:
    """The gradient of an update of all rows by TrainingLoop, cut by `make_plan`."""
    task: Task = MODELS[name].task()
    task.bind(make_tokenizer())
    rows = _make_rows(name)
    model = make_model(name)
    use_attention(model)  # this call and the next as in models/assemble.py
    if not torch.accelerator.is_available():
        use_cpu_modules(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tempfile.TemporaryDirectory() as folder, _watch(optimizer, model) as gradients:
        loop = make_plain_loop(
            Path(folder),
            task=task,
            model=model,
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            rows=rows,
            plan=make_plan(rows, per_device=per_device, max_tokens=max_tokens, num_processes=num_processes),
            console=Console(enabled=False),
            max_grad_norm=None,
            log_every=1,
        )
        loop.fit()
    (gradient,) = gradients
    return gradient


def measure_in_group(names: list[str], num_processes: int) -> dict[str, dict[str, list[float]]]:
    """The flat gradients of several models as plain JSON. All processes of a group must call this."""
    try:
        return {
            name: {weight: values.flatten().tolist() for weight, values in gradient.items()}
            for name in names
            for gradient in [measure_ours(name, per_device=ROWS_TOGETHER, num_processes=num_processes)]
        }
    finally:
        leave_process_group()


def measure_trainer(
    name: str, *, microbatches: int, padded_alike: bool = False, loss_function: LossFunction | None = None
) -> Gradient:
    """The gradient of an update of all rows by transformers.Trainer, in microbatches of equally many rows.

    Args:
        padded_alike: whether every row is padded to 24 tokens instead of the longest of its microbatch.
        loss_function: `compute_loss_func` of Trainer; None for the model's own loss.
    """
    tokenizer, model = make_tokenizer(), make_model(name)
    width = LONGEST if padded_alike else None
    labelled = "label" in MODELS[name].task.columns
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tempfile.TemporaryDirectory() as folder, _watch(optimizer, model) as gradients:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=1,
                per_device_train_batch_size=ROWS // microbatches,
                gradient_accumulation_steps=microbatches,
                train_sampling_strategy="sequential",
                max_grad_norm=0.0,  # the gradient is read after clipping
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=_make_rows(name),
            data_collator=(
                DataCollatorWithPadding(tokenizer, pad_to_multiple_of=width)
                if labelled
                else DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=width)
            ),
            processing_class=tokenizer,
            compute_loss_func=loss_function,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)  # it prints a dict at the end of each run
        trainer.train()
    (gradient,) = gradients
    return gradient


def divide_by_items(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """A `compute_loss_func` for Trainer: the sum over a microbatch, divided by Trainer's count of the update."""
    logits = outputs.logits
    if labels.ndim == 2:  # a language model, `[B, T]`: each token predicts the next one
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def compare_gradients(one: Gradient, other: Gradient) -> dict[str, float]:
    """Compare `one` with `other`: `norm_ratio`, and `difference`, the largest over the weights.

    The difference of a weight is divided by the norm of its gradient in `other`, or by a millionth of the norm of all
    weights if that is larger: a gradient that is mathematically zero, such as that of a key's bias, contains only
    rounding.
    """
    assert one.keys() == other.keys()
    norm = _norm(list(other.values()))
    differences = [
        float(torch.linalg.vector_norm(one[name] - other[name]))
        / max(float(torch.linalg.vector_norm(other[name])), 1e-6 * norm)
        for name in other
    ]
    return {"norm_ratio": _norm(list(one.values())) / norm, "difference": max(differences)}


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([tensor.flatten() for tensor in tensors])))


def _make_rows(name: str) -> list[dict[str, Any]]:
    return make_rows(ROWS, labelled="label" in MODELS[name].task.columns)


@contextmanager
def _watch(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[list[Gradient]]:
    """Copy the gradients at each step of this optimizer, before it changes the weights."""
    seen: list[Gradient] = []

    def keep(*_: Any) -> None:
        graded = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        seen.append({name: gradient.detach().cpu().double().clone() for name, gradient in graded.items()})

    handle = optimizer.register_step_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
