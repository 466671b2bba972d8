"""A sharded model begins with the weights of one process, and no process has memory for all of them."""

import json
import os
from pathlib import Path
from typing import Any

import fork_server
import pytest
import tiny
import torch
from scenarios import make_ranks
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from trainer_loop import build, load_config
from trainer_loop.config.fields import Config
from trainer_loop.parallel.on_demand import MemoryOnDemand
from trainer_loop.parallel.sharding import local_part
from trainer_loop.record.export import copy_weights
from trainer_loop.record.logs import Console

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
BERT = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 40}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 5, "n_head": 2, "n_positions": 40}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
OWN_CODE = "model.trust_remote_code=true"
CASES: dict[str, list[str]] = {
    "a new head": ["model.name=%s/bert"],
    "from half precision": ["model.name=%s/half", "parallel.shard=zero2"],
    "new": ["model.type=bert", f"model.overrides={json.dumps(BERT)}", "model.tokenizer=%s/bert"],
    "tied": ["model.name=%s/gpt2", "task.name=causal_lm"],
    "tied and new": [
        *("model.type=gpt2", f"model.overrides={json.dumps(GPT2)}"),
        *("model.tokenizer=%s/gpt2", "task.name=causal_lm"),
    ],
    "LoRA": ["model.name=%s/half", "model.lora={r: 2, dora: true}"],
    "new tokens": ["model.name=%s/longer"],
    "own code": ["model.name=%s/bert", OWN_CODE],
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the cases, rows, and in `two` what two processes made of each case."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    bert, tokenizer = BertForMaskedLM(BertConfig(**BERT)), tiny.make_tokenizer()
    for name, model in {
        "bert": bert,
        "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2)),
        "longer": bert,
        "half": bert.to(torch.bfloat16),
    }.items():
        if name == "longer":
            tokenizer.add_tokens(["w99", "w100", "w101"])
        model.float() if name != "half" else model.to(torch.bfloat16)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = [{"text": " ".join(f"w{row + word}" for word in range(row + 1)), "label": f"{row % 3}"} for row in range(9)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = root / "make.py"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script.write_text(f"import sys; sys.path[:0] = {paths!r}\nimport test_loading_in_parts as made; made.make_all()\n")
    with (root / "output.txt").open("w") as output:
        processes = [
            fork_server.start([str(script)], cwd=root, env=os.environ | rank, stdout=output, stderr=output)
            for rank in make_ranks(2)
        ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], (root / "output.txt").read_text()
    return root


def configure(root: Path, case: str, *overrides: str) -> Config:
    own = [override.replace("%s", str(root)) for override in CASES[case]]
    own = own if overrides else [override for override in own if not override.startswith("parallel")]
    data = {"train": str(root / "rows.jsonl"), "max_length": 16, "cache_dir": str(root / "cache")}
    words = ["task.name=sequence_classification", f"data={json.dumps(data)}", "batch.size=3", "train.precision=no"]
    return load_config(None, [*words, "train.epochs=1", f"run_dir={root / 'run'}", *overrides, *own])


@pytest.mark.parametrize("case", CASES)
def test_two_processes_begin_with_the_weights_of_one(case: str, folder: Path):
    loop = build(configure(folder, case), console=Console(enabled=False))
    saved: dict[str, Any] = torch.load(folder / f"{case}.pt", weights_only=True)
    own = loop.bare_model.state_dict()
    assert own.keys() == saved["weights"].keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, saved["weights"][name]), name
    assert saved["learns"] == [name for name, weight in loop.bare_model.named_parameters() if weight.requires_grad]
    buffers = dict(loop.bare_model.named_buffers())
    assert all(torch.equal(buffer, saved["buffers"][name]) for name, buffer in buffers.items())


@pytest.mark.parametrize("case", [case for case in CASES if case != "own code"])
def test_a_process_has_memory_for_its_part_and_a_layer(case: str, folder: Path):
    told = torch.load(folder / f"{case}.pt", weights_only=True)
    assert told["size"] > 8 * told["largest"]
    assert told["peak"] <= told["size"] / 2 + told["largest"]


def test_a_model_of_own_code_is_made_whole_and_the_run_says_so(folder: Path):
    told = "each process holds all of it in host memory until it is sharded"
    assert (folder / "output.txt").read_text().count(told) == 1
    assert torch.load(folder / "own code.pt", weights_only=True)["peak"] == 0


@pytest.mark.parametrize("name", ["bert", "half"])
def test_loading_reads_parts_of_the_files_and_exchanges_nothing(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    fill, filled = MemoryOnDemand._fill, []

    def watched(memory: MemoryOnDemand, weight: Any, **options: bool) -> None:
        filled.append(weight.source)
        fill(memory, weight, **options)

    monkeypatch.setattr(MemoryOnDemand, "_fill", watched)
    torch.manual_seed(0)
    whole = AutoModelForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32, num_labels=3)
    torch.manual_seed(0)
    memory = MemoryOnDemand(index=2, num_parts=3, send=pytest.fail)
    with memory:
        model = AutoModelForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32, num_labels=3)
    take, taken = MemoryOnDemand._take_part, []

    def noted(memory: MemoryOnDemand, tensor: torch.Tensor) -> torch.Tensor:
        taken.append(take(memory, tensor))
        return taken[-1]

    monkeypatch.setattr(MemoryOnDemand, "_take_part", noted)
    parts = memory.take_parts(model, to=torch.device("cpu", 0))
    assert {id(part) for part in parts.values()} <= set(map(id, taken)), "a part was copied, and held twice"
    assert set(filled) <= {None}, "a weight that was loaded was read in full"
    assert memory.checksum
    for key, weight in whole.named_parameters():
        assert torch.equal(parts[key], weight[2 * -(-len(weight) // 3) :])
        assert model.get_parameter(key).is_meta


def make_all() -> None:
    """Make the model of each case on this process, which is one of two, in the current directory."""
    root, bring, peak = Path.cwd(), MemoryOnDemand._load_arguments, 0

    def watched(memory: MemoryOnDemand, *args: Any) -> None:
        nonlocal peak
        bring(memory, *args)
        kept = [weight.part for weight in memory._weights.values() if weight.part is not None]
        peak = max(peak, sum(part.nbytes for part in kept) + sum(weight.whole.nbytes for weight in memory._in_memory))

    MemoryOnDemand._load_arguments = watched  # type: ignore[method-assign]
    for case in CASES:
        peak = 0
        loop = build(configure(root, case, "parallel.shard=full"))
        model = loop.bare_model
        weights = copy_weights(model, copy=True)
        assert isinstance(model, nn.Module)
        sizes = [weight.numel() * 4 for weight in model.parameters()]
        assert sum(local_part(weight).numel() * 4 for weight in model.parameters()) <= 0.6 * sum(sizes)
        if int(os.environ["RANK"]) == 0:
            told = {
                "weights": weights,
                "buffers": dict(model.named_buffers()),
                "learns": [name for name, weight in model.named_parameters() if weight.requires_grad],
                **{"size": sum(sizes), "largest": max(sizes), "peak": peak},
            }
            torch.save(told, root / f"{case}.pt")
    torch.distributed.destroy_process_group()
