"""Curves and histograms as inline SVG: computes the place of each line, tick and mark; page.html.j2 draws them.

Texts are SVG texts and colours are those of the page, so a chart follows its light or dark theme and is small.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer_loop.data.histogram import choose_whole_edges
from trainer_loop.data.wording import plural

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 8, 34
_FEW_POINTS = 20  # a line with at most this many points has a dot at each
_BARS = 20
_MOST_NAMES = 7  # at most this many are below the axis
_MOST_POINTS = 300  # of a line; a longer line is thinned out


@dataclass(frozen=True)
class Series:
    """One line, set of dots or rings, or histogram.

    For `bars`, `points` are the left edge and the height of each bar, then the right edge with any height. A value that
    is not finite leaves a gap.
    """

    name: str
    points: Sequence[Point]
    style: Literal["line", "dots", "rings", "dashed", "bars"] = "line"


@dataclass(frozen=True)
class Chart:
    """A figure with axes."""

    title: str
    x_title: str
    series: Sequence[Series]
    marks: Sequence[float] = ()  # events, in units of x
    note: str = ""  # a line below the title
    x_range: Point | None = None
    y_range: Point | None = None
    x_log: bool = False  # logarithmic scale
    x_names: Sequence[str] = ()  # of x = 0, 1, ...

    @property
    def description(self) -> str:
        """Text for readers who do not see the figure."""
        return f"{self.title} by {self.x_title}. " + " ".join(map(_describe, self.series))

    def draw(self) -> "Drawing":
        points_by_series = [[(self._place_x(x), _limit(y)) for x, y in series.points] for series in self.series]
        finite = [point for points in points_by_series for point in points if all(map(math.isfinite, point))]
        if not finite:
            return Drawing()
        grows_from_zero = any(series.style == "bars" for series in self.series)
        x_low, x_high = self._find_x_range([*(x for x, _ in finite), *self.marks])
        heights = [y for _, y in finite]
        is_flat = max(heights) - min(heights) <= 1e-12 * max(map(abs, heights))  # shown above zero
        y_low, y_high = self.y_range or _widen(heights + [0.0] * (grows_from_zero or is_flat))
        x_scale, y_scale = (WIDTH - _LEFT - _RIGHT) / (x_high - x_low), (HEIGHT - _TOP - _BOTTOM) / (y_high - y_low)

        def place(point: Point) -> Point:
            return _LEFT + (point[0] - x_low) * x_scale, HEIGHT - _BOTTOM - (point[1] - y_low) * y_scale

        shapes = []
        for number, (series, points) in enumerate(zip(self.series, points_by_series, strict=True)):
            if series.style == "bars":
                shapes.append(
                    Shape(number, series.style, _outline([place(point) for point in points], place((0, 0))[1]))
                )
                continue
            has_no_line = series.style in ("dots", "rings")
            pieces = [
                [place(point) for point in piece] for piece in _split(points if has_no_line else thin_out(points))
            ]
            has_dots = has_no_line or (series.style == "line" and len(points) <= _FEW_POINTS)
            dots = [point for piece in pieces for point in piece if has_dots or len(piece) == 1]
            path = "" if has_no_line else " ".join(_join(piece) for piece in pieces if len(piece) > 1)
            shapes.append(Shape(number, series.style, path, [(round(x, 1), round(y, 1)) for x, y in dots]))
        x_ticks = self._choose_x_ticks(x_low, x_high, [x for x, _ in finite])
        return Drawing(
            x_ticks=[(round(place((x, y_low))[0], 1), name) for x, name in x_ticks],
            y_ticks=[(round(place((x_low, y))[1], 1), spell(y)) for y in choose_ticks(y_low, y_high, 4)],
            marks=[round(place((x, y_low))[0], 1) for x in self.marks if x_low <= x <= x_high],
            shapes=shapes,
        )

    def _place_x(self, x: float) -> float:
        return math.log10(x) if self.x_log else _limit(x)

    def _find_x_range(self, values: Sequence[float]) -> Point:
        if self.x_names:
            return -0.5, len(self.x_names) - 0.5
        if self.x_range is None:
            return _widen(values)
        low, high = map(self._place_x, self.x_range)
        return low, high

    def _choose_x_ticks(self, low: float, high: float, values: Sequence[float]) -> list[tuple[float, str]]:
        """Return the places of ticks, and their texts."""
        if self.x_names:
            stride = max(1, math.ceil(len(self.x_names) / _MOST_NAMES))
            return [(float(place), name) for place, name in enumerate(self.x_names)][::stride]
        if self.x_log:
            return [(math.log10(x), spell(x)) for x in choose_log_ticks(low, high)]
        are_whole = all(float(x).is_integer() for x in values)
        return [(x, spell(x)) for x in choose_ticks(low, high, 5) if x.is_integer() or not are_whole]


@dataclass(frozen=True)
class Shape:
    """A series in pixels. number: selects its colour. path: of SVG."""

    number: int
    style: str
    path: str
    dots: Sequence[Point] = ()


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels. A tick is its place and its text."""

    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    marks: Sequence[float] = ()
    shapes: Sequence[Shape] = ()
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    size: Point = (WIDTH, HEIGHT)


def draw_histogram(title: str, values: np.ndarray, unit: str, *, limits: Point | None = None) -> Chart:
    """Make a histogram of the values `[N]`, with about 20 bars over their range, or over `limits`."""
    values = values[np.isfinite(values)]
    if values.dtype.kind == "i" and len(values):
        counts, edges = np.histogram(values, bins=choose_whole_edges(values, at_most=_BARS))
        limits = (float(edges[0]), float(edges[-1]))
    else:
        counts, edges = np.histogram(values, bins=_BARS, range=limits)
    return draw_bars(title, counts, edges, unit, limits=limits)


def draw_bars(
    title: str,
    counts: Sequence[int] | np.ndarray,
    edges: Sequence[float] | np.ndarray,
    unit: str,
    *,
    limits: Point | None = None,
) -> Chart:
    """Make a histogram of `[B]` counts. edges: `[B + 1]` of the bars."""
    points = [(float(edge), float(count)) for edge, count in zip(edges, [*counts, 0], strict=True)]
    return Chart(title, unit, [Series("rows", points, "bars")], x_range=limits)


def choose_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`.

    >>> choose_ticks(0.03, 0.97, 4)
    [0.25, 0.5, 0.75]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]


def choose_log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between 10**low and 10**high; in a narrow range also other round numbers.

    >>> choose_log_ticks(-5, -3), choose_log_ticks(0.9, 1.9)
    ([1e-05, 0.0001, 0.001], [10.0, 20.0, 50.0])
    """
    powers = range(math.floor(low), math.floor(high) + 1)
    if high - low < 0.7:
        return choose_ticks(10**low, 10**high, 4)
    if high - low < 2:
        ticks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    else:
        ticks = [float(f"1e{power}") for power in powers][:: math.ceil(len(powers) / _MOST_NAMES)]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def spell(value: float) -> str:
    """Format a number for an axis or a table, in few characters.

    >>> [spell(value) for value in (0, 12000, 2500000, 7.5e-4, 0.25, 3)]
    ['0', '12k', '2.5M', '7.5e-4', '0.25', '3']
    """
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if size >= 1e4 else f"{value:.4g}"


def thin_out(points: Sequence[Point]) -> list[Point]:
    """Return at most about `_MOST_POINTS` of the points: of each interval the lowest, the highest and a gap."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    thinned: list[Point] = []
    interval = math.ceil(2 * len(points) / _MOST_POINTS)
    for start in range(0, len(points), interval):
        part = points[start : start + interval]
        finite = [point for point in part if math.isfinite(point[1])]
        ends = {choose(finite, key=lambda point: point[1]) for choose in (min, max)} if finite else set()
        thinned += sorted(ends)
        if len(finite) < len(part):
            thinned.append((part[-1][0], math.nan))
    return thinned


def _limit(value: float) -> float:
    """Limit a number so that differences and ratios can be computed: tiny ones are 0, huge ones are nan."""
    return 0.0 if abs(value) < 1e-200 else value if abs(value) < 1e200 else math.nan


def _widen(values: Sequence[float]) -> Point:
    """Return the range of some values; a single value gets a margin, and zero the range from 0 to 1."""
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = abs(low) / 2
        return low - margin, high + margin
    return low, high


def _split(points: Iterable[Point]) -> list[list[Point]]:
    """Return the runs of points between gaps."""
    runs = itertools.groupby(points, key=lambda point: all(map(math.isfinite, point)))
    return [list(run) for is_finite, run in runs if is_finite]


def _join(points: Sequence[Point]) -> str:
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _outline(points: Sequence[Point], base: float) -> str:
    """Return the bars of a histogram as one SVG path."""
    bars = [
        f"M{x:.1f},{base:.1f}V{y:.1f}H{following[0]:.1f}V{base:.1f}"
        for (x, y), following in itertools.pairwise(points)
        if base - y > 0.05
    ]
    return "".join(bars)


def _describe(series: Series) -> str:
    values = [y for _, y in series.points if math.isfinite(y)]
    if not values:
        return f"{series.name}: no number."
    first, last, low, high = map(spell, (values[0], values[-1], min(values), max(values)))
    if series.style == "bars":
        return f"{series.name}: {plural(len(values) - 1, 'bar')}, the highest {high}."
    return f"{series.name}: {plural(len(values), 'point')}, first {first}, last {last}, from {low} to {high}."
