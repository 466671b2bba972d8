"""The same task with Lightning; rows and their collator are those of the version with transformers.Trainer."""

import torch
import torch.nn.functional as F

from examples.classifier_module import Classifier


class ContrastivePairs(Classifier):
    def __init__(self, model, *, temperature=0.05, **options):
        super().__init__(model, **options)
        self.temperature = temperature

    def training_step(self, batch, batch_index):
        losses, _ = self.compare(batch)
        self.log("loss", losses.mean(), batch_size=len(losses))
        return losses.mean()

    def validation_step(self, batch, batch_index):
        losses, found = self.compare(batch)
        accuracy = (found == batch["labels"]).float().mean()
        values = {"validation/loss": losses.mean(), "validation/accuracy": accuracy}
        self.log_dict(values, batch_size=len(losses))

    def compare(self, batch):
        mask = batch["attention_mask"][..., None]
        hidden = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
        embedded = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
        losses, found = [], []
        groups = embedded.split([2 * pairs for pairs in batch["pairs"]])
        for group, place in zip(groups, batch["labels"].split(batch["pairs"]), strict=True):
            first, second = group.chunk(2)
            cosines = first @ second.T / self.temperature
            losses.append(F.cross_entropy(cosines, place, reduction="none"))
            found.append(cosines.argmax(dim=1))
        return torch.cat(losses), torch.cat(found)
