"""A model so small that a training step is nearly all loop, and its rows; all sides use them."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, CLASSES = 64, 128, 2
LR = 1e-3
MAX_NORM = 1.0

Row = dict[str, Any]


@dataclass
class Output:
    """Output like that of a transformers model."""

    logits: Tensor  # [B, C]


class TinyClassifier(nn.Module):
    """Three linear layers with the same weights at every call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
        )

    def forward(self, features: Tensor) -> Output:
        """The output for a batch.

        Args:
            features: `[B, WIDTH]`.
        """
        return Output(self.layers(features))


def make_rows(count: int) -> list[Row]:
    """Random features; the label is the sign of one of them."""
    features = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))
    return [{"row": number, "features": row, "label": int(row[0] > 0)} for number, row in enumerate(features)]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, num_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_steps))


def mean_loss(output: Output, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, labels)


class Collate:
    """Turn rows into `features` `[B, WIDTH]` and `labels` `[B]`; records the time and the rows of each batch.

    All sides call it once per step, so the time between two calls is that of a step, and no hook is needed.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rows: list[int] = []

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        self.times.append(time.perf_counter())
        self.rows += [row["row"] for row in rows]
        return {
            "features": torch.stack([row["features"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }


@torch.no_grad()
def score(model: nn.Module, rows: list[Row]) -> float:
    """The mean loss of the trained model over these rows."""
    batch = Collate()(rows)
    return float(mean_loss(model(batch["features"]), batch["labels"]))
