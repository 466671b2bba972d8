"""A model gives the same for rows laid end to end as for padded ones, or is refused."""

from typing import Any

import pytest
import tiny
import torch
import zoo
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from trainer_loop import Task, UserError
from trainer_loop.data.loader import move_batch
from trainer_loop.models.packing import use_packing
from trainer_loop.ops.attention import use_attention
from trainer_loop.ops.cpu_kernels import use_cpu_modules
from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import pack_rows

SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "embedding_size": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_labels": 3,
}
NAMES = {
    "esm": {"position_embedding_type": "absolute", "token_dropout": False, "mask_token_id": 4},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
CLASSIFIERS = ("bert", "roberta", "distilbert", "electra", "albert", "xlm-roberta", "camembert", "ernie", "esm")
DECODERS = ("gpt2", "llama", "qwen2", "gpt_neox", "opt", "phi")
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout_prob",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "layerdrop",
    "resid_pdrop",
    "seq_classif_dropout",
)


def make_model(model_type: str, *, decoder: bool, **fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type)
    for name, value in {**SIZES, **NAMES.get(model_type, {}), **dict.fromkeys(DROPOUTS, 0.0), **fields}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(0)
    model = (AutoModelForCausalLM if decoder else AutoModelForSequenceClassification).from_config(config)
    return model.train()


def run(model: PreTrainedModel, task: Task, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], int]:
    """The loss, what is predicted and all gradients; and the number of targets."""
    batch = move_batch(task.collate(rows), torch.device("cpu"))
    loss, judged = task.loss_and_predict(model, batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), "predictions": judged["predictions"].double(), **gradients}, task.count(batch)


@pytest.mark.parametrize(
    ("model_type", "decoder"),
    [*((model_type, False) for model_type in CLASSIFIERS), *((model_type, True) for model_type in DECODERS)],
)
def test_loss_predictions_and_gradients_are_those_of_padded_rows(model_type: str, decoder: bool):
    rows = tiny.make_rows(6, longest=20, labelled=not decoder)
    results = []
    for packs in (False, True):
        task: Task = CausalLM() if decoder else SequenceClassification()
        task.bind(tiny.make_tokenizer(), packs=packs)
        model = make_model(model_type, decoder=decoder)
        use_attention(model)
        if packs:
            use_packing(model, rows_at_head=task.rows_at_head)
            assert model.training
        results.append(run(model, task, rows))
    (padded, targets), (packed, same_targets) = results
    assert targets == same_targets == (sum(len(row["input_ids"]) - 1 for row in rows) if decoder else len(rows))
    assert padded.keys() == packed.keys()
    for name, value in padded.items():
        torch.testing.assert_close(
            packed[name], value, rtol=1e-5, atol=1e-5, msg=lambda told, name=name: f"{name} {told}"
        )


def test_packed_rows_train_in_bf16_with_dropout_and_checkpointed_gradients():
    model = make_model("bert", decoder=False, attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    use_attention(model)
    use_cpu_modules(model)
    use_packing(model, rows_at_head=True)
    task = SequenceClassification()
    task.bind(tiny.make_tokenizer(), packs=True)
    with torch.autocast("cpu", torch.bfloat16):
        task.loss(model, task.collate(tiny.make_rows(6))).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "decoder", "reason"),
    [
        ("deberta-v2", False, "attention of DebertaV2ForSequenceClassification cannot be exchanged"),
        ("modernbert", False, "attends within a sliding window"),
        ("llama", False, "does not follow a stack of layers of its own"),
        ("mistral", True, "attends within a sliding window"),
        ("bloom", True, "cannot be exchanged"),
    ],
)
def test_a_model_that_would_answer_otherwise_is_refused(model_type: str, decoder: bool, reason: str):
    fields = {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    model = make_model(model_type, decoder=decoder, **fields)
    with pytest.raises(UserError, match=rf"^model\.packing: .*{reason}.*; set model\.packing=false$"):
        use_packing(model, rows_at_head=not decoder)


def test_a_model_that_counts_positions_itself_is_refused():
    with pytest.raises(UserError, match=r"BartForCausalLM gives other results for packed rows, by 0\.3"):
        use_packing(zoo.make_model("bart", "AutoModelForCausalLM"), rows_at_head=False)


@pytest.mark.parametrize(("number", "reason"), [(float("nan"), "gives other results"), (0.0, "nothing but zeros")])
def test_a_model_whose_answers_prove_nothing_is_refused(number: float, reason: str):
    model = make_model("bert", decoder=False)
    model.classifier.weight.data.fill_(number)
    with pytest.raises(UserError, match=reason):
        use_packing(model, rows_at_head=True)


def test_a_packed_model_takes_no_padded_batch():
    model = make_model("bert", decoder=False)
    use_packing(model, rows_at_head=True)
    with pytest.raises(ValueError, match="only packed batches"):
        model(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_packed_rows_stand_end_to_end():
    batch = pack_rows(
        [{"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1]}, {"input_ids": [8], "token_type_ids": [0]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert (batch["row_lengths"], batch["row_ends"].tolist()) == ((3, 1), [0, 3, 4])
