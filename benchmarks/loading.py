"""Memory and time until a sharded model is made, beside the model whole on every process.

    python -m benchmarks.loading

A BERT of 180 M parameters is loaded from fp32 and from bf16 files, and made new, on `--num-processes` processes that
gloo connects. Counted are the bytes that a process has of its own, without pages of files, from before the model is
made until it is sharded; the most on any process. In between each run tries the model on a few rows, which takes memory
for activations and compiled kernels too. Beside it stands the formula of docs/scaling.md: the size of the model over
the number of processes, and its largest weight.
"""

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_size, make_parser
from benchmarks.measure import compare, publish, take_turns
from benchmarks.scaling import launch
from benchmarks.workplace import ModelSize, Workplace, make_workplace

_BERT = ModelSize(
    "bert",
    {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
    },
)
_WAYS = {"from fp32 files": [], "from bf16 files": [], "new": ["model.from_scratch=true"]}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_size(parser, "--num-processes", 2, "processes")
    options = parser.parse_args(argv)
    comparisons = []
    with make_workplace(rows=8, held_out=1, data=None, model=None, made_model=_BERT) as place:
        _halve(place)
        for way, words in _WAYS.items():
            sides = {
                shard: lambda shard=shard, way=way, words=words: _load(
                    place, options, way, [*words, f"parallel.shard={shard}"]
                )
                for shard in ("none", "full")
            }
            results = take_turns(sides, rounds=options.rounds)
            told = results["full"][0]
            formula = told["size"] / options.num_processes + told["largest"]
            figures = {shard: [result["bytes"] / 2**20 for result in each] for shard, each in results.items()}
            figures |= {"full, before it is tried": [result["made"] / 2**20 for result in results["full"]]}
            figures |= {"size / processes + largest weight": [formula / 2**20] * options.rounds}
            comparisons.append(compare(f"memory to make a model {way}", "MB", figures, base="none"))
            seconds = {shard: [result["seconds"] for result in each] for shard, each in results.items()}
            comparisons.append(compare(f"time to make a model {way}", "seconds", seconds, base="none"))
        settings = place.described | {name: getattr(options, name) for name in ("num_processes", "rounds")}
    publish("loading", comparisons, settings=settings, folder=options.results)
    return 0


def _halve(place: Workplace) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    half = place.root / "half"
    AutoModelForSequenceClassification.from_pretrained(place.model, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(place.model).save_pretrained(half)


def _load(place: Workplace, options: Any, way: str, words: list[str]) -> dict[str, float]:
    model = place.root / "half" if "bf16" in way else place.model
    wanted = {"model": str(model), "train": str(place.train), "folder": str(place.root / "run"), "words": words}
    told: dict[str, float] = launch("benchmarks.loading:load_side", place, options.num_processes, wanted)
    return told


def load_side(*, model: str, train: str, folder: str, words: list[str]) -> dict[str, float]:
    """Make the loop on this process; returns bytes of the process that took most, and of the model."""
    import torch
    from accelerate.utils import gather_object

    import trainer_loop.engine_assembly as engine_assembly
    import trainer_loop.models.assemble as assemble
    from benchmarks.peak_memory import PeakMemory
    from trainer_loop.assembly import build
    from trainer_loop.config.load import load_config

    begin, make, shard = engine_assembly._make_model, assemble.make_model, engine_assembly._shard_model
    memory = PeakMemory()
    before = made = began = seconds = 0.0

    def first(*args: Any) -> Any:
        nonlocal before, began
        before, began = _read_own_memory(), time.perf_counter()
        memory.__enter__()
        return begin(*args)

    def then(*args: Any, **options: Any) -> Any:
        nonlocal made
        result = make(*args, **options)
        made = memory.of_its_own
        return result

    def last(*args: Any) -> Any:
        nonlocal seconds
        sharded = shard(*args)
        seconds = time.perf_counter() - began
        memory.__exit__()
        return sharded

    engine_assembly._make_model, assemble.make_model, engine_assembly._shard_model = first, then, last
    files = [f"model.name={model}", f"data.train={train}", f"run_dir={folder}"]
    given = ["task.name=sequence_classification", "data.max_length=64", "train={steps: 1, precision: no}"]
    loop = build(load_config(None, [*files, *given, *words]))
    parameters = list(loop.bare_model.parameters())
    return {
        "bytes": max(gather_object([memory.of_its_own - before])),
        "made": max(gather_object([made - before])),
        "seconds": max(gather_object([seconds])),
        "size": float(sum(parameter.numel() for parameter in parameters) * torch.float32.itemsize),
        "largest": float(max(parameter.numel() for parameter in parameters) * torch.float32.itemsize),
    }


def _read_own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
