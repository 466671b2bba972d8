"""The parts that every benchmark rests on."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.measure import compare, publish, take_turns
from benchmarks.padding import share_of_order, share_of_plan
from benchmarks.same_work import find_differences
from benchmarks.texts import write_texts
from benchmarks.watch import Watch


def test_sides_take_turns_and_the_order_turns():
    calls = []
    figures = take_turns({name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}, rounds=2)
    assert "".join(calls) == "abcbca"
    assert figures == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


def test_a_ratio_is_one_of_medians_and_its_extremes_are_those_of_the_rounds():
    comparison = compare("time", "seconds", {"a": [1.0, 2.0, 4.0], "b": [3.0, 2.0, 40.0]}, base="a")
    assert comparison["ratios"]["b"] == {"ratio": 1.5, "smallest": 1.0, "largest": 10.0}
    assert comparison["sides"]["b"]["median"] == 3.0


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"rows": 8, "loss": 0.505}, []),
        ({"rows": 9, "loss": 0.5}, ["rows: b 9, a 8"]),
        ({"rows": 8, "loss": 0.52}, ["loss: b 0.52, a 0.5, further apart than 2.00%"]),
        ({"rows": 8, "loss": math.nan}, ["loss: b nan, a 0.5, further apart than 2.00%"]),
    ],
)
def test_other_work_is_named(other: dict, expected: list):
    outcomes = {"a": [{"rows": 8, "loss": 0.5}], "b": [other]}
    assert find_differences(outcomes, equal=["rows"], close={"loss": 0.02}) == expected


def test_made_up_texts_are_as_long_as_reviews_and_tell_their_label(tmp_path: Path):
    write_texts(tmp_path / "texts.parquet", rows=1500, source=None, seed=3)
    table = pq.read_table(tmp_path / "texts.parquet").to_pydict()
    words = np.array([len(text.split()) for text in table["text"]])
    assert 165 < np.median(words) < 195  # IMDb: 175
    assert 500 < np.percentile(words, 95) < 670  # IMDb: 584
    assert 0.4 < np.mean(table["label"]) < 0.6
    told = [set(text.split()) for text in table["text"]]
    of_one = set.union(*(words for words, label in zip(told, table["label"], strict=True) if label == 1))
    of_other = set.union(*(words for words, label in zip(told, table["label"], strict=True) if label == 0))
    assert len(of_one ^ of_other) == 100  # the words of the two classes, all others stand in both


def test_rows_of_a_file_come_again_where_more_are_asked_for(tmp_path: Path):
    write_texts(tmp_path / "few.parquet", rows=10, source=None, seed=1)
    write_texts(tmp_path / "many.parquet", rows=25, source=tmp_path / "few.parquet", seed=2)
    few, many = (pq.read_table(tmp_path / f"{name}.parquet").column("text").to_pylist() for name in ("few", "many"))
    assert len(many) == 25
    assert set(many[:10]) == set(few) == set(many[10:20])


def test_padding_of_an_order_and_of_a_plan():
    lengths = np.array([2, 4, 4, 4])
    assert share_of_order(lengths, [0, 1, 2, 3], rows_together=2) == 2 / 16
    assert share_of_order(lengths, [0, 1, 2, 3], rows_together=1) == 0
    assert share_of_plan(lengths, batch_size=4, num_processes=1, device_type="cpu", packed=True, seed=0) == 0
    assert share_of_plan(lengths, batch_size=4, num_processes=1, device_type="cpu", packed=False, seed=0) == 2 / 16


def test_the_watch_counts_rows_and_tokens_without_padding_and_stops_at_the_target():
    scores = iter([0.5, 0.9])
    watch = Watch(score=lambda model: next(scores), every=2, target=0.8)
    stopped = []
    for _ in range(4):
        watch.begin_step()
        watch.see({"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])})
        stopped.append(watch.end_step(torch.nn.Linear(1, 1)))
    assert stopped == [False, False, False, True]
    seen = watch.outcome()
    assert (seen["updates"], seen["rows"], seen["tokens"], seen["token_sum"]) == (4, 8, 12, 72)
    assert [(step, accuracy) for step, _, accuracy in seen["scores"]] == [(2, 0.5), (4, 0.9)]


def test_the_page_holds_every_figure_and_draws_a_plot(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from benchmarks.page import main

    comparison = compare("time of it", "seconds", {"ours": [1.25], "other": [2.5]}, base="ours", notes=["a remark"])
    publish("padding", [comparison], settings={"rows": 8}, folder=tmp_path / "results")
    assert json.loads((tmp_path / "results/padding.json").read_text())["settings"] == {"rows": 8}
    assert main(["--results", str(tmp_path / "results"), "--page", str(tmp_path / "README.md")]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "| other | 2.5 | 2 |" in page
    assert "Note: a remark." in page
    assert "### loop_overhead\n\nNot measured yet." in page
    assert (tmp_path / "plots/padding.svg").stat().st_size > 1000
