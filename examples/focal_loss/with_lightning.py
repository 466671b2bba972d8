"""The same loss with Lightning, whose means over microbatches are divided by their number."""

from examples.classifier_module import Classifier


class FocalClassifier(Classifier):
    def __init__(self, model, *, gamma, **options):
        super().__init__(model, **options)
        self.gamma = gamma

    def loss_and_logits(self, batch):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = self.model(**inputs).logits
        log_p = logits.log_softmax(dim=-1).gather(1, batch["labels"][:, None])[:, 0]
        return (-((1 - log_p.exp()) ** self.gamma) * log_p).mean(), logits
