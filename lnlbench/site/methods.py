"""One page per method: its paper, its options, in what it departs from the paper, and all its results."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from lnlbench.contracts.method import MethodEntry
from lnlbench.errors import PluginError
from lnlbench.leaderboard.aggregate import Row
from lnlbench.leaderboard.render import rows_as_json
from lnlbench.leaderboard.reported import ReportedPaper, ReportedRow, StudyRow
from lnlbench.leaderboard.reported import to_csv as reported_to_csv
from lnlbench.leaderboard.store import to_csv
from lnlbench.plugins import Registered, readme
from lnlbench.site.model import Site, slug
from lnlbench.site.render import render

_DEPARTURES = "departures"
"""Heading of the section of a README that tells in what a method differs from its paper."""

_KINDS = {
    "last10": "Last 10",
    "last": "Last",
    "best": "Best, on the test set",
    "best_val": "Best, on validation",
    "top5_last10": "Top-5, last 10",
}
"""Scores of the table, and what its columns are called."""


@dataclass(frozen=True)
class Option:
    """An option of a method."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True)
class Study:
    """A table in which a paper takes its method apart."""

    number: str
    """Number of the table."""
    measure: str
    """What its cells are."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[StudyRow | None, ...]], ...]
    """Name of the row, then its cells by column."""
    notes: tuple[str, ...]


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield the page of every method that is measured or installed, and the files behind its tables."""
    rows: dict[str, list[Row]] = {name: [] for name in site.methods}
    for row in site.rows():
        rows[row.method].append(row)
    printed: dict[str, list[ReportedRow]] = {name: [] for name in site.methods}
    for results in site.reported.results.values():
        for each in results:
            for name in dict.fromkeys(each.method_id.split("+")):
                if name in printed:
                    printed[name].append(each)
    for name in site.methods:
        yield from _page(site, name, rows[name], printed[name])


def _page(site: Site, name: str, rows: Sequence[Row], printed: Sequence[ReportedRow]) -> Iterator[tuple[str, str]]:
    path = site.method_url(name)
    registered = site.method_entry(name)
    papers = {key: paper for key, paper in site.reported.papers.items() if paper.method_id == name}
    studies = [study for cells in site.reported.studies.values() if (study := _study(cells, papers))]
    stem = f"data/methods/{slug(name)}"
    kinds = [kind for kind in _KINDS if any(getattr(row, f"{kind}_mean") is not None for row in rows)]
    versions = sorted({(row.distribution, row.method_version) for row in rows})
    yield (
        path,
        render(
            "method.html",
            path,
            site=site,
            name=name,
            entry=registered.entry if registered else None,
            provider=registered.provider if registered else None,
            paper=_paper(registered, papers),
            options=_options(registered) if registered else None,
            departures=departures(registered.provider.distribution) if registered else Markup(),
            versions=versions,
            full=[row for row in rows if not row.reduced],
            reduced=[row for row in rows if row.reduced],
            kinds=kinds,
            labels=[_KINDS[kind] for kind in kinds],
            printed=printed,
            studies=studies,
            stem=stem,
        ),
    )
    if rows:
        yield f"{stem}/measured.csv", to_csv(rows).decode()
        yield f"{stem}/measured.json", rows_as_json(rows) + "\n"
    if printed:
        yield f"{stem}/reported.csv", reported_to_csv(printed).decode()
        yield f"{stem}/reported.json", _json(printed)
    cells = [cell for key in site.reported.studies for cell in site.reported.studies[key] if cell.paper in papers]
    if cells:
        yield f"{stem}/studies.csv", reported_to_csv(cells).decode()
        yield f"{stem}/studies.json", _json(cells)


def _json(rows: Sequence[ReportedRow] | Sequence[StudyRow]) -> str:
    lines = ",\n".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def _paper(registered: Registered[MethodEntry] | None, papers: dict[str, ReportedPaper]) -> Any:
    """Return the publication, from the plugin or else from the reported results; ``None`` if nobody knows it."""
    if registered is not None and registered.entry.paper is not None:
        return registered.entry.paper
    return next(iter(papers.values()), None)


def _options(registered: Registered[MethodEntry]) -> list[Option] | None:
    """Return the options of a method; ``None`` if its code cannot be loaded here."""
    try:
        fields = registered.load().Config.model_fields
    except (PluginError, AttributeError):
        return None
    return [Option(name, type_name(field.annotation), field.description or "") for name, field in fields.items()]


def type_name(annotation: object) -> str:
    """Write a type for people.

    >>> type_name(float | None), type_name(typing.Literal["a", "b"]), type_name(tuple[int, ...])
    ('float or none', "'a' or 'b'", 'tuple[int, ...]')
    """
    if annotation is types.NoneType:
        return "none"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(repr(each) for each in typing.get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(each) for each in typing.get_args(annotation))
    if origin is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    return annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)


def _study(cells: Sequence[StudyRow], papers: dict[str, ReportedPaper]) -> Study | None:
    first = cells[0]
    if first.paper not in papers:
        return None
    columns = tuple(dict.fromkeys(cell.column for cell in cells))
    held = {(cell.row, cell.column): cell for cell in cells}
    rows = tuple(
        (row, tuple(held.get((row, column)) for column in columns)) for row in dict.fromkeys(c.row for c in cells)
    )
    notes = tuple(dict.fromkeys(cell.note for cell in cells if cell.note))
    return Study(first.table, ", ".join(dict.fromkeys(cell.measure for cell in cells)), columns, rows, notes)


@cache
def departures(distribution: str) -> Markup:
    """Return the section "Departures" of a distribution's README as HTML; empty if there is none.

    What it says is Markdown, and may come from anybody: HTML in it is shown as text, pictures are left out, and only
    links to the web are links.
    """
    return render_section(readme(distribution), _DEPARTURES)


def render_section(text: str, heading: str) -> Markup:
    """Render the section under a second-level heading of a Markdown text, without the heading; empty if there is none.

    Args:
        text: The whole text, since links may be defined outside the section.
        heading: The heading, in lower case.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    environment: dict[str, Any] = {}
    tokens = _section(parser.parse(text, environment), heading)
    for token in tokens:
        _without_style(token)
        if token.children:
            token.children = _harmless(token.children)
    html = parser.renderer.render(tokens, parser.options, environment)
    scroll = '<div class="scroll" tabindex="0" role="region" aria-label="Table">\n<table>'
    html = (
        html.replace("<table>", scroll).replace("</table>", "</table>\n</div>").replace("<pre>", '<pre tabindex="0">')
    )
    return Markup(html)  # noqa: S704 - the parser escapes


def _section(tokens: Sequence[Token], heading: str) -> list[Token]:
    inside = False
    found: list[Token] = []
    for number, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            inside = tokens[number + 1].content.strip().lower() == heading
            skip = number + 2
        if inside and number > skip:
            found.append(token)
    return found


def _without_style(token: Token) -> None:
    """Say with a class what would be a style: the pages forbid inline styles."""
    style = str(token.attrs.pop("style", ""))
    if style.endswith("right"):
        token.attrs["class"] = "n"


def _harmless(tokens: Sequence[Token]) -> list[Token]:
    """Leave the text of pictures and of links that do not lead to the web: neither would be found on this site."""
    kept = []
    opened: list[bool] = []
    for token in tokens:
        if token.type == "link_open":
            opened.append(str(token.attrs.get("href", "")).startswith(("https://", "http://")))
        dropped = token.type in ("link_open", "link_close") and not opened[-1]
        if token.type == "link_close":
            opened.pop()
        if token.type == "image":
            kept.append(Token("text", "", 0, content=token.content))
        elif not dropped:
            kept.append(token)
    return kept
