import numpy as np
import pytest
import tiny
import torch

from trainer_loop.data.batch_plan import BatchPlan
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import EvaluationLoader, KeptRows, TrainLoader

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


def collate_draws(rows):
    return {"draw": torch.tensor([row["draw"] for row in rows]), "labels": torch.tensor([row["label"] for row in rows])}


def make_drawing_loader(*, seed: int = 0, num_processes: int = 1, process_index: int = 0, workers: int = 0, **cut):
    return TrainLoader(
        BatchPlan(LENGTHS, Limits(num_processes, **cut), batch_size=8, seed=seed),
        ROWS,
        collate=collate_draws,
        count=lambda batch: len(batch["labels"]),
        device=CPU,
        process_index=process_index,
        num_workers=workers,
        draws=True,
    )


def read_draws(*loaders: TrainLoader) -> dict[tuple[int, int], int]:
    """By step and row."""
    return {
        (step.step, row): draw
        for loader in loaders
        for step in loader.steps(start=0, stop=8)
        for microbatch in step.microbatches
        for row, draw in zip(microbatch.rows, microbatch.batch["draw"].tolist(), strict=True)
    }


def test_the_draw_of_a_row_is_a_function_of_seed_step_and_row():
    draws = read_draws(make_drawing_loader())
    assert len(set(draws.values())) == len(draws) == 2 * len(ROWS)
    assert read_draws(make_drawing_loader(max_tokens=40, workers=2)) == draws
    assert read_draws(*(make_drawing_loader(num_processes=3, process_index=index) for index in range(3))) == draws
    smaller = make_drawing_loader()
    cut = smaller.cut_smaller(3)
    assert cut is not None
    pairs = [zip(part.rows, part.batch["draw"].tolist(), strict=True) for part in cut.microbatches]
    again = {row: draw for pair in pairs for row, draw in pair}
    assert again == {row: draw for (step, row), draw in draws.items() if step == 3}
    assert not set(read_draws(make_drawing_loader(seed=1)).values()) & set(draws.values())


def test_the_draw_of_a_row_that_is_scored_is_the_same_each_time():
    def read(limits: Limits) -> dict[int, int]:
        loader = EvaluationLoader(
            ROWS, LENGTHS, limits, collate=collate_draws, count=lambda batch: 0, device=CPU, draws=True
        )
        return {row: draw for part in loader for row, draw in zip(part.rows, part.batch["draw"].tolist(), strict=True)}

    draws = read(Limits(1))
    assert len(set(draws.values())) == len(ROWS)
    assert read(Limits(1, max_tokens=40)) == draws


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (np.array([0.5, 0.25]), [0.5, "nan", 0.25]),
        (np.array([3, 4]), [3, -1, 4]),
        (np.array([[True, False], [True, True]]), [[True, False], [False, False], [True, True]]),
        (np.array(["a", None], dtype=object), ["a", None, None]),
    ],
)
def test_outputs_of_rows_that_were_kept_stand_in_their_places(output: np.ndarray, wanted: list):
    spread = KeptRows(np.array([0, 2]), 3).spread(output)
    assert ["nan" if value != value else value for value in spread.tolist()] == wanted
