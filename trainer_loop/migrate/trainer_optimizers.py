"""What transformers.Trainer makes of each value of `optim`, by the name or dotted path it has here."""

from collections.abc import Mapping
from typing import NamedTuple


class TrainerOptimizer(NamedTuple):
    """What Trainer makes of a value of optim."""

    name: str  # as optimizer.name has it
    adam: tuple[str, ...] = ()  # what it takes of adam_beta1, adam_beta2 and adam_epsilon
    takes: tuple[str, ...] = ()  # what it reads of optim_args
    args: Mapping[str, object] = {}  # what Trainer sets itself


_ADAM = ("betas", "eps")
ADAMW = TrainerOptimizer("adamw", _ADAM)
ADEMAMIX_TAKES = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_RMSPROP = ("momentum", "alpha", "eps", "centered")
_AVERAGES = ("r", "weight_lr_power")

OPTIMIZERS: dict[str, TrainerOptimizer] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), ADAMW),
    **dict.fromkeys(("adamw_apex_fused", "adamw_hf"), ADAMW),
    # torch's adafactor, which is optimizer.name=adafactor, scales its steps by the size of the weights.
    "adafactor": TrainerOptimizer(
        "transformers.optimization.Adafactor", args={"scale_parameter": False, "relative_step": False}
    ),
    "sgd": TrainerOptimizer("sgd", takes=("momentum", "dampening", "nesterov")),
    "adagrad": TrainerOptimizer("adagrad", takes=("lr_decay", "eps")),
    "rmsprop": TrainerOptimizer("rmsprop", takes=_RMSPROP),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), TrainerOptimizer("adamw_8bit", _ADAM)),
    "paged_adamw_32bit": TrainerOptimizer("bitsandbytes.optim.PagedAdamW32bit", _ADAM),
    "paged_adamw_8bit": TrainerOptimizer("bitsandbytes.optim.PagedAdamW8bit", _ADAM),
    "lion_32bit": TrainerOptimizer("bitsandbytes.optim.Lion32bit", ("betas",)),
    "lion_8bit": TrainerOptimizer("bitsandbytes.optim.Lion8bit", ("betas",)),
    "paged_lion_32bit": TrainerOptimizer("bitsandbytes.optim.PagedLion32bit", ("betas",)),
    "paged_lion_8bit": TrainerOptimizer("bitsandbytes.optim.PagedLion8bit", ("betas",)),
    "ademamix": TrainerOptimizer("bitsandbytes.optim.AdEMAMix32bit", _ADAM, ADEMAMIX_TAKES),
    "ademamix_8bit": TrainerOptimizer("bitsandbytes.optim.AdEMAMix8bit", _ADAM, ADEMAMIX_TAKES),
    "paged_ademamix_32bit": TrainerOptimizer("bitsandbytes.optim.PagedAdEMAMix32bit", _ADAM, ADEMAMIX_TAKES),
    "paged_ademamix_8bit": TrainerOptimizer("bitsandbytes.optim.PagedAdEMAMix8bit", _ADAM, ADEMAMIX_TAKES),
    "rmsprop_bnb": TrainerOptimizer("bitsandbytes.optim.RMSprop32bit", takes=_RMSPROP),
    "rmsprop_bnb_32bit": TrainerOptimizer("bitsandbytes.optim.RMSprop32bit", takes=_RMSPROP),
    "rmsprop_bnb_8bit": TrainerOptimizer("bitsandbytes.optim.RMSprop8bit", takes=_RMSPROP),
    "schedule_free_adamw": TrainerOptimizer("schedule_free_adamw", _ADAM, _AVERAGES),
    "schedule_free_radam": TrainerOptimizer("schedulefree.RAdamScheduleFree", _ADAM, _AVERAGES),
    "schedule_free_sgd": TrainerOptimizer("schedulefree.SGDScheduleFree", (), _AVERAGES),
}
