"""Every key of the config: type, default, meaning and unit. `--help` and docs/config.md are generated from it."""

# ruff: noqa: RUF009 - key and section create dataclass fields

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
    """Create the field of a config key.

    Args:
        comment: The meaning of the key in one line.
        kind: An entry of KINDS in values.py, for a key whose values a Python type cannot describe.
    """
    limits = {"at_least": at_least, "above": above, "below": below}
    metadata = {"comment": comment, "unit": unit, "allowed": allowed, "kind": kind, **limits}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, *, on_resume: str = "free", but: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """Create the field of a nested group of keys. `--help` shows the docstring of `kind`.

    Args:
        on_resume: What happens if a resumed run changes one of the keys: `free` (no update depends on it), `planned
            anew` (it applies from the checkpoint on), `refused` (unless resume_anyway lists it) or `by content`
            (refused if the rows change).
        but: Keys with another policy, by policy.
    """
    text = (kind.__doc__ or "").rstrip(".")
    policies = {one.name: on_resume for one in fields(kind)}
    for policy, names in (but or {}).items():
        assert policies.keys() >= {*names}, f"{kind.__name__} has no key {set(names) - policies.keys()}"
        policies |= dict.fromkeys(names, policy)
    return field(default_factory=kind, metadata={"comment": text[:1].lower() + text[1:], "on_resume": policies})


@dataclass(frozen=True)
class TaskConfig:
    """The task that the model learns."""

    name: str = key("sequence_classification", "a task of docs/tasks.md, or the dotted path of a Task class")
    args: dict[str, Any] = key({}, "arguments of the task")


@dataclass(frozen=True)
class LoraConfig:
    """Train small added matrices and freeze the weights of the model."""

    r: int | None = key(None, "LoRA rank; null disables LoRA", at_least=1)
    alpha: float | None = key(None, "LoRA updates are scaled by alpha / r; null: 2 r", above=0)
    dropout: float = key(0.0, "dropout on the inputs of the LoRA matrices", at_least=0, below=1)
    target_modules: list[str] = key(
        [], "names of the linear layers that get LoRA, such as [query, value]; empty: all but the head"
    )
    dora: bool = key(False, "true: DoRA, which also learns the magnitude of each row of a matrix")
    merge: bool = key(False, "true: export the model with the adapter merged into it; false: export the adapter alone")


@dataclass(frozen=True)
class PeftConfig:
    """Adapters other than LoRA."""

    name: str | None = key(None, "an adapter of the package peft, instead of LoRA: ia3, loha, vera, oft, ...")
    args: dict[str, Any] = key({}, "arguments of the adapter's config class")
    merge: bool = key(False, "true: export the model with the adapter merged into it; false: export the adapter alone")


@dataclass(frozen=True)
class ModelConfig:
    """The model."""

    name: str | None = key(None, "hub id or local directory")
    type: str | None = key(
        None, "instead of name: a model type of transformers (bert, gpt2, ...), to build a new model"
    )
    tokenizer: str | None = key(
        None,
        "hub id or local directory of the tokenizer, or of the image processor of a task on images; train: a "
        "byte-level BPE trained on the train split; null: that of the model",
    )
    chat_template: str | None = key(
        None,
        "chat template: plain, or a file with a Jinja template; it is exported with the tokenizer; null: that of the "
        "tokenizer",
    )
    vocab_size: int = key(
        8000, "vocabulary size of a tokenizer that the run trains", unit="tokens", at_least=300, below=1e7
    )
    from_scratch: bool = key(False, "true: build the model from its config and load no weights")
    overrides: dict[str, Any] = key({}, "fields of the model's config.json, such as attention_probs_dropout_prob: 0.0")
    attention: str = key(
        "auto",
        "auto: the fastest on this machine (on a CPU in bf16 it rounds scores as eager does); or a name of "
        "transformers: sdpa, eager, flash_attention_2, ...",
    )
    packing: bool = key(
        False,
        "true: concatenate rows without padding; tokens attend only to their own row; needs a model that supports it",
    )
    compile: bool = key(
        False, "true: torch.compile, once for all lengths; the first steps take a minute or more, later ones are faster"
    )
    quantize: str | None = key(
        None, "4bit: load the weight matrices in 4 bits and freeze them; an adapter is trained", allowed=("4bit",)
    )
    neftune_alpha: float | None = key(
        None,
        "NEFTune: add uniform noise of at most alpha / sqrt(tokens * width) to the embeddings of training rows, such "
        "as 5; null: no noise",
        above=0,
    )
    gradient_checkpointing: bool = key(False, "true: recompute activations in the backward pass, to save memory")
    lora: LoraConfig = section(LoraConfig, on_resume="refused", but={"free": ("merge",)})
    peft: PeftConfig = section(PeftConfig, on_resume="refused", but={"free": ("merge",)})
    trust_remote_code: bool = key(False, "true: allow the Python code that comes with a hub model to run")


@dataclass(frozen=True)
class LimitConfig:
    """Limits on the number of rows, for experiments."""

    train: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    validation: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    test: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)


@dataclass(frozen=True)
class FilesConfig:
    """The format of text files."""

    delimiter: str | None = key(
        None, "delimiter of fields in .csv and .tsv files; null: a comma in .csv, a tab in .tsv", kind="delimiter"
    )
    quoting: str = key(
        "auto",
        "double: fields of .csv and .tsv files may be in double quotes; none: quotes are ordinary characters, as in "
        "GLUE's files; auto: double, but a file whose quotes seem to be ordinary characters is refused",
        allowed=("auto", "double", "none"),
    )
    encoding: str | None = key(
        None,
        "encoding of .csv, .tsv, .json, .jsonl and .txt files, by its Python name: windows-1252, utf-16, gb18030, "
        "...; null: UTF-8",
        kind="encoding",
    )


@dataclass(frozen=True)
class DataConfig:
    """The data."""

    name: str | None = key(None, "hub id of a data set; null if the splits below are files or dotted paths")
    config: str | None = key(None, "configuration of the data set on the hub, such as mrpc")
    train: Any = key(
        "train",
        "split, file, glob or list of them (.csv .tsv .json .jsonl .parquet .arrow .feather .txt), a folder that "
        "save_to_disk wrote, a folder of images in folders named by class, a dotted path, or a query of a database, "
        "{sql: select text, label from reviews, connection: reviews.db}",
        kind="splits",
    )
    validation: Any = key(
        None,
        "as train, or several sets by name: {matched: a.csv, other: b.csv}; null: none, or see validation_fraction",
        kind="named_splits",
    )
    test: Any = key(
        None,
        "as validation; scored once, at the end, with the exported model; its predictions are saved",
        kind="named_splits",
    )
    validation_fraction: float | None = key(
        None, "use this share of train for validation instead, stratified by label", above=0, below=1
    )
    fold: str | None = key(
        None,
        "2/5: validate on part 2 of 5 of train and train on the others; each row is in one part, stratified by label",
        kind="fold",
    )
    split_by: str | None = key(
        None,
        "a column of train, such as the author: validation_fraction and fold keep rows with the same value together, "
        "instead of stratifying by label",
    )
    mixture: list[Any] = key(
        [],
        "instead of train: sources that are sampled by weight, [{name: a, train: a.csv, weight: 0.7}, {name: b, train: "
        "b.csv, weight: 0.3}]; a source may set its own columns, filter, map and deduplicate (filter: null for none), "
        "dataset and config instead of data.name and data.config, and loss_weight, a factor on the loss of its rows",
        kind="mixture",
    )
    weight: str | None = key(
        None,
        "a column of train with the weight of each row, at least 0; it multiplies the loss of the row, and the number "
        "of its targets in the denominator. Evaluation ignores it; null: all weights are 1",
    )
    sampling: str = key(
        "shuffle",
        "shuffle: an epoch has each row of train once; balanced: an epoch draws equally many rows of each class, so "
        "that rows of rare classes come several times, and rows of common classes take turns",
        allowed=("shuffle", "balanced"),
    )
    filter: str | None = key(
        None,
        "dotted path of a function that takes a row as a dict of all its columns; rows of any split for which it "
        "returns False are left out",
    )
    map: str | None = key(
        None,
        "dotted path of a function that takes a row, after data.filter, and returns a dict of new or changed columns",
    )
    streaming: bool = key(
        False,
        "true: read train, or each source of mixture, row by row instead of into memory; validation and test are read "
        "as usual. A mixture then needs train.steps",
    )
    shuffle_rows: int = key(
        10_000,
        "size of the shuffle buffer of a stream, whose files are shuffled, too; 1: each file in its own order",
        unit="rows",
        at_least=1,
    )
    files: FilesConfig = section(FilesConfig, on_resume="by content")
    missing: str = key(
        "refuse",
        "rows without a text or a label. refuse: they are reported and nothing is trained; drop: they are left out and "
        "counted; empty: a missing text becomes the empty text, a missing label is refused",
        allowed=("refuse", "drop", "empty"),
    )
    deduplicate: bool = key(
        False,
        "true: leave out rows of train whose inputs equal those of an earlier row, or of a row of validation or test. "
        "Case, spaces in texts and labels are ignored; in conversations answers are compared, too",
    )
    limit: LimitConfig = section(LimitConfig, but={"by content": ("train",)})
    columns: dict[str, Any] = key(
        {},
        "maps columns of the task to columns of the data: {text: sentence1, text_pair: sentence2, label: label}; "
        "default: the same name; a list names a column for each label (0 or 1) or number: {label: [toxic, obscene]}",
        kind="columns",
    )
    label_names: Any = key(
        None, "[negative, positive], or {negative: 0, positive: 1}; null: taken from the data", kind="label_names"
    )
    max_length: int = key(512, "longer texts are truncated", unit="tokens", at_least=2)
    num_workers: Any = key(
        "auto",
        "worker processes that prepare batches for each training process; auto: 2 with a GPU, none on a CPU",
        kind="auto_or_count",
    )
    cache_dir: str | None = key(None, "cache of tokenised data; null: $TRAINER_LOOP_CACHE, or ~/.cache/trainer_loop")


@dataclass(frozen=True)
class BatchConfig:
    """The batch of one update."""

    size: int | None = key(
        None, "rows of one update, over all processes; 32 unless accumulate is given", unit="rows", at_least=1
    )
    per_device: int | None = key(None, "maximum rows of a microbatch", unit="rows", at_least=1)
    max_tokens: Any = key(
        "auto", "maximum padded tokens of a microbatch; null: no limit", unit="tokens", kind="token_limit"
    )
    accumulate: int | None = key(
        None, "instead of size: size = per_device * accumulate * number of processes", at_least=1
    )
    order: str = key(
        "shuffle",
        "shuffle: batches are random samples; window: batches have rows of similar length, which pads less, but they "
        "are no random samples",
        allowed=("shuffle", "window"),
    )
    window: int | None = key(
        None,
        "with order=window: number of consecutive shuffled batches that are sorted by length together; null: 32",
        unit="batches",
        at_least=1,
    )


@dataclass(frozen=True)
class TrainConfig:
    """Length and precision of training, clipping, and early stopping."""

    epochs: float | None = key(None, "passes over the training rows; 3 unless steps is given", above=0)
    steps: int | None = key(None, "instead of epochs: number of updates", unit="steps", at_least=1)
    precision: str = key(
        "auto",
        "mixed precision; auto: bf16 if the hardware supports it, else fp16 if the GPU supports it, else no",
        allowed=("auto", "no", "bf16", "fp16"),
    )
    tf32: bool = key(
        True, "TF32 (3 digits) for fp32 matrix products if the GPU supports it; matters only with precision=no"
    )
    max_grad_norm: float | None = key(1.0, "gradients are scaled down to this L2 norm; null: never", above=0)
    max_grad_value: float | None = key(
        None, "then each element of a gradient is clipped to this magnitude; null: never", above=0
    )
    on_nonfinite: str = key(
        "stop",
        "if the loss or a gradient is not finite, stop ends the run, and skip skips the update and counts the step",
        allowed=("stop", "skip"),
    )
    unused_parameters: str = key(
        "refuse",
        "a trainable parameter without a gradient: refuse ends the run before the first update, allow accepts it",
        allowed=("refuse", "allow"),
    )
    patience: int | None = key(
        None,
        "stop after this many evaluations without an improvement of train.patience_metric; null: never",
        at_least=1,
    )
    patience_metric: str | None = key(
        None, "metric of early stopping: accuracy, or -loss if smaller is better; null: that of checkpoint.best"
    )
    threads: Any = key(
        "auto",
        "CPU threads of each process; auto: its share of the cores, or OMP_NUM_THREADS unless a launcher set it to 1",
        kind="auto_or_positive",
    )
    max_time_minutes: float | None = key(
        None, "save and stop with exit code 75 after this time; null: never", unit="minutes", above=0
    )
    timeout_minutes: float = key(
        30.0,
        "how long a process waits for the others before it reports them as lost",
        unit="minutes",
        above=0,
        below=1e6,
    )


@dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the weights."""

    decay: float | None = key(
        None,
        "decay of a moving average that is evaluated and exported instead of the weights, such as 0.999; null: none",
        above=0,
        below=1,
    )


@dataclass(frozen=True)
class LossConfig:
    """The loss."""

    name: str | None = key(
        None,
        "a loss of trainer_loop (see --help loss.name), or the dotted path of a function (logits, targets) -> sum; "
        "null: the loss of the task",
    )
    args: dict[str, Any] = key({}, "arguments of the loss")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer."""

    name: str = key(
        "adamw",
        "adamw, adam, sgd, adagrad, rmsprop, adafactor, muon, lion, schedule_free_adamw, adamw_8bit, or the dotted "
        "path of a torch optimizer",
    )
    lr: float = key(5e-5, "peak learning rate", at_least=0)
    weight_decay: float = key(
        0.01, "weight decay, decoupled if the optimizer decouples it; biases and norms have none", at_least=0
    )
    args: dict[str, Any] = key({}, "further arguments of the optimizer, such as betas")
    layer_decay: float | None = key(
        None,
        "layer-wise decay: the learning rate shrinks by this factor for each layer below the head, such as 0.9; null: "
        "all layers have the same",
        above=0,
        below=1,
    )
    groups: list[Any] = key(
        [],
        'parameters with other settings, by pattern: [{match: "classifier.*", lr: 1e-3}]; the first match applies',
        kind="groups",
    )
    freeze: list[str] = key([], 'parameters to freeze, by pattern: ["*.embeddings.*", "*.layer.0.*"]')
    unfreeze_every: float | None = key(
        None,
        "gradual unfreezing: the head is trained first, and one more layer below it after each interval of this many "
        "steps (below 1: share of all steps); null: all layers from the first step",
        above=0,
    )


@dataclass(frozen=True)
class SchedulerConfig:
    """The schedule of the learning rate."""

    name: str = key(
        "linear",
        "a name of transformers' get_scheduler (linear, cosine, warmup_stable_decay, ...), one_cycle, or a dotted path",
    )
    warmup: float = key(0.1, "length of the warm-up; below 1: share of all steps; from 1: steps", at_least=0)
    args: dict[str, Any] = key({}, "further arguments of the schedule")
    metric: str | None = key(
        None,
        "metric that reduce_lr_on_plateau and greedy follow: accuracy, or -loss if smaller is better; null: -loss",
    )


@dataclass(frozen=True)
class GenerateConfig:
    """Text generation, without sampling, for metrics that compare texts."""

    max_new_tokens: int | None = key(
        None,
        "maximum length of a text; null: a causal model writes no texts in an evaluation, other models at most 128",
        unit="tokens",
        at_least=1,
    )
    num_beams: int = key(1, "number of beams; 1: greedy search", at_least=1)
    length_penalty: float = key(1.0, "above 0, a beam search prefers longer texts")
    no_repeat_ngram_size: int = key(0, "no n-gram of this many tokens is written twice; 0: no limit", at_least=0)
    samples: int = key(3, "texts of each evaluation that are shown, and written to metrics.jsonl", at_least=0)


@dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation of the model."""

    every: Any = key("epoch", "when the validation set is scored", kind="interval")
    metrics: list[Any] = key(
        [],
        "metrics of docs/logging.md or of the library evaluate, dotted paths, or {name: f1, args: {average: macro}}; "
        "empty: those of the task",
        kind="metrics",
    )
    generate: GenerateConfig = section(GenerateConfig)
    at_start: bool = key(False, "true: evaluate once before the first step")
    per_device: int | None = key(None, "maximum rows of an evaluation microbatch", unit="rows", at_least=1)
    max_tokens: Any = key(
        "auto", "maximum padded tokens of an evaluation microbatch; null: no limit", unit="tokens", kind="token_limit"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints to resume from."""

    every: Any = key("epoch", "when a checkpoint is saved; the last step is also saved, unless never", kind="interval")
    keep_last: int = key(2, "number of newest checkpoints to keep, in addition to the best one", at_least=1)
    best: str | None = key(
        None,
        "metric that selects the model to export: accuracy, or -loss if smaller is better; with several sets one of "
        "them by name: matched/accuracy; null: the model of the last step",
    )
    background: bool = key(False, "true: write while training continues, from a copy of the state in host memory")


@dataclass(frozen=True)
class ParallelConfig:
    """Sharding of the model over the processes."""

    shard: str = key(
        "none",
        "none: every process holds the whole model; zero2: each holds a part of the optimizer state, and weights are "
        "gathered once a step; full: weights are gathered layer by layer, which takes the least memory",
        allowed=("none", "zero2", "full"),
    )
    replicate: Any = key(
        1,
        "number of copies of a sharded model, each on its own group of processes; must divide the number of processes; "
        "auto: one per machine",
        kind="auto_or_positive",
    )
    layers: list[str] = key(
        [],
        "class names of the modules whose weights are gathered together, such as [LlamaDecoderLayer]; empty: the "
        "model's _no_split_modules",
    )
    reduce_dtype: str = key(
        "fp32", "data type in which gradients are summed; bf16 halves the traffic, but rounds", allowed=("fp32", "bf16")
    )
    exchange: str = key(
        "microbatch",
        "with shard=full, when gradients are summed: after each microbatch, or once a step, for which every process "
        "keeps whole gradients",
        allowed=("microbatch", "step"),
    )
    offload: str = key(
        "none",
        "weights: keep weights, gradients and optimizer state in host memory, where the CPU updates them",
        allowed=("none", "weights"),
    )


@dataclass(frozen=True)
class LoopConfig:
    """The training loop."""

    name: str | None = key(None, "dotted path of a subclass of TrainingLoop, for example with a custom step")
    args: dict[str, Any] = key({}, "arguments that the subclass adds")


@dataclass(frozen=True)
class LogConfig:
    """Logging."""

    every: int = key(
        10,
        "steps between two training rows in metrics.jsonl and on the console; evaluations write rows, too",
        unit="steps",
        at_least=1,
    )
    profile: str | None = key(
        None,
        "steps that torch.profiler traces: profile/ in the run directory gets trace-0.json of process 0 and so on, and "
        "operators.txt with the most expensive operators; null: none",
        kind="steps",
    )
    trackers: list[str] = key(
        [],
        "installed trackers that accelerate supports: tensorboard, wandb, ...; or dotted paths of custom trackers",
    )
    project: str = key("trainer_loop", "name of the project in trackers")
    name: str | None = key(None, "name of the run in trackers; null: the last part of run_dir")
    tracker_args: dict[str, Any] = key(
        {}, "arguments of trackers, by tracker: {wandb: {entity: my_lab, tags: [baseline]}}"
    )


@dataclass(frozen=True)
class HubConfig:
    """Upload to the Hugging Face hub."""

    push: str | None = key(
        None,
        "repository on the Hugging Face hub: me/imdb-bert, or imdb-bert in your own namespace; null: no upload",
    )
    private: bool = key(True, "true: create a private repository; an existing one is not changed")
    every: str = key(
        "end",
        "end: push the exported model; checkpoint: also push the weights of each checkpoint, while training continues; "
        "never: only python -m trainer_loop.push pushes",
        allowed=("end", "checkpoint", "never"),
    )


@dataclass(frozen=True)
class Config:
    """All keys."""

    run_dir: str = key("runs/run", "directory for everything that the run writes")
    seed: int = key(
        42,
        "seed of row order, dropout, new weights and validation_fraction, which depend on the seed and the step alone",
        at_least=0,
    )
    resume: str = key(
        "auto", "auto: resume if run_dir has a checkpoint; never: refuse if it has one; or the path of a checkpoint"
    )
    resume_anyway: list[str] = key(
        [], "keys that may differ from the checkpoint although updates depend on them, such as batch.size"
    )
    dry_run: bool = key(False, "true: check everything, print the plan and the memory of a step, and stop")
    report: bool = key(
        True,
        "true: write report.html at the end: curves, metrics, mistakes, data; see also python -m trainer_loop.report",
    )
    task: TaskConfig = section(TaskConfig, on_resume="refused")
    model: ModelConfig = section(
        ModelConfig,
        on_resume="refused",
        but={
            "free": ("attention", "packing", "compile", "gradient_checkpointing", "trust_remote_code"),
            "planned anew": ("neftune_alpha",),
        },
    )
    data: DataConfig = section(
        DataConfig,
        on_resume="by content",
        but={
            "free": ("validation", "test", "num_workers", "cache_dir"),
            "refused": ("mixture", "weight", "sampling", "streaming", "shuffle_rows", "columns"),
        },
    )
    batch: BatchConfig = section(
        BatchConfig, but={"by content": ("size", "accumulate"), "refused": ("order", "window")}
    )
    train: TrainConfig = section(
        TrainConfig,
        on_resume="planned anew",
        but={"free": ("patience", "patience_metric", "threads", "max_time_minutes", "timeout_minutes")},
    )
    parallel: ParallelConfig = section(ParallelConfig, but={"planned anew": ("reduce_dtype", "exchange", "offload")})
    loss: LossConfig = section(LossConfig, on_resume="refused")
    loop: LoopConfig = section(LoopConfig, on_resume="refused")
    optimizer: OptimizerConfig = section(
        OptimizerConfig, on_resume="refused", but={"planned anew": ("lr", "weight_decay")}
    )
    scheduler: SchedulerConfig = section(SchedulerConfig, on_resume="planned anew")
    ema: EmaConfig = section(EmaConfig, on_resume="planned anew")
    evaluate: EvaluateConfig = section(EvaluateConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
    hub: HubConfig = section(HubConfig)


RUN = section(Config, but={"refused": ("seed",)})  # the keys outside of sections
