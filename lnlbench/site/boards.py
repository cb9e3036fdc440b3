"""Boards: which rows of a suite may stand in one ranking, as methods by tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from lnlbench.leaderboard.aggregate import OWN_EDITION, Row, division, scores_on
from lnlbench.leaderboard.statistics import (
    Ranking,
    rank_by_tests,
    rank_over_cells,
    t_probabilities,
    wilcoxon_probabilities,
)
from lnlbench.site.model import Run, Site

Kind = Literal["last10", "last", "best", "best_val", "top5_last10"]

KINDS: tuple[Kind, ...] = ("last10", "last", "best", "best_val", "top5_last10")
"""The scores that a board can be read by, the headline first."""

LABELS: Mapping[Kind, str] = {
    "last10": "Last 10 epochs",
    "last": "Last epoch",
    "best": "Best epoch, chosen on the test set",
    "best_val": "Best epoch on clean validation data",
    "top5_last10": "Top-5, last 10 epochs",
}
"""What they are called."""

RULESETS = {
    "agnostic": "Agnostic: one setting for all levels",
    "tuned": "Tuned to the noise",
}
"""What the boards of each ruleset are called."""

_CANONICAL = "canonical"


@dataclass(frozen=True)
class Entry:
    """A method with its options and version, on every task that it has a row on."""

    name: str
    """Method id, with whatever tells it apart from other entries of the board."""
    method: str
    """Method id."""
    details: str
    """What the name adds to the method id."""
    rows: Mapping[str, Row]
    """By task."""
    runs: Mapping[str, tuple[Run, ...]]
    """Runs by task, diverged ones included; none without bundles."""

    def values(self, column: str) -> tuple[str, ...]:
        """Return the distinct values of a column over the tasks, in their order."""
        found = (getattr(row, column) for row in self.rows.values())
        return tuple(dict.fromkeys(str(each) for each in found if each not in (None, "")))

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over the tasks that have it."""
        found = [value for row in self.rows.values() if (value := getattr(row, column)) is not None]
        return fmean(found) if found else None

    def scores(self, task: str, kind: Kind) -> dict[str, float]:
        """Return the scores of the finished runs on a task, as fractions, named by seed and given labels."""
        found = {}
        for run in self.runs.get(task, ()):
            scores, spec = scores_on(run.record, task), run.record.spec
            if scores is not None and (value := getattr(scores, kind)) is not None:
                found[f"{spec.seed} {spec.noise.seed} {run.record.noise.digest}"] = float(value)
        return found

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(row.n_diverged for row in self.rows.values())

    @property
    def seconds(self) -> float | None:
        """Mean seconds of a run, stages before training included."""
        train = self.mean("train_seconds_mean")
        return None if train is None else train + (self.mean("stage_seconds_mean") or 0.0)


@dataclass(frozen=True)
class Board:
    """Rows that may be ranked together."""

    anchor: str
    """Id of its section."""
    ruleset: str
    """``agnostic`` or ``tuned``."""
    reduced: bool
    """Whether these are reduced runs."""
    usual: bool
    """Whether these are full runs on the published data in the newest version of the suite."""
    setting: tuple[str, ...]
    """What sets the rows apart from the usual ones: version, edition of the data, and so on."""
    tasks: tuple[str, ...]
    """Columns."""
    entries: tuple[Entry, ...]
    """Best first, by the headline; those with a cell missing come last."""
    tested: bool
    """Whether the runs are known, without which nothing can be ranked."""

    @cached_property
    def title(self) -> str:
        """A line for people."""
        parts = [RULESETS[self.ruleset], *self.setting]
        return ", ".join([*parts, "reduced runs"] if self.reduced else parts)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The scores that any row has."""
        return tuple(kind for kind in KINDS if any(score(row, kind) is not None for row in self._rows()))

    @cached_property
    def ranks(self) -> Mapping[Kind, Ranks]:
        """By score; none without bundles."""
        return {kind: _rank(self, kind) for kind in self.kinds} if self.tested else {}

    def mean(self, entry: Entry, kind: Kind) -> float | None:
        """Return the mean over all tasks in percent; ``None`` if one is missing."""
        if kind in self.ranks:
            mean = self.ranks[kind].means.get(entry.name)
            return None if mean is None else 100 * mean
        return _complete_mean(entry, self.tasks, kind)

    def rank(self, entry: Entry, kind: Kind, task: str | None = None) -> int | None:
        """Return the shared rank on a task, or over the suite; ``None`` where it cannot be tested."""
        if kind not in self.ranks:
            return None
        if task is None and len(self.tasks) > 1:
            return self.ranks[kind].suite.get(entry.name)
        return self.ranks[kind].tasks[task or self.tasks[0]].get(entry.name)

    def mean_rank(self, entry: Entry, kind: Kind) -> float | None:
        """Return the mean rank over all cells; ``None`` if one is missing."""
        ranking = self.ranks[kind].ranking if kind in self.ranks else None
        return None if ranking is None else ranking.mean_ranks.get(entry.name)

    def leaders(self, task: str, kind: Kind) -> tuple[Entry, ...]:
        """Return the entries that share the first rank of a task; the one of the highest mean if nothing is ranked."""
        ranked = {entry.name: self.rank(entry, kind, task) for entry in self.entries}
        first = min((rank for rank in ranked.values() if rank is not None), default=None)
        if first is not None:
            return tuple(entry for entry in self.entries if ranked[entry.name] == first)
        scored = [entry for entry in self.entries if task in entry.rows and score(entry.rows[task], kind) is not None]
        return tuple(sorted(scored, key=lambda entry: -(score(entry.rows[task], kind) or 0.0))[:1])

    def _rows(self) -> Iterable[Row]:
        return (row for entry in self.entries for row in entry.rows.values())


@dataclass(frozen=True)
class Ranks:
    """How the entries of a board compare by one score. Everything is by name of the entry."""

    tasks: Mapping[str, Mapping[str, int | None]]
    """Shared ranks on each task."""
    suite: Mapping[str, int | None]
    """Shared ranks over all cells, of the entries from which no task is missing."""
    means: Mapping[str, float]
    """Mean over the tasks of their means, of the same entries."""
    ranking: Ranking | None
    """Mean ranks, of the entries from which no cell is missing."""


def _rank(board: Board, kind: Kind) -> Ranks:
    """Rank as :func:`lnlbench.leaderboard.standings.compare` does, without the pairs, which nobody sees here."""
    blocks = {task: {entry.name: entry.scores(task, kind) for entry in board.entries} for task in board.tasks}
    on_task = {
        task: {name: fmean(sorted(each.values())) for name, each in block.items() if each}
        for task, block in blocks.items()
    }
    means = {
        entry.name: fmean(each[entry.name] for each in on_task.values())
        for entry in board.entries
        if all(entry.name in each for each in on_task.values())
    }
    ranks = {task: rank_by_tests(on_task[task], block, t_probabilities) for task, block in blocks.items()}
    suite = {
        entry.name: {f"{task} {cell}": value for task in blocks for cell, value in blocks[task][entry.name].items()}
        for entry in board.entries
    }
    over_suite = rank_by_tests(means, suite if len(board.tasks) > 1 else {}, wilcoxon_probabilities)
    complete = {entry.name: suite[entry.name] for entry in board.entries if entry.name in means and not entry.diverged}
    shared = set.intersection(*map(set, complete.values())) if complete else set()
    covered = {cell.partition(" ")[0] for cell in shared} == set(board.tasks)
    return Ranks(ranks, over_suite, means, rank_over_cells(complete) if covered else None)


def score(row: Row, kind: Kind) -> float | None:
    """Return a score of a row, in percent."""
    value: float | None = getattr(row, f"{kind}_mean")
    return value


def spread(row: Row, kind: Kind) -> float | None:
    """Return the sample standard deviation of that score, in percent."""
    value: float | None = getattr(row, f"{kind}_std")
    return value


def boards_of(site: Site, suite: str) -> tuple[Board, ...]:
    """Divide the rows of a suite into boards: the usual ones first, those of reduced runs last."""
    rows = site.suites[suite].rows
    divisions: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        divisions.setdefault(_division(site, row), []).append(row)
    boards = []
    for members in divisions.values():
        tasks = tuple(sorted({row.task for row in members}))
        entries = _entries(site, members)
        for ruleset in RULESETS:
            chosen = [entry for entry in entries if _ruleset(entry) == ruleset]
            if chosen:
                boards.append(_board(rows, members[0], ruleset, tasks, chosen))
    boards.sort(key=lambda board: (board.reduced, not board.usual, board.setting, list(RULESETS).index(board.ruleset)))
    return _with_anchors(boards)


def _division(site: Site, row: Row) -> tuple[Any, ...]:
    """Return what rows must have in common. Without a run it is told from the row, which may divide finer."""
    runs = site.runs_of(row)
    if runs:
        return division(runs[0].record)
    data = "" if row.edition == _CANONICAL else row.data_digest
    images = row.train_images if row.reduced else None
    return row.suite, row.suite_version, row.numerics, row.edition, data, images, bool(row.reduced)


def _board(rows: Sequence[Row], example: Row, ruleset: str, tasks: tuple[str, ...], entries: list[Entry]) -> Board:
    newest = max(row.suite_version for row in rows)
    setting = []
    if example.suite_version != newest:
        setting.append(f"version {example.suite_version} of the suite")
    if any(row.numerics > example.numerics for row in rows):
        setting.append(f"numerics {example.numerics}")
    if example.edition == OWN_EDITION:
        setting.append("own data")
    elif example.edition != _CANONICAL:
        setting.append(f"edition {example.edition} of the data")
    if example.reduced and "training images" in example.reduced:
        setting.append(f"{example.train_images:,} training images")
    tested = all(entry.runs.get(task) for entry in entries for task in entry.rows)
    ranked = sorted(entries, key=lambda entry: _place(entry, tasks))
    usual = not example.reduced and not setting
    return Board("", ruleset, bool(example.reduced), usual, tuple(setting), tasks, tuple(ranked), tested)


def _place(entry: Entry, tasks: Sequence[str]) -> tuple[bool, float, str]:
    mean = _complete_mean(entry, tasks, "last10")
    return mean is None, -(mean if mean is not None else entry.mean("last10_mean") or 0.0), entry.name


def _complete_mean(entry: Entry, tasks: Sequence[str], kind: Kind) -> float | None:
    found = [score(entry.rows[task], kind) if task in entry.rows else None for task in tasks]
    return None if None in found else fmean(each for each in found if each is not None)


def _ruleset(entry: Entry) -> str:
    return "tuned" if any(row.ruleset == "tuned" for row in entry.rows.values()) else "agnostic"


def _with_anchors(boards: Iterable[Board]) -> tuple[Board, ...]:
    made: list[Board] = []
    for board in boards:
        stem = f"{board.ruleset}-reduced" if board.reduced else board.ruleset
        number = sum(each.anchor.startswith(stem) for each in made if each.reduced == board.reduced) + 1
        made.append(replace(board, anchor=stem if number == 1 else f"{stem}-{number}"))
    return tuple(made)


def _entries(site: Site, rows: Sequence[Row]) -> list[Entry]:
    variants: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        variants.setdefault(_variant(row), []).append(row)
    groups: list[tuple[tuple[str, ...], list[Row]]] = []
    for variant, members in variants.items():
        # A preset that changed while its version did not gives two rows of one variant on one task.
        if len({row.task for row in members}) == len(members):
            groups.append((variant, members))
        else:
            groups += [((*variant, row.protocol_key), [row]) for row in members]
    names = _names([variant for variant, _ in groups])
    return [
        Entry(
            name,
            members[0].method,
            name[len(members[0].method) :].strip(),
            {row.task: row for row in members},
            {row.task: site.runs_of(row) for row in members},
        )
        for name, (_, members) in zip(names, groups, strict=True)
    ]


def _variant(row: Row) -> tuple[str, ...]:
    """Return what makes a method one and the same across tasks: what a reader is told first comes first."""
    return row.method, _options(row), row.method_version, row.distribution, row.precision, row.selector


def _options(row: Row) -> str:
    """Return how the row differs from the preset, but for being reduced."""
    text = row.protocol.removesuffix(f"reduced: {', '.join(row.reduced.split('; '))}") if row.reduced else row.protocol
    text = text.removesuffix("; ")
    return "" if text == "preset" else text


def _names(variants: Sequence[tuple[str, ...]]) -> list[str]:
    """Name each variant as shortly as tells it apart: by method and options, then by further parts."""
    names = [f"{method} ({options})" if options else method for method, options, *_ in variants]
    for part in range(2, max(map(len, variants), default=0)):
        for name in {name for name in names if names.count(name) > 1}:
            alike = [number for number, each in enumerate(names) if each == name]
            parts = [variants[number][part] if part < len(variants[number]) else "" for number in alike]
            if len(set(parts)) > 1:
                for number, text in zip(alike, parts, strict=True):
                    names[number] = f"{name} {text}".strip()
    return names
