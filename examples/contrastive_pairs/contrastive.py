"""Sentence embeddings from pairs (arXiv 1705.00652): within a group of pairs, each first text must find its second.

The loss of a pair depends on the other pairs of its group, so a row of this task is a whole group. The groups are fixed
when the texts are encoded. The result therefore does not depend on microbatches or processes.
"""

from itertools import chain

import torch
import torch.nn.functional as F

from trainer_loop import Column, Task


class ContrastivePairs(Task):
    """group: number of pairs in a group. temperature: of the softmax over the cosines of a group."""

    auto_model = "AutoModel"
    auto_processor = "AutoTokenizer"
    columns = {"text": Column("text"), "text_pair": Column("text")}  # noqa: RUF012

    def __init__(self, *, group=8, temperature=0.05):
        self.group, self.temperature = group, temperature

    def settings(self):
        return {"group": self.group}

    def encode(self, rows, *, max_length):
        texts, pairs = list(rows["text"]), list(rows["text_pair"])
        starts = list(range(0, len(texts), self.group))
        groups = [texts[start : start + self.group] + pairs[start : start + self.group] for start in starts]
        encoded = [self.tokenizer(group, truncation=True, max_length=max_length)["input_ids"] for group in groups]
        lengths = [[len(ids) for ids in group] for group in encoded]
        return {"input_ids": [list(chain(*group)) for group in encoded], "lengths": lengths, "source": starts}

    def collate(self, rows):
        texts = [ids for row in rows for ids in torch.tensor(row["input_ids"]).split(row["lengths"])]
        batch = dict(self.tokenizer.pad([{"input_ids": ids} for ids in texts], return_tensors="pt"))
        return batch | {"pairs": [len(row["lengths"]) // 2 for row in rows]}

    def count(self, batch):
        return sum(batch["pairs"])

    def loss(self, model, batch):
        return sum(
            F.cross_entropy(cosines, targets, reduction="sum") for cosines, targets in self._compare(model, batch)
        )

    def predict(self, model, batch):
        accuracies = [
            (cosines.argmax(dim=1) == targets).float().mean() for cosines, targets in self._compare(model, batch)
        ]
        return {"predictions": torch.stack(accuracies), "references": torch.ones(len(accuracies))}

    def _compare(self, model, batch):
        """Yield for each group its cosines `[P, P]`, divided by the temperature, and their targets `[P]`."""
        mask = batch["attention_mask"][..., None]
        hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
        embedded = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
        for group in embedded.split([2 * pairs for pairs in batch["pairs"]]):
            first, second = group.chunk(2)
            yield first @ second.T / self.temperature, torch.arange(len(first), device=group.device)
