"""The same with transformers.Trainer."""

import torch.nn.functional as F
from transformers import Trainer


class RDropTrainer(Trainer):
    loss_is_scaled_for_ga = False  # it is a mean over the rows of a microbatch

    def __init__(self, *, weight=1.0, **parts):
        super().__init__(**parts)
        self.weight = weight

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        one, other = (model(**inputs).logits.float().log_softmax(dim=-1) for _ in range(2))
        losses = sum(F.nll_loss(log_p, labels) for log_p in (one, other)) / 2
        there, back = (F.kl_div(p, q, reduction="batchmean", log_target=True) for p, q in ((one, other), (other, one)))
        return losses + self.weight * (there + back) / 2
