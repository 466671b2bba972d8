"""search.html: what it shows of trials, keys and runs."""

import re
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from trainer_loop.search.page import make_page
from trainer_loop.search.plan import Plan
from trainer_loop.search.space import Choices, Range, Space
from trainer_loop.search.study import Row

SPACE: Space = {"optimizer.lr": Range(1e-5, 1e-3, log=True), "optimizer.freeze": Choices(("[]", '["<b>*"]'))}


def make_plan(directory: Path, space: Space, *, seeds: int | None = None, folds: int | None = None) -> Plan:
    return Plan(None, [], space, "-loss", 9, seeds, folds, directory, {}, [], "", "study", "tpe", "median", 0)


def row(number: int, lr: float, freeze: int, value: float | None, ended: str = "finished", reason: str = "") -> Row:
    values = {"optimizer.lr": lr, "optimizer.freeze": ("[]", '["<b>*"]')[freeze]}
    is_finished = ended == "finished"
    return Row(number, values, value if is_finished else None, {"ended": ended, "reason": reason, "value": value})


def test_trials_of_all_endings_are_shown_with_links_to_their_reports(tmp_path: Path):
    (tmp_path / "trial-0001").mkdir()
    (tmp_path / "trial-0001" / "report.html").touch()
    rows = [
        row(0, 1e-5, 0, 0.5),
        row(1, 1e-4, 1, 0.3),
        row(2, 1e-3, 0, 0.9, "pruned", "at evaluation 1"),
        row(3, 1e-3, 1, None, "diverged", "the loss of <script>alert(1)</script> is nan"),
        Row(4, {}, None, {}),
    ]
    page = make_page(make_plan(tmp_path, SPACE), rows, rows[1], {"optimizer.freeze": 0.25}, "seed: 1")
    assert "Search for the smallest loss" in page
    assert re.findall(r'href="(trial[^"]*)"', page) == ["trial-0001/report.html"]
    assert "finished, best" in page
    assert "pruned: at evaluation 1" in page
    assert "<dt>running</dt><dd>1</dd>" in page
    assert "<dt>trials</dt><dd>5 of 9</dd>" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "1e-05 to 0.001, by order of magnitude" in page
    by_trial, by_lr, by_freeze = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert "2 trials without a value are left out" in by_trial
    assert "best so far: 5 points, first 0.5, last 0.3" in by_trial
    assert [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="2.2"', by_lr)] == [48, 199, 350]
    assert by_lr.count('class="rings s1"') == 2  # and in the legend
    assert "[&#34;&lt;b&gt;*&#34;]</text>" in by_freeze


def test_seeds_and_folds_have_tables_of_their_own(tmp_path: Path):
    plan = make_plan(tmp_path, {}, seeds=2, folds=2)
    runs = {"seed-1/fold-1": 0.1, "seed-1/fold-2": 0.2, "seed-2/fold-1": None, "seed-2/fold-2": 0.4}
    best = Row(0, {}, 0.25, {"ended": "finished", "value": 0.25, "spread": 0.125, "runs": runs})
    page = make_page(plan, [best], best, {}, "")
    assert "<dt>spread of its runs</dt><dd>0.125</dd>" in page
    table = page.partition("Runs of the best trial: loss")[2].partition("</table>")[0]
    cells = [re.findall(r">([^<>]*)</t[hd]>", line) for line in table.split("<tr>")[1:]]
    assert cells == [["run", "fold-1", "fold-2"], ["seed-1", "0.1", "0.2"], ["seed-2", "", "0.4"]]
    assert "Charts" not in page
