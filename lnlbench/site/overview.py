"""The first page: which suites there are, who leads on them, what is measured, and how to cite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import lnlbench
from lnlbench.site.boards import RULESETS, Board, Entry, score
from lnlbench.site.model import Site, SuiteResults
from lnlbench.site.render import render

_PATH = "index.html"


@dataclass(frozen=True)
class Leaders:
    """Who leads on a task."""

    task: str
    """The task."""
    by_ruleset: Mapping[str, tuple[tuple[Entry, float | None], ...]]
    """Entries that share the first rank, with their accuracy in percent, by ruleset; blank where there is no board."""


@dataclass(frozen=True)
class Summary:
    """A suite with measured results."""

    results: SuiteResults
    dataset: str
    """Name of its dataset; empty if unknown."""
    methods: int
    """Methods with a row."""
    runs: int
    """Finished runs."""
    rulesets: tuple[str, ...]
    """Those with a board of full runs on the published data."""
    leaders: tuple[Leaders, ...]
    """By task."""


def pages(site: Site, boards: Mapping[str, Sequence[Board]]) -> Iterator[tuple[str, str]]:
    """Yield the page.

    Args:
        site: All results.
        boards: The boards of each suite.
    """
    summaries = [_summary(site, results, boards[name]) for name, results in site.suites.items() if results.rows]
    yield (
        _PATH,
        render(
            "overview.html",
            _PATH,
            site=site,
            summaries=summaries,
            only_reported=[results for results in site.suites.values() if not results.rows],
            rulesets=RULESETS,
            datasets=sorted({summary.dataset for summary in summaries if summary.dataset}),
            measured=sorted({row.method for row in site.rows()}),
            installed=[name for name in site.methods if site.method_entry(name)],
            runs=sum(summary.runs for summary in summaries),
            version=lnlbench.__version__,
        ),
    )


def _summary(site: Site, results: SuiteResults, boards: Sequence[Board]) -> Summary:
    usual = {board.ruleset: board for board in boards if board.usual}
    tasks = sorted({task for board in usual.values() for task in board.tasks})
    leaders = tuple(
        Leaders(task, {name: tuple(_leaders(board, task)) for name, board in usual.items() if task in board.tasks})
        for task in tasks
    )
    return Summary(
        results,
        site.dataset_of(results.name),
        len({row.method for row in results.rows}),
        sum(row.n for row in results.rows),
        tuple(ruleset for ruleset in RULESETS if ruleset in usual),
        leaders,
    )


def _leaders(board: Board, task: str) -> Iterator[tuple[Entry, float | None]]:
    for entry in board.leaders(task, "last10"):
        yield entry, score(entry.rows[task], "last10")
