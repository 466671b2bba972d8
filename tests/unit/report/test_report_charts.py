"""The places of lines, ticks and marks of a chart."""

import math

import numpy as np

from trainer_loop.report.charts import Chart, Series, draw_bars, draw_histogram, thin_out
from trainer_loop.report.curves import draw_curves, overlay_curves
from trainer_loop.report.page import Charts, Section, write_page


def test_a_gap_divides_a_line_and_a_lone_point_is_a_dot():
    drawn = Chart("loss", "step", [Series("a", [(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.0)])]).draw()
    (shape,) = drawn.shapes
    assert shape.path.count("M") == 1
    assert len(shape.dots) == 3


def test_all_marks_lie_within_the_figure():
    points = [(step, math.sin(step) * 1e-7 - 3) for step in range(1000)]
    drawn = Chart("loss", "step", [Series("a", points)], marks=[-100, 500, 2000]).draw()
    pairs = [pair.split(",") for pair in drawn.shapes[0].path.removeprefix("M").split(" ")]
    assert all(drawn.left <= float(x) <= drawn.right and drawn.top <= float(y) <= drawn.bottom for x, y in pairs)
    assert all(drawn.left <= x <= drawn.right for x, _ in drawn.x_ticks)
    assert len(drawn.x_ticks) >= 3
    assert len(drawn.y_ticks) >= 2
    assert drawn.marks[0] == drawn.left  # also those before the first point, or behind the last
    assert drawn.marks[2] == drawn.right
    flat = [Chart("f1", "step", [Series("a", [(1, y), (2, y)])]).draw() for y in (0.0, 0.9, -3.0)]
    ends = [(chart.y_ticks[0][1], chart.y_ticks[-1][1]) for chart in flat]
    assert ends == [("0", "1"), ("0", "0.75"), ("-3", "0")]


def test_charts_without_a_number_or_with_one_are_drawn():
    assert Chart("loss", "step", [Series("a", [(1, math.inf)])]).draw().shapes == ()
    odd = Chart("loss", "step", [Series("a", [(1, 1e308), (2, -1e308), (3, 1e-320), (4, 0.0)])]).draw()
    assert len(odd.shapes[0].dots) == 2
    one = Chart("loss", "step", [Series("a", [(5, 0.0)])]).draw()
    assert [text for _, text in one.x_ticks] == ["3", "4", "5", "6", "7"]
    assert draw_bars("tokens", [0, 0], [3.0, 3.5, 4.0], "tokens").draw().shapes[0].path == ""


def test_a_run_has_the_same_colour_in_all_charts_of_a_comparison():
    runs = {"a": [{"step": 1, "loss": 1.0}], "b": [{"step": 1, "loss": 2.0, "validation/f1": 0.5}]}
    loss, f1 = overlay_curves(runs)
    assert [shape.number for shape in loss.draw().shapes if shape.dots] == [0, 1]
    assert [shape.number for shape in f1.draw().shapes if shape.dots] == [1]
    legend = write_page("", [Section("Curves", [Charts([f1])])]).partition('class="legend"')[2]
    assert "</svg>b</li>" in legend
    assert "</svg>a</li>" not in legend
    assert len(overlay_curves({str(number): rows for number in range(9) for rows in [runs["a"]]})[0].series) == 8


def test_bars_of_integers_have_equal_widths():
    values = np.arange(30)
    (bars,) = draw_histogram("tokens", values, "tokens").series
    assert [y for _, y in bars.points[:-1]] == [2.0] * 15
    (few,) = draw_histogram("tokens", np.array([3, 3, 5]), "tokens").series
    assert few.points == [(3.0, 2.0), (4.0, 0.0), (5.0, 1.0), (6.0, 0.0)]


def test_an_axis_may_be_logarithmic_or_have_names():
    drawn = Chart("loss", "lr", [Series("a", [(1e-4, 1.0)], "dots")], x_range=(1e-5, 1e-3), x_log=True).draw()
    assert drawn.x_ticks == [(drawn.left, "1e-5"), (199.0, "1e-4"), (drawn.right, "0.001")]
    assert drawn.shapes[0].dots[0][0] == 199.0
    narrow = Chart("loss", "lr", [Series("a", [(3.0, 1.0)], "dots")], x_range=(2, 4), x_log=True).draw()
    assert [text for _, text in narrow.x_ticks] == ["2", "2.5", "3", "3.5", "4"]
    named = Chart("loss", "name", [Series("a", [(1, 1.0)] * 1000, "rings")], x_names=["x", "y"]).draw()
    assert [text for _, text in named.x_ticks] == ["x", "y"]
    assert {dot[0] for dot in named.shapes[0].dots} == {named.x_ticks[1][0]}
    assert len(named.shapes[0].dots) == 1000


def test_peaks_and_gaps_of_many_points_are_kept():
    points = [(step, float(step % 10)) for step in range(10_000)]
    points[5003] = (5003, 1e6)
    points[7001] = (7001, math.nan)
    kept = thin_out(points)
    assert len(kept) < 400
    assert (5003, 1e6) in kept
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_metrics_of_training_and_validation_share_a_chart():
    rows = [
        {"step": 1, "loss": 2.0, "lr": 0.1, "tokens_per_second": 9.0, "rows_per_second": 1.0, "a/loss": 1.0},
        {"step": 2, "loss": None, "lr": 0.1, "tokens_per_second": 9.0, "rows_per_second": 1.0, "rewards/chosen": 1},
        {"step": 2, "validation/hard/loss": 1.0, "validation/hard/f1/PER": 0.5, "validation/hard/rows": 3},
        {"step": 2, "validation/hard/samples": [{"prediction": "a"}], "test/hard/f1": 0.5},
        {"step": 2, "train_seconds": 3.0, "peak_memory_bytes": 5},
    ]
    charts = {chart.title: chart for chart in draw_curves(rows, sets=["hard"], marks=[1])}
    assert list(charts) == ["Loss", "Learning rate", "Tokens a second", "rewards", "f1"]
    assert [one.name for one in charts["Loss"].series] == ["training", "a", "validation hard"]
    assert charts["Loss"].note == "gaps: not a finite number"
    assert charts["Loss"].description.startswith("Loss by step. training: 1 point, first 2, last 2, from 2 to 2.")
    assert [one.name for one in charts["f1"].series] == ["validation hard PER"]
    assert charts["f1"].marks == [1]


def test_a_rate_that_equals_another_one_has_no_chart():
    rates = {"rows_per_second": 1.0, "tokens_per_second": 9.0, "tokens_per_second_per_device": 9.0, "padding": 0.1}
    rows = [{"step": 1, **rates}, {"step": 2, **rates}]
    assert [chart.title for chart in draw_curves(rows)] == ["Tokens a second", "Padding, share of all tokens"]
    assert [chart.title for chart in overlay_curves({"a": rows})] == ["Tokens a second", "Padding, share of all tokens"]
    of_two = [{**row, "tokens_per_second_per_device": 4.5} for row in rows]
    assert [chart.title for chart in draw_curves(of_two)][2] == "Tokens a second and device"
    assert [chart.title for chart in draw_curves([{**row, "tokens_per_second": 1.0} for row in rows])] == [
        "Rows a second"
    ]
