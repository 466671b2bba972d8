"""A GAN (arXiv 1406.2661) that generates points on a ring: two networks, two optimizers, two updates in a step."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from trainer_loop import Task, TrainingLoop
from trainer_loop.optim.joined import JoinedOptimizer

NOISE = 8


class Ring(Task):
    """Learn to generate points `[2]` like those in the rows."""

    def discriminator_loss(self, model, batch):
        real, generated = batch["point"], model.generate(len(batch["point"])).detach()
        return F.softplus(-model.discriminator(real)).sum() + F.softplus(model.discriminator(generated)).sum()

    def generator_loss(self, model, batch):
        return F.softplus(-model.discriminator(model.generate(len(batch["point"])))).sum()

    loss = discriminator_loss  # the loss of evaluations

    def predict(self, model, batch):
        return {
            "predictions": model.generate(len(batch["point"])).norm(dim=-1),
            "references": batch["point"].norm(dim=-1),
        }


class Networks(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(NOISE, width), nn.ReLU(), nn.Linear(width, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def generate(self, count):
        return self.generator(torch.randn(count, NOISE, device=self.generator[0].weight.device))


def adam_for_each_group(params, lr):
    return JoinedOptimizer([torch.optim.Adam([group], lr=lr, betas=(0.5, 0.9)) for group in params])


class GanLoop(TrainingLoop):
    extra_metrics = ("discriminator_loss", "generator_loss")

    def train_step(self, step_batch):
        num_targets = self.count_targets(step_batch)
        loss_sum = self.engine.begin_step(step_batch.step)
        batches = [microbatch.batch for microbatch in step_batch.microbatches if not microbatch.is_dummy]
        turns = zip(self.optimizer.parts, (self.task.discriminator_loss, self.task.generator_loss), strict=True)
        for optimizer, loss_of in turns:  # the discriminator first, in the order of the groups in the config
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
