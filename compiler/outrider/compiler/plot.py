"""A chart of candidates as a file: PNG by matplotlib, or one HTML page that needs nothing but a browser."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.compiler.pareto import Chart, Point
from outrider.runtime.durable import storage_errors, whole_file
from outrider.runtime.errors import UsageError

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 520, 90, 200, 50, 60  # pixels; margins hold labels
_CHOSEN, _FRONT, _OTHER = "#c0392b", "#2c6fbb", "#9aa0a6"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px system-ui, sans-serif; margin: 2em; }} td, th {{ padding: 2px 12px; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }} svg text {{ font: 12px system-ui, sans-serif; }}</style></head>
<body>
{svg}
<table><tr><th>candidate</th><th>{x}</th><th>{y}</th><th>rank</th></tr>
{rows}
</table>
</body></html>
"""


def draw(chart: Chart, path: Path) -> None:
    """Write the chart to a `.png` or `.html`. Raises UsageError where matplotlib is missing, StorageError."""
    data = _png(chart) if path.suffix == ".png" else page(chart).encode()
    with storage_errors(f"write {path}"), whole_file(path) as file:
        file.write(data)


def page(chart: Chart) -> str:
    """The chart as an HTML page, with its figures as a table."""
    rows = "\n".join(_table_row(point) for point in sorted(chart.points, key=lambda point: point.x))
    return _PAGE.format(
        title=_escaped(chart.title), svg=svg(chart), x=_escaped(chart.x_label), y=_escaped(chart.y_label), rows=rows
    )


def _table_row(point: Point) -> str:
    cells = (_escaped(point.name), f"{point.x:.4g}", f"{point.y:.3g}", str(point.rank or ""))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def svg(chart: Chart) -> str:
    """The chart as SVG."""
    across = _Axis.over([point.x for point in chart.points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis.over([point.y for point in chart.points], _HEIGHT - _BOTTOM, _TOP)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f'<text x="{_LEFT}" y="24" font-weight="bold">{_escaped(chart.title)}</text>',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" stroke="#444"/>',
        *(_tick_across(across, value, bottom) for value in across.ticks()),
        *(_tick_up(up, value, right) for value in up.ticks()),
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{_escaped(chart.x_label)}</text>',
        f'<text transform="translate(18 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{_escaped(chart.y_label)}</text>",
        _front(chart.points, across, up),
        *(_dot(point, across, up) for point in chart.points),
        "</svg>",
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class _Axis:
    """Values to pixels, by their logarithm where they differ much and none is 0."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        logarithmic = low > 0 and high / low > 20
        if logarithmic:
            return cls(low / 1.5, high * 1.5, start, end, True)
        room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end, False)

    def place(self, value: float) -> float:
        low, high, at = (self._scaled(one) for one in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            tens = [10.0**power for power in range(first, last + 1)]
            found = tens if last - first > 3 else [ten * digit for ten in tens for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            ten = 10.0 ** math.floor(math.log10(rough))
            step = next(ten * digit for digit in (1, 2, 5, 10) if ten * digit >= rough)
            first = math.ceil(self.low / step)
            found = [(first + number) * step for number in range(7)]
        return [value for value in found if self.low <= value <= self.high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _tick_across(axis: _Axis, value: float, bottom: float) -> str:
    x = axis.place(value)
    line = f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}" stroke="#e3e3e3"/>'
    return f'{line}<text x="{x}" y="{bottom + 18}" text-anchor="middle">{value:.3g}</text>'


def _tick_up(axis: _Axis, value: float, right: float) -> str:
    y = axis.place(value)
    line = f'<line x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#e3e3e3"/>'
    return f'{line}<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'


def _front(points: Sequence[Point], across: _Axis, up: _Axis) -> str:
    """A line through what nothing beats in both."""
    on_front = sorted((point.x, point.y) for point in points if point.on_front)
    places = " ".join(f"{across.place(x)},{up.place(y)}" for x, y in on_front)
    return f'<polyline points="{places}" fill="none" stroke="{_FRONT}" stroke-dasharray="5 4"/>'


def _dot(point: Point, across: _Axis, up: _Axis) -> str:
    x, y, name = across.place(point.x), up.place(point.y), _escaped(point.name)
    tip = f"<title>{name}: {point.x:.4g}, {point.y:.3g}</title>"
    dot = f'<circle cx="{x}" cy="{y}" r="{6 if point.rank else 5}" fill="{_colour(point)}">{tip}</circle>'
    return f'{dot}<text x="{x + 9}" y="{y + 4}">{name}</text>'


def _colour(point: Point) -> str:
    return _CHOSEN if point.rank == 1 else _FRONT if point.on_front else _OTHER


def _escaped(text: str) -> str:
    return html.escape(text)


def _png(chart: Chart) -> bytes:
    import io

    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        raise UsageError(
            f"a plot as PNG needs the package {e.name}", hint="pip install 'outrider[plot]', or name an .html file"
        ) from e
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    across, up = (_Axis.over([getattr(point, side) for point in chart.points], 0, 1) for side in ("x", "y"))
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.set(xscale="log" if across.logarithmic else "linear", yscale="log" if up.logarithmic else "linear")
    on_front = sorted((point.x, point.y) for point in chart.points if point.on_front)
    axes.plot([x for x, _ in on_front], [y for _, y in on_front], "--", color=_FRONT)
    for point in chart.points:
        axes.scatter([point.x], [point.y], color=_colour(point), zorder=3)
        axes.annotate(point.name, (point.x, point.y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.1)  # for the names
    axes.grid(visible=True, color="#e3e3e3")
    made = io.BytesIO()
    figure.savefig(made, format="png")
    return made.getvalue()
