"""What sharded runs export, and what a dry run tells of them."""

import os
from dataclasses import dataclass
from pathlib import Path

import fork_server
import numpy as np
import pytest
import torch
from hub_server import TOKEN, serve
from huggingface_hub import constants
from made_up import make_reviews
from safetensors.torch import load, load_file
from scenarios import make_ranks

from trainer_loop import build, load_config
from trainer_loop.memory_report import describe_memory
from trainer_loop.parallel.plan import ShardingPlan
from trainer_loop.record.checkpoint_parts import CheckpointReader
from trainer_loop.record.logs import Console

ROWS = [{"text": text, "label": label} for text, label in make_reviews(49)]
SIZES = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16}"
BASE = (
    f"model={{type: bert, tokenizer: train, vocab_size: 300, overrides: {SIZES}}}",
    "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    "batch={size: 16, max_tokens: 128}",
    "train={steps: 6, precision: no, threads: 1}",
    "optimizer={name: sgd, lr: 0.1}",
    "evaluate.every=never",
    "checkpoint={every: 2, keep_last: 9}",
)
RUNS = {
    "merged": ("model.lora={r: 2, merge: true}", "parallel.shard=full"),
    "pushed": ("ema.decay=0.5", "hub={push: me/it, every: checkpoint}", "parallel.shard=zero2"),
}


def run(name: str, folder: Path, *overrides: str) -> None:
    options = (*BASE, *RUNS[name], f"run_dir={folder / name}", f"data.cache_dir={folder / 'cache'}", *overrides)
    loop = build(load_config(None, list(options)), rows={"train": ROWS}, console=Console(enabled=False))
    loop.fit()
    np.save(folder / f"{name}.npy", loop.predict(ROWS)["probabilities"])


@dataclass
class Outcome:
    """folder: with the run directories. pushed: files of the hub at each commit, by its message."""

    folder: Path
    pushed: dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("two")
    script = folder / "run.py"
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    script.write_text(f"import sys; sys.path[:0] = {folders!r}\nimport {__name__}; {__name__}.main(*sys.argv[1:])\n")
    outcome = Outcome(folder, {})
    with serve() as hub, (folder / "output.txt").open("w") as output:

        def remember(line: str) -> None:
            """Before the first call of a push, and the last: what the one before has left."""
            if hub.repos and hub.model("me/it").messages:
                repo = hub.model("me/it")
                outcome.pushed[repo.messages[-1]] = dict(repo.files)

        hub.take_fault = remember  # type: ignore[method-assign,assignment]
        env = os.environ | {"HF_TOKEN": TOKEN}
        command = [str(script), str(folder), hub.endpoint]
        processes = [
            fork_server.start(command, cwd=folder, env=env | rank, stdout=output, stderr=output)
            for rank in make_ranks(2)
        ]
        assert [process.wait(300) for process in processes] == [0, 0], (folder / "output.txt").read_text()
    return outcome


def main(folder: str, endpoint: str) -> None:
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = endpoint, False, True
    for name in RUNS:
        run(name, Path(folder))
    words = [*BASE, "parallel.shard=full", f"run_dir={folder}/dry", f"data.cache_dir={folder}/cache", "dry_run=true"]
    loop = build(load_config(None, words), rows={"train": ROWS}, console=Console(enabled=False))
    (Path(folder) / f"memory-{os.environ['RANK']}.txt").write_text(
        "\n".join(describe_memory(loop, loop.engine.outline, ShardingPlan(shard="full")))
    )
    torch.distributed.destroy_process_group()


def test_an_adapter_is_merged_as_on_one_process_and_the_loop_still_predicts(on_two: Outcome, tmp_path: Path):
    run("merged", tmp_path)
    one, two = (load_file(folder / "merged" / "model" / "model.safetensors") for folder in (tmp_path, on_two.folder))
    assert "bert.encoder.layer.0.attention.self.query.weight" in one
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    here, there = (np.load(folder / "merged.npy") for folder in (tmp_path, on_two.folder))
    np.testing.assert_allclose(there, here, atol=1e-6)


def test_a_dry_run_knows_the_memory_of_a_step_on_every_process(on_two: Outcome):
    for rank in range(2):
        told = (on_two.folder / f"memory-{rank}.txt").read_text()
        assert told.splitlines()[2].count("2 processes") == 3  # none, zero2 and full
        assert "unknown" not in told, told


def test_the_averages_of_checkpoints_are_pushed_during_training(on_two: Outcome):
    beside = {message: files for message, files in on_two.pushed.items() if message != "Upload the trained model"}
    assert "Upload the weights of step 2" in beside
    for message, files in beside.items():
        step = int(message.rpartition(" ")[2])
        checkpoint = on_two.folder / "pushed" / "checkpoints" / f"step-{step:08d}"
        averages = CheckpointReader(checkpoint).tensors("averages.safetensors")
        pushed = load(files["model.safetensors"])
        assert averages
        assert all(torch.equal(pushed[name], average[...]) for name, average in averages.items()), message
