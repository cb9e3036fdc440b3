"""Repeating runs: the rows they belong to, the commands that run them again, and whether two runs came out alike."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import protocol_digest, scores_on, summarise
from lnlbench.leaderboard.bundle import Content
from lnlbench.leaderboard.content import METRICS, PREDICTIONS, RUN, Predictions, parse_predictions
from lnlbench.leaderboard.store import bundles_of, find_runs, suites_of
from lnlbench.records import CellSpec, Environment, MethodSpec, RunRecord

SPREADS = 2.0
"""Standard deviations, or standard errors, that two means may be apart and still count as the same."""

Outcome = Literal["identical", "same", "different"]
"""``identical``: all predictions are equal. ``same``: the accuracies are, within the tolerance."""


def row_name(suite: str, task: str, method: str, protocol_key: str) -> str:
    """Return the name by which commands and pages know a row of a leaderboard."""
    return f"{suite}/{task}/{method}-{protocol_key}"


def find_bundles(board: Path, name: str) -> list[Path]:
    """Return the bundles that a name stands for, by training seed.

    Args:
        board: The board's folder.
        name: A cell id, or ``<suite>/<task>/<method>-<protocol key>``.

    Raises:
        UnknownNameError: The board has no such row or cell.
        DataError: A bundle is damaged.
    """
    known = suites_of(board)
    if bundle.is_cell_id(name):
        folders = [bundle.bundle_folder(board, suite, name) for suite in known]
        if found := [folder for folder in folders if folder.is_dir()]:
            return found
        raise UsageError(f"no cell {name} on the board {board}; cells are the folders in {board / bundle.BUNDLES}")
    suite, *rest = name.split("/")
    if len(rest) != 2:
        raise UsageError(
            f"{name!r} is no row: write SUITE/TASK/METHOD-KEY with the protocol_key of the CSV, a cell id, or the path "
            "of a run or bundle"
        )
    if suite not in known:
        raise UnknownNameError(f"suite on the board {board}", suite, known)
    folders = bundles_of(board, suite)
    records = {folder: bundle.read(folder, confusion=False) for folder in folders}
    rows = [row_name(row.suite, row.task, row.method, row.protocol_key) for row in summarise(records.values())]
    if name not in rows:
        alike = [row for row in rows if row.startswith(f"{suite}/{rest[0]}/")]
        raise UnknownNameError(f"row on the board {board}", name, alike or rows)
    found = [folder for folder in folders if name in _row_names(records[folder])]
    return sorted(found, key=lambda folder: (records[folder].spec.seed, folder.name))


def find_sources(board: Path, names: Iterable[str]) -> list[Path]:
    """Return the run folders and bundles that names stand for, each once.

    Args:
        board: The board's folder.
        names: What :func:`find_bundles` takes, or the path of a bundle, of a run folder, or of a folder of run folders.

    Raises:
        UnknownNameError: The board has no such row or cell.
        UsageError: A folder holds no run.
        DataError: A bundle is damaged.
    """
    found: dict[Path, None] = {}
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            folders = find_bundles(board, name)
        elif (folder / RUN).exists():
            folders = [folder]
        elif (folder / bundle.BUNDLES).is_dir():
            folders = [each for suite in suites_of(folder) for each in bundles_of(folder, suite)]
        else:
            folders = find_runs(folder)
        found |= dict.fromkeys(each.absolute() for each in folders)
    return list(found)


def load(folder: Path) -> Content:
    """Load a bundle or a run folder, and recompute its scores.

    Raises:
        DataError: The run is unfinished, or something does not fit.
    """
    if not (folder / RUN).exists():
        return bundle.load_run(folder)
    bundle.verify(folder)
    record = bundle.read(folder)
    names = [name for name in (RUN, METRICS, PREDICTIONS) if (folder / name).exists()]
    files = {name: (folder / name).read_bytes() for name in names}
    predictions: Mapping[str, Predictions] = {}
    if PREDICTIONS in files:
        predictions = parse_predictions(files[PREDICTIONS], folder / PREDICTIONS, record.spec.test_sets[1:])
    return Content(record, predictions, files)


@dataclass(frozen=True)
class Command:
    """A command line that runs cells again."""

    arguments: tuple[str, ...]
    """What follows ``lnlbench run``."""
    cells: tuple[str, ...]
    """Ids of the cells, by seed."""

    @property
    def text(self) -> str:
        """The command as one types it."""
        return shlex.join(["lnlbench", "run", *self.arguments])


def commands(records: Iterable[RunRecord], installed: Container[str], switches: Container[str] = ()) -> list[Command]:
    """Return the commands that run cells again: one for all that differ in nothing but the training seed.

    Everything is spelled out that decides about the result: options that differ from the preset, precision, limits,
    and, since bit-exactness depends on them, kind of device and threads.

    Args:
        records: The runs.
        installed: Names of the suites that are installed; any other one was put together from a dataset and a noise.
        switches: For such a suite: the switches of the noise that were named on the command line. They cannot be told
            from the others, but are part of the suite's name.

    Returns:
        Commands in the order of the records.
    """
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        seed, where = record.spec.noise.seed, record.environment
        frozen = None if seed == record.spec.seed else seed
        key = (protocol_digest(record), frozen, where.device_type, where.threads)
        groups.setdefault(key, []).append(record)
    made = []
    for (_, frozen, device, threads), group in groups.items():
        group = sorted(group, key=lambda record: record.spec.seed)
        spec = group[0].spec
        words = ["--method", spec.method.name]
        words += _task_words(spec) if spec.suite in installed else _own_words(spec, switches)
        words += ["--seeds", _ranges([record.spec.seed for record in group])]
        words += [] if frozen is None else ["--noise-seed", str(frozen)]
        words += _protocol_words(spec)
        words += ["--device", device, "--threads", str(threads)]
        made.append(Command(tuple(words), tuple(record.cell for record in group)))
    return made


def overrides(spec: CellSpec) -> dict[str, str]:
    """Return the options that differ from the preset, as the command line takes them; ``epochs`` is not among them."""
    found = {name: _text(value) for name, value in sorted(spec.method.changed.items()) if name != "epochs"}
    if spec.selector is not None:
        found |= {f"{spec.selector.name}.{name}": _text(each) for name, each in sorted(spec.selector.changed.items())}
    return found


def needed(record: RunRecord) -> list[str]:
    """Say what must be there before a run can be repeated: distributions by version, and a registered edition."""
    spec = record.spec
    methods: list[MethodSpec] = [spec.method, *([spec.selector] if spec.selector else [])]
    found = [f"lnlbench {record.environment.lnlbench}", *(f"{each.distribution} {each.version}" for each in methods)]
    if spec.edition_digest:
        found.append(f"edition {spec.edition} of {spec.dataset} (lnlbench prepare), digest {spec.edition_digest[:12]}")
    return list(dict.fromkeys(found))


def differences(recorded: Environment, here: Environment) -> list[tuple[str, str, str]]:
    """Return what differs between two environments: name, the one value, the other; platform and libraries included."""
    pairs = [
        (name, str(getattr(recorded, name)), str(getattr(here, name)))
        for name in ("lnlbench", "commit", "python", "platform", "device", "device_type", "threads", "cpu_capability")
    ]
    libraries = sorted({*recorded.versions, *here.versions})
    pairs += [(name, recorded.versions.get(name, ""), here.versions.get(name, "")) for name in libraries]
    return [(name, first, second) for name, first, second in pairs if first != second]


@dataclass(frozen=True)
class Judged:
    """How a run that was repeated compares with the one on record."""

    cell: str
    """Cell id."""
    seed: int
    """Training seed."""
    outcome: Outcome | None
    """``None`` where only the mean over the runs can decide."""
    reason: str
    """For people."""


@dataclass(frozen=True)
class Agreement:
    """The mean over repeated runs beside that over those on record, on one test set. Fractions."""

    test_set: str
    """Test set; empty if there is only one."""
    recorded: float
    """Mean of ``last10`` over the runs on record."""
    again: float
    """Mean over the runs that repeat them."""
    spread: float | None
    """Two pooled standard deviations; ``None`` for a single run."""
    chance: float
    """Two standard errors of the difference of two accuracies, by the size of the test set."""

    @property
    def outcome(self) -> Outcome:
        """Whether the difference is within either tolerance."""
        return "same" if abs(self.again - self.recorded) <= max(self.spread or 0.0, self.chance) else "different"

    @property
    def reason(self) -> str:
        """For people."""
        difference = self.again - self.recorded
        where = f" on {self.test_set}" if self.test_set else ""
        told = f"last10{where} {100 * self.recorded:.2f} on record, {100 * self.again:.2f} again"
        if self.spread is not None and abs(difference) <= self.spread:
            return f"{told}: within 2 pooled standard deviations ({100 * self.spread:.2f})"
        chance = f"2 binomial standard errors of the test set ({100 * self.chance:.2f})"
        if abs(difference) <= self.chance:
            return f"{told}: within {chance}"
        spread = "" if self.spread is None else f"2 pooled standard deviations ({100 * self.spread:.2f}) and "
        return f"{told}: beyond {spread}{chance}"


@dataclass(frozen=True)
class Verdict:
    """Whether runs could be repeated."""

    outcome: Outcome
    """Of all of them together."""
    runs: tuple[Judged, ...]
    """Run by run."""
    agreements: tuple[Agreement, ...]
    """Means, where they had to decide."""


def judge(recorded: Sequence[Content], again: Iterable[Content]) -> Verdict:
    """Compare runs with those that repeat them, cell by cell.

    Deterministic runs under one fingerprint (PyTorch, device, threads, instruction set) must have equal predictions.
    Otherwise the mean of ``last10`` over the cells in common may differ by two pooled standard deviations (from two
    runs on), or by two standard errors of the difference of two accuracies on the test set, whichever is more.

    Args:
        recorded: Runs on record.
        again: Runs of the same cells, among others.

    Raises:
        UsageError: There is no cell in common.
    """
    others = {content.record.cell: content for content in again}
    pairs = [(first, others[first.record.cell]) for first in recorded if first.record.cell in others]
    if not pairs:
        raise UsageError("no run of these cells among what they are compared with; run the printed command first")
    runs = tuple(_judge_run(first, second) for first, second in pairs)
    if any(run.outcome == "different" for run in runs):
        return Verdict("different", runs, ())
    if all(run.outcome == "identical" for run in runs):
        return Verdict("identical", runs, ())
    agreements = tuple(
        _agreement(test_set, [(first.record, second.record) for first, second in pairs if first.record.scores])
        for test_set in pairs[0][0].record.spec.test_sets or ("",)
    )
    return Verdict("same" if all(each.outcome == "same" for each in agreements) else "different", runs, agreements)


def _judge_run(first: Content, second: Content) -> Judged:
    one, two = first.record, second.record

    def judged(outcome: Outcome | None, reason: str) -> Judged:
        return Judged(one.cell, one.spec.seed, outcome, reason)

    if one.noise.digest != two.noise.digest or one.data.digest != two.data.digest:
        what = "noisy labels" if one.data.digest == two.data.digest else "data"
        return judged("different", f"made with other {what}")
    if one.status != two.status:
        return judged("different", f"{one.status} on record, {two.status} again")
    if one.status == "diverged":
        return judged("identical", "diverged both times")
    if first.predictions.keys() == second.predictions.keys() and all(
        predictions.same_as(second.predictions[name]) for name, predictions in first.predictions.items()
    ):
        return judged("identical", "all predictions are equal")
    exact = one.spec.deterministic and (one.resume, two.resume) == ("exact", "exact")
    if exact and one.environment.fingerprint == two.environment.fingerprint:
        return judged("different", "other predictions, though nothing bit-exactness depends on differs")
    return judged(
        None, "other predictions, " + ("under another fingerprint" if exact else "of runs that are not exact")
    )


def _agreement(test_set: str, pairs: Sequence[tuple[RunRecord, RunRecord]]) -> Agreement:
    sides = [
        [scores.last10 for record in records if (scores := scores_on(record, test_set)) is not None]
        for records in zip(*pairs, strict=True)
    ]
    first, second = (statistics.fmean(side) for side in sides)
    spread = None
    if len(pairs) > 1:
        spread = SPREADS * math.sqrt(statistics.fmean([statistics.variance(side) for side in sides]))
    data = pairs[0][0].data
    images = data.num_further_test.get(test_set, data.num_test)
    chance = SPREADS * math.sqrt((first * (1 - first) + second * (1 - second)) / images)
    return Agreement(test_set, first, second, spread, chance)


def _row_names(record: RunRecord) -> list[str]:
    key, spec = protocol_digest(record)[:8], record.spec
    return [row_name(spec.suite, task, spec.method.name, key) for task in spec.test_sets or (spec.task,)]


def _task_words(spec: CellSpec) -> list[str]:
    # The suite's name goes in front of a level that would be read as SUITE@LEVEL itself.
    levels = [f"{spec.suite}@{level}" if "@" in level else level for level in spec.test_sets or (spec.task,)]
    return ["--suite", spec.suite, "--task", ",".join(levels)]


def _own_words(spec: CellSpec, switches: Container[str]) -> list[str]:
    words = ["--dataset", spec.dataset]
    words += _pairs("--data-set", spec.data_options)
    if spec.noise.generator != "own":
        words += ["--noise", spec.noise.generator]
        words += [] if spec.noise.rate is None else ["--rate", json.dumps(spec.noise.rate)]
        words += _pairs("--noise-set", {key: value for key, value in spec.noise.options.items() if key in switches})
    return words


def _protocol_words(spec: CellSpec) -> list[str]:
    words = [] if spec.selector is None else ["--select", spec.selector.name]
    if "epochs" in spec.method.changed:
        words += ["--epochs", _text(spec.method.changed["epochs"])]
    for name, value in overrides(spec).items():
        words += ["--set", f"{name}={value}"]
    if spec.limit_train is not None:
        words += ["--limit-train", str(spec.limit_train)]
    words += ["--precision", spec.precision]
    words += ["--compile"] if spec.compile else []
    return words + ([] if spec.deterministic else ["--fast-kernels"])


def _pairs(switch: str, options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in sorted(options.items()) for word in (switch, f"{name}={_text(value)}")]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ranges(seeds: Iterable[int]) -> str:
    """Write seeds the short way.

    >>> _ranges([5, 1, 2, 3, 8, 9])
    '1-3,5,8,9'
    """
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and seed == runs[-1][-1] + 1 and len(runs[-1]) < 1000:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
