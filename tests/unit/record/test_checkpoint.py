import concurrent.futures
import contextlib
import errno
import json
import os
import shutil
import time
import zlib
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from trainer_loop import UserError
from trainer_loop.record import checkpoint, checkpoint_writer
from trainer_loop.record.checkpoint_files import find_fault, list_checkpoints, read_run, seal
from trainer_loop.record.run_dir import RunDir, write_json
from trainer_loop.record.run_lock import RunDirInUse
from trainer_loop.record.snapshot import HostMemory
from trainer_loop.record.state import TrainState


def make_loop(root: Path) -> tiny.RecordingLoop:
    return tiny.make_loop(
        root,
        rows=tiny.make_rows(16),
        task=tiny.make_task("sequence_classification"),
        model=tiny.make_bert(),
        num_steps=4,
        optimizer="adamw",
        checkpoint_every=2,
    )


@pytest.fixture
def loop(tmp_path):
    return make_loop(tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("finished")
    make_loop(root).fit()
    tiny.forget_accelerator()
    return root


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


def test_accelerate_loads_a_checkpoint(loop, tmp_path):
    loop.fit()
    tiny.forget_accelerator()
    other = make_loop(tmp_path / "other")
    other.engine.accelerator.load_state(str(list_checkpoints(RunDir(tmp_path / "run"))[-1]))
    for mine, loaded in zip(loop.bare_model.parameters(), other.bare_model.parameters(), strict=True):
        assert torch.equal(mine, loaded)
    mine, loaded = (one.engine.optimizer.state_dict()["state"] for one in (loop, other))
    assert mine.keys() == loaded.keys()
    for number, moments in mine.items():
        assert all(torch.equal(value, loaded[number][name]) for name, value in moments.items())


def test_a_change_of_any_byte_of_the_manifest_is_detected(loop, tmp_path):
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
def test_a_disk_error_is_reported_once_and_the_last_checkpoint_stays(loop, tmp_path, monkeypatch, background):
    warnings = []
    loop.checkpointer.background = background
    monkeypatch.setattr(loop.console, "warn", warnings.append)
    loop.checkpointer.save(TrainState(step=1))
    loop.checkpointer.finish()

    def refuse(_weights, file, **_options):
        Path(file).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "save_file", refuse)
    loop.checkpointer.save(TrainState(step=2))
    loop.checkpointer.finish()
    run_dir = RunDir(tmp_path / "run")
    (kept,) = list_checkpoints(run_dir)
    assert kept.name == "step-00000001"
    assert (run_dir.checkpoints / "latest").resolve() == kept.resolve()
    assert find_fault(kept) is None
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["latest", "step-00000001"]
    (line,) = warnings
    assert "the checkpoint of step 2 could not be saved" in line
    assert "No space left on device (" in line
    assert "the newest is step-00000001" in line
    assert line.startswith(loop.checkpointer.fault)
    loop.checkpointer.save(TrainState(step=3))  # the error is reported already
    loop.checkpointer.finish()
    assert len(warnings) == 1


def test_too_little_free_space_is_reported_before_anything_is_written(loop, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(loop.console, "warn", warnings.append)
    loop.checkpointer.save(TrainState(step=1))
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(checkpoint_writer, "save_file", lambda *_, **__: pytest.fail("written all the same"))
    loop.checkpointer.save(TrainState(step=2))
    assert "0 MB are free and the last one took" in warnings[0]


def test_an_error_of_a_background_save_that_is_no_disk_error_is_raised_at_the_next_step(loop, monkeypatch):
    loop.checkpointer.background = True
    monkeypatch.setattr(checkpoint, "package_versions", lambda: 1 / 0)
    loop.checkpointer.save(TrainState(step=1))
    concurrent.futures.wait([loop.checkpointer._saving])
    with pytest.raises(ZeroDivisionError):
        loop.checkpointer.check()


def test_a_background_save_has_the_state_at_its_start(loop, tmp_path):
    """The copies are made before `save` returns, and the memory of the last ones is reused."""
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
            for parameter in loop.engine.parameters:
                parameter.add_(1.0)
        loop.checkpointer.finish()
        assert find_fault(foreground) is None
        for name, content in files.items():
            if not name.startswith("random_states"):
                assert (foreground / name).read_bytes() == content, name


def test_a_save_waits_for_the_running_save(loop, tmp_path, monkeypatch):
    loop.fit()
    loop.checkpointer.background = True
    write = checkpoint_writer.save_file

    def write_slowly(tensors, file, **options):
        time.sleep(0.3)
        write(tensors, file, **options)

    monkeypatch.setattr(checkpoint_writer, "save_file", write_slowly)
    expected = {}
    for step in (5, 6):
        with torch.no_grad():
            for parameter in loop.engine.parameters:
                parameter.add_(1.0)
        expected[step] = loop.engine.parameters[0].detach().clone()
        loop.checkpointer.save(TrainState(step=step))
    loop.checkpointer.finish()
    for step, weight in expected.items():
        saved = load_file(RunDir(tmp_path / "run").checkpoint(step) / "model.safetensors")
        assert torch.equal(saved[loop.engine.names[0]], weight), step


def test_model_optimizer_schedule_and_state_are_restored(loop, tmp_path):
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


def test_files_are_read_without_running_code_of_a_pickle(loop, tmp_path):
    """Replace each file by a pickle that would write a file; the checksums of the manifest fit."""

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
        if name == "state.json":
            assert find_fault(newest).startswith("state.json is no state of a run: ")
        else:
            assert find_fault(newest) is None
            with contextlib.suppress(UserError, ValueError):  # accelerate passes over the random states in silence
                loop.checkpointer.load("auto")
        assert not (tmp_path / "ran").exists(), name
        (newest / name).write_bytes(content)
        (newest / "manifest.json").write_text(whole)


def test_the_loss_scaler_of_fp16_is_restored(loop):
    loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop.accelerator.scaler.scale(torch.ones(()))  # the first use makes its tensors
    loop.checkpointer.save(TrainState(step=1))
    path = loop.checkpointer.run_dir.checkpoint(1)
    assert "scaler.bin" in {file.name for file in path.iterdir()}
    loop.accelerator.scaler.update(new_scale=2.0)
    assert loop.checkpointer.load("auto").step == 1
    assert loop.accelerator.scaler.get_scale() == 8.0


def test_rotation_keeps_the_newest_the_best_and_damaged_checkpoints(loop, tmp_path):
    loop.checkpointer._writer.keep_last = 1
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


def test_a_run_continued_in_another_directory_forgets_the_best_weights(loop, tmp_path):
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
def test_a_tied_weight_is_saved_once_and_restored(tmp_path, background):
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
def test_weights_with_another_memory_format_are_saved(tmp_path, background):
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
        self.origins = [0]

    def state_dict(self):
        return {"queue": (self.numbers, self.origins)}

    def load_state_dict(self, state):
        self.numbers, self.origins = state["queue"]


def test_registered_state_is_copied_before_training_continues(loop):
    loop.checkpointer.background = True
    queue = Queue()
    loop.register_for_checkpoint("queue", queue)
    snapshot = HostMemory().copy(loop.checkpointer._take_snapshot(TrainState(num_steps=4)))
    queue.numbers.add_(1)
    queue.origins[0] = 5
    numbers, origins = snapshot["kept.bin"]["queue"]["queue"]
    assert (numbers.tolist(), origins) == ([0.0, 0.0, 0.0], [0])


def test_registered_state_is_restored(tmp_path, loop):
    queue = Queue()
    loop.register_for_checkpoint("queue", queue)
    assert not loop.engine.tries_largest, "a trial of a sharded run could change it"
    queue.numbers.add_(2)
    loop.fit()
    again = Queue()
    loop.checkpointer._registered["queue"] = again
    loop.restore()
    assert (again.numbers.tolist(), again.origins) == ([2.0, 2.0, 2.0], [0])


# ---------------------------------------------------------------------------------------------- whose, and which step


def seal_anew(path: Path, **changes) -> None:
    """Write other values into a manifest, with a correct checksum."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["crc32"]
    (path / "manifest.json").write_text(seal(manifest | changes))


def write_state(path: Path, content: str) -> None:
    """Write another state, and its checksum into the manifest."""
    (path / "state.json").write_text(content)
    files = json.loads((path / "manifest.json").read_text())["files"]
    raw = content.encode()
    files["state.json"] = {"bytes": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}
    seal_anew(path, files=files)


@pytest.fixture
def saved(finished, tmp_path):
    """A loop with checkpoints of steps 2 and 4, and the warnings of its console."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    loop = make_loop(tmp_path / "run")
    loop.checkpointer.run = read_run(tmp_path / "run" / "checkpoints" / "step-00000004")
    loop.warnings = []
    loop.console.warn = loop.warnings.append
    return loop, RunDir(tmp_path / "run")


@pytest.mark.parametrize("name", ["step-00000099", "step-00000003", "step-4", "step-0000000004"])
def test_a_checkpoint_under_the_name_of_another_step_is_set_aside(saved, name):
    loop, run_dir = saved
    run_dir.checkpoint(4).rename(run_dir.checkpoints / name)
    assert loop.checkpointer.load("auto").step == 2
    (warning,) = loop.warnings
    assert "it is the checkpoint of step 4, under another name; it belongs into step-00000004; it is set asi" in warning
    assert (run_dir.checkpoints / f"{name}.damaged").is_dir()


def test_a_named_checkpoint_may_have_any_name_but_that_of_another_step(saved, tmp_path):
    _, run_dir = saved
    for name, is_right in (("the best so far", True), ("step-00000005", False)):
        copy = shutil.copytree(run_dir.checkpoint(4), tmp_path / name)
        assert (find_fault(copy) is None) == is_right


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"step": 3, "num_steps": 4}', "state.json is of step 3, and manifest.json of step 4"),
        ('{"step": 4, "pace": 1}', "state.json is no state of a run: pace is unknown"),
        ('{"step": -1}', "step is -1"),
        ('{"step": 4, "num_steps": "4"}', "num_steps is '4'"),
        ('{"step": 4, "best_step": 2.5}', "best_step is 2.5"),
        ("[]", "it holds a list, not an object"),
        ("", "state.json is no state of a run: "),
        ('{"step": ' + "9" * 5000 + "}", "state.json is no state of a run: "),
        ('{"stream": ' + "[" * 100_000, "it is nested too deeply"),
    ],
)
def test_an_invalid_state_is_a_fault_although_its_checksum_fits(saved, content, fault):
    loop, run_dir = saved
    write_state(run_dir.checkpoint(4), content)
    assert fault in find_fault(run_dir.checkpoint(4))
    assert loop.checkpointer.load("auto").step == 2
    assert len(loop.warnings) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "4"},
        {"step": -4},
        {"plan": []},
        {"config": None},
        {"files": []},
        {"files": {"state.json": 3}},
        {"files": {"state.json": {"bytes": 3}}},
        {"num_processes": "one"},
        {"run": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_with_values_of_other_types_is_a_fault_although_its_checksum_fits(saved, changes):
    loop, run_dir = saved
    seal_anew(run_dir.checkpoint(4), **changes)
    assert find_fault(run_dir.checkpoint(4)) == "manifest.json is missing or damaged"
    assert loop.checkpointer.load("auto").step == 2


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "scheduler.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage", "a list", "a number"])
def test_files_that_fit_the_manifest_but_not_the_model_are_reported_in_one_line(saved, file, content):
    loop, run_dir = saved
    path = run_dir.checkpoint(4) / file
    if isinstance(content, str):
        torch.save({"a list": [1, 2], "a number": 3}[content], path)
    else:
        path.write_bytes(content)
    raw = path.read_bytes()
    files = json.loads((path.parent / "manifest.json").read_text())["files"]
    files[file] = {"bytes": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}
    seal_anew(path.parent, files=files)
    with pytest.raises(UserError) as caught:
        loop.checkpointer.load("auto")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path.parent} does not fit this model and optimizer: ")
    assert "\n" not in problem


def test_a_checkpoint_has_the_identity_of_its_run_which_a_resumed_run_keeps(saved):
    loop, run_dir = saved
    assert read_run(run_dir.checkpoint(2)) == read_run(run_dir.checkpoint(4)) == loop.checkpointer.run
    run, loop.checkpointer.run = loop.checkpointer.run, "another"
    loop.checkpointer.load("auto")
    assert loop.checkpointer.run == run


def test_a_checkpoint_of_another_run_that_was_copied_in_is_set_aside(saved):
    loop, run_dir = saved
    run_dir.environment.write_text(json.dumps({"run": loop.checkpointer.run}))
    seal_anew(run_dir.checkpoint(4), run="another")
    assert loop.checkpointer.load("auto").step == 2
    (warning,) = loop.warnings
    assert "step-00000004: it is of run another, and not of this one; it is set aside as" in warning


@pytest.mark.parametrize("environment", [None, "{", "[]", '{"run": 3}', '{"run": "a third"}'])
def test_checkpoints_of_two_runs_are_refused_if_the_directory_belongs_to_neither(saved, environment):
    loop, run_dir = saved
    if environment is not None:
        run_dir.environment.write_text(environment)
    seal_anew(run_dir.checkpoint(4), run="another")
    with pytest.raises(UserError) as caught:
        loop.checkpointer.load("auto")
    (problem,) = caught.value.problems
    assert f"holds checkpoints of several runs: step-00000002 of run {loop.checkpointer.run}, step-" in problem
    assert run_dir.checkpoint(4).is_dir()


@pytest.mark.parametrize("run", [None, "another"])
def test_a_run_resumes_from_checkpoints_of_a_single_run_of_any_identity(saved, run):
    """Such as a backup that was copied back, or checkpoints of a version that wrote no identity."""
    loop, run_dir = saved
    run_dir.environment.write_text(json.dumps({"run": "begun after that"}))
    for step in (2, 4):
        seal_anew(run_dir.checkpoint(step), run=run)
    assert loop.checkpointer.load("auto").step == 4
    assert loop.warnings == []


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "checkpoint of another run", "damaged checkpoint"])
def test_another_file_with_the_name_of_a_checkpoint_is_never_loaded(saved, kind, background):
    loop, run_dir = saved
    target = run_dir.checkpoint(6)
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.touch()
    else:
        shutil.copytree(run_dir.checkpoint(4), target)
        write_state(target, '{"step": 6}')
        seal_anew(target, step=6, run="another")
        if kind == "damaged checkpoint":
            (target / "manifest.json").write_text("")
    loop.checkpointer.background = background
    loop.checkpointer.save(TrainState(step=6))
    loop.checkpointer.finish()
    assert find_fault(target) is None
    assert read_run(target) == loop.checkpointer.run
    assert os.path.lexists(target.with_name("step-00000006.damaged"))
    (warning,) = loop.warnings
    assert "step-00000006: it was not saved by this run; it is set aside as step-00000006.damaged" in warning


def test_a_run_ends_without_writing_if_another_run_has_started_in_its_directory(saved):
    loop, run_dir = saved
    run_dir.environment.write_text(json.dumps({"run": "another"}))
    before = sorted(path.name for path in run_dir.checkpoints.iterdir())
    with pytest.raises(RunDirInUse, match="another run has begun in"):
        loop.checkpointer.save(TrainState(step=6))
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == before


def test_a_run_that_starts_during_a_save_keeps_its_directory(loop, tmp_path, monkeypatch):
    """The save of the first run fails before the rename, and removes nothing of the second run."""
    run_dir = RunDir(tmp_path / "run")
    loop.checkpointer.save(TrainState(step=2))
    begin = checkpoint_writer.seal

    def begin_other(manifest):
        write_json(run_dir.environment, {"run": "another"})
        return begin(manifest)

    monkeypatch.setattr(checkpoint_writer, "seal", begin_other)
    with pytest.raises(RunDirInUse, match="another run has begun in"):
        loop.checkpointer.save(TrainState(step=4))
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000002"]


def test_rotation_leaves_the_checkpoints_of_another_run(loop, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    own, loop.checkpointer.run = loop.checkpointer.run, "another"
    loop.checkpointer.save(TrainState(step=1))
    loop.checkpointer.run, loop.checkpointer._writer.keep_last = own, 1
    for step in (2, 3):
        loop.checkpointer.save(TrainState(step=step))
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000001", "step-00000003"]


# ---------------------------------------------------------------------------------------------------- links, removals

IN_THE_WAY = {
    "a copy of the checkpoint": lambda link, target: shutil.copytree(target, link),
    "a copy of another checkpoint": lambda link, target: shutil.copytree(target.with_name("step-00000002"), link),
    "a file with its name": lambda link, target: link.write_text(target.name),
    "a link to nothing": lambda link, target: link.symlink_to("step-00000099"),
    "a link elsewhere": lambda link, target: link.symlink_to(target.parent.parent),
    "nothing": lambda link, target: None,
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_files_and_copies_with_the_name_of_a_link_are_replaced(saved, kind):
    loop, run_dir = saved
    for name in ("latest", "best"):
        link = run_dir.checkpoints / name
        link.unlink(missing_ok=True)
        IN_THE_WAY[kind](link, run_dir.checkpoint(4))
    (run_dir.checkpoints / ".latest.tmp").mkdir()
    loop.checkpointer.save(TrainState(step=6, best_step=6))
    assert loop.checkpointer.mark_best(6)
    for name in ("latest", "best"):
        assert (run_dir.checkpoints / name).readlink() == Path("step-00000006")
    assert loop.warnings == []
    assert loop.checkpointer.fault is None
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_another_folder_with_the_name_of_a_link_stays_and_does_not_end_the_run(saved, is_checkpoint):
    loop, run_dir = saved
    latest = run_dir.checkpoints / "latest"
    latest.unlink()
    if is_checkpoint:
        shutil.copytree(run_dir.checkpoint(2), latest)
        shutil.rmtree(run_dir.checkpoint(2))  # the copy is all that is left of it
    else:
        latest.mkdir()
        (latest / "notes.txt").touch()
    content = sorted(path.name for path in latest.iterdir())
    for step in (6, 8):
        loop.checkpointer.save(TrainState(step=step))
    assert sorted(path.name for path in latest.iterdir()) == content
    assert loop.warnings == [f"{latest} is a folder and stays as it is; it is no link to step-00000006"]
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("removed", ["checkpoints", "the checkpoint", "the run directory"])
@pytest.mark.parametrize("moment", ["save_file", "write_json", "compute_checksum", "seal", "flush"])
def test_a_removal_during_a_save_costs_a_warning_and_the_next_save_works(
    saved, moment, removed, background, monkeypatch
):
    loop, run_dir = saved
    work = getattr(checkpoint_writer, moment)

    def remove_first(*args, **options):
        monkeypatch.undo()
        (half,) = run_dir.checkpoints.glob(".step-00000006-*.tmp")
        shutil.rmtree({"checkpoints": half.parent, "the checkpoint": half, "the run directory": run_dir.root}[removed])
        return work(*args, **options)

    monkeypatch.setattr(checkpoint_writer, moment, remove_first)
    loop.checkpointer.background = background
    loop.checkpointer.save(TrainState(step=6))
    loop.checkpointer.finish()
    (warning,) = loop.warnings
    assert warning.startswith("the checkpoint of step 6 could not be saved: ")
    assert warning.endswith("training goes on, and saves are tried again")
    loop.checkpointer.save(TrainState(step=8))
    loop.checkpointer.finish()
    assert find_fault(run_dir.checkpoint(8)) is None
    assert not list(run_dir.checkpoints.glob(".*"))
