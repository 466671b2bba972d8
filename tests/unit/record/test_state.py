"""state.json: the names of its keys, and content that is refused."""

import pytest

from trainer_loop.record.state import TrainState


def test_metrics_have_their_old_name_in_checkpoints():
    state = TrainState(step=3, metrics={"loss": 0.5})
    saved = state.state_dict()
    assert saved["figures"] == {"loss": 0.5}
    assert "metrics" not in saved
    assert TrainState.from_dict(saved) == state


def test_a_key_of_another_version_is_refused():
    with pytest.raises(ValueError, match="pace is unknown"):
        TrainState.from_dict({"step": 1, "pace": 2})


def test_the_best_weights_before_can_be_restored():
    state = TrainState(step=2)
    state.take_best("accuracy", 0.5, {"accuracy": 0.5})
    state.step = 4
    before = state.take_best("accuracy", 0.6, {"accuracy": 0.6})
    assert (state.best_step, state.best_value) == (4, 0.6)
    state.put_back_best(before)
    assert (state.best_step, state.best_value, state.metrics) == (2, 0.5, {"accuracy": 0.5})
