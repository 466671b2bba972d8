"""The same with transformers.Trainer, where no microbatches are accumulated: it has no place around a whole update."""

import torch
from transformers import Trainer


class FgmTrainer(Trainer):
    def __init__(self, *, epsilon=1.0, **parts):
        super().__init__(**parts)
        assert self.args.gradient_accumulation_steps == 1, "embeddings would move by the gradient of a microbatch"
        self.epsilon = epsilon

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings().weight
        before = embeddings.detach().clone()
        with torch.no_grad():
            embeddings += self.epsilon * embeddings.grad / embeddings.grad.norm()
        super().training_step(model, dict(inputs), num_items_in_batch)
        embeddings.data.copy_(before)
        return loss
