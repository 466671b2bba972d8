import contextlib
import json

import pytest
import tiny
import torch

from trainer_loop.errors import UserError
from trainer_loop.record.checkpoint import find_fault, list_checkpoints
from trainer_loop.record.run_dir import RunDir
from trainer_loop.record.state import TrainState


@pytest.fixture
def loop(tmp_path):
    return tiny.make_loop(
        tmp_path / "run",
        rows=tiny.make_rows(16),
        task=tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=4,
        optimizer="adamw",
        checkpoint_every=2,
    )


def test_every_file_is_in_the_manifest_and_any_change_is_a_fault(loop, tmp_path):
    loop.fit()
    newest = list_checkpoints(RunDir(tmp_path / "run"))[-1]
    assert find_fault(newest) is None
    files = [path for path in newest.iterdir() if path.name != "manifest.json"]
    assert set(json.loads((newest / "manifest.json").read_text())["files"]) == {path.name for path in files}
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        assert f"{file.name} has {len(content) - 1} bytes" in find_fault(newest)
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert f"{file.name} was altered" in find_fault(newest)
        file.unlink()
        assert f"{file.name} is missing" in find_fault(newest)
        file.write_bytes(content)
    (newest / "manifest.json").write_text("{")
    assert "manifest.json is missing or damaged" in find_fault(newest)


def test_a_save_that_breaks_off_leaves_the_one_before(loop, tmp_path, monkeypatch):
    loop.checkpointer.save(TrainState(step=1))
    monkeypatch.setattr(loop.accelerator, "save_state", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        loop.checkpointer.save(TrainState(step=2))
    run_dir = RunDir(tmp_path / "run")
    (kept,) = list_checkpoints(run_dir)
    assert kept.name == "step-00000001"
    assert (run_dir.checkpoints / "latest").resolve() == kept.resolve()
    assert find_fault(kept) is None


def test_model_optimizer_schedule_and_state_come_back_as_they_were(loop, tmp_path):
    loop.fit()
    saved = [parameter.detach().clone() for parameter in loop.bare_model.parameters()]
    moments = [value["exp_avg"].clone() for value in loop.optimizer.state.values()]
    with torch.no_grad():
        for parameter in loop.bare_model.parameters():
            parameter.zero_()
    loop.scheduler.last_epoch = 0
    state = loop.checkpointer.load("auto")
    assert state.step == 4
    assert all(torch.equal(now, then) for now, then in zip(loop.bare_model.parameters(), saved, strict=True))
    assert all(
        torch.equal(now["exp_avg"], then) for now, then in zip(loop.optimizer.state.values(), moments, strict=True)
    )
    assert loop.scheduler.last_epoch == 4


def test_files_are_read_without_running_what_a_pickle_holds(loop, tmp_path):
    """Each file that torch reads is replaced by a pickle that would write a file; the manifest is made to fit."""
    import zlib

    class Malice:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    loop.fit()
    newest = list_checkpoints(RunDir(tmp_path / "run"))[-1]
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        content = (newest / name).read_bytes()
        torch.save({"state": Malice()}, newest / name)
        manifest = json.loads((newest / "manifest.json").read_text())
        altered = (newest / name).read_bytes()
        manifest["files"][name] = {"bytes": len(altered), "crc32": f"{zlib.crc32(altered):08x}"}
        (newest / "manifest.json").write_text(json.dumps(manifest))
        with contextlib.suppress(UserError):  # accelerate passes over the random states in silence
            loop.checkpointer.load("auto")
        assert not (tmp_path / "ran").exists(), name
        (newest / name).write_bytes(content)


def test_the_loss_scaler_of_fp16_comes_back_as_it_was(loop):
    loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop.accelerator.scaler.scale(torch.ones(()))  # the first use makes its tensors
    path = loop.checkpointer.save(TrainState(step=1))
    assert "scaler.bin" in {file.name for file in path.iterdir()}
    loop.accelerator.scaler.update(new_scale=2.0)
    assert loop.checkpointer.load("auto").step == 1
    assert loop.accelerator.scaler.get_scale() == 8.0


def test_rotation_never_takes_what_was_just_saved(loop, tmp_path):
    """A damaged checkpoint of a later step was passed over: it goes, not the one that the run goes on with."""
    loop.checkpointer.keep_last = 1
    loop.checkpointer.save(TrainState(step=6, best_step=6))
    damaged = loop.checkpointer.save(TrainState(step=8, best_step=6))
    (damaged / "optimizer.bin").unlink()
    assert loop.checkpointer.load("auto").step == 6
    saved = loop.checkpointer.save(TrainState(step=7, best_step=6))
    assert [path.name for path in list_checkpoints(RunDir(tmp_path / "run"))] == ["step-00000006", "step-00000007"]
    assert (saved.parent / "latest").resolve() == saved.resolve()


def test_a_run_gone_on_elsewhere_forgets_the_best_whose_weights_it_has_not(loop, tmp_path):
    state = TrainState(step=2, best_step=2, best_value=0.5)
    path = loop.checkpointer.save(state)
    assert (path.parent / "best").resolve() == path.resolve()
    other = tiny.make_loop(
        tmp_path / "other",
        rows=tiny.make_rows(16),
        task=tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=4,
        optimizer="adamw",
    )
    assert other.checkpointer.load(str(path)).best_step is None
    assert loop.checkpointer.load("auto").best_step == 2
