"""The part of a report about one set: the classes, lengths, sources and rows that the model gets wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainer_loop.data.wording import plural
from trainer_loop.errors import cut_short
from trainer_loop.report.charts import Chart, Series, draw_histogram, spell
from trainer_loop.report.page import Block, Card, Cards, Cell, Charts, Lines, Row, Table, number
from trainer_loop.report.rows import ScoredRows
from trainer_loop.report.scores import ClassScores, Errors, calibrate, confuse, count_confusions, score_classes

_MOST_CLASSES = 500  # in a table
_MATRIX = 12  # most classes of a confusion matrix
_PAIRS = 20  # confusions, or labels with the lowest F1, in a table
_LENGTHS = 5  # groups of rows by length, of about equal size
_SOURCES = 30
_DOTS = 500
_NUMBERS = 4  # most numbers of a row that have a chart
_NAME = 28  # most characters in the head of a matrix
_OUTPUTS = {"text": ("predicted", "reference"), "negative_log_likelihood": ("loss, in nats", "targets")}
_DETAILS = {"probability": "its probability", "reference_probability": "probability of the label", "tokens": "tokens"}


def describe_mistakes(rows: ScoredRows, worst: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return the blocks of a set. worst: numbers of rows and the inputs of the model, as in report.json."""
    errors = rows.measure_errors()
    blocks: list[Block] = [*_describe_classes(rows), *_calibrate(rows), *_draw_numbers(rows)]
    if errors is None:
        return blocks
    if rows.kind == "negative_log_likelihood":
        blocks.append(Charts([draw_histogram("Loss a target, in nats, by row", errors.rank, "nats")]))
    blocks += _group(rows, errors)
    cards = [_show_row(rows, int(row["row"]), row["inputs"]) for row in worst if int(row["row"]) < len(rows.places)]
    if cards:
        are_all = len(cards) == int((errors.amounts > 0).sum())
        count = plural(len(cards), "row")
        title = f"All {count} that are wrong" if are_all else f"The {count} that the model gets most wrong"
        blocks.append(Cards(title, cards, errors.order))
    elif not errors.amounts.any():
        blocks.append(Lines(["The model gets no row wrong."]))
    return blocks


def _describe_classes(rows: ScoredRows) -> Iterator[Block]:
    """Yield tables by class, if the classes have names."""
    flat = rows.flatten()
    if not rows.names or (flat is None and rows.kind != "label_set"):
        return
    predictions, references = (rows.predictions, rows.references) if flat is None else flat
    scores = score_classes(predictions, references, len(rows.names))
    yield from _tabulate_classes(rows.names, scores, of="words" if rows.kind == "tags" else "rows")
    if flat is None or (predictions == references).all():
        return
    pairs = count_confusions(predictions, references)
    classes = np.arange(len(rows.names))
    if len(classes) > _MATRIX:  # show the classes that are confused most
        involved = np.zeros(len(classes), dtype=np.int64)
        for right, predicted, count in pairs:
            involved[[right, predicted]] += count
        classes = np.sort(np.argsort(-involved, kind="stable")[:_MATRIX])
    yield _tabulate_confusions(rows.names, classes, confuse(predictions, references, classes))
    if len(rows.names) > 2:
        yield Table(
            "Most frequent confusions",
            ("label", "predicted", "times", "of the label"),
            [
                (rows.names[right], rows.names[predicted], count, _share(count / scores.support[right]))
                for right, predicted, count in pairs[:_PAIRS]
            ],
        )


def _tabulate_classes(names: Sequence[str], scores: ClassScores, *, of: str) -> Iterator[Table]:
    """Yield a table of all classes. If there are many, a table of those with the lowest F1 comes first."""
    heads = ("label", of, "predicted", "precision", "recall", "F1")
    counts = zip(scores.support.tolist(), scores.predicted.tolist(), strict=True)
    shares = zip(scores.precision, scores.recall, scores.f1, strict=True)
    rows: list[Row] = [
        (name, *of_class, *map(_share, measured))
        for name, of_class, measured in zip(names, counts, shares, strict=True)
    ]
    if len(names) <= _PAIRS:
        yield Table("By label", heads, rows)
        return
    lowest = [place for place in np.argsort(scores.f1, kind="stable").tolist() if scores.support[place]][:_PAIRS]
    yield Table(f"By label: the {len(lowest)} with the lowest F1", heads, [rows[place] for place in lowest])
    more = len(rows) - _MOST_CLASSES
    note = f"{more:,} more labels are left out." if more > 0 else ""
    yield Table(f"All {len(rows):,} labels", heads, rows[:_MOST_CLASSES], note=note, folded=True)


def _tabulate_confusions(names: Sequence[str], classes: np.ndarray, table: np.ndarray) -> Table:
    """Make a table of the result of `confuse`."""
    shown = [names[place] for place in classes.tolist()]
    has_others = bool(table[:, -1].any())
    heads = [Cell(cut_short(name, at_most=_NAME), "shade", title=name) for name in shown] + [
        Cell("others", "shade")
    ] * has_others
    rows = [
        (
            name,
            *(Cell(f"{count:,}", "shade", count / max(line.sum(), 1)) for count in (line if has_others else line[:-1])),
        )
        for name, line in zip(shown, table, strict=True)
    ]
    which = "" if len(names) == len(classes) else f", of the {len(classes)} labels that are confused most"
    return Table(f"Confusion matrix: labels by line, predictions by column{which}", ["label", *heads], rows)


def _calibrate(rows: ScoredRows) -> Iterator[Block]:
    probability = rows.details.get("probability")
    if rows.kind != "class" or probability is None or not np.isfinite(probability).all():
        return
    result = calibrate(probability, rows.predictions == rows.references)
    filled = result.rows > 0
    points = list(zip(result.confidence[filled].tolist(), result.accuracy[filled].tolist(), strict=True))
    lines = [Series("model", points), Series("perfect", [(0, 0), (1, 1)], "dashed")]
    chart = Chart(
        "Reliability: share of right rows by probability", "probability", lines, x_range=(0, 1), y_range=(0, 1)
    )
    bins = zip(result.edges[:-1][filled], result.edges[1:][filled], result.rows[filled], points, strict=True)
    yield Charts([chart, draw_histogram("Probability of the prediction", probability, "probability", limits=(0, 1))])
    yield Table(
        f"Expected calibration error: {result.error:.4f}",
        ("probability", "rows", "mean probability", "right"),
        [
            (f"{low:.1f} to {high:.1f}", int(count), number(f"{sure:.3f}"), number(f"{right:.3f}"))
            for low, high, count, (sure, right) in bins
        ],
    )


def _draw_numbers(rows: ScoredRows) -> Iterator[Block]:
    if rows.kind != "number":
        return
    pairs = [column.reshape(len(column), -1).T for column in (rows.references, rows.predictions)]
    shown = np.unique(np.linspace(0, len(rows.places) - 1, min(_DOTS, len(rows.places))).astype(int))
    names = rows.names or [""]
    charts = []
    for name, right, predicted in list(zip(names, *pairs, strict=False))[:_NUMBERS]:
        limits = (float(min(right.min(), predicted.min())), float(max(right.max(), predicted.max())))
        points = list(zip(right[shown].tolist(), predicted[shown].tolist(), strict=True))
        equal = [(limit, limit) for limit in limits]
        series = [Series("rows", points, "dots"), Series("equal", equal, "dashed")]
        charts.append(Chart(f"Predicted {name}".strip(), f"{name} in the data".strip(), series))
    yield Charts(charts)


def _group(rows: ScoredRows, errors: Errors) -> Iterator[Block]:
    """Yield tables of errors by length and by source."""
    tokens = rows.details.get("tokens")
    if tokens is not None and len(edges := np.unique(np.percentile(tokens, np.linspace(0, 100, _LENGTHS + 1)))) > 2:
        edges = np.unique(np.ceil(edges))
        numbers = np.searchsorted(edges[1:-1], tokens, side="left")
        spans = zip([edges[0], *(edges[1:-1] + 1)], edges[1:], strict=True)
        names = [f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}" for low, high in spans]
        yield _tabulate_groups("By length", "tokens", names, numbers, errors)
    sources, numbers = np.unique(rows.sources, return_inverse=True)
    if 1 < len(sources) <= _SOURCES:
        yield _tabulate_groups("By source", "source", sources.tolist(), numbers, errors)


def _tabulate_groups(title: str, head: str, names: Sequence[str], numbers: np.ndarray, errors: Errors) -> Table:
    """Make a table of the error of each group of rows. numbers: `[N]`, the group of each row."""
    groups = [(name, numbers == place) for place, name in enumerate(names)]
    filled = [(name, rows) for name, rows in groups if rows.any()]
    largest = 1.0 if errors.is_share else max((errors.of(rows) for _, rows in filled), default=0) or 1.0
    return Table(
        f"{title}: {errors.title}",
        (head, "rows", "error"),
        [
            (name, int(rows.sum()), number(f"{errors.of(rows):.4f}", share=errors.of(rows) / largest))
            for name, rows in filled
        ],
    )


def _show_row(rows: ScoredRows, row: int, inputs: Mapping[str, str]) -> Card:
    words = inputs.get("words", "").split(" ")
    if rows.kind == "tags" and len(words) == len(rows.references[row]):
        return Card(rows.places[row], inputs, {"wrong": _list_wrong_tags(rows, row, words)})
    predicted, right = _OUTPUTS.get(rows.kind or "", ("predicted", "label"))
    outputs = {
        predicted: spell_output(rows, rows.predictions[row]),
        right: spell_output(rows, rows.references[row]),
    }
    numbers = {title: float(rows.details[name][row]) for name, title in _DETAILS.items() if name in rows.details}
    if rows.kind == "negative_log_likelihood":
        numbers = {"a target": float(rows.predictions[row]) / max(float(rows.references[row]), 1), **numbers}
    facts = {title: spell(round(value, 4)) for title, value in numbers.items() if math.isfinite(value)}
    if rows.kind == "text":
        return Card(rows.places[row], {**inputs, **outputs}, facts)
    return Card(rows.places[row], inputs, {**outputs, **facts})


def _list_wrong_tags(rows: ScoredRows, row: int, words: Sequence[str]) -> str:
    """List the wrong tags of a row, as `York: B-LOC, not I-LOC`."""
    tags = zip(words, rows.predictions[row].tolist(), rows.references[row].tolist(), strict=True)
    names = dict(enumerate(rows.names))
    wrong = [(word, names.get(tag, "?"), names[label]) for word, tag, label in tags if tag != label and label >= 0]
    return "; ".join(f"{word}: {tag}, not {label}" for word, tag, label in wrong)


def spell_output(rows: ScoredRows, value: Any) -> str:
    """Format a prediction or a reference as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " | ".join(map(str, value))
    names = dict(enumerate(rows.names))
    if rows.kind == "label_set":
        return ", ".join(names[place] for place in np.flatnonzero(value).tolist()) or "none"
    if rows.kind == "tags":
        return " ".join(names.get(tag, "?") for tag in value.tolist())
    if rows.kind == "class":
        return names.get(int(value), str(value))
    return ", ".join(spell(float(item)) for item in np.atleast_1d(value))


def _share(value: float) -> Cell:
    return number(f"{value:.3f}", share=float(value))
