from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from co_teaching import lnlbench_backbones, lnlbench_methods
from co_teaching.cnn9 import Cnn9, cnn9
from co_teaching.co_teaching import CoTeaching, Learner

from lnlbench.api import Batch, Ensemble, UsageError
from lnlbench.testing import MemoryRun, checks, task_info, toy_task

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def config(**changes: Any) -> CoTeaching.Config:
    settings: dict[str, Any] = {"epochs": 12, "batch_size": 32, "backbone": "any", "forget_rate": 0.3}
    return CoTeaching.Config(**(settings | {"gradual_epochs": 3, "lr_decay_epoch": 8} | changes))


def learners(method: CoTeaching, task: Any) -> tuple[Learner, Learner]:
    return method._build(task, "net1"), method._build(task, "net2")


def whole(task: Any) -> Batch:
    return Batch(torch.arange(task.num_train), task.labels, (task.images,))


def losses_of(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> np.ndarray[Any, Any]:
    logits = logits_BC.detach().double().numpy()
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), labels_B.numpy()]


@pytest.mark.parametrize("check", checks("co-teaching"))
def test_it_does_what_every_method_must(check: Callable[[], None]) -> None:
    check()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(("dataset", "decay"), [("mnist", 80), ("cifar10", 80), ("cifar100", 100)])
def test_preset_of_the_papers_data(dataset: str, decay: int) -> None:
    info = task_info(dataset, rate=0.45)
    assert CoTeaching.preset(info) == CoTeaching.Config(
        epochs=200,
        batch_size=128,
        backbone="cnn9",
        forget_rate=0.45,
        gradual_epochs=10,
        learning_rate=0.001,
        lr_decay_epoch=decay,
        beta1=0.9,
        late_beta1=0.1,
        view="plain",
    )
    assert info.asked == {"noise rate"}


@pytest.mark.parametrize(
    ("epochs", "rate", "gradual", "decay", "forget"),
    [(40, 0.4, 10, 16, 0.4), (4, 1.0, 1, 1, 1.0), (1, None, 1, 0, 0.2)],
)
def test_preset_elsewhere(epochs: int, rate: float | None, gradual: int, decay: int, forget: float) -> None:
    info = task_info("digits", rate=rate, default_epochs=epochs)
    preset = CoTeaching.preset(info)
    assert (preset.epochs, preset.gradual_epochs, preset.lr_decay_epoch) == (epochs, gradual, decay)
    assert (preset.forget_rate, preset.backbone, preset.view) == (forget, "small-cnn", "weak")
    assert info.asked == {"noise rate"}


# ---------------------------------------------------------------- equations


@pytest.mark.parametrize(("rate", "length"), [(0.45, 10), (0.2, 5), (1.0, 3), (0.0, 10)])
def test_keep_rate_is_that_of_the_paper(rate: float, length: int) -> None:
    method = CoTeaching(config(forget_rate=rate, gradual_epochs=length))
    expected = [1 - min(epoch / length * rate, rate) for epoch in range(20)]
    np.testing.assert_allclose([method.keep_rate(epoch) for epoch in range(20)], expected, rtol=0, atol=1e-12)


def test_keep_rate_in_worked_numbers() -> None:
    method = CoTeaching(config(forget_rate=0.45, gradual_epochs=10))
    assert [round(method.keep_rate(epoch), 3) for epoch in (0, 1, 5, 9, 10, 199)] == [
        1,
        0.955,
        0.775,
        0.595,
        0.55,
        0.55,
    ]
    assert CoTeaching(config(forget_rate=0.45, gradual_epochs=0)).keep_rate(0) == pytest.approx(0.55)


def test_the_smallest_losses_are_picked() -> None:
    losses_B = torch.tensor([0.3, 2.0, 0.1, 1.5, 0.2])
    assert CoTeaching.smallest(losses_B, 0.6).tolist() == [2, 4, 0]
    # At least that share, as the paper has it, and never nothing.
    assert CoTeaching.smallest(losses_B, 0.61).tolist() == [2, 4, 0, 3]
    assert CoTeaching.smallest(losses_B, 0.0).tolist() == [2]
    assert CoTeaching.smallest(torch.ones(4), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("size", [1, 7, 10, 100, 128])
def test_the_pick_is_the_smallest_set_of_at_least_its_share(size: int) -> None:
    losses_B = torch.rand(size, generator=torch.Generator().manual_seed(size))
    for percent in range(101):
        picked = CoTeaching.smallest(losses_B, 1.0 - (100 - percent) / 100)
        assert len(picked) == max(1, -(-percent * size // 100))
        assert picked.tolist() == np.argsort(losses_B.numpy())[: len(picked)].tolist()


def test_each_network_is_trained_on_what_the_other_one_picked() -> None:
    task = toy_task(40, 4)
    method = CoTeaching(config())
    first, second = learners(method, task)
    looked: dict[str, torch.Tensor] = {}
    for learner in (first, second):
        learner.network.register_forward_hook(lambda *call, role=learner.role: looked.update({role: call[-1]}))
    before = [learner.network.get_parameter("head.bias").detach().clone() for learner in (first, second)]
    given = method.step(whole(task), first, second, 0.6)

    losses = {role: losses_of(logits, task.labels) for role, logits in looked.items()}
    picked = {role: np.argsort(values, kind="stable")[:24] for role, values in losses.items()}
    assert set(picked["net1"]) != set(picked["net2"])
    assert float(given[0]) == pytest.approx(losses["net1"][picked["net2"]].mean(), rel=1e-5)
    assert float(given[1]) == pytest.approx(losses["net2"][picked["net1"]].mean(), rel=1e-5)
    for learner in (first, second):
        np.testing.assert_allclose(learner.losses.numpy(), losses[learner.role], rtol=1e-5, atol=1e-6)
        assert learner.selected.nonzero().flatten().tolist() == sorted(picked[learner.role].tolist())
    for learner, other, start in ((first, "net2", before[0]), (second, "net1", before[1])):
        # The gradient is that of the mean over the other one's pick: (p - onehot) / n.
        logits = looked[learner.role].detach().double().numpy()[picked[other]]
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = (probs - np.eye(4)[task.labels.numpy()[picked[other]]]).mean(0)
        bias = learner.network.get_parameter("head.bias")
        np.testing.assert_allclose(bias.grad, expected, atol=1e-6)
        # Adam's first step has the length of the learning rate.
        np.testing.assert_allclose((bias.detach() - start).numpy(), -1e-3 * np.sign(expected), atol=1e-6)


def test_learning_rate_falls_and_beta1_changes_at_its_epoch() -> None:
    method = CoTeaching(config(epochs=200, lr_decay_epoch=80))
    learner, _ = learners(method, toy_task(6, 2))
    seen = []
    for epoch in (0, 79, 80, 81, 140, 199):
        method.begin_epoch(learner, epoch)
        [group] = learner.optimizer.param_groups
        seen.append((round(group["lr"], 9), group["betas"]))
    early, late = (0.9, 0.999), (0.1, 0.999)
    assert seen == [
        (0.001, early),
        (0.001, early),
        (0.001, late),
        (round(0.001 * 119 / 120, 9), late),
        (0.0005, late),
        (round(0.001 / 120, 9), late),
    ]


# ---------------------------------------------------------------- the loop


def test_learns_and_finds_the_clean_samples() -> None:
    task, right = toy_task(240, 4, noise=0.3), toy_task(240, 4, noise=0.0)
    run, method = MemoryRun(task), CoTeaching(config(epochs=10, batch_size=20, learning_rate=0.01))
    method.fit(task, run)
    assert [name for _, name, _ in run.reported] == ["net1", "net2"] * 10
    sizes = [int(verdicts["selected"].sum()) for _, name, verdicts in run.reported if name == "net1"]
    assert sizes == [240, 216, 192] + [168] * 7
    for _, _, verdicts in run.reported[-2:]:
        assert (task.labels == right.labels)[verdicts["selected"]].float().mean() > 0.9
        assert ((verdicts["clean_probs"] > 0) & (verdicts["clean_probs"] <= 1)).all()
    with torch.no_grad():
        answer = method.predict(task.images)
    for logits in (answer.logits, answer.networks["net2"]):
        assert (logits.argmax(1) == right.labels).float().mean() > 0.9


def test_both_networks_see_the_same_batches_and_every_sample_once() -> None:
    task = toy_task(50, 3)
    CoTeaching(config(epochs=2, view="weak")).fit(task, MemoryRun(task))
    assert task.loaders == [("both", {"batch_size": 32, "views": ("weak",), "shuffle": True})]
    assert [len(rows) for _, rows in task.served] == [32, 18, 32, 18]
    assert torch.cat([rows for _, rows in task.served[:2]]).sort().values.tolist() == list(range(50))


def test_the_first_network_answers() -> None:
    task, method = toy_task(), CoTeaching(config(epochs=1))
    method.fit(task, MemoryRun(task))
    with torch.no_grad():
        answer = method.predict(task.images)
        assert isinstance(answer, Ensemble)
        assert torch.equal(answer.logits, method.net1(task.images))
        assert torch.equal(answer.networks["net1"], answer.logits)
        assert torch.equal(answer.networks["net2"], method.net2(task.images))
    assert not torch.equal(answer.networks["net1"], answer.networks["net2"])


@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(stop_after: int) -> None:
    settings = config(epochs=6, lr_decay_epoch=3)
    task, method = toy_task(), CoTeaching(settings)
    method.fit(task, run := MemoryRun(task))
    first, second, resumed = toy_task(), toy_task(), CoTeaching(settings)
    CoTeaching(settings).fit(first, interrupted := MemoryRun(first, stop_after=stop_after))
    resumed.fit(second, again := MemoryRun(second, resume=interrupted.saved))
    assert again.reported[0][0] == stop_after + 1
    later = [verdicts for epoch, _, verdicts in run.reported if epoch > stop_after]
    for one, (_, _, other) in zip(later, again.reported, strict=True):
        assert torch.equal(one["clean_probs"], other["clean_probs"])
        assert torch.equal(one["selected"], other["selected"])
    assert torch.equal(method.predict(task.images).logits, resumed.predict(task.images).logits)


# ---------------------------------------------------------------- the network


def test_cnn9_is_the_network_of_the_paper() -> None:
    network = cnn9("cnn9", num_classes=10, channels=3, image_size=32)
    assert isinstance(network, Cnn9)
    widths = [128, 128, 128, 256, 256, 256, 512, 256, 128]
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == widths
    pairs = zip([3, *widths[:-1]], widths, strict=True)
    expected = sum(9 * below * width + width + 2 * width for below, width in pairs) + 128 * 10 + 10
    assert sum(weight.numel() for weight in network.parameters()) == expected


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_cnn9_drops_maps_in_training_only(channels: int, size: int) -> None:
    network = Cnn9(10, channels).eval()
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network.embed(images).shape == (2, 128)
        assert torch.equal(network(images), network(images))
        assert torch.equal(network(images), network.classify(network.embed(images)))
        network.layers.requires_grad_(False)
        for layer in network.modules():
            layer.train(isinstance(layer, torch.nn.Dropout2d))
        assert not torch.equal(network(images), network(images))


def test_small_images_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="backbone 'cnn9' needs images of at least 28 pixels, these have 8"):
        cnn9("cnn9", num_classes=10, channels=1, image_size=8)


# ---------------------------------------------------------------- registration and page


def test_registration() -> None:
    [method], [backbone] = lnlbench_methods(), lnlbench_backbones()
    assert (method.name, method.networks_at_test, method.supervision) == ("co-teaching", 1, ("scratch",))
    assert method.target == f"{CoTeaching.__module__}:{CoTeaching.__qualname__}"
    assert method.paper is not None
    assert method.paper.bibtex in README
    assert (backbone.name, backbone.target) == ("cnn9", f"{cnn9.__module__}:{cnn9.__name__}")


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, co_teaching as p; p.lnlbench_methods(), p.lnlbench_backbones(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"
