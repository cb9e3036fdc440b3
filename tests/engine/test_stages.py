from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lnlbench.contracts.run import Stage
from lnlbench.engine.seeding import SETUP, Clock
from lnlbench.engine.stages import StageCache
from lnlbench.errors import DataError, DivergedError, PluginError

CPU = torch.device("cpu")
BASE = {"method": "m", "version": "1", "data": "d", "seed": 1}


class Pretraining:
    """Four epochs that depend on everything a stage may draw on; counts how often each epoch is run."""

    def __init__(self, fail_in: int | None = None) -> None:
        self.fail_in = fail_in
        self.epochs: list[int] = []

    def __call__(self, stage: Stage) -> Mapping[str, Tensor]:
        state: dict[str, Any] = {"total": torch.zeros(3)}
        stage.track(state=state)
        for epoch in stage.epochs(4):
            self.epochs.append(epoch)
            state["total"] = state["total"] + torch.rand(3, generator=stage.rng("noise").torch) + torch.rand(3)
            stage.log(size=state["total"].sum())
            if epoch == self.fail_in:
                raise RuntimeError("power cut")
        return {"total": state["total"], "count": torch.tensor(4)}


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def get(tmp_path: Path, events: list[dict[str, Any]]) -> Callable[..., tuple[dict[str, Tensor], float]]:
    def get(
        compute: Callable[[Stage], Mapping[str, Tensor]],
        labels: str = "noisy",
        uses_labels: bool = False,
        inputs: dict[str, Any] | None = None,
        name: str = "pre training",
        base: dict[str, Any] = BASE,
    ) -> tuple[dict[str, Tensor], float]:
        cache = StageCache(tmp_path / "stages", base, labels, events.append)
        return cache.get(name, compute, inputs or {"epochs": 4}, uses_labels, Clock(1), CPU)

    return get


Get = Callable[..., tuple[dict[str, Tensor], float]]


def test_a_stage_is_computed_once(get: Get, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    compute = Pretraining()
    first, seconds = get(compute)
    again, stored_seconds = get(compute)
    assert compute.epochs == [0, 1, 2, 3]
    assert first.keys() == again.keys() == {"total", "count"}
    assert all(torch.equal(first[key], again[key]) for key in first)
    # Whoever takes a stored result is charged what computing it cost.
    assert seconds == stored_seconds > 0
    assert [event["cached"] for event in events if event["event"] == "stage done"] == [False, True]
    assert [event["epoch"] for event in events if event["event"] == "stage epoch"] == [0, 1, 2, 3]
    (folder,) = (tmp_path / "stages").iterdir()
    assert folder.name.startswith("pre-training-")
    assert {"result.pt", "result.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("ckpt-*"))


def test_a_stage_that_ignores_labels_is_shared_between_noise_levels(get: Get) -> None:
    compute = Pretraining()
    get(compute, labels="20 %")
    get(compute, labels="40 %")
    assert len(compute.epochs) == 4
    get(compute, labels="20 %", uses_labels=True)
    get(compute, labels="40 %", uses_labels=True)
    assert len(compute.epochs) == 12
    get(compute, labels="40 %", uses_labels=True)
    assert len(compute.epochs) == 12


@pytest.mark.parametrize(
    "changes",
    [{"inputs": {"epochs": 5}}, {"name": "other"}, *({"base": {**BASE, key: "other"}} for key in BASE)],
    ids=str,
)
def test_everything_a_stage_depends_on_is_in_its_key(get: Get, changes: dict[str, Any]) -> None:
    compute = Pretraining()
    get(compute)
    get(compute, **changes)
    assert len(compute.epochs) == 8


def test_a_stage_is_resumed_in_the_middle(get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lnlbench.engine.checkpoint._PACE", 0.0)
    failing = Pretraining(fail_in=2)
    with pytest.raises(RuntimeError, match="power cut"):
        get(failing)
    assert failing.epochs == [0, 1, 2]
    second = Pretraining()
    tensors, _ = get(second)
    assert second.epochs == [2, 3]
    for folder in (tmp_path / "stages").glob("pre-training-*"):
        for file in folder.glob("result.*"):
            file.unlink()
    afresh = Pretraining()
    whole, _ = get(afresh)
    assert afresh.epochs == [0, 1, 2, 3]
    assert torch.equal(tensors["total"], whole["total"])


def test_time_is_counted_over_attempts(get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lnlbench.engine.checkpoint._PACE", 0.0)

    def slow(stage: Stage) -> Mapping[str, Tensor]:
        state: dict[str, Any] = {}
        stage.track(state=state)
        for epoch in stage.epochs(3):
            time.sleep(0.1)
            if epoch == 2 and not (tmp_path / "second").exists():
                (tmp_path / "second").touch()
                raise RuntimeError("power cut")
        return {}

    with pytest.raises(RuntimeError, match="power cut"):
        get(slow)
    _, seconds = get(slow)
    assert 0.3 <= seconds < 3
    _, stored = get(slow)
    assert stored == seconds


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "result.pt").write_bytes(b"nonsense"),
        lambda folder: (folder / "result.pt").unlink(),
        lambda folder: (folder / "result.json").write_text("{"),
        lambda folder: (folder / "result.json").write_text("{}"),
        lambda folder: (folder / "result.json").write_text("[]"),
    ],
    ids=["content", "missing", "not JSON", "no checksum", "not a table"],
)
def test_a_damaged_stage_is_refused_in_one_line(get: Get, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    get(Pretraining())
    (folder,) = (tmp_path / "stages").iterdir()
    damage(folder)
    with pytest.raises(DataError, match=r"damaged .*delete it") as caught:
        get(Pretraining())
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_stored_record_says_what_went_in(get: Get, tmp_path: Path) -> None:
    get(Pretraining(), inputs={"epochs": 4, "lr": 0.1})
    (folder,) = (tmp_path / "stages").iterdir()
    record = json.loads((folder / "result.json").read_text())
    assert record["inputs"] == {"epochs": 4, "lr": 0.1}
    assert record["size"] == (folder / "result.pt").stat().st_size


def test_a_stage_draws_other_numbers_than_the_run(get: Get) -> None:
    clock = Clock(1)
    in_run = torch.rand(3, generator=clock.stream("noise", CPU).torch)
    drawn: list[Tensor] = []

    def compute(stage: Stage) -> Mapping[str, Tensor]:
        drawn.append(torch.rand(3, generator=stage.rng("noise").torch))
        return {}

    get(compute)
    get(compute, name="other")
    assert clock.moment == SETUP
    assert not torch.equal(drawn[0], in_run)
    assert not torch.equal(drawn[0], drawn[1])


def test_misuse_is_refused(get: Get) -> None:
    def twice(stage: Stage) -> Mapping[str, Tensor]:
        list(stage.epochs(1))
        list(stage.epochs(1))
        return {}

    def not_finite(stage: Stage) -> Mapping[str, Tensor]:
        for _ in stage.epochs(2):
            stage.log(loss=torch.tensor(1.0))
            stage.log(loss=torch.tensor(float("nan")))
        return {}

    with pytest.raises(PluginError, match=r"epochs.. was called twice in stage 'twice'"):
        get(twice, name="twice")
    with pytest.raises(DivergedError, match="loss is nan at epoch 0, step 1"):
        get(not_finite, name="diverging")
