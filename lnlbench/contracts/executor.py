"""What an executor is: it carries cells to where they run, and knows nothing of what is in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.suite import Suite
from lnlbench.records import CellSpec


class ExecutorEntry(BaseModel):
    """An executor as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'local'.")
    target: str = Field(description="Where the class is, as 'package.module:Class'.")
    summary: str = Field(description="One sentence.")


class Job(BaseModel):
    """One cell and where it works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: CellSpec = Field(description="The complete specification.")
    suite: Suite = Field(description="The suite of the cell; it need not be installed where the cell runs.")
    folder: Path = Field(description="The cell's own folder; it receives every file of the run.")
    data: Path = Field(description="Root of the data folder.")
    offline: bool = Field(description="Whether downloads are forbidden.")
    threads: int = Field(ge=1, description="CPU threads.")


class Resources(BaseModel):
    """What the user lets an executor use on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: tuple[str, ...] = Field(description="PyTorch device names, e.g. ('cuda:0', 'cuda:1') or ('cpu',).")
    jobs_per_device: int = Field(1, ge=1, description="Cells side by side on one device.")


Listener = Callable[[str, dict[str, Any]], None]
"""Receives (cell id, event) for every sign of life of a cell; ``event["event"]`` names it."""


class Launcher(Protocol):
    """How a cell is run; handed to an executor by the engine."""

    def here(self, job: Job, device: str, listen: Listener) -> None:
        """Run the cell in this process. It never raises for a failing cell; the outcome lies in the cell's folder."""

    def command(self, job: Job, device: str) -> tuple[list[str], dict[str, str]]:
        """Return the argument vector and the environment of a process that runs the cell.

        The process prints one JSON event a line to its standard output; all other output goes to the cell's log.
        """


class Executor(ABC):
    """Runs jobs. A job has succeeded when its folder holds a committed result, whatever its exit code was."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        """Run all jobs and return when none is left; the failure of one never stops another.

        For each job the listener hears, besides the job's own events, ``{"event": "exit", "code": int}`` at the end.
        """
