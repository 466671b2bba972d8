"""Pictures of digits and a small convolutional network, whose norm looks at one picture at a time."""

import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from trainer_loop import Task


class Digits(Task):
    metrics = ("accuracy",)

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["image"]), batch["digit"], reduction="sum")

    def predict(self, model, batch):
        return {"predictions": model(batch["image"]).argmax(dim=-1), "references": batch.get("digit")}


class Cnn(nn.Sequential):
    """Images `[B, 1, 8, 8]` -> logits `[B, 10]`. GroupNorm, for BatchNorm would make rows depend on each other."""

    def __init__(self, channels):
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 16, 10),
        )


def rows():
    images, digits = load_digits(return_X_y=True)
    images = images.astype("float32").reshape(-1, 1, 8, 8) / 16
    return [{"image": image, "digit": int(digit)} for image, digit in zip(images, digits, strict=True)]
