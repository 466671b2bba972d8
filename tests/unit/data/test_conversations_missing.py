"""Conversations without their last answer: refused, or dropped with data.missing=drop, in memory and in a stream."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer_loop import UserError, build, load_config
from trainer_loop.data.conversations import lacks_answer
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.record.logs import Console

ASKED = {"role": "user", "content": "Is the bay wide?"}
ANSWER = {"role": "assistant", "content": "Yes."}
WHOLE, OPEN = {"messages": [ASKED, ANSWER]}, {"messages": [ASKED, ANSWER, ASKED]}


def build_run(folder: Path, rows: list[Any], *overrides: str) -> list[str]:
    """The lines of the console."""
    train_tokenizer(["Is the bay wide?"], framed=False, vocab_size=300, max_length=64).save_pretrained(folder / "model")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines: list[str] = []
    console = Console(enabled=True)
    console.say = lines.append  # type: ignore[method-assign]
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = {"type": "gpt2", "overrides": sizes, "tokenizer": str(folder / "model"), "chat_template": "plain"}
    arguments = ["task.name=chat", f"model={json.dumps(model)}", f"data.train={path}", "data.max_length=64"]
    arguments += [
        f"data.cache_dir={folder / 'cache'}",
        "batch.size=2",
        "train.steps=1",
        "checkpoint.every=1",
        f"run_dir={folder / 'run'}",
    ]
    build(load_config(None, [*arguments, *overrides]), console=console).fit()
    return lines


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_it_is_refused_with_the_remedy(streaming: str, tmp_path: Path):
    told = r"'messages' ends in a message of the user, not of the assistant, .*rows\.jsonl line 2; .*data\.missing=drop"
    with pytest.raises(UserError, match=told):
        build_run(tmp_path, [WHOLE, OPEN], f"data.streaming={streaming}")


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_it_is_dropped_and_counted(streaming: str, tmp_path: Path):
    lines = build_run(tmp_path, [WHOLE, OPEN, WHOLE], f"data.streaming={streaming}", "data.missing=drop")
    assert any("1 row without an answer at the end of 'messages' was dropped" in line for line in lines)


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_message_of_an_unknown_role_is_not_dropped(streaming: str, tmp_path: Path):
    rows = [WHOLE, {"messages": [ASKED, {"role": "bot", "content": "Yes."}]}]
    with pytest.raises(UserError, match=r"has the role 'bot'; allowed: "):
        build_run(tmp_path, rows, f"data.streaming={streaming}", "data.missing=drop")


@pytest.mark.parametrize("value", [None, [], [ASKED, ANSWER], ["a"], "a", [{"content": "a"}]])
def test_what_is_whole_or_wrong_lacks_no_answer(value: Any):
    assert not lacks_answer(value)
