"""FGM (arXiv 1605.07725): the model is trained again where its embeddings are moved against it."""

import torch

from trainer_loop import TrainingLoop


class Fgm(TrainingLoop):
    """epsilon: how far the embeddings are moved, the L2 norm over all of them."""

    def __init__(self, *, epsilon=1.0, **parts):
        super().__init__(**parts)
        self.epsilon = epsilon

    def accumulate_gradients(self, step_batch, num_targets):
        loss_sum = super().accumulate_gradients(step_batch, num_targets)
        if loss_sum is None:  # out of memory: the step is cut smaller
            return None
        embeddings = self.bare_model.get_input_embeddings().weight
        before = embeddings.detach().clone()
        with torch.no_grad():  # by the gradient of the whole update, so that its microbatches do not matter
            embeddings += self.epsilon * embeddings.grad / embeddings.grad.norm()
        moved = super().accumulate_gradients(step_batch, num_targets)
        embeddings.data.copy_(before)
        return None if moved is None else loss_sum
