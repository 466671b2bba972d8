"""The memory of a pass, measured in shapes alone, is that of the pass itself."""

import pytest
import tiny
import torch
from torch.profiler import ProfilerActivity, profile

from trainer_loop.ops.attention import use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.runtime.outline import MemoryCounter, count_flops, measure_pass, measure_update, outline_model

CPU = torch.device("cpu")
TASKS = ("sequence_classification", "causal_lm")


class Passes:
    """Passes of a small model on one batch, and of its outline."""

    def __init__(self, name: str, *, precision: str = "no", checkpoints: bool = False, dropout: float = 0.0):
        self.task = tiny.make_task(name)
        self.task.bind(tiny.make_tokenizer())
        self.model = tiny.make_model(name, dropout=dropout).train()
        use_attention(self.model)
        use_cpu_modules(self.model)
        if checkpoints:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.batch = self.task.collate(tiny.make_rows(12, shortest=20, longest=40, labelled=name != "causal_lm"))
        self.precision = precision
        self.outline = outline_model(self.model, CPU)
        self.loss_of(self.model)  # the head of a language model is looked for once

    def loss_of(self, model: torch.nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self.task.loss(model, self.batch)

    def set_gradients(self, *, has_gradients: bool) -> None:
        for weight in self.model.parameters():
            weight.grad = torch.zeros_like(weight) if has_gradients else None

    def measure(self, *, has_gradients: bool) -> int:
        """With real numbers."""
        self.set_gradients(has_gradients=has_gradients)
        with MemoryCounter() as watch, torch.autocast("cpu", enabled=False):
            self.loss_of(self.model).backward()
        return watch.peak

    def foresee(self, *, has_gradients: bool) -> int:
        return measure_pass(self.outline, lambda: self.loss_of(self.outline.model), has_gradients=has_gradients)


@pytest.mark.parametrize("options", [{}, {"checkpoints": True}, {"precision": "bf16"}, {"dropout": 0.1}], ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_a_pass_in_shapes_takes_the_bytes_of_the_pass(name: str, options: dict):
    passes = Passes(name, **options)
    passes.foresee(has_gradients=True)  # looks for the head
    for has_gradients in (True, False):
        assert passes.foresee(has_gradients=has_gradients) == passes.measure(has_gradients=has_gradients)


@pytest.mark.parametrize("name", TASKS)
def test_the_allocator_counts_the_same(name: str):
    passes = Passes(name)
    passes.set_gradients(has_gradients=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        passes.loss_of(passes.model).backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert passes.foresee(has_gradients=True) == pytest.approx(peak, rel=0.1)


def test_the_model_stays_as_it_is_and_nothing_has_numbers():
    passes = Passes("sequence_classification")
    before = {name: tensor.clone() for name, tensor in passes.model.state_dict().items()}
    passes.foresee(has_gradients=False)
    torch.testing.assert_close(passes.model.state_dict(), before)
    assert all(weight.grad is None for weight in passes.model.parameters())
    with pytest.raises(RuntimeError):
        passes.outline.model.classifier.weight.tolist()


@pytest.mark.parametrize("options", [{}, {"checkpoints": True}, {"precision": "bf16"}, {"dropout": 0.1}], ids=str)
def test_operations_are_those_of_the_matrix_products_of_a_forward_pass(options: dict):
    passes = Passes("sequence_classification", **options)
    rows, tokens = passes.batch["input_ids"].shape
    width, inner, layers, labels = 16, 32, 2, 3
    of_layer = 4 * tokens * width**2 + 2 * tokens * width * inner + 2 * tokens**2 * width
    wanted = 2 * rows * (layers * of_layer + width**2 + width * labels)
    assert count_flops(passes.outline, lambda: passes.loss_of(passes.outline.model)) == wanted


def test_what_looks_for_the_head_of_a_language_model_is_not_counted():
    passes = Passes("causal_lm")
    first, second = (count_flops(passes.outline, lambda: passes.loss_of(passes.outline.model)) for _ in range(2))
    rows, tokens = passes.batch["input_ids"].shape
    head = 2 * rows * (tokens - 1) * 16 * tiny.VOCABULARY
    assert first == second
    assert first > head


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("AdamW", {"fused": True}), ("AdamW", {"foreach": True}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})],
    ids=str,
)
def test_an_optimizer_in_shapes_has_the_state_of_the_optimizer(optimizer: str, options: dict):
    passes = Passes("sequence_classification")
    make = getattr(torch.optim, optimizer)
    real, passes.outline.optimizer = (
        make(model.parameters(), lr=0.1, **options) for model in (passes.model, passes.outline.model)
    )
    passes.set_gradients(has_gradients=True)
    for _ in range(2):
        with MemoryCounter() as watch:
            real.step()
    assert measure_update(passes.outline) == watch.peak
    state = [value for of_one in real.state.values() for value in of_one.values()]
    assert sum(value.nbytes for value in passes.outline.state) == sum(value.nbytes for value in state)
