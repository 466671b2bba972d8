"""The optimizer that transformers.Trainer uses for each value of `optim`, as a value of `optimizer.name`."""

from collections.abc import Mapping
from typing import NamedTuple


class TrainerOptimizer(NamedTuple):
    """The optimizer for one value of `optim`, and the arguments that Trainer passes to it."""

    name: str  # value of `optimizer.name`
    adam_args: tuple[str, ...] = ()  # arguments from adam_beta1 and adam_beta2 (betas) and adam_epsilon (eps)
    optim_args: tuple[str, ...] = ()  # arguments that Trainer reads from optim_args
    args: Mapping[str, object] = {}  # arguments that Trainer sets itself


_ADAM = ("betas", "eps")
ADAMW = TrainerOptimizer("adamw", _ADAM)
ADEMAMIX_ARGS = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_RMSPROP = ("momentum", "alpha", "eps", "centered")
_AVERAGES = ("r", "weight_lr_power")

OPTIMIZERS: dict[str, TrainerOptimizer] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), ADAMW),
    **dict.fromkeys(("adamw_apex_fused", "adamw_hf"), ADAMW),
    # torch's adafactor, which is optimizer.name=adafactor, scales its steps by the size of the weights.
    "adafactor": TrainerOptimizer(
        "transformers.optimization.Adafactor", args={"scale_parameter": False, "relative_step": False}
    ),
    "sgd": TrainerOptimizer("sgd", optim_args=("momentum", "dampening", "nesterov")),
    "adagrad": TrainerOptimizer("adagrad", optim_args=("lr_decay", "eps")),
    "rmsprop": TrainerOptimizer("rmsprop", optim_args=_RMSPROP),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), TrainerOptimizer("adamw_8bit", _ADAM)),
    "paged_adamw_32bit": TrainerOptimizer("bitsandbytes.optim.PagedAdamW32bit", _ADAM),
    "paged_adamw_8bit": TrainerOptimizer("bitsandbytes.optim.PagedAdamW8bit", _ADAM),
    "lion_32bit": TrainerOptimizer("bitsandbytes.optim.Lion32bit", ("betas",)),
    "lion_8bit": TrainerOptimizer("bitsandbytes.optim.Lion8bit", ("betas",)),
    "paged_lion_32bit": TrainerOptimizer("bitsandbytes.optim.PagedLion32bit", ("betas",)),
    "paged_lion_8bit": TrainerOptimizer("bitsandbytes.optim.PagedLion8bit", ("betas",)),
    "ademamix": TrainerOptimizer("bitsandbytes.optim.AdEMAMix32bit", _ADAM, ADEMAMIX_ARGS),
    "ademamix_8bit": TrainerOptimizer("bitsandbytes.optim.AdEMAMix8bit", _ADAM, ADEMAMIX_ARGS),
    "paged_ademamix_32bit": TrainerOptimizer("bitsandbytes.optim.PagedAdEMAMix32bit", _ADAM, ADEMAMIX_ARGS),
    "paged_ademamix_8bit": TrainerOptimizer("bitsandbytes.optim.PagedAdEMAMix8bit", _ADAM, ADEMAMIX_ARGS),
    "rmsprop_bnb": TrainerOptimizer("bitsandbytes.optim.RMSprop32bit", optim_args=_RMSPROP),
    "rmsprop_bnb_32bit": TrainerOptimizer("bitsandbytes.optim.RMSprop32bit", optim_args=_RMSPROP),
    "rmsprop_bnb_8bit": TrainerOptimizer("bitsandbytes.optim.RMSprop8bit", optim_args=_RMSPROP),
    "schedule_free_adamw": TrainerOptimizer("schedule_free_adamw", _ADAM, _AVERAGES),
    "schedule_free_radam": TrainerOptimizer("schedulefree.RAdamScheduleFree", _ADAM, _AVERAGES),
    "schedule_free_sgd": TrainerOptimizer("schedulefree.SGDScheduleFree", (), _AVERAGES),
}
