"""The section `parallel` of a config, and the settings that it excludes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from trainer_loop.errors import UserError, refuse
from trainer_loop.runtime.host import count_launched_processes


@dataclass(frozen=True)
class ShardingPlan:
    """A `parallel` section; the fields are its keys."""

    shard: str = "none"
    replicate: int | str = 1
    layers: Sequence[str] = ()
    reduce_dtype: str = "fp32"
    exchange: str = "microbatch"
    offload: str = "none"

    @property
    def is_sharded(self) -> bool:
        return self.shard != "none"

    @property
    def gathers_once(self) -> bool:
        """Whether weights stay gathered for all microbatches of a step."""
        return self.shard == "zero2"

    @property
    def reduces_once(self) -> bool:
        """Whether gradients are summed over processes once per step, and are whole until then."""
        return self.gathers_once or self.exchange == "step"

    @property
    def offloads(self) -> bool:
        """Whether weights, gradients and optimizer state stay in host memory between uses."""
        return self.offload == "weights"

    @property
    def num_replicas(self) -> int:
        """Number of process groups that hold one copy of the model each; `auto` means one per machine."""
        if self.replicate != "auto":
            return int(self.replicate)
        num_processes = count_launched_processes()
        return max(1, num_processes // int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))

    @property
    def gradient_type(self) -> torch.dtype:
        """The type in which gradients are summed over processes."""
        return torch.bfloat16 if self.reduce_dtype == "bf16" else torch.float32

    def check(self, values: Mapping[str, Any], *, has_own_step: bool) -> "ShardingPlan":
        """Return the plan if the section is valid and fits the other sections.

        Args:
            values: the value of every config key; train.precision is resolved, so not auto.
            has_own_step: the loop class overrides the step itself.

        Raises:
            UserError: with all problems of the section and all conflicts with other sections.
        """
        if self.is_sharded and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise UserError(f"parallel.shard: {self.shard}: torch {torch.__version__} is too old; install torch 2.13")
        problems = list(self._find_conflicts(values, has_own_step) if self.is_sharded else self._find_unused_keys())
        num_processes = count_launched_processes()
        if self.is_sharded and num_processes % self.num_replicas:
            problems.append(
                f"parallel.replicate: {self.num_replicas} groups cannot share {num_processes} processes evenly; "
                f"allowed here: {', '.join(str(n) for n in range(1, num_processes + 1) if num_processes % n == 0)}"
            )
        refuse(problems)
        return self

    def _find_conflicts(self, values: Mapping[str, Any], has_own_step: bool) -> Iterator[str]:
        if values["model.quantize"] is not None:
            yield f"model.quantize: {values['model.quantize']}: not with parallel.shard={self.shard}; set it to null"
        if has_own_step:
            yield (
                f"loop.name: {values['loop.name']} changes the step itself, and parallel.shard={self.shard} needs the "
                "step of TrainingLoop; override loss_sum, or set parallel.shard=none"
            )

        if self.gathers_once and self.exchange != "microbatch":
            yield "parallel.exchange: step: zero2 adds gradients up once a step in any case; leave it out"
        elif self.exchange == "step" and self.reduce_dtype != "fp32":
            yield (
                f"parallel.reduce_dtype: {self.reduce_dtype}: with parallel.exchange=step microbatches would be added "
                "up in it, too; set it to fp32"
            )
        if self.offloads and values["train.precision"] == "fp16":
            yield "parallel.offload: weights: not with train.precision=fp16; set train.precision=bf16 or no"

    def _find_unused_keys(self) -> Iterator[str]:
        """Yield a problem for each key that has no effect because the model is not sharded."""
        for key, value in vars(self).items():
            if value and value != getattr(ShardingPlan, key):
                yield f"parallel.{key}: {value}: parallel.shard is none; set it to zero2 or full, or leave this key out"


def changes_the_step(loop_class: type, base: type) -> bool:
    """Whether a subclass of the loop overrides a method that exchanges gradients."""
    names = ("train_step", "accumulate_gradients")
    return any(getattr(loop_class, name) is not getattr(base, name) for name in names)
