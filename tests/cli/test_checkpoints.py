"""The command that lists and verifies the checkpoints of a run."""

import pytest

from trainer_loop.cli.checkpoints import main


def test_it_tells_step_size_figures_and_what_is_wrong(command, arguments, tmp_path, capfd):
    assert command(*arguments, "checkpoint.every=2", "checkpoint.keep_last=9", "evaluate.every=4").code == 0
    run = tmp_path / "run"
    assert main([str(run)]) == 0
    head, *lines = capfd.readouterr().out.splitlines()
    assert head.split() == ["step", "size", "checkpoint"]
    assert [line.split()[0] for line in lines] == ["2", "4", "6", "8"]
    assert all("MB  complete" in line for line in lines)
    assert "; latest; loss 0." in lines[3]
    assert "accuracy" in lines[1] and "accuracy" not in lines[0]

    weights = run / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main([f"run_dir={run}"]) == 2
    assert "DAMAGED: model.safetensors has" in capfd.readouterr().out.splitlines()[3]


def test_it_marks_the_best_and_names_what_was_set_aside(command, arguments, tmp_path, capfd):
    assert command(*arguments, "checkpoint.every=4", "checkpoint.best=-loss").code == 0
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000004").rename(run / "checkpoints" / "step-00000004.damaged")
    assert main([str(run)]) == 0
    out = capfd.readouterr().out
    assert "; latest, best; loss" in out
    assert "set aside: step-00000004.damaged" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [([], "0 arguments were given"), (["nowhere"], "nowhere is no directory"), (["."], ". holds no checkpoint")],
)
def test_what_it_cannot_list_is_said_in_one_line(argv, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
