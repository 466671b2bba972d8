"""A table of numbers and a small network: nothing of transformers is in it."""

import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

from trainer_loop import Task


class Diagnosis(Task):
    metrics = ("accuracy",)

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["measured"]), batch["benign"], reduction="sum")

    def predict(self, model, batch):
        return {"predictions": model(batch["measured"]).argmax(dim=-1), "references": batch.get("benign")}


def make_mlp(width):
    return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2))


def rows():
    table = load_breast_cancer()
    measured = StandardScaler().fit_transform(table.data).astype("float32")
    return [{"measured": row, "benign": int(target)} for row, target in zip(measured, table.target, strict=True)]
