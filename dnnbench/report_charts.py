"""Plots as Plotly's JSON: bars, lines, steps. What they show is chosen in `report_sections`.

Nothing is told by colour alone: lines differ in dashes and markers, bars in patterns. Every text that comes from a
result goes through `plot_text`, because Plotly takes tags in any text for formatting.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dnnbench.report_data import number, visible

# Told apart by most people whose eyes tell fewer colours (Okabe and Ito), on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6bb1", "#7f7f7f")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "pentagon", "hexagon")
PATTERNS = ("", "/", ".", "x", "-", "+", "\\", "|")
# On white and on black.
GREY = "#808080"
# Letters of a tick's text on one line.
TICK_LETTERS = 24
ROW_PX = 42
EDGES_PX = 80
# Of a bar's length, for the figure at its end.
ROOM = 1.3
Json = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """What a series looks like, in every chart of the report."""

    number: int

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def dash(self) -> str:
        return DASHES[self.number % len(DASHES)]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.number % len(SYMBOLS)]

    @property
    def pattern(self) -> Json:
        return {"shape": PATTERNS[self.number % len(PATTERNS)], "fillmode": "overlay", "size": 6, "solidity": 0.25}


def plot_text(text: Any, most: int | None = 80) -> str:
    """A text for Plotly, in which nothing is a tag."""
    return visible(text, most).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tick_text(*lines: str) -> str:
    """The text at a bar, on as many lines as it takes."""
    broken = [part for line in lines for part in textwrap.wrap(visible(line, 80), TICK_LETTERS) or [""]]
    return "<br>".join(plot_text(part) for part in broken)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: ``value`` is its length, ``points`` the single runs where there are several."""

    ticks: tuple[str, ...]
    value: float
    style: Style
    hover: str = ""
    points: Sequence[float] = ()


def bars(several: Sequence[Bar], axis: str, cut: float = math.inf) -> tuple[list[Json], Json, int]:
    """(data, layout, height) of horizontal bars, the first at the top, from zero on; ``axis`` names the unit.

    Bars beyond ``cut`` leave the plot, and their figures stand at its edge; the points of the others never do.
    """
    places = list(range(len(several)))
    shown = [one for one in several if one.value <= cut]
    # A little more, lest rounding puts the longest one out.
    edge = ROOM * 1.001 * max((max(one.value, *one.points, 0) for one in shown), default=0) or 1
    if len(shown) < len(several):
        edge = max([cut, *(ROOM * point for one in shown for point in one.points)])
    data: list[Json] = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [one.value for one in several],
            "y": places,
            "hovertext": [plot_text(one.hover, None) for one in several],
            "hoverinfo": "text",
            "marker": {
                "color": [one.style.colour for one in several],
                "pattern": {
                    "shape": [one.style.pattern["shape"] for one in several],
                    **{key: several[0].style.pattern[key] for key in ("fillmode", "size", "solidity")},
                },
            },
            "showlegend": False,
        }
    ]
    points = [(place, value) for place, one in zip(places, several, strict=True) for value in one.points]
    if points:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [value for _, value in points],
                "y": [place for place, _ in points],
                "hovertext": [f"one run: {number(value)}" for _, value in points],
                "hoverinfo": "text",
                "marker": {"symbol": "circle", "size": 7, "color": "#fff", "line": {"width": 1.5, "color": "#333"}},
                "showlegend": False,
            }
        )
    # Beside a point, a figure would pass for that point's: then all stand in a column at the edge.
    beside = [(place, one) for place, one in enumerate(several) if not points and one.value * ROOM <= edge]
    others = [(place, one) for place, one in enumerate(several) if (place, one) not in beside]
    data.append(
        {
            "type": "scatter",
            "mode": "text",
            "x": [one.value for _, one in beside],
            "y": [place for place, _ in beside],
            "text": [f"\u00a0{number(one.value)}" for _, one in beside],
            "textposition": "middle right",
            "cliponaxis": False,
            "hoverinfo": "skip",
            "showlegend": False,
        }
    )
    layout: Json = {
        "xaxis": {"title": {"text": axis}, "range": [0, edge], "zeroline": True},
        "yaxis": {
            "tickmode": "array",
            "tickvals": places,
            "ticktext": [tick_text(*one.ticks) for one in several],
            "range": [len(several) - 0.5, -0.5],
            "showgrid": False,
        },
        "bargap": 0.35,
        "annotations": [
            words(
                f"{number(one.value)}{' ▸' * (one.value > edge)}",
                x=edge if points else min(one.value, edge),
                xanchor="right",
                y=place,
                bgcolor="#fff",
                font={"size": 12},
            )
            for place, one in others
        ],
    }
    return data, layout, height_of(layout["yaxis"]["ticktext"])


def height_of(ticktext: Sequence[str]) -> int:
    """Pixels of a plot with a row for each of these texts."""
    return int(EDGES_PX + ROW_PX * sum(max(1.0, 0.5 + 0.4 * text.count("<br>")) for text in ticktext))


def line(x: Sequence[float], y: Sequence[float], name: str, style: Style, hover: Iterable[str], **others: Any) -> Json:
    """A line of a series; ``others`` are more of Plotly's keys."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "name": plot_text(name, 50),
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9},
        "hovertext": [plot_text(text, None) for text in hover],
        "hoverinfo": "text",
    } | others


def mark(x: Sequence[float], y: Sequence[float], symbol: str | list[str], style: Style, **others: Any) -> Json:
    """Markers without a line."""
    marker = {"symbol": symbol, "size": 10, "color": style.colour, "line": {"width": 1.5, "color": GREY}}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": marker,
        "showlegend": False,
    } | others


def from_zero(values: Iterable[float]) -> Json:
    """An axis from zero on, with room above the highest value."""
    return {"range": [0, 1.1 * max(values, default=0) or 1], "zeroline": True}


def log_ticks(values: Iterable[float]) -> Json:
    """Whole figures on a logarithmic axis: powers of ten, and 2 and 5 times them where there are few."""
    found = [value for value in values if value > 0] or [1.0]
    decades = range(math.floor(math.log10(min(found))), math.ceil(math.log10(max(found))) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:,.10g}" for tick in ticks]}


def rule(**place: Any) -> Json:
    """A straight line across a plot, such as ``x0=1, x1=1, y0=0, y1=1, yref="paper"``."""
    return {"type": "line", "line": {"color": GREY, "width": 1, "dash": "dot"}} | place


def words(text: str, **place: Any) -> Json:
    """A note within a plot."""
    return {"text": plot_text(text), "showarrow": False, "font": {"size": 11}} | place
