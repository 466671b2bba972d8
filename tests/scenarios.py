"""Small training runs described by plain values, so that one process and several can run exactly the same."""

import functools
import json
import os
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import tiny
import torch

from trainer_loop.metrics.load import load_metrics
from trainer_loop.optim.averages import Ema
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.parallel.sharding import gather_tensor, local_part
from trainer_loop.runtime.compiler import compile_layers, compile_model


@dataclass(frozen=True)
class Scenario:
    task: str = "sequence_classification"
    dtype: str = "float64"
    optimizer: str = "adamw"
    lr: float = 0.01
    num_rows: int = 61
    batch_size: int = 8
    num_steps: int = 10
    max_tokens: int | None = None
    per_device: int | None = None
    microbatch_tokens: int | None = None
    packed: bool = False
    dropout: float = 0.0
    longest: int = 24
    shortest: int = 3
    num_validation_rows: int = 0
    evaluation_per_device: int | None = None
    blank_every: int | None = None  # causal_lm: every n-th row has one token and so no target
    backend: str | None = None  # of torch.compile; None: do not compile
    gradient_checkpointing: bool = False
    precision: str = "no"
    frozen_steps: int = 0  # the embeddings are frozen until this step
    max_grad_value: float | None = None
    weighted: bool = False  # each row has one of four loss weights
    shard: str = "none"  # none, zero2 or full
    replicas: int = 1  # copies of a sharded model
    exchange: str = "microbatch"  # this and the next: as in the config section `parallel`
    offload: str = "none"
    lora: bool = False
    ema: float | None = None
    tight: str | None = None  # pass (forward, backward) in which process 1 cannot hold more than 64 tokens
    sparing: bool = False  # one parameter is used only by some rows, another by none
    streamed: bool = False
    model: str | None = None  # see `tiny.make_model`; None: the model of the task, with `dropout`
    loss_scale: float = 2.0**16  # initial loss scale of fp16

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    grad_norms: list[float]
    weights: torch.Tensor  # all weights, flattened, float64
    rows: list[list[list[int]]]  # [process][step][row]
    microbatches: list[list[int]]  # [process][step]
    evaluation: dict[str, float]
    logged: list[dict[str, float]]  # metrics that the task logs in training
    memory: list[int]  # bytes of weights, gradients and optimizer state on this process, before the last update
    num_graphs: int  # compiled graphs
    num_updates: int  # updates that changed the weights


def run_here(scenario: Scenario, directory: Path) -> Outcome:
    """Run the scenario in this process, which may belong to a group. The outcome of process 0 is complete."""
    from accelerate.utils import gather_object

    rows = tiny.make_rows(
        scenario.num_rows,
        labelled=scenario.task != "causal_lm",
        shortest=scenario.shortest,
        longest=scenario.longest,
    )
    if scenario.blank_every:
        for row in rows[:: scenario.blank_every]:
            row["input_ids"] = row["input_ids"][:1]
    validation = None
    if scenario.num_validation_rows:
        validation = tiny.make_rows(scenario.num_validation_rows, seed=99, labelled=scenario.task != "causal_lm")
    model = (
        tiny.make_model(scenario.model) if scenario.model else tiny.make_model(scenario.task, dropout=scenario.dropout)
    )
    if scenario.sparing:
        model.sometimes, model.never = torch.nn.Linear(1, 3, bias=False), torch.nn.Linear(2, 2)
    model = model.to(getattr(torch, scenario.dtype))
    if scenario.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if scenario.lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "c_attn"], init_lora_weights=False))
        model = model.to(getattr(torch, scenario.dtype))
    if scenario.backend:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if scenario.shard == "none":
            compile_model(model, backend=scenario.backend)
    accelerator = make_accelerator(precision="no" if scenario.precision == "fp16" else scenario.precision)
    if scenario.precision == "fp16":  # accelerate refuses fp16 on a CPU
        scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scenario.loss_scale)
        accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
        model.forward = torch.autocast("cpu", torch.float16)(model.forward)
    names = ["accuracy", {"name": "f1", "args": {"average": "macro"}}]
    loop = tiny.make_loop(
        directory / scenario.name,
        rows=rows,
        weights=np.array([0.5, 1.0, 2.0, 0.0])[np.arange(len(rows)) * 7 % 11 % 4] if scenario.weighted else None,
        task=make_task(scenario),
        allow_unused=scenario.sparing,
        shard=scenario.shard,
        replicas=scenario.replicas,
        exchange=scenario.exchange,
        offload=scenario.offload,
        streamed=scenario.streamed,
        averaged_weights=None if scenario.ema is None else lambda model: Ema(model, decay=scenario.ema),
        accelerator=accelerator,
        compute_dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(scenario.precision),
        model=model,
        num_steps=scenario.num_steps,
        batch_size=scenario.batch_size,
        layout=tiny.Layout(scenario.max_tokens, scenario.per_device, scenario.microbatch_tokens, scenario.packed),
        optimizer=scenario.optimizer,
        lr=scenario.lr,
        validation_rows=validation,
        evaluation_layout=tiny.Layout(per_device=scenario.evaluation_per_device),
        frozen_until=lambda model: [(scenario.frozen_steps, list(model.get_input_embeddings().parameters()))],
        max_grad_value=scenario.max_grad_value,
        metrics=load_metrics(["perplexity"] if scenario.task == "causal_lm" else names, num_labels=3),
    )
    memory: list[int] = []
    clip = loop.clip_gradients

    def measure_memory(step: int) -> Any:
        weights = list(loop.bare_model.parameters())
        state = [value for per_weight in loop.optimizer.state.values() for value in per_weight.values()]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        memory[:] = [sum(local_part(tensor).nbytes for tensor in tensors) for tensors in (weights, gradients, state)]
        return clip(step)

    loop.clip_gradients = measure_memory
    if scenario.backend and loop.engine.sharded is not None:
        compile_layers(loop.engine.sharded.innermost, backend=scenario.backend)
    loop.fit()
    evaluation = loop.evaluate(loop.data.validation[""]) if loop.data.validation else {}
    return Outcome(
        losses=loop.recording.losses,
        grad_norms=loop.recording.grad_norms,
        weights=torch.cat(
            [weight.double().flatten() for weight in map(gather_tensor, loop.bare_model.parameters())]
        ).detach(),
        rows=gather_object([loop.recording.rows]),
        microbatches=gather_object([loop.recording.microbatches]),
        evaluation=evaluation,
        logged=loop.recording.logged,
        memory=memory,
        num_graphs=torch._dynamo.utils.counters["stats"]["unique_graphs"] if scenario.backend else 0,
        num_updates=loop.engine.schedule_step,
    )


@functools.cache
def run_alone(scenario: Scenario) -> Outcome:
    """Run the scenario on one process. The outcome is cached for all tests."""
    with tempfile.TemporaryDirectory() as directory:
        return run_here(scenario, Path(directory))


def make_task(scenario: Scenario) -> tiny.Task:
    if scenario.tight is not None:
        return tiny.TightTask(64, scenario.tight)
    return tiny.SparingTask() if scenario.sparing else tiny.make_task(scenario.task)


def run_in_group(scenarios: list[Scenario], directory: Path, *, num_processes: int = 2) -> dict[str, Outcome]:
    """Run the scenarios one after the other in one group of processes connected by gloo."""
    scenario_file = directory / "scenarios.json"
    scenario_file.write_text(json.dumps([asdict(scenario) for scenario in scenarios]))
    output = directory / "output.txt"
    with output.open("w") as file:
        processes = [
            fork_server.start(
                [__file__, str(scenario_file)],
                cwd=directory,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | rank,
                stdout=file,
                stderr=file,
            )
            for rank in make_ranks(num_processes)
        ]
    assert [process.wait(300) for process in processes] == [0] * num_processes, output.read_text()
    saved: dict[str, Any] = torch.load(directory / "outcomes.pt", weights_only=True)
    return {name: Outcome(**values) for name, values in saved.items()}


def make_ranks(num_processes: int) -> list[dict[str, str]]:
    """Return the environment of each process of a group, as a launcher sets it."""
    group = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    scenario_file = Path(sys.argv[1])
    outcomes = {}
    for values in json.loads(scenario_file.read_text()):
        scenario = Scenario(**values)
        outcomes[scenario.name] = vars(run_here(scenario, scenario_file.parent))
    if int(os.environ["RANK"]) == 0:
        torch.save(outcomes, scenario_file.parent / "outcomes.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
