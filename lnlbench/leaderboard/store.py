"""The leaderboard as files: a CSV per suite, a pure function of the bundles and of the notes of trust beside it.

Nothing is ever appended to a CSV. It is computed anew from all bundles of its suite, under the board's lock, and
replaced by one rename; so no writer can lose another one's rows, and deleting the CSV loses nothing.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.files import OS_FS, Fs, storage_errors, write_bytes
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import Row, decimals, summarise
from lnlbench.leaderboard.bundle import Added
from lnlbench.leaderboard.trust import read_trust

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = tuple(Row.model_fields)
"""Columns of the CSV, in order."""

_DECIMALS = {column: decimals(column) for column in COLUMNS}
_TEXT = frozenset(column for column in COLUMNS if Row.model_fields[column].annotation is str)
_TRIGGERS = tuple("=+-@\t\r\n|%＝＋－＠")
_GUARD = "'"
_QUOTE = '"'


@dataclass(frozen=True)
class Left:
    """A run folder that was not scored, and why."""

    folder: Path
    """The run folder."""
    reason: str
    """For people, one line."""


@dataclass(frozen=True)
class ScoreReport:
    """What became of every run folder that was offered, and which CSV files now show it."""

    added: tuple[Added, ...]
    """Runs that are on the board, new or not."""
    unfinished: tuple[Left, ...]
    """Run folders without a result."""
    refused: tuple[Left, ...]
    """Run folders whose result is damaged or does not fit its predictions."""
    boards: tuple[Path, ...]
    """The CSV files of the suites concerned."""

    @property
    def disagreeing(self) -> tuple[Added, ...]:
        """Runs whose cell was on the board before with other predictions."""
        return tuple(added for added in self.added if added.agrees is False)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders at or below ``folder``, sorted: those with a specification or a result.

    A folder without any is returned itself, for it may be that of a run which ended before it wrote anything.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; name a run folder or one that holds run folders")
    found = []
    for path, folders, files in os.walk(folder):
        if "result.json" in files or "spec.json" in files:
            found.append(Path(path))
            folders.clear()
    return sorted(found) or [folder]


def score(run_folders: Iterable[Path], board: Path, replace: bool = False, fs: Fs = OS_FS) -> ScoreReport:
    """Put runs on a board: copy a bundle of each, then rebuild the CSV files of their suites, all under one lock.

    A run that is unfinished or damaged is reported and does not keep the others off the board.

    Args:
        run_folders: Run folders, or folders that hold run folders at any depth.
        board: The board's folder; created if need be.
        replace: Whether a run replaces an earlier one of the same cell. By default the first one stays.
        fs: The file system; tests hand in one that fails.

    Raises:
        UsageError: A folder does not exist.
        DataError: A bundle that was on the board before is damaged; no CSV is rewritten.
        StorageError: The board cannot be written; its CSV files are as they were.
    """
    folders = [run for folder in run_folders for run in find_runs(folder)]
    added: list[Added] = []
    unfinished: list[Left] = []
    refused: list[Left] = []
    with bundle.locked(board):
        for folder in dict.fromkeys(folders):
            if not (folder / "result.json").exists():
                unfinished.append(Left(folder, _why_unfinished(folder)))
                continue
            try:
                content = bundle.load_run(folder)
            except DataError as error:
                refused.append(Left(folder, str(error)))
            else:
                added.append(bundle.place(content, board, replace, fs))
        boards = _rebuild(board, sorted({each.suite for each in added}), False, fs)
    return ScoreReport(tuple(added), tuple(unfinished), tuple(refused), tuple(boards))


def rebuild(board: Path, suites: Sequence[str] | None = None, verify: bool = False, fs: Fs = OS_FS) -> list[Path]:
    """Compute the CSV files of a board from its bundles.

    Args:
        board: The board's folder.
        suites: Which suites; all that have bundles by default.
        verify: Whether every score is recomputed from predictions first. Digests and ids are always checked.
        fs: The file system; tests hand in one that fails.

    Returns:
        The CSV files, one per suite.

    Raises:
        UnknownNameError: A suite has no bundles on this board.
        DataError: A bundle is damaged; no CSV is rewritten.
        StorageError: The board cannot be written; its CSV files are as they were.
    """
    with bundle.locked(board):
        known = suites_of(board)
        for suite in suites or ():
            if suite not in known:
                raise UnknownNameError(f"suite on the board {board}", suite, known)
        return _rebuild(board, known if suites is None else sorted(set(suites)), verify, fs)


def suites_of(board: Path) -> list[str]:
    """Return the suites a board has bundles of, sorted."""
    folder = board / bundle.BUNDLES
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def bundles_of(board: Path, suite: str) -> list[Path]:
    """Return the bundles of a suite, sorted by cell id.

    Raises:
        DataError: Something that is no bundle lies among them.
    """
    folder = board / bundle.BUNDLES / suite
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Hidden entries are a writer's unfinished business, or the file manager's.
            if entry.name.startswith("."):
                continue
            if not (bundle.is_cell_id(entry.name) and entry.is_dir(follow_symlinks=False)):
                raise DataError(f"{entry.path}: not a bundle; move it away from the bundles and try again")
            names.append(entry.name)
    return [folder / name for name in sorted(names)]


def _rebuild(board: Path, suites: Sequence[str], verify: bool, fs: Fs) -> list[Path]:
    """Rebuild while holding the lock: first compute every file, then write, so that damage changes nothing."""
    contents: dict[Path, bytes] = {}
    with storage_errors(board):
        for suite in suites:
            bundle.clean(board / bundle.BUNDLES / suite, fs)
            folders = bundles_of(board, suite)
            if verify:
                for folder in folders:
                    bundle.verify(folder)
            contents[board / f"{suite}.csv"] = to_csv(
                summarise((bundle.read(folder, confusion=False) for folder in folders), read_trust(board, suite))
            )
        for leftover in board.glob("*.csv.*.tmp"):
            fs.unlink(leftover)
        for path, data in contents.items():
            if not (path.is_file() and path.read_bytes() == data):
                write_bytes(path, data, fs)
    return list(contents)


def to_csv(rows: Iterable[Row]) -> bytes:
    """Serialise rows: UTF-8, line feeds, a fixed count of decimals per column, blank for what is missing."""
    lines = [COLUMNS, *([_cell(column, getattr(row, column)) for column in COLUMNS] for row in rows)]
    return "".join(f"{','.join(map(_quoted, line))}\n" for line in lines).encode()


def read_board(path: Path) -> DataFrame:
    """Read a leaderboard as strings, exactly as they were before they were guarded for spreadsheets.

    A method named ``NA`` or ``007`` keeps its name. For typed values use :func:`read_rows`.

    Raises:
        DataError: The file is missing, or is not a CSV file.
    """
    # Importing pandas takes longer than everything else here, and only this function needs it.
    import pandas as pd

    header, *lines = _read_csv(path)
    frame = pd.DataFrame(lines, columns=header, dtype=str)
    return frame.map(unguard) if lines else frame


def read_rows(path: Path) -> list[Row]:
    """Read a leaderboard as the rows it was written from.

    Raises:
        DataError: The file is missing, damaged, or has other columns than this version writes.
    """
    header, *lines = _read_csv(path)
    if tuple(header) != COLUMNS:
        odd = [column for column in (*COLUMNS, *header) if (column in header) != (column in COLUMNS)]
        what = f"{odd[0]!r}, the first of {len(odd)} columns" if odd else "the order of its columns"
        raise DataError(f"{path}: differs from what this version writes in {what}; rebuild it from its bundles")
    rows = []
    for number, line in enumerate(lines, start=2):
        values = {
            column: unguard(cell) if column in _TEXT else (cell or None)
            for column, cell in zip(COLUMNS, line, strict=True)
        }
        try:
            rows.append(Row.model_validate(values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path}: row {number}, column {where}: {first['msg']}; rebuild it from its bundles"
            ) from error
    return rows


def guard(text: str) -> str:
    """Make a cell harmless in a spreadsheet, which would take it for a formula: prefix it with an apostrophe.

    A cell that starts with an apostrophe gets another one, so that :func:`unguard` is exact.
    """
    return _GUARD + text if text.startswith((*_TRIGGERS, _GUARD)) else text


def unguard(text: str) -> str:
    """Undo :func:`guard`."""
    return text.removeprefix(_GUARD)


def _cell(column: str, value: object) -> str:
    if value is None:
        return ""
    if column in _TEXT:
        return guard(str(value))
    places = _DECIMALS[column]
    # Numbers are never guarded: a negative one is no formula.
    return str(value) if places is None else f"{value:.{places}f}"


def _quoted(cell: str) -> str:
    # The writer of the standard library leaves a carriage return bare when lines end in line feeds.
    return f'"{cell.replace(_QUOTE, _QUOTE * 2)}"' if any(char in cell for char in ',"\r\n') else cell


def _read_csv(path: Path) -> list[list[str]]:
    """Read a CSV file into its header and lines of equal length."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; score some runs first, or name another board") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error}); rebuild it from its bundles") from error
    if not lines:
        raise DataError(f"{path}: empty; rebuild it from its bundles")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise DataError(
                f"{path}: row {number} has {len(line)} cells, not {len(lines[0])}; rebuild it from its bundles"
            )
    return lines


def _why_unfinished(folder: Path) -> str:
    if (folder / "failure.json").exists():
        return f"failed; the reason is in {folder / 'failure.json'}"
    if (folder / "spec.json").exists():
        return "no result.json yet: still running, or interrupted; run the same command again"
    return "not a run folder: neither spec.json nor result.json"
