"""Curves as inline SVG, whose colours are those of the page: readable in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

# Of the drawing, and what its axes leave of it, in its own units.
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 30, 42


@dataclass(frozen=True)
class Curve:
    """Points of one colour.

    Args:
        name: What the legend calls them.
        points: (x, y), finite, by increasing x.
        form: "line" joins them; "steps" goes down, or up, to the height of a point at the point before it; "dots" and
            "dashes".
    """

    name: str
    points: Sequence[tuple[float, float]]
    form: Literal["line", "steps", "dots", "dashes"] = "line"


def chart(curves: Sequence[Curve], x: str, y: str, *, top: float | None = None) -> str:
    """Curves over common axes that begin at 0, with a legend. Across they end where the points do.

    Args:
        curves: At most five, with one point at least altogether.
        x: What is below the axis.
        y: What is above the other.
        top: The end of the y axis; by default what the points need.

    Returns:
        HTML.
    """
    points = [point for curve in curves for point in curve.points]
    xs, ys = (_ticks(max(point[axis] for point in points)) for axis in (0, 1))
    wide, high = max(point[0] for point in points) or xs[-1], ys[-1] if top is None else top
    xs, ys = [tick for tick in xs if tick <= wide], [tick for tick in ys if tick <= high]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = point[0] / wide, point[1] / high
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    bottom, parts = _HEIGHT - _BOTTOM, []
    for tick in ys:
        _, height = at((0, tick))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in xs:
        across, _ = at((tick, 0))
        parts.append(f'<line class="grid" x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    parts += [_drawn(curve, number, [at(point) for point in curve.points]) for number, curve in enumerate(curves)]
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text x="4" y="15">{escape(y)}</text>')
    keys = "".join(
        f'<li><span class="key {curve.form} c{number}"></span>{escape(curve.name)}</li>'
        for number, curve in enumerate(curves)
    )
    label = escape(f"{y} against {x}: {', '.join(curve.name for curve in curves)}", quote=True)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{drawing}<ul class="legend">{keys}</ul></figure>'


def _drawn(curve: Curve, number: int, points: list[tuple[float, float]]) -> str:
    if curve.form == "dots" or len(points) == 1:
        return "".join(f'<circle class="c{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points)
    if curve.form == "steps":
        corners = [f"V{y:.1f}H{x:.1f}" for x, y in points[1:]]
        path = "".join([f"M{points[0][0]:.1f} {points[0][1]:.1f}", *corners])
    else:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{curve.form} c{number}" d="{path}"/>'


def _ticks(largest: float) -> list[float]:
    """0 and multiples of 1, 2 or 5 times a power of ten, the last of which is no less than `largest`."""
    if not largest > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if largest / (factor * power) <= 6)
    return [round(k * step, 12) for k in range(math.ceil(largest / step * (1 - 1e-9)) + 1)]
