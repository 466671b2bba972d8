"""Every key of the config: its type, default, meaning and unit. `--help` and docs/config.md are made from here."""

# ruff: noqa: RUF009 - key and section make dataclass fields

from dataclasses import dataclass, field
from typing import Any


def key(
    default: Any,
    comment: str,
    *,
    unit: str = "",
    allowed: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    kind: str = "",
) -> Any:
    """A config key: its default, what it means in one line, its unit, and the values it may have.

    `kind` names a row of KINDS in values.py, for a key whose values no Python type describes.
    """
    limits = {"at_least": at_least, "above": above, "below": below}
    metadata = {"comment": comment, "unit": unit, "allowed": allowed, "kind": kind, **limits}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, comment: str) -> Any:
    """A nested group of keys."""
    return field(default_factory=kind, metadata={"comment": comment})


@dataclass(frozen=True)
class TaskConfig:
    name: str = key("sequence_classification", "sequence_classification, causal_lm, or the dotted path of a Task class")
    args: dict[str, Any] = key({}, "arguments of the task")


@dataclass(frozen=True)
class ModelConfig:
    name: str | None = key(None, "hub id or local directory")
    type: str | None = key(None, "instead of name: a model type of transformers (bert, gpt2, ...), built from config")
    tokenizer: str | None = key(
        None, "hub id or local directory; train: trained on the train split; null: the model's own"
    )
    vocab_size: int = key(8000, "size of a tokenizer trained here", unit="tokens", at_least=300)
    from_scratch: bool = key(False, "true: build the model from its config and load no weights")
    overrides: dict[str, Any] = key({}, "fields of the model's own config, such as attention_probs_dropout_prob: 0.0")
    gradient_checkpointing: bool = key(False, "true: recompute activations in the backward pass, to save memory")
    trust_remote_code: bool = key(False, "true: allow the Python code that comes with a hub model to run")


@dataclass(frozen=True)
class LimitConfig:
    train: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    validation: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    test: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)


@dataclass(frozen=True)
class DataConfig:
    name: str | None = key(None, "hub id of a data set; null when the splits below are files or dotted paths")
    config: str | None = key(None, "the data set's configuration on the hub, such as mrpc")
    train: Any = key(
        "train",
        "split, file, glob or list of them (.csv .tsv .json .jsonl .parquet .arrow .txt), or a dotted path",
        kind="splits",
    )
    validation: Any = key(None, "likewise; null: none, or see validation_fraction", kind="splits")
    test: Any = key(None, "likewise; scored once, at the end, with the exported model", kind="splits")
    validation_fraction: float | None = key(
        None, "cut this share of train off for validation, stratified by label", above=0, below=1
    )
    limit: LimitConfig = section(LimitConfig, "fewer rows, to try things out")
    text: str = key("text", "column of the text")
    text_pair: str | None = key(None, "column of the second text of a pair")
    label: str = key("label", "column of the label")
    label_names: Any = key(
        None, "[negative, positive], or {negative: 0, positive: 1}; null: found in the data", kind="label_names"
    )
    max_length: int = key(512, "longer texts are cut", unit="tokens", at_least=2)
    num_workers: int = key(0, "processes that prepare batches beside each training process; 0: none", at_least=0)
    cache_dir: str | None = key(
        None, "where tokenised data is kept; null: $TRAINER_LOOP_CACHE, or ~/.cache/trainer_loop"
    )


@dataclass(frozen=True)
class BatchConfig:
    size: int | None = key(
        None, "rows of one update, over all processes; 32 when accumulate is not given either", unit="rows", at_least=1
    )
    per_device: int | None = key(None, "rows of one microbatch at most", unit="rows", at_least=1)
    max_tokens: Any = key(
        "auto", "padded tokens of one microbatch at most; null: no limit", unit="tokens", kind="token_limit"
    )
    accumulate: int | None = key(
        None, "instead of size: size = per_device * accumulate * number of processes", at_least=1
    )


@dataclass(frozen=True)
class TrainConfig:
    epochs: float | None = key(None, "passes over the training rows; 3 when steps is not given either", above=0)
    steps: int | None = key(None, "instead of epochs: this many updates", unit="steps", at_least=1)
    precision: str = key(
        "auto",
        "auto: bf16 where the hardware has it, else fp16 on a GPU that has it, else no",
        allowed=("auto", "no", "bf16", "fp16"),
    )
    max_grad_norm: float | None = key(1.0, "gradients are scaled down to this L2 norm; null: never", above=0)


@dataclass(frozen=True)
class LossConfig:
    name: str | None = key(None, "null: the task's own; or the dotted path of a function (logits, targets) -> sum")
    args: dict[str, Any] = key({}, "arguments of the loss")


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = key("adamw", "adamw, sgd, adafactor, or the dotted path of a torch optimizer")
    lr: float = key(5e-5, "learning rate at its peak", at_least=0)
    weight_decay: float = key(
        0.01, "decoupled where the optimizer decouples it; biases and norms have none", at_least=0
    )
    args: dict[str, Any] = key({}, "further arguments of the optimizer, such as betas")


@dataclass(frozen=True)
class SchedulerConfig:
    name: str = key(
        "linear", "a name of transformers' get_scheduler (linear, cosine, constant_with_warmup, ...) or a dotted path"
    )
    warmup: float = key(0.1, "below 1: share of all steps; from 1: steps", at_least=0)
    args: dict[str, Any] = key({}, "further arguments of the schedule")


@dataclass(frozen=True)
class EvaluateConfig:
    every: Any = key("epoch", "when the validation set is scored", unit="steps", kind="interval")
    metrics: list[Any] = key(
        [], "names known to evaluate, or {name: f1, args: {average: macro}}; empty: the task's own", kind="metrics"
    )
    at_start: bool = key(False, "true: evaluate once before the first step")
    per_device: int | None = key(None, "rows of one evaluation microbatch at most", unit="rows", at_least=1)
    max_tokens: Any = key(
        "auto", "padded tokens of one evaluation microbatch at most; null: no limit", unit="tokens", kind="token_limit"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every: Any = key("epoch", "the last step is always saved too, unless never", unit="steps", kind="interval")
    keep_last: int = key(2, "the newest this many are kept, and the best one", at_least=1)
    best: str | None = key(
        None, "metric that picks the model to export: accuracy, or -loss where smaller is better; null: the last"
    )


@dataclass(frozen=True)
class LogConfig:
    every: int = key(
        10, "steps between two training rows in metrics.jsonl and on the console", unit="steps", at_least=1
    )
    trackers: list[str] = key([], "trackers that accelerate knows and that are installed: tensorboard, wandb, ...")


@dataclass(frozen=True)
class Config:
    run_dir: str = key("runs/run", "everything the run leaves behind goes here")
    seed: int = key(42, "order, dropout and new weights are functions of it and of the step", at_least=0)
    resume: str = key(
        "auto", "auto: go on if run_dir has a checkpoint; never: refuse if it has one; or a checkpoint's path"
    )
    dry_run: bool = key(False, "true: check everything, print the plan, stop")
    task: TaskConfig = section(TaskConfig, "what is learnt")
    model: ModelConfig = section(ModelConfig, "what learns")
    data: DataConfig = section(DataConfig, "what it learns from")
    batch: BatchConfig = section(BatchConfig, "what one update sees")
    train: TrainConfig = section(TrainConfig, "how long and how exactly")
    loss: LossConfig = section(LossConfig, "what is minimised")
    optimizer: OptimizerConfig = section(OptimizerConfig, "how weights move")
    scheduler: SchedulerConfig = section(SchedulerConfig, "how the learning rate moves")
    evaluate: EvaluateConfig = section(EvaluateConfig, "how it is judged")
    checkpoint: CheckpointConfig = section(CheckpointConfig, "what is kept to go on from")
    log: LogConfig = section(LogConfig, "what is told on the way")
