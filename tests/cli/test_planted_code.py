"""Files that lie where a command starts are run when the user names them, and never else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import make_reviews, write_csv

# Modules of Python, installed packages, packages that libraries look for, and names of the data.
NAMES = """
evaluate datasets random json torch transformers accelerate numpy pandas peft tqdm yaml omegaconf safetensors tokenizers
huggingface_hub pyarrow sklearn joblib filelock shlex shutil time traceback dataclasses enum inspect re logging string
tempfile copy http subprocess threading queue socket csv gzip zipfile pickle uuid hashlib secrets platform argparse
statistics datetime ast pathlib urllib asyncio multiprocessing difflib pprint struct heapq math signal fcntl resource
ctypes sysconfig site sitecustomize usercustomize packaging requests fsspec wandb tensorboard torchvision torchaudio PIL
scipy matplotlib IPython jax tensorflow flax cv2 librosa sentencepiece tiktoken triton bitsandbytes reviews
""".split()  # noqa: SIM905
# Packages that libraries look for as long as a run lasts.
OPTIONAL = ["habana_frameworks", "torch_xla", "torch_npu", "torch_mlu", "deepspeed", "comet_ml", "mlflow", "trackio"]
MORE = {"conftest.py", "setup.py", "__init__.py", "__main__.py", "planted.pth", "tiny_bert.py", "run.py", "predict.py"}

LOSSES = """
import helper
import torch.nn.functional as F

def mine(logits, targets):
    return helper.factor * F.cross_entropy(logits, targets, reduction="sum")
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder full of files that tell, in `ran`, that they were run."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in [*(f"{name}.py" for name in NAMES), *MORE]:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + chr(10))"
        (folder / name).write_text(f"import sys; {code}\n")
    return folder


def start(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def settings(planted: Path, tiny_model) -> list[str]:
    write_csv(planted / "reviews.csv", make_reviews(24))
    settings = [f"model.name={tiny_model}", "data.train=reviews.csv", "data.max_length=32", "batch.size=8"]
    return [*settings, "train={steps: 2, precision: no}", "data.num_workers=1", "run_dir=run"]


def test_nothing_that_was_planted_runs_where_nothing_is_named(planted, settings, tmp_path):
    for name in OPTIONAL:
        (planted / name).mkdir()
        (planted / name / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + chr(10))\n")
    trained = start(planted, "trainer_loop.run", *settings, "data.validation_fraction=0.25")
    assert trained.returncode == 0, trained.stderr
    judged = start(planted, "trainer_loop.predict", "model=run", "file=reviews.csv", "output=out.csv")
    assert (judged.returncode, "accuracy" in judged.stdout) == (0, True), judged.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_nothing_else_that_was_planted_runs_where_something_is_named(planted, settings, tmp_path):
    ran = tmp_path / "ran"
    (planted / "losses.py").write_text(LOSSES)
    (planted / "helper.py").write_text("factor = 1.0\n")
    trained = start(planted, "trainer_loop.run", *settings, "loss.name=losses.mine")
    assert trained.returncode == 0, trained.stderr
    assert "loss.name (its code): losses.py " in trained.stdout, "what is named is found"
    for others in (["checkpoints", "run"], ["migrate", "--help"], ["predict", "--help"]):
        assert start(planted, f"trainer_loop.{others[0]}", *others[1:]).returncode == 0
    assert not ran.exists(), ran.read_text()


@pytest.mark.parametrize("name", ["reviews.csv.gz", "reviews.xlsx", "reviews.pkl", "reviews.data", "reviews.train.bak"])
@pytest.mark.parametrize("key", ["data.train", "data.validation", "data.test"])
def test_a_file_that_exists_is_a_file_and_no_module_beside_it_runs(key, name, command, arguments, tmp_path):
    (tmp_path / "reviews.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / name).write_bytes(b"anything")
    arguments = [argument for argument in arguments if "fraction" not in argument]
    ended = command(*arguments, f"{key}={name}")
    assert ended.code == 2
    (problem,) = ended.problems
    assert problem.startswith(f"{key}={name}: {name}: of no known kind; known are .csv")
    assert "reviews" not in sys.modules


def test_a_file_that_does_not_exist_is_no_module_either(command, arguments, tmp_path):
    (tmp_path / "reviews.py").write_text("raise SystemExit('imported')\n")
    ended = command(*arguments, "data.train=reviews.csv.gz")
    assert ended.code == 2
    assert "there is no such file" in ended.problems[0]
    assert "reviews" not in sys.modules


@pytest.mark.parametrize(
    ("argv", "path", "wanted"),
    [
        (["-m"], ["HERE", "/lib", "SITE"], ["/lib", "SITE"]),
        (["-m"], ["HERE", "HERE", "SITE"], ["HERE", "SITE"]),  # PYTHONPATH names it
        (["-m"], ["/lib", "SITE"], ["/lib", "SITE"]),  # python -P, PYTHONSAFEPATH
        (["run.py"], ["HERE", "/lib", "SITE"], ["HERE", "/lib", "SITE"]),
        ([], ["HERE"], ["HERE"]),
    ],
)
def test_the_current_directory_leaves_the_path_of_a_command_alone(argv, path, wanted, tmp_path, monkeypatch):
    from trainer_loop.search_path import leave_out_current_directory

    names = {"HERE": str(tmp_path), "SITE": os.path.dirname(os.path.dirname(pytest.__file__))}  # noqa: PTH120
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "path", [names.get(entry, entry) for entry in path])
    leave_out_current_directory()
    assert sys.path == [names.get(entry, entry) for entry in wanted]
