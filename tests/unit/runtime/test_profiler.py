"""The trace of some steps: it holds these and no others, and the training is the same with and without it."""

import json

import pytest
import torch
from tiny import make_bert, make_loop, make_rows, make_task

from trainer_loop.runtime.profiler import StepProfiler


def train(run_dir, profiler=None, *, stop=6, **options):
    loop = make_loop(
        run_dir,
        rows=make_rows(48),
        task=make_task("sequence_classification"),
        model=make_bert(dropout=0.1),
        num_steps=stop,
        optimizer="adamw",
        **options,
    )
    loop.engine.profiler = profiler
    loop.fit()
    return [parameter.detach().clone() for parameter in loop.bare_model.parameters()]


def make_profiler(folder, first, last, said):
    return StepProfiler(first, last, folder=folder, process_index=0, say=said.append, warn=said.append)


def read_spans(folder) -> list[str]:
    events = json.loads((folder / "trace-0.json").read_text())["traceEvents"]
    return sorted(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_it_holds_its_steps_and_changes_no_weight(tmp_path):
    said: list[str] = []
    profiler = make_profiler(tmp_path / "profile", 3, 4, said)
    traced = train(tmp_path / "traced", profiler)
    plain = train(tmp_path / "plain")
    assert all(map(torch.equal, traced, plain))
    assert [span for span in read_spans(tmp_path / "profile") if span.startswith("step")] == ["step 3", "step 4"]
    first, second, *rows = (tmp_path / "profile" / "operators.txt").read_text().splitlines()
    assert "Self CPU %" in second and set(first) <= set("- ")
    assert any(row.split()[:1] == ["aten::addmm"] for row in rows)
    assert said == [
        f"profile of steps 3 to 4: {tmp_path / 'profile'}; open trace-0.json at https://ui.perfetto.dev",
    ]
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["operators.txt", "trace-0.json"]


def test_a_run_that_goes_on_among_its_steps_traces_those_that_it_makes(tmp_path):
    train(tmp_path / "run", stop=2, checkpoint_every=2)
    said: list[str] = []
    train(tmp_path / "run", make_profiler(tmp_path / "profile", 1, 4, said))
    assert said[0].startswith("profile of steps 3 to 4: ")
    assert [span for span in read_spans(tmp_path / "profile") if span.startswith("step")] == ["step 3", "step 4"]


def test_a_loop_that_does_not_say_when_a_step_ends_has_a_trace(tmp_path):
    said: list[str] = []
    profiler = make_profiler(tmp_path, 2, 3, said)
    for step in range(1, 6):
        profiler.begin_step(step)
    assert [span for span in read_spans(tmp_path) if span.startswith("step")] == ["step 2", "step 3"]
    assert len(said) == 1


def test_a_disk_that_refuses_costs_a_warning(tmp_path):
    (tmp_path / "profile").write_text("in the way")
    said: list[str] = []
    train(tmp_path / "run", make_profiler(tmp_path / "profile", 1, 1, said))
    (warning,) = said
    assert warning == f"log.profile: {tmp_path / 'profile'} cannot be written: File exists"


@pytest.mark.parametrize(
    ("steps", "parts"),
    [
        ("25-20", ["log.profile is '25-20'; allowed: a range of at most 100 steps", "it ends before it begins"]),
        ("0-3", ["the first step is 1"]),
        ("1-101", ["nothing opens a trace that long"]),
        ("20", ["a range of at most 100 steps, such as 20-25 or null"]),
        ("1-x", ["log.profile is '1-x'; allowed: a range of at most 100 steps, such as 20-25 or null"]),
    ],
)
def test_a_bad_range_is_refused_in_one_line(steps, parts):
    from trainer_loop.config.load import read_config

    (problem,) = read_config(None, [f"log.profile={steps}"]).problems
    assert [part for part in parts if part not in problem] == []
    assert "\n" not in problem
