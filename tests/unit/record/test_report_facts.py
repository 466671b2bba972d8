"""report.json over several starts of a run."""

from pathlib import Path

import pytest

from trainer_loop.record.report_facts import ReportFacts, read_facts
from trainer_loop.runtime.stopwatch import Stopwatch


def make(path: Path, warnings: list[str] | None = None) -> ReportFacts:
    return ReportFacts(path, warn=[].append if warnings is None else warnings.append)


def test_a_resumed_run_adds_its_seconds_and_drops_sets_that_it_scores_again(tmp_path: Path):
    path = tmp_path / "report.json"
    first = make(path)
    first.begin("run", step=0, task="a")
    first.add_set("validation", {"step": 4, "worst": []})
    first.add_set("validation.hard", {"step": 2, "worst": []})
    first.end("preempted", {"preparation": 1.0, "evaluation": 2.0})
    again = make(path)
    again.begin("run", step=3, task="a")
    again.add_set("test", {"step": None, "worst": []})
    assert set(read_facts(path)["sets"]) == {"validation.hard", "test"}
    again.end("finished", {"preparation": 0.5, "export": 1.0})
    facts = read_facts(path)
    assert [(start["step"], start["ended"]) for start in facts["starts"]] == [(0, "preempted"), (3, "finished")]
    assert facts["seconds"] == {"preparation": 1.5, "evaluation": 2.0, "export": 1.0}
    make(path).begin("run", step=3, task="a")
    assert set(read_facts(path)["sets"]) == {"validation.hard"}  # the test sets are scored at the end
    assert read_facts(path)["seconds"] == {"preparation": 1.5, "evaluation": 2.0, "export": 1.0}


def test_another_run_or_a_damaged_file_starts_with_empty_facts(tmp_path: Path):
    path = tmp_path / "report.json"
    make(path).begin("first", step=0)
    make(path).begin("second", step=0)
    assert len(read_facts(path)["starts"]) == 1
    for text in ("{", '{"format": 1, "sets": [1]}', '{"format": 1, "starts": [{}]}', '{"format": 2}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"\S"):
            read_facts(path)
    make(path).begin("second", step=2)
    assert [start["step"] for start in read_facts(path)["starts"]] == [2]


def test_a_file_that_cannot_be_written_is_reported_once(tmp_path: Path):
    warnings: list[str] = []
    (tmp_path / "report.json").mkdir()
    facts = make(tmp_path / "report.json", warnings)
    facts.begin("run", step=0)
    facts.end("finished", {})
    assert len(warnings) == 1
    assert "a folder is in its place" in warnings[0]


def test_the_stopwatch_also_adds_parts_that_fail():
    watch = Stopwatch()
    for _ in range(2):
        try:
            with watch.measuring("evaluation"):
                raise ValueError
        except ValueError:
            pass
    assert watch.seconds["evaluation"] > 0
    watch.begin_run()
    assert watch.seconds["preparation"] >= watch.seconds["evaluation"]
