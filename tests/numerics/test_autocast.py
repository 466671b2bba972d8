"""Mixed precision: weights are cast once an update, and the update stays near that of fp32."""

from pathlib import Path

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_loop.parallel.processes import make_accelerator

ROWS = tiny.make_rows(24, longest=20)


class CastCounter(TorchDispatchMode):
    """Counts how often each of these parameters is copied into bf16."""

    def __init__(self, parameters: dict[str, torch.Tensor]):
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in parameters.items()}
        self.casts: dict[str, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            if name is not None:
                self.casts[name] = self.casts.get(name, 0) + 1
        return function(*args, **kwargs)


def make_loop(run_dir: Path, *, precision: str, num_steps: int, per_device: int | None):
    return tiny.make_loop(
        run_dir,
        rows=ROWS,
        task=tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=num_steps,
        layout=tiny.Layout(per_device=per_device),
        accelerator=make_accelerator(precision=precision),
    )


def test_weights_are_cast_once_an_update_however_many_microbatches_it_has(tmp_path: Path):
    loop = make_loop(tmp_path, precision="bf16", num_steps=3, per_device=2)
    with CastCounter(dict(loop.bare_model.named_parameters())) as counter:
        loop.fit()
    assert loop.recording.microbatches == [4, 4, 4]
    assert counter.casts["bert.encoder.layer.0.attention.self.query.weight"] == 3
    assert set(counter.casts.values()) == {3}


@pytest.mark.parametrize("per_device", [None, 2])
def test_losses_in_bf16_stay_within_two_hundredths_of_fp32(per_device: int | None, tmp_path: Path):
    exact = make_loop(tmp_path / "no", precision="no", num_steps=9, per_device=None)
    exact.fit()
    tiny.forget_accelerator()
    mixed = make_loop(tmp_path / "bf16", precision="bf16", num_steps=9, per_device=per_device)
    mixed.fit()
    torch.testing.assert_close(
        torch.tensor(mixed.recording.losses), torch.tensor(exact.recording.losses), rtol=0.02, atol=0
    )
