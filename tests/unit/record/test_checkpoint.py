import contextlib
import errno
import json
import zlib
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from trainer_loop.errors import UserError
from trainer_loop.record import checkpoint
from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints, seal
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


def test_no_byte_of_the_manifest_can_change_unseen(loop, tmp_path):
    loop.fit()
    newest = list_checkpoints(RunDir(tmp_path / "run"))[-1]
    content = (newest / "manifest.json").read_bytes()
    for position in range(0, len(content), 3):
        for altered in (
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :],
            content[:position],
        ):
            (newest / "manifest.json").write_bytes(altered)
            assert find_fault(newest) == "manifest.json is missing or damaged", position
    (newest / "manifest.json").write_bytes(content + b"\n")
    assert find_fault(newest) == "manifest.json is missing or damaged"
    (newest / "manifest.json").write_bytes(content)
    assert find_fault(newest) is None


@pytest.mark.parametrize("background", [False, True])
def test_what_the_disk_refuses_is_told_once_and_leaves_the_one_before(loop, tmp_path, monkeypatch, background):
    told = []
    loop.checkpointer.background = background
    monkeypatch.setattr(loop.console, "warn", told.append)
    loop.checkpointer.save(TrainState(step=1))
    loop.checkpointer.finish()

    def refuse(directory, *_args, **_options):
        (Path(directory) / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_accelerator_state", refuse)
    loop.checkpointer.save(TrainState(step=2))
    loop.checkpointer.finish()
    run_dir = RunDir(tmp_path / "run")
    (kept,) = list_checkpoints(run_dir)
    assert kept.name == "step-00000001"
    assert (run_dir.checkpoints / "latest").resolve() == kept.resolve()
    assert find_fault(kept) is None
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["latest", "step-00000001"]
    (line,) = told
    assert "the checkpoint of step 2 could not be saved" in line
    assert "No space left on device (" in line
    assert "the newest is step-00000001" in line
    assert line.startswith(loop.checkpointer.fault)
    loop.checkpointer.save(TrainState(step=3))  # as told: no second line
    loop.checkpointer.finish()
    assert len(told) == 1


def test_too_little_room_is_told_before_anything_is_written(loop, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(loop.console, "warn", told.append)
    loop.checkpointer.save(TrainState(step=1))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(checkpoint, "save_accelerator_state", lambda *_, **__: pytest.fail("written all the same"))
    loop.checkpointer.save(TrainState(step=2))
    assert "0 MB are free and the last one took" in told[0]


def test_an_error_beside_training_that_is_not_the_disk_s_is_raised_at_the_next_step(loop, monkeypatch):
    loop.checkpointer.background = True
    monkeypatch.setattr(checkpoint, "package_versions", lambda: 1 / 0)
    loop.checkpointer.save(TrainState(step=1))
    loop.checkpointer._thread.join()
    with pytest.raises(ZeroDivisionError):
        loop.checkpointer.check()


def test_a_save_beside_training_holds_what_was_there_when_it_began(loop, tmp_path):
    """The copies are taken before `save` returns, and the memory of the last ones is used again."""
    loop.fit()
    for step in (5, 6):
        loop.checkpointer.background = False
        loop.checkpointer.save(TrainState(step=step))
        foreground = RunDir(tmp_path / "run").checkpoint(step)
        files = {file.name: file.read_bytes() for file in foreground.iterdir() if file.name != "manifest.json"}
        for file in foreground.iterdir():
            file.unlink()
        foreground.rmdir()
        loop.checkpointer.background = True
        loop.checkpointer.save(TrainState(step=step))
        with torch.no_grad():
            for parameter in loop.parameters:
                parameter.add_(1.0)
        loop.checkpointer.finish()
        assert find_fault(foreground) is None
        for name, content in files.items():
            if not name.startswith("random_states"):
                assert (foreground / name).read_bytes() == content, name


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
    """Each file is replaced by a pickle that would write a file; the manifest is made to fit."""

    class Malice:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    loop.fit()
    newest = list_checkpoints(RunDir(tmp_path / "run"))[-1]
    for name in sorted(path.name for path in newest.iterdir() if path.name != "manifest.json"):
        content = (newest / name).read_bytes()
        torch.save({"state": Malice()}, newest / name)
        whole = (newest / "manifest.json").read_text()
        manifest = json.loads(whole)
        del manifest["crc32"]
        altered = (newest / name).read_bytes()
        manifest["files"][name] = {"bytes": len(altered), "crc32": f"{zlib.crc32(altered):08x}"}
        (newest / "manifest.json").write_text(seal(manifest))
        assert find_fault(newest) is None
        with contextlib.suppress(UserError, ValueError):  # accelerate passes over the random states in silence
            loop.checkpointer.load("auto")
        assert not (tmp_path / "ran").exists(), name
        (newest / name).write_bytes(content)
        (newest / "manifest.json").write_text(whole)


def test_the_loss_scaler_of_fp16_comes_back_as_it_was(loop):
    loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop.accelerator.scaler.scale(torch.ones(()))  # the first use makes its tensors
    loop.checkpointer.save(TrainState(step=1))
    path = loop.checkpointer.run_dir.checkpoint(1)
    assert "scaler.bin" in {file.name for file in path.iterdir()}
    loop.accelerator.scaler.update(new_scale=2.0)
    assert loop.checkpointer.load("auto").step == 1
    assert loop.accelerator.scaler.get_scale() == 8.0


def test_rotation_keeps_the_newest_and_the_best_and_what_was_set_aside(loop, tmp_path):
    loop.checkpointer.keep_last = 1
    run_dir = RunDir(tmp_path / "run")
    loop.checkpointer.save(TrainState(step=6, best_step=6))
    loop.checkpointer.save(TrainState(step=8, best_step=6))
    (run_dir.checkpoint(8) / "optimizer.bin").unlink()
    assert loop.checkpointer.load("auto").step == 6
    loop.checkpointer.save(TrainState(step=7, best_step=6))
    loop.checkpointer.save(TrainState(step=8, best_step=6))
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000006", "step-00000008"]
    assert (run_dir.checkpoints / "latest").resolve() == run_dir.checkpoint(8).resolve()
    assert (run_dir.checkpoints / "step-00000008.damaged").is_dir()


def test_a_checkpoint_of_the_same_step_is_not_written_again(loop, tmp_path):
    loop.checkpointer.save(TrainState(step=2))
    manifest = RunDir(tmp_path / "run").checkpoint(2) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    loop.checkpointer.save(TrainState(step=2, best_step=2))
    assert manifest.stat().st_mtime_ns == before


def test_a_run_gone_on_elsewhere_forgets_the_best_whose_weights_it_has_not(loop, tmp_path):
    state = TrainState(step=2, best_step=2, best_value=0.5)
    loop.checkpointer.save(state)
    path = loop.checkpointer.run_dir.checkpoint(2)
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


@pytest.mark.parametrize("background", [False, True])
def test_a_weight_with_two_names_is_saved_once_and_both_come_back(tmp_path, background):
    def make(directory, **options):
        loop = tiny.make_loop(
            directory,
            rows=tiny.make_rows(32, labelled=False),
            task=tiny.make_task("causal_lm"),
            model=tiny.make_gpt2(),
            checkpoint_every=2,
            **options,
        )
        loop.checkpointer.background = background
        return loop

    loop = make(tmp_path, num_steps=4)
    loop.fit()
    saved = load_file(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    assert ("transformer.wte.weight" in saved) != ("lm_head.weight" in saved)
    tiny.forget_accelerator()
    again = make(tmp_path, num_steps=4)
    assert again.restore().step == 4
    for name, weight in loop.bare_model.named_parameters():
        assert torch.equal(again.bare_model.get_parameter(name), weight)
    assert again.bare_model.lm_head.weight is again.bare_model.transformer.wte.weight


@pytest.mark.parametrize("background", [False, True])
def test_weights_in_another_order_of_memory_are_saved_too(tmp_path, background):
    model = tiny.make_bert()
    with torch.no_grad():
        weight = model.classifier.weight
        weight.data = weight.data.t().contiguous().t()
    assert not model.classifier.weight.is_contiguous()
    loop = tiny.make_loop(
        tmp_path / "run",
        rows=tiny.make_rows(16),
        task=tiny.make_task("sequence_classification"),
        model=model,
        num_steps=2,
        checkpoint_every=2,
    )
    loop.checkpointer.background = background
    loop.fit()
    saved = load_file(list_checkpoints(RunDir(tmp_path / "run"))[-1] / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], loop.bare_model.classifier.weight)


class Queue:
    """Numbers that training changes in place."""

    def __init__(self):
        self.numbers = torch.zeros(3)
        self.places = [0]

    def state_dict(self):
        return {"queue": (self.numbers, self.places)}

    def load_state_dict(self, state):
        self.numbers, self.places = state["queue"]


def test_what_is_kept_is_copied_before_training_goes_on(loop):
    loop.checkpointer.background = True
    queue = Queue()
    loop.keep("queue", queue)
    snapshot = loop.checkpointer._copy(loop.checkpointer._take_snapshot(TrainState(num_steps=4)))
    queue.numbers.add_(1)
    queue.places[0] = 5
    numbers, places = snapshot.kept["queue"]["queue"]
    assert (numbers.tolist(), places) == ([0.0, 0.0, 0.0], [0])


def test_what_is_kept_comes_back(tmp_path, loop):
    queue = Queue()
    loop.keep("queue", queue)
    queue.numbers.add_(2)
    loop.fit()
    again = Queue()
    loop.checkpointer._kept["queue"] = again
    loop.restore()
    assert (again.numbers.tolist(), again.places) == ([2.0, 2.0, 2.0], [0])
