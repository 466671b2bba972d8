"""Logits in chunks: the same loss and gradients as from all logits at once, and never all of them in memory."""

import copy
from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from trainer_loop.ops import output_head
from trainer_loop.runtime.budget import choose_token_budget
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.losses import cross_entropy

SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def make_llama() -> nn.Module:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt2, tied embeddings": tiny.make_gpt2, "llama": make_llama}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch):
    """Seven tokens at a time, so that the batches of these tests make many chunks."""
    monkeypatch.setitem(output_head._MOST_LOGITS, "cpu", 7 * tiny.VOCABULARY)


def make_task(**arguments) -> CausalLM:
    task = CausalLM(**arguments)
    task.bind(tiny.make_tokenizer())
    return task


def compute_plainly(model: nn.Module, batch: dict[str, Tensor], loss_function=cross_entropy) -> Tensor:
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:].flatten()
    return loss_function(logits, targets)


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, label_smoothing=0.1)


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    nll = F.cross_entropy(logits, targets, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).sum()


def has_output_head(model: nn.Module) -> bool:
    task = make_task()
    head, _ = task._run(model, task.collate(tiny.make_rows(2, labelled=False)))
    return isinstance(head, output_head.OutputHead)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss_function", [cross_entropy, smoothed, focal])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_loss_and_gradients_are_those_of_all_logits_at_once(name, loss_function, dtype, tolerance):
    model = MODELS[name]().to(dtype)
    plain = copy.deepcopy(model)
    task = make_task(loss_function=loss_function)
    batches = [task.collate(tiny.make_rows(4, seed=seed, labelled=False)) for seed in range(3)]
    num_targets = sum(map(task.count, batches))
    for batch in batches:  # gradients are accumulated
        loss = task.loss(model, batch) / num_targets
        expected = compute_plainly(plain, batch, loss_function) / num_targets
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        loss.backward()
        expected.backward()
    assert has_output_head(model)
    for (parameter, gradient), other in zip(
        [(parameter, parameter.grad) for parameter in model.parameters()], plain.parameters(), strict=True
    ):
        assert gradient is not None and gradient.dtype == parameter.dtype
        torch.testing.assert_close(gradient, other.grad, rtol=0, atol=tolerance)


def test_a_head_with_a_bias_and_a_head_that_is_frozen():
    model = make_llama().double()
    model.lm_head = nn.Linear(16, tiny.VOCABULARY, dtype=torch.float64)
    plain = copy.deepcopy(model)
    task = make_task()
    batch = task.collate(tiny.make_rows(4, labelled=False))
    task.loss(model, batch).backward()
    compute_plainly(plain, batch).backward()
    torch.testing.assert_close(model.lm_head.bias.grad, plain.lm_head.bias.grad, rtol=0, atol=1e-12)
    model.zero_grad(set_to_none=True)
    model.lm_head.requires_grad_(False)
    task.loss(model, batch).backward()
    assert model.lm_head.weight.grad is None
    first, other = next(model.parameters()).grad, next(plain.parameters()).grad
    torch.testing.assert_close(first, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_gives_the_figures_of_all_logits_at_once(name):
    model = MODELS[name]().double().eval()
    task = make_task()
    batch = task.collate(tiny.make_rows(6, labelled=False))
    with torch.no_grad():
        loss, judged = task.loss_and_predict(model, batch)
        assert loss.item() == pytest.approx(compute_plainly(model, batch).item(), abs=1e-9)
        for row in range(6):
            alone = {key: value[row : row + 1] for key, value in batch.items()}
            assert judged["predictions"][row].item() == pytest.approx(compute_plainly(model, alone).item(), abs=1e-9)
        assert task.loss(model, batch).item() == loss.item()


def test_rows_without_a_target_have_no_loss():
    task = make_task()
    model = tiny.make_gpt2()
    batch = task.collate([{"input_ids": [5]}, {"input_ids": [6]}])
    loss = task.loss(model, batch)
    loss.backward()
    assert loss.item() == 0
    assert task.predict(model, batch)["references"].tolist() == [0, 0]
    assert all(not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_under_autocast_the_head_multiplies_in_half_precision_too(precision):
    """The gradients are as near to those in fp32 as those of all logits at once are."""
    task = make_task()
    batch = task.collate(tiny.make_rows(8, labelled=False))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, Tensor) and result.shape[-1:] == (tiny.VOCABULARY,) and "mm" in function.__name__:
                products.append(result.dtype)
            return result

    def prepare(model: nn.Module) -> nn.Module:
        """As accelerate does, which on a CPU without its hardware would refuse fp16."""
        model.forward = torch.autocast("cpu", dtype)(model.forward)
        return model

    gradients = {}
    exact = make_llama()
    compute_plainly(exact, batch).backward()
    model, plain = prepare(make_llama()), prepare(make_llama())
    with Watch():
        loss = task.loss(model, batch)
        loss.backward()
    compute_plainly(plain, batch, lambda logits, targets: cross_entropy(logits.float(), targets)).backward()
    assert set(products) == {dtype}
    assert loss.dtype == torch.float32
    for name, one in {"chunks": model, "plain": plain}.items():
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in one.parameters()])
    wanted = torch.cat([parameter.grad.flatten() for parameter in exact.parameters()])
    error = {name: (gradient - wanted).norm() / wanted.norm() for name, gradient in gradients.items()}
    assert error["chunks"] < max(1.5 * error["plain"], 1e-3)
    assert error["chunks"] > 1e-6


def test_what_accelerate_prepares_for_bf16_is_found_out():
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(tiny.make_gpt2())
    task = make_task()
    head, hidden = task._run(model, task.collate(tiny.make_rows(2, labelled=False)))
    assert head.dtype == torch.bfloat16
    assert hidden.dtype == torch.float32


def make_capped() -> nn.Module:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0))


def make_scaled() -> nn.Module:
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625))


@pytest.mark.parametrize("make", [make_capped, make_scaled])
def test_logits_that_are_changed_behind_the_head_are_taken_as_they_come(make):
    model = make().double()
    plain = copy.deepcopy(model)
    task = make_task()
    batch = task.collate(tiny.make_rows(4, labelled=False))
    task.loss(model, batch).backward()
    assert not has_output_head(model)
    compute_plainly(plain, batch).backward()
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-12)


def test_logits_that_are_cut_or_reshaped_behind_the_head_are_taken_as_they_come():
    class Cut(GPT2LMHeadModel):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits[..., : tiny.VOCABULARY - 1]
            return output

    class Reshaped(GPT2LMHeadModel):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits.view(*output.logits.shape[:2], tiny.VOCABULARY)
            return output

    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=16, n_layer=1, n_head=2)
    assert has_output_head(GPT2LMHeadModel(config))
    assert not has_output_head(Cut(config))
    assert not has_output_head(Reshaped(config))


def test_a_head_of_another_kind_is_left_alone():
    model = make_llama()
    model.lm_head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, tiny.VOCABULARY))
    assert not has_output_head(model)
    hooked = make_llama()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert not has_output_head(hooked)


def test_nothing_is_left_on_the_model_and_looking_draws_no_random_number():
    model = tiny.make_gpt2(dropout=0.3)
    model.transformer.drop.eval()
    before = dict(model.state_dict())
    task = make_task()
    batch = task.collate(tiny.make_rows(4, labelled=False))
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    first = task.loss(model, batch).item()
    torch.manual_seed(5)
    assert task.loss(model, batch).item() == first  # the second time nothing is looked for
    assert [module.training for module in model.modules()] == modes
    assert list(model.state_dict()) == list(before)
    assert "forward" not in vars(model.lm_head)
    assert model(**batch).logits.shape[-1] == tiny.VOCABULARY


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation has returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_no_tensor_is_as_large_as_all_logits(monkeypatch):
    vocabulary, length = 5000, 64
    monkeypatch.setitem(output_head._MOST_LOGITS, "cpu", 32 * vocabulary)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=length))
    task = make_task()
    batch = task.collate([{"input_ids": list(range(row, row + length))} for row in range(8)])
    all_logits = 8 * (length - 1) * vocabulary
    with LargestTensor() as plain:
        compute_plainly(model, batch).backward()
    with LargestTensor() as chunked:
        task.loss(model, batch).backward()
        with torch.no_grad():
            task.loss_and_predict(model, batch)
            task.predict(model, batch)
    assert plain.largest >= all_logits
    assert chunked.largest == 32 * vocabulary


def test_a_chunk_is_small_whatever_the_vocabulary(monkeypatch):
    monkeypatch.undo()
    for vocabulary in (50_257, 256_000, 10**9):
        sizes = [rows.stop - rows.start for rows in output_head._split(torch.empty(100_000, 0), vocabulary)]
        assert max(sizes) * vocabulary <= max(2**25, vocabulary)
        assert sum(sizes) >= 100_000


def test_microbatches_are_smaller_only_where_all_logits_are_held_at_once():
    task = make_task()
    sizes = SIZES | {"vocab_size": 256_000}
    assert task.logits_per_token(LlamaConfig(**sizes)) is None
    for config in (Gemma2Config(**sizes), CohereConfig(**sizes)):
        logits_per_token = task.logits_per_token(config)
        assert logits_per_token == 256_000
        budget = choose_token_budget("cuda", training=True, logits_per_token=logits_per_token)
        assert 0 < budget < choose_token_budget("cuda", training=True)


def test_memory_that_runs_out_while_the_head_is_looked_for_is_no_answer():
    model = make_llama()
    task = make_task()
    batch = task.collate(tiny.make_rows(2, labelled=False))

    def run_out(*_):
        raise torch.OutOfMemoryError("no memory")

    hook = model.model.register_forward_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        task.loss(model, batch)
    hook.remove()
    assert has_output_head(model)


def test_a_loss_that_learns_gets_its_gradient(several_chunks):
    temperature = torch.ones((), requires_grad=True)

    def tempered(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits * temperature, targets)

    model, task = tiny.make_gpt2(), make_task(loss_function=tempered)
    batch = task.collate(tiny.make_rows(4, labelled=False))
    (expected,) = torch.autograd.grad(compute_plainly(model, batch, tempered), [temperature])
    task.loss(model, batch).backward()
    torch.testing.assert_close(temperature.grad, expected)


def test_a_loss_may_be_constant_on_a_chunk(several_chunks):
    def of_one_word(logits: Tensor, targets: Tensor) -> Tensor:
        chosen = targets == 7
        return cross_entropy(logits[chosen], targets[chosen]) if chosen.any() else logits.new_zeros(())

    model, task = tiny.make_gpt2(), make_task(loss_function=of_one_word)
    batch = task.collate([{"input_ids": [5, 7, 9]}, {"input_ids": [9] * 20}])
    expected = torch.autograd.grad(compute_plainly(model, batch, of_one_word), list(model.parameters()))
    task.loss(model, batch).backward()
    for parameter, right in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, right)
