"""Leaderboards for people: tables that fit the terminal, and JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lnlbench.leaderboard.aggregate import Row

LAST10_NOTE = (
    "last10: mean test accuracy over the final ten epochs, in percent; ± is the sample standard deviation over n runs."
)
BEST_NOTE = "best: the highest epoch, chosen on the test set, so it flatters; gap: best minus last10."
SELECTION_NOTE = (
    "clean AUC, precision, recall: how well the method finds the samples whose given label is true, in percent; those "
    "of unknown truth do not count."
)
BEST_VAL_NOTE = "best on val: test accuracy at the epoch that is best on the dataset's clean validation set."
TOP5_NOTE = "top-5: as last10, for the share of images with the class among the first five."
OOD_NOTE = (
    "ID noise, OOD: how well it finds the mislabelled samples of the classes, and those that belong to none of them."
)
EDITION_NOTE = "† not made with the published data files, but with the registered edition named below the method."
TIE_NOTE = "Runs are comparable within one task and protocol; what sets a row apart stands below its name."
REDUCED_TITLE = "REDUCED RUNS: shorter or smaller than the protocol, not comparable with full runs"

_TASK_WIDTH = 9
"""Width that the names of tasks are not folded below; enough for the usual ones."""

_OWN = "own"
"""Edition of data that nobody published, which hence is not told apart from published files."""


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[Row], str]
    note: str = ""
    """What readers have to know, if the column is shown."""
    dim: bool = False
    always: bool = False
    """Whether the column is shown even where no row has anything in it."""


_ACCURACY = (
    _Column("last10", lambda row: _with_spread(row), LAST10_NOTE, always=True),
    _Column("last", lambda row: _fixed(row.last_mean, 2), always=True),
    _Column("best\n(on test)", lambda row: _fixed(row.best_mean, 2), BEST_NOTE, dim=True, always=True),
    _Column("gap", lambda row: _fixed(row.gap_mean, 2), BEST_NOTE, dim=True, always=True),
    _Column("best\n(on val)", lambda row: _fixed(row.best_val_mean, 2), BEST_VAL_NOTE),
    _Column("top-5", lambda row: _fixed(row.top5_last10_mean, 2), TOP5_NOTE),
)
_COUNT = _Column("n", lambda row: str(row.n))
_SELECTION = (
    _Column("clean\nAUC", lambda row: _fixed(row.clean_auc_mean, 1), SELECTION_NOTE),
    _Column("clean\nprec", lambda row: _fixed(row.clean_precision_mean, 1), SELECTION_NOTE),
    _Column("clean\nrec", lambda row: _fixed(row.clean_recall_mean, 1), SELECTION_NOTE),
    _Column("ID\nnoise\nprec", lambda row: _fixed(row.id_noise_precision_mean, 1), OOD_NOTE),
    _Column("ID\nnoise\nrec", lambda row: _fixed(row.id_noise_recall_mean, 1), OOD_NOTE),
    _Column("OOD\nprec", lambda row: _fixed(row.ood_precision_mean, 1), OOD_NOTE),
    _Column("OOD\nrec", lambda row: _fixed(row.ood_recall_mean, 1), OOD_NOTE),
)
_COST = _Column("s/run", lambda row: _fixed(_seconds(row), 0))


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard that lays itself out when it is printed.

    Columns that no row has anything in are left out. Where the others do not fit side by side, accuracies come first,
    and further tables have selection and cost. Names are folded before a number is ever cut.
    """

    title: str
    """Heading."""
    rows: tuple[Row, ...]
    """Rows in the order of the CSV."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full = [row for row in self.rows if not row.reduced]
        reduced = [row for row in self.rows if row.reduced]
        several_suites = len({row.suite for row in self.rows}) > 1
        if not self.rows:
            yield Text(f"{_printable(self.title)}: no runs yet")
            return
        accuracy, selection = (_used(columns, self.rows) for columns in (_ACCURACY, _SELECTION))
        for title, rows in ((self.title, full), (f"{self.title}\n{REDUCED_TITLE}", reduced)):
            if rows:
                yield from _section(console, options, title, rows, accuracy, selection, several_suites)
                yield Text()
        notes = [*(column.note for column in (*accuracy, *selection)), TIE_NOTE]
        if any(_is_foreign(row) for row in self.rows):
            notes.append(EDITION_NOTE)
        for note in dict.fromkeys(filter(None, notes)):
            yield Text(_encodable(note, options), style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(40, options.max_width), options.max_width)


def leaderboard_table(rows: Iterable[Row], title: str) -> Leaderboard:
    """Return rows as tables for a rich console: full runs first, reduced ones apart and with their reason.

    Args:
        rows: Rows of one suite or several, as read or summarised.
        title: Heading, for instance the suite's title.
    """
    return Leaderboard(title, tuple(rows))


def rows_as_json(rows: Iterable[Row]) -> str:
    """Return rows as a JSON list; what is missing is null, and there is no NaN."""
    return json.dumps([row.model_dump(mode="json") for row in rows], indent=2, allow_nan=False, ensure_ascii=False)


def _used(columns: Sequence[_Column], rows: Sequence[Row]) -> list[_Column]:
    return [column for column in columns if column.always or any(column.cell(row) for row in rows)]


def _section(
    console: Console,
    options: ConsoleOptions,
    title: str,
    rows: Sequence[Row],
    accuracy: Sequence[_Column],
    selection: Sequence[_Column],
    several_suites: bool,
) -> Iterable[RenderableType]:
    def fits(columns: Sequence[_Column]) -> bool:
        table = _table(rows, columns, "", several_suites, options)
        # The least width is the one with names folded at blanks.
        return console.measure(table, options=options.update(max_width=10_000)).minimum <= options.max_width

    tables = [[*accuracy, *selection, _COUNT, _COST]]
    if not fits(tables[0]):
        first, *rest = _parts([*accuracy, _COUNT], fits)
        tables = [first, *_parts([*itertools.chain(*rest), *selection, _COST], fits)]
    yield _table(rows, tables[0], title, several_suites, options)
    for columns in tables[1:]:
        yield Text()
        yield _table(rows, columns, f"{title}\n(continued)", several_suites, options)


def _parts(columns: Sequence[_Column], fits: Callable[[Sequence[_Column]], bool]) -> Iterable[list[_Column]]:
    """Divide columns among as few tables as possible, in order."""
    part: list[_Column] = []
    for column in columns:
        if part and not fits([*part, column]):
            yield part
            part = []
        part.append(column)
    yield part


def _table(
    rows: Sequence[Row], columns: Sequence[_Column], title: str, several_suites: bool, options: ConsoleOptions
) -> Table:
    table = Table(
        title=Text(_encodable(_printable_lines(title), options), style="bold"),
        title_justify="left",
        box=box.ASCII2 if options.ascii_only else box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    tasks = [_task(row, several_suites) for row in rows]
    table.add_column("task", overflow="fold", min_width=max(4, min(_TASK_WIDTH, max(map(len, tasks)))))
    table.add_column("method", overflow="fold", min_width=10, max_width=40)
    for column in columns:
        lines = [*column.header.split("\n"), *(_encodable(column.cell(row), options) for row in rows)]
        table.add_column(
            column.header,
            justify="right",
            vertical="top",
            no_wrap=True,
            # Numbers are never folded, yet a blank in them would count as a place for it.
            min_width=max(map(cell_len, lines)),
            style="dim" if column.dim else "",
        )
    for task, group in itertools.groupby(rows, key=lambda row: _task(row, several_suites)):
        members = list(group)
        for number, row in enumerate(members):
            table.add_row(
                Text(_encodable(task, options)) if number == 0 else Text(),
                _name(row, options),
                *(Text(_encodable(column.cell(row), options)) for column in columns),
                end_section=number == len(members) - 1,
            )
    return table


def _name(row: Row, options: ConsoleOptions) -> Text:
    """Return the method with, below it, everything a reader has to know before comparing it."""
    marks = [] if row.protocol == "preset" else [row.protocol]
    if row.edition == _OWN:
        marks.append("own data")
    elif _is_foreign(row):
        marks.append(f"edition {row.edition}")
    if row.supervision != "scratch":
        marks.append(f"uses {row.supervision}")
    if row.ruleset == "tuned" and "noise-" not in row.supervision:
        marks.append("tuned to the noise")
    if row.networks > 1:
        marks.append(f"{row.networks} networks")
    if row.validation == "yes":
        marks.append("validation split")
    if row.resume == "inexact":
        marks.append("resumed on another device or software")
    if row.n_diverged:
        marks.append(f"{row.n_diverged} diverged")
    name = Text(_encodable(_printable(row.method) + ("†" if _is_foreign(row) else ""), options))
    if row.reduced:
        name.append(" (reduced)", style="yellow")
    if marks:
        name.append("\n")
        name.append(_encodable(_printable("; ".join(marks)), options), style="dim")
    return name


def _task(row: Row, several_suites: bool) -> str:
    return _printable(f"{row.suite}@{row.task}" if several_suites else row.task)


def _with_spread(row: Row) -> str:
    if row.last10_mean is None:
        return "diverged" if row.n_diverged else ""
    mean = _fixed(row.last10_mean, 2)
    # Without a spread the numbers still stand below each other.
    return mean + " " * len(" ± 0.00") if row.last10_std is None else f"{mean} ± {row.last10_std:.2f}"


def _seconds(row: Row) -> float | None:
    if row.train_seconds_mean is None:
        return None
    return row.train_seconds_mean + (row.stage_seconds_mean or 0.0)


def _fixed(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _is_foreign(row: Row) -> bool:
    return row.edition not in ("canonical", _OWN)


def _printable(text: str) -> str:
    """Show control characters as escapes, so that a name in somebody's record cannot steer the terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _printable_lines(text: str) -> str:
    return "\n".join(map(_printable, text.split("\n")))


_PLAIN: dict[str, Literal["+/-", "(!)", "..."]] = {"±": "+/-", "†": "(!)", "…": "..."}


def _encodable(text: str, options: ConsoleOptions) -> str:
    """Spell out our own symbols, and escape everybody else's, where the output takes ASCII only."""
    if not options.ascii_only:
        return text
    for symbol, plain in _PLAIN.items():
        text = text.replace(symbol, plain)
    return text.encode("ascii", "backslashreplace").decode()
