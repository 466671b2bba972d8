"""The batch plan: pure, so its laws are tested for any lengths, budgets and processes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop.data.batch_plan import BatchPlan, cut_batch, cut_evaluation

lengths_of_rows = st.lists(st.integers(1, 600), min_size=1, max_size=80)
budgets = st.one_of(st.none(), st.integers(1, 4096))
row_limits = st.one_of(st.none(), st.integers(1, 20))
process_counts = st.integers(1, 5)


def flatten(dealt):
    return [row for process in dealt for microbatch in process for row in microbatch]


def cost(microbatch, lengths):
    return len(microbatch) * max(lengths[row] for row in microbatch)


@given(lengths_of_rows, st.integers(1, 40), st.integers(0, 9), process_counts, budgets, row_limits)
def test_an_epoch_holds_each_row_once(lengths, batch_size, seed, num_processes, max_tokens, per_device):
    plan = BatchPlan(
        lengths,
        batch_size=batch_size,
        seed=seed,
        num_processes=num_processes,
        max_tokens=max_tokens,
        per_device=per_device,
    )
    for epoch in (0, 3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = [row for step in steps for row in flatten(plan.step(step).microbatches)]
        assert sorted(rows) == list(range(len(lengths)))


@given(lengths_of_rows, st.integers(1, 40), budgets, row_limits)
def test_batches_are_the_same_for_every_number_of_processes(lengths, batch_size, max_tokens, per_device):
    plans = [
        BatchPlan(
            lengths, batch_size=batch_size, seed=1, num_processes=count, max_tokens=max_tokens, per_device=per_device
        )
        for count in (1, 2, 3)
    ]
    for step in range(plans[0].steps_per_epoch):
        first, second, third = (sorted(flatten(plan.step(step).microbatches)) for plan in plans)
        assert first == second == third == sorted(plans[0].batch(step).tolist())


@given(lengths_of_rows, process_counts, budgets, row_limits)
def test_a_microbatch_keeps_its_budget_unless_one_row_alone_exceeds_it(lengths, num_processes, max_tokens, per_device):
    for dealt in (
        cut_batch(
            list(range(len(lengths))),
            lengths,
            num_processes=num_processes,
            max_tokens=max_tokens,
            per_device=per_device,
        ),
        cut_evaluation(lengths, num_processes=num_processes, max_tokens=max_tokens, per_device=per_device),
    ):
        assert sorted(flatten(dealt)) == list(range(len(lengths)))
        assert len(dealt) == num_processes
        for process in dealt:
            for microbatch in process:
                assert len(microbatch) == 1 or max_tokens is None or cost(microbatch, lengths) <= max_tokens
                assert per_device is None or len(microbatch) <= per_device
                assert lengths[microbatch[0]] == max(lengths[row] for row in microbatch)


@given(lengths_of_rows, process_counts, budgets)
def test_no_process_is_idle_while_there_are_rows_for_it(lengths, num_processes, max_tokens):
    dealt = cut_batch(
        list(range(len(lengths))), lengths, num_processes=num_processes, max_tokens=max_tokens, per_device=None
    )
    assert sum(1 for process in dealt if process) == min(num_processes, len(lengths))


@given(lengths_of_rows, st.integers(1, 40), st.integers(0, 10**7))
def test_any_step_is_found_by_its_index_alone(lengths, batch_size, step):
    options = {"batch_size": batch_size, "seed": 3, "max_tokens": 512}
    walked = BatchPlan(lengths, **options)
    for earlier in range(max(0, step - 3), step):
        walked.step(earlier)
    assert walked.step(step) == BatchPlan(lengths, **options).step(step)


@given(lengths_of_rows, st.integers(1, 40), process_counts, budgets)
def test_tokens_are_counted_with_and_without_padding(lengths, batch_size, num_processes, max_tokens):
    plan = BatchPlan(lengths, batch_size=batch_size, seed=0, num_processes=num_processes, max_tokens=max_tokens)
    step = plan.step(0)
    microbatches = [microbatch for process in step.microbatches for microbatch in process]
    assert step.num_tokens == sum(lengths[row] for row in plan.batch(0))
    assert step.num_padded_tokens == sum(cost(microbatch, lengths) for microbatch in microbatches)
    assert step.num_padded_tokens >= step.num_tokens


def test_epochs_and_seeds_have_unlike_orders():
    def order(seed, epoch):
        plan = BatchPlan([1] * 100, batch_size=100, seed=seed)
        return tuple(plan.batch(epoch).tolist())

    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_cutting_by_length_removes_most_padding():
    lengths = np.random.default_rng(0).integers(20, 512, 1000)
    uncut = BatchPlan(lengths, batch_size=32, seed=0)
    cut = BatchPlan(lengths, batch_size=32, seed=0, max_tokens=2048)

    def padding(plan):
        steps = [plan.step(step) for step in range(plan.steps_per_epoch)]
        return 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)

    assert padding(uncut) > 0.4
    assert padding(cut) < 0.15


def test_two_processes_get_even_work():
    lengths = np.random.default_rng(0).integers(20, 512, 1000)
    plan = BatchPlan(lengths, batch_size=32, seed=0, num_processes=2, max_tokens=2048)
    work = np.array(
        [
            [sum(cost(microbatch, lengths) for microbatch in process) for process in plan.step(step).microbatches]
            for step in range(plan.steps_per_epoch)
        ]
    )
    assert (work.max(axis=1) / work.mean(axis=1)).mean() < 1.05
