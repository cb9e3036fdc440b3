"""How long a cell will take, judged by earlier runs of the same method on the same suite."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from lnlbench.engine.session import read_record
from lnlbench.errors import DataError
from lnlbench.records import CellSpec, safe_name


def estimate_seconds(runs: Path, cell: CellSpec) -> float | None:
    """Return the seconds a cell will take, or ``None`` if there is no earlier run to judge by.

    Runs of the same method, suite and number of training images count; their seconds per epoch are averaged.
    """
    per_epoch = []
    for folder in (runs / safe_name(cell.suite)).glob(f"*/{safe_name(cell.method.name)}/*"):
        try:
            record = read_record(folder)
        except DataError:
            continue
        if record is None or record.spec.limit_train != cell.limit_train or record.status != "finished":
            continue
        timing = record.timing
        total = timing.train_seconds + timing.evaluate_seconds + timing.harness_seconds
        per_epoch.append(total / record.spec.method.config["epochs"])
    return fmean(per_epoch) * int(cell.method.config["epochs"]) if per_epoch else None
