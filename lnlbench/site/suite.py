"""The page of a suite: its boards, what papers report, and how the two agree."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lnlbench.leaderboard.reported import to_csv as reported_to_csv
from lnlbench.leaderboard.statistics import critical_difference_svg
from lnlbench.leaderboard.store import guard
from lnlbench.site.boards import KINDS, LABELS, Board, Entry, Kind, score, spread
from lnlbench.site.compare import Agreement, agreements
from lnlbench.site.figures import cost_figures, noise_figure
from lnlbench.site.model import Site, SuiteResults, slug
from lnlbench.site.printed import printed_table
from lnlbench.site.render import render

FACETS = {
    "supervision": "Supervision",
    "ruleset": "Ruleset",
    "backbone": "Backbone",
    "networks": "Networks",
    "trust": "Trust",
}
"""Columns that rows can be filtered by, and what they are called."""

_CRITICAL_LIMIT = 60
"""A drawing of mean ranks with more methods cannot be read; one with two says nothing new."""


@dataclass(frozen=True)
class Reading:
    """A value under one score."""

    kind: Kind
    text: str
    """The value; blank if it is missing."""
    spread: str = ""
    """Its standard deviation."""
    rank: str = ""
    """Shared rank; with ``=`` if others share it."""
    mark: str = ""
    """``first`` or ``second``, for the best group of a column and the one after it."""


@dataclass(frozen=True)
class Cell:
    """An entry on a task."""

    url: str
    """Page of its runs."""
    n: int
    """Finished runs."""
    diverged: int
    """Diverged runs."""
    readings: tuple[Reading, ...]
    """By score."""


@dataclass(frozen=True)
class Line:
    """An entry of a board."""

    entry: Entry
    rank: tuple[Reading, ...]
    """By score."""
    mean: tuple[Reading, ...]
    mean_rank: tuple[Reading, ...]
    cells: tuple[Cell | None, ...]
    """By task."""
    facets: Mapping[str, tuple[str, ...]]
    """What it is filtered by: values by column."""
    badges: tuple[str, ...]
    """What a reader has to know before comparing it."""


@dataclass(frozen=True)
class Section:
    """A board, laid out."""

    board: Board
    lines: tuple[Line, ...]
    n: int
    """Finished runs of most cells."""
    ranked: bool
    """Whether anything has a rank."""
    figures: tuple[Markup, ...]
    """Plots, each with its table."""


def pages(site: Site, boards: Mapping[str, Sequence[Board]]) -> Iterator[tuple[str, str]]:
    """Yield the page of every suite, and the files behind its tables.

    Args:
        site: All results.
        boards: The boards of each suite.
    """
    for name, results in site.suites.items():
        yield from _page(site, results, boards[name])


def _page(site: Site, results: SuiteResults, boards: Sequence[Board]) -> Iterator[tuple[str, str]]:
    sections = [_section(site, board) for board in boards]
    compared = agreements(site, results)
    printed = printed_table(site, results)
    path = site.suite_url(results.name)
    yield (
        path,
        render(
            "suite.html",
            path,
            site=site,
            results=results,
            dataset=site.dataset_of(results.name),
            sections=sections,
            kinds=[kind for kind in KINDS if any(kind in board.kinds for board in boards)],
            labels=LABELS,
            facets=_facets(sections),
            facet_labels=FACETS,
            agreements=compared,
            printed=printed,
            stem=slug(results.name),
        ),
    )
    yield from _downloads(site, results, boards, compared)


def _section(site: Site, board: Board) -> Section:
    shared = {kind: _shared(board, kind) for kind in board.kinds}
    lines = tuple(_line(site, board, entry, shared) for entry in board.entries)
    counts = Counter(cell.n for line in lines for cell in line.cells if cell)
    usual = max(counts, key=lambda n: (counts[n], n))
    ranked = any(reading.rank for line in lines for cell in line.cells if cell for reading in cell.readings)
    figures = () if board.reduced else (*noise_figure(board), *cost_figures(board), *_critical_difference(board))
    return Section(board, lines, usual, ranked, tuple(figures))


Shared = Mapping[str | None, Mapping[int, int]]
"""How many entries share each rank, by task; under ``None`` those of the suite."""


def _shared(board: Board, kind: Kind) -> Shared:
    counts: dict[str | None, dict[int, int]] = {}
    for task in (None, *board.tasks):
        of_task = counts.setdefault(task, {})
        for entry in board.entries:
            rank = board.rank(entry, kind, task)
            if rank is not None:
                of_task[rank] = of_task.get(rank, 0) + 1
    return counts


def _line(site: Site, board: Board, entry: Entry, shared: Mapping[Kind, Shared]) -> Line:
    ranks, means, mean_ranks = [], [], []
    for kind in board.kinds:
        rank = _rank(board.rank(entry, kind), shared[kind][None])
        mean, mean_rank = board.mean(entry, kind), board.mean_rank(entry, kind)
        ranks.append(Reading(kind, rank))
        means.append(Reading(kind, "" if mean is None else f"{mean:.2f}"))
        mean_ranks.append(Reading(kind, "" if mean_rank is None else f"{mean_rank:.2f}"))
    cells = tuple(_cell(site, board, entry, task, shared) if task in entry.rows else None for task in board.tasks)
    facets = {facet: _facet_values(board, entry, facet) for facet in FACETS}
    return Line(entry, tuple(ranks), tuple(means), tuple(mean_ranks), cells, facets, tuple(_badges(entry)))


def _cell(site: Site, board: Board, entry: Entry, task: str, shared: Mapping[Kind, Shared]) -> Cell:
    row = entry.rows[task]
    readings = []
    for kind in board.kinds:
        value, deviation, rank = score(row, kind), spread(row, kind), board.rank(entry, kind, task)
        ranks = sorted(shared[kind][task])
        mark = "" if rank is None else "first" if rank == ranks[0] else "second" if rank == ranks[1] else ""
        readings.append(
            Reading(
                kind,
                "" if value is None else f"{value:.2f}",
                "" if deviation is None else f"{deviation:.2f}",
                _rank(rank, shared[kind][task]),
                mark,
            )
        )
    return Cell(site.row_url(row), row.n, row.n_diverged, tuple(readings))


def _rank(rank: int | None, shared: Mapping[int, int]) -> str:
    if rank is None:
        return ""
    return f"={rank}" if shared[rank] > 1 else str(rank)


def _facet_values(board: Board, entry: Entry, facet: str) -> tuple[str, ...]:
    if facet == "ruleset":
        return (board.ruleset,)
    values = entry.values(facet)
    if facet == "supervision":
        # What is used beyond the noisy labels is a list, and each part of it can be done without.
        return tuple(dict.fromkeys(part for value in values for part in value.split("+")))
    return values


def _facets(sections: Sequence[Section]) -> dict[str, list[str]]:
    """Return the values of each facet that has more than one."""
    lines = [line for section in sections for line in section.lines]
    found = {facet: sorted({value for line in lines for value in line.facets[facet]}, key=_natural) for facet in FACETS}
    return {facet: values for facet, values in found.items() if len(values) > 1}


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)


def _badges(entry: Entry) -> Iterator[str]:
    yield from (f"reduced: {reason}" for reason in entry.values("reduced"))
    if "yes" in entry.values("validation"):
        yield "validation split"
    if "inexact" in entry.values("resume"):
        yield "resumed on another device or software"
    if entry.diverged:
        yield f"{entry.diverged} diverged"


def _critical_difference(board: Board) -> Iterator[Markup]:
    ranking = board.ranks["last10"].ranking if "last10" in board.ranks else None
    if ranking is None or not 2 < len(ranking.mean_ranks) <= _CRITICAL_LIMIT:
        return
    drawing = critical_difference_svg(ranking, f"{board.title}, last 10 epochs").decode()
    yield Markup(render("critical.html", "", drawing=Markup(_without_styles(drawing)), ranking=ranking))  # noqa: S704


def _downloads(
    site: Site, results: SuiteResults, boards: Sequence[Board], compared: Sequence[Agreement]
) -> Iterator[tuple[str, str]]:
    stem = slug(results.name)
    if results.rows:
        yield f"data/{stem}.csv", (site.board / f"{results.name}.csv").read_bytes().decode()
        yield f"data/{stem}.json", _json([row.model_dump(mode="json") for row in results.rows])
        yield from _table(f"data/ranks/{stem}", _rank_table(boards))
    if results.reported:
        yield f"data/reported/{stem}.csv", reported_to_csv(results.reported).decode()
        yield f"data/reported/{stem}.json", _json([row.model_dump(mode="json") for row in results.reported])
    if compared:
        yield from _table(f"data/agreement/{stem}", [each.as_record() for each in compared])


def _without_styles(drawing: str) -> str:
    """Turn styles into attributes: the pages forbid inline styles, so that no injected one can work."""
    drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, flags=re.DOTALL)
    return re.sub(r' style="([^"]*)"', lambda found: _as_attributes(found[1]), drawing)


def _as_attributes(style: str) -> str:
    pairs = (each.partition(":") for each in style.split(";") if ":" in each)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in pairs)


def _rank_table(boards: Sequence[Board]) -> list[dict[str, object]]:
    """Return all means and ranks, on each task and over the suite."""
    records = []
    for board in boards:
        for kind in board.kinds:
            for entry in board.entries:
                told = {"board": board.title, "ruleset": board.ruleset, "reduced": board.reduced, "method": entry.name}
                for task in board.tasks:
                    row = entry.rows.get(task)
                    value, deviation = (None, None) if row is None else (score(row, kind), spread(row, kind))
                    if row is not None and value is not None:
                        rank = board.rank(entry, kind, task)
                        numbers = {"mean": value, "sd": deviation, "n": row.n, "rank": rank, "mean_rank": None}
                        records.append({**told, "score": kind, "task": task, **numbers})
                mean, mean_rank = _rounded(board.mean(entry, kind)), _rounded(board.mean_rank(entry, kind))
                over_suite = {"mean": mean, "sd": None, "n": None, "rank": board.rank(entry, kind)}
                records.append({**told, "score": kind, "task": "", **over_suite, "mean_rank": mean_rank})
    return records


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _table(path: str, records: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, str]]:
    """Yield a table as CSV, blank for what is missing, and as JSON."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(records[0])
    for record in records:
        writer.writerow(guard(value) if isinstance(value, str) else value for value in record.values())
    yield f"{path}.csv", target.getvalue()
    yield f"{path}.json", _json(records)


def _json(records: Sequence[Mapping[str, object]]) -> str:
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    return f"[\n{lines}\n]\n"
