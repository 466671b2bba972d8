"""Attention and dropout for CPUs give what torch's own give."""

import contextlib
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import bidirectional_mask_function

from trainer_loop.ops import attention, cpu_kernels
from trainer_loop.ops.attention import ATTENTION, attend, describe_attention_dropout, make_mask, use_attention
from trainer_loop.ops.cpu_kernels import CpuDropout, is_faster_on_cpu, use_cpu_modules

ROWS, HEADS, LENGTH, WIDTH = 5, 4, 45, 16
FILLED_UP = 64  # the keys of that length in bf16


class Layer(nn.Module):
    """What transformers hands its attention function."""

    def __init__(self, is_causal: bool = False):
        super().__init__()
        self.is_causal = is_causal


@pytest.fixture(autouse=True)
def _two_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_BYTES_AT_A_TIME", 2 * HEADS * LENGTH * FILLED_UP * 2)


def make_inputs(dtype: torch.dtype, *, key_heads: int = HEADS, length: int = LENGTH) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    inputs = [
        torch.randn(ROWS, length, heads, WIDTH).transpose(1, 2).to(dtype).requires_grad_()
        for heads in (HEADS, key_heads, key_heads)
    ]
    return inputs, torch.randn(ROWS, length, HEADS, WIDTH).to(dtype)


def padding_mask(*, causal: bool, on_the_left: bool = False) -> Tensor:
    lengths = torch.tensor([LENGTH, LENGTH, 20, 3, 1])
    keys = torch.arange(LENGTH) < lengths[:, None]
    mask = (keys.flip(-1) if on_the_left else keys)[:, None, None, :].expand(ROWS, 1, LENGTH, LENGTH)
    return mask & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() if causal else mask


def run_ours(inputs: list[Tensor], grad: Tensor, layer: nn.Module, mask: Tensor | None, **options: Any) -> list[Tensor]:
    query, key, value, *bias = inputs
    if bias:
        options["position_bias"] = bias[0].permute(2, 0, 1)[None]
    attended, _ = attend(layer, query, key, value, mask, **options)
    transposed = attended.grad_fn.next_functions[0][0]
    assert "CpuAttention" in str(transposed.next_functions), "torch's attention was taken"
    return [attended.detach(), *torch.autograd.grad(attended, inputs, grad)]


def run_exactly(inputs: list[Tensor], grad: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None = None):
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    query, key, value, *bias = wide
    if bias:
        by_head = bias[0].permute(2, 0, 1)[None]
        mask = by_head if mask is None else torch.where(mask, by_head, -torch.inf)
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True
    ).transpose(1, 2)
    return [attended.detach(), *torch.autograd.grad(attended, wide, grad.float())]


def assert_near(ours: list[Tensor], exact: list[Tensor], *, within: float) -> None:
    for mine, right in zip(ours, exact, strict=True):
        assert (mine.float() - right).abs().max() <= within * right.abs().max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_attention_in_bf16_is_that_of_torch(causal: bool, padded: bool, key_heads: int):
    inputs, grad = make_inputs(torch.bfloat16, key_heads=key_heads)
    layer = Layer(causal)
    layer.num_key_value_groups = HEADS // key_heads
    mask = padding_mask(causal=causal) if padded else None
    assert_near(run_ours(inputs, grad, layer, mask), run_exactly(inputs, grad, mask, causal=causal), within=0.02)


@pytest.mark.parametrize(
    "mask",
    [padding_mask(causal=False, on_the_left=True), padding_mask(causal=False)[2:3]],
    ids=["left", "same for all"],
)
def test_any_mask_hides_what_it_says(mask: Tensor):
    inputs, grad = make_inputs(torch.bfloat16)
    exact = run_exactly(inputs, grad, mask, causal=False)
    assert_near(run_ours(inputs, grad, Layer(), mask), exact, within=0.02)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_bias_of_positions_is_added_and_learns(causal: bool, padded: bool):
    inputs, grad = make_inputs(torch.bfloat16)
    bias = torch.randn(LENGTH, LENGTH, HEADS).requires_grad_()  # as an embedding returns it
    mask = padding_mask(causal=causal) if padded else None
    ours = run_ours([*inputs, bias], grad, Layer(causal), mask)
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() if causal and not padded else mask
    assert_near(ours, run_exactly([*inputs, bias], grad, hidden, causal=False), within=0.02)


@pytest.mark.parametrize("keys", [2, 20, LENGTH + 10])
def test_keys_of_another_text_are_attended_to(keys: int):
    (query, *_), grad = make_inputs(torch.bfloat16)
    (_, key, value), _ = make_inputs(torch.bfloat16, length=keys)
    mask = (torch.arange(keys) < torch.tensor([keys, keys, 3, 2, 1])[:, None])[:, None, None].expand(-1, 1, LENGTH, -1)
    for given in (None, mask):
        ours = run_ours([query, key, value], grad, Layer(), given)
        assert_near(ours, run_exactly([query, key, value], grad, given, causal=False), within=0.02)
    zeros = torch.zeros(1, HEADS, LENGTH, keys)
    again = attend(Layer(), query, key, value, mask, position_bias=zeros)[0]
    assert torch.equal(again, ours[0]), "T5 passes zeros where it has no bias"


@pytest.mark.parametrize("length", [2, 11, 12, 31, 32, 33, 43, 44, 63, 64, 65])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_any_length_is_that_of_torch(length: int, causal: bool):
    inputs, grad = make_inputs(torch.bfloat16, length=length)
    exact = run_exactly(inputs, grad, None, causal=causal)
    assert_near(run_ours(inputs, grad, Layer(causal), None), exact, within=0.02)


def test_attention_is_the_same_under_autocast():
    inputs, grad = make_inputs(torch.bfloat16)
    outside = run_ours(inputs, grad, Layer(), None)
    with torch.autocast("cpu", torch.bfloat16):
        within = run_ours(inputs, grad, Layer(), None)
    assert all(torch.equal(one, other) for one, other in zip(outside, within, strict=True))


def test_scaling_is_heeded():
    inputs, grad = make_inputs(torch.bfloat16)
    ours = run_ours(inputs, grad, Layer(), None, scaling=0.5)
    assert_near(ours, run_exactly(inputs, grad, None, causal=False, scale=0.5), within=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_probabilities_and_scales_the_rest(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    keys = FILLED_UP if dtype == torch.bfloat16 else LENGTH
    drawn = torch.randint(0, 2**15, (ROWS, HEADS, LENGTH, keys), dtype=torch.int16)
    left = [drawn.flatten()]

    def draw(count: int) -> Tensor:
        part, left[0] = left[0][:count].clone(), left[0][count:]
        return part

    monkeypatch.setattr(cpu_kernels, "_draw_ints", draw)
    inputs, grad = make_inputs(dtype)
    if dtype == torch.bfloat16:
        inputs.append(torch.randn(LENGTH, LENGTH, HEADS).requires_grad_())
    ours = run_ours(inputs, grad, Layer(), padding_mask(causal=False), dropout=0.25)
    assert not len(left[0])

    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    query, key, value, *bias = wide
    scores = query @ key.transpose(-1, -2) * WIDTH**-0.5 + (bias[0].permute(2, 0, 1) if bias else 0)
    scores = scores.masked_fill(~padding_mask(causal=False), float("-inf"))
    attended = ((scores.softmax(-1) * (drawn[..., :LENGTH] >= 2**13) / 0.75) @ value).transpose(1, 2)
    exact = [attended.detach(), *torch.autograd.grad(attended, wide, grad.float())]
    assert_near(ours, exact, within=1e-5 if dtype == torch.float32 else 0.02)


def test_fp32_without_dropout_and_float64_are_left_to_torch():
    for dtype in (torch.float32, torch.float64):
        inputs, _ = make_inputs(dtype)
        attended, _ = attend(Layer(), *inputs, None)
        assert torch.equal(attended, F.scaled_dot_product_attention(*inputs).transpose(1, 2))


def test_fp32_with_a_bias_or_keys_of_another_text_is_left_to_torch():
    (query, key, value), _ = make_inputs(torch.float32)
    bias = torch.randn(1, HEADS, LENGTH, LENGTH)
    attended, _ = attend(Layer(), query, key, value, None, position_bias=bias, dropout=0.0)
    assert torch.equal(attended, F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2))
    assert not is_faster_on_cpu(query, key, value, None, bias, causal=False, dropout=0.1)
    assert not is_faster_on_cpu(query, key[:, :, :20], value[:, :, :20], None, None, causal=False, dropout=0.1)


def test_values_of_another_width_are_left_to_torch():
    (query, key, _), _ = make_inputs(torch.bfloat16)
    value = torch.randn(ROWS, HEADS, LENGTH, WIDTH + 4, dtype=torch.bfloat16)
    attended, _ = attend(Layer(), query, key, value, None)
    assert torch.equal(attended, F.scaled_dot_product_attention(query, key, value).transpose(1, 2))


def test_rows_with_too_many_scores_are_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_kernels, "_MOST_BYTES_A_ROW", 1)
    inputs, _ = make_inputs(torch.bfloat16)
    attended, _ = attend(Layer(), *inputs, None)
    assert torch.equal(attended, F.scaled_dot_product_attention(*inputs).transpose(1, 2))


def test_dropout_of_hidden_states_keeps_the_mean_and_follows_the_seed():
    layer, ones = CpuDropout(0.1), torch.ones(400, 500)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(ones))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert (results[0] == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert results[0].mean().item() == pytest.approx(1.0, abs=0.005)
    assert torch.equal(layer.eval()(ones), ones)


def test_a_model_keeps_its_parameters_and_what_it_says_when_it_does_not_train():
    model = tiny.make_bert(dropout=0.1).eval()
    names = list(model.state_dict())
    tokens = torch.randint(1, tiny.VOCABULARY, (3, 9))
    before = model(input_ids=tokens).logits
    use_attention(model)
    use_cpu_modules(model)
    assert model.config._attn_implementation == ATTENTION
    assert {type(module) for module in model.modules() if isinstance(module, nn.Dropout)} == {CpuDropout}
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(input_ids=tokens).logits, before)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_in_bf16_stays_near_fp32_in_a_decoder_with_few_key_heads(
    dropout: float, monkeypatch: pytest.MonkeyPatch
):
    """Its rotations make queries and keys fp32, and leave values in bf16."""
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)  # all is done here
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=dropout,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    tokens = torch.randint(1, 50, (3, 20))
    mask = (torch.arange(20) < torch.tensor([20, 11, 4])[:, None]).long()
    exact = model.eval()(input_ids=tokens, attention_mask=mask).logits
    use_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(input_ids=tokens, attention_mask=mask).logits.sum().backward()
        ours = model.eval()(input_ids=tokens, attention_mask=mask).logits
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert ((ours - exact).abs() * mask[..., None]).max() < 0.02 * exact.abs().max()


def test_attention_that_was_chosen_stays():
    model = tiny.make_bert()
    model.set_attn_implementation("eager")
    use_attention(model)
    assert model.config._attn_implementation == "eager"


def test_an_exported_config_does_not_name_the_attention(tmp_path):
    model = tiny.make_bert()
    use_attention(model)
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert BertForSequenceClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_the_cost_of_attention_dropout_is_told_with_the_key_that_changes_it():
    def describe(max_length: int = 64, attention: bool = True, **fields: float) -> str | None:
        model = BertForSequenceClassification(
            BertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=12, **fields)
        )
        if attention:
            use_attention(model)
        return describe_attention_dropout(model, max_length=max_length)

    assert describe(attention_probs_dropout_prob=0.0) is None
    told = describe(attention_probs_dropout_prob=0.1)
    assert told.startswith("attention dropout 0.1 costs up to a fifth")
    assert told.endswith("model.overrides.attention_probs_dropout_prob=0.0 leaves it out")
    assert "half" in describe(attention_probs_dropout_prob=0.1, attention=False)
    assert "half" in describe(attention_probs_dropout_prob=0.1, max_length=4096)


def test_masks_that_are_not_read_hide_the_same(monkeypatch: pytest.MonkeyPatch):
    rows = tiny.make_rows(4, labelled=False)
    for name in ("sequence_classification", "causal_lm"):
        model = tiny.make_model(name).eval()
        batch = dict(tiny.make_tokenizer().pad(rows, return_tensors="pt"))
        expected = model(**batch).logits
        use_attention(model)
        monkeypatch.setattr(attention, "_HOST_DEVICES", ())
        hidden = batch["attention_mask"] == 0 if name == "causal_lm" else torch.zeros(len(rows), dtype=torch.bool)
        for surroundings in (contextlib.nullcontext(), attention.padded_on_the_right()):
            with surroundings:
                logits = model(**batch).logits
            torch.testing.assert_close(logits[~hidden], expected[~hidden])


def test_causal_rows_padded_on_the_right_need_no_mask():
    asked = {"q_length": 5, "kv_length": 5, "batch_size": 2, "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])}
    assert make_mask(**asked).shape == (2, 1, 5, 5)
    with attention.padded_on_the_right():
        assert make_mask(**asked) is None
        assert make_mask(**asked, local_size=3) is not None
        assert make_mask(**asked, mask_function=bidirectional_mask_function) is not None
        assert make_mask(**asked | {"kv_length": 5, "q_length": 1}) is not None
