"""On a GPU: tokens per second beside transformers.Trainer, share of the card's matrix speed, precision, and waiting.

    python -m benchmarks.gpu

BERT-base (a classifier) and a causal language model of 0.6 B parameters, both from their configs with random weights,
train in bf16 on made-up texts cut at 512 and at 2,048 tokens. Trainer has its best settings: batches grouped by length,
bf16, and scaled-dot-product attention without dropout; it runs with torch.compile and without. trainer_loop runs
without options and with the keys of VARIANTS. The first steps of every side are not timed.

Two checks follow. The command ends with exit code 1 if one fails: the loss curves of bf16 and fp16 must stay within 2 %
of fp32, and the profiler trace of steps between two log lines must contain nothing that makes the host wait for the
device.

Without a GPU the command reports this and ends with exit code 2. `--tiny` runs all of it on small models, on any
device.
"""

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.arguments import add_size, make_parser
from benchmarks.fresh_process import call
from benchmarks.measure import compare, publish, take_turns
from benchmarks.same_work import find_differences, tell_differences
from benchmarks.workplace import ModelSize, Workplace, make_workplace

# Config keys of the variants that are measured beside the plain run. A key that the config does not have is left out.
VARIANTS = {
    "trainer_loop": [],
    "trainer_loop, compile": ["model.compile=true"],
    "trainer_loop, packing": ["model.packing=true"],
}
_TRAINERS = {"Trainer, best": False, "Trainer, best, compile": True}  # whether torch_compile is on
_BERT = ModelSize("bert", {"vocab_size": 30522, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 2048})
_CAUSAL_LM = ModelSize(  # 0.6 B parameters
    "llama",
    {
        "vocab_size": 32000,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 18,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
    },
    classifies=False,
)
_SMALL = {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_TINY_BERT = ModelSize("bert", {**_BERT.fields, **_SMALL, "num_attention_heads": 2, "max_position_embeddings": 128})
_TINY_CAUSAL_LM = ModelSize(
    "llama",
    {**_SMALL, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128},
    classifies=False,
)
_ROWS_OF_TRAINER = {512: 32, 2048: 8}  # in one forward pass; more are not faster; the rest is accumulated
_LOSS_TOLERANCE = 0.1  # of the last loss; dropout draws differ, and so does Trainer's order of rows
_TOKEN_TOLERANCE = 0.01  # some chunks of texts are shorter, and each side trains on other chunks
_CURVE_TOLERANCE = 0.02


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    add_size(parser, "--batch-size", 64, "rows of an update")
    add_size(parser, "--steps", 60, "updates of every side")
    add_size(parser, "--warm", 15, "of these, first ones that are not timed")
    add_size(parser, "--curve-steps", 200, "updates of the runs whose losses are compared between precisions")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the benchmark out on any device")
    options = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        print("no GPU was found, so nothing was measured; --tiny tries the benchmark out on small models")
        return 2
    models = {"BERT, tiny": _TINY_BERT, "causal LM, tiny": _TINY_CAUSAL_LM}
    if not options.tiny:
        models = {"BERT-base": _BERT, "causal LM, 0.6 B": _CAUSAL_LM}
    lengths = (64,) if options.tiny else (512, 2048)
    comparisons: list[dict[str, Any]] = []
    failures: list[str] = []
    for name, size in models.items():
        for max_length in lengths:
            rows = options.batch_size * options.steps
            longer = max_length / 512 * (1 if size.classifies else 2)  # so that there are enough chunks
            with make_workplace(
                rows=rows, held_out=None, data=None, model=None, made_model=size, longer=longer
            ) as place:
                case = _Case(f"{name}, {max_length:,} tokens", size, max_length, place, options)
                case.compare_rates(comparisons, failures)
                if max_length == lengths[0]:
                    case.compare_precisions(comparisons, failures)
                    case.look_for_waits(comparisons, failures)
    names = ("batch_size", "steps", "warm", "curve_steps", "rounds", "tiny")
    settings = {"data": "made up"} | {name: getattr(options, name) for name in names}
    if failures:
        tell_differences(failures)
        return 1
    publish("gpu_tiny" if options.tiny else "gpu", comparisons, settings=settings, folder=options.results)
    return 0


class _Case:
    """One model at one length of texts. Each method adds its results to `comparisons` and `failures`."""

    def __init__(self, title: str, size: ModelSize, max_length: int, place: Workplace, options: Any):
        self._title = title
        self._place = place
        self._options = options
        self._wanted = {
            "model": str(place.model),
            "train": str(place.train),
            "classifies": size.classifies,
            "max_length": max_length,
            "batch_size": options.batch_size,
            "rows_at_once": min(options.batch_size, _ROWS_OF_TRAINER.get(max_length, options.batch_size)),
            "steps": options.steps,
            "warm": options.warm,
        }

    def compare_rates(self, comparisons: list[dict[str, Any]], failures: list[str]) -> None:
        """Tokens per second of every side, and the share of the card's matrix speed."""
        sides = {name: lambda keys=keys: self._call("run_ours", keys=keys) for name, keys in VARIANTS.items()}
        sides |= {
            name: lambda compiled=compiled: self._call("run_trainer", compiled=compiled)
            for name, compiled in _TRAINERS.items()
        }
        if self._options.tiny:  # compiling takes longer than the rest of a trial
            sides = {name: side for name, side in sides.items() if "compile" not in name}
        outcomes = take_turns(sides, rounds=self._options.rounds)
        tokens = 0.1 if self._options.tiny else _TOKEN_TOLERANCE
        close = {"loss": _LOSS_TOLERANCE, "tokens": tokens}
        found = find_differences(outcomes, equal=["updates", "rows"], close=close)
        failures += [f"{self._title}: {difference}" for difference in found]
        rates = {
            name: [result["timed_tokens"] / result["seconds"] for result in results]
            for name, results in outcomes.items()
        }
        work = outcomes["trainer_loop"][0]["operations_per_token"]
        peak = self._call_plain("measure_matrix_rate", {"size": 256 if self._options.tiny else 8192})
        shares = {name: [rate * work / peak for rate in values] for name, values in rates.items()}
        comparisons += [
            compare(f"{self._title}, bf16", "tokens a second", rates, base="Trainer, best"),
            compare(
                f"{self._title}, bf16, of the card's matrix rate",
                "share",
                shares,
                notes=[f"a product of large bf16 matrices: {peak / 1e12:,.4g} TFLOP/s; padding counts as no work"],
            ),
        ]

    def compare_precisions(self, comparisons: list[dict[str, Any]], failures: list[str]) -> None:
        """The largest difference of the losses of bf16 and fp16 from those of fp32."""
        import torch

        precisions = ("bf16", "fp16") if torch.cuda.is_available() else ("bf16",)
        curves = {
            name: self._call("run_curve", precision=name, steps=self._options.curve_steps)
            for name in ("no", *precisions)
        }
        furthest = {
            name: max(abs(mine - exact) / exact for mine, exact in zip(curves[name], curves["no"], strict=True))
            for name in precisions
        }
        failures += [
            f"{self._title}: the loss in {name} is up to {value:.2%} from that in fp32"
            for name, value in furthest.items()
            if not value <= _CURVE_TOLERANCE
        ]
        title = f"{self._title}, loss curve, furthest from fp32"
        comparisons.append(compare(title, "share of the loss", {name: [value] for name, value in furthest.items()}))

    def look_for_waits(self, comparisons: list[dict[str, Any]], failures: list[str]) -> None:
        """How often the host waits for the device in steps that log nothing."""
        waits = self._call("count_waits")
        failures += [
            f"{self._title}: {count} {name} in steps that log nothing" for name, count in waits.items() if count
        ]
        title = f"{self._title}, waits of the host in steps that log nothing"
        comparisons.append(compare(title, "number", {name: [count] for name, count in waits.items()}))

    def _call(self, function: str, **given: Any) -> Any:
        return self._call_plain(function, {**self._wanted, **given})

    def _call_plain(self, function: str, arguments: Mapping[str, Any]) -> Any:
        return call(f"benchmarks.gpu_sides:{function}", arguments, environment=self._place.environment)


if __name__ == "__main__":
    sys.exit(main())
