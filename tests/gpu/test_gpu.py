"""Checks that need a CUDA device: `tox -e gpu`, or `pytest -m gpu`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lnlbench.contracts.executor import Job
from lnlbench.engine.planner import Request, cell_folder, plan
from lnlbench.engine.runner import run_cell
from lnlbench.engine.seeding import derive_seed, hash_index
from lnlbench.plugins import discover
from lnlbench.store import LocalDataStore

METHODS = ["ccl", "ce", "dividemix", "josrc"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def run(tmp_path: Path, method: str, listen: Callable[[dict[str, Any]], None] = lambda _event: None) -> Path:
    """Run one reduced cell on the first card and return its folder."""
    registry = discover()
    store = LocalDataStore(tmp_path / "data")
    request = Request(
        methods=[method],
        suites=["digits-sym"],
        tasks=["0.40"],
        seeds=[1],
        epochs=4,
        limit_train=256,
        overrides={} if method == "ce" else {"warmup_epochs": "2"},
        precision="bf16",
        device_type="cuda",
    )
    (cell,) = plan(request, registry, store).cells
    folder = cell_folder(tmp_path / "runs", cell)
    suite = registry.suites.find(cell.suite).entry
    job = Job(cell=cell, suite=suite, folder=folder, data=store.root, offline=True, threads=1)
    run_cell(job, "cuda:0", registry, listen)
    assert (folder / "result.json").exists(), (folder / "failure.json").read_text()
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_repeats_bit_for_bit(tmp_path: Path, method: str) -> None:
    first, second = run(tmp_path / "a", method), run(tmp_path / "b", method)
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (first, second)
    ]
    assert rows[0] == rows[1]
    with np.load(first / "predictions.npz") as left, np.load(second / "predictions.npz") as right:
        assert np.array_equal(left["predictions"], right["predictions"])


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_cell_equals_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    reference = run(tmp_path / "a", method)
    seen: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            seen.append(event["epoch"])
        if event["event"] == "epoch" and event["epoch"] == 2 and len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", method, interrupt)
    resumed = run(tmp_path / "b", method, interrupt)
    with np.load(reference / "predictions.npz") as left, np.load(resumed / "predictions.npz") as right:
        assert np.array_equal(left["predictions"], right["predictions"])


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch itself reports every synchronising call; between the first and the last batch of a pass there is none.
    from lnlbench.engine.task import DeviceLoader

    original = DeviceLoader.__iter__

    def watched(self: DeviceLoader) -> Any:
        batches = original(self)
        first = next(batches, None)
        if first is None:
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield first
            yield from batches
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(DeviceLoader, "__iter__", watched)
    assert (run(tmp_path, method) / "result.json").exists()


def test_orders_and_augmentations_are_the_same_as_on_the_cpu() -> None:
    index = torch.arange(50_000)
    key = derive_seed("data order", 1, "train", "epoch 0", 0)
    assert torch.equal(hash_index(key, index), hash_index(key, index.cuda()).cpu())
