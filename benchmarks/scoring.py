"""Scores a classifier on held-out rows, in the same way for all sides."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

_TOKENS = 8192  # padded tokens of a batch


@dataclass(frozen=True)
class Scored:
    loss: float  # mean over the rows
    accuracy: float


class Scorer:
    """Scores models on the rows of a parquet file with `text` and `label`, under autocast in `precision`."""

    def __init__(self, texts: Path, tokenizer: Path, *, max_length: int, precision: str):
        table = pq.read_table(texts)
        self._labels = torch.tensor(table.column("label").to_pylist())
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        encoded = self._tokenizer(table.column("text").to_pylist(), truncation=True, max_length=max_length)
        self._rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        self._order = sorted(range(len(self._rows)), key=lambda row: -len(self._rows[row]["input_ids"]))
        self._precision = precision

    @torch.no_grad()
    def score(self, model: nn.Module) -> Scored:
        """Score a model; it stays in evaluation mode."""
        model.eval()
        device = next(model.parameters()).device
        parts: list[torch.Tensor] = []
        start = 0
        while start < len(self._order):
            width = len(self._rows[self._order[start]]["input_ids"])
            chosen = self._order[start : start + max(1, _TOKENS // width)]
            batch = self._tokenizer.pad([self._rows[row] for row in chosen], return_tensors="pt").to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"):
                parts.append(model(**batch).logits.float().cpu())
            start += len(chosen)
        logits = torch.cat(parts)
        labels = self._labels[self._order]
        accuracy = (logits.argmax(dim=-1) == labels).double().mean()
        return Scored(loss=float(F.cross_entropy(logits, labels)), accuracy=float(accuracy))
