"""The embedding for CPUs: torch's own, but for the form of its gradient."""

import pytest
import tiny
import torch
from torch import nn

from trainer_loop.ops.cpu_kernels import CpuEmbedding, use_cpu_modules

MICROBATCHES = [torch.tensor([[1, 2, 2, 0], [3, 1, 0, 0]]), torch.tensor([[2, 5, 0, 0]]), torch.tensor([[7, 7, 7, 7]])]


def make(padding_idx):
    torch.manual_seed(0)
    return nn.Embedding(40, 4, padding_idx=padding_idx, dtype=torch.float64)


def accumulate(embedding):
    weights = torch.linspace(-1, 1, 4, dtype=torch.float64)
    for tokens in MICROBATCHES:
        (embedding(tokens).sin() * weights).sum().backward()
    return embedding.weight.grad


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_its_gradient_over_microbatches_is_torchs_and_dense(padding_idx):
    wanted = accumulate(make(padding_idx))
    embedding = nn.Sequential(make(padding_idx))
    use_cpu_modules(embedding)
    assert type(embedding[0]) is CpuEmbedding
    found = accumulate(embedding[0])
    assert not found.is_sparse
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
    assert (found[0] == 0).all() == (padding_idx == 0)


def test_what_is_added_to_a_gradient_is_only_as_large_as_the_tokens():
    embedding = nn.Sequential(make(None))
    use_cpu_modules(embedding)
    sizes = []
    embedding[0].weight.register_hook(
        lambda grad: sizes.append(grad._values().numel() if grad.is_sparse else grad.numel())
    )
    accumulate(embedding[0])
    assert sizes == [160, 16, 16]


def test_a_weight_that_is_the_output_head_too_gets_both_gradients():
    def gradient(model):
        for tokens in MICROBATCHES:
            model(input_ids=tokens, labels=tokens).loss.backward()
        return model.transformer.wte.weight.grad

    plain, ours = tiny.make_gpt2(), tiny.make_gpt2()
    use_cpu_modules(ours)
    assert type(ours.transformer.wte) is CpuEmbedding
    torch.testing.assert_close(gradient(ours), gradient(plain), rtol=0, atol=1e-6)


def test_a_gradient_asked_for_by_itself_is_there_and_accumulates_nothing():
    embedding = nn.Sequential(make(None))
    use_cpu_modules(embedding)
    before = accumulate(embedding[0]).clone()
    (asked,) = torch.autograd.grad(embedding[0](MICROBATCHES[0]).sum(), embedding[0].weight)
    assert asked.to_dense()[2].tolist() == [2.0] * 4
    assert torch.equal(embedding[0].weight.grad, before)


def test_a_frozen_embedding_and_one_that_renormalises_stay_torchs():
    frozen, renormalised = make(None).requires_grad_(False), nn.Embedding(40, 4, max_norm=1.0, dtype=torch.float64)
    model = nn.Sequential(frozen, renormalised)
    use_cpu_modules(model)
    assert not frozen(MICROBATCHES[0]).requires_grad
    renormalised(MICROBATCHES[0])
    assert renormalised.weight[1].norm() <= 1.0 + 1e-6
