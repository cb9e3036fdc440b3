"""Leaderboards for people: tables that fit the terminal, and JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
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
    "clean AUC, precision, recall: how well the method finds the samples whose given label is true, in percent."
)
EDITION_NOTE = "† not made with the published data files, but with the registered edition named below the method."
TIE_NOTE = "Runs are comparable within one task and protocol; what sets a row apart stands below its name."
REDUCED_TITLE = "REDUCED RUNS: shorter or smaller than the protocol, not comparable with full runs"


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[Row], str]
    dim: bool = False


_ACCURACY = (
    _Column("last10", lambda row: _with_spread(row)),
    _Column("last", lambda row: _fixed(row.last_mean, 2)),
    _Column("best\n(on test)", lambda row: _fixed(row.best_mean, 2), dim=True),
    _Column("gap", lambda row: _fixed(row.gap_mean, 2), dim=True),
)
_COUNT = _Column("n", lambda row: str(row.n))
_SELECTION = (
    _Column("clean\nAUC", lambda row: _fixed(row.clean_auc_mean, 1)),
    _Column("clean\nprec", lambda row: _fixed(row.clean_precision_mean, 1)),
    _Column("clean\nrec", lambda row: _fixed(row.clean_recall_mean, 1)),
)
_COST = _Column("s/run", lambda row: _fixed(_seconds(row), 0))


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard that lays itself out when it is printed.

    Where all columns do not fit side by side, accuracies come first and a second table has selection and cost. Names
    are folded before a number is ever cut.
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
        for title, rows in ((self.title, full), (f"{self.title}\n{REDUCED_TITLE}", reduced)):
            if rows:
                yield from _section(console, options, title, rows, several_suites)
                yield Text()
        notes = [LAST10_NOTE, BEST_NOTE, SELECTION_NOTE, TIE_NOTE]
        if any(_is_foreign(row) for row in self.rows):
            notes.append(EDITION_NOTE)
        for note in notes:
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


def _section(
    console: Console, options: ConsoleOptions, title: str, rows: Sequence[Row], several_suites: bool
) -> Iterable[RenderableType]:
    def table(columns: Sequence[_Column], heading: str) -> Table:
        return _table(rows, columns, heading, several_suites, options)

    wide = table((*_ACCURACY, *_SELECTION, _COUNT, _COST), title)
    # The least width is the one with names folded at blanks; numbers are never folded.
    if console.measure(wide, options=options.update(max_width=10_000)).minimum <= options.max_width:
        yield wide
        return
    yield table((*_ACCURACY, _COUNT), title)
    yield Text()
    yield table((*_SELECTION, _COST), f"{title}\nselection and cost")


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
    table.add_column("task", overflow="fold", min_width=4)
    table.add_column("method", overflow="fold", min_width=10, max_width=40)
    for column in columns:
        table.add_column(
            column.header, justify="right", vertical="top", no_wrap=True, style="dim" if column.dim else ""
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
    if _is_foreign(row):
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
    return row.edition != "canonical"


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
