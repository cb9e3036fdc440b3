"""All that the pages tell, read once: rows, runs, reported results, and what is installed."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lnlbench.contracts.dataset import DatasetEntry
from lnlbench.contracts.method import MethodEntry
from lnlbench.contracts.suite import Suite
from lnlbench.errors import DataError, UsageError
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import Row, protocol_digest
from lnlbench.leaderboard.content import METRICS, Epoch
from lnlbench.leaderboard.reported import PAPERS, Reported, ReportedRow, read_reported
from lnlbench.leaderboard.store import bundles_of, read_rows, suites_of
from lnlbench.plugins import Registered, Registry
from lnlbench.records import CellSpec, RunRecord, canonical_json, digest, safe_name
from lnlbench.site.workers import workers

MEASURED, REPORTED = "measured", "reported"
"""Folders of the leaderboards."""

_CHUNK = 250
"""Bundles that are read together."""
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class Run:
    """A run of a row."""

    record: RunRecord
    """The result, without the confusion matrix of its noise."""
    folder: Path
    """Its bundle."""

    @property
    def anchor(self) -> str:
        """Id of its section on the page of its row. One row may have several runs of one seed."""
        return f"seed-{self.record.spec.seed}-{self.record.cell[:6]}"

    def with_confusion(self) -> RunRecord:
        """Read the record again, with the confusion matrix of its noise.

        Raises:
            DataError: The bundle is damaged.
        """
        return bundle.read(self.folder)

    def epochs(self) -> list[Epoch]:
        """Read the metrics; a diverged run may have none.

        Raises:
            DataError: They are damaged.
        """
        if self.record.status == "diverged" and not (self.folder / METRICS).exists():
            return []
        return bundle.read_metrics(self.folder)


RowKey = tuple[str, str, str]
"""Suite, task and protocol key: no two rows share them."""


@dataclass(frozen=True)
class SuiteResults:
    """What is known of one suite."""

    name: str
    """Suite id."""
    suite: Suite | None
    """Its definition; ``None`` if it is not installed."""
    rows: tuple[Row, ...]
    """Measured, in the order of the CSV."""
    reported: tuple[ReportedRow, ...]
    """Printed in papers, in the order of the file."""

    @property
    def title(self) -> str:
        """A line for people."""
        return self.suite.title if self.suite else self.name


@dataclass(frozen=True)
class Site:
    """Everything that pages are made of."""

    suites: Mapping[str, SuiteResults]
    """Suites with results, measured or reported, by name."""
    runs: Mapping[RowKey, tuple[Run, ...]]
    """Runs of each row by seed, diverged ones included; none of a suite without bundles."""
    reported: Reported
    """All reported results and their papers."""
    registry: Registry
    """What is installed."""
    board: Path
    """Folder of the measured results."""

    def runs_of(self, row: Row) -> tuple[Run, ...]:
        """Return the runs of a row; none if there are no bundles."""
        return self.runs.get(key_of(row), ())

    def rows(self) -> Iterator[Row]:
        """All measured rows, by suite."""
        for results in self.suites.values():
            yield from results.rows

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods with a page: all that are measured or installed."""
        return tuple(sorted({row.method for row in self.rows()} | set(self.registry.methods.names())))

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets with a page: all that are installed, or have a run."""
        installed = {name for name in self.registry.datasets.names() if not name.endswith(":")}
        return tuple(sorted(installed | set(self._datasets_of_runs.values())))

    def dataset_of(self, suite: str) -> str:
        """Return the name of a suite's dataset; empty if neither its definition nor a run says it."""
        results = self.suites.get(suite)
        definition = results.suite if results else suite_entry(self.registry, suite)
        return definition.dataset if definition else self._datasets_of_runs.get(suite, "")

    @cached_property
    def _datasets_of_runs(self) -> Mapping[str, str]:
        return {suite: runs[0].record.spec.dataset for (suite, _, _), runs in self.runs.items()}

    def method_entry(self, name: str) -> Registered[MethodEntry] | None:
        """Return the entry of a method, and who provides it; ``None`` if it is not installed."""
        return self.registry.methods.find(name) if _findable(self.registry.methods, name) else None

    def dataset_entry(self, name: str) -> Registered[DatasetEntry] | None:
        """Return the entry of a dataset, and who provides it; ``None`` if it is not installed."""
        return self.registry.datasets.find(name) if _findable(self.registry.datasets, name) else None

    def class_names(self, spec: CellSpec) -> tuple[str, ...]:
        """Return the names of the classes of a cell's data, by class id; those outside the task are among them.

        Empty if the dataset is not installed, or if they depend on a user's copy of it.
        """
        key = canonical_json([spec.dataset, spec.data_options])
        if key not in self._class_names:
            registered = self.dataset_entry(spec.dataset)
            try:
                dataset = registered.load()(spec.dataset, spec.data_options) if registered else None
                self._class_names[key] = tuple(map(str, getattr(dataset, "class_names", ())))
            except Exception:  # the code is somebody else's; the page then has numbers
                self._class_names[key] = ()
        return self._class_names[key]

    @cached_property
    def _class_names(self) -> dict[str, tuple[str, ...]]:
        return {}

    # Addresses are relative to the root of the site. They are empty where there is no page.

    def suite_url(self, name: str) -> str:
        """Address of a suite's page."""
        return f"suites/{slug(name)}.html" if name in self.suites else ""

    def method_url(self, name: str) -> str:
        """Address of a method's page."""
        return f"methods/{slug(name)}.html" if name in self.methods else ""

    def dataset_url(self, name: str) -> str:
        """Address of a dataset's page."""
        return f"datasets/{slug(name)}.html" if name in self.datasets else ""

    def row_url(self, row: Row) -> str:
        """Address of the page of a row, with its runs."""
        return f"runs/{slug(row.suite)}/{slug(row.task)}/{slug(row.method)}-{slug(row.protocol_key)}.html"


def read_site(leaderboards: Path, registry: Registry) -> Site:
    """Read leaderboards.

    Args:
        leaderboards: The folder with ``measured/`` and ``reported/``, either of which may be missing.
        registry: What is installed.

    Raises:
        UsageError: There are no results at all.
        DataError: A file is damaged, or a CSV file is not that of the bundles beside it.
    """
    board = leaderboards / MEASURED
    rows = {path.stem: tuple(read_rows(path)) for path in sorted(board.glob("*.csv"))}
    _check_names(board, rows)
    folder = leaderboards / REPORTED
    reported = read_reported(folder) if (folder / PAPERS).exists() else Reported({}, {}, {})
    names = sorted(rows.keys() | reported.results.keys())
    if not names:
        raise UsageError(f"no results in {leaderboards}; score some runs first, or name another folder")
    suites = {
        name: SuiteResults(name, suite_entry(registry, name), rows.get(name, ()), reported.results.get(name, ()))
        for name in names
    }
    return Site(suites, _read_runs(board, rows), reported, registry, board)


def suite_entry(registry: Registry, name: str) -> Suite | None:
    """Return the definition of a suite; ``None`` if it is not installed."""
    return registry.suites.find(name).entry if _findable(registry.suites, name) else None


def key_of(row: Row) -> RowKey:
    """Return what no other row has."""
    return row.suite, row.task, row.protocol_key


def slug(text: str) -> str:
    """Return ``text`` as the name of a file, different for different texts even where case makes no difference."""
    if _PLAIN.fullmatch(text):
        return text
    return f"{safe_name(text).lstrip('.-').lower()[:60] or '_'}-{digest(text)[:8]}"


def _findable(catalogue: Any, name: str) -> bool:
    # A name that two distributions claim is nobody's.
    try:
        catalogue.find(name)
    except Exception:
        return False
    return True


def _check_names(board: Path, rows: Mapping[str, tuple[Row, ...]]) -> None:
    for name, each in rows.items():
        odd = next((row.suite for row in each if row.suite != name), None)
        if odd is not None:
            raise DataError(f"{board / name}.csv: has a row of suite {odd!r}; rebuild it from its bundles")
        if len({key_of(row) for row in each}) != len(each):
            raise DataError(f"{board / name}.csv: has a row twice; rebuild it from its bundles")


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Switch the garbage collector off: nothing that is read here is garbage, and it would look at all of it again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Else it would begin by looking at everything. Writing the pages ends that.
        gc.freeze()
        if enabled:
            gc.enable()


@_no_collections()
def _read_runs(board: Path, rows: Mapping[str, tuple[Row, ...]]) -> dict[RowKey, tuple[Run, ...]]:
    folders = {suite: bundles_of(board, suite) for suite in suites_of(board)}
    chunks = [each[at : at + _CHUNK] for each in folders.values() for at in range(0, len(each), _CHUNK)]
    runs: dict[RowKey, list[Run]] = {}
    with workers(sum(map(len, folders.values()))) as pool:
        read = map(_read_chunk, chunks) if pool is None else pool.map(_read_chunk, chunks)
        for chunk, found in zip(chunks, read, strict=True):
            for folder, (record, key) in zip(chunk, found, strict=True):
                spec = record.spec
                for task in spec.test_sets or (spec.task,):
                    runs.setdefault((spec.suite, task, key), []).append(Run(record, folder))
    for suite in folders:
        _check_runs(board, suite, rows.get(suite, ()), runs)
    return {key: tuple(sorted(each, key=_order)) for key, each in runs.items()}


def _read_chunk(folders: Sequence[Path]) -> list[tuple[RunRecord, str]]:
    """Read the records of bundles, each with its protocol key."""
    records = [bundle.read(folder, confusion=False) for folder in folders]
    return [(record, protocol_digest(record)[:8]) for record in records]


def _order(run: Run) -> tuple[int, int, str]:
    return run.record.spec.seed, run.record.spec.noise.seed or 0, run.record.cell


def _check_runs(board: Path, suite: str, rows: tuple[Row, ...], runs: Mapping[RowKey, list[Run]]) -> None:
    """Check that the CSV file of a suite has the rows of its bundles, over as many runs."""
    held = {key: _counts(each) for key, each in runs.items() if key[0] == suite}
    told = {key_of(row): (row.n, row.n_diverged) for row in rows}
    if held != told:
        raise DataError(f"{board / suite}.csv is not that of the bundles beside it; run `lnlbench score` to rebuild it")


def _counts(runs: list[Run]) -> tuple[int, int]:
    finished = sum(run.record.status == "finished" for run in runs)
    return finished, len(runs) - finished
