"""Plots as inline SVG: text that takes its colours from the page, and the same bytes from the same numbers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_COLOURS = 8
"""Series colours of the page, as classes ``s1`` to ``s8``."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Further series repeat the colours with the next pattern."""
_MARKS = ("circle", "square", "triangle", "diamond", "cross", "down", "plus", "bar")

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 26, 42
_LEGEND_ROW = 18
_CHARACTER = 6.4
"""Width of a character of a label in pixels, on average."""
_LONGEST_NAME = 40
_LONGEST_CLASS = 14
_FURTHEST = 1e15
"""Beyond that, differences of numbers are no longer exact; nothing that is plotted comes near it."""
_EMPTY = (0.0, 1.0)


@dataclass(frozen=True)
class Series:
    """A line, or a point."""

    name: str
    """What the legend calls it."""
    points: tuple[tuple[float, float], ...]
    """x and y, finite."""
    spread: tuple[float | None, ...] = ()
    """For each point, half the length of its error bar; ``None``: none. Empty: no bars at all."""


@dataclass(frozen=True)
class _Axis:
    """Where numbers are, between two ends in pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        return self.places([value])[0]

    def places(self, values: Iterable[float]) -> list[float]:
        """Return where numbers are; those beyond an end are there."""
        low, high = self.low, self.high
        values = [min(max(value, low), high) for value in values]
        if self.logarithmic:
            values, low, high = [math.log10(value) for value in values], math.log10(low), math.log10(high)
        start, span, length = self.start, high - low, self.end - self.start
        return [start + (value - low) / span * length for value in values]


def lines(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    marks: bool = False,
    count: int | None = None,
    id_prefix: str,
) -> Markup:
    """Draw lines, with error bars where there is a spread, and a legend if there is more than one.

    Args:
        title: Name of the picture.
        description: What it shows, for those who do not see it.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Quantity and unit of the vertical axis.
        series: The lines.
        marks: Whether each point has a mark; its shape differs from line to line.
        count: If the horizontal axis counts from 1 to some number, that number: the axis is the same for all pictures
            of a page, and has marks at whole numbers only.
        id_prefix: What the ids inside begin with; another one for each picture of a page.
    """
    xs = [x for each in series for x, _ in each.points] if count is None else [1.0, float(count)]
    ys = [y for each in series for _, y in each.points]
    for each in series:
        ys += [y + side * (sd or 0.0) for (_, y), sd in zip(each.points, each.spread, strict=False) for side in (-1, 1)]
    x_axis = _axis(xs, _LEFT, _WIDTH - _RIGHT, padding=0.02)
    y_axis = _axis(ys, _HEIGHT - _BOTTOM, _TOP)
    drawn = [_line(number, each, x_axis, y_axis, marks) for number, each in enumerate(series)]
    names = [each.name for each in series] if len(series) > 1 else []
    legend, height = _legend(names, marks)
    parts = [_frame(x_axis, y_axis, x_label, y_label, whole_x=count is not None), *drawn, legend]
    return _picture(title, description, parts, _HEIGHT + height, id_prefix)


def scatter(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    front: tuple[tuple[float, float], ...] = (),
    id_prefix: str,
) -> Markup:
    """Draw named points. Where names would cover each other some are left out; pointing at a point tells its name.

    Args:
        title: Name of the picture.
        description: What it shows, for those who do not see it.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Quantity and unit of the vertical axis.
        series: The points, each a series of one; those named first get their names first.
        log_x: Whether the horizontal axis is logarithmic; all x are then positive.
        front: Points joined by steps, from left to right and upwards. They are drawn filled.
        id_prefix: What the ids inside begin with; another one for each picture of a page.
    """
    points = [(each.name, *each.points[0]) for each in series if each.points]
    xs = [x for _, x, _ in points]
    x_axis = _axis(xs, _LEFT, _WIDTH - _RIGHT, padding=0.08, logarithmic=log_x and min(xs, default=0.0) > 0)
    y_axis = _axis([y for _, _, y in points], _HEIGHT - _BOTTOM, _TOP, padding=0.1)
    # Names of the front come first: they are what the picture is about.
    ordered = sorted(points, key=lambda each: each[1:] not in front)
    parts = [_frame(x_axis, y_axis, x_label, y_label), _steps(front, x_axis, y_axis)]
    parts += [_point(name, x_axis(x), y_axis(y), (x, y) in front) for name, x, y in points]
    parts += _labels([(name, x_axis(x), y_axis(y)) for name, x, y in ordered])
    return _picture(title, description, parts, _HEIGHT, id_prefix)


def matrix(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    shares: Sequence[Sequence[float]],
    *,
    names: Sequence[str] = (),
    id_prefix: str,
) -> Markup:
    """Draw a matrix as shades: the darker, the larger; the shade is the square root, so that small ones show.

    Args:
        title: Name of the picture.
        description: What it shows, for those who do not see it.
        x_label: What the columns are.
        y_label: What the rows are.
        shares: Rows of numbers in [0, 1], all of one length.
        names: What rows and columns are called, as many as there are rows; by default they have numbers.
        id_prefix: What the ids inside begin with; another one for each picture of a page.
    """
    rows, columns = len(shares), max(map(len, shares), default=0)
    cell = 260 / max(rows, columns, 1)
    width, height = cell * columns, cell * rows
    numbers = range(max(rows, columns))
    texts = [_shortened(name, _LONGEST_CLASS) for name in names] or [str(number) for number in numbers]
    longest = _CHARACTER * max(map(len, texts)) if names else 0.0
    x, y = 44 + math.ceil(max(longest - 18, 0)), 26
    at = f'x="{x}" y="{y}" width="{_n(width)}" height="{_n(height)}"'
    data = f"data:image/png;base64,{_shades(shares)}"
    parts = [
        f'<text class="name" x="{x}" y="14">{escape(x_label)} →</text>',
        f'<text class="name" transform="translate(10 {y}) rotate(90)">{escape(y_label)} →</text>',
        f'<image class="shades" {at} preserveAspectRatio="none" href="{data}"/>',
        f'<rect class="box" {at}/>',
    ]
    step = 1 if names else max(1, math.ceil(columns / 12))
    for number in range(0, columns, step):
        left = _n(x + (number + 0.5) * cell)
        below = f'x="{left}" y="{_n(y + height + 14)}"'
        # Names are longer than a cell is wide.
        turned = f'transform="translate({left} {_n(y + height + 10)}) rotate(-45)"'
        kind, place = ("end", turned) if names else ("middle", below)
        parts.append(f'<text class="tick {kind}" {place}>{escape(texts[number])}</text>')
    for number in range(0, rows, step):
        top = _n(y + (number + 0.5) * cell + 4)
        parts.append(f'<text class="tick end" x="{x - 5}" y="{top}">{escape(texts[number])}</text>')
    if max(rows, columns) <= 10:
        parts += [
            f'<text class="share{" dark" if share > 0.2 else ""}" x="{_n(x + (column + 0.5) * cell)}"'
            f' y="{_n(y + (row + 0.5) * cell + 3.5)}">{_percent(share)}</text>'
            for row, line in enumerate(shares)
            for column, share in enumerate(line)
        ]
    bottom = math.ceil(y + height + max(22, 14 + 0.72 * longest))
    return _picture(title, description, parts, bottom, id_prefix, width=math.ceil(x + width + 8))


def _picture(
    title: str, description: str, parts: Iterable[str], height: int, id_prefix: str, width: int = _WIDTH
) -> Markup:
    prefix = escape(id_prefix)
    return Markup(  # noqa: S704 - all texts in the parts are escaped
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" aria-labelledby="{prefix}-t {prefix}-d">'
        f'<title id="{prefix}-t">{escape(title)}</title><desc id="{prefix}-d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _axis(values: Sequence[float], start: float, end: float, padding: float = 0.05, logarithmic: bool = False) -> _Axis:
    """Return an axis with room for all values."""
    values = [min(max(value, -_FURTHEST), _FURTHEST) for value in values] or _EMPTY
    low, high = min(values), max(values)
    if logarithmic:
        low, high = max(low, 1 / _FURTHEST), max(high, 1 / _FURTHEST)
        ratio = max(high / low, 1.5) ** padding
        return _Axis(low / ratio, high * ratio, start, end, logarithmic=True)
    room = padding * (high - low) or 0.05 * abs(high) or 0.5
    return _Axis(low - room, high + room, start, end)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str, whole_x: bool = False) -> str:
    """Draw ticks, a thin line at each tick of the vertical axis, and the names of the axes."""
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for value in _ticks(y_axis):
        y = _n(y_axis(value))
        parts.append(f'<path class="rule" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{_n(y_axis(value) + 4)}">{_short(value)}</text>')
    for value in _ticks(x_axis, whole_x):
        x = _n(x_axis(value))
        parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 17}">{_short(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text class="name" x="{_LEFT}" y="14">{escape(y_label)}</text>')
    parts.append(f'<text class="name end" x="{_WIDTH - _RIGHT}" y="{bottom + 36}">{escape(x_label)}</text>')
    return "".join(parts)


def _ticks(axis: _Axis, whole: bool = False) -> list[float]:
    if axis.logarithmic:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        decades = last - first
        factors = (1, 2, 5) if decades <= 3 else (1,)
        every = max(1, decades // 7)
        found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        return [value for value in found if axis.low <= value <= axis.high]
    raw = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.85 * raw)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(axis.low / step), math.floor(axis.high / step)
    # Rounding takes away what adding up steps leaves behind the last digit.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(number * step, digits) + 0.0 for number in range(first, last + 1)]


def _line(number: int, series: Series, x_axis: _Axis, y_axis: _Axis, marks: bool) -> str:
    """Draw a line with its error bars and marks."""
    if not series.points:
        return ""
    across, up = zip(*series.points, strict=True)
    placed = list(zip(x_axis.places(across), y_axis.places(up), strict=True))
    path = "L".join([f"{_n(x)} {_n(y)}" for x, y in placed])
    parts = [f'<g class="s{number % _COLOURS + 1}"><title>{escape(series.name)}</title>']
    parts.append(f'<path class="line" d="M{path}"{_dash(number)}/>')
    for (x, _), (_, value), spread in zip(placed, series.points, series.spread, strict=False):
        if spread:
            top, bottom = y_axis(value + spread), y_axis(value - spread)
            parts.append(f'<path class="bar" d="M{_n(x)} {_n(top)}V{_n(bottom)}m-3 0h6M{_n(x - 3)} {_n(top)}h6"/>')
    # A line of a single point would not be seen.
    if marks or len(placed) == 1:
        parts += [_mark(number, x, y) for x, y in placed]
    parts.append("</g>")
    return "".join(parts)


def _mark(number: int, x: float, y: float) -> str:
    at = f"{_n(x)} {_n(y)}"
    shapes = {
        "circle": f'<circle class="mark" cx="{_n(x)}" cy="{_n(y)}" r="3.2"/>',
        "square": f'<path class="mark" d="M{at}m-3-3h6v6h-6z"/>',
        "triangle": f'<path class="mark" d="M{at}m0-4l3.8 6.6h-7.6z"/>',
        "diamond": f'<path class="mark" d="M{at}m0-4.2l4.2 4.2-4.2 4.2-4.2-4.2z"/>',
        "cross": f'<path class="bar" d="M{at}m-3-3l6 6m0-6l-6 6"/>',
        "down": f'<path class="mark" d="M{at}m0 4l3.8-6.6h-7.6z"/>',
        "plus": f'<path class="bar" d="M{at}m-4 0h8m-4-4v8"/>',
        "bar": f'<path class="mark" d="M{at}m-1.5-4h3v8h-3z"/>',
    }
    return shapes[_MARKS[number % len(_MARKS)]]


def _dash(number: int) -> str:
    dash = _DASHES[number // _COLOURS % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _legend(names: Sequence[str], marks: bool) -> tuple[str, int]:
    """Return the legend, in as many rows as it needs, and its height."""
    parts = []
    x, row = float(_LEFT), 0
    for number, name in enumerate(names):
        short = _shortened(name)
        width = 30 + _CHARACTER * len(short) + 12
        if x > _LEFT and x + width > _WIDTH:
            x, row = float(_LEFT), row + 1
        y = _HEIGHT + row * _LEGEND_ROW + 8
        parts.append(f'<g class="s{number % _COLOURS + 1}"><path class="line" d="M{_n(x)} {y}h22"{_dash(number)}/>')
        parts.append(_mark(number, x + 11, y) if marks else "")
        parts.append(f'</g><text class="key" x="{_n(x + 28)}" y="{y + 4}">{escape(short)}</text>')
        x += width
    return "".join(parts), (row + 1) * _LEGEND_ROW if names else 0


def _point(name: str, x: float, y: float, on_front: bool) -> str:
    kind = "mark" if on_front else "hollow"
    return f'<circle class="{kind} s1" cx="{_n(x)}" cy="{_n(y)}" r="3.6"><title>{escape(name)}</title></circle>'


def _steps(front: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    """Draw the front: to the right at the height of a point, then up to the next one."""
    if not front:
        return ""
    (first_x, first_y), *others = [(_n(x_axis(x)), _n(y_axis(y))) for x, y in front]
    path = "".join(f"H{x}V{y}" for x, y in others)
    return f'<path class="front s1" d="M{first_x} {first_y}{path}H{_WIDTH - _RIGHT}"/>'


def _labels(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Put each name beside its point where it covers neither a point nor another name, or leave it out."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    parts = []
    for name, x, y in points:
        short = _shortened(name)
        width = _CHARACTER * len(short)
        for anchor, left, middle in (
            ("", x + 7, y),
            ("end", x - 7 - width, y),
            ("middle", x - width / 2, y - 11),
            ("middle", x - width / 2, y + 12),
        ):
            box = (left, middle - 6, left + width, middle + 6)
            inside = left >= 2 and box[2] <= _WIDTH - 2 and box[1] >= _TOP - 8 and box[3] <= _HEIGHT - _BOTTOM
            own = (x - 5, y - 5, x + 5, y + 5)
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                at = {"": x + 7, "end": x - 7, "middle": x}[anchor]
                parts.append(f'<text class="key {anchor}" x="{_n(at)}" y="{_n(middle + 4)}">{escape(short)}</text>')
                break
    return parts


def _overlap(left: tuple[float, float, float, float], right: tuple[float, float, float, float]) -> bool:
    return left[0] < right[2] and right[0] < left[2] and left[1] < right[3] and right[1] < left[3]


def _shades(shares: Sequence[Sequence[float]]) -> str:
    """Return a PNG in Base64: black, as opaque as the square root of each number; of nothing, one clear pixel."""
    from PIL import Image

    opacities = [round(255 * math.sqrt(min(max(share, 0.0), 1.0))) for row in shares for share in row]
    size = (len(shares[0]), len(shares)) if opacities else (1, 1)
    pixels = bytes(byte for opacity in opacities or [0] for byte in (0, opacity))
    buffer = io.BytesIO()
    Image.frombytes("LA", size, pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _percent(share: float) -> str:
    return "" if share == 0 else f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"


def _shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _short(value: float) -> str:
    """Write a number of an axis: ``20k`` for 20,000, a real minus sign."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:g}{unit}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _n(value: float) -> str:
    """Write a coordinate with a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
