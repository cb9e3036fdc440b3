from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lnlbench.api import Selection, TaskInfo, UsageError
from lnlbench_ce import lnlbench_methods
from lnlbench_ce.ce import CrossEntropy

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def config(**changes: Any) -> CrossEntropy.Config:
    settings: dict[str, Any] = {"epochs": 20, "batch_size": 16, "backbone": "any", "lr_drop_epoch": 10}
    return CrossEntropy.Config(**(settings | changes))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_preset_for_cifar(make_info: Callable[..., TaskInfo], dataset: str) -> None:
    info = make_info(dataset)
    assert CrossEntropy.preset(info) == CrossEntropy.Config(
        epochs=300,
        batch_size=128,
        backbone="preact-resnet18",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        lr_drop_epoch=150,
        lr_drop_factor=0.1,
    )
    assert info.asked == set()


@pytest.mark.parametrize(("dataset", "epochs", "drop"), [("digits", 40, 20), ("fashion", 1, 1)])
def test_preset_elsewhere_follows_the_suite(
    make_info: Callable[..., TaskInfo], dataset: str, epochs: int, drop: int
) -> None:
    info = make_info(dataset, default_epochs=epochs)
    preset = CrossEntropy.preset(info)
    assert (preset.epochs, preset.backbone, preset.lr_drop_epoch) == (epochs, "small-cnn", drop)
    assert info.asked == set()
    assert CrossEntropy.supports(info) is None


def test_learns(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run, method = make_run(task), CrossEntropy(config())
    method.fit(task, run)
    with torch.no_grad():
        assert (method.predict(task.images).argmax(1) == task.labels).float().mean() > 0.95
    assert task.loaders == [("net", {"batch_size": 16, "views": ("weak",), "shuffle": True})] * 20
    # In train mode, batch norm counts every step.
    assert method.network.state_dict()["layers.1.num_batches_tracked"] == 20 * 4


def test_another_methods_selection_is_all_it_trains_on(make_task: Any, make_run: Any) -> None:
    task = make_task()
    selected = torch.arange(60) % 4 == 0
    task.selection = Selection(clean_probs=selected.float(), selected=selected)
    run = make_run(task)
    CrossEntropy(config(epochs=3)).fit(task, run)
    assert set(torch.cat([rows for _, rows in task.served]).tolist()) == set(range(0, 60, 4))
    assert [epoch for epoch, _, _ in run.reported] == [0, 1, 2]
    assert all(torch.equal(verdicts["selected"], selected) for _, _, verdicts in run.reported)

    nothing = torch.zeros(60, dtype=torch.bool)
    task.selection = Selection(clean_probs=nothing.float(), selected=nothing)
    with pytest.raises(UsageError, match="the selection to start from is empty"):
        CrossEntropy(config(epochs=1)).fit(task, make_run(task))


def test_loss_is_the_mean_negative_log_probability(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run, method = make_run(task), CrossEntropy(config(epochs=1, batch_size=60))
    untrained = task.network("net", "any")
    logits = untrained(task.images).detach().double().numpy()
    method.fit(task, run)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probs[np.arange(60), task.labels.numpy()]).mean()
    [(epoch, values)] = run.logged
    assert epoch == 0
    assert set(values) == {"loss"}
    assert float(values["loss"]) == pytest.approx(expected, rel=1e-5)
    assert not values["loss"].requires_grad


def test_learning_rate_drops_at_its_epoch(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    rates: list[float] = []
    run.after_epoch = lambda _: rates.append(run.tracked["optimizer"].param_groups[0]["lr"])
    CrossEntropy(config(epochs=152, batch_size=60, lr_drop_epoch=150)).fit(task, run)
    assert rates[0] == rates[149] == 0.02
    assert rates[150] == rates[151] == pytest.approx(0.002)


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(make_task: Any, make_run: Any) -> None:
    whole, first, second = (CrossEntropy(config()) for _ in range(3))
    whole.fit(task := make_task(), make_run(task))
    first.fit(task := make_task(), interrupted := make_run(task, stop_after=7))
    second.fit(task := make_task(), resumed := make_run(task, resume=interrupted.saved))
    assert resumed.logged[0][0] == 8
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_registration() -> None:
    [entry] = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("ce", 1, ("scratch",))
    assert entry.target == f"{CrossEntropy.__module__}:{CrossEntropy.__qualname__}"


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_ce as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_page_names_every_option_and_every_logged_metric() -> None:
    names = [*CrossEntropy.Config.model_fields, "loss"]
    assert [name for name in names if f"| `{name}` |" not in README] == []
    assert all(field.description for field in CrossEntropy.Config.model_fields.values())
