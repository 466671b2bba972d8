"""Find properties of a model by trial forward passes over a few made-up rows, instead of by its name."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from trainer_loop.data.columns import RESERVED, bind_columns
from trainer_loop.data.loader import move_batch
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.models.config import find_text_config, without_numbers
from trainer_loop.ops.output_head import find_leaves
from trainer_loop.optim.layers import LINEAR_LAYERS, modules_above
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.randomness import evaluating, keeping_random_state
from trainer_loop.tasks.task import Batch, Task

LENGTHS = (2, 5, 19)  # approximate numbers of tokens of the made-up rows
LONGER = (12, 17, 29)  # used if a model cannot answer the shorter ones
_TOLERANCE = 1e-4  # relative to the largest value of an answer
_LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")  # rotary types that depend on the longest row of a batch


@dataclass(frozen=True)
class PaddingTrial:
    """The effect of padding on the answers of a model."""

    side: str  # left or right
    difference: float  # largest difference, relative to the largest value of an answer

    @property
    def is_harmless(self) -> bool:
        """Whether padding changes the answers by no more than rounding."""
        return self.difference <= _TOLERANCE  # false for nan

    def describe(self, name: str) -> str:
        """Return the warning for the user; `name` is the class of the model."""
        return (
            f"the answer of a {name} to a row depends on its padding: by {self.difference:.2g} of its largest logit, "
            "for three rows alone and together; so numbers depend on how batches are cut: set batch.per_device=1 and "
            "evaluate.per_device=1, which pads nothing, or choose another model"
        )


def make_rows(
    task: Task, model: nn.Module, *, max_length: int, lengths: Sequence[int] = LENGTHS
) -> list[dict[str, Any]]:
    """Make encoded rows of about these numbers of ordinary tokens.

    If the positions of the model depend on the longest row of a batch, one more row is long enough to show this.

    Args:
        max_length: tokens of the longest row of the run.
    """
    all_lengths = [*lengths, *_find_rope_switch_length(model, max_length=max_length)]
    return [row for length in all_lengths for row in make_row(task, length, max_length=max_length)]


def make_answerable_rows(
    task: Task, model: nn.Module, *, max_length: int, longer: Sequence[int]
) -> list[dict[str, Any]]:
    """Make short trial rows, or rows of the lengths `longer` if the model fails on short ones."""
    rows = make_rows(task, model, max_length=max_length)
    if not rows or can_answer(model, task, rows[:1]):
        return rows
    return make_rows(task, model, max_length=max_length, lengths=longer)


def make_row(task: Task, length: int, *, max_length: int) -> list[dict[str, Any]]:
    """Return a list with one row of about `length` tokens; an empty list if the task accepts no such text."""
    tokenizer = task.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    text = tokenizer.decode([ordinary[(7 * position + length) % len(ordinary)] for position in range(length)])
    text = text.strip() or "a"
    chat = [{"role": role, "content": text} for role in ("user", "assistant")]
    values = {"text": text, "words": text.split(), "conversation": chat}
    column_names = bind_columns(task.columns, {}, task=type(task).__name__).without_targets().names
    rows = {name: [values[task.columns[name].kind]] for name in column_names}
    encoded = task.encode(rows, max_length=max_length)
    if any(encoded.get("fault", ())):  # a chat template may reject this conversation
        return []
    columns = {name: values for name, values in encoded.items() if name not in RESERVED}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)][:1]


def _find_rope_switch_length(model: nn.Module, *, max_length: int) -> list[int]:
    """Return the first row length that changes the rotary positions of the whole batch, if the run has such rows."""
    config = find_text_config(model.config)  # type: ignore[arg-type] # a model of transformers has one
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, Mapping)}
    limit = getattr(config, "original_max_position_embeddings", None) or ropes.get("original_max_position_embeddings")
    limit = limit or getattr(config, "max_position_embeddings", None)
    if kinds.isdisjoint(_LENGTH_DEPENDENT_ROPES) or not isinstance(limit, int) or limit >= max_length:
        return []
    return [limit + 1]


def try_padding(model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]]) -> PaddingTrial:
    """Compare the answers to single rows and to one padded batch, for each padding side of the task.

    Returns:
        The trial with the smallest difference; the first that is harmless.

    Raises:
        UserError: the model fails on these rows.
    """
    trials = []
    for side in task.padding_sides:
        trials.append(PaddingTrial(side, _compare_padding(model, task, rows, side=side)))
        if trials[-1].is_harmless:
            break
    return min(trials, key=lambda trial: math.inf if math.isnan(trial.difference) else trial.difference)


@torch.no_grad()
def _compare_padding(model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]], *, side: str) -> float:
    old_side, task.padding_side = task.padding_side, side
    try:
        with _answering(model):
            alone = [_answer(model, task, [row]) for row in rows]
            together = _answer(model, task, rows)
    finally:
        task.padding_side = old_side
    lengths = [len(row["input_ids"]) for row in rows]
    is_per_token = all(
        answer.ndim > 1 and answer.shape[1] == length for answer, length in zip(alone, lengths, strict=True)
    )
    largest = max(float(answer.abs().max()) for answer in alone)
    differences = []
    for single, padded, length in zip(alone, together, lengths, strict=True):
        unpadded = (padded[:length] if side == "right" else padded[len(padded) - length :]) if is_per_token else padded
        differences.append(float((single[0] - unpadded).abs().max()))
    return max(differences, key=lambda number: math.inf if math.isnan(number) else number) / (largest or 1.0)


def _answer(model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the answer of the model, `[B, ...]`, in float32. Raises UserError if the model fails."""
    batch = pad_rows(task, rows, next(model.parameters()).device)
    try:
        return read_answer(model(**batch)).float()
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        is_shared = task.tokenizer.pad_token_id == task.tokenizer.eos_token_id
        hint = "; its padding token is its end token: give it a tokenizer with one of its own" if is_shared else ""
        raise UserError(
            f"model: a {type(model).__name__} cannot answer rows as its tokenizer makes them: "
            f"{type(error).__name__}: {in_one_line(error, at_most=200)}{hint}"
        ) from error


def can_answer(model: nn.Module, task: Task, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a model accepts these rows. Some models fail on rows of a few tokens."""
    try:
        with torch.no_grad(), _answering(model):
            _answer(model, task, rows)
    except UserError:
        return False
    return True


def pad_rows(task: Task, rows: Sequence[Mapping[str, Any]], device: torch.device) -> Batch:
    """Return a padded batch on the device, also if the task packs its rows."""
    features = [{name: values for name, values in row.items() if name not in task.pad} for row in rows]
    padded = task.tokenizer.pad(features, return_tensors="pt", padding_side=task.padding_side)
    return move_batch(dict(padded), device)


@dataclass(frozen=True)
class Reach:
    """The parts of a model that do and do not affect its answers to rows such as the trial rows."""

    calls: tuple[str, ...] = ()  # names of called modules, in the order of their first calls
    unused: frozenset[str] = frozenset()  # names of parameters that do not affect any answer
    idle: frozenset[str] = frozenset()  # linear layers whose output affects no answer or is not a tensor

    def without(self, other: "Reach") -> "Reach":
        """Return this reach, with only those unused and idle parts that `other` has too."""
        return Reach(self.calls, self.unused & other.unused, self.idle & other.idle)


def find_reach(model: nn.Module, batch: Mapping[str, Any]) -> Reach:
    """Run one forward pass and trace the autograd graph back from its answer.

    A layer is idle, or a parameter unused, only if this is also true for all its siblings, which have the same name
    except for numbers: an expert that gets no token may get some in the next batch.

    Args:
        batch: a few rows, as inputs of the model.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR_LAYERS)}
    recorded: dict[str, list[Any]] = {}
    with _recording(model, recorded), _answering(model), torch.enable_grad():
        answer = read_answer(model(**batch))
    # Read the outputs only now, because a model may change an output in place.
    calls = {name: [_Output.of(output) for output in recorded.pop(name)] for name in list(recorded)}
    outputs = {name: [output for output in calls.get(name, ()) if output.is_filled] for name in linear}
    outputs = {name: filled for name, filled in outputs.items() if filled}
    idle = _find_zero_gradients(answer, outputs) | _find_detached(model, outputs)
    called = {without_numbers(name) for name in outputs}
    idle |= {name for name in linear if name not in outputs and without_numbers(name) not in called}
    idle |= {name for name in linear if any(not output.is_tensor for output in calls.get(name, ()))}
    return Reach(tuple(calls), _find_unused(model, answer, calls), frozenset(idle))


@dataclass(frozen=True)
class _Output:
    """An output of a module without its data, so that the backward pass can free the data."""

    is_tensor: bool
    is_filled: bool  # has elements
    edge: GradientEdge | None  # of the autograd graph; None if the output requires no gradient

    @classmethod
    def of(cls, output: Any) -> "_Output":
        if not isinstance(output, Tensor):
            return cls(is_tensor=False, is_filled=False, edge=None)
        edge = get_gradient_edge(output) if output.requires_grad else None
        return cls(is_tensor=True, is_filled=output.numel() > 0, edge=edge)


def _find_unused(model: nn.Module, answer: Tensor, calls: Mapping[str, Sequence[_Output]]) -> frozenset[str]:
    """Return the parameters that are not in the autograd graph of the answer.

    A custom autograd function, such as that of a reversible layer, hides the parameters that it uses. So a parameter
    counts only if its module was not called, or if an output or another parameter of the module is in the graph.
    """
    used = {id(leaf) for leaf in find_leaves(answer.grad_fn)}
    named = dict(model.named_parameters(remove_duplicate=False))
    reached = {name for name, parameter in named.items() if id(parameter) in used or not parameter.requires_grad}
    siblings = {without_numbers(name) for name in reached}
    seen = {module for name in reached for module in modules_above(name)}
    seen |= {name for name, outputs in calls.items() if any(out.is_filled and out.edge for out in outputs)}
    return frozenset(
        name
        for name in named.keys() - reached
        if without_numbers(name) not in siblings and ((owner := modules_above(name)[0]) not in calls or owner in seen)
    )


def freeze_unused(model: nn.Module, reach: Reach, *, new_weights: Collection[str]) -> str | None:
    """Freeze loaded parameters that do not affect the answers, such as an image encoder if all rows are texts.

    Returns:
        One line about them for the user; None if there are none.
    """
    frozen = [name for name, _ in model.named_parameters() if name in reach.unused and name not in new_weights]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if not frozen:
        return None
    parts = sorted({".".join(name.split(".")[:3]) for name in frozen})
    take = "1 parameter takes" if len(frozen) == 1 else f"{len(frozen):,} parameters take"
    return f"model: {take} no part in what this task computes; not trained: {enumerate_some(parts, at_most=4)}"


def read_answer(outputs: Any) -> Tensor:
    """Return the logits of a transformers model, or the first tensor in the output of another model."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return next(value for value in values if isinstance(value, Tensor))


@contextlib.contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Context for a trial pass: without dropout; restores the random state at exit."""
    with evaluating(model), keeping_random_state(next(model.parameters()).device):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def _recording(model: nn.Module, calls: dict[str, list[Any]]) -> Iterator[None]:
    """Record the outputs of every called module in `calls`, in the order of first calls."""

    def record_call(name: str, _module: nn.Module, _arguments: Any) -> None:
        calls.setdefault(name, [])

    def record_output(name: str, _module: nn.Module, _arguments: Any, output: Any) -> None:
        calls[name].append(output)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(record_call, name)))
        handles.append(module.register_forward_hook(partial(record_output, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find_detached(model: nn.Module, outputs: Mapping[str, Sequence[_Output]]) -> set[str]:
    """Return the layers that run without gradients, such as one that only selects the keys of attention.

    Returns an empty set if the whole body runs so: a reversible model computes its own gradients.
    """
    seen = {name for name, of_module in outputs.items() if any(output.edge for output in of_module)}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return set(outputs) - seen if any(name.startswith(prefix) for name in seen) else set()


def _find_zero_gradients(answer: Tensor, outputs: Mapping[str, Sequence[_Output]]) -> set[str]:
    """Return the layers whose outputs get only zeros as gradients of the answer."""
    edges = [(name, output.edge) for name, of_module in outputs.items() for output in of_module if output.edge]
    # Different weights, because the sum of all logits may be constant.
    weights = torch.linspace(1, 7, math.prod(answer.shape), device=answer.device, dtype=answer.dtype).sin()
    gradients = torch.autograd.grad(
        answer.flatten() @ weights, [edge for _, edge in edges], allow_unused=True, materialize_grads=False
    )
    contributing = {
        name
        for (name, _), gradient in zip(edges, gradients, strict=True)
        if gradient is not None and bool(gradient.any())
    }
    return {name for name, _ in edges} - contributing
