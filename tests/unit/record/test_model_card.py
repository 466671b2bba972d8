"""The model card: front matter, checked with huggingface_hub's own code, and its text."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hub_server import check_card
from huggingface_hub import ModelCard, ModelCardData, constants
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from trainer_loop.record.model_card import BaseModel, CardFacts, Scores, find_base_model, make_card, make_short_card

FACTS = CardFacts(
    title="imdb-bert",
    task="sequence_classification",
    pipeline_tag="text-classification",
    library="transformers",
    reads="column `text`, texts cut at 256 tokens",
    step=125,
    num_steps=250,
    base=BaseModel("google-bert/bert-base-cased", "finetune", license="apache-2.0"),
    dataset="nyu-mll/glue",
    dataset_config="mnli",
    data=["train: 4,000 rows of nyu-mll/glue[train]"],
    scores=[
        Scores("validation matched", "nyu-mll/glue", "validation_matched", {"loss": 0.5, "accuracy": 0.85, "rows": 9}),
        Scores("validation own", None, None, {"loss": 0.5, "accuracy": 0.8, "f1/0": 0.3, "f1/1": 0.4}),
        Scores("test", "nyu-mll/glue", "test_matched", {"loss": 0.5, "accuracy": 1 / 3, "my_score": 2.0}),
    ],
    metric_names=["accuracy", "f1", "accuracy"],
    settings={"optimizer.lr": 5e-5, "loss.name": "a|b"},
)
KINDS = {
    "fine-tuned": FACTS,
    "adapter": replace(FACTS, library="peft", base=BaseModel("me/x", "adapter", "other", "mine", "https://x.org")),
    "base that is nowhere": replace(FACTS, base=BaseModel(None, "finetune", license="mit")),
    "from scratch on files": replace(FACTS, base=None, dataset=None, dataset_config=None, scores=FACTS.scores[1:2]),
    "never evaluated": replace(FACTS, scores=[]),
    "a task of one's own": replace(
        FACTS, task="my_lab.tasks.Mine", pipeline_tag=None, library="pytorch", reads=None, base=None
    ),
    "a causal LM": replace(FACTS, task="causal_lm", pipeline_tag="text-generation", metric_names=["perplexity"]),
    "words that YAML reads otherwise": replace(FACTS, title="no", scores=[Scores("yes", None, "on", {"accuracy": 1})]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_matter_passes_the_validators_of_the_hub(hub, tmp_path, kind):
    path = tmp_path / "README.md"
    path.write_text(make_card(KINDS[kind]), encoding="utf-8")
    card = ModelCard.load(path)
    card.validate()  # asks the hub
    assert check_card(path.read_text()) == [] and hub.count("validate-yaml") == 1
    read = yaml.safe_load(path.read_text().split("---\n")[1])
    assert card.data.to_dict() == ModelCardData(**read).to_dict() == read
    if "model-index" in read:
        name, results = model_index_to_eval_results(read["model-index"])
        assert eval_results_to_model_index(name, results) == read["model-index"]
    for name in [*filter(None, [read.get("base_model")]), *read.get("datasets", [])]:
        validate_repo_id(name)


def front_matter_of(facts: CardFacts) -> dict:
    return yaml.safe_load(make_card(facts).split("---\n")[1])


def test_without_results_there_is_no_index():
    for kind in ("never evaluated", "a task of one's own"):
        assert not {"model-index", "model_name"} & set(front_matter_of(KINDS[kind]))


def test_the_content_of_the_front_matter():
    assert front_matter_of(FACTS) == {
        "base_model": "google-bert/bert-base-cased",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy", "f1"],
        "tags": ["trainer_loop"],
        "model-index": [
            {
                "name": "imdb-bert",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {
                            "name": "nyu-mll/glue (validation matched)",
                            "type": "nyu-mll/glue",
                            "config": "mnli",
                            "split": "validation_matched",
                        },
                        "metrics": [{"type": "accuracy", "value": 0.85, "name": "accuracy"}],
                    },
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {
                            "name": "local data (validation own)",
                            "type": "local",
                            "split": "validation own",
                        },
                        "metrics": [
                            {"type": "accuracy", "value": 0.8, "name": "accuracy"},
                            {"type": "f1", "value": 0.3, "name": "f1/0"},
                            {"type": "f1", "value": 0.4, "name": "f1/1"},
                        ],
                    },
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {
                            "name": "nyu-mll/glue (test)",
                            "type": "nyu-mll/glue",
                            "config": "mnli",
                            "split": "test_matched",
                        },
                        "metrics": [
                            {"type": "accuracy", "value": 0.333333, "name": "accuracy"},
                            {"type": "my_score", "value": 2.0, "name": "my_score"},
                        ],
                    },
                ],
            }
        ],
    }


def test_an_unknown_license_is_left_out():
    for facts in (KINDS["from scratch on files"], replace(FACTS, base=BaseModel("me/x", "finetune"))):
        assert "license" not in front_matter_of(facts)


def test_metrics_that_are_not_finite_are_left_out_of_the_index():
    facts = replace(FACTS, scores=[Scores("test", None, None, {"accuracy": math.nan, "f1": 0.5})])
    (result,) = front_matter_of(facts)["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["f1"]


def test_the_text_of_the_card():
    text = make_card(FACTS)
    for expected in (
        "# imdb-bert",
        "from `google-bert/bert-base-cased`",
        "task `sequence_classification` on column `text`, texts cut at 256 tokens",
        "those of step 125 of 250",
        "| validation matched, 9 rows | accuracy | 0.85 |",
        "| test | accuracy | 0.333333 |",
        "- train: 4,000 rows of nyu-mll/glue[train]",
        "| `optimizer.lr` | `5e-05` |",
        r"| `loss.name` | `a\|b` |",
        "transformers",
    ):
        assert expected in text


def test_intervals_environment_and_limits_are_only_in_the_text():
    scores = [Scores("test", None, None, {"accuracy": 0.9, "loss": 0.3}, {"accuracy": (0.85, 0.9412345)})]
    facts = replace(FACTS, scores=scores, environment={"device": "cuda"}, limits=["Never seen."], has_report=True)
    text = make_card(facts)
    for expected in (
        "| set | metric | value | 95 % interval |",
        "| test | accuracy | 0.9 | 0.85 to 0.9412 |",
        "| test | loss | 0.3 |  |",
        "bootstrap",
        "## Limits\n\n- Never seen.",
        "## Environment\n\n- device: cuda\n- versions: trainer",
        "`report.html`",
    ):
        assert expected in text, expected
    assert front_matter_of(facts)["model-index"] == front_matter_of(replace(FACTS, scores=scores))["model-index"]
    assert "report.html" not in make_card(FACTS) and "interval" not in make_card(FACTS)


HOSTILE = "<script>*a*_b_|`c`[x](http://evil.org)\n# d\\"


def test_texts_of_data_and_config_are_escaped():
    facts = replace(
        FACTS,
        data=[f"train: 3 rows; labels: {HOSTILE} 50.0%"],
        limits=[HOSTILE],
        settings={"data.filter": HOSTILE},
        scores=[Scores(HOSTILE, None, None, {"f1/snake_case": 0.5})],
    )
    html = commonmark(make_card(facts).split("---\n", 2)[2])
    assert not any(tag in html for tag in ("<script", "<em", "<strong", "href", "<h1>d"))
    assert html.count("<h1>") == 1 and html.count("<tr>") == 2 + 2
    shown = HOSTILE.replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
    assert html.count(shown) == 4, "in two lists and two cells"
    assert "f1/snake_case" in html


def commonmark(text: str) -> str:
    """Render Markdown with tables."""
    return str(pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table").render(text))


# --- the base model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with the card of one model."""
    snapshot = tmp_path / "hub" / "models--lab--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "models--lab--cached" / "refs").mkdir()
    (tmp_path / "hub" / "models--lab--cached" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot / "README.md"


def test_the_license_of_a_hub_model_is_read_from_its_cached_card(cache):
    cache.write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.org/license\n---\n# x\n")
    known = BaseModel("lab/cached", "adapter", "other", "mine", "https://x.org/license")
    assert find_base_model("lab/cached", relation="adapter") == known
    assert find_base_model("lab/elsewhere", relation="finetune") == BaseModel("lab/elsewhere", "finetune")


@pytest.mark.parametrize(
    ("card", "known"),
    [
        (None, BaseModel(None, "finetune")),
        ("---\nlicense: mit\nbase_model: lab/first\n---\n", BaseModel("lab/first", "finetune", license="mit")),
        ("---\r\nlicense: mit\r\nbase_model: lab/first\r\n---\r\n", BaseModel("lab/first", "finetune", license="mit")),
        ("---\nlicense: [a, b]\nbase_model: [lab/a, lab/b]\nlicense_link: LICENSE\n---\n", BaseModel(None, "finetune")),
        ("---\nbase_model: /home/me/model\n---\n", BaseModel(None, "finetune")),
        ("# no front matter\n\n---\nlicense: mit\n---\n", BaseModel(None, "finetune")),
        ("---\n: : {[\n---\n", BaseModel(None, "finetune")),
        ("---\n- a list\n---\n", BaseModel(None, "finetune")),
        ("", BaseModel(None, "finetune")),
        (b"\xff\xfe\x00", BaseModel(None, "finetune")),
    ],
    ids=["none", "ours", "crlf", "other types", "a path", "no front", "no yaml", "a list", "empty", "no text"],
)
def test_a_local_model_passes_on_the_facts_of_its_card(tmp_path, card, known):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert find_base_model(str(tmp_path), relation="finetune") == known


# --- a model that was made elsewhere


@pytest.mark.parametrize(
    ("adapter", "front"),
    [
        (None, {"library_name": "transformers"}),
        (
            '{"base_model_name_or_path": "lab/x"}',
            {"library_name": "peft", "base_model": "lab/x", "base_model_relation": "adapter"},
        ),
        ('{"base_model_name_or_path": "/home/me/x"}', {"library_name": "peft"}),
        ("{}", {"library_name": "peft"}),
        ("{", {"library_name": "peft"}),
        ("[]", {"library_name": "peft"}),
    ],
)
def test_a_model_without_a_card_gets_a_short_one(tmp_path: Path, adapter, front):
    if adapter is not None:
        (tmp_path / "adapter_config.json").write_text(adapter)
    text = make_short_card(tmp_path)
    assert yaml.safe_load(text.split("---\n")[1]) == front
    assert check_card(text) == []
    assert f"# {tmp_path.name}" in text
