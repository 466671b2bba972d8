"""The same task with transformers.Trainer: `ContrastiveTrainer(..., data_collator=Collator(tokenizer))`.

Its model is an `AutoModel`, its rows are `dataset.map(encode, batched=True, batch_size=8, remove_columns=...)`, and its
arguments have remove_unused_columns=False, for Trainer leaves out columns that the model does not take.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from transformers import Trainer


def encode(texts, *, tokenizer, max_length):
    """A group of pairs, as `map` hands it over, becomes one row."""
    group = tokenizer(texts["first"] + texts["second"], truncation=True, max_length=max_length)["input_ids"]
    return {"input_ids": [list(chain(*group))], "lengths": [[len(ids) for ids in group]]}


class Collator:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows):
        texts = [ids for row in rows for ids in torch.tensor(row["input_ids"]).split(row["lengths"])]
        batch = dict(self.tokenizer.pad([{"input_ids": ids} for ids in texts], return_tensors="pt"))
        origins = [torch.arange(len(row["lengths"]) // 2) for row in rows]
        return batch | {"pairs": [len(place) for place in origins], "labels": torch.cat(origins)}


class ContrastiveTrainer(Trainer):
    loss_is_scaled_for_ga = False  # it is a mean over the pairs of a microbatch

    def __init__(self, *, temperature=0.05, **parts):
        super().__init__(**parts)
        self.temperature = temperature

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mask = inputs["attention_mask"][..., None]
        hidden = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state.float()
        embedded = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
        losses, found = [], []
        groups = embedded.split([2 * pairs for pairs in inputs["pairs"]])
        for group, place in zip(groups, inputs["labels"].split(inputs["pairs"]), strict=True):
            first, second = group.chunk(2)
            cosines = first @ second.T / self.temperature
            losses.append(F.cross_entropy(cosines, place, reduction="none"))
            found.append(cosines.argmax(dim=1))
        loss = torch.cat(losses).mean()
        return (loss, {"logits": torch.cat(found)}) if return_outputs else loss
