"""The share of computed tokens that is padding, for each way of making batches from the text lengths; no model runs.

    python -m benchmarks.padding --data path/to/imdb

trainer_loop cuts uniformly random batches by its token budget, so its batches have no bias. Length grouping
(transformers.Trainer's own sampler) reaches its low padding with batches of similar lengths. With several processes,
each process computes its share of a batch. Every round has another seed. The budget of a GPU leaves more padding,
because one more microbatch is assumed to cost as much there as 4,096 tokens.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.arguments import add_texts, make_parser
from benchmarks.measure import compare, publish, take_turns
from benchmarks.workplace import make_workplace

_BATCH_SIZES = (32, 128)
_NUM_PROCESSES = (1, 2, 4)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=5)
    add_texts(parser, rows=25_000, held_out=None)
    options = parser.parse_args(argv)
    with make_workplace(rows=options.rows, held_out=None, data=options.data, model=options.model) as place:
        lengths = count_tokens(place.train, place.model, max_length=options.max_length)
        described = place.described
    comparisons = []
    for batch_size in _BATCH_SIZES:
        for num_processes in _NUM_PROCESSES:
            figures = take_turns(_sides(lengths, batch_size, num_processes), rounds=options.rounds)
            title = f"padding, batches of {batch_size}, {num_processes} process{'es' if num_processes > 1 else ''}"
            comparisons.append(compare(title, "share of computed tokens", figures))
    settings = described | {"rows": len(lengths), "max_length": options.max_length, "rounds": options.rounds}
    publish("padding", comparisons, settings=settings, folder=options.results)
    return 0


def count_tokens(texts: Path, model: Path, *, max_length: int) -> np.ndarray:
    """The number of tokens of every row, `[N]`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    column = pq.read_table(texts).column("text").to_pylist()
    encoded = tokenizer(column, truncation=True, max_length=max_length, return_attention_mask=False)
    return np.array([len(ids) for ids in encoded["input_ids"]])


def share_of_plan(
    lengths: np.ndarray, *, batch_size: int, num_processes: int, device_type: str, packed: bool, seed: int
) -> float:
    """Padding of one epoch as cut by the batch plan for this type of device, in [0, 1]."""
    from trainer_loop.data.batch_plan import BatchPlan
    from trainer_loop.data.cut import Limits
    from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget

    limits = Limits(
        num_processes,
        max_tokens=choose_token_budget(device_type, training=True),
        microbatch_tokens=choose_microbatch_tokens(device_type),
        packed=packed,
    )
    plan = BatchPlan(lengths, limits, batch_size=batch_size, seed=seed)
    steps = [plan.step(step) for step in range(plan.steps_per_epoch)]
    assert sum(len(rows) for step in steps for process in step.microbatches for rows in process) == len(lengths)
    return 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)


def share_of_order(lengths: np.ndarray, order: Sequence[int], *, rows_together: int) -> float:
    """Padding of an epoch in this order, if every `rows_together` rows are padded to the longest, in [0, 1]."""
    ordered = lengths[np.asarray(order)]
    assert len(ordered) == len(lengths)
    padded = sum(
        len(part) * int(part.max())
        for part in (ordered[start : start + rows_together] for start in range(0, len(ordered), rows_together))
    )
    return 1 - int(ordered.sum()) / padded


def _sides(lengths: np.ndarray, batch_size: int, num_processes: int) -> dict[str, Callable[[], float]]:
    rows_together = batch_size // num_processes
    seeds = {name: iter(range(1_000_000)) for name in ("random", "grouped", "cpu", "cuda", "packed")}

    def ours(device_type: str, *, packed: bool = False) -> Callable[[], float]:
        seed = seeds["packed" if packed else device_type]
        return lambda: share_of_plan(
            lengths,
            batch_size=batch_size,
            num_processes=num_processes,
            device_type=device_type,
            packed=packed,
            seed=next(seed),
        )

    def random() -> float:
        order = np.random.default_rng(next(seeds["random"])).permutation(len(lengths))
        return share_of_order(lengths, order.tolist(), rows_together=rows_together)

    def grouped() -> float:
        import torch
        from transformers.trainer_pt_utils import LengthGroupedSampler

        generator = torch.Generator().manual_seed(next(seeds["grouped"]))
        sampler = LengthGroupedSampler(rows_together, lengths=lengths.tolist(), generator=generator)
        return share_of_order(lengths, list(sampler), rows_together=rows_together)

    return {
        "trainer_loop, budget of a CPU": ours("cpu"),
        "trainer_loop, budget of a GPU": ours("cuda"),
        "trainer_loop, packing": ours("cpu", packed=True),
        "random batches, dynamic padding": random,
        "length grouping (Trainer)": grouped,
    }


if __name__ == "__main__":
    sys.exit(main())
