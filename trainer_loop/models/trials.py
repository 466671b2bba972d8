"""What is found out about a model by letting it answer a few made-up rows, instead of looking up its name."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer_loop.data.loader import move_batch
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.models.config import find_text_config, without_numbers
from trainer_loop.ops.output_head import find_leaves
from trainer_loop.optim.layers import LINEAR_LAYERS, modules_above
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.tasks.task import Batch, TextTask

LENGTHS = (2, 5, 19)  # tokens of the made-up rows, about
LONGER = (12, 17, 29)  # where a model cannot answer those
_TOLERANCE = 1e-4  # relative to the largest number of an answer
_ROPES_OF_THE_LONGEST = ("dynamic", "longrope")  # whose rotations follow from the longest row of a batch


@dataclass(frozen=True)
class PaddingTrial:
    """What padding does to a model's answers."""

    side: str  # on which padding changes them least
    difference: float  # the largest one, relative to the largest number of an answer

    @property
    def is_harmless(self) -> bool:
        return self.difference <= _TOLERANCE  # nan is not

    def describe(self, name: str) -> str:
        """What follows from it, for a person. name: of the model."""
        return (
            f"a {name} answers a row otherwise where others pad it: by {self.difference:.2g} of its largest logit, for "
            "three rows alone and together; so numbers depend on how batches are cut: set batch.per_device=1 and "
            "evaluate.per_device=1, which pads nothing, or choose another model"
        )


def make_rows(
    task: TextTask, model: nn.Module, *, max_length: int, lengths: Sequence[int] = LENGTHS
) -> list[dict[str, Any]]:
    """Rows of unlike lengths, of ordinary tokens of the task's tokenizer, encoded as the task does it.

    One more is as long as makes a difference, where the model's positions follow from the longest row of a batch.
    """
    tried = [*lengths, *_find_turning_length(model, max_length=max_length)]
    return [row for length in tried for row in make_row(task, length, max_length=max_length)]


def make_row(task: TextTask, length: int, *, max_length: int) -> list[dict[str, Any]]:
    """A row of about so many tokens; no row, where a task makes none of such a text."""
    tokenizer = task.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    text = tokenizer.decode([ordinary[(7 * position + length) % len(ordinary)] for position in range(length)])
    encoded = task.encode([text.strip() or "a"], None, max_length=max_length)
    columns = {name: values for name, values in encoded.items() if name not in ("source", "truncated")}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)][:1]


def _find_turning_length(model: nn.Module, *, max_length: int) -> list[int]:
    """A length beyond that of which the rotations of all rows change; none where no row of a run is so long."""
    text = find_text_config(model.config)  # type: ignore[arg-type] # a model of transformers has one
    ropes = getattr(text, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, Mapping)}
    original = getattr(text, "original_max_position_embeddings", None) or ropes.get("original_max_position_embeddings")
    original = original or getattr(text, "max_position_embeddings", None)
    if kinds.isdisjoint(_ROPES_OF_THE_LONGEST) or not isinstance(original, int) or original >= max_length:
        return []
    return [original + 1]


def try_padding(model: nn.Module, task: TextTask, rows: Sequence[Mapping[str, Any]]) -> PaddingTrial:
    """Answer rows alone and in one padded batch, on each side that the task can do with, until both are equal.

    Raises:
        UserError: the model cannot answer such rows.
    """
    trials = []
    for side in task.padding_sides:
        trials.append(PaddingTrial(side, _compare_padding(model, task, rows, side=side)))
        if trials[-1].is_harmless:
            break
    return min(trials, key=lambda trial: math.inf if math.isnan(trial.difference) else trial.difference)


@torch.no_grad()
def _compare_padding(model: nn.Module, task: TextTask, rows: Sequence[Mapping[str, Any]], *, side: str) -> float:
    before, task.padding_side = task.padding_side, side
    try:
        with _answering(model):
            alone = [_answer(model, task, [row]) for row in rows]
            together = _answer(model, task, rows)
    finally:
        task.padding_side = before
    lengths = [len(row["input_ids"]) for row in rows]
    by_token = all(answer.ndim > 1 and answer.shape[1] == length for answer, length in zip(alone, lengths, strict=True))
    largest = max(float(answer.abs().max()) for answer in alone)
    differences = []
    for one, other, length in zip(alone, together, lengths, strict=True):
        own = (other[:length] if side == "right" else other[len(other) - length :]) if by_token else other
        differences.append(float((one[0] - own).abs().max()))
    return max(differences, key=lambda number: math.inf if math.isnan(number) else number) / (largest or 1.0)


def _answer(model: nn.Module, task: TextTask, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """`[B, ...]` in float32."""
    batch = pad_rows(task, rows, next(model.parameters()).device)
    try:
        return read_answer(model(**batch)).float()
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        borrowed = task.tokenizer.pad_token_id == task.tokenizer.eos_token_id
        hint = "; its padding token is its end token: give it a tokenizer with one of its own" if borrowed else ""
        raise UserError(
            f"model: a {type(model).__name__} cannot answer rows as its tokenizer makes them: "
            f"{type(error).__name__}: {in_one_line(error, at_most=200)}{hint}"
        ) from error


def can_answer(model: nn.Module, task: TextTask, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a model takes such rows; some take none of a few tokens."""
    try:
        with torch.no_grad(), _answering(model):
            _answer(model, task, rows)
    except UserError:
        return False
    return True


def pad_rows(task: TextTask, rows: Sequence[Mapping[str, Any]], device: torch.device) -> Batch:
    """A padded batch on the device, also for a task that packs its rows."""
    features = [dict(row) for row in rows]
    padded = task.tokenizer.pad(features, return_tensors="pt", padding_side=task.padding_side)
    return move_batch(dict(padded), device)


@dataclass(frozen=True)
class Reach:
    """What of a model takes part in its answers to rows like those it was tried on, and in which order."""

    calls: tuple[str, ...] = ()  # names of modules as they were first called
    unused: frozenset[str] = frozenset()  # names of parameters that no answer is computed from, whatever the row
    idle: frozenset[str] = frozenset()  # names of the linear layers whose output changes no answer, or is no tensor

    def without(self, other: "Reach") -> "Reach":
        """What takes no part in either."""
        return Reach(self.calls, self.unused & other.unused, self.idle & other.idle)


def find_reach(model: nn.Module, batch: Mapping[str, Any]) -> Reach:
    """Trace one forward pass back from its answer.

    A layer that was not called, or a parameter that was not used, counts only where none of its siblings was, which
    have the same name but for the numbers in it: an expert that got no token may get some in the next batch.

    Args:
        batch: a few rows as the model takes them.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR_LAYERS)}
    calls: dict[str, list[Any]] = {}
    with _recording(model, calls), _answering(model), torch.enable_grad():
        answer = read_answer(model(**batch))
    outputs = {name: [output for output in calls.get(name, ()) if _is_filled(output)] for name in linear}
    outputs = {name: tensors for name, tensors in outputs.items() if tensors}
    idle = {name for name, count in _flows(answer, outputs).items() if not count} | _find_detached(model, outputs)
    called = {without_numbers(name) for name in outputs}
    idle |= {name for name in linear if name not in outputs and without_numbers(name) not in called}
    idle |= {name for name in linear if any(not isinstance(output, Tensor) for output in calls.get(name, ()))}
    return Reach(tuple(calls), _find_unused(model, answer, calls), frozenset(idle))


def _is_filled(output: Any) -> bool:
    return isinstance(output, Tensor) and output.numel() > 0


def _find_unused(model: nn.Module, answer: Tensor, calls: Mapping[str, Sequence[Any]]) -> frozenset[str]:
    """Parameters outside the graph of the answer, as far as the graph can tell.

    A function that computes its gradients by itself, as a reversible layer, hides the parameters that it uses. So the
    module of such a parameter must not have been called, or have an output or other parameters that the graph has.
    """
    used = {id(leaf) for leaf in find_leaves(answer.grad_fn)}
    named = dict(model.named_parameters(remove_duplicate=False))
    reached = {name for name, parameter in named.items() if id(parameter) in used or not parameter.requires_grad}
    siblings = {without_numbers(name) for name in reached}
    seen = {module for name in reached for module in modules_above(name)}
    seen |= {name for name, outputs in calls.items() if any(_is_filled(out) and out.requires_grad for out in outputs)}
    return frozenset(
        name
        for name in named.keys() - reached
        if without_numbers(name) not in siblings and ((owner := modules_above(name)[0]) not in calls or owner in seen)
    )


def freeze_unused(model: nn.Module, reach: Reach, *, new_weights: Collection[str]) -> str | None:
    """Freeze loaded parameters that take no part in the answers, as a tower for images where all rows are texts.

    Returns:
        What they were, for a person; None where there are none.
    """
    frozen = [name for name, _ in model.named_parameters() if name in reach.unused and name not in new_weights]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if not frozen:
        return None
    parts = sorted({".".join(name.split(".")[:3]) for name in frozen})
    shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    take = "1 parameter takes" if len(frozen) == 1 else f"{len(frozen):,} parameters take"
    return f"model: {take} no part in what this task computes; not trained: {shown}"


def read_answer(outputs: Any) -> Tensor:
    """The logits of a model of transformers, or the first tensor of what another one returns."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return next(value for value in values if isinstance(value, Tensor))


@contextlib.contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """The model without dropout; random numbers that are drawn meanwhile are given back."""
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _recording(model: nn.Module, calls: dict[str, list[Any]]) -> Iterator[None]:
    """Put every module that is called into `calls`, in the order of first calls, with what it returns."""

    def note_call(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _arguments: Any) -> None:
            calls.setdefault(name, [])

        return note

    def note_output(name: str) -> Callable[..., None]:
        return lambda _module, _arguments, output: calls[name].append(output)

    handles = [module.register_forward_pre_hook(note_call(name)) for name, module in model.named_modules()]
    handles += [module.register_forward_hook(note_output(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find_detached(model: nn.Module, outputs: Mapping[str, Sequence[Tensor]]) -> set[str]:
    """Layers that are called without gradients, as one that only chooses what attention looks at.

    None, where that is so of the whole body: a reversible model computes its gradients by itself.
    """
    seen = {name for name, tensors in outputs.items() if any(tensor.requires_grad for tensor in tensors)}
    of_body = "" if model.base_model is model else f"{model.base_model_prefix}."
    return set(outputs) - seen if any(name.startswith(of_body) for name in seen) else set()


def _flows(answer: Tensor, outputs: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """By name, how many numbers of the gradients that the answer sends back to these outputs are not zero."""
    flat = [(name, tensor) for name, tensors in outputs.items() for tensor in tensors if tensor.requires_grad]
    # Unlike weights: the sum of all logits may be a constant.
    weights = torch.linspace(1, 7, math.prod(answer.shape), device=answer.device, dtype=answer.dtype).sin()
    gradients = torch.autograd.grad(
        answer.flatten() @ weights, [tensor for _, tensor in flat], allow_unused=True, materialize_grads=False
    )
    counts: dict[str, int] = {}  # without layers that autograd does not see, as those of a reversible model
    for (name, _), gradient in zip(flat, gradients, strict=True):
        counts[name] = counts.get(name, 0) + (0 if gradient is None else int(gradient.count_nonzero()))
    return counts
