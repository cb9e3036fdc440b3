"""Progress of a run: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lnlbench.records import CellSpec

_PLAIN_INTERVAL_SECONDS = 15.0


class Display(Protocol):
    """Receives each event of each cell."""

    def hear(self, cell: CellSpec, event: dict[str, Any]) -> None:
        """Show an event."""


@contextmanager
def display(console: Console, num_cells: int, num_epochs: int) -> Iterator[Display]:
    """Show progress until the block ends.

    Args:
        console: Where to.
        num_cells: Cells that will be run.
        num_epochs: Epochs of all of them together.
    """
    if not console.is_terminal:
        yield PlainLines(console, num_cells)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with progress:
        yield LiveBars(progress, num_cells, num_epochs)


class LiveBars:
    """One bar for everything (in epochs) and one per running cell."""

    def __init__(self, progress: Progress, num_cells: int, num_epochs: int) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._num_cells = num_cells
        self._ended = 0
        self._all = progress.add_task("[bold]all epochs[/bold]", total=num_epochs, note=f"0 of {num_cells} cells")

    def hear(self, cell: CellSpec, event: dict[str, Any]) -> None:
        """Show an event."""
        kind = event["event"]
        epochs = cell.method.config["epochs"]
        if kind == "launch":
            self._bars[cell.id] = self._progress.add_task(escape(cell.label), total=epochs, note="starting")
            self._done[cell.id] = 0
        elif kind in ("epoch", "resumed"):
            done = event["epoch"] + (1 if kind == "epoch" else 0)
            self._progress.advance(self._all, done - self._done[cell.id])
            self._done[cell.id] = done
            note = f"{100 * event['accuracy']:.1f} %" if kind == "epoch" else "resumed"
            self._progress.update(self._bars[cell.id], completed=done, note=note)
        elif kind in ("stage", "stage epoch"):
            note = event["stage"] + (f" {event['epoch'] + 1}/{event['epochs']}" if kind == "stage epoch" else "")
            self._progress.update(self._bars[cell.id], note=escape(note))
        elif kind == "warning":
            self._progress.console.print(f"{escape(cell.label)}: {escape(event['message'])}", style="yellow")
        elif kind == "exit":
            self._ended += 1
            self._progress.remove_task(self._bars.pop(cell.id))
            self._progress.advance(self._all, epochs - self._done[cell.id])
            self._progress.update(self._all, note=f"{self._ended} of {self._num_cells} cells")


class PlainLines:
    """One line when a cell starts and ends, and now and then in between."""

    def __init__(self, console: Console, num_cells: int) -> None:
        self._console = console
        self._num_cells = num_cells
        self._ended = 0
        self._last: dict[str, float] = {}
        self._note: dict[str, str] = {}

    def hear(self, cell: CellSpec, event: dict[str, Any]) -> None:
        """Print an event, if it is worth a line."""
        kind = event["event"]
        if kind == "launch":
            self._last[cell.id] = time.monotonic()
            self._say(cell, f"started on {event['device']}")
        elif kind == "resumed":
            self._say(cell, f"resumed at epoch {event['epoch']} of {event['epochs']}")
        elif kind == "warning":
            self._say(cell, f"warning: {event['message']}")
        elif kind == "stage":
            self._say(cell, f"stage: {event['stage']}")
        elif kind == "epoch":
            done = event["epoch"] + 1
            self._note[cell.id] = f"epoch {done}/{event['epochs']}, test accuracy {100 * event['accuracy']:.2f} %"
            if time.monotonic() - self._last[cell.id] >= _PLAIN_INTERVAL_SECONDS:
                self._last[cell.id] = time.monotonic()
                self._say(cell, self._note[cell.id])
        elif kind == "exit":
            self._ended += 1
            self._say(cell, f"ended ({self._ended} of {self._num_cells}); {self._note.get(cell.id, 'no epoch done')}")

    def _say(self, cell: CellSpec, text: str) -> None:
        self._console.print(f"{cell.label}: {text}", markup=False, soft_wrap=True)
