"""The same with Lightning, which hands the whole step over for it: `automatic_optimization = False`.

Clipping, the schedule and the division by accumulated microbatches, which Lightning does otherwise, are written here.
"""

import torch

from examples.classifier_module import Classifier


class FgmClassifier(Classifier):
    def __init__(self, model, *, epsilon=1.0, max_grad_norm=1.0, **options):
        super().__init__(model, **options)
        self.automatic_optimization = False
        self.epsilon, self.max_grad_norm = epsilon, max_grad_norm

    def training_step(self, batch, batch_index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss, _ = self.loss_and_logits(batch)
        self.manual_backward(loss)
        embeddings = self.model.get_input_embeddings().weight
        before = embeddings.detach().clone()
        with torch.no_grad():
            embeddings += self.epsilon * embeddings.grad / embeddings.grad.norm()
        self.manual_backward(self.loss_and_logits(batch)[0])
        embeddings.data.copy_(before)
        self.clip_gradients(optimizer, gradient_clip_val=self.max_grad_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers().step()
        self.log("loss", loss)
