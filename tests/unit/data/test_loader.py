import pytest
import tiny
import torch

from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import EvaluationLoader, TrainLoader

CPU = torch.device("cpu")
ROWS = tiny.make_rows(30)
LENGTHS = [len(row["input_ids"]) for row in ROWS]


def make_task():
    task = tiny.make_task("sequence_classification")
    task.bind(tiny.make_tokenizer())
    return task


def make_train_loader(*, process_index: int = 0, num_processes: int = 1, num_workers: int = 0, **cut) -> TrainLoader:
    task = make_task()
    plan = BatchPlan(LENGTHS, Limits(num_processes, **cut), batch_size=8, seed=0)
    return TrainLoader(
        plan,
        ROWS,
        collate=task.collate,
        count=task.count,
        device=CPU,
        process_index=process_index,
        num_workers=num_workers,
    )


def test_a_microbatch_holds_its_rows_padded_to_the_longest_and_their_labels():
    for step_batch in make_train_loader(max_tokens=60).steps(start=0, stop=4):
        for microbatch in step_batch.microbatches:
            batch = microbatch.batch
            widest = max(LENGTHS[row] for row in microbatch.rows)
            assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(microbatch.rows), widest)
            assert batch["attention_mask"].sum(dim=1).tolist() == [LENGTHS[row] for row in microbatch.rows]
            assert batch["labels"].tolist() == [ROWS[row]["label"] for row in microbatch.rows]
            assert microbatch.num_targets == len(microbatch.rows)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_begin_anywhere_and_are_the_same_with_workers(num_workers):
    def describe(loader, start, stop):
        return [
            (step.step, [microbatch.rows for microbatch in step.microbatches])
            for step in loader.steps(start=start, stop=stop)
        ]

    whole = describe(make_train_loader(), 0, 9)
    assert [step for step, _ in whole] == list(range(9))
    assert describe(make_train_loader(num_workers=num_workers), 5, 9) == whole[5:]


def test_an_idle_process_gets_a_dummy_microbatch_that_counts_nothing():
    loader = make_train_loader(num_processes=8, process_index=7)
    *_, last = loader.steps(start=0, stop=4)  # 6 rows for 8 processes
    (dummy_microbatch,) = last.microbatches
    assert dummy_microbatch.is_dummy
    assert dummy_microbatch.num_targets == 0
    assert last.num_rows == 0


def test_what_a_collate_draws_at_random_is_the_same_when_the_step_is_repeated():
    task = make_task()

    def collate(rows):
        return {**task.collate(rows), "noise": torch.rand(len(rows))}

    def draw(start):
        loader = make_train_loader()
        loader.collate = collate
        torch.manual_seed(start)
        return [step.microbatches[0].batch["noise"] for step in loader.steps(start=start, stop=4)]

    whole, resumed = draw(0), draw(2)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], resumed, strict=True))
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("num_processes", [1, 3])
def test_evaluation_gives_each_row_once_over_all_processes(num_processes):
    task = make_task()
    seen = []
    for process_index in range(num_processes):
        loader = EvaluationLoader(
            ROWS,
            LENGTHS,
            Limits(num_processes, max_tokens=80),
            collate=task.collate,
            count=task.count,
            device=CPU,
            process_index=process_index,
        )
        assert loader.num_rows == 30
        seen += [row for microbatch in loader for row in microbatch.rows]
    assert sorted(seen) == list(range(30))
