"""Every key of the config: its type, default, meaning and unit. `--help` and docs/config.md are made from here."""

# ruff: noqa: RUF009 - key and section make dataclass fields

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
    """A config key: its default, what it means in one line, its unit, and the values it may have.

    `kind` names a row of KINDS in values.py, for a key whose values no Python type describes.
    """
    limits = {"at_least": at_least, "above": above, "below": below}
    metadata = {"comment": comment, "unit": unit, "allowed": allowed, "kind": kind, **limits}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, *, on_resume: str = "free", but: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """A nested group of keys; its docstring is what `--help` says of it.

    `on_resume` is what follows when a run goes on with another value of one of its keys: `free` (no update depends on
    it), `planned anew` (it holds from the checkpoint on), `refused` (but for resume_anyway) or `by content` (refused
    where other rows come of it). `but` lists the keys of which something else follows.
    """
    text = (kind.__doc__ or "").rstrip(".")
    policies = {one.name: on_resume for one in fields(kind)}
    for policy, names in (but or {}).items():
        assert policies.keys() >= {*names}, f"{kind.__name__} has no key {set(names) - policies.keys()}"
        policies |= dict.fromkeys(names, policy)
    return field(default_factory=kind, metadata={"comment": text[:1].lower() + text[1:], "on_resume": policies})


@dataclass(frozen=True)
class TaskConfig:
    """What is learnt."""

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
    """Other adapters."""

    name: str | None = key(None, "another adapter of the package peft instead of LoRA: ia3, loha, vera, oft, ...")
    args: dict[str, Any] = key({}, "arguments of the config class of that adapter")
    merge: bool = key(False, "true: export the model with the adapter merged into it; false: export the adapter alone")


@dataclass(frozen=True)
class ModelConfig:
    """What learns."""

    name: str | None = key(None, "hub id or local directory")
    type: str | None = key(
        None, "instead of name: a model type of transformers (bert, gpt2, ...); a new model is built"
    )
    tokenizer: str | None = key(
        None,
        "hub id or local directory of the tokenizer, or of the image processor of a task on images; train: a "
        "byte-level BPE trained on the train split; null: the model's own",
    )
    chat_template: str | None = key(
        None,
        "template of conversations: plain, or a file with a Jinja template; it is exported with the tokenizer; null: "
        "the tokenizer's own",
    )
    vocab_size: int = key(8000, "size of a tokenizer trained here", unit="tokens", at_least=300, below=1e7)
    from_scratch: bool = key(False, "true: build the model from its config and load no weights")
    overrides: dict[str, Any] = key({}, "fields of the model's own config, such as attention_probs_dropout_prob: 0.0")
    attention: str = key(
        "auto",
        "auto: the fastest on this machine (on a CPU in bf16 it rounds scores as eager does); or one that transformers "
        "knows: sdpa, eager, flash_attention_2, ...",
    )
    packing: bool = key(
        False, "true: concatenate rows without padding, each attends to itself; for models whose attention allows it"
    )
    compile: bool = key(
        False, "true: torch.compile, once for all lengths; the first steps take a minute or more, later ones are faster"
    )
    quantize: str | None = key(
        None, "4bit: load the weight matrices in 4 bits and freeze them; an adapter is trained", allowed=("4bit",)
    )
    neftune_alpha: float | None = key(
        None,
        "NEFTune: uniform noise of at most alpha / sqrt(tokens * width) on the embeddings of training rows, such as 5; "
        "null: none",
        above=0,
    )
    gradient_checkpointing: bool = key(False, "true: recompute activations in the backward pass, to save memory")
    lora: LoraConfig = section(LoraConfig, on_resume="refused", but={"free": ("merge",)})
    peft: PeftConfig = section(PeftConfig, on_resume="refused", but={"free": ("merge",)})
    trust_remote_code: bool = key(False, "true: allow the Python code that comes with a hub model to run")


@dataclass(frozen=True)
class LimitConfig:
    """Fewer rows, to try things out."""

    train: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    validation: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)
    test: int | None = key(None, "at most this many rows, sampled by seed", unit="rows", at_least=1)


@dataclass(frozen=True)
class FilesConfig:
    """How text files are written."""

    delimiter: str | None = key(
        None, "between the fields of .csv and .tsv files; null: a comma in .csv, a tab in .tsv", kind="delimiter"
    )
    quoting: str = key(
        "auto",
        "double: a field of .csv and .tsv files may stand in double quotes; none: quotes are ordinary characters, as "
        "in GLUE's files; auto: double, but a file whose quotes seem to be ordinary characters is refused",
        allowed=("auto", "double", "none"),
    )
    encoding: str | None = key(
        None,
        "of .csv, .tsv, .json, .jsonl and .txt files, by a name that Python knows: windows-1252, utf-16, gb18030, ...; "
        "null: UTF-8",
        kind="encoding",
    )


@dataclass(frozen=True)
class DataConfig:
    """What it learns from."""

    name: str | None = key(None, "hub id of a data set; null when the splits below are files or dotted paths")
    config: str | None = key(None, "the data set's configuration on the hub, such as mrpc")
    train: Any = key(
        "train",
        "split, file, glob or list of them (.csv .tsv .json .jsonl .parquet .arrow .feather .txt), a folder that "
        "save_to_disk wrote, a folder of images in folders named by class, a dotted path, or a query of a database, "
        "{sql: select text, label from reviews, connection: reviews.db}",
        kind="splits",
    )
    validation: Any = key(
        None,
        "likewise, or several sets by name: {matched: a.csv, other: b.csv}; null: none, or see validation_fraction",
        kind="named_splits",
    )
    test: Any = key(
        None,
        "likewise; scored once, at the end, with the exported model, and its predictions kept",
        kind="named_splits",
    )
    validation_fraction: float | None = key(
        None, "cut this share of train off for validation, stratified by label", above=0, below=1
    )
    fold: str | None = key(
        None,
        "2/5: validate on part 2 of 5 of train and learn from the others; each row is in one part, stratified by label",
        kind="fold",
    )
    split_by: str | None = key(
        None,
        "a column of train, such as the author: rows with one value stay together when validation_fraction or fold is "
        "cut off, instead of a split by label",
    )
    mixture: list[Any] = key(
        [],
        "in place of train: sources drawn by weight, [{name: a, train: a.csv, weight: 0.7}, {name: b, train: b.csv, "
        "weight: 0.3}]; each may have columns, filter, map and deduplicate of its own (filter: null for none), dataset "
        "and config in place of data.name and data.config, and loss_weight, a factor of its rows' loss",
        kind="mixture",
    )
    weight: str | None = key(
        None,
        "a column of train: the factor of each row's loss, at least 0; it enters the sum of the loss and the count of "
        "targets that divides it. Evaluation counts all rows alike; null: so does training",
    )
    sampling: str = key(
        "shuffle",
        "shuffle: an epoch has each row of train once; balanced: it draws as many rows from each class, the rows of "
        "rare classes several times and those of common ones by turns",
        allowed=("shuffle", "balanced"),
    )
    filter: str | None = key(
        None,
        "dotted path of a function of a row, a dict of all its columns: rows of any split for which it returns False "
        "are left out",
    )
    map: str | None = key(
        None,
        "dotted path of a function of a row that data.filter keeps: it returns a dict of the columns that are new or "
        "changed",
    )
    streaming: bool = key(
        False,
        "true: read train, or each source of mixture, row by row, never holding it in memory; validation and test are "
        "read as ever. A mixture then needs train.steps",
    )
    shuffle_rows: int = key(
        10_000,
        "a stream is shuffled within so many rows, its files among each other; 1: each file in its own order",
        unit="rows",
        at_least=1,
    )
    files: FilesConfig = section(FilesConfig, on_resume="by content")
    missing: str = key(
        "refuse",
        "rows without a text or a label. refuse: they are named and nothing is trained; drop: they are left out and "
        "counted; empty: a text that is null is the empty text, a label must be there",
        allowed=("refuse", "drop", "empty"),
    )
    deduplicate: bool = key(
        False,
        "true: leave out rows of train with the inputs of an earlier row, or of a row of validation or test, but for "
        "case and spaces in texts, whatever their labels are; in conversations answers are compared too",
    )
    limit: LimitConfig = section(LimitConfig, but={"by content": ("train",)})
    columns: dict[str, Any] = key(
        {},
        "the task's columns and yours: {text: sentence1, text_pair: sentence2, label: label}; one that is left out has "
        "the task's own name; a list names a column for each label (of 0 and 1) or number: {label: [toxic, obscene]}",
        kind="columns",
    )
    label_names: Any = key(
        None, "[negative, positive], or {negative: 0, positive: 1}; null: found in the data", kind="label_names"
    )
    max_length: int = key(512, "longer texts are cut", unit="tokens", at_least=2)
    num_workers: Any = key(
        "auto",
        "processes that prepare batches beside each training process; auto: 2 beside a GPU, none on a CPU",
        kind="auto_or_count",
    )
    cache_dir: str | None = key(
        None, "where tokenised data is kept; null: $TRAINER_LOOP_CACHE, or ~/.cache/trainer_loop"
    )


@dataclass(frozen=True)
class BatchConfig:
    """What one update sees."""

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
    order: str = key(
        "shuffle",
        "shuffle: batches are random samples; window: of rows of similar length, which pads less and biases them",
        allowed=("shuffle", "window"),
    )
    window: int | None = key(
        None,
        "with order=window: how many consecutive shuffled batches are sorted by length together; null: 32",
        unit="batches",
        at_least=1,
    )


@dataclass(frozen=True)
class TrainConfig:
    """How long and how exactly."""

    epochs: float | None = key(None, "passes over the training rows; 3 when steps is not given either", above=0)
    steps: int | None = key(None, "instead of epochs: this many updates", unit="steps", at_least=1)
    precision: str = key(
        "auto",
        "auto: bf16 where the hardware has it, else fp16 on a GPU that has it, else no",
        allowed=("auto", "no", "bf16", "fp16"),
    )
    tf32: bool = key(
        True, "TF32 for fp32 matrix products on a GPU that has it: 3 digits; matters only where precision is no"
    )
    max_grad_norm: float | None = key(1.0, "gradients are scaled down to this L2 norm; null: never", above=0)
    max_grad_value: float | None = key(
        None, "then every value of a gradient is clipped to this magnitude; null: never", above=0
    )
    on_nonfinite: str = key(
        "stop",
        "a loss or gradient that is not finite: stop ends the run, skip makes no update and counts the step",
        allowed=("stop", "skip"),
    )
    unused_parameters: str = key(
        "refuse",
        "a trainable parameter without a gradient: refuse names it before the first update, allow leaves it as it is",
        allowed=("refuse", "allow"),
    )
    patience: int | None = key(
        None, "stop after this many evaluations without a better train.patience_metric; null: never", at_least=1
    )
    patience_metric: str | None = key(
        None, "metric that train.patience follows: accuracy, or -loss where smaller is better; null: checkpoint.best"
    )
    threads: Any = key(
        "auto",
        "CPU threads of each process; auto: its share of the cores, or OMP_NUM_THREADS unless a launcher set it to 1",
        kind="auto_or_positive",
    )
    max_time_minutes: float | None = key(
        None, "save and stop with exit code 75 this long after the start; null: never", unit="minutes", above=0
    )
    timeout_minutes: float = key(
        30.0,
        "how long a process waits for the others before it says which are lost",
        unit="minutes",
        above=0,
        below=1e6,
    )


@dataclass(frozen=True)
class EmaConfig:
    """An average of the weights."""

    decay: float | None = key(
        None,
        "evaluate and export an exponential moving average of the weights, such as 0.999; null: the weights",
        above=0,
        below=1,
    )


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    name: str | None = key(None, "null: the task's own; or the dotted path of a function (logits, targets) -> sum")
    args: dict[str, Any] = key({}, "arguments of the loss")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    name: str = key(
        "adamw",
        "adamw, adam, sgd, adagrad, rmsprop, adafactor, muon, lion, schedule_free_adamw, adamw_8bit, or the dotted "
        "path of a torch optimizer",
    )
    lr: float = key(5e-5, "learning rate at its peak", at_least=0)
    weight_decay: float = key(
        0.01, "weight decay, decoupled where the optimizer decouples it; biases and norms have none", at_least=0
    )
    args: dict[str, Any] = key({}, "further arguments of the optimizer, such as betas")
    layer_decay: float | None = key(
        None,
        "the learning rate shrinks by this factor for each layer below the head, such as 0.9; null: it is the same",
        above=0,
        below=1,
    )
    groups: list[Any] = key(
        [],
        'parameters with settings of their own: [{match: "classifier.*", lr: 1e-3}]; the first match applies',
        kind="groups",
    )
    freeze: list[str] = key([], 'parameters to freeze, by pattern: ["*.embeddings.*", "*.layer.0.*"]')
    unfreeze_every: float | None = key(
        None,
        "gradual unfreezing: the head is trained first, one more layer below it every so many steps (below 1: share of "
        "all steps); null: all layers from the first step",
        above=0,
    )


@dataclass(frozen=True)
class SchedulerConfig:
    """How the learning rate moves."""

    name: str = key(
        "linear",
        "a name of transformers' get_scheduler (linear, cosine, warmup_stable_decay, ...), one_cycle, or a dotted path",
    )
    warmup: float = key(0.1, "below 1: share of all steps; from 1: steps", at_least=0)
    args: dict[str, Any] = key({}, "further arguments of the schedule")
    metric: str | None = key(
        None,
        "what reduce_lr_on_plateau and greedy follow, as in checkpoint.best: accuracy, or -loss where smaller is "
        "better; null: -loss",
    )


@dataclass(frozen=True)
class GenerateConfig:
    """The texts that a model writes, without chance, for metrics that compare texts."""

    max_new_tokens: int | None = key(
        None,
        "tokens of a text at most; null: a causal model writes nothing in an evaluation, and others at most 128",
        unit="tokens",
        at_least=1,
    )
    num_beams: int = key(1, "beams of a beam search; 1: the likeliest token each time", at_least=1)
    length_penalty: float = key(1.0, "above 0, a beam search prefers longer texts")
    no_repeat_ngram_size: int = key(0, "no sequence of so many tokens is written twice; 0: any may be", at_least=0)
    samples: int = key(3, "texts of each evaluation that are shown, and written to metrics.jsonl", at_least=0)


@dataclass(frozen=True)
class EvaluateConfig:
    """How the model is evaluated."""

    every: Any = key("epoch", "when the validation set is scored", kind="interval")
    metrics: list[Any] = key(
        [],
        "names known to evaluate, dotted paths, or {name: f1, args: {average: macro}}; empty: the task's own",
        kind="metrics",
    )
    generate: GenerateConfig = section(GenerateConfig)
    at_start: bool = key(False, "true: evaluate once before the first step")
    per_device: int | None = key(None, "rows of one evaluation microbatch at most", unit="rows", at_least=1)
    max_tokens: Any = key(
        "auto", "padded tokens of one evaluation microbatch at most; null: no limit", unit="tokens", kind="token_limit"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved to resume from."""

    every: Any = key("epoch", "the last step is always saved too, unless never", kind="interval")
    keep_last: int = key(2, "how many of the newest checkpoints are kept, besides the best one", at_least=1)
    best: str | None = key(
        None,
        "metric that picks the model to export: accuracy, or -loss where smaller is better; of several sets one by its "
        "name: matched/accuracy; null: the last",
    )
    background: bool = key(False, "true: write beside training, from a copy of the state in host memory")


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is spread over the processes."""

    shard: str = key(
        "none",
        "none: every process holds the whole model; zero2: each holds a part of the optimizer state, and weights are "
        "gathered once a step; full: weights are gathered layer by layer, which takes least memory",
        allowed=("none", "zero2", "full"),
    )
    replicate: Any = key(
        1,
        "groups of processes that hold a copy of a sharded model each; must divide their number; auto: one a machine",
        kind="auto_or_positive",
    )
    layers: list[str] = key(
        [],
        "class names of the modules whose weights are gathered together, such as [LlamaDecoderLayer]; empty: those "
        "that the model names, in _no_split_modules",
    )
    reduce_dtype: str = key(
        "fp32", "in which gradients are added up; bf16 halves what travels and rounds", allowed=("fp32", "bf16")
    )
    exchange: str = key(
        "microbatch",
        "under full, when gradients are added up: after each microbatch, or once a step, for which every process keeps "
        "whole gradients",
        allowed=("microbatch", "step"),
    )
    offload: str = key(
        "none",
        "weights: weights, gradients and optimizer state wait in host memory, where the CPU updates them",
        allowed=("none", "weights"),
    )


@dataclass(frozen=True)
class LoopConfig:
    """What a step does."""

    name: str | None = key(None, "null: TrainingLoop; or the dotted path of a subclass with a step of its own")
    args: dict[str, Any] = key({}, "arguments that the subclass adds")


@dataclass(frozen=True)
class LogConfig:
    """What is logged."""

    every: int = key(
        10,
        "steps between two training rows in metrics.jsonl and on the console; evaluations write one too",
        unit="steps",
        at_least=1,
    )
    profile: str | None = key(
        None,
        "steps that torch.profiler traces: profile/ in the run directory gets trace-0.json of process 0 and so on, and "
        "operators.txt, the dearest operators; null: none",
        kind="steps",
    )
    trackers: list[str] = key(
        [],
        "trackers that accelerate knows and that are installed, tensorboard, wandb, ..., or dotted paths of your own",
    )
    project: str = key("trainer_loop", "what trackers call the project")
    name: str | None = key(None, "what trackers call the run; null: the last part of run_dir")
    tracker_args: dict[str, Any] = key(
        {}, "arguments of the trackers, by their names: {wandb: {entity: my_lab, tags: [baseline]}}"
    )


@dataclass(frozen=True)
class HubConfig:
    """Where the model is published."""

    push: str | None = key(
        None,
        "push the model to this repository of the Hugging Face hub: me/imdb-bert, or imdb-bert in your own namespace; "
        "null: nowhere",
    )
    private: bool = key(True, "true: a new repository is private; one that is there already stays as it is")
    every: str = key(
        "end",
        "end: push the exported model; checkpoint: also the weights of each checkpoint, beside training; never: only "
        "by python -m trainer_loop.push",
        allowed=("end", "checkpoint", "never"),
    )


@dataclass(frozen=True)
class Config:
    """All keys."""

    run_dir: str = key("runs/run", "directory of everything that the run writes")
    seed: int = key(
        42,
        "row order, dropout, new weights and what validation_fraction cuts off depend on it and on the step alone",
        at_least=0,
    )
    resume: str = key(
        "auto", "auto: go on if run_dir has a checkpoint; never: refuse if it has one; or a checkpoint's path"
    )
    resume_anyway: list[str] = key(
        [], "keys that may differ from the checkpoint although updates depend on them, such as batch.size"
    )
    dry_run: bool = key(False, "true: check everything, print the plan and the memory of a step, stop")
    report: bool = key(
        True, "true: write report.html at the end: curves, metrics, mistakes, data; python -m trainer_loop.report, too"
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


RUN = section(Config, but={"refused": ("seed",)})  # the keys that stand in no section
