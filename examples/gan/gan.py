"""A GAN (arXiv 1406.2661) that draws points of a ring: two networks, two optimizers, two updates a step."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from trainer_loop import Task, TrainingLoop
from trainer_loop.optim.joined import JoinedOptimizer

NOISE = 8


class Ring(Task):
    """Rows are points `[2]`; what is learnt is to draw others like them."""

    def judge_loss(self, model, batch):
        real, drawn = batch["point"], model.draw(len(batch["point"])).detach()
        return F.softplus(-model.judge(real)).sum() + F.softplus(model.judge(drawn)).sum()

    def draw_loss(self, model, batch):
        return F.softplus(-model.judge(model.draw(len(batch["point"])))).sum()

    loss = judge_loss  # what an evaluation reports

    def predict(self, model, batch):
        return {"predictions": model.draw(len(batch["point"])).norm(dim=-1), "references": batch["point"].norm(dim=-1)}


class Networks(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.drawer = nn.Sequential(nn.Linear(NOISE, width), nn.ReLU(), nn.Linear(width, 2))
        self.judge = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def draw(self, count):
        return self.drawer(torch.randn(count, NOISE, device=self.drawer[0].weight.device))


def adam_for_each_group(params, lr):
    return JoinedOptimizer([torch.optim.Adam([group], lr=lr, betas=(0.5, 0.9)) for group in params])


class GanLoop(TrainingLoop):
    extra_metrics = ("judge_loss", "draw_loss")

    def train_step(self, step_batch):
        num_targets = self.count_targets(step_batch)
        loss_sum = self.engine.begin_step(step_batch.step)
        batches = [microbatch.batch for microbatch in step_batch.microbatches if not microbatch.is_dummy]
        turns = zip(self.optimizer.parts, (self.task.judge_loss, self.task.draw_loss), strict=True)
        for optimizer, loss_of in turns:  # first the judge, as the groups of the config say
            learning = optimizer.param_groups[0]["params"]
            for batch in batches:
                loss = loss_of(self.bare_model, batch)
                (loss / num_targets).backward(inputs=learning)
                loss_sum += loss.detach()
                self.log_metric(loss_of.__name__, loss, count=len(batch["point"]))
            self.sum_gradients(learning)
            gradients = self.clip_gradients(step_batch.step)
            optimizer.step()
            self.clear_gradients()
        return self.report_step(step_batch, loss_sum, num_targets, gradients)


def rows(count=2000):
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(count, generator=generator) * 2 * math.pi
    points = torch.stack([angles.cos(), angles.sin()], dim=-1) + 0.05 * torch.randn(count, 2, generator=generator)
    return [{"point": point} for point in points]
