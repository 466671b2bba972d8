"""Conversations: which tokens are answers under templates of all kinds, the loss of the head, answers, bad rows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

from trainer_loop import Predictor, UserError, build, load_config
from trainer_loop.data.columns import Kind, bind_columns
from trainer_loop.data.conversations import read_messages, read_tools
from trainer_loop.data.processors import read_chat_template, train_tokenizer
from trainer_loop.data.values import find_fault
from trainer_loop.models.packing import use_packing
from trainer_loop.ops.attention import use_attention
from trainer_loop.record.logs import Console
from trainer_loop.tasks.chat import Chat
from trainer_loop.tasks.generation import Generation

SHORT = [{"role": "user", "content": "Is the bay wide?"}, {"role": "assistant", "content": "Yes."}]
LONG = [
    {"role": "system", "content": "Answer in a word."},
    *SHORT,
    {"role": "user", "content": "Does it freeze?"},
    {"role": "assistant", "content": "In winter, most years."},
]
CONVERSATIONS = [SHORT, LONG]
GREETING = {"role": "assistant", "content": "Yes?"}

PLAIN = read_chat_template("plain")
CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKED = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKED_WITHOUT_END = MARKED.replace(
    "message.content + '<|im_end|>' }}{% endgen", "message.content }}{% endgen"
).replace("{% endgeneration %}{{ '\\n' }}", "{% endgeneration %}{{ '<|im_end|>\\n' }}")
# The system message and the question stand in one block, and nothing begins an answer but a space.
INSTRUCT = """\
{%- set system = messages[0].content + '\\n' if messages[0].role == 'system' else '' %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + (system if loop.index0 < 2 else '') + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + '<|end|>' }}{% endif %}{% endfor %}"""
# An empty thought stands before the last answer only.
THINKING = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if loop.last and message.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
STRICT = "{{ raise_exception('system messages are not allowed') if messages[0].role == 'system' else '' }}" + CHATML
SILENT = "{%- for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}"
TOOLS = "{%- if tools %}{{ tools | tojson }}{% endif %}" + CHATML


# The end token of the tokenizer stands behind a conversation that asks for nothing.
ENDED = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
ENDLESS = CHATML.replace("<|im_end|>", "")
SPACED = """\
{%- for message in messages %}{{ message.role + ': ' + message.content + eos_token + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    texts = [message["content"] for messages in CONVERSATIONS for message in messages]
    tokenizer = train_tokenizer(texts, framed=False, vocab_size=300, max_length=256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def make_task(template: str | None = PLAIN, *, generate: dict[str, Any] | None = None, **arguments: Any) -> Chat:
    task = Chat(**arguments)
    task.generation = Generation(**(generate or {}))
    task.bind(make_tokenizer(template))
    return task


def read_answers(task: Chat, conversation: list[dict[str, Any]]) -> list[str]:
    """The texts of the runs of targets."""
    encoded = task.encode({"messages": [conversation]}, max_length=512)
    assert encoded["fault"] == [None]
    runs: list[list[int]] = [[]]
    for label in encoded["labels"][0]:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [task.tokenizer.decode(run) for run in runs if run]


def make_batch(task: Chat, conversations: list[Any]) -> dict[str, Any]:
    encoded = task.encode({"messages": conversations}, max_length=128)
    names = ("input_ids", "labels", "prompt")
    return task.collate([dict(zip(names, row, strict=True)) for row in zip(*(encoded[n] for n in names), strict=True)])


def make_model(task: Chat, *, positions: int = 128) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": positions, "vocab_size": len(task.tokenizer)}
    end = task.tokenizer.eos_token_id
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).eval()


@pytest.mark.parametrize(
    ("template", "end"),
    [(PLAIN, "<|endoftext|>"), (CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (STRICT, "<|im_end|>")],
)
def test_targets_are_the_answers_and_the_token_that_ends_each(template: str, end: str):
    answers = read_answers(make_task(template), LONG[1:])
    assert answers == [f"Yes.{end}", f"In winter, most years.{end}"]


@pytest.mark.parametrize("template", [PLAIN, CHATML, MARKED])
@pytest.mark.parametrize("spans", ["auto", "prefixes"])
def test_an_answer_that_begins_a_conversation_is_learned_without_its_header(template: str, spans: Any):
    (greeting, answer) = read_answers(make_task(template, spans=spans), [GREETING, *SHORT])
    assert greeting.startswith("Yes?<|")
    assert answer.startswith("Yes.<|")


def test_the_end_of_a_conversation_is_no_part_of_an_answer():
    assert read_answers(make_task(ENDED), LONG) == ["Yes.<|im_end|>", "In winter, most years.<|im_end|>"]
    assert read_answers(make_task(ENDED, train_on="last"), LONG) == ["In winter, most years.<|im_end|>"]


def test_a_template_by_which_no_model_would_stop_is_refused():
    with pytest.raises(UserError, match=r"model.chat_template: the template ends an answer with no special token"):
        make_task(ENDLESS)


def test_a_header_whose_tokens_depend_on_what_follows_is_a_fault():
    tokenizer = train_tokenizer(["a Yes. Yes. Yes. Yes. Yes."] * 9, framed=False, vocab_size=300, max_length=256)
    tokenizer.chat_template = SPACED
    task = Chat()
    task.bind(tokenizer)
    (fault,) = task.encode({"messages": [SHORT]}, max_length=512)["fault"]
    assert fault is not None
    assert "has an answer whose header ends in other tokens" in fault
    tokenizer.chat_template = PLAIN
    task.bind(tokenizer)
    assert task.encode({"messages": [SHORT]}, max_length=512)["fault"] == [None]


def test_tokens_do_not_depend_on_the_day():
    ids = make_task(DATED).encode({"messages": [SHORT]}, max_length=512)["input_ids"][0]
    assert make_task(DATED).tokenizer.decode(ids).startswith("26 Jul 2024<|im_start|>")


def test_a_long_prompt_is_answered_by_its_end():
    task = make_task()
    asked = [{"role": "user", "content": "wide " * 90}]
    encoded = task.encode({"messages": [[*asked, SHORT[1]], asked]}, max_length=32)
    for prompt in encoded["prompt"]:
        assert len(prompt) == 32
        assert task.tokenizer.decode(prompt).endswith("\nassistant:\n")


def test_content_in_parts_is_its_texts():
    parts = [{"type": "text", "text": "Is the bay"}, {"type": "text", "text": " wide?"}]
    task = make_task()
    rows = {"prompt": [[{"role": "user", "content": parts}]], "context": ["Look."], "completion": ["Yes."]}
    ids = task.encode(rows, max_length=256)["input_ids"][0]
    assert "user:\nIs the bay wide?\n\nLook.\n" in task.tokenizer.decode(ids)
    merged = {"tokens": torch.tensor([5]).numpy()}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    assert task.merge([merged], {"messages": [SHORT[0], answer]})["references"] == ["Yes."]


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}", "{% if %}"])
def test_a_template_that_fails_is_a_fault_of_the_row(template: str):
    task = make_task(PLAIN)
    task.tokenizer.chat_template = template
    task.bind(task.tokenizer)
    (fault,) = task.encode({"messages": [SHORT]}, max_length=64)["fault"]
    assert fault is not None
    assert "is refused by the chat template: " in fault


def test_an_answer_without_a_header_is_found():
    assert [text.strip() for text in read_answers(make_task(INSTRUCT), LONG)] == [
        "Yes.<|end|>",
        "In winter, most years.<|end|>",
    ]


@pytest.mark.parametrize("template", [PLAIN, CHATML, MARKED, INSTRUCT, THINKING])
def test_only_the_last_answer_is_learned_if_wanted(template: str):
    (answer,) = read_answers(make_task(template, train_on="last"), LONG)
    assert "most years." in answer
    assert "Yes" not in answer


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_marks_and_prefixes_find_the_same(template: str, conversation: list[dict[str, Any]]):
    ways = [make_task(template, spans=spans).encode({"messages": [conversation]}, max_length=512) for spans in WAYS]
    assert ways[0] == ways[1]


WAYS = ("marks", "prefixes")


@pytest.mark.parametrize("template", [PLAIN, CHATML, MARKED, INSTRUCT, THINKING])
def test_what_stands_before_the_last_answer_is_the_prompt(template: str):
    task = make_task(template, train_on="last")
    encoded = task.encode({"messages": [LONG, LONG[:-1]]}, max_length=512)
    (whole, asked), (before, all_of_it) = encoded["input_ids"], encoded["prompt"]
    assert all_of_it == asked
    assert encoded["labels"][1] == [-100] * len(asked)
    assert whole[: len(before)] == before == asked


@pytest.mark.parametrize(
    ("template", "conversation", "told"),
    [
        (THINKING, LONG, r"has an answer, message 3, that the chat template writes otherwise.*train_on=last"),
        (STRICT, LONG, r"is refused by the chat template: system messages are not allowed"),
        (SILENT, LONG, r"has no token of an answer"),
        (MARKED_WITHOUT_END, SHORT, r"other answers by the marks .*'Yes\.'.* than .*'Yes\.<\|im_end\|>'"),
    ],
)
def test_a_template_that_does_not_fit_is_a_fault_of_the_row(template: str, conversation: list[Any], told: str):
    encoded = make_task(template).encode({"messages": [conversation]}, max_length=512)
    (fault,) = encoded["fault"]
    assert fault is not None
    assert re.search(told, fault)


def test_rows_of_all_forms_become_the_same_conversation():
    task = make_task()
    expected = task.encode({"messages": [SHORT]}, max_length=64)
    for rows in (
        {"prompt": ["Is the bay wide?"], "completion": ["Yes."]},
        {"prompt": [SHORT[:1]], "completion": [SHORT[1:]]},
        {"prompt": ["Is the bay wide?"], "context": [""], "completion": ["Yes."]},
    ):
        assert task.encode(rows, max_length=64) == expected
    with_context = task.encode({"prompt": ["Look:"], "context": ["A bay."], "completion": ["Yes."]}, max_length=64)
    assert "user:\nLook:\n\nA bay.\n" in task.tokenizer.decode(with_context["input_ids"][0])


def test_the_columns_of_one_form_are_read():
    assert bind_columns(Chat.columns, {}, task="chat").names == {"messages": "messages"}
    named = {"prompt": "instruction", "completion": "output", "context": "input"}
    assert bind_columns(Chat.columns, named, task="chat").names == named
    with pytest.raises(UserError, match=r"data.columns.prompt=p: a row has these columns, or those of messages"):
        bind_columns(Chat.columns, {"prompt": "p", "messages": "m"}, task="chat")


def test_tools_reach_the_template_without_the_nulls_of_a_table():
    task = make_task(TOOLS)
    tool = {"type": "function", "function": {"name": "ask", "description": None}}
    encoded = task.encode({"messages": [SHORT] * 2, "tools": [[tool], json.dumps([tool])]}, max_length=256)
    first, second = map(task.tokenizer.decode, encoded["input_ids"])
    assert first == second
    assert '{"name": "ask"}' in first
    assert read_tools([]) is None
    assert read_messages([{"role": "user", "content": "a", "name": None}], role="user") == [
        {"role": "user", "content": "a"}
    ]


@pytest.mark.parametrize("conversations", [[SHORT], [LONG]])
def test_the_loss_is_that_of_the_head(conversations: list[Any]):
    task = make_task(CHATML)
    batch, model = make_batch(task, conversations), make_model(task)
    head = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    count = task.count(batch)
    assert count == sum(batch["row_targets"]) == int((batch["labels"] != -100).sum())
    assert task.loss(model, batch).item() / count == pytest.approx(head.item(), rel=1e-6)


def test_packed_conversations_do_not_see_each_other():
    task, packed = make_task(CHATML), make_task(CHATML)
    packed.packs = True
    model = make_model(task)
    use_attention(model)
    losses = [task.loss_and_predict(model, make_batch(task, [conversation])) for conversation in CONVERSATIONS]
    use_packing(model, rows_at_head=False)
    loss, outputs = packed.loss_and_predict(model, make_batch(packed, CONVERSATIONS))
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in losses), rel=1e-6)
    alone = torch.cat([one["negative_log_likelihoods"] for _, one in losses])
    torch.testing.assert_close(outputs["negative_log_likelihoods"], alone)


def test_a_row_whose_answer_is_cut_away_has_no_target_and_is_counted(tmp_path: Path):
    rows = [{"messages": SHORT}, {"messages": [{"role": "user", "content": "wide " * 90}, SHORT[1]]}]
    loop, lines = build_run(tmp_path, rows * 3)
    assert any("train: 3 rows without a target, which is cut away at max_length" in line for line in lines)
    loop.fit()


def test_texts_are_the_same_for_every_microbatch_size(tmp_path: Path):
    task = make_task(generate={"max_new_tokens": 12})
    model = make_model(task)
    asked = [LONG, SHORT, LONG[1:], SHORT[:1], LONG[:2]]
    together = task.predict(model, make_batch(task, asked))["tokens"]
    for conversation, tokens in zip(asked, together, strict=True):
        (alone,) = task.predict(model, make_batch(task, [conversation]))["tokens"]
        texts = [task.merge([{"tokens": some.numpy()}], {})["predictions"] for some in (alone, tokens)]
        assert texts[0] == texts[1]
        assert texts[0]


def test_a_prompt_that_leaves_no_room_for_an_answer_loses_its_beginning():
    task = make_task(generate={"max_new_tokens": 8})
    model = make_model(task, positions=16)
    assert task.fit_positions(16) == []
    batch = make_batch(task, [LONG[:-1]])
    assert batch["input_ids"].shape[1] > 16
    assert 1 <= len(task._write(model, batch)[0]) <= 8
    told = "evaluate.generate.max_new_tokens: 8: it must be below 8, the positions of the model"
    assert task.fit_positions(8) == [told]


def test_a_written_answer_ends_before_the_token_that_ends_it():
    task = make_task(CHATML, generate={"max_new_tokens": 4})
    ids = [*task.tokenizer("Yes.")["input_ids"], task.tokenizer.convert_tokens_to_ids("<|im_end|>"), 7]
    merged = task.merge([{"tokens": torch.tensor(ids).numpy(), "predictions": 1.0}], {"messages": SHORT})
    assert merged["predictions"] == "Yes."
    assert merged["references"] == ["Yes."]
    assert task.decode(merged, {}) == {"text": "Yes."}
    assert task.end_tokens == sorted([task.tokenizer.eos_token_id, ids[-2]])


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("conversation", "Hello", "holds no list of messages"),
        ("conversation", [], "has no messages"),
        ("conversation", SHORT[:1], "ends in a message of the user, not of the assistant,"),
        ("conversation", [{"content": "a"}], "number 1 of 1, that has no role; it has content"),
        ("conversation", [{"from": "human", "value": "a"}], "that has no role; it has from, value"),
        ("conversation", [{"role": "bot", "content": "a"}], "has the role 'bot'; allowed: system, developer, user"),
        ("conversation", [SHORT[0], {"role": "assistant", "content": " "}], "number 2 of 2, that is empty"),
        ("conversation", [SHORT[0], {"role": "assistant", "content": None}], "number 2 of 2, that is empty"),
        ("conversation", [SHORT[0], {"role": "assistant"}], "has no content; it has role"),
        ("conversation", [{"role": "user", "content": 3}], "has the content 3, which is no text"),
        ("conversation", [{"role": "user", "content": ["a"]}], "has parts that are not"),
        ("conversation", ["Hello"], "number 1 of 1, that is 'Hello'"),
        ("prompt", "", "is empty"),
        ("prompt", 3, "holds no list of messages"),
        ("answer", SHORT, "has a message of the user, which belongs to the prompt"),
        ("answer", [SHORT[1], {"role": "tool", "content": "3"}], "ends in a message of the tool"),
        ("tools", "[", "is no JSON"),
        ("tools", ["a"], "holds no list of JSON schemas"),
    ],
)
def test_what_is_no_conversation_is_refused(kind: Kind, value: Any, told: str):
    assert told in str(find_fault(value, kind, None))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("conversation", LONG),
        ("conversation", [SHORT[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "ask"}]}]),
        ("conversation", [{"role": "user", "content": [{"type": "text", "text": "a"}]}, SHORT[1]]),
        ("prompt", "Hello"),
        ("prompt", SHORT[:1]),
        ("prompt", SHORT),
        ("answer", "Yes."),
        ("answer", SHORT[1:]),
        ("tools", ""),
        ("tools", []),
        ("tools", "[]"),
    ],
)
def test_what_is_a_conversation_is_accepted(kind: Kind, value: Any):
    assert find_fault(value, kind, None) is None


def build_run(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> tuple[Any, list[str]]:
    """A run on rows in a file, and the lines of its console."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tokenizer(None).save_pretrained(folder / "tokenizer")
    lines: list[str] = []
    console = Console(enabled=True)
    console.say = lines.append  # type: ignore[method-assign]
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    config = load_config(
        None,
        [
            "task.name=chat",
            f"model={json.dumps({'type': 'gpt2', 'overrides': sizes, 'tokenizer': str(folder / 'tokenizer')})}",
            "model.chat_template=plain",
            f"data={json.dumps({split: str(folder / 'rows.jsonl') for split in ('train', 'validation')})}",
            "data.max_length=64",
            f"data.cache_dir={folder / 'cache'}",
            "batch.size=3",
            "train={steps: 2, precision: no, threads: 1}",
            "optimizer={name: sgd, lr: 0.1}",
            "evaluate.every=2",
            f"run_dir={folder / 'run'}",
            *overrides,
        ],
    )
    return build(config, console=console), lines


def test_evaluations_compare_answers_and_show_some(tmp_path: Path):
    rows = [{"messages": conversation} for conversation in CONVERSATIONS]
    generate = "evaluate={generate: {max_new_tokens: 4, samples: 1}, metrics: [perplexity, exact_match, answer_f1]}"
    loop, lines = build_run(tmp_path, rows * 3, generate)
    loop.fit()
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in logged if "validation/perplexity" in row]
    assert {"validation/exact_match", "validation/answer_f1"} <= row.keys()
    (sample,) = row["validation/samples"]
    assert sample["reference"] == "Yes."
    assert any("reference: 'Yes.'" in line for line in lines)


def test_an_exported_model_answers_as_a_pipeline_does(tmp_path: Path):
    rows = [{"messages": conversation} for conversation in CONVERSATIONS]
    loop, _ = build_run(tmp_path, rows * 3)
    loop.fit()
    model_dir = tmp_path / "run" / "model"
    predictor = Predictor.load(model_dir)
    predictor.use_generation({"max_new_tokens": 6})
    (answer,) = predictor.predict(["Is the bay wide?"])
    chat = pipeline("text-generation", model=str(model_dir))
    (written,) = chat([SHORT[:1]], max_new_tokens=6, do_sample=False)
    assert written[0]["generated_text"][-1]["content"].strip() == answer["text"]
    going_on = [*SHORT, {"role": "user", "content": "Is it wide?"}]
    (answer,) = predictor.predict([json.dumps(going_on)])
    assert [answer] == predictor.predict_rows({"messages": [going_on]}).rows
    with pytest.raises(UserError, match=r"^messages: it begins like a list of messages and is no JSON \(Expecting"):
        predictor.predict(['[{"role": "user", "content": Hello}]'])
    assert predictor.predict(["[INST] Is the bay wide?"])


def test_a_run_without_a_template_is_refused_with_the_remedy(tmp_path: Path):
    rows = [{"messages": SHORT}] * 3
    with pytest.raises(UserError, match=r"model.chat_template: null: the tokenizer has none; set it to plain"):
        build_run(tmp_path, rows, "model.chat_template=null")
    with pytest.raises(UserError, match=r"model.chat_template: nothing.jinja cannot be read"):
        build_run(tmp_path, rows, "model.chat_template=nothing.jinja")
    path = tmp_path / "own.jinja"
    path.write_text(CHATML)
    loop, _ = build_run(tmp_path, rows, f"model.chat_template={path}")
    loop.fit()
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path / "run" / "model")
    assert loaded.chat_template == CHATML


def test_rows_that_the_template_refuses_are_named_before_the_model_loads(tmp_path: Path):
    path = tmp_path / "strict.jinja"
    path.write_text(STRICT)
    rows = [{"messages": SHORT}, {"messages": LONG}, {"messages": LONG}]
    with pytest.raises(
        UserError, match=r"2 rows: .*rows.jsonl line 2, .*rows.jsonl line 3: is refused by the chat template"
    ):
        build_run(tmp_path, rows, f"model.chat_template={path}")


def test_a_packed_run_writes_no_texts(tmp_path: Path):
    rows = [{"messages": SHORT}] * 3
    with pytest.raises(UserError, match=r"evaluate.generate.max_new_tokens: a model of packed rows writes no texts"):
        build_run(tmp_path, rows, "model.packing=true", "evaluate.generate.max_new_tokens=4")


def test_a_tokenizer_can_be_trained_on_conversations(tmp_path: Path):
    loop, _ = build_run(tmp_path, [{"messages": LONG}] * 3, "model.tokenizer=train", "model.vocab_size=300")
    loop.fit()
    exported = PreTrainedTokenizerFast.from_pretrained(tmp_path / "run" / "model")
    assert len(exported("freeze")["input_ids"]) < len("freeze")


def test_what_is_no_conversation_is_refused_by_a_predictor_too(tmp_path: Path):
    loop, _ = build_run(tmp_path, [{"messages": SHORT}] * 3)
    loop.fit()
    predictor = Predictor.load(tmp_path / "run" / "model")
    with pytest.raises(UserError, match=r"text 1: messages has no messages"):
        predictor.predict_rows({"messages": [[]]})
    with pytest.raises(UserError, match=r"the model reads messages, and no second text"):
        predictor.predict(["a"], ["b"])


def test_a_model_keeps_the_tokens_that_it_stopped_at(tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(CHATML)
    model = make_model(make_task(CHATML))
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path / "own")
    named = f"model={{name: {tmp_path / 'own'}, type: null, overrides: {{n_embd: 16, n_layer: 2, n_positions: 128}}}}"
    loop, _ = build_run(tmp_path, [{"messages": SHORT}] * 3, f"model.chat_template={path}", named)
    loop.fit()
    exported = GPT2LMHeadModel.from_pretrained(tmp_path / "run" / "model")
    assert exported.generation_config.eos_token_id == sorted({7, 9, *loop.task.end_tokens})


def test_a_template_that_takes_no_made_up_row_is_trained_with(tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{{ raise_exception('a system message is needed') if messages[0].role != 'system' else '' }}" + CHATML
    )
    loop, _ = build_run(tmp_path, [{"messages": LONG}] * 3, f"model.chat_template={path}")
    assert loop.fit().step == 2
