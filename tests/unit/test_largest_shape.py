"""The largest microbatches run before the first step of a sharded run, and leave nothing behind but a smaller cut."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from trainer_loop import UserError
from trainer_loop.data.loader import Microbatch
from trainer_loop.largest_shape import cut_until_it_fits, leaving_modules_alone


def cut(directory: Path, *, fits: int, max_tokens: int | None = None) -> tuple[int | None, list[str], list[int]]:
    """The budget that comes of it, what was said, and the passes that were asked for, where so many tokens fit."""
    loop = tiny.make_loop(
        directory,
        rows=tiny.make_rows(32),
        task=tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=1,
        layout=tiny.Layout(max_tokens=max_tokens),
    )
    said, asked = [], []

    def run_passes(microbatch: Microbatch, times: int) -> None:
        assert microbatch.num_targets == 0
        asked.append(times)
        if microbatch.batch["input_ids"].numel() > fits:
            raise torch.OutOfMemoryError("made up")

    cut_until_it_fits(loop.data, accelerator=loop.accelerator, run_passes=run_passes, warn=said.append)
    return loop.data.max_tokens, said, asked


def test_what_fits_is_not_cut(tmp_path: Path):
    assert cut(tmp_path, fits=192) == (None, [], [1])


def test_the_largest_is_halved_until_it_fits(tmp_path: Path):
    budget, said, asked = cut(tmp_path, fits=60)
    assert budget is not None and budget <= 96
    assert said[0] == (
        "8 rows of up to 24 tokens, the largest microbatch, do not fit into memory: none has more than 96 padded "
        "tokens from now on; batch.max_tokens=96 says so from the start"
    )
    assert asked[0] == 1 and asked[-1] == 2, "with the gradients of another, once there are several"


def test_a_row_that_does_not_fit_ends_the_run_with_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"a row of 24 tokens does not fit into memory; lower data\.max_length"):
        cut(tmp_path, fits=20)


def test_modules_are_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].longest = 5
    before = {name: value.clone() for name, value in model.named_buffers()}
    held = model[1].running_var
    with leaving_modules_alone(model):
        model(torch.randn(4, 3))
        model[1].longest = 9
        model[1].register_buffer("running_var", torch.ones(7))
        model[1].kept, model[0].forward = torch.ones(2), None
    assert model[1].longest == 5
    assert not hasattr(model[1], "kept") and model[0].forward is not None
    assert model[1].running_var is held
    torch.testing.assert_close(dict(model.named_buffers()), before)
