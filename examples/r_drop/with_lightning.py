"""The same with Lightning."""

import torch.nn.functional as F

from examples.classifier_module import Classifier


class RDropClassifier(Classifier):
    def __init__(self, model, *, weight=1.0, **options):
        super().__init__(model, **options)
        self.weight = weight

    def training_step(self, batch, batch_index):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        one, other = (self.model(**inputs).logits.float().log_softmax(dim=-1) for _ in range(2))
        losses = sum(F.nll_loss(log_p, batch["labels"]) for log_p in (one, other)) / 2
        there, back = (F.kl_div(p, q, reduction="batchmean", log_target=True) for p, q in ((one, other), (other, one)))
        loss = losses + self.weight * (there + back) / 2
        self.log("loss", loss)
        return loss
