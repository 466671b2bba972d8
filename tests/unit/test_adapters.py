"""Adapters of peft on every architecture: all that is called trainable learns, the rest stays, exports answer alike."""

from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from torch import Tensor, nn

from trainer_loop import UserError
from trainer_loop.models.adapters import AdapterPlan, load_adapted_model
from trainer_loop.models.trials import find_reach

LORA = ("lora", {"r": 2, "target_modules": "all-linear"})
DORA = ("lora", {"r": 2, "target_modules": "all-linear", "use_dora": True})
IA3: tuple[str, dict[str, Any]] = ("ia3", {})
LOHA = ("loha", {"r": 2})
KINDS = {"lora": LORA, "dora": DORA, "ia3": IA3, "loha": LOHA}
HEADS = {
    "SEQUENCE_CLASSIFICATION": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "TOKEN_CLASSIFICATION": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "CAUSAL_LM": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "MASKED_LM": ("AutoModelForMaskedLM", None),
}
# Architectures of unlike kinds. make test tries LoRA on these, and the other adapters on a few of them; make test-slow
# tries all on all.
VARIED = ("bart", "bert", "deberta-v2", "distilbert", "electra", "eurobert", "gpt2", "llama", "modernbert", "roberta")
VARIED += ("t5", "xlm", "xlnet", "mixtral", "gemma3")
FEW = ("bert", "gpt2", "llama", "mixtral", "t5")


def answer(model: nn.Module, ids: Tensor) -> Tensor:
    with_cache = {"use_cache": False} if "CausalLM" in type(model).__name__ else {}
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **with_cache).logits


def adapt(model: nn.Module, kind: tuple[str, dict[str, Any]], task_type: str | None, ids: Tensor) -> nn.Module:
    reach = find_reach(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return AdapterPlan(*kind, "peft").add_to(model, task_type=task_type, seed=0, idle_layers=reach.idle)


WITHOUT = {"mra": "its attention needs a kernel that is compiled for a GPU", "reformer": "trains on one length only"}


def train(model: nn.Module, ids: Tensor, *, steps: int = 3) -> tuple[set[str], set[str]]:
    """-> the trainable parameters that have not moved, and the others that have."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    # New weights may give gradients of 1e-20, which must move a parameter all the same.
    optimizer = torch.optim.AdamW(learning, lr=1e-2, weight_decay=0.0, eps=1e-30)
    model.train()
    for _ in range(steps):
        logits = answer(model, ids).float()
        (logits.logsumexp(-1) - logits[..., 0]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return trainable - moved, moved - trainable


def check(model_type: str, head: str, kind: tuple[str, dict[str, Any]], directory) -> None:
    auto_class, task_type = HEADS[head]
    zoo.make_model(model_type, auto_class).save_pretrained(directory / "base")
    load = getattr(transformers, auto_class).from_pretrained
    ids = torch.tensor([[1, 7, 23, 41, 5, 30, 11, 58, 2], [1, 50, 49, 48, 9, 8, 7, 6, 2]])
    model = adapt(load(directory / "base").eval(), kind, task_type, ids)
    still, moved = train(model, ids)
    assert not still, f"called trainable, and have not moved: {sorted(still)[:4]}"
    assert not moved, f"not called trainable, and have moved: {sorted(moved)[:4]}"
    with torch.no_grad():
        wanted = answer(model.eval(), ids)
        model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        model.config.save_pretrained(directory / "adapter")  # as an export has it
        here = load_adapted_model(directory / "adapter", model_class=auto_class, num_tokens=1).eval()
        torch.testing.assert_close(answer(here, ids), wanted, rtol=0, atol=1e-5 * (1 + float(wanted.abs().max())))
        alone = peft.PeftModel.from_pretrained(load(directory / "base"), directory / "adapter").eval()
        torch.testing.assert_close(answer(alone, ids), wanted, rtol=0, atol=1e-5 * (1 + float(wanted.abs().max())))
        AdapterPlan(*kind, "peft", merge=True).merge_into(alone).save_pretrained(directory / "merged")
        merged = load(directory / "merged").eval()
        torch.testing.assert_close(answer(merged, ids), wanted, rtol=0, atol=1e-5 * (1 + float(wanted.abs().max())))


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(model_type, marks=[] if model_type in (*VARIED, "ibert") else [pytest.mark.slow])
        for model_type in zoo.types_of("SEQUENCE_CLASSIFICATION")
    ],
)
def test_lora_on_every_classifier(model_type: str, tmp_path):
    zoo.skip_unless_small(model_type, "AutoModelForSequenceClassification")
    if model_type == "ibert":  # it has linear layers of its own
        with pytest.raises(UserError, match="lora finds no layer in a IBertForSequenceClassification"):
            check(model_type, "SEQUENCE_CLASSIFICATION", LORA, tmp_path)
    elif model_type in WITHOUT:
        pytest.skip(WITHOUT[model_type])
    else:
        check(model_type, "SEQUENCE_CLASSIFICATION", LORA, tmp_path)


@pytest.mark.parametrize("model_type", FEW)
@pytest.mark.parametrize("kind", ["dora", "ia3", "loha"])
def test_other_adapters_on_classifiers_of_unlike_kinds(model_type: str, kind: str, tmp_path):
    if (model_type, kind) in (("mixtral", "dora"), ("gpt2", "loha")):
        with pytest.raises(UserError, match=r"^model\.peft: .*not (work|supported)"):  # peft cannot do it
            check(model_type, "SEQUENCE_CLASSIFICATION", KINDS[kind], tmp_path)
    else:
        check(model_type, "SEQUENCE_CLASSIFICATION", KINDS[kind], tmp_path)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        (model_type, head)
        for head in ("TOKEN_CLASSIFICATION", "CAUSAL_LM", "MASKED_LM")
        for model_type in VARIED
        if model_type in zoo.types_of(head)
    ],
)
def test_lora_on_models_that_answer_for_each_token(model_type: str, head: str, tmp_path):
    check(model_type, head, LORA, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "head", "kind"),
    [(model_type, head, kind) for head in HEADS for model_type in zoo.types_of(head) for kind in KINDS],
)
def test_every_adapter_on_every_head_of_every_model(model_type: str, head: str, kind: str, tmp_path):
    zoo.skip_unless_small(model_type, HEADS[head][0])
    if model_type in WITHOUT:
        pytest.skip(WITHOUT[model_type])
    try:
        check(model_type, head, KINDS[kind], tmp_path)
    except UserError as error:  # peft cannot put this adapter beside such layers, and says so
        (problem,) = error.problems
        assert problem.startswith("model.peft: ")


def test_a_pattern_that_the_export_could_not_be_loaded_with_is_refused_before_training():
    model = zoo.make_model("bert", "AutoModelForSequenceClassification")
    ids = torch.tensor([[1, 7, 2]])
    with pytest.raises(UserError, match=r"^model\.peft: '\(a\+\)\+b' is a pattern on which matching may take for ever"):
        adapt(model, ("lora", {"target_modules": "(a+)+b"}), "SEQ_CLS", ids)
