import random

import numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_loop.runtime.randomness import derive_seed, evaluating, keeping_random_state, seed_everything

parts = st.lists(st.one_of(st.integers(), st.text()), min_size=1, max_size=4)


@given(parts, parts)
def test_unlike_parts_give_unlike_seeds_that_torch_takes(first, second):
    assert 0 <= derive_seed(*first) < 2**63
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_seeds_are_hashed_not_added():
    assert len({derive_seed(seed, step) for seed in range(30) for step in range(30)}) == 900


def test_the_seed_is_the_same_on_every_machine_and_version():
    assert derive_seed(42, "order", 0) == 993273450358985366


def test_all_generators_follow():
    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    seed_everything(1, "step", 2)
    first = draw()
    assert draw() != first
    seed_everything(1, "step", 2)
    assert draw() == first


def test_generators_are_as_they_were():
    def draw() -> tuple[float, float, float]:
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    seed_everything("any")
    expected = draw()
    seed_everything("any")
    with keeping_random_state():
        draw()
        seed_everything("other")
    assert draw() == expected


class Merging(torch.nn.Linear):
    """Overrides `train`, as layers do that cache or merge weights for evaluation."""

    is_merged = False

    def train(self, mode: bool = True) -> "Merging":
        self.is_merged = not mode
        return super().train(mode)


def test_after_an_evaluation_each_module_is_in_its_own_mode_and_its_train_method_was_called():
    model = torch.nn.Sequential(Merging(2, 2), torch.nn.Sequential(Merging(2, 2), torch.nn.Dropout()))
    learning, (fixed, dropout) = model[0], model[1]
    fixed.eval()
    with evaluating(model):
        assert learning.is_merged and fixed.is_merged and not dropout.training
    assert model.training and learning.training and dropout.training and not fixed.training
    assert fixed.is_merged and not learning.is_merged


def test_after_an_evaluation_a_model_in_evaluation_mode_stays_there():
    model = torch.nn.Sequential(Merging(2, 2)).eval()
    with evaluating(model):
        pass
    assert not model.training and model[0].is_merged
