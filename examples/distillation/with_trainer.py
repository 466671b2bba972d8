"""The same with transformers.Trainer."""

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, Trainer


class DistillationTrainer(Trainer):
    loss_is_scaled_for_ga = False  # it is a mean over the rows of a microbatch

    def __init__(self, *, teacher, temperature=2.0, share=0.5, **parts):
        super().__init__(**parts)
        self.teacher = AutoModelForSequenceClassification.from_pretrained(teacher).to(self.args.device).eval()
        self.temperature, self.share = temperature, share

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits.float() / self.temperature
        outputs = model(**inputs)
        logits = outputs.logits.float()
        student = (logits / self.temperature).log_softmax(dim=-1)
        from_teacher = F.kl_div(student, teacher_logits.log_softmax(dim=-1), reduction="batchmean", log_target=True)
        from_labels = F.cross_entropy(logits, labels)
        loss = self.share * self.temperature**2 * from_teacher + (1 - self.share) * from_labels
        return (loss, outputs) if return_outputs else loss
