"""What the versions with Lightning are built upon: a LightningModule that trains a classifier on its own loss."""

import torch
from lightning import LightningModule
from transformers import get_linear_schedule_with_warmup


class Classifier(LightningModule):
    def __init__(self, model, *, lr=5e-5, weight_decay=0.01):
        super().__init__()
        self.model, self.lr, self.weight_decay = model, lr, weight_decay

    def loss_and_logits(self, batch):
        outputs = self.model(**batch)
        return outputs.loss, outputs.logits

    def training_step(self, batch, batch_index):
        loss, _ = self.loss_and_logits(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        loss, logits = self.loss_and_logits(batch)
        accuracy = (logits.argmax(dim=-1) == batch["labels"]).float().mean()
        self.log_dict({"validation/loss": loss, "validation/accuracy": accuracy}, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
