"""Tiny models, made-up rows and a loop over them: what the tests of the loop share."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from trainer_loop import Task, TrainingLoop
from trainer_loop.config.fields import ModelConfig
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import EvaluationLoader, TrainLoader
from trainer_loop.data.run_data import RunData
from trainer_loop.data.shards import Mark
from trainer_loop.data.stream_loader import StreamLoader
from trainer_loop.data.stream_rows import Row
from trainer_loop.engine import Engine
from trainer_loop.evaluation import Evaluator
from trainer_loop.metrics.named_metric import NamedMetric
from trainer_loop.models.packing import use_packing
from trainer_loop.models.plan import ModelPlan
from trainer_loop.optim.groups import ParameterGroup, make_groups
from trainer_loop.options import LoopOptions
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.parallel.sharding import prepare, shard_model
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console, MetricLog
from trainer_loop.record.recorder import Recorder
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.run_output import RunOutput
from trainer_loop.record.state import TrainState
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.sequence_classification import SequenceClassification

VOCABULARY = 50


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w0 w1 ...; its pad token is token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *(f"w{index}" for index in range(VOCABULARY - 2))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def make_rows(
    count: int, *, seed: int = 0, shortest: int = 3, longest: int = 24, labelled: bool = True
) -> list[dict[str, Any]]:
    """Rows of random tokens of unlike lengths, with one of three labels."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(generator.integers(shortest, longest + 1))
        row: dict[str, Any] = {"input_ids": generator.integers(2, VOCABULARY, length).tolist()}
        if labelled:
            row["label"] = int(generator.integers(0, 3))
        rows.append(row)
    return rows


def make_bert(*, seed: int = 0, dropout: float = 0.0, hidden_size: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=3,
            pad_token_id=0,
        )
    )


def make_gpt2(*, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def make_llama(*, tied: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            pad_token_id=0,
        )
    )


class SparingTask(SequenceClassification):
    """Every fourth row or so goes through a layer of its own; other microbatches do not touch it."""

    def loss(self, model, batch):
        logits = self._logits(model, batch)
        chosen = batch["input_ids"][:, 0] % 4 == 0
        if chosen.any():
            bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
            logits = logits + chosen[:, None] * bare.sometimes.weight[:, 0]
        return self.loss_function(logits, batch["labels"])


class TightTask(SequenceClassification):
    """Process 1 runs out of memory with more than so many padded tokens, in the `place` pass of the first layer."""

    def __init__(self, tokens: int, place: str):
        super().__init__()
        self.tokens, self.place = tokens, place

    def loss(self, model, batch):
        def run_out(*_):
            raise torch.OutOfMemoryError("made up")

        def run_out_later(layer, inputs, output):
            (output if isinstance(output, torch.Tensor) else output[0]).register_hook(run_out)

        if int(os.environ.get("RANK", 0)) == 0 or batch["input_ids"].numel() <= self.tokens:
            return super().loss(model, batch)
        hook = run_out if self.place == "forward" else run_out_later
        handle = model.bert.encoder.layer[0].register_forward_hook(hook)
        try:
            return super().loss(model, batch)
        finally:
            handle.remove()


class LoggingTask(SequenceClassification):
    """Logs the mean square of the logits of each row, and of the rows with an even token first, which may be none."""

    extra_metrics = ("square", "square_of_even")

    def _logits(self, model, batch):
        logits = super()._logits(model, batch)
        squares, is_even = logits.square().mean(dim=-1), batch["input_ids"][:, 0] % 2 == 0
        self.log_metric("square", squares.sum(), count=len(squares))
        self.log_metric("square_of_even", squares[is_even].sum(), count=int(is_even.sum()))
        return logits


@dataclass
class Layout:
    """How an update is cut; law 1 says that none of it matters."""

    max_tokens: int | None = None
    per_device: int | None = None
    microbatch_tokens: int | None = None
    packed: bool = False


@dataclass
class Recording:
    """What happened: the metrics of every training row, and the rows this process trained on in each step."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    microbatches: list[int] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)  # by `LoggingTask`, of every training row


class RecordingLoop(TrainingLoop):
    """A loop that remembers its steps."""

    recording: Recording

    def train_step(self, step_batch):
        report = super().train_step(step_batch)
        real = [microbatch for microbatch in step_batch.microbatches if not microbatch.is_dummy]
        self.recording.rows.append([row for microbatch in real for row in microbatch.rows])
        self.recording.microbatches.append(len(real))
        return report


class RecordingLog(MetricLog):
    """A metrics.jsonl that remembers its training rows."""

    def __init__(self, path: Path, recording: Recording):
        super().__init__(path)
        self.recording = recording

    def append(self, values):
        super().append(values)
        if "grad_norm" in values:
            self.recording.losses.append(values["loss"])
            self.recording.grad_norms.append(values["grad_norm"])
            self.recording.logged.append({name: values[name] for name in LoggingTask.extra_metrics if name in values})


@dataclass
class ListStream:
    """A stream of rows that are encoded already; its marks are numbers of rows."""

    rows: Sequence[dict[str, Any]]

    def read(self, epoch: int, mark: Mark | None = None) -> Iterator[Row]:
        for number in range(0 if mark is None else mark["row"], len(self.rows)):
            length = len(self.rows[number]["input_ids"])
            yield Row(self.rows[number], f"row {number}", length, mark={"row": number + 1})


class Exported(RunOutput):
    """What a run exported, in memory."""

    state: TrainState
    weights: dict[str, torch.Tensor]

    def export(self, model, state):
        self.state = copy.deepcopy(state)
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}


def make_loop(
    run_dir: Path,
    *,
    rows: Sequence[dict[str, Any]],
    task: Task,
    model: nn.Module,
    num_steps: int,
    batch_size: int = 8,
    weights: np.ndarray | None = None,
    layout: Layout | None = None,
    optimizer: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "sgd",
    lr: float = 0.1,
    weight_decay: float = 0.01,
    schedule: Any = None,
    validation_rows: Sequence[dict[str, Any]] | None = None,
    evaluation_layout: Layout | None = None,
    metrics: Sequence[NamedMetric] = (),
    seed: int = 7,
    accelerator: Accelerator | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    log_every: int = 1,
    loop_class: type[RecordingLoop] = RecordingLoop,
    loop_args: dict[str, Any] | None = None,
    frozen_until: Callable[[nn.Module], Sequence[tuple[int, Sequence[nn.Parameter]]]] = lambda model: (),
    averaged_weights: Any = None,
    allow_unused: bool = False,
    shard: str = "none",
    replicas: int = 1,
    exchange: str = "microbatch",
    offload: str = "none",
    compute_dtype: torch.dtype | None = None,
    streamed: bool = False,
    output: RunOutput | None = None,
    **options: Any,
) -> RecordingLoop:
    """A loop over made-up rows. Called by every process of a group.

    weights: `[N]` factors of the losses of the rows. frozen_until: called with the model that learns.
    averaged_weights: also a function that makes them of the model. compute_dtype: of weights that are sharded in full.
    options: of `LoopOptions`.
    """
    layout = layout or Layout()
    evaluation_layout = evaluation_layout or Layout()
    accelerator = accelerator or make_accelerator(precision="no")
    task.bind(tokenizer or make_tokenizer(), packs=layout.packed)
    if layout.packed:
        use_packing(model, rows_at_head=task.rows_at_head)
    sharded = None
    if shard != "none":
        sharded = shard_model(
            model,
            ShardingPlan(shard, replicas, exchange=exchange, offload=offload),
            device=accelerator.device,
            compute_type=compute_dtype or torch.float32,
        )
    directory = RunDir(run_dir)
    directory.root.mkdir(parents=True, exist_ok=True)
    plan = BatchPlan(
        [len(row["input_ids"]) for row in rows],
        Limits(
            accelerator.num_processes, layout.max_tokens, layout.per_device, layout.microbatch_tokens, layout.packed
        ),
        batch_size=batch_size,
        seed=seed,
        groups=None if weights is None else np.unique(weights, return_inverse=True)[1],
    )
    classes = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    groups = [group.for_optimizer() for group in make_groups(model, lr=lr, weight_decay=weight_decay)]
    torch_optimizer = optimizer(groups) if callable(optimizer) else classes[optimizer](groups)
    scheduler = (schedule or (lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)))(torch_optimizer)
    if callable(averaged_weights):
        averaged_weights = averaged_weights(model)
    model, prepared = prepare(accelerator, model, torch_optimizer)
    console = Console(enabled=False)
    validation = {}
    if validation_rows is not None:
        validation[""] = EvaluationLoader(
            validation_rows,
            [len(row["input_ids"]) for row in validation_rows],
            Limits(
                accelerator.num_processes,
                evaluation_layout.max_tokens,
                evaluation_layout.per_device,
                packed=layout.packed,
            ),
            collate=task.collate,
            count=task.count,
            device=accelerator.device,
            process_index=accelerator.process_index,
        )
    frozen = [
        ParameterGroup("", {str(index): parameter for index, parameter in enumerate(parameters)}, lr, 0.0, until, False)
        for until, parameters in frozen_until(accelerator.unwrap_model(model))
    ]
    engine = Engine(
        accelerator=accelerator,
        model=model,
        optimizer=prepared,
        scheduler=scheduler,
        seed=seed,
        groups=frozen,
        averaged_weights=averaged_weights,
        allow_unused=allow_unused,
        sharded=sharded,
    )
    process: dict[str, Any] = {
        "collate": task.collate,
        "count": task.count,
        "device": accelerator.device,
        "process_index": accelerator.process_index,
    }
    train: TrainLoader | StreamLoader = TrainLoader(plan, rows, weights=weights, **process)
    if streamed:
        train = StreamLoader(
            ListStream(rows), plan.limits, encode=list, batch_size=batch_size, shuffle_rows=20, seed=seed, **process
        )
    evaluator = Evaluator(
        accelerator=accelerator,
        task=task,
        model=engine.bare_model,
        metrics=metrics,
        averaged_weights=averaged_weights,
        sharded=sharded,
        seed=seed,
        console=console,
        preemption=engine.preemption,
    )
    checkpointer = Checkpointer(
        directory,
        accelerator=accelerator,
        scheduler=scheduler,
        console=console,
        run_facts={"rows": len(rows), "batch_size": batch_size, "seed": seed},
        averaged_weights=averaged_weights,
        is_sharded=sharded is not None,
    )
    recording = Recording()
    log = RecordingLog(directory.metrics, recording)
    loop = loop_class(
        task=task,
        engine=engine,
        data=RunData(train, validation=validation),
        evaluator=evaluator,
        checkpointer=checkpointer,
        record=Recorder(accelerator=accelerator, console=console, metric_log=log),
        output=output or RunOutput(),
        options=LoopOptions(num_steps=num_steps, log_every=log_every, **options),
        **loop_args or {},
    )
    loop.recording = recording
    return loop


def forget_accelerator() -> None:
    """So that the next one may have another precision: accelerate keeps one state a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_task(name: str) -> Task:
    classes = {"sequence_classification": SequenceClassification, "causal_lm": CausalLM, "logging": LoggingTask}
    return classes[name]()


def make_model_plan(**section: Any) -> ModelPlan:
    """section: keys of the section `model` that are not the default."""
    without_adapter: dict[str, Any] = {"lora": {}, "peft": {}, "given": None}
    return ModelPlan(**vars(ModelConfig()) | without_adapter | section)


def make_model(name: str, **options: Any) -> nn.Module:
    makers = {"causal_lm": make_gpt2, "llama": make_llama, "tied llama": partial(make_llama, tied=True)}
    return makers.get(name, make_bert)(**options)
