"""Numbers for the page about why scores differ, read from the leaderboards in the repository when the page is built.

The role ``reported`` is one printed cell, written ``css/1/Cross-Entropy/cifar10-sym@0.50``, with the backbone behind it
where a table has the same method with several. The directive ``evidence`` is a table by name; where nothing has been
measured yet, the tables of measured numbers are left out.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from lnlbench.leaderboard.aggregate import Row
from lnlbench.leaderboard.reported import Reported, ReportedRow, read_reported
from lnlbench.leaderboard.store import read_rows

_LOGGER = logging.getLogger(__name__)
_BOARDS = Path(__file__).parents[2] / "leaderboards"
_MOST = 8
_ROUNDING = 0.1
"""Numbers no further apart may be one number with fewer decimals."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("evidence", Evidence)
    app.add_role("reported", ReportedCell())
    return {"parallel_read_safe": True, "parallel_write_safe": True}


@cache
def reported() -> Reported:
    """Return what papers print."""
    return read_reported(_BOARDS / "reported")


def cells() -> Iterator[ReportedRow]:
    """Return every printed cell of a result table."""
    for rows in reported().results.values():
        yield from rows


def measured(boards: Path = _BOARDS) -> list[Row]:
    """Return all rows that were measured with the full protocol; none where there are no boards."""
    rows = [row for path in sorted((boards / "measured").glob("*.csv")) for row in read_rows(path)]
    return [row for row in rows if not row.reduced and row.n]


def find(place: str) -> ReportedRow:
    """Return the cell ``PAPER/TABLE/METHOD/SUITE@LEVEL`` or ``.../BACKBONE``, method as printed.

    Raises:
        LookupError: There is none, or more than one.
    """
    paper, table, method, task, *backbone = place.split("/")
    suite, _, level = task.partition("@")
    found = [
        row
        for row in reported().results.get(suite, ())
        if (row.paper, row.table, row.method, row.level, row.metric) == (paper, table, method, level, "top1")
        and row.backbone == (backbone or [row.backbone])[0]
    ]
    if len(found) != 1:
        raise LookupError(f"{place!r} names {len(found)} printed cells")
    return found[0]


class ReportedCell(SphinxRole):
    """A printed number."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Find it; what is not there is a warning."""
        try:
            return [nodes.Text(find(self.text).accuracy)], []
        except (LookupError, ValueError) as error:
            _LOGGER.warning("reported number: %s", error, location=self.get_location())
            return [], []


class Evidence(SphinxDirective):
    """A table by name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write it as Markdown and have it parsed."""
        return self.parse_text_to_nodes(TABLES[self.arguments[0]]())


def two_rows_of_dividemix() -> str:
    """The best and the last row of DivideMix as they are copied, and by whom."""
    rows = [row for row in cells() if row.method_id == "dividemix" and row.origin.startswith("DivideMix (Li et al.")]
    found: dict[str, dict[str, list[ReportedRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[f"{row.suite}@{row.level}"][row.score].append(row)
    lines = ["| task | best epoch | printed by | last ten | printed by | difference |"]
    lines += ["| --- | --: | --- | --: | --- | --: |"]
    for task, kinds in sorted(found.items()):
        if set(kinds) == {"best", "last10"}:
            best, last = kinds["best"][0].accuracy, kinds["last10"][0].accuracy
            difference = f"{float(best) - float(last):.1f}"
            best_by, last_by = (", ".join(map(_place, kinds[kind])) for kind in ("best", "last10"))
            lines.append(f"| `{task}` | {best} | {best_by} | {last} | {last_by} | {difference} |")
    return "\n".join(lines)


def disagreements() -> str:
    """For each method the task on which different papers print the most different numbers of it."""
    groups: dict[tuple[str, ...], list[ReportedRow]] = defaultdict(list)
    for row in cells():
        if not row.variant and row.metric == "top1" and not row.mean_of:
            name = row.method_id or reported().name(row).casefold()
            groups[name, row.suite, row.level].append(row)
    apart: dict[str, list[ReportedRow]] = {}
    for (name, _, _), rows in groups.items():
        if len({row.paper for row in rows}) > 1 and _apart(rows) > max(_apart(apart.get(name, rows[:1])), _ROUNDING):
            apart[name] = rows
    lines = ["| method | task | printed | apart |", "| --- | --- | --- | --: |"]
    for rows in sorted(apart.values(), key=_apart, reverse=True)[:_MOST]:
        numbers: dict[str, list[str]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: float(row.accuracy)):
            told = [text for text in (row.backbone, row.score) if text and text != "unstated"]
            numbers[row.accuracy].append(": ".join([_place(row), *filter(None, [", ".join(told)])]))
        printed = "; ".join(f"**{number}** ({'; '.join(by)})" for number, by in numbers.items())
        name, task = reported().name(rows[0]), f"{rows[0].suite}@{rows[0].level}"
        lines.append(f"| {name} | `{task}` | {printed} | {_apart(rows):.1f} |")
    return "\n".join(lines)


def _apart(rows: list[ReportedRow]) -> float:
    numbers = [float(row.accuracy) for row in rows]
    return max(numbers) - min(numbers)


def _place(row: ReportedRow) -> str:
    return f"{reported().papers[row.paper].method} T{row.table}"


def silence() -> str:
    """How many printed cells come with what one needs to compare them."""
    rows = list(cells())
    questions: dict[str, Callable[[ReportedRow], bool]] = {
        "which epochs the number is of": lambda row: row.score_kind != "unstated",
        "how many runs it is the mean of": lambda row: row.trials is not None,
        "a standard deviation": lambda row: row.sd != "",
        "the network": lambda row: row.backbone != "",
        "for a number copied from elsewhere, where from": lambda row: row.origin != "" or row.provenance != "quoted",
    }
    lines = ["| told | cells | of all |", "| --- | --: | --: |"]
    for question, is_told in questions.items():
        asked = [row for row in rows if row.provenance == "quoted"] if "copied" in question else rows
        told = sum(map(is_told, asked))
        lines.append(f"| {question} | {told} of {len(asked)} | {100 * told / len(asked):.0f} % |")
    return "\n".join(lines)


def gaps(rows: list[Row] | None = None) -> str:
    """What the best epoch adds to the last ten, for each method measured here."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in measured() if rows is None else rows:
        if row.gap_mean is not None:
            found[row.method].append(row)
    if not found:
        return ""
    lines = ["| method | tasks | `best` minus `last10`, mean | least | most | most on |"]
    lines += ["| --- | --: | --: | --: | --: | --- |"]
    for method, several in sorted(found.items(), key=lambda item: -_mean_gap(item[1])):
        most = max(several, key=lambda row: row.gap_mean or 0.0)
        least = min(row.gap_mean or 0.0 for row in several)
        numbers = f"{_mean_gap(several):.2f} | {least:.2f} | {most.gap_mean:.2f}"
        lines.append(f"| `{method}` | {len(several)} | {numbers} | `{most.suite}@{most.task}` |")
    intro = "Measured here, on the boards in `leaderboards/measured`, full runs, in points:"
    return "\n".join([intro, "", *lines])


def _mean_gap(rows: list[Row]) -> float:
    return statistics.fmean(row.gap_mean or 0.0 for row in rows)


def spreads(rows: list[Row] | None = None) -> str:
    """How far seeds lie apart, for each suite measured here."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in measured() if rows is None else rows:
        if row.last10_std is not None:
            found[row.suite].append(row.last10_std)
    if not found:
        return ""
    lines = ["| suite | rows | standard deviation of `last10` over seeds, median | most |", "| --- | --: | --: | --: |"]
    for suite, deviations in sorted(found.items()):
        median = statistics.median(deviations)
        lines.append(f"| `{suite}` | {len(deviations)} | {median:.2f} | {max(deviations):.2f} |")
    return "\n".join(["Measured here, in points:", "", *lines])


TABLES: Mapping[str, Callable[[], str]] = {
    "dividemix": two_rows_of_dividemix,
    "disagreements": disagreements,
    "silence": silence,
    "gaps": gaps,
    "spreads": spreads,
}
"""Every table, by name."""
