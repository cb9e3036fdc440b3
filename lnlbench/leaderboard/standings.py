"""Results side by side: which runs of a board may be compared, under which names, and how they compare.

A *standing* holds the runs of one suite that share all a comparison needs: version, data edition, share of the training
set, and whether they are full runs. An *entry* of it is a method with its options and version on all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import (
    OWN_EDITION,
    departure,
    division,
    protocol_digest,
    scores_on,
    tuned_cells,
)
from lnlbench.leaderboard.statistics import (
    Interval,
    Pair,
    Ranking,
    Sample,
    bootstrap_interval,
    compare_pairs,
    describe,
    rank_over_cells,
    shared_ranks,
    wilcoxon,
)
from lnlbench.leaderboard.store import bundles_of, suites_of
from lnlbench.records import RunRecord, canonical_json, digest

ScoreKind = Literal["last10", "last", "best", "best_val"]

SCORE_KINDS: Mapping[ScoreKind, str] = {
    "last10": "mean test accuracy over the final ten epochs",
    "last": "test accuracy after the final epoch",
    "best": "highest test accuracy of any epoch, chosen on the test set and hence optimistic",
    "best_val": "test accuracy at the epoch that is best on the dataset's clean validation set",
}
"""The scores that can be compared, by name, and what they are."""

_LABEL_LIMIT = 80


@dataclass(frozen=True)
class Entry:
    """A method with its options and version, on every task of a suite that it has runs on."""

    name: str
    """Method id, with whatever tells it apart from other entries of the standing, e.g. ``ce (lr=0.1)``."""
    method: str
    """Method id."""
    ruleset: str
    """``agnostic`` or ``tuned``."""
    runs: Mapping[str, tuple[RunRecord, ...]]
    """Runs by task; where a level has several test sets, by test set. By training seed, diverged ones included."""

    def scores(self, task: str, kind: ScoreKind) -> dict[str, float]:
        """Return the scores on a task, as fractions, by cell: training seed, noise seed, digest of the labels."""
        found = {}
        for record in self.runs.get(task, ()):
            scores = scores_on(record, task)
            if record.status == "finished" and scores is not None and (value := getattr(scores, kind)) is not None:
                found[f"{record.spec.seed} {record.spec.noise.seed} {record.noise.digest}"] = float(value)
        return found

    def diverged(self, task: str) -> tuple[int, ...]:
        """Return the seeds of the diverged runs on a task."""
        return tuple(record.spec.seed for record in self.runs.get(task, ()) if record.status == "diverged")


@dataclass(frozen=True)
class Standing:
    """Results that may be compared with each other."""

    suite: str
    """Suite id."""
    title: str
    """Suite id, with whatever else sets these runs apart."""
    reduced: bool
    """Whether these are reduced runs."""
    entries: tuple[Entry, ...]
    """By name, unless chosen in another order."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that any entry has runs on, sorted."""
        return tuple(sorted({task for entry in self.entries for task in entry.runs}))

    def choose(self, names: Iterable[str]) -> Standing:
        """Return the standing of some entries, in the order given; names that are not here are passed over.

        A name is that of an entry, or of a method with a single entry.

        Raises:
            UsageError: A method has several entries, and none is called by its bare name.
        """
        chosen: dict[str, Entry] = {}
        for name in names:
            entries = [each for each in self.entries if each.name == name] or [
                each for each in self.entries if each.method == name
            ]
            if len(entries) > 1:
                which = ", ".join(f'"{each.name}"' for each in entries)
                raise UsageError(f"{name} has several entries on {self.title}; name one of these: {which}")
            chosen |= {each.name: each for each in entries}
        return replace(self, entries=tuple(chosen.values()))


@dataclass(frozen=True)
class TaskResult:
    """How the entries of a standing compare on one task. Everything is by name of the entry."""

    task: str
    """Task, or test set."""
    samples: Mapping[str, Sample]
    """Scores summarised, of every entry."""
    diverged: Mapping[str, tuple[int, ...]]
    """Seeds of diverged runs, of every entry."""
    pairs: tuple[Pair, ...]
    """Student's paired test for every two entries; corrected over all pairs of the task."""
    ranks: Mapping[str, int | None]
    """Shared ranks of the entries with a mean."""


@dataclass(frozen=True)
class Comparison:
    """How the entries of a standing compare, on each task and over the suite."""

    standing: Standing
    """What was compared."""
    kind: ScoreKind
    """By which score."""
    tasks: tuple[TaskResult, ...]
    """In the order of the standing."""
    means: Mapping[str, float]
    """Plain mean over the tasks of their means, for entries from which no task is missing."""
    pairs: tuple[Pair, ...]
    """Wilcoxon's test for every two entries over all their common cells; corrected over all pairs."""
    ranks: Mapping[str, int | None]
    """Shared ranks by these means and tests."""
    ranking: Ranking | None
    """Mean ranks over the suite, of the entries from which no cell is missing."""
    incomplete: Mapping[str, str]
    """Why the other entries are not in the ranking."""

    def bootstrap(self, name: str, task: str) -> Interval | None:
        """Return the bootstrap interval of an entry's mean on a task; see :func:`statistics.bootstrap_interval`."""
        (entry,) = (each for each in self.standing.entries if each.name == name)
        return bootstrap_interval(list(entry.scores(task, self.kind).values()))


def read_records(board: Path, suite: str) -> list[RunRecord]:
    """Read all results of a suite from the bundles of a board.

    Raises:
        UsageError: The board has no runs of this suite.
        DataError: A bundle is damaged.
    """
    known = suites_of(board)
    if suite not in known:
        raise UnknownNameError(f"suite on the board {board}", suite, known)
    records = [bundle.read(folder, confusion=False) for folder in bundles_of(board, suite)]
    if not records:
        raise UsageError(f"no runs of {suite} on the board {board}; score some first")
    return records


def standings(records: Sequence[RunRecord]) -> list[Standing]:
    """Divide results into those that may be compared with each other.

    Args:
        records: All results of one suite or several.

    Returns:
        Standings of full runs, then those of reduced ones; within these by suite, version and data.
    """
    tuned = tuned_cells(records)
    divisions: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        divisions.setdefault(division(record), []).append(record)
    keys = sorted(divisions, key=lambda key: (key[-1], canonical_json(key)))
    return [Standing(key[0], _title(key, keys), key[-1], tuple(_entries(divisions[key], tuned))) for key in keys]


def select(
    records: Sequence[RunRecord],
    names: Sequence[str] = (),
    reduced: bool = False,
    ruleset: str | None = None,
) -> list[Standing]:
    """Return the standings a user asks for, without empty ones.

    Args:
        records: All results of one suite, at least one.
        names: Entries or methods, in the order wanted; all by default.
        reduced: Whether standings of reduced runs are wanted too.
        ruleset: Only entries under this one, if given.

    Raises:
        UnknownNameError: No runs of this method are on the board.
        UsageError: A name is ambiguous, or all its runs are left out by the other wishes.
    """
    everything = standings(records)
    wanted = [
        replace(each, entries=tuple(entry for entry in each.entries if ruleset in (None, entry.ruleset)))
        for each in everything
        if reduced or not each.reduced
    ]
    suite = everything[0].suite
    for name in names:
        if not _has(everything, name):
            known = {entry.name for standing in everything for entry in standing.entries}
            raise UnknownNameError(f"method on the board of {suite}", name, known)
        if not _has(wanted, name):
            hidden = not reduced and not _has([each for each in everything if not each.reduced], name)
            why = "reduced runs; --reduced takes them" if hidden else f"runs under another ruleset than {ruleset!r}"
            raise UsageError(f"{name} has on {suite} only {why}")
    chosen = [each.choose(names) if names else each for each in wanted]
    if not any(each.entries for each in chosen):
        what = f"runs under the ruleset {ruleset!r}" if ruleset else "full runs; --reduced takes the reduced ones"
        raise UsageError(f"{suite} has no {what}")
    return [each for each in chosen if each.entries]


def _has(standings: Iterable[Standing], name: str) -> bool:
    return any(name in (entry.name, entry.method) for standing in standings for entry in standing.entries)


def _title(key: tuple[Any, ...], keys: Sequence[tuple[Any, ...]]) -> str:
    """Name a division by what it does not share with the usual one, or with the others."""
    suite, version, numerics, edition, edition_digest, own, limit, reduced = key
    others = [each for each in keys if each[0] == suite and each != key]
    parts = [suite]
    if any(each[1] != version for each in others):
        parts.append(f"version {version}")
    if any(each[2] != numerics for each in others):
        parts.append(f"numerics {numerics}")
    if edition not in ("canonical", OWN_EDITION):
        parts.append(f"edition {edition}")
    if any(each[3] == edition and each[4:6] != key[4:6] for each in others):
        parts.append(f"data {(own or edition_digest)[:8]}")
    if limit is not None:
        parts.append(f"{limit} training images")
    if reduced:
        parts.append("reduced runs")
    return _printable(", ".join(parts))


def _entries(records: Iterable[RunRecord], tuned: set[str]) -> list[Entry]:
    variants: dict[str, list[RunRecord]] = {}
    for record in records:
        variants.setdefault(_variant(record), []).append(record)
    groups = [group for variant in variants.values() for group in _of_one_protocol(variant)]
    names = _names([group[0] for group in groups])
    made = []
    for name, group in zip(names, groups, strict=True):
        group = sorted(group, key=lambda each: (each.spec.seed, each.spec.noise.seed or 0, each.cell))
        runs: dict[str, list[RunRecord]] = {}
        for record in group:
            for task in _tasks_of(record):
                runs.setdefault(task, []).append(record)
        ruleset = "tuned" if any(record.cell in tuned for record in group) else "agnostic"
        method = group[0].spec.method.name
        made.append(Entry(name, method, ruleset, {task: tuple(runs[task]) for task in sorted(runs)}))
    return sorted(made, key=lambda entry: entry.name)


def _tasks_of(record: RunRecord) -> tuple[str, ...]:
    return record.spec.test_sets or (record.spec.task,)


def _variant(record: RunRecord) -> str:
    """Digest what makes a method one and the same across the tasks of a suite, for which presets may differ."""
    spec = record.spec
    methods = [
        [
            each.name,
            each.version,
            each.distribution,
            {name: each.changed[name] for name in each.changed if name != "seed"},
        ]
        for each in (spec.method, spec.selector)
        if each is not None
    ]
    return digest([methods, spec.precision, spec.compile, spec.deterministic])


def _of_one_protocol(variant: list[RunRecord]) -> list[list[RunRecord]]:
    """Keep apart what has several protocol keys on one task, as it has if a preset changed and its version did not."""
    keys: dict[str, set[str]] = {}
    for record in variant:
        for task in _tasks_of(record):
            keys.setdefault(task, set()).add(protocol_digest(record))
    if all(len(each) == 1 for each in keys.values()):
        return [variant]
    return [list(group) for _, group in groupby(sorted(variant, key=protocol_digest), key=protocol_digest)]


def _names(examples: Sequence[RunRecord]) -> list[str]:
    """Name each entry as shortly as tells them apart: by method and options, then version, precision, protocol key."""
    details: list[Callable[[RunRecord], str]] = [
        lambda record: record.spec.method.version,
        lambda record: record.spec.precision,
        lambda record: record.spec.selector.version if record.spec.selector else "",
        lambda record: protocol_digest(record)[:8],
    ]
    names = [_printable(_name(record)) for record in examples]
    for detail in details:
        for name in {name for name in names if names.count(name) > 1}:
            alike = [number for number, each in enumerate(names) if each == name]
            if len({detail(examples[number]) for number in alike}) > 1:
                for number in alike:
                    names[number] = f"{name} {detail(examples[number])}"
    return names


def _name(record: RunRecord) -> str:
    changes = departure(record.spec)
    if len(changes) > _LABEL_LIMIT:
        changes = f"{changes[: _LABEL_LIMIT - 1]}…"
    return f"{record.spec.method.name} ({changes})" if changes else record.spec.method.name


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def compare_tasks(standing: Standing, kind: ScoreKind = "last10") -> tuple[TaskResult, ...]:
    """Compare the entries of a standing on each task.

    Two entries are compared on the cells that both have finished: same task, same training seed, same given labels.
    Where a run is missing or diverged, the cell is left out of a pair.
    """
    results = []
    for task in standing.tasks:
        block = {entry.name: entry.scores(task, kind) for entry in standing.entries}
        samples = {name: describe(list(scores.values())) for name, scores in block.items()}
        diverged = {entry.name: entry.diverged(task) for entry in standing.entries}
        pairs = compare_pairs(block)
        results.append(TaskResult(task, samples, diverged, tuple(pairs), shared_ranks(_means(samples), pairs)))
    return tuple(results)


def compare(standing: Standing, kind: ScoreKind = "last10") -> Comparison:
    """Compare the entries of a standing on each task, as :func:`compare_tasks` does, and over the suite."""
    results = compare_tasks(standing, kind)
    suite = {
        entry.name: {
            f"{task} {cell}": score for task in standing.tasks for cell, score in entry.scores(task, kind).items()
        }
        for entry in standing.entries
    }
    means = {}
    for entry in standing.entries:
        found = [mean for result in results if (mean := result.samples[entry.name].mean) is not None]
        if len(found) == len(results):
            means[entry.name] = fmean(found)
    pairs = compare_pairs(suite, wilcoxon)
    incomplete = _incomplete(standing, results)
    complete = {name: scores for name, scores in suite.items() if name not in incomplete}
    shared = set.intersection(*map(set, complete.values())) if complete else set()
    covered = all(any(cell.startswith(f"{task} ") for cell in shared) for task in standing.tasks)
    ranking = rank_over_cells(complete) if covered else None
    return Comparison(standing, kind, results, means, tuple(pairs), shared_ranks(means, pairs), ranking, incomplete)


def _means(samples: Mapping[str, Sample]) -> dict[str, float]:
    return {name: sample.mean for name, sample in samples.items() if sample.mean is not None}


def _incomplete(standing: Standing, results: Sequence[TaskResult]) -> dict[str, str]:
    """Say which entries miss a cell, so that they have no mean rank, and where."""
    told = {}
    for entry in standing.entries:
        missing = [result.task for result in results if result.samples[entry.name].n == 0]
        diverged = [f"{result.task} seed {seed}" for result in results for seed in result.diverged[entry.name]]
        parts = [f"no finished run on {', '.join(missing)}"] if missing else []
        parts += [f"diverged on {', '.join(diverged)}"] if diverged else []
        if parts:
            told[entry.name] = "; ".join(parts)
    return told
