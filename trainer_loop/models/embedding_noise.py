"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings during training."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def use_embedding_noise(model: PreTrainedModel, *, alpha: float) -> None:
    """Add uniform noise of at most `alpha / sqrt(T * D)` to each embedding `[D]` of a row of T tokens.

    T counts the row's own tokens. Padding does not count, because it depends on the other rows of the microbatch.
    """
    lengths: list[Tensor] = []

    def store_lengths(_module: nn.Module, _arguments: tuple[Any, ...], batch: dict[str, Any]) -> None:
        lengths[:] = [_lengths_by_token(batch)]

    def add_noise(embedding: nn.Module, _arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if not embedding.training:
            return embedded
        limits = alpha / (lengths[0] * embedded.shape[-1]).sqrt()
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * limits.to(embedded.dtype)

    model.register_forward_pre_hook(store_lengths, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(add_noise)


def _lengths_by_token(batch: dict[str, Any]) -> Tensor:
    """Return the length of each token's row, `[B, 1, 1]`, or `[1, T, 1]` for packed rows."""
    if "row_ends" in batch:
        lengths = batch["row_ends"].diff()
        return lengths.repeat_interleave(lengths, output_size=batch["input_ids"].shape[1])[None, :, None]
    return batch["attention_mask"].sum(dim=1)[:, None, None]
