import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_loop.config.load import read_config
from trainer_loop.config.schema import value_of
from trainer_loop.search.plan import list_runs
from trainer_loop.search.space import Choices, Range, list_grid, read_space, spell, spell_values
from trainer_loop.search.study import Row
from trainer_loop.search.table import average, describe_trials, find_best

SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text("aé01[]{}\"': ,#tru-_.\\n", min_size=1, max_size=8).filter(lambda text: text[0] not in "[{")


@settings(max_examples=30)
@given(value=SCALARS | TEXTS | st.lists(SCALARS | TEXTS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=3))
def test_the_command_line_reads_a_formatted_value_back(value):
    reading = read_config(None, [f"model.overrides.some={spell('model.overrides.some', value)}"])
    assert reading.key_problems == []
    found = value_of(reading.config, "model.overrides")["some"]
    assert json.dumps(found) == json.dumps(value)


def test_keys_may_stand_in_sections_and_below_mappings():
    space, problems = read_space(
        "{optimizer: {lr: {low: 1e-5, high: 1}, freeze: [[], [a.*]]}, model.overrides: {dropout: {low: 0, high: 0.5}}, "
        "batch.size: {low: 8, high: 32, step: 8}, train.precision: [no, bf16], data.deduplicate: [yes, no]}"
    )
    assert problems == []
    assert space == {
        "optimizer.lr": Range(1e-5, 1.0),
        "optimizer.freeze": Choices(("[]", '["a.*"]')),
        "model.overrides.dropout": Range(0, 0.5),
        "batch.size": Range(8, 32, step=8),
        "train.precision": Choices(("no", "bf16")),
        "data.deduplicate": Choices((True, False)),
    }
    values = {name: parameter.ends[-1] for name, parameter in space.items()}
    config = read_config(None, spell_values(space, values)).config
    assert (config.optimizer.freeze, config.train.precision, config.data.deduplicate) == (["a.*"], "bf16", False)
    assert config.model.overrides == {"dropout": 0.5}


def test_a_grid_has_every_combination_once():
    space, _ = read_space("{batch.size: {low: 8, high: 12, step: 2}, optimizer.lr: {low: 0.1, high: 0.3, step: 0.1}}")
    grid = list_grid(space)
    assert len(grid) == 9
    assert grid[0] == {"batch.size": 8, "optimizer.lr": 0.1}
    assert [values["batch.size"] for values in grid[::3]] == [8, 10, 12]
    assert math.isclose(grid[-1]["optimizer.lr"], 0.3)


def test_seeds_and_folds_are_runs_in_separate_folders():
    runs = list_runs(2, 3)
    assert list(runs)[:4] == ["seed-1/fold-1", "seed-1/fold-2", "seed-1/fold-3", "seed-2/fold-1"]
    assert runs["seed-2/fold-3"][:2] == ["seed=2", "data.fold=3/3"]
    assert list(list_runs(None, 2)) == ["fold-1", "fold-2"]


def make_row(number: int, value: float | None, ended: str, **result) -> Row:
    return Row(number, {"optimizer.lr": 10.0**-number}, value, {"ended": ended, "steps": 1000, "seconds": 90, **result})


def test_the_table_has_each_trial_and_marks_the_best():
    rows = [
        make_row(0, 0.5, "finished", spread=0.25),
        make_row(1, 0.75, "finished", spread=0.5),
        make_row(2, None, "diverged", reason="step 3: " + "the loss is nan " * 9),
        Row(3, {"optimizer.lr": 1e-3}, None, {}),
    ]
    assert find_best(rows, maximize=True) is rows[1]
    assert find_best(rows, maximize=False) is rows[0]
    assert find_best(rows[2:], maximize=True) is None
    assert describe_trials(rows, "accuracy", ["optimizer.lr"], best=rows[1])[:3] == [
        "   trial  accuracy  spread  optimizer.lr  steps  minutes  ended",
        "       0       0.5    0.25             1  1,000      1.5  finished",
        "*      1      0.75     0.5           0.1  1,000      1.5  finished",
    ]
    assert describe_trials(rows, "accuracy", [], best=None)[3].endswith(
        "diverged: step 3: the loss is nan the loss is nan the los..."
    )
    assert describe_trials(rows, "accuracy", [], best=None)[4].endswith("running")


def test_the_first_of_equal_trials_is_the_best():
    rows = [make_row(number, 0.5, "finished") for number in range(3)]
    assert find_best(rows, maximize=True) is find_best(rows, maximize=False) is rows[0]


def test_the_spread_is_the_standard_deviation_of_a_sample():
    mean, spread = average([0.1, 0.2, 0.6])
    assert mean == pytest.approx(0.3)
    assert spread == pytest.approx(0.2645751311)


def test_a_space_may_be_a_file_whose_faults_have_their_lines(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("optimizer:\n  lr: {low: 1e-5, high: 1e-3, log: true}\nbatch.size: [16, 32]\n")
    assert read_space(str(file)) == ({"optimizer.lr": Range(1e-5, 1e-3, True), "batch.size": Choices((16, 32))}, [])
    file.write_text("batch.size: [16, 32]\nbatch.size: [8]\n")
    assert read_space(str(file))[1] == [
        f"search.space: {file}:2: batch.size is given twice, on lines 1 and 2; remove one of them"
    ]
