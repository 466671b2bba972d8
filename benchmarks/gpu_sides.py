"""The processes of the benchmark `gpu`; each function runs in a process of its own."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.peer_trainer import tokenise
from benchmarks.watch import Watch, wait_for_gpu

_LOG_EVERY = 10
_PROFILED = range(2, 8)  # steps from 0, between two that log
_WAITS = (  # .item() and .cpu() of a tensor on the device call one of them
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaStreamSynchronize",
    "Memcpy DtoH (Device -> Pageable)",
)


def run_ours(*, keys: Sequence[str], steps: int, warm: int, **wanted: Any) -> dict[str, Any]:
    """Train with the command; returns tokens, seconds after the warm-up steps, and the last loss."""
    watch = Watch(warm=warm, last=steps)
    loops: list[Any] = []
    rows: list[int] = []
    tokens: list[int] = []

    def watched(train_step: Callable[..., Any], loop: Any, step_batch: Any) -> Any:
        loops[:] = [loop]
        watch.begin_step()
        report = train_step(loop, step_batch)
        watch.end_step(loop.bare_model)
        rows.append(step_batch.num_rows)
        tokens.append(step_batch.num_tokens)
        return report

    losses = _run(watched, [*keys, "train.precision=bf16"], steps=steps, **wanted)
    lengths = loops[0].data.train.plan.lengths
    attended = float((lengths**2).sum() / lengths.sum()) / (1 if wanted["classifies"] else 2)
    return {
        "updates": watch.updates,
        "rows": sum(rows),
        "tokens": sum(tokens),
        "timed_tokens": sum(tokens[warm:]),
        "seconds": watch.seconds,
        "loss": losses[-1],
        "operations_per_token": _operations_per_token(loops[0].bare_model, attended=attended),
    }


def run_trainer(
    *,
    compiled: bool,
    model: str,
    train: str,
    classifies: bool,
    max_length: int,
    batch_size: int,
    rows_at_once: int,
    steps: int,
    warm: int,
) -> dict[str, Any]:
    """The same with transformers.Trainer and its best settings, on the same rows."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from benchmarks.fine_tune_sides import Watching

    tokenizer = AutoTokenizer.from_pretrained(model)
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    collate = (
        DataCollatorWithPadding(tokenizer) if classifies else DataCollatorForLanguageModeling(tokenizer, mlm=False)
    )
    watch = Watch(warm=warm, last=steps)
    rows: list[int] = []
    tokens: list[int] = []

    def counted(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        rows.append(len(features))
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=kind.from_pretrained(model, dtype=torch.float32),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=batch_size // rows_at_once,
                learning_rate=5e-5,
                weight_decay=0.01,
                warmup_steps=0.1,
                bf16=True,
                torch_compile=compiled,
                train_sampling_strategy="group_by_length",
                logging_steps=min(_LOG_EVERY, steps),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=not torch.accelerator.is_available(),
            ),
            train_dataset=_encode(train, tokenizer, classifies=classifies, max_length=max_length),
            processing_class=tokenizer,
            data_collator=counted,
        )
        trainer.add_callback(Watching(watch))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    at_once = batch_size // rows_at_once
    return {
        "updates": watch.updates,
        "rows": sum(rows[: steps * at_once]),
        "tokens": sum(tokens[: steps * at_once]),
        "timed_tokens": sum(tokens[warm * at_once : steps * at_once]),
        "seconds": watch.seconds,
        "loss": float(losses[-1]),
    }


def run_curve(*, precision: str, steps: int, warm: int, **wanted: Any) -> list[float]:
    """The mean loss of every ten steps, without dropout."""
    without = ["model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"]
    keys = [f"train.precision={precision}", *(without if wanted["classifies"] else [])]
    return _run(lambda train_step, loop, step_batch: train_step(loop, step_batch), keys, steps=steps, **wanted)


def count_waits(*, steps: int, warm: int, **wanted: Any) -> dict[str, int]:
    """The operations that make the host wait for the device, in training steps between two log lines."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    profiler = profile(activities=activities)

    def profiled(train_step: Callable[..., Any], loop: Any, step_batch: Any) -> Any:
        if step_batch.step == _LOG_EVERY + _PROFILED.start:
            profiler.start()
        with record_function("train_step"):
            report = train_step(loop, step_batch)
        if step_batch.step == _LOG_EVERY + _PROFILED.stop - 1:
            profiler.stop()
        return report

    _run(profiled, ["train.precision=bf16"], steps=2 * _LOG_EVERY, **wanted)
    events = profiler.events()
    ranges = [event.time_range for event in events if event.name == "train_step"]
    assert len(ranges) >= len(_PROFILED), f"{len(ranges)} steps are in the trace"
    inside = [event.name for event in events if any(r.start <= event.time_range.start <= r.end for r in ranges)]
    return {name: inside.count(name) for name in _WAITS}


def measure_matrix_rate(*, size: int) -> float:
    """Operations per second of a product of two bf16 matrices `[size, size]`, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait_for_gpu()
        began = time.perf_counter()
        for _ in range(10):
            one @ other
        wait_for_gpu()
        best = min(best, time.perf_counter() - began)
    return 10 * 2 * size**3 / best


def _run(
    step: Callable[..., Any],
    keys: Sequence[str],
    *,
    model: str,
    train: str,
    classifies: bool,
    max_length: int,
    batch_size: int,
    rows_at_once: int,
    steps: int,
) -> list[float]:
    """Run the command with `step(train_step, loop, step_batch)` for each training step; returns the logged losses."""
    from trainer_loop import TrainingLoop
    from trainer_loop.cli.run import main
    from trainer_loop.record.run_dir import RunDir

    train_step = TrainingLoop.train_step
    TrainingLoop.train_step = lambda loop, step_batch: step(train_step, loop, step_batch)
    with tempfile.TemporaryDirectory() as folder:
        code = main(
            [
                f"run_dir={folder}/run",
                f"task.name={'sequence_classification' if classifies else 'causal_lm'}",
                f"model.name={model}",
                f"data.train={train}",
                f"data.max_length={max_length}",
                f"batch.size={batch_size}",
                f"train.steps={steps}",
                "optimizer.lr=5e-5",
                "evaluate.every=never",
                "checkpoint.every=never",
                f"log.every={_LOG_EVERY}",
                *keys,
            ]
        )
        assert code == 0, f"the command ended with exit code {code}"
        rows = pandas.read_json(RunDir(Path(folder) / "run").metrics, lines=True)
    return rows["loss"].dropna().tolist()


def _encode(train: str, tokenizer: Any, *, classifies: bool, max_length: int) -> Any:
    """The rows that trainer_loop trains on; for a language model its chunks."""
    import datasets

    from trainer_loop.tasks.causal_lm import CausalLM

    if classifies:
        return tokenise(train, tokenizer, max_length)
    rows = datasets.load_dataset("parquet", data_files=train, split="train")
    task = CausalLM()
    task.bind(tokenizer)
    return rows.map(
        lambda batch: {"input_ids": task.encode({"text": batch["text"]}, max_length=max_length)["input_ids"]},
        batched=True,
        remove_columns=rows.column_names,
    )


def _operations_per_token(model: nn.Module, *, attended: float) -> float:
    """Operations of a forward and a backward pass for one token.

    Six for each weight of a matrix product, and twelve for each width and attended token. An embedding lookup counts
    nothing; an embedding that is also the output layer counts once.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = sum(
        parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2 and id(parameter) not in embeddings
    )
    output = model.get_output_embeddings()
    if output is not None and id(output.weight) in embeddings:
        weights += output.weight.numel()
    config = model.config
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * attended
