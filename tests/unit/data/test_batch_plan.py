"""The batch plan: pure, so its laws are tested for any lengths, budgets and processes."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop.data import batch_plan
from trainer_loop.data.batch_plan import BatchPlan, cut_evaluation, halve_dearest
from trainer_loop.data.cut import Limits, _deal_one_by_one, deal

lengths_of_rows = st.lists(st.integers(1, 600), min_size=1, max_size=80)
budgets = st.one_of(st.none(), st.integers(1, 4096))
row_limits = st.one_of(st.none(), st.integers(1, 20))
process_counts = st.integers(1, 5)
overheads = st.one_of(st.none(), st.integers(0, 500))


def cut_batch(*batch, **options):
    """`[process][microbatch][row]`"""
    return [share.microbatches for share in batch_plan.cut_batch(*batch, **options)]


def flatten(dealt):
    return [row for process in dealt for microbatch in process for row in microbatch]


def cost(microbatch, lengths, *, packed=False):
    if packed:
        return sum(lengths[row] for row in microbatch)
    return len(microbatch) * max(lengths[row] for row in microbatch)


def find_least_cost(lengths, *, max_tokens, per_device, microbatch_tokens):
    """Of all cuts of the sorted rows into consecutive microbatches, tried one by one."""
    lengths = sorted(lengths, reverse=True)
    least = [0]
    for stop in range(1, len(lengths) + 1):
        allowed = [
            begin
            for begin in range(stop)
            if stop - begin == 1
            or (
                (max_tokens is None or lengths[begin] * (stop - begin) <= max_tokens)
                and stop - begin <= (per_device or 99)
            )
        ]
        least.append(min(least[begin] + lengths[begin] * (stop - begin) + microbatch_tokens for begin in allowed))
    return least[-1]


cuts = st.fixed_dictionaries(
    {
        "num_processes": process_counts,
        "max_tokens": budgets,
        "per_device": row_limits,
        "microbatch_tokens": overheads,
        "packed": st.booleans(),
    }
)
windows = st.one_of(st.none(), st.integers(1, 5))


@given(lengths_of_rows, st.integers(1, 40), st.integers(0, 9), windows, cuts)
def test_an_epoch_holds_each_row_once(lengths, batch_size, seed, window, cut):
    plan = BatchPlan(lengths, Limits(**cut), batch_size=batch_size, seed=seed, window=window)
    for epoch in (0, 3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = [row for step in steps for row in flatten(plan.step(step).microbatches)]
        assert sorted(rows) == list(range(len(lengths)))


@given(lengths_of_rows, st.integers(1, 40), windows, cuts)
def test_batches_are_the_same_for_every_cut(lengths, batch_size, window, cut):
    one = BatchPlan(lengths, batch_size=batch_size, seed=1, window=window)
    other = BatchPlan(lengths, Limits(**cut), batch_size=batch_size, seed=1, window=window)
    for step in range(one.steps_per_epoch):
        first, second = (sorted(flatten(plan.step(step).microbatches)) for plan in (one, other))
        assert first == second == sorted(one.batch(step).tolist())


@given(lengths_of_rows, cuts)
def test_a_microbatch_keeps_its_budget_unless_one_row_alone_exceeds_it(lengths, cut):
    for dealt in (cut_batch(list(range(len(lengths))), lengths, Limits(**cut)), cut_evaluation(lengths, Limits(**cut))):
        assert sorted(flatten(dealt)) == list(range(len(lengths)))
        assert len(dealt) == cut["num_processes"]
        for process in dealt:
            for microbatch in process:
                tokens = cost(microbatch, lengths, packed=cut["packed"])
                assert len(microbatch) == 1 or cut["max_tokens"] is None or tokens <= cut["max_tokens"]
                assert cut["per_device"] is None or len(microbatch) <= cut["per_device"]
                assert lengths[microbatch[0]] == max(lengths[row] for row in microbatch)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("per_device", [None, 7])
def test_many_rows_are_evaluated_each_once_and_within_the_budget(packed, num_processes, per_device):
    lengths = np.random.default_rng(0).integers(1, 600, 3000)
    dealt = cut_evaluation(lengths, Limits(num_processes, max_tokens=500, per_device=per_device, packed=packed))
    assert sorted(flatten(dealt)) == list(range(3000))
    for microbatch in (microbatch for process in dealt for microbatch in process):
        assert len(microbatch) == 1 or cost(microbatch, lengths, packed=packed) <= 500
        assert per_device is None or len(microbatch) <= per_device
    work = [sum(cost(microbatch, lengths, packed=packed) for microbatch in process) for process in dealt]
    assert max(work) - min(work) <= 600


def test_many_rows_are_evaluated_in_few_shapes_with_little_padding():
    lengths = np.random.default_rng(0).integers(1, 513, 30_000)
    (microbatches,) = cut_evaluation(lengths, Limits(max_tokens=4096))
    shapes = {(len(rows), int(lengths[rows[0]])) for rows in microbatches}
    assert len(shapes) <= 3 * 512 // 8 < len(microbatches) / 8
    assert sum(cost(rows, lengths) for rows in microbatches) <= 1.02 * lengths.sum()


def test_many_rows_of_one_length_are_evaluated_as_they_stand():
    (microbatches,) = cut_evaluation([1] * 3000, Limits(per_device=32))
    assert [row for rows in microbatches for row in rows] == list(range(3000))
    assert {len(rows) for rows in microbatches[:-1]} == {32}


@given(lengths_of_rows, cuts)
def test_no_process_is_idle_while_there_are_rows_for_it(lengths, cut):
    dealt = cut_batch(list(range(len(lengths))), lengths, Limits(**cut))
    assert sum(1 for process in dealt if process) == min(cut["num_processes"], len(lengths))


@given(lengths_of_rows, budgets, row_limits, st.integers(0, 500))
def test_no_cut_of_the_sorted_rows_costs_less(lengths, max_tokens, per_device, microbatch_tokens):
    limits = {"max_tokens": max_tokens, "per_device": per_device, "microbatch_tokens": microbatch_tokens}
    (cut,) = cut_batch(list(range(len(lengths))), lengths, Limits(**limits))
    found = sum(cost(microbatch, lengths) + microbatch_tokens for microbatch in cut)
    assert found == find_least_cost(lengths, **limits)


@given(lengths_of_rows, budgets, row_limits)
def test_without_a_cost_of_its_own_a_microbatch_is_as_full_as_may_be(lengths, max_tokens, per_device):
    (cut,) = cut_batch(list(range(len(lengths))), lengths, Limits(max_tokens=max_tokens, per_device=per_device))
    dear = 10**6  # more than all padding
    least = find_least_cost(lengths, max_tokens=max_tokens, per_device=per_device, microbatch_tokens=dear)
    assert sum(cost(microbatch, lengths) + dear for microbatch in cut) == least


@given(lengths_of_rows, cuts)
def test_halving_cuts_every_microbatch_of_several_rows_below_half_of_the_dearest(lengths, cut):
    rows = list(range(len(lengths)))
    dealt = cut_batch(rows, lengths, Limits(**cut))
    several = [microbatch for process in dealt for microbatch in process if len(microbatch) > 1]
    half = halve_dearest(dealt, lengths, packed=cut["packed"])
    if half is None:
        assert several == []
        return
    dearest = max(cost(microbatch, lengths, packed=cut["packed"]) for microbatch in several)
    smaller = cut_batch(rows, lengths, Limits(**(cut | {"max_tokens": half})))
    for microbatch in (microbatch for process in smaller for microbatch in process if len(microbatch) > 1):
        assert cost(microbatch, lengths, packed=cut["packed"]) <= dearest / 2


@given(lengths_of_rows, st.integers(1, 40), windows, cuts, st.integers(0, 10**7))
def test_any_step_is_found_by_its_index_alone(lengths, batch_size, window, cut, step):
    options = {"batch_size": batch_size, "seed": 3, "window": window, "limits": Limits(**cut)}
    walked = BatchPlan(lengths, **options)
    for earlier in range(max(0, step - 3), step):
        walked.step(earlier)
    assert walked.step(step) == BatchPlan(lengths, **options).step(step)


@given(lengths_of_rows, st.integers(1, 40), cuts)
def test_a_step_is_the_same_whatever_it_was_planned_with(lengths, batch_size, cut):
    """Steps are cut many at a time: the blocks of `step`, a sample of the epoch, a batch alone."""
    plan = BatchPlan(lengths, Limits(**cut), batch_size=batch_size, seed=2)
    for sampled in plan.sample(3):
        assert sampled == plan.step(sampled.step)
        rows = plan.batch(sampled.step)
        assert sampled.microbatches == cut_batch(rows.tolist(), plan.lengths[rows], Limits(**cut))


def test_blocks_of_steps_meet_without_a_gap(monkeypatch):
    monkeypatch.setattr("trainer_loop.data.batch_plan._PLANNED_ROWS", 24)  # three steps at a time
    lengths = np.random.default_rng(0).integers(1, 60, 61)
    plan = BatchPlan(lengths, Limits(max_tokens=100, microbatch_tokens=10), batch_size=8, seed=0)
    for step in [*range(24), 3, 17, 9, 8, 7]:
        alone = BatchPlan(lengths, Limits(max_tokens=100, microbatch_tokens=10), batch_size=8, seed=0)
        assert plan.step(step) == alone.step(step)
        assert sorted(flatten(plan.step(step).microbatches)) == sorted(alone.batch(step).tolist())


@given(lengths_of_rows, st.integers(1, 40), cuts)
def test_tokens_are_counted_with_and_without_padding(lengths, batch_size, cut):
    plan = BatchPlan(lengths, Limits(**cut), batch_size=batch_size, seed=0)
    step = plan.step(0)
    for share in step.shares:
        assert share.num_rows == sum(map(len, share.microbatches))
        assert share.num_tokens == sum(cost(microbatch, lengths, packed=True) for microbatch in share.microbatches)
        assert share.num_padded_tokens == sum(
            cost(microbatch, lengths, packed=cut["packed"]) for microbatch in share.microbatches
        )
    assert step.num_tokens == sum(lengths[row] for row in plan.batch(0))
    assert step.num_padded_tokens >= step.num_tokens
    assert step.num_padded_tokens == step.num_tokens or not cut["packed"]


def test_epochs_and_seeds_have_unlike_orders():
    def order(seed, epoch):
        plan = BatchPlan([1] * 100, batch_size=100, seed=seed)
        return tuple(plan.batch(epoch).tolist())

    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_cutting_by_length_removes_most_padding():
    lengths = np.random.default_rng(0).integers(20, 512, 1000)
    uncut = BatchPlan(lengths, batch_size=32, seed=0)
    cut = BatchPlan(lengths, Limits(max_tokens=2048), batch_size=32, seed=0)

    def padding(plan):
        steps = [plan.step(step) for step in range(plan.steps_per_epoch)]
        return 1 - sum(step.num_tokens for step in steps) / sum(step.num_padded_tokens for step in steps)

    assert padding(uncut) > 0.4
    assert padding(cut) < 0.15


def test_a_batch_within_the_budget_is_cut_where_padding_costs_more_than_a_microbatch():
    lengths = [60] * 4 + [10] * 20
    whole, cut = (
        cut_batch(list(range(24)), lengths, Limits(max_tokens=2048, microbatch_tokens=tokens))
        for tokens in (1001, 999)  # the padding is 20 * 50
    )
    assert [len(microbatch) for microbatch in whole[0]] == [24]
    assert sorted(len(microbatch) for microbatch in cut[0]) == [4, 20]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("num_processes", "uneven"), [(2, 1.03), (4, 1.06)])
def test_processes_get_even_work(num_processes, uneven, packed):
    lengths = np.random.default_rng(0).integers(20, 512, 1000)
    limits = Limits(num_processes, max_tokens=2048, microbatch_tokens=64, packed=packed)
    plan = BatchPlan(lengths, limits, batch_size=32, seed=0)
    steps = range(len(lengths) // 32)
    work = np.array([[share.num_padded_tokens for share in plan.step(step).shares] for step in steps])
    assert (work.max(axis=1) / work.mean(axis=1)).mean() < uneven


def test_packed_rows_fill_few_microbatches():
    lengths = np.random.default_rng(0).integers(20, 512, 1000)
    plan = BatchPlan(lengths, Limits(max_tokens=2048, packed=True), batch_size=32, seed=0)
    for step in range(plan.steps_per_epoch):
        planned = plan.step(step)
        (microbatches,) = planned.microbatches
        assert len(microbatches) <= planned.num_tokens // 2048 + 2
        sizes = [cost(microbatch, lengths, packed=True) for microbatch in microbatches]
        assert max(sizes) - min(sizes) <= 512


def test_a_window_sorts_its_batches_and_nothing_else():
    lengths = np.random.default_rng(0).integers(1, 512, 1000)
    shuffled = BatchPlan(lengths, batch_size=10, seed=0)
    sorted_ = BatchPlan(lengths, batch_size=10, seed=0, window=8)
    assert {sorted_.batch(step).size for step in range(100)} == {10}
    for start in range(0, 100, 8):
        steps = range(start, min(start + 8, 100))
        before = np.concatenate([shuffled.batch(step) for step in steps])
        after = [sorted_.batch(step) for step in steps]
        assert sorted(before) == sorted(np.concatenate(after))
        spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in after)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        shortest = [lengths[batch].min() for batch in after]
        assert shortest not in (sorted(shortest), sorted(shortest, reverse=True))  # the batches are shuffled


def test_the_batch_of_leftover_rows_stays_the_last_of_a_windowed_epoch():
    lengths = np.random.default_rng(0).integers(1, 512, 47)
    plan, shuffled = (BatchPlan(lengths, batch_size=10, seed=0, window=window) for window in (4, None))
    assert [len(plan.batch(step)) for step in range(5)] == [10, 10, 10, 10, 7]
    assert plan.batch(4).tolist() == shuffled.batch(4).tolist()
    assert plan.batch(0).tolist() != plan.batch(5).tolist()


@given(lengths_of_rows, cuts, st.data())
def test_rows_of_unlike_groups_share_no_microbatch(lengths, cut, data):
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))))
    dealt = cut_batch(list(range(len(lengths))), lengths, Limits(**cut), groups=groups)
    assert sorted(flatten(dealt)) == list(range(len(lengths)))
    microbatches = [microbatch for process in dealt for microbatch in process]
    assert all(len(set(groups[microbatch])) == 1 for microbatch in microbatches)
    assert all(microbatch == sorted(microbatch, key=lambda row: -lengths[row]) for microbatch in microbatches)
    limit, most = cut["max_tokens"], cut["per_device"]
    for microbatch in microbatches:
        if len(microbatch) > 1:
            assert limit is None or cost(microbatch, lengths) <= limit
            assert most is None or len(microbatch) <= most
    if len(lengths) >= cut["num_processes"]:
        assert all(dealt)


@given(lengths_of_rows, st.integers(1, 40), windows, cuts)
def test_groups_do_not_change_batches(lengths, batch_size, window, cut):
    groups = np.arange(len(lengths)) % 3
    plan = BatchPlan(lengths, Limits(**cut), batch_size=batch_size, seed=1, window=window, groups=groups)
    plain = BatchPlan(lengths, batch_size=batch_size, seed=1, window=window)
    for step in range(plan.steps_per_epoch):
        rows = flatten(plan.step(step).microbatches)
        assert sorted(rows) == sorted(flatten(plain.step(step).microbatches))
        for microbatch in (microbatch for process in plan.step(step).microbatches for microbatch in process):
            assert len(set(groups[microbatch])) == 1


@given(lengths_of_rows, cuts, st.sampled_from([8, 16]), st.integers(0, 700))
def test_widths_are_multiples_that_no_longest_row_is_cut_by(lengths, cut, step, longest):
    limits = Limits(**(cut | {"packed": False}), width_step=step, longest=longest, row_step=4)
    widths = limits.pad(np.array(lengths)).tolist()
    assert all(width >= length for width, length in zip(widths, lengths, strict=True))
    assert all(
        width % step == 0 or width == max(length, longest) for width, length in zip(widths, lengths, strict=True)
    )
    dealt = cut_batch(list(range(len(lengths))), lengths, limits)
    assert sorted(flatten(dealt)) == list(range(len(lengths)))
    for microbatch in (microbatch for process in dealt for microbatch in process if len(microbatch) > 1):
        assert cut["max_tokens"] is None or widths[microbatch[0]] * len(microbatch) <= cut["max_tokens"]


def test_few_shapes_recur_where_each_new_one_costs_much():
    lengths = np.random.default_rng(0).integers(5, 120, 2048)
    limits = Limits(max_tokens=2048, microbatch_tokens=256)
    shapes, padded = {}, {}
    for name, chosen in {"any": limits, "few": replace(limits, width_step=16, longest=128, row_step=8)}.items():
        plan = BatchPlan(lengths, chosen, batch_size=32, seed=0)
        shares = [plan.step(step).shares[0] for step in range(plan.steps_per_epoch)]
        widths = chosen.pad(plan.lengths)
        shapes[name] = {(len(rows), int(widths[rows[0]])) for share in shares for rows in share.microbatches}
        padded[name] = sum(share.num_padded_tokens for share in shares)
    assert padded["few"] < 1.25 * padded["any"]
    assert len(shapes["few"]) < len(shapes["any"]) / 3


def find_dearest_of_best(lengths, *, most_microbatches, max_tokens, per_device):
    """What the dearest microbatch costs in the best of all cuts into at most so many, tried one by one."""
    lengths = sorted(lengths, reverse=True)
    best = [[0] * (most_microbatches + 1)]  # [stop][microbatches]
    for stop in range(1, len(lengths) + 1):
        best.append([math.inf])
        for count in range(1, most_microbatches + 1):
            begins = [begin for begin in range(stop) if stop - begin <= (per_device or 99)]
            costs = {begin: lengths[begin] * (stop - begin) for begin in begins}
            allowed = [begin for begin in begins if stop - begin == 1 or costs[begin] <= (max_tokens or math.inf)]
            best[stop].append(min(max(best[begin][count - 1], costs[begin]) for begin in allowed))
    return best[-1][-1]


many_processes = st.integers(8, 40)
lengths_of_many = st.lists(st.integers(1, 600), min_size=1, max_size=200)


@given(lengths_of_many, many_processes, cuts, st.booleans(), st.data())
def test_many_processes_get_equally_many_microbatches(lengths, num_processes, cut, has_groups, data):
    limits = Limits(**(cut | {"num_processes": num_processes, "packed": False}))
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))))
    dealt = cut_batch(list(range(len(lengths))), lengths, limits, groups=groups if has_groups else None)
    assert sorted(flatten(dealt)) == list(range(len(lengths)))
    numbers = [len(microbatches) for microbatches in dealt]
    whole = -(-sum(numbers) // num_processes)
    assert max(numbers) == whole
    assert sum(numbers) == min(whole * num_processes, len(lengths))
    for microbatch in (microbatch for microbatches in dealt for microbatch in microbatches):
        assert lengths[microbatch[0]] == max(lengths[row] for row in microbatch)
        assert len(set(groups[microbatch])) == 1 or not has_groups
        if len(microbatch) > 1:
            assert cut["max_tokens"] is None or cost(microbatch, lengths) <= cut["max_tokens"]
            assert cut["per_device"] is None or len(microbatch) <= cut["per_device"]


@given(st.lists(st.integers(1, 600), min_size=8, max_size=40), budgets, row_limits)
def test_the_dearest_microbatch_of_many_processes_costs_least(lengths, max_tokens, per_device):
    dealt = cut_batch(list(range(len(lengths))), lengths, Limits(8, max_tokens=max_tokens, per_device=per_device))
    costs = [cost(microbatch, lengths) for microbatches in dealt for microbatch in microbatches]
    least = find_dearest_of_best(lengths, most_microbatches=len(costs), max_tokens=max_tokens, per_device=per_device)
    assert least <= max(costs) <= least * (1 + 1 / 128) + 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_thousand_processes_get_even_work_and_no_dummies(packed):
    lengths = np.random.default_rng(0).integers(20, 512, 65_536)
    limits = Limits(1024, max_tokens=16_384, microbatch_tokens=4096, packed=packed)
    (shares,) = [BatchPlan(lengths, limits, batch_size=32_768, seed=0).step(0).shares]
    assert {len(share.microbatches) for share in shares} == {1}
    work = np.array([share.num_padded_tokens for share in shares])
    assert work.max() / work.mean() < 1.05


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 12), st.booleans())
def test_dealing_one_batch_after_the_other_gives_the_same(costs, num_shares, has_limit):
    ordered = -np.sort(-np.array([costs, costs[::-1], [cost // 2 for cost in costs]]).T, axis=0)
    counts = np.array([num_shares, max(num_shares // 2, 1), num_shares])
    most_items = -(-(ordered > 0).sum(axis=0) // counts) if has_limit else None
    owners, work = deal(ordered, counts, most_items=most_items)
    others, other_work = _deal_one_by_one(ordered, counts, most_items=most_items)
    assert np.array_equal(work, other_work)
    assert np.array_equal(owners[ordered > 0], others[ordered > 0])
    if has_limit:
        for batch, most in enumerate(most_items.tolist()):
            given = owners[ordered[:, batch] > 0, batch]
            assert np.bincount(given, minlength=1).max() <= most
