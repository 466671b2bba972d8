"""Windows of an evaluation that overlap: each token is scored once, by the formula of the guide for fixed lengths."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from trainer_loop import TrainingLoop, UserError, build, load_config
from trainer_loop.record.logs import Console
from trainer_loop.tasks.causal_lm import CausalLM

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11 w12", "", "w13 w14 w15 w16 w17 w18 w19 w20 w21 w22"]


def make_task(*, packs: bool = False, **arguments: Any) -> CausalLM:
    task = CausalLM(**arguments)
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "[UNK]"
    task.bind(tokenizer, packs=packs)
    return task


def encode(task: CausalLM, *, max_length: int) -> list[dict[str, Any]]:
    encoded = task.encode_for_evaluation({"text": TEXTS}, max_length=max_length)
    names = [name for name in encoded if name != "source"]
    return [dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)]


def score_by_hand(model: nn.Module, tokens: list[int], *, max_length: int, stride: int) -> list[float]:
    """The negative log likelihood of each token but the first, window by window and token by token."""
    found: list[float] = []
    for begin in range(0, len(tokens), stride):
        window = tokens[begin : begin + max_length]
        log_p = model(input_ids=torch.tensor([window])).logits[0].log_softmax(dim=-1)
        new = range(len(found) + 1 - begin, len(window))  # what no window before it had
        found += [-log_p[place - 1, window[place]].item() for place in new]
        if begin + max_length >= len(tokens):
            break
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(8, 1), (8, 3), (8, 7), (5, 4), (40, 8)])
@torch.no_grad()
def test_each_token_is_scored_once_with_the_context_of_its_window(max_length: int, stride: int):
    task, model = make_task(stride=stride), tiny.make_gpt2().eval()
    rows = encode(task, max_length=max_length)
    tokens = [token for ids in task._tokenise({"text": TEXTS}) for token in ids]
    expected = score_by_hand(model, tokens, max_length=max_length, stride=stride)
    assert len(expected) == len(tokens) - 1
    batch = task.collate(rows)
    assert task.count(batch) == sum(task.count(task.collate([row])) for row in rows) == len(expected)
    loss, outputs = task.loss_and_predict(model, batch)
    assert loss.item() == pytest.approx(sum(expected), rel=1e-5)
    assert outputs["num_targets"].sum() == len(expected)
    learned = [ids[row["context"] :] for row in rows for ids in [row["input_ids"]]]
    assert tokens[:1] + [token for ids in learned for token in ids] == tokens


def test_packed_windows_have_the_same_targets():
    padded, packed = make_task(stride=3), make_task(stride=3, packs=True)
    rows = encode(padded, max_length=8)
    batch, laid_out = padded.collate(rows), packed.collate(rows)
    assert packed.count(laid_out) == padded.count(batch)
    (_, targets, _), (_, same, _) = padded.find_targets(batch), packed.find_targets(laid_out)
    assert same.tolist() == targets[batch["attention_mask"].flatten() == 1].tolist()
    assert "context" not in packed.model_inputs(laid_out)


def test_without_a_stride_an_evaluation_reads_the_chunks_of_training():
    task = make_task()
    assert task.encode_for_evaluation({"text": TEXTS}, max_length=8) == task.encode({"text": TEXTS}, max_length=8)


@pytest.mark.parametrize("stride", [8, 9])
def test_windows_that_do_not_overlap_are_refused(stride: int):
    with pytest.raises(
        UserError, match=rf"task\.args\.stride: {stride}: it must be below data\.max_length, 8, so that"
    ):
        encode(make_task(stride=stride), max_length=8)
    with pytest.raises(UserError, match=r"task\.args\.stride: 0; it must be 1 or more"):
        CausalLM(stride=0)


def make_run(folder: Path, *overrides: str) -> TrainingLoop:
    """A run on lines of a text, which are the validation rows too."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"{text} ."}) + "\n" for text in TEXTS * 4))
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = load_config(
        None,
        [
            "task.name=causal_lm",
            f"model={json.dumps({'type': 'gpt2', 'overrides': sizes, 'tokenizer': 'train', 'vocab_size': 300})}",
            f"data={json.dumps({split: str(folder / 'rows.jsonl') for split in ('train', 'validation')})}",
            f"data.cache_dir={folder / 'cache'}",
            "data.max_length=16",
            "batch.size=4",
            "train={steps: 3, precision: no, threads: 1}",
            f"run_dir={folder / 'run'}",
            *overrides,
        ],
    )
    return build(config, console=Console(enabled=False))


def test_training_reads_chunks_and_evaluations_read_windows(tmp_path: Path):
    loop = make_run(tmp_path, "task.args.stride=4")
    chunks, windows = loop.data.train.rows, loop.data.validation[""]
    tokens = [token for row in chunks for token in row["input_ids"]]
    assert "context" not in chunks.column_names
    assert len(windows.source) == 1 + -(-(len(tokens) - 16) // 4)
    found = loop.evaluate(windows)
    expected = score_by_hand(loop.bare_model.eval(), tokens, max_length=16, stride=4)
    assert found["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    given = loop.evaluate([{"text": f"{text} ."} for text in TEXTS * 4])
    assert given == pytest.approx(found, rel=1e-6)
