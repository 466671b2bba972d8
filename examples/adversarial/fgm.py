"""FGM (arXiv 1605.07725): each step also trains on embeddings that are perturbed along their gradient."""

import torch

from trainer_loop import TrainingLoop


class Fgm(TrainingLoop):
    """epsilon: L2 norm of the perturbation of all embeddings."""

    def __init__(self, *, epsilon=1.0, **parts):
        super().__init__(**parts)
        self.epsilon = epsilon

    def accumulate_gradients(self, step_batch, num_targets):
        loss_sum = super().accumulate_gradients(step_batch, num_targets)
        if loss_sum is None:  # out of memory: the step is cut smaller
            return None
        embeddings = self.bare_model.get_input_embeddings().weight
        before = embeddings.detach().clone()
        with torch.no_grad():  # the gradient of the whole update, so the result does not depend on the microbatches
            embeddings += self.epsilon * embeddings.grad / embeddings.grad.norm()
        perturbed = super().accumulate_gradients(step_batch, num_targets)
        embeddings.data.copy_(before)
        return None if perturbed is None else loss_sum
