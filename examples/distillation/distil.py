"""Distillation (arXiv 1503.02531): a small model learns from the probabilities of a larger one."""

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from trainer_loop import TrainingLoop


class Distillation(TrainingLoop):
    """Learn from the labels and from a teacher.

    Args:
        teacher: Directory or hub id of a model that was trained on the same labels.
        temperature: Divides the logits of both models.
        share: Weight of the teacher's loss; the loss of the labels has weight 1 - share.
    """

    def __init__(self, *, teacher, temperature=2.0, share=0.5, **parts):
        super().__init__(**parts)
        self.teacher = AutoModelForSequenceClassification.from_pretrained(teacher).to(self.accelerator.device).eval()
        self.temperature, self.share = temperature, share

    def loss_sum(self, batch):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = self.teacher(**inputs).logits.float() / self.temperature
        logits = self.model(**inputs).logits.float()
        student = (logits / self.temperature).log_softmax(dim=-1)
        from_teacher = F.kl_div(student, teacher_logits.log_softmax(dim=-1), reduction="sum", log_target=True)
        from_labels = F.cross_entropy(logits, batch["labels"], reduction="sum")
        return self.share * self.temperature**2 * from_teacher + (1 - self.share) * from_labels
