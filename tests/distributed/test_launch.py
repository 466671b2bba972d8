"""The command under `accelerate launch`, and on two CPU processes without a launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
from hub_server import TOKEN, serve
from made_up import make_reviews, write_csv
from safetensors.torch import load_file
from scenarios import find_free_port, make_ranks

ROOT = Path(__file__).parents[2]
RUN = ("-m", "trainer_loop.run")


def launch(*arguments: str, directory: Path, options: tuple[str, ...], environment: dict[str, str] | None = None):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *options,
            "--main_process_port",
            str(find_free_port()),
            "-m",
            "trainer_loop.run",
            *arguments,
        ],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def start_two(*command: str, directory: Path) -> list[fork_server.Process]:
    """Start two processes without a launcher: a launcher would end both as soon as one fails."""
    processes = []
    for rank, environment in enumerate(make_ranks(2)):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        with (directory / f"{rank}.txt").open("w") as output:
            process = fork_server.start(command, cwd=directory, env=environment, stdout=output, stderr=output)
            processes.append(process)
    return processes


def run_two(*command: str, directory: Path) -> list[tuple[int, str]]:
    """Run two processes until they end; return the exit code and the output of each."""
    codes = [process.wait(300) for process in start_two(*command, directory=directory)]
    return [(code, (directory / f"{rank}.txt").read_text()) for rank, code in enumerate(codes)]


TWO = ("--config_file", str(ROOT / "launch" / "accelerate" / "cpu_2.yaml"))
TWO_BY_FLAGS = ("--multi_gpu", "--num_processes", "2")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Arguments of a run without dropout, which gives the same weights on any number of processes."""
    directory = tmp_path_factory.mktemp("launch")
    train = write_csv(directory / "train.csv", make_reviews(61))
    validation = write_csv(directory / "validation.csv", make_reviews(37, seed=3))
    return [
        "model={type: bert, tokenizer: train, vocab_size: 300}",
        "model.overrides={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, "
        "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
        f"data.train={train}",
        f"data.validation={validation}",
        "data.max_length=32",
        f"data.cache_dir={directory / 'cache'}",
        "batch.size=8",
        "train={epochs: 2, precision: no}",
        "optimizer={name: sgd, lr: 0.1}",
        "checkpoint.every=5",
        "log.every=4",
    ]


@pytest.fixture(scope="module")
def hub():
    """The hub that the run on two processes pushes to."""
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def on_two(arguments, tmp_path_factory, hub) -> Path:
    """A finished run on two processes that tokenised its texts and pushed its checkpoints."""
    directory = tmp_path_factory.mktemp("two")
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    keys = ["run_dir=run", "hub.push=imdb", "hub.every=checkpoint"]
    done = launch(*arguments, *keys, directory=directory, options=TWO, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 x cpu" in done.stdout
    for once in ("train: tokenising 61 texts", "rows: 61, 8 per step", "predict: python -m"):
        assert done.stdout.count(once) <= 1, "process 1 also prints"
    assert "Warning" not in done.stderr
    return directory / "run"


@pytest.fixture(scope="module")
def on_one(arguments, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    done = launch(*arguments, "run_dir=run", directory=directory, options=("--cpu", "--num_processes", "1"))
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "run"


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_same_weights_and_metrics_as_one(on_one, on_two):
    for name, tensor in load_file(on_one / "model" / "model.safetensors").items():
        other = load_file(on_two / "model" / "model.safetensors")[name]
        assert (tensor - other).abs().max() < 1e-6, name
    exact = (
        "step",
        "loss",
        "grad_norm",
        "lr",
        "validation/loss",
        "validation/accuracy",
        "validation/rows",
        "rows_seen",
    )
    for one, two in zip(rows_of(on_one), rows_of(on_two), strict=True):
        shared = [name for name in exact if name in one]
        assert {name: two[name] for name in shared} == pytest.approx({name: one[name] for name in shared}, abs=1e-6)


def test_one_process_resumes_a_checkpoint_of_two(on_two, arguments, tmp_path):
    checkpoint = on_two / "checkpoints" / "step-00000015"
    done = fork_server.run([*RUN, *arguments, "run_dir=run", f"resume={checkpoint}"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed at step 15 of 16" in done.stdout
    for name, tensor in load_file(on_two / "model" / "model.safetensors").items():
        other = load_file(tmp_path / "run" / "model" / "model.safetensors")[name]
        assert (tensor - other).abs().max() < 1e-6, name


def test_two_processes_report_a_user_error_once_and_exit(arguments, tmp_path):
    done = launch(*arguments, "run_dir=run", "data.columns.text=txt", directory=tmp_path, options=TWO_BY_FLAGS)
    assert done.returncode != 0
    assert done.stderr.count("error: data.columns.text=txt: data.train has no such column") == 1


def test_different_rows_on_two_processes_are_refused(arguments, tmp_path):
    (tmp_path / "lab.py").write_text(
        "import os\n"
        "def rows():\n"
        "    label = ['a', 'b'][int(os.environ['RANK'])]\n"
        "    return [{'text': f'number {n}', 'label': label if n == 7 else 'ab'[n % 2]} for n in range(20)]\n"
    )
    ended = run_two(*RUN, *arguments, "run_dir=run", "data.train=lab.rows", "data.validation=", directory=tmp_path)
    assert all(code != 0 for code, _ in ended)
    assert any("the data or the config of process 1 is not that of process 0" in output for _, output in ended)


def test_an_error_on_one_process_only_is_reported_with_its_number(arguments, tmp_path):
    write_csv(tmp_path / "only_0.csv", make_reviews(20))
    script = (
        "import os, sys\n"
        "from trainer_loop.cli.run import main\n"
        "train = 'only_0.csv' if os.environ['RANK'] == '0' else 'missing.csv'\n"
        "sys.exit(main([*sys.argv[1:], f'data.train={train}', 'data.validation=', 'run_dir=run']))\n"
    )
    (tmp_path / "start.py").write_text(script)
    first, second = start_two("start.py", *arguments, directory=tmp_path)
    code = second.wait(300)
    first.kill()  # it waits for process 1; a launcher would end it
    assert code == 2
    assert "process 1: error: data.train=missing.csv: there is no such file" in (tmp_path / "1.txt").read_text()


def test_processes_without_a_process_group_are_refused(arguments, tmp_path):
    """WORLD_SIZE is 2, but accelerate makes no process group, so each process would train by itself."""
    (tmp_path / "start.py").write_text(PRETEND_ALONE)
    done = fork_server.run(
        ["start.py", *arguments, "run_dir=run"], cwd=tmp_path, env=os.environ | {"WORLD_SIZE": "2"}, timeout=300
    )
    assert done.returncode == 2
    assert "each would train alone" in done.stderr


PRETEND_ALONE = """
import sys, torch
torch.accelerator.is_available = lambda: True  # as on a machine with a GPU, where cpu=True is not passed
from trainer_loop.cli.run import main
sys.exit(main(sys.argv[1:]))
"""


_ROWS_LAB = """
import os
from pathlib import Path
import torch
from torch import nn
from trainer_loop import Task

def rows():
    points = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": x * (1 + number % 4), "number": number} for number, x in enumerate(points)]

class Net(nn.Module):
    def __init__(self, heads=1):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(heads))

    def forward(self, x, which=0):
        return self.heads[which](self.norm(x))[:, 0]

class Task(Task):
    def loss(self, model, batch):
        net = getattr(model, "module", model)
        which = int(bool((batch["number"] % 8 == 0).any())) if len(net.heads) > 1 else 0
        return (model(batch["x"], which) - batch["x"].sum(-1)).square().sum()

    def predict(self, model, batch):
        file_name = Path(f"means-{os.environ['RANK']}.txt")
        with file_name.open("a") as file:
            file.write(f"{model.norm.running_mean.tolist()}{model.norm.num_batches_tracked}" + chr(10))
        predicted = model(batch["x"])
        return {"predictions": predicted, "references": batch["x"].sum(-1)}
"""


def run_rows(directory: Path, *more: str) -> list[tuple[int, str]]:
    (directory / "lab.py").write_text(_ROWS_LAB)
    arguments = ["task.name=lab.Task", "model.type=lab.Net", "data.train=lab.rows", "train={steps: 4, precision: no}"]
    arguments += ["batch={size: 16, per_device: 4}", "optimizer={name: sgd, lr: 1e-3}", "run_dir=run", *more]
    return run_two(*RUN, *arguments, directory=directory)


def test_all_processes_evaluate_with_the_same_running_means(tmp_path):
    for code, output in run_rows(tmp_path, "data.validation=lab.rows", "evaluate.every=2", "checkpoint.every=never"):
        assert code == 0, output
    lines = [set((tmp_path / f"means-{rank}.txt").read_text().splitlines()) for rank in (0, 1)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2, "two evaluations, one set of means each"
    means = load_file(tmp_path / "run" / "model" / "model.safetensors")["norm.running_mean"].tolist()
    assert any(line.startswith(str(means)) for line in lines[0])


def test_a_parameter_that_the_last_microbatch_does_not_use_is_reported(tmp_path):
    """DDP would not reduce its gradient, so the weights of the processes would diverge."""
    for code, output in run_rows(tmp_path, "model.overrides={heads: 2}", "seed=1"):
        assert code != 0
        assert "let every microbatch use all parameters" in output or "parameters get no gradient" in output
        assert "Expected to have finished reduction" not in output


def test_only_process_0_calls_the_hub(on_two, hub):
    assert hub.count("auth-check") == 1 and hub.count("repos/create") == 1
    repo = hub.model("me/imdb")
    assert repo.messages[-1] == "Upload the trained model"
    assert len(repo.messages) == len(set(repo.messages)) == hub.count("/commit/")
    assert repo.files["model.safetensors"] == (on_two / "model" / "model.safetensors").read_bytes()
