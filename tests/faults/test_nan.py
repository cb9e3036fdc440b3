"""Whatever stops being finite ends the run as diverged: counted, never averaged, and nowhere written as a number."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lnlbench.api import Method, MethodConfig, Run, Task, TaskInfo
from lnlbench.blocks.losses import cross_entropy_per_sample
from lnlbench.blocks.mixture import clean_probabilities, min_max_normalise
from lnlbench.engine.session import read_record
from lnlbench.leaderboard.store import score

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lnlbench.records import RunRecord
    from tests.faults.conftest import Lab

EPOCHS, STEPS = 4, 5
PLACES = ("logged loss", "weights", "mixture input", "clean probabilities", "learning rate")


class Plant(NamedTuple):
    """What goes wrong where: at a step that is counted over all epochs."""

    place: str
    step: int
    value: float


class Toy(Method["Toy.Config"]):
    """A linear classifier that splits by loss, and that goes wrong where the test says."""

    class Config(MethodConfig):
        pass

    plant: ClassVar[Plant | None] = None
    """Not an option, so that a run that goes wrong shares its row with one that does not."""

    network: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        return cls.Config(epochs=EPOCHS, batch_size=40, backbone=task.default_backbone)

    def fit(self, task: Task, run: Run) -> None:
        pixels = task.info.channels * task.info.image_size**2
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, task.num_classes))
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.normal_(std=0.01, generator=run.rng("init").torch)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        run.track(network=self.network, optimizer=optimizer)
        plant = self.plant or Plant("nowhere", -1, 0.0)
        step = 0
        for epoch in run.epochs(self.config.epochs):
            step = epoch * STEPS
            self.split(task, run, plant, step)
            for batch in task.loader("net", batch_size=self.config.batch_size):
                loss = F.cross_entropy(self.network(batch.images), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                here = step == plant.step
                optimizer.param_groups[0]["lr"] = plant.value if here and plant.place == "learning rate" else 0.1
                optimizer.step()
                if here and plant.place == "weights":
                    with torch.no_grad():
                        next(self.network.parameters())[step % task.num_classes, step] = plant.value
                if plant.place != "weights":
                    run.log(loss=torch.tensor(plant.value) if here and plant.place == "logged loss" else loss.detach())
                step += 1

    def split(self, task: Task, run: Run, plant: Plant, first_step: int) -> None:
        losses_N = torch.zeros(task.num_train)
        with torch.no_grad():
            for batch in task.loader("losses", batch_size=200, views=("plain",), shuffle=False):
                losses_N[batch.index] = cross_entropy_per_sample(self.network(batch.images), batch.labels)
        values_N = min_max_normalise(losses_N)
        here = first_step <= plant.step < first_step + STEPS
        if here and plant.place == "mixture input":
            values_N[7 * plant.step] = plant.value
        # The mixture is costly and of interest only where it gets something bad.
        probs_N = 1.0 - values_N
        if here and plant.place == "mixture input":
            probs_N = clean_probabilities(values_N, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
        if here and plant.place == "clean probabilities":
            probs_N[7 * plant.step] = plant.value
        run.report(clean_probs=probs_N, selected=probs_N > 0.5)

    def predict(self, images: Tensor) -> Tensor:
        logits_BC: Tensor = self.network(images)
        return logits_BC


def run_toy(lab: Lab, folder: Path, seed: int, plant: Plant | None) -> RunRecord:
    Toy.plant = plant
    try:
        lab.run(lab.cell("toy", epochs=EPOCHS, limit=200, seed=seed), folder)
    finally:
        Toy.plant = None
    record = read_record(folder)
    assert record is not None
    return record


def assert_finite(folder: Path) -> None:
    """Every file can be read by a strict reader and holds finite numbers only."""

    def refuse(token: str) -> Any:
        raise AssertionError(f"{token} in {folder}")

    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=refuse)
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line, parse_constant=refuse)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(np.isfinite(arrays[name]).all() for name in arrays)
        elif path.suffix == ".pt":
            payload = torch.load(path, weights_only=True)
            json.loads(payload["book"], parse_constant=refuse)
            assert all(weight.isfinite().all() for weight in payload["state"]["network"]["state"].values())
        else:
            assert path.name == ".lock"


@pytest.mark.parametrize("place", PLACES)
def test_20_plants_are_20_diverged_runs(lab: Lab, tmp_path: Path, place: str) -> None:
    toys = lab.with_method("toy", Toy)
    sound = run_toy(toys, tmp_path / "runs" / "sound", 1, None)
    assert sound.status == "finished"
    assert sound.scores is not None
    diverged = []
    for step in range(20):
        value = (float("nan"), float("inf"), -float("inf"))[step % 3]
        folder = tmp_path / "runs" / str(step)
        record = run_toy(toys, folder, step + 2, Plant(place, step, value))
        epoch = step // STEPS
        assert (record.status, record.scores) == ("diverged", None), step
        assert re.search(rf"\bepoch {epoch}\b", record.message), (step, record.message)
        assert "\n" not in record.message
        if place == "logged loss":
            assert record.message == f"loss is {value} at epoch {epoch}, step {step % STEPS}"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(epoch))
        assert not (folder / "predictions.npz").exists()
        assert not (folder / "failure.json").exists()
        assert_finite(folder)
        diverged.append(record.spec.seed)
    assert len(diverged) == 20

    (board,) = score([tmp_path / "runs"], tmp_path / "board").boards
    assert not re.search(r"\b(nan|inf|infinity)\b", board.read_text(), re.IGNORECASE)
    with board.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["n"], row["n_diverged"], row["seeds"]) == ("1", "20", "1")
    assert [int(seed) for seed in re.findall(r"\d+", row["diverged_seeds"])] == diverged
    assert row["last10_mean"] == f"{100 * sound.scores.last10:.2f}"
    assert row["last_mean"] == f"{100 * sound.scores.last:.2f}"
    for path in (tmp_path / "board").rglob("*.json"):
        assert json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_diverged_run_is_not_run_again(lab: Lab, tmp_path: Path) -> None:
    toys = lab.with_method("toy", Toy)
    first = run_toy(toys, tmp_path / "run", 1, Plant("weights", 7, float("nan")))
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert run_toy(toys, tmp_path / "run", 1, None) == first
    assert (tmp_path / "run" / "result.json").read_bytes() == before
