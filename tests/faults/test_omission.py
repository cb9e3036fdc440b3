"""Leaving one thing out of ``run.track`` changes the resumed result: the comparison of runs is no empty gesture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field

from lnlbench.api import Method, MethodConfig, Run, Task, TaskInfo
from lnlbench.blocks.history import LossHistory
from lnlbench.engine import checkpoint
from lnlbench_dividemix.dividemix import DivideMix

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tests.faults.conftest import Lab

Essence = Callable[[Path], dict[str, Any]]


class Forgetful:
    """A run that does not hear of one tracked item."""

    def __init__(self, run: Run, omit: str) -> None:
        self._run = run
        self._omit = omit

    def track(self, **state: Any) -> None:
        assert not self._omit or self._omit in state
        self._run.track(**{name: item for name, item in state.items() if name != self._omit})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


class ForgetfulDivideMix(DivideMix):
    """DivideMix with an omission."""

    class Config(DivideMix.Config):
        omit: str = Field("", description="What is not tracked.")

    def fit(self, task: Task, run: Run) -> None:
        super().fit(task, Forgetful(run, self.config.omit))  # type: ignore[arg-type, attr-defined]


class WithoutFlags:
    """A network's state without its train/eval flags: what ``state_dict`` alone would keep."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def state_dict(self) -> dict[str, Any]:
        return self._network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state)


class Average:
    """The exponential moving average of a network's weights, as methods write it themselves."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state)


class Toy(Method["Toy.Config"]):
    """Has one of each kind of state that methods for noisy labels have."""

    class Config(MethodConfig):
        omit: str = Field("", description="What is not tracked.")

    network: nn.Module
    average: Average

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        return cls.Config(epochs=8, batch_size=50, backbone=task.default_backbone)

    def fit(self, task: Task, run: Run) -> None:
        self.network = task.network("net", self.config.backbone)
        self.average = Average(self.network)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        history = LossHistory(3)
        labels_NC = torch.empty(task.num_train, task.num_classes)
        for batch in task.loader("labels", batch_size=task.num_train, shuffle=False):
            labels_NC[batch.index] = F.one_hot(batch.labels, task.num_classes).float()
        targets = {"soft": labels_NC}
        counts = {"steps": 0}
        notes: dict[str, Any] = {}
        hidden = WithoutFlags(self.network) if self.config.omit == "flags" else self.network
        tracked: dict[str, Any] = {
            "network": hidden,
            "average": self.average,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "history": history,
            "targets": targets,
            "counts": counts,
            "notes": notes,
        }
        omit = "" if self.config.omit == "flags" else self.config.omit
        Forgetful(run, omit).track(**tracked)
        for epoch in run.epochs(self.config.epochs):
            if epoch == 2:
                # From here on batch norm keeps its statistics; nothing but its flags says so.
                for module in self.network.modules():
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.eval()
            losses_N = torch.zeros(task.num_train)
            weights_N = torch.exp(-history.mean()) if len(history) else torch.ones(task.num_train)
            for batch in task.loader("net", batch_size=self.config.batch_size):
                logits_BC = self.network(batch.images)
                soft_BC = targets["soft"][batch.index]
                losses_B = F.cross_entropy(logits_BC, soft_BC, reduction="none")
                losses_N[batch.index] = losses_B.detach()
                optimizer.zero_grad()
                (weights_N[batch.index] * losses_B).mean().backward()
                optimizer.step()
                counts["steps"] += 1
                keep = 1.0 - 1.0 / (10 + counts["steps"])
                targets["soft"][batch.index] = keep * soft_BC + (1.0 - keep) * logits_BC.detach().softmax(1)
                self.average.update(self.network)
                run.log(loss=losses_B.detach().mean())
            scheduler.step()
            history.append(losses_N)
            notes["epoch"] = epoch
            run.report(clean_probs=torch.exp(-history.mean()), pseudo_labels=targets["soft"].argmax(1))

    def predict(self, images: Tensor) -> Tensor:
        logits_BC: Tensor = self.network(images) + self.average.network(images)
        return logits_BC


def compare(lab: Lab, essence: Essence, method: str, epochs: int, options: dict[str, object], folder: Path) -> bool:
    """Whether a run resumed in its middle ends as the same run without interruption."""
    cell = lab.cell(method, epochs=epochs, limit=120, options=options)
    lab.run(cell, folder / "whole")
    lab.run(cell, folder / "resumed", stop_after=epochs // 2)
    events = lab.run(cell, folder / "resumed")
    assert [event["epoch"] for event in events if event["event"] == "resumed"] == [epochs // 2]
    return essence(folder / "resumed") == essence(folder / "whole")


@pytest.fixture(autouse=True)
def _save_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PACE", 0.0)


# What belongs to the second network is like what belongs to the first.
@pytest.mark.parametrize(
    "omit",
    [
        "",
        *("net1", "optimizer1", "history1"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("net2", "optimizer2", "history2")),
    ],
)
def test_each_item_of_dividemix_matters(lab: Lab, essence: Essence, tmp_path: Path, omit: str) -> None:
    options = {"omit": omit, "warmup_epochs": 1, "loss_average_epochs": 3, "lambda_u": 25, "rampup_epochs": 2}
    equal = compare(lab.with_method("forgetful", ForgetfulDivideMix), essence, "forgetful", 6, options, tmp_path)
    assert equal == (omit == "")


@pytest.mark.parametrize(
    "omit", ["", "network", "flags", "average", "optimizer", "scheduler", "history", "targets", "counts", "notes"]
)
def test_each_kind_of_state_matters(lab: Lab, essence: Essence, tmp_path: Path, omit: str) -> None:
    """Notes that are never read are the one thing that may be left out."""
    equal = compare(lab.with_method("toy", Toy), essence, "toy", 8, {"omit": omit}, tmp_path)
    assert equal == (omit in ("", "notes"))
