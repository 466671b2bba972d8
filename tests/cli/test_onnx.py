"""Tests of `python -m trainer_loop.onnx`: what it writes answers as the model does, and what differs is not kept."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from made_up import make_reviews
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from wordpiece import make_wordpiece

from trainer_loop import Predictor, UserError
from trainer_loop.cli import predict
from trainer_loop.cli.onnx import main
from trainer_loop.onnx import export
from trainer_loop.onnx.export import Comparison, export_onnx, make_example_rows
from trainer_loop.record.onnx_folder import OnnxRecord, find_files_to_push
from trainer_loop.tasks.find import list_tasks, load_task

ROOT = Path(__file__).parents[2]
TEXTS = [text for text, _ in make_reviews(300)]
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make_model(name: str, size: int, pad: int) -> PreTrainedModel:
    """A small model with random weights that are large enough for its answers to differ."""
    common = {"vocab_size": size, "pad_token_id": pad, "max_position_embeddings": 70}
    bert = BertConfig(**common, **WIDTHS, num_labels=3)
    # As wide as MiniLM is deep and narrow: heads of a few numbers each.
    minilm = common | {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 192}
    # One layer: make test traces this one only, and tracing is what takes time.
    distilbert = common | {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
    torch.manual_seed(0)
    model = {
        "bert": lambda: BertForSequenceClassification(bert),
        "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**distilbert)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**common, **WIDTHS, num_labels=3)),
        "minilm": lambda: BertForSequenceClassification(BertConfig(**minilm, num_labels=3)),
        "tagger": lambda: BertForTokenClassification(bert),
        "answers": lambda: BertForQuestionAnswering(BertConfig(**common, **WIDTHS)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=pad)
        ),
    }[name]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    """Directories of models by name, made when they are asked for."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_wordpiece(TEXTS, vocab_size=300, max_length=64)

    def make(name: str) -> Path:
        if not (root / name).exists():
            tokenizer.save_pretrained(root / name)
            make_model(name, len(tokenizer), tokenizer.pad_token_id).save_pretrained(root / name)
        return root / name

    return make


@pytest.fixture
def run(capfd):
    """Run the command; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(arguments))
        return code, *capfd.readouterr()

    return run


def compare_alone(folder: Path, model_dir: Path) -> float:
    """The largest difference between ONNX Runtime and transformers, both without this project."""
    import onnxruntime

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = config.architectures
    model = getattr(transformers, architecture).from_pretrained(model_dir).eval()
    names = [value.name for value in session.get_inputs()]
    differences = []
    for texts in (TEXTS[:1], TEXTS[:7], [" ".join(TEXTS[:30]), "a", TEXTS[5]]):
        read = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        with torch.no_grad():
            expected = model(**read).to_tuple()
        answers = session.run(None, {name: read[name].numpy() for name in names})
        padding = read["attention_mask"].numpy() == 0
        for known, answer in zip(expected, answers, strict=True):
            away = np.abs(known.numpy() - answer)
            if away.shape[:2] == padding.shape:
                away[padding] = 0
            differences.append(away.max())
    return float(max(differences))


def check_export(name: str, models: Any, run: Any, tmp_path: Path, *arguments: str) -> Path:
    folder = tmp_path / "onnx"
    code, out, err = run(f"model={models(name)}", f"output={folder}", *arguments)
    assert (code, err) == (0, "")
    assert "rows answered by both: largest difference" in out and out.endswith(f"written to {folder}\n")
    assert compare_alone(folder, models(name)) <= 1e-4
    return folder


def test_a_classifier_answers_the_same_for_all_lengths_and_batches(models, run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:40]))
    folder = check_export("distilbert", models, run, tmp_path, f"data={rows}")
    names = {"model.onnx", "onnx.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    record = OnnxRecord.read(folder)
    assert record.rows == 40 and record.difference <= 1e-5
    assert record.inputs == {name: ["rows", "tokens"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    content = (folder / "model.onnx").read_bytes()
    assert b"stack_trace" not in content and str(Path(transformers.__file__).parent).encode() not in content
    assert transformers.AutoConfig.from_pretrained(folder).architectures == ["DistilBertForSequenceClassification"]
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import onnxruntime.*?)```", page, re.DOTALL)
    names = {}
    exec(code.replace("runs/imdb/onnx", str(folder)), names)
    assert names["logits"].shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "minilm", "tagger", "answers"])
def test_other_models_answer_the_same(models, run, tmp_path, name):
    check_export(name, models, run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["model.lora.r=2"], ["model.peft.name=ia3"]])
def test_an_adapter_is_merged(command, arguments, run, tmp_path, keys):
    pytest.importorskip("peft")
    assert command(*arguments, *keys, "train.epochs=3", "optimizer.lr=0.05").code == 0
    code, out, err = run(f"model={tmp_path / 'run'}", f"data={tmp_path / 'reviews.csv'}")
    assert (code, err) == (0, "") and "80 rows answered by both" in out
    files, note = find_files_to_push(tmp_path / "run" / "onnx", tmp_path / "run" / "model", again="x")
    assert note is None and len(files) == 2


def example_predictor(models: Any, name: str = "bert") -> Predictor:
    return Predictor.load(models(name))


class Shifted:
    """The model itself in the place of its ONNX file, but for the answers to some rows."""

    inputs: ClassVar[dict[str, list[str]]] = {"input_ids": ["rows", "tokens"]}
    outputs: ClassVar[dict[str, list[Any]]] = {"logits": ["rows", 3]}

    def __init__(self, model: Any, by: float):
        self.model, self.by = model, by

    @torch.no_grad()
    def answer(self, inputs: Any) -> dict[str, np.ndarray]:
        logits = self.model(**inputs).logits
        logits[inputs["attention_mask"].sum(dim=1) > 40] += self.by
        return {"logits": logits.numpy()}


@pytest.fixture
def shifted(models, monkeypatch):
    """A predictor, and a function that exports it where long rows get other answers."""
    predictor = example_predictor(models)

    def export_shifted(target: Path, by: float, tolerance: float = 1e-4) -> Comparison:
        monkeypatch.setattr(export, "make_program", lambda *_: None)
        monkeypatch.setattr(export, "write_program", lambda _, path: path.write_bytes(b"program"))
        monkeypatch.setattr(export, "OnnxModel", lambda _: Shifted(predictor.model, by))
        rows = {"text": ["short", " ".join(TEXTS[:20]), "also short"]}
        place = "row {}".format
        return export_onnx(predictor, models("bert"), target, rows=rows, origin_of=place, tolerance=tolerance)

    return export_shifted


@pytest.mark.parametrize("by", [1.1e-4, math.nan, math.inf])
def test_other_answers_are_not_kept_and_what_was_there_stays(shifted, tmp_path, by):
    target = tmp_path / "onnx"
    assert shifted(target, 0.0) == Comparison(0.0, "row 0", 3)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError, match=r"differ by .* \(row 1\), more than tolerance=0.0001; nothing was written"):
        shifted(target, by)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_the_tolerance_says_what_is_kept(shifted, tmp_path):
    compared = shifted(tmp_path / "onnx", 5e-3, tolerance=1e-2)
    assert compared.place == "row 1" and compared.difference == pytest.approx(5e-3, rel=1e-3)
    assert OnnxRecord.read(tmp_path / "onnx").tolerance == 1e-2


def test_example_rows_are_of_many_lengths_and_have_a_second_text_where_the_model_reads_one(models):
    predictor = example_predictor(models)
    rows = make_example_rows(predictor)
    lengths = {len(ids) for ids in predictor.processor(rows["text"], truncation=True)["input_ids"]}
    assert rows.keys() == {"text"} and min(lengths) <= 8 and max(lengths) == 64 and len(lengths) > 5
    predictor.columns = {"text": "a", "text_pair": "b"}
    assert make_example_rows(predictor)["text_pair"] == rows["text"][::-1]


def test_answers_at_padding_are_not_compared_those_of_classes_are():
    """Also where a row has as many classes as tokens."""
    inputs = {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    batch = export._Batch(inputs, ["a", "b"])
    known, other = {"logits": np.zeros((2, 3))}, {"logits": np.array([[0, 0, 0], [0, 1e-3, 2.0]])}
    assert export._find_largest(known, other, batch, {"logits": ["rows", "tokens"]}) == (1e-3, 1)
    assert export._find_largest(known, other, batch, {"logits": ["rows", 3]}) == (2.0, 1)
    infinite = {"logits": np.full((2, 3), -np.inf)}
    assert export._find_largest(infinite, infinite, batch, {"logits": ["rows", 3]}) == (0.0, 0)
    assert export._find_largest(known, infinite, batch, {"logits": ["rows", 3]})[0] == math.inf
    with pytest.raises(UserError, match="the ONNX model answers more, and the model does not"):
        export._find_largest(known, {"more": np.zeros(2)}, batch, {"more": ["rows"]})
    with pytest.raises(UserError, match="the ONNX model does not answer ends, and the model does"):
        export._find_largest({**known, "ends": np.zeros(2)}, known, batch, {"logits": ["rows", 3]})


# --- what is refused before a model loads


@pytest.fixture
def never_loads(monkeypatch):
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Predictor, "load", load)


def test_a_model_that_writes_texts_is_refused_with_the_tasks_that_are_written(models, run, never_loads, tmp_path):
    code, out, err = run(f"model={models('t5')}", f"output={tmp_path / 'onnx'}")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    able = [name for name in list_tasks() if not load_task(name)().writes]
    assert f"the task seq2seq writes texts token by token, and is not written as ONNX; tasks: {', '.join(able)}" in err
    assert len(able) == 9 and not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ([], ["model= is missing"]),
        (["model=x", "tolerance=0", "trust_remote_code=yes"], ["must be a number above 0", "allowed: true, false"]),
        (["model=x", "outptu=y", "data="], ["did you mean output=?", "data=: it has no value"]),
        (["model=nowhere"], ["no such directory"]),
    ],
)
def test_wrong_arguments_are_told_at_once(run, never_loads, arguments, problems):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and len(err.splitlines()) == len(problems)
    assert all(problem in line for problem, line in zip(problems, err.splitlines(), strict=True))


def test_folders_of_others_packages_and_files_are_checked_together(models, run, never_loads, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    monkeypatch.setattr("trainer_loop.onnx.program._PACKAGES", ("onnx", "onnx_of_tomorrow"))
    code, _, err = run(f"model={models('bert')}", f"output={tmp_path / 'mine'}")
    assert code == 2 and "no folder that this command wrote" in err
    assert "ONNX needs the packages onnx_of_tomorrow: pip install onnx_of_tomorrow, or trainer_loop[onnx]" in err
    monkeypatch.undo()
    monkeypatch.setattr(Predictor, "load", None)
    (tmp_path / "rows.csv").write_text("words\nx\n")
    code, _, err = run(f"model={models('bert')}", f"output={tmp_path / 'new'}", f"data={tmp_path / 'rows.csv'}")
    told = f"data={tmp_path / 'rows.csv'}: column text: the file has no such column; it has words"
    assert (code, err) == (2, f"error: {told}\n")


@pytest.mark.parametrize("arguments", [[], ["text=hello"]])
def test_ctrl_c_leaves_no_traceback_and_no_folder(models, shifted, run, monkeypatch, tmp_path, capfd, arguments):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if not arguments:
        monkeypatch.setattr(export, "replace_folder", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shifted(tmp_path / "onnx", 0.0)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Predictor, "load", interrupt)
    command = predict.main if arguments else main
    assert command([f"model={models('bert')}", *arguments]) == 130
    assert capfd.readouterr().err == "stopped\n"


# --- what is pushed


def test_a_folder_is_pushed_beside_the_weights_that_it_was_made_of(models, tmp_path):
    model_dir = shutil.copytree(models("bert"), tmp_path / "model")
    folder, again = tmp_path / "onnx", "the command"
    assert find_files_to_push(folder, model_dir, again=again) == ({}, None)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"program")
    (folder / "tokenizer.json").write_text("{}")
    OnnxRecord.of(folder, model_dir, difference=0.0, tolerance=1e-4, rows=3, inputs={}).write(folder)
    files, note = find_files_to_push(folder, model_dir, again=again)
    assert note is None
    assert files == {"onnx/model.onnx": folder / "model.onnx", "onnx/onnx.json": folder / "onnx.json"}
    (folder / "model.onnx").write_bytes(b"another")  # such as one that was quantised in its place
    other = f"{folder} is left out: model.onnx is not the one that was compared; the command makes it anew"
    assert find_files_to_push(folder, model_dir, again=again) == ({}, other)
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    other = f"{folder} is left out: it was made of other weights; the command makes it anew"
    assert find_files_to_push(folder, model_dir, again=again) == ({}, other)
    (folder / "onnx.json").write_text("[]")
    files, note = find_files_to_push(folder, model_dir, again=again)
    assert files == {} and note is not None and note.startswith(f"{folder} is left out: it holds a list")


def test_the_folder_of_a_run_lies_in_its_directory(tmp_path):
    from trainer_loop.cli.onnx import _find_folder

    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    assert _find_folder(tmp_path / "run" / "model") == tmp_path / "run" / "onnx"
    assert _find_folder(tmp_path / "other" / "bert") == tmp_path / "other" / "bert-onnx"


@pytest.mark.parametrize("output", [".", "..", "../here"])
def test_the_folder_is_not_the_current_one(models, run, never_loads, monkeypatch, tmp_path, output):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = run(f"model={models('bert')}", f"output={output}")
    told = f"output={output}: it is the current folder, or holds it; name one in it, such as output=onnx"
    assert (code, err) == (2, f"error: {told}\n")


def test_help_names_every_argument(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {name}=" in out for name in ("model", "output", "data", "tolerance", "trust_remote_code"))
