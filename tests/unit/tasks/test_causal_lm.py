"""Windows of an evaluation that overlap, and texts whose middle is written last."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from trainer_loop import Predictor, TrainingLoop, UserError, build, load_config
from trainer_loop.data.loader import add_draws
from trainer_loop.data.processors import train_tokenizer
from trainer_loop.record.logs import Console
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.fill_in_the_middle import FillInTheMiddle, TextSplitter, read_settings

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


# ------------------------------------------------------------------------------------------------ fill in the middle

PREFIX, SUFFIX, MIDDLE, BEGIN, END = 101, 102, 103, 104, 105


def split(
    ids: list[int], draw: int, *, begin: int | None = BEGIN, end: int | None = END, **settings: float
) -> list[int]:
    tokens = (PREFIX, SUFFIX, MIDDLE)
    return TextSplitter(FillInTheMiddle(**settings), tokens, begin, end).split(ids, draw)


def read_back(written: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """The form of a text whose middle is last, its prefix, middle and suffix; `plain` and all of one as it was."""
    if PREFIX not in written:
        return "plain", written, [], []
    assert written[0] == PREFIX and [written.count(token) for token in (PREFIX, SUFFIX, MIDDLE)] == [1, 1, 1]
    suffix, middle = written.index(SUFFIX), written.index(MIDDLE)
    if suffix == 1:
        return "SPM", [], written[middle + 1 :], written[2:middle]
    return "PSM", written[1:suffix], written[middle + 1 :], written[suffix + 1 : middle]


def test_a_text_that_is_split_has_all_its_tokens_but_three_and_keeps_its_length():
    text = list(range(40))
    forms = Counter[str]()
    for draw in range(400):
        written = split(text, draw, rate=0.75, spm_rate=0.25)
        form, prefix, middle, suffix = read_back(written)
        forms[form] += 1
        assert len(written) == len(text)
        kept = prefix + middle + suffix
        assert kept == list(range(kept[0], kept[0] + len(kept))), "in order once the middle is back in its place"
        assert len(kept) == 40 - 3 * (form != "plain")
        assert kept[0] == 0 or not suffix, "the suffix loses its end first"
    assert forms["plain"] == pytest.approx(100, abs=30)
    assert forms["SPM"] == pytest.approx(75, abs=30)
    assert split(text, 3, rate=1.0) == split(text, 3, rate=1.0) != split(text, 4, rate=1.0)


def test_both_places_are_uniform_so_a_middle_is_a_third_of_a_text():
    text = list(range(60))
    middles = [len(read_back(split(text, draw, rate=1.0, spm_rate=0.0))[2]) for draw in range(600)]
    assert sum(middles) / len(middles) == pytest.approx(20, abs=2)


def test_each_text_of_a_chunk_is_split_by_itself_between_its_begin_and_its_end():
    texts = [[BEGIN, *range(20), END], [END], [BEGIN, *range(30, 50), END], list(range(60, 80))]
    written = split([token for text in texts for token in text], 1, rate=1.0)
    for text in texts:
        part, written = written[: len(text)], written[len(text) :]
        first, last = int(BEGIN in text), len(text) - int(END in text)
        assert part[:first] == text[:first] and part[last:] == text[last:]
        form, *kept = read_back(part[first:last])
        assert (form == "plain") == (len(text) == 1)
        assert {token for tokens in kept for token in tokens} <= set(text[first:last])
    assert written == []
    whole = split([*range(20), END, *range(20)], 1, rate=1.0, begin=None, end=None)
    assert whole.count(PREFIX) == 1


@pytest.mark.parametrize("length", range(4))
def test_a_text_without_room_for_three_tokens_stays_as_it_is(length: int):
    assert all(split(list(range(length)), draw, rate=1.0) == list(range(length)) for draw in range(20) if length < 3)
    assert all(len(split(list(range(length)), draw, rate=1.0)) == length for draw in range(20))


def make_filling_task(**arguments: Any) -> CausalLM:
    task = CausalLM(fim={"rate": 1.0, "prefix_token": "w47", "suffix_token": "w46", "middle_token": "w45"}, **arguments)
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "[UNK]"
    task.bind(tokenizer)
    return task


def test_rows_of_training_are_split_anew_and_those_of_evaluations_and_predictions_are_not():
    task = make_filling_task()
    encoded = task.encode({"text": TEXTS}, max_length=8)
    rows = [{"input_ids": ids} for ids in encoded["input_ids"]]
    plain = task.collate(rows)["input_ids"]
    one, same, other = (task.collate(add_draws(rows, range(len(rows)), *seed)) for seed in ((7, 1), (7, 1), (7, 2)))
    assert one["input_ids"].tolist() == same["input_ids"].tolist() != other["input_ids"].tolist()
    assert one["input_ids"].tolist() != plain.tolist()
    assert task.count(one) == task.count(task.collate(rows))
    # Cut otherwise, or on other processes, a row has the same tokens.
    alone = task.collate(add_draws(rows[1:2], [1], 7, 1))["input_ids"][0].tolist()
    assert one["input_ids"][1].tolist() == alone
    for stride in (None, 3):
        scored = make_filling_task(stride=stride)
        windows = add_draws(encode(scored, max_length=8), range(100)[: len(encode(scored, max_length=8))])
        ids = scored.collate(windows)["input_ids"]
        assert ids[0].tolist() == plain[0].tolist()
        assert scored.count(scored.collate(windows)) == (
            scored.count(scored.collate(rows)) if stride is None else sum(map(len, encoded["input_ids"])) - 1
        )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (True, "task.args.fim: True: it is a mapping"),
        ({"rat": 1}, "task.args.fim.rat: .* has no argument rat; it takes rate, .*; did you mean rate"),
        ({"rate": 1.5, "spm_rate": 0.1}, "task.args.fim.rate: 1.5: it must be a number from 0 to 1"),
        ({"spm_rate": "x"}, "task.args.fim.spm_rate: .x. is not a number"),
        ({"rate": 0}, "task.args.fim.rate: 0: no text would be split; set task.args.fim to null"),
        ({"suffix_token": "<fim_prefix>"}, "these must be three tokens"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, told: str):
    with pytest.raises(UserError, match=told):
        read_settings(settings)


def test_tokens_that_the_tokenizer_lacks_are_named_before_the_model_loads(tmp_path: Path):
    with pytest.raises(UserError) as refused:
        make_run(tmp_path, "task.args.fim={rate: 0.5, middle_token: a}")
    (problem,) = refused.value.problems
    assert problem.startswith("task.args.fim: the tokenizer has no token <fim_prefix>, <fim_suffix>; name its own by")
    assert problem.endswith("tokenizer.add_tokens(['<fim_prefix>', '<fim_suffix>'])")


def test_a_run_learns_to_fill_in_and_its_export_scores_texts_as_they_are(tmp_path: Path):
    tokenizer = train_tokenizer(TEXTS, framed=False, vocab_size=300, max_length=32)
    tokenizer.add_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loop = make_run(tmp_path, "task.args={fim: {}, stride: 4}", f"model.tokenizer={tmp_path / 'tokenizer'}")
    loop.fit()
    written = {token for batch in loop.data.train.steps(start=0, stop=3) for token in read_tokens(batch)}
    assert set(loop.task._splitter.tokens) <= written
    predictor = Predictor.load(tmp_path / "run" / "model")
    (predicted,) = predictor.predict([TEXTS[0]])
    plain = Predictor(loop.bare_model, tokenizer, task="causal_lm", max_length=16, columns={"text": "text"})
    assert predicted == pytest.approx(plain.predict([TEXTS[0]])[0])


def read_tokens(step_batch: Any) -> set[int]:
    return {
        token for microbatch in step_batch.microbatches for token in microbatch.batch["input_ids"].flatten().tolist()
    }
