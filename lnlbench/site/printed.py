"""What papers report on a suite, laid out as methods by levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lnlbench.leaderboard.reported import ReportedPaper, ReportedRow
from lnlbench.site.model import Site, SuiteResults

_KEY = ("paper", "table", "method", "method_id", "variant", "metric", "score_kind", "score_actual", "backbone")
_FURTHER = ("initialisation", "provenance", "origin", "trials")


@dataclass(frozen=True)
class PrintedCell:
    """A printed number."""

    text: str
    """Accuracy in percent, as printed."""
    spread: str
    """Its standard deviation, as printed."""
    notes: tuple[int, ...]
    """Numbers of the notes about it."""


@dataclass(frozen=True)
class PrintedLine:
    """A method of a paper's table, with all its numbers on the suite."""

    row: ReportedRow
    """One of them: they differ in level, number and note only."""
    name: str
    """Name of the method."""
    paper: ReportedPaper
    """Who prints it."""
    cells: tuple[tuple[PrintedCell, ...], ...]
    """By column."""
    url: str
    """Page of the method; empty if there is none."""


@dataclass(frozen=True)
class PrintedTable:
    """All reported numbers of a suite."""

    columns: tuple[str, ...]
    """Levels, or what the numbers are about if not a level by itself."""
    lines: tuple[PrintedLine, ...]
    """In the order of the file."""
    notes: tuple[str, ...]
    """What must be known before a number is compared with another one."""
    several_metrics: bool
    """Whether there are top-5 accuracies among them."""


def printed_table(site: Site, results: SuiteResults) -> PrintedTable | None:
    """Lay out the reported numbers of a suite; ``None`` if there are none."""
    rows = results.reported
    if not rows:
        return None
    columns = tuple(dict.fromkeys(sorted((_column(row) for row in rows), key=_order)))
    notes = tuple(dict.fromkeys(row.note for row in rows if row.note))
    groups: dict[tuple[object, ...], list[ReportedRow]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in (*_KEY, *_FURTHER)), []).append(row)
    lines = tuple(_line(site, group, columns, notes) for group in groups.values())
    return PrintedTable(columns, lines, notes, len({row.metric for row in rows}) > 1)


def _line(site: Site, group: Sequence[ReportedRow], columns: Sequence[str], notes: Sequence[str]) -> PrintedLine:
    cells: dict[str, list[PrintedCell]] = {column: [] for column in columns}
    for row in group:
        numbers = (notes.index(row.note) + 1,) if row.note else ()
        cells[_column(row)].append(PrintedCell(row.accuracy, row.sd, numbers))
    first = group[0]
    paper = site.reported.papers[first.paper]
    name = site.reported.name(first)
    url = site.method_url(first.method_id.rpartition("+")[2])
    return PrintedLine(first, name, paper, tuple(tuple(cells[column]) for column in columns), url)


def _column(row: ReportedRow) -> str:
    if row.mean_of:
        levels = [each.rpartition(f"{row.suite}@")[2] for each in row.mean_of.split()]
        return f"mean of {', '.join(levels)}"
    return row.level or "all levels"


def _order(column: str) -> tuple[bool, str]:
    return not column[0].isdecimal(), column
