"""Law 1: the update does not depend on how it was cut into processes, microbatches or padding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenarios import Outcome, Scenario, run_alone, run_in_group

# Batches of up to 16 x 60 padded tokens: each of the cuts below makes several microbatches of them.
LONG = Scenario(batch_size=16, longest=60, num_steps=8)
BASES = {
    "classification, float64, AdamW": LONG,
    "classification, float32, SGD": replace(LONG, dtype="float32", optimizer="sgd", lr=0.1),
    "causal LM, float64, AdamW": replace(LONG, task="causal_lm"),
    "causal LM, float32, SGD": replace(LONG, task="causal_lm", dtype="float32", optimizer="sgd", lr=0.1),
}
CUTS = {
    "budget 64": {"max_tokens": 64},
    "budget 512": {"max_tokens": 512},
    "one row": {"per_device": 1},
    "three rows": {"per_device": 3},
    "packed": {"packed": True, "max_tokens": 128},
    "little padding": {"microbatch_tokens": 20},
}
# 49 rows in batches of 16 leave one row: its step gives the second process no microbatch.
IDLE = {"num_rows": 49}
# Batches of two chunks, one without a target: a process may have rows and nothing to learn from.
OPTIONS = {"frozen_steps": 3, "max_grad_value": 0.01, "max_tokens": 64}
BLANK = {"task": "causal_lm", "num_rows": 20, "batch_size": 2, "num_steps": 20, "blank_every": 2}

WEIGHTED = {"weighted": True}

SPARING = replace(LONG, sparing=True, max_tokens=64, num_rows=49)


@pytest.fixture(scope="session")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scenarios = [replace(base, **cut) for base in BASES.values() for cut in [{}, *CUTS.values(), IDLE]]
    scenarios += [replace(base, **BLANK) for base in BASES.values() if base.task == "causal_lm"]
    scenarios += [replace(base, **OPTIONS) for base in BASES.values()]
    scenarios += [replace(base, **WEIGHTED, **cut) for base in BASES.values() for cut in [{}, CUTS["packed"]]]
    scenarios += [SPARING]
    return run_in_group(scenarios, tmp_path_factory.mktemp("two"))


def assert_equal(one: Outcome, other: Outcome) -> None:
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(one.losses), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(other.grad_norms), torch.tensor(one.grad_norms), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.weights, one.weights, rtol=0, atol=1e-6)


def test_parameters_that_only_some_microbatches_use_learn_alike(on_two: dict[str, Outcome]):
    alone = run_alone(SPARING)
    assert_equal(alone, on_two[SPARING.name])
    assert_equal(alone, run_alone(replace(SPARING, max_tokens=None)))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("cut", CUTS)
def test_update_does_not_depend_on_the_microbatches(base: str, cut: str):
    whole = run_alone(BASES[base])
    parts = run_alone(replace(BASES[base], **CUTS[cut]))
    assert max(parts.microbatches[0]) > max(whole.microbatches[0]) == 1
    assert len(whole.losses) == 8
    assert_equal(whole, parts)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("cut", ["whole", *CUTS])
def test_update_does_not_depend_on_the_number_of_processes(base: str, cut: str, on_two: dict[str, Outcome]):
    one = run_alone(BASES[base])
    two = on_two[replace(BASES[base], **CUTS.get(cut, {})).name]
    assert all(steps > 0 for process in two.microbatches for steps in process)
    assert_equal(one, two)


@pytest.mark.parametrize("base", BASES)
def test_freezing_and_clipping_by_value_do_not_depend_on_it_either(base: str, on_two: dict[str, Outcome]):
    scenario = replace(BASES[base], **OPTIONS)
    one = run_alone(replace(scenario, max_tokens=None))
    assert_equal(one, on_two[scenario.name])
    plain = run_alone(BASES[base])
    assert (one.weights - plain.weights).abs().max() > 1e-4


@pytest.mark.parametrize("base", BASES)
def test_weights_of_rows_count_alike_in_every_cut_and_on_two_processes(base: str, on_two: dict[str, Outcome]):
    scenario = replace(BASES[base], **WEIGHTED)
    one = run_alone(scenario)
    for cut in ("one row", "budget 64", "packed"):
        assert_equal(one, run_alone(replace(scenario, **CUTS[cut])))
    assert_equal(one, on_two[scenario.name])
    assert_equal(one, on_two[replace(scenario, **CUTS["packed"]).name])
    assert (one.weights - run_alone(BASES[base]).weights).abs().max() > 1e-4


@pytest.mark.parametrize("base", BASES)
def test_a_process_without_rows_in_a_step_changes_nothing(base: str, on_two: dict[str, Outcome]):
    scenario = replace(BASES[base], **IDLE)
    two = on_two[scenario.name]
    assert [process[3] for process in two.microbatches] == [1, 0]  # the last step of the epoch: one row
    assert_equal(run_alone(scenario), two)


@pytest.mark.parametrize("base", [name for name in BASES if "causal" in name])
def test_a_process_without_targets_in_a_step_changes_nothing(base: str, on_two: dict[str, Outcome]):
    scenario = replace(BASES[base], **BLANK)
    two = on_two[scenario.name]
    blank = set(range(0, 20, 2))
    steps = zip(*two.rows, strict=True)
    assert any((set(first) <= blank) != (set(second) <= blank) for first, second in steps)
    assert_equal(run_alone(scenario), two)


def test_the_last_batch_of_an_epoch_counts_its_own_rows():
    """61 rows in batches of 8: the eighth has 5 rows, and its loss is their mean, not a share of 8."""
    outcome = run_alone(Scenario(num_steps=8, lr=0.0))
    assert [len(rows) for rows in outcome.rows[0]] == [8] * 7 + [5]
    whole = run_alone(Scenario(num_steps=1, lr=0.0, batch_size=61))
    mean = sum(loss * count for loss, count in zip(outcome.losses, [8] * 7 + [5], strict=True)) / 61
    assert mean == pytest.approx(whole.losses[0], abs=1e-12)


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tmp_path: Path):
    """A decoder that classifies looks at positions from the left; padding there would shift them."""
    import tiny
    from transformers import GPT2Config, GPT2ForSequenceClassification

    def first_loss(per_device: int | None) -> float:
        torch.manual_seed(0)
        model = GPT2ForSequenceClassification(
            GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=1)
        )
        task = tiny.make_task("sequence_classification")
        tokenizer = tiny.make_tokenizer()
        tokenizer.padding_side = "left"
        loop = tiny.make_loop(
            tmp_path / str(per_device),
            rows=tiny.make_rows(16),
            task=task,
            tokenizer=tokenizer,
            model=model.double().eval(),
            num_steps=1,
            layout=tiny.Layout(per_device=per_device),
        )
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loop.fit()
        return loop.recording.losses[0]

    assert first_loss(1) == pytest.approx(first_loss(None), abs=1e-9)
