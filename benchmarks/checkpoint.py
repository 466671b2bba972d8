"""How long a save delays training, written in the foreground and in the background; and how long resuming takes.

    python -m benchmarks.checkpoint

The model has the size of MiniLM-L6 (22 M parameters) with AdamW's two moments. The two ways of saving take turns in one
run and must leave the same weights behind. Resuming is measured from the call that loads the checkpoint to the first
batch, at step 100 and at step 1,000,000 of one planned epoch of 8,000,008 rows.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.arguments import make_parser
from benchmarks.measure import compare, publish, take_turns, time_of
from benchmarks.workplace import MINILM
from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import TrainLoader
from trainer_loop.parallel.processes import make_accelerator
from trainer_loop.record.checkpoint import Checkpointer
from trainer_loop.record.logs import Console
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.state import TrainState

_ROWS, _BATCH = 8_000_008, 8
_STEPS = (100, 1_000_000)


def main(argv: list[str] | None = None) -> None:
    options = make_parser(__doc__, rounds=7).parse_args(argv)
    accelerator = make_accelerator(precision="no")
    with tempfile.TemporaryDirectory() as directory:
        comparisons = [
            compare_saves(accelerator, Path(directory) / "saving", rounds=options.rounds),
            compare_resumes(accelerator, Path(directory) / "resuming", rounds=options.rounds),
        ]
    settings = {"rounds": options.rounds, "rows": _ROWS}
    publish("checkpoint", comparisons, settings=settings, folder=options.results)


def compare_saves(accelerator: Accelerator, root: Path, *, rounds: int) -> dict[str, Any]:
    """Seconds for which `save` blocks the training thread, for each way of saving."""
    checkpointers = {}
    _, optimizer = _make_model(BertConfig(**MINILM.fields), accelerator)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    for name in ("foreground", "background"):
        checkpointers[name] = _make_checkpointer(root / name, accelerator, scheduler, background=name == "background")
    step = 0

    def save(name: str) -> float:
        nonlocal step
        step += 1
        held = time_of(lambda: checkpointers[name].save(TrainState(step=step)))
        checkpointers[name].finish()  # not measured: training would continue meanwhile
        return held

    for name in checkpointers:  # the first save allocates memory and fills the caches
        save(name)
    held = take_turns({name: lambda name=name: save(name) for name in checkpointers}, rounds=rounds)
    _ensure_equal([sorted((root / name / "checkpoints").glob("step-*"))[-1] for name in checkpointers])
    size = sum(file.stat().st_size for file in (root / "foreground/checkpoints/latest").resolve().iterdir())
    return compare(
        f"how long saving a checkpoint of {size / 2**20:,.0f} MB holds the training up",
        "milliseconds",
        {name: [1000 * seconds for seconds in values] for name, values in held.items()},
        base="foreground",
    )


def compare_resumes(accelerator: Accelerator, root: Path, *, rounds: int) -> dict[str, Any]:
    """Seconds from the call that loads a checkpoint to the first batch, by the step of the checkpoint."""
    accelerator.free_memory()
    _, optimizer = _make_model(BertConfig(**{**MINILM.fields, "num_hidden_layers": 1, "vocab_size": 1000}), accelerator)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    checkpointers = {}
    for step in _STEPS:
        checkpointers[step] = _make_checkpointer(root / str(step), accelerator, scheduler, background=False)
        checkpointers[step].save(TrainState(step=step))
    lengths = np.random.default_rng(0).integers(8, 64, _ROWS)

    def resume(step: int) -> float:
        began = time.perf_counter()
        state = checkpointers[step].load("auto")
        assert state is not None and state.step == step
        loader = TrainLoader(
            BatchPlan(lengths, Limits(max_tokens=512), batch_size=_BATCH, seed=1),
            _MadeUpRows(),
            collate=lambda rows: {"row": torch.tensor([row["row"] for row in rows])},
            count=lambda batch: len(batch["row"]),
            device=torch.device("cpu"),
        )
        first = next(loader.steps(start=state.step, stop=state.step + 1))
        assert first.step == step
        return time.perf_counter() - began

    seconds = take_turns({f"at step {step:,}": lambda step=step: resume(step) for step in _STEPS}, rounds=rounds)
    return compare(
        "resuming, from the call that loads the checkpoint to the first batch",
        "milliseconds",
        {name: [1000 * value for value in values] for name, values in seconds.items()},
    )


class _MadeUpRows:
    """Rows that contain only their number, so that 8 million of them need no memory."""

    def __len__(self) -> int:
        return _ROWS

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


def _make_model(config: BertConfig, accelerator: Accelerator) -> tuple[Any, Any]:
    """A model after one update, so that its optimizer has moments."""
    model = BertForSequenceClassification(config)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-4))
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    return model, optimizer


def _make_checkpointer(root: Path, accelerator: Accelerator, scheduler: Any, *, background: bool) -> Checkpointer:
    return Checkpointer(
        RunDir(root),
        accelerator=accelerator,
        scheduler=scheduler,
        console=Console(enabled=False),
        run_facts={},
        background=background,
    )


def _ensure_equal(paths: list[Path]) -> None:
    one, other = (load_file(path / "model.safetensors") for path in paths)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


if __name__ == "__main__":
    main()
