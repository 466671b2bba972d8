"""Where the time of an update goes: the operators of trainer_loop's step by kind, and the speed of its matrix products.

    python -m benchmarks.step_profile --data path/to/imdb

The speed is compared with the speed that this machine reaches for matrices of the same size when it computes nothing
else, in bf16 and in fp32. The difference is the possible gain where matrix products are most of a step. The profiler
itself takes some time, which is included in "all else".
"""

import re
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.arguments import add_size, add_texts, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish
from benchmarks.our_run import files_of, imdb_words
from benchmarks.workplace import make_workplace

_WARM_UP_STEPS = 2
_REST = "all else, and waiting"

# Kinds of operators, by the start of their names in torch's profiler.
_KINDS = {
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm)$",
    "softmax of attention": r"aten::_softmax",
    "activation functions": r"aten::(gelu|silu|tanh)",
    "normalisation": r"aten::native_layer_norm",
    "casts and copies": r"aten::(copy_|clone)$",
    "dropout": r"aten::(ge|randint|bitwise_and_)$",
    "sums, products, masks": r"aten::(add|sub|mul|div|sum|fill|masked_fill|neg)_?$",
    "optimizer": r"aten::_fused_adam",
    "clipping": r"aten::(_foreach|linalg_vector_norm)",
}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_texts(parser, rows=512, held_out=None)
    add_size(parser, "--batch-size", 32, "rows of an update")
    add_size(parser, "--steps", 4, "updates that are looked at, in every round")
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=None, data=options.data, model=options.model) as place:
        wanted = {"max_length": options.max_length, "batch_size": options.batch_size, "steps": options.steps}
        files = {name: path for name, path in files_of(place).items() if name != "held_out"}
        rounds = [
            call("benchmarks.step_profile:profile_steps", {**files, **wanted}, environment=place.environment)
            for _ in range(options.rounds)
        ]
        settings = place.described | wanted | {"rows": options.rows, "rounds": options.rounds}
    shares = {kind: [seen["seconds"][kind] / seen["wall"] for seen in rounds] for kind in rounds[0]["seconds"]}
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1][0]))
    rates = {
        "in the step": [seen["flops"] / seen["seconds"]["matrix products"] / 1e9 for seen in rounds],
        **{name: [seen["alone"][name] / 1e9 for seen in rounds] for name in rounds[0]["alone"]},
    }
    comparisons = [
        compare("an update of trainer_loop, bf16 where the machine has it", "share of its time", ordered),
        compare("matrix products", "GFLOP/s", rates, base="in the step"),
    ]
    publish("step_profile", comparisons, settings=settings, folder=options.results)
    return 0


def profile_steps(*, model: str, train: str, max_length: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds of some updates by kind of operator, their wall time, and the operations of their matrix products."""
    from trainer_loop.runtime.host import prepare_environment

    prepare_environment()  # before torch is imported, like the command

    from torch.profiler import ProfilerActivity, profile

    from trainer_loop import build, load_config
    from trainer_loop.config.load import split_arguments

    with tempfile.TemporaryDirectory() as folder:
        words = imdb_words(
            model=model,
            train=train,
            held_out=None,
            folder=folder,
            max_length=max_length,
            batch_size=batch_size,
            steps=_WARM_UP_STEPS + steps,
        )
        name, overrides, _ = split_arguments(words)
        loop = build(load_config(name, overrides))
        loop.model.train()
        batches = loop.data.train.steps(start=0, stop=loop.options.num_steps)
        for _ in range(_WARM_UP_STEPS):
            loop.train_step(next(batches))
        began = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            for step_batch in batches:
                loop.train_step(step_batch)
        wall = time.perf_counter() - began
    entries = profiler.key_averages()
    seconds = {
        kind: sum(entry.self_cpu_time_total for entry in entries if re.match(pattern, entry.key)) / 1e6
        for kind, pattern in _KINDS.items()
    }
    seconds[_REST] = wall - sum(seconds.values())
    assert seconds[_REST] >= 0
    flops = sum(entry.flops for entry in entries if re.match(_KINDS["matrix products"], entry.key))
    hidden = loop.bare_model.config.hidden_size
    return {"wall": wall, "seconds": seconds, "flops": flops, "alone": measure_rates(hidden)}


def measure_rates(hidden: int, *, tokens: int = 2048, seconds: float = 1.0) -> Mapping[str, float]:
    """Operations per second of `[tokens, hidden] x [hidden, 4 hidden]`, by number type."""
    import torch

    rates = {}
    for name, dtype in (("alone, bf16", torch.bfloat16), ("alone, fp32", torch.float32)):
        left = torch.randn(tokens, hidden, dtype=dtype)
        right = torch.randn(hidden, 4 * hidden, dtype=dtype)
        products, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            left @ right
            products += 1
        rates[name] = products * 2 * tokens * hidden * 4 * hidden / passed
    return rates


if __name__ == "__main__":
    sys.exit(main())
