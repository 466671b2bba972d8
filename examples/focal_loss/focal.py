"""Focal loss (arXiv 1708.02002): rows that the model already classifies well have less weight."""


def focal(logits, targets, *, gamma):
    log_p = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return (-((1 - log_p.exp()) ** gamma) * log_p).sum()
