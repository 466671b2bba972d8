"""The same numbers as the peers: transformers.Trainer and a bare PyTorch loop, from the same rows in the same order."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

from trainer_loop.data.batch_plan import BatchPlan

NUM_STEPS, BATCH_SIZE, MAX_NORM = 20, 8, 0.5
RATES = {"sgd": 0.1, "adamw": 1e-3}


def order_of_rows() -> list[int]:
    """The rows of the first 20 updates, as the plan shuffles them."""
    plan = BatchPlan([1] * 160, batch_size=BATCH_SIZE, seed=7)
    return [row for step in range(NUM_STEPS) for row in plan.batch(step).tolist()]


def train_with_ours(task: str, optimizer: str, model: torch.nn.Module, run_dir: Path) -> torch.nn.Module:
    loop = tiny.make_loop(
        run_dir,
        rows=make_rows(task),
        task=tiny.make_task(task),
        model=model,
        num_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        optimizer=optimizer,
        lr=RATES[optimizer],
        schedule=lambda made: get_linear_schedule_with_warmup(made, 2, NUM_STEPS),
        max_grad_norm=MAX_NORM,
    )
    loop.fit()
    return loop.bare_model


def make_rows(task: str) -> list[dict]:
    return tiny.make_rows(160, labelled=task != "causal_lm")


def train_bare(task: str, optimizer: str, model: torch.nn.Module) -> torch.nn.Module:
    """The loop that everyone writes by hand."""
    rows, collate = make_rows(task), make_collate(task)
    groups = [
        {"params": [weight for weight in model.parameters() if weight.ndim >= 2], "weight_decay": 0.01},
        {"params": [weight for weight in model.parameters() if weight.ndim < 2], "weight_decay": 0.0},
    ]
    made = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](groups, lr=RATES[optimizer])
    schedule = get_linear_schedule_with_warmup(made, 2, NUM_STEPS)
    model.train()
    for batch in DataLoader([rows[row] for row in order_of_rows()], batch_size=BATCH_SIZE, collate_fn=collate):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        made.step()
        schedule.step()
        made.zero_grad()
    return model


def train_with_trainer(task: str, optimizer: str, model: torch.nn.Module, directory: Path) -> torch.nn.Module:
    rows = make_rows(task)

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments, **options):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            max_steps=NUM_STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=RATES[optimizer],
            weight_decay=0.01,
            max_grad_norm=MAX_NORM,
            lr_scheduler_type="linear",
            warmup_steps=2,
            optim="sgd" if optimizer == "sgd" else "adamw_torch",
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=[rows[row] for row in order_of_rows()],
        data_collator=make_collate(task),
    )
    trainer.train()
    return trainer.model


def make_collate(task: str):
    ours = tiny.make_task(task)
    ours.bind(tiny.make_tokenizer())

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = ours.collate(rows)
        if task == "causal_lm":
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            # The Trainer divides by the labels that are not -100, and would count first tokens that nothing predicts.
            batch["labels"][:, 0] = -100
        return batch

    return collate


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm"])
@pytest.mark.parametrize("peer", ["Trainer", "bare loop"])
def test_weights_after_20_steps_equal_the_peers(peer: str, task: str, optimizer: str, tmp_path: Path):
    start = tiny.make_model(task)
    ours = train_with_ours(task, optimizer, copy.deepcopy(start), tmp_path / "ours")
    if peer == "Trainer":
        theirs = train_with_trainer(task, optimizer, copy.deepcopy(start), tmp_path / "theirs")
    else:
        theirs = train_bare(task, optimizer, copy.deepcopy(start))
    moved = 0.0
    for (name, mine), their, before in zip(
        ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        moved = max(moved, float((mine - before).detach().abs().max()))
    assert moved > 1e-3, "nothing was learnt, so nothing was compared"
