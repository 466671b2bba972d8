"""R-Drop (arXiv 2106.14448): two forward passes with different dropout must give similar outputs."""

import torch.nn.functional as F

from trainer_loop import TrainingLoop


class RDrop(TrainingLoop):
    """weight: factor of the KL divergence between the two passes, which is added to their loss."""

    def __init__(self, *, weight=1.0, **parts):
        super().__init__(**parts)
        self.weight = weight

    def loss_sum(self, batch):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        one, other = (self.model(**inputs).logits.float().log_softmax(dim=-1) for _ in range(2))
        losses = sum(F.nll_loss(log_p, batch["labels"], reduction="sum") for log_p in (one, other)) / 2
        there, back = (F.kl_div(p, q, reduction="sum", log_target=True) for p, q in ((one, other), (other, one)))
        return losses + self.weight * (there + back) / 2
