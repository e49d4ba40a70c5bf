"""One HTML file that needs nothing else: styles, scripts and data are in it, and its policy forbids any request."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dnnbench.outputs import finite
from dnnbench.report_data import Cell, Chart, Section, Table, number, percent, visible

ASSETS = Path(__file__).parent / "assets"
# Plotly makes style sheets, which the policy forbids, unless there are some of these names: its own, to which it adds
# rules, and one of a library within it for maps, which are not drawn here.
PLOTLY_STYLE = "plotly.js-style-global"
_MAP_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')
SHARES = {"waiting"}


def page(title: str, subtitle: str, sections: Sequence[Section]) -> bytes:
    """The file's bytes (UTF-8)."""
    from plotly.offline import get_plotlyjs

    style, script = _asset("report.css"), _asset("report.js")
    plotly: str = get_plotlyjs()
    charts = [chart for section in sections for chart in section.charts]
    scripts = [plotly, script] if charts else [script]
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy([style, " "], scripts)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{text(title)}</title>",
        f"<style>{style}</style>",
        *(f'<style id="{name}"> </style>' for name in (PLOTLY_STYLE, *_MAP_STYLE.findall(plotly))),
        "</head>",
        "<body>",
        '<a class="skip" href="#main">Skip to the figures</a>',
        f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p>",
        "<noscript><p>The plots need JavaScript; the same numbers are in the table below each.</p></noscript>",
        _contents(sections),
        "</header>",
        '<main id="main" tabindex="-1">',
        *_sections(sections),
        "</main>",
        f'<script type="application/json" id="figures">{_json([_figure(chart) for chart in charts])}</script>',
        *(f"<script>{source}</script>" for source in scripts),
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(parts).encode()


def text(value: Any) -> str:
    """A text as HTML that is nothing but text."""
    return html.escape(visible(value))


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    allowed = {"script-src": scripts, "style-src": styles}
    hashes = "; ".join(f"{kind} {' '.join(map(_hash, sources))}" for kind, sources in allowed.items())
    # Plotly tries images that it holds itself.
    return f"default-src 'none'; {hashes}; img-src data:; base-uri 'none'; form-action 'none'"


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that ends no script element, whatever it holds."""
    dumped = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figure(chart: Chart) -> dict[str, Any]:
    return {"data": chart.data, "layout": chart.layout, "height": chart.height}


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{text(one.id)}">{text(one.id.capitalize())}</a></li>' for one in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield f'<section id="{text(section.id)}" aria-labelledby="{text(section.id)}-title">'
        yield f'<h2 id="{text(section.id)}-title">{text(section.title)}</h2>'
        if len(section.lead) == 1:
            yield f'<p class="lead">{_lead(section.lead[0])}</p>'
        elif section.lead:
            yield f'<ul class="lead">{"".join(f"<li>{_lead(line)}</li>" for line in section.lead)}</ul>'
        if section.missing:
            yield f'<p class="missing">{text(section.missing)}</p>'
        if section.charts:
            yield '<div class="charts">'
            for number_, chart in enumerate(section.charts, start=1):
                yield from _chart(f"{section.id}-{number_}", chart)
            yield "</div>"
        for name, table in section.tables:
            yield from _sortable(name, table) if section.id == "benchmarks" else _origin(name, table)
        yield "</section>"


def _lead(line: str | tuple[str, str]) -> str:
    return text(line) if isinstance(line, str) else f"<strong>{text(line[0])}</strong>{text(line[1])}"


def _chart(name: str, chart: Chart) -> Iterator[str]:
    yield f'<figure><figcaption id="{name}-title">{text(chart.title)}</figcaption>'
    yield f'<div class="chart" role="img" aria-labelledby="{name}-title"></div>'
    yield f'<details><summary>Numbers<span class="hidden"> of: {text(chart.title)}</span></summary>'
    yield _table(chart.table)
    yield "</details></figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: Cell, share: bool = False) -> str:
    if isinstance(value, str):
        return f"<td>{text(value)}</td>"
    if value is None or not math.isfinite(value):
        return '<td class="number">–</td>'
    shown = percent(value) if share else f"{value:,}" if isinstance(value, int) else number(value)
    # The whole value, which sorting needs, too.
    return f'<td class="number" data-value="{value!r}">{shown}</td>'


def _sortable(name: str, table: Table) -> Iterator[str]:
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{text(column)}</button></th>'
        for column in table.header
    )
    rows = "".join(
        f"<tr>{''.join(_cell(v, column in SHARES) for column, v in zip(table.header, row, strict=True))}</tr>"
        for row in table.rows
    )
    yield f'<p><label>Show only rows with <input type="search" id="{name}-table-filter" autocomplete="off"></label> '
    yield f'<output id="{name}-table-shown" for="{name}-table-filter">{len(table.rows)} rows</output></p>'
    yield '<div class="scroll" tabindex="0" role="region" aria-label="Every benchmark">'
    yield f'<table class="sortable" id="{name}-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _origin(name: str, table: Table) -> Iterator[str]:
    yield f'<h3>{text(name)}</h3><div class="scroll" tabindex="0"><table class="origin"><tbody>'
    for key, value in table.rows:
        shown = text(value if isinstance(value, str) else f"{value:,}")
        if len(shown) > 400:
            shown = f"<details><summary>Show</summary><code>{shown}</code></details>"
        yield f'<tr><th scope="row">{text(key)}</th><td>{shown}</td></tr>'
    yield "</tbody></table></div>"
