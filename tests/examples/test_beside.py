"""The examples with transformers.Trainer and with Lightning are the same: they end at the same weights."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning import Trainer as Lightning
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

NUM_STEPS, NUM_ROWS, RATE, MAX_NORM = 3, 8, 0.1, 1.0
FIRST_WORD = {"first": 0, "second": 2}  # of the first text of each side


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    tiny.make_bert(seed=5).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def train_ours(
    directory: Path, *, task: Any, rows: list[dict[str, Any]], model: nn.Module, **options: Any
) -> nn.Module:
    loop = tiny.make_loop(
        directory,
        rows=rows,
        task=task,
        model=model,
        num_steps=NUM_STEPS,
        batch_size=len(rows),
        lr=RATE,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        **options,
    )
    loop.fit()
    return loop.bare_model


def recorded(loop_class: type) -> Any:
    return type("Recorded", (tiny.RecordingLoop, loop_class), {})


def train_with_trainer(
    directory: Path,
    *,
    rows: list[dict[str, Any]],
    collate: Callable[..., Any],
    model: nn.Module,
    trainer_class: type = Trainer,
    **options: Any,
) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            max_steps=NUM_STEPS,
            per_device_train_batch_size=len(rows),
            max_grad_norm=MAX_NORM,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=collate,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        **options,
    )
    trainer.train()
    return trainer.model


def train_with_lightning(
    directory: Path,
    *,
    rows: list[dict[str, Any]],
    collate: Callable[..., Any],
    model: nn.Module,
    module_class: type,
    clips: bool = True,
    **options: Any,
) -> nn.Module:
    class BySgd(module_class):  # type: ignore[misc]
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = BySgd(model.train(), **options)
    trainer = Lightning(
        max_steps=NUM_STEPS,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=None if not clips else MAX_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=len(rows), collate_fn=collate))
    return module.model


def make_classification() -> tuple[Any, list[dict[str, Any]], nn.Module]:
    task = tiny.make_task("sequence_classification")
    task.bind(tiny.make_tokenizer())
    return task, tiny.make_rows(NUM_ROWS), tiny.make_bert()


def assert_same_weights(*, ours: nn.Module, theirs: nn.Module, start: nn.Module) -> None:
    before, found = start.state_dict(), theirs.state_dict()
    assert any((tensor - before[name]).abs().max() > 1e-3 for name, tensor in found.items()), "nothing was learnt"
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(
            tensor, found[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_focal_loss(tmp_path: Path):
    from examples.focal_loss import focal, with_lightning, with_trainer

    task, rows, start = make_classification()
    mine = type(task)(loss_function=functools.partial(focal.focal, gamma=2))
    ours = train_ours(tmp_path / "ours", task=mine, rows=rows, model=copy.deepcopy(start))
    parts = {"rows": rows, "collate": task.collate}
    loss = functools.partial(with_trainer.focal, gamma=2)
    theirs = train_with_trainer(tmp_path, **parts, model=copy.deepcopy(start), compute_loss_func=loss)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
    parts |= {"module_class": with_lightning.FocalClassifier}
    theirs = train_with_lightning(tmp_path, **parts, model=copy.deepcopy(start), gamma=2)
    assert_same_weights(ours=ours, theirs=theirs, start=start)


def test_distillation(tmp_path: Path, teacher: str):
    from examples.distillation import distil, with_lightning, with_trainer

    task, rows, start = make_classification()
    loop_class = recorded(distil.Distillation)
    ours = train_ours(
        tmp_path / "ours",
        task=task,
        rows=rows,
        model=copy.deepcopy(start),
        loop_class=loop_class,
        loop_args={"teacher": teacher},
    )
    parts = {"rows": rows, "collate": task.collate, "teacher": teacher}
    trainer = with_trainer.DistillationTrainer
    theirs = train_with_trainer(tmp_path, **parts, model=copy.deepcopy(start), trainer_class=trainer)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
    module = with_lightning.DistilledClassifier
    theirs = train_with_lightning(tmp_path, **parts, model=copy.deepcopy(start), module_class=module)
    assert_same_weights(ours=ours, theirs=theirs, start=start)


def test_r_drop(tmp_path: Path):
    from examples.r_drop import r_drop, with_lightning, with_trainer

    task, rows, start = make_classification()
    ours = train_ours(
        tmp_path / "ours", task=task, rows=rows, model=copy.deepcopy(start), loop_class=recorded(r_drop.RDrop)
    )
    parts = {"rows": rows, "collate": task.collate}
    theirs = train_with_trainer(tmp_path, **parts, model=copy.deepcopy(start), trainer_class=with_trainer.RDropTrainer)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
    module = with_lightning.RDropClassifier
    theirs = train_with_lightning(tmp_path, **parts, model=copy.deepcopy(start), module_class=module)
    assert_same_weights(ours=ours, theirs=theirs, start=start)


def test_the_two_passes_of_r_drop_differ_and_all_three_say_by_how_much(tmp_path: Path):
    from examples.r_drop import r_drop, with_lightning, with_trainer

    task, rows, _ = make_classification()
    batch, model = task.collate(rows), tiny.make_bert(dropout=0.3).train()
    model.classifier.weight.data.mul_(100)  # so that passes differ by more than rounding

    def of(compute: Callable[[Any, dict[str, Tensor]], Tensor], owner: Any) -> float:
        torch.manual_seed(3)
        return compute(owner, dict(batch)).item()

    class Parts:
        """What the three use of their owners."""

        weight = 4.0

        def log(self, *arguments: Any, **options: Any) -> None:
            pass

    parts = Parts()
    parts.model = model
    ours = of(r_drop.RDrop.loss_sum, parts) / NUM_ROWS
    trainer = of(lambda owner, inputs: with_trainer.RDropTrainer.compute_loss(owner, model, inputs), parts)
    lightning = of(lambda owner, inputs: with_lightning.RDropClassifier.training_step(owner, inputs, 0), parts)
    assert ours == pytest.approx(trainer, abs=1e-6) == pytest.approx(lightning, abs=1e-6)
    parts.weight = 0.0
    assert ours > of(r_drop.RDrop.loss_sum, parts) / NUM_ROWS + 1e-3


def test_adversarial_training(tmp_path: Path):
    from examples.adversarial import fgm, with_lightning, with_trainer

    task, rows, start = make_classification()
    ours = train_ours(tmp_path / "ours", task=task, rows=rows, model=copy.deepcopy(start), loop_class=recorded(fgm.Fgm))
    parts = {"rows": rows, "collate": task.collate}
    theirs = train_with_trainer(tmp_path, **parts, model=copy.deepcopy(start), trainer_class=with_trainer.FgmTrainer)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
    module = with_lightning.FgmClassifier
    theirs = train_with_lightning(tmp_path, **parts, model=copy.deepcopy(start), module_class=module, clips=False)
    assert_same_weights(ours=ours, theirs=theirs, start=start)


def test_contrastive_pairs(tmp_path: Path):
    from examples.contrastive_pairs import contrastive, with_lightning, with_trainer

    words = [f"w{number}" for number in range(40)]
    texts = {side: [" ".join(words[at : at + 5]) for at in range(start, 32, 4)] for side, start in FIRST_WORD.items()}
    task = contrastive.ContrastivePairs(group=4)
    tokenizer = tiny.make_tokenizer()
    task.bind(tokenizer)
    encoded = task.encode({"text": texts["first"], "text_pair": texts["second"]}, max_length=16)
    rows = [{name: encoded[name][row] for name in ("input_ids", "lengths")} for row in range(2)]
    theirs_rows = [
        {name: found[0] for name, found in group.items()}
        for group in (
            with_trainer.encode(
                {side: column[start : start + 4] for side, column in texts.items()}, tokenizer=tokenizer, max_length=16
            )
            for start in (0, 4)
        )
    ]
    assert theirs_rows == rows
    start = tiny.make_bert().bert
    start.pooler.requires_grad_(False)  # as the example's config has it: this task has no use for it
    ours = train_ours(tmp_path / "ours", task=task, rows=rows, model=copy.deepcopy(start))
    parts = {"rows": rows, "collate": with_trainer.Collator(tokenizer), "temperature": 0.05}
    trainer = with_trainer.ContrastiveTrainer
    theirs = train_with_trainer(tmp_path, **parts, model=copy.deepcopy(start), trainer_class=trainer)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
    module = with_lightning.ContrastivePairs
    theirs = train_with_lightning(tmp_path, **parts, model=copy.deepcopy(start), module_class=module)
    assert_same_weights(ours=ours, theirs=theirs, start=start)
