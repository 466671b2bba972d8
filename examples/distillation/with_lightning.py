"""The same with Lightning. The teacher is kept in a list, out of the checkpoints and of `parameters()`."""

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from examples.classifier_module import Classifier


class DistilledClassifier(Classifier):
    def __init__(self, model, *, teacher, temperature=2.0, share=0.5, **options):
        super().__init__(model, **options)
        self.teachers = [AutoModelForSequenceClassification.from_pretrained(teacher).eval()]
        self.temperature, self.share = temperature, share

    def on_fit_start(self):
        self.teachers[0].to(self.device)

    def training_step(self, batch, batch_index):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            teacher_logits = self.teachers[0](**inputs).logits.float() / self.temperature
        logits = self.model(**inputs).logits.float()
        student = (logits / self.temperature).log_softmax(dim=-1)
        from_teacher = F.kl_div(student, teacher_logits.log_softmax(dim=-1), reduction="batchmean", log_target=True)
        from_labels = F.cross_entropy(logits, batch["labels"])
        loss = self.share * self.temperature**2 * from_teacher + (1 - self.share) * from_labels
        self.log("loss", loss)
        return loss
