"""A run resumed on another set-up says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lnlbench.contracts.executor import Job
from lnlbench.engine.planner import Request, cell_folder, plan
from lnlbench.engine.runner import run_cell
from lnlbench.engine.session import read_record
from lnlbench.plugins import discover
from lnlbench.store import LocalDataStore


@pytest.mark.parametrize(("threads", "expected"), [(1, "exact"), (2, "inexact")])
def test_resuming_with_another_thread_count_is_marked(tmp_path: Path, threads: int, expected: str) -> None:
    registry, store = discover(), LocalDataStore(tmp_path / "data")
    request = Request(
        methods=["ce"], suites=["digits-sym"], tasks=["0.40"], seeds=[1], epochs=3, limit_train=100, device_type="cpu"
    )
    (cell,) = plan(request, registry, store).cells
    folder = cell_folder(tmp_path / "runs", cell)
    warnings: list[str] = []

    def attempt(count: int, stop_after: int | None) -> None:
        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "warning":
                warnings.append(event["message"])
            if event["event"] == "saving" and event["epoch"] == stop_after:
                raise KeyboardInterrupt

        suite = registry.suites.find(cell.suite).entry
        job = Job(cell=cell, suite=suite, folder=folder, data=store.root, offline=True, threads=count)
        run_cell(job, "cpu", registry, hear)

    before = torch.get_num_threads()
    try:
        # The first checkpoint is always due; the last epoch's is the one that the interrupt prevents.
        with pytest.raises(KeyboardInterrupt):
            attempt(1, stop_after=2)
        attempt(threads, stop_after=None)
    finally:
        torch.set_num_threads(before)

    record = read_record(folder)
    assert record is not None
    assert (record.resumed, record.resume) == (1, expected)
    assert [("marked as inexact" in message) for message in warnings] == [True] * (expected == "inexact")
