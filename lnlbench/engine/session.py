"""One ``lnlbench run``: which cells are missing, carrying them out, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from lnlbench.contracts.executor import Executor, Job, Resources
from lnlbench.contracts.suite import Suite
from lnlbench.engine.launch import LOG, EngineLauncher
from lnlbench.engine.planner import cell_folder
from lnlbench.engine.runner import FAILURE, RESULT
from lnlbench.errors import DataError
from lnlbench.files import read_json
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, RunRecord

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: CellSpec
    folder: Path
    status: Status
    message: str
    record: RunRecord | None
    new: bool
    """Whether it was run just now, rather than found finished."""


def read_record(folder: Path) -> RunRecord | None:
    """Return the committed result of a cell, or ``None`` if there is none.

    Raises:
        DataError: The result file is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate(read_json(path))
    except (OSError, ValueError, pydantic.ValidationError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}); delete it to run the cell again") from error


def run_cells(
    cells: Sequence[CellSpec],
    runs: Path,
    *,
    data: Path,
    offline: bool,
    threads: Callable[[CellSpec], int],
    executor: Executor,
    resources: Resources,
    registry: Registry,
    suites: Mapping[str, Suite],
    listen: Callable[[CellSpec, dict[str, Any]], None],
) -> list[Outcome]:
    """Run what is missing, resume what was interrupted, and report on all.

    Args:
        cells: What is wanted.
        runs: Root of the run folders.
        data: Root of the data folder.
        offline: Whether downloads are forbidden.
        threads: CPU threads of a cell.
        executor: Carries the cells out.
        resources: Devices and how many cells share one.
        registry: What is installed.
        suites: The suites of the cells, by name.
        listen: Receives each event of each cell.

    Returns:
        One outcome per cell, in the order of ``cells``.
    """
    by_id = {cell.id: cell for cell in cells}
    missing = [cell for cell in by_id.values() if read_record(cell_folder(runs, cell)) is None]
    jobs = [
        Job(
            cell=cell,
            suite=suites[cell.suite],
            folder=cell_folder(runs, cell).absolute(),
            data=data,
            offline=offline,
            threads=threads(cell),
        )
        for cell in missing
    ]
    exits: dict[str, dict[str, Any]] = {}

    def hear(cell_id: str, event: dict[str, Any]) -> None:
        if event["event"] in ("exit", "error"):
            exits.setdefault(cell_id, {}).update(event)
        listen(by_id[cell_id], event)

    if jobs:
        executor.run(jobs, resources, EngineLauncher(registry), hear)
    new = {cell.id for cell in missing}
    return [_outcome(cell, cell_folder(runs, cell), cell.id in new, exits.get(cell.id, {})) for cell in by_id.values()]


def _outcome(cell: CellSpec, folder: Path, new: bool, ending: dict[str, Any]) -> Outcome:
    record = read_record(folder)
    if record is not None:
        return Outcome(cell, folder, record.status, record.message, record, new)
    message = str(ending.get("message") or "")
    if not message:
        try:
            message = str(read_json(folder / FAILURE)["message"])
        except (OSError, ValueError, KeyError, TypeError):
            code = ending.get("code")
            how = f"was killed by signal {-code}" if isinstance(code, int) and code < 0 else f"ended with code {code}"
            message = f"the worker {how} without a result; see {folder / LOG}"
    return Outcome(cell, folder, "failed", message, None, new)
