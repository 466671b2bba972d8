"""The same loss with transformers.Trainer: `Trainer(..., compute_loss_func=functools.partial(focal, gamma=2))`.

The sum is divided by `num_items_in_batch`, the rows of the whole update, which Trainer does not give in an evaluation.
"""


def focal(outputs, labels, *, gamma, num_items_in_batch=None):
    log_p = outputs.logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    losses = -((1 - log_p.exp()) ** gamma) * log_p
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
