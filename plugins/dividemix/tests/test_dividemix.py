from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lnlbench.api import Batch, DivergedError, Selection, TaskInfo
from lnlbench.blocks.history import LossHistory
from lnlbench.blocks.mixture import clean_probabilities
from lnlbench_dividemix import lnlbench_methods
from lnlbench_dividemix.cross_learning import Seen
from lnlbench_dividemix.dividemix import DivideMix, Division, Learner

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def config(**changes: Any) -> DivideMix.Config:
    settings: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 8,
        "backbone": "any",
        "warmup_epochs": 2,
        "lr_drop_epoch": 4,
        "lambda_u": 25.0,
    }
    return DivideMix.Config(**(settings | changes))


def learners(method: DivideMix, task: Any) -> tuple[Learner, Learner]:
    return method._build(task, "net1"), method._build(task, "net2")


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


# ---------------------------------------------------------------- preset


@pytest.mark.parametrize(
    ("dataset", "noise", "rate", "lambda_u"),
    [
        ("cifar10", "symmetric", 0.2, 0),
        ("cifar10", "symmetric", 0.5, 25),
        ("cifar10", "symmetric", 0.8, 25),
        ("cifar10", "symmetric", 0.9, 50),
        ("cifar10", "asymmetric", 0.4, 0),
        ("cifar100", "symmetric", 0.2, 25),
        ("cifar100", "symmetric", 0.5, 150),
        ("cifar100", "symmetric", 0.8, 150),
        ("cifar100", "symmetric", 0.9, 150),
        # Not in the paper's table: our decisions.
        ("cifar10", "symmetric", 0.3, 0),
        ("cifar10", "symmetric", 0.4, 25),
        ("cifar10", "symmetric", 0.85, 50),
        ("cifar10", "symmetric", None, 25),
        ("cifar10", "asymmetric", 0.1, 0),
        ("cifar10", "pair", 0.45, 0),
        ("cifar10", "human", None, 0),
        ("cifar100", "symmetric", 0.3, 25),
        ("cifar100", "symmetric", 0.4, 150),
        ("cifar100", "symmetric", None, 150),
        ("cifar100", "asymmetric", 0.4, 0),
    ],
)
def test_preset_for_cifar(
    make_info: Callable[..., TaskInfo], dataset: str, noise: str, rate: float | None, lambda_u: float
) -> None:
    info = make_info(dataset, noise, rate)
    extreme = rate == 0.9
    assert DivideMix.preset(info) == DivideMix.Config(
        epochs=300,
        batch_size=64,
        backbone="preact-resnet18",
        warmup_epochs=30 if dataset == "cifar100" else 10,
        warmup_penalty=noise != "symmetric",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        lr_drop_epoch=150,
        lr_drop_factor=0.1,
        p_threshold=0.6 if extreme else 0.5,
        temperature=0.5,
        alpha=4,
        lambda_u=lambda_u,
        rampup_epochs=16,
        unlabelled_loss=True,
        loss_average_epochs=5 if extreme else 1,
        gmm_max_iter=10,
        gmm_tol=1e-2,
        gmm_reg_covar=5e-4,
    )
    assert info.asked == ({"noise type", "noise rate"} if noise == "symmetric" else {"noise type"})


def test_preset_for_webvision(make_info: Callable[..., TaskInfo]) -> None:
    info = make_info("mini-webvision", "web", None, num_classes=50, image_size=299, channels=3)
    preset = DivideMix.preset(info)
    assert (preset.epochs, preset.warmup_epochs, preset.lr_drop_epoch, preset.batch_size) == (80, 1, 40, 32)
    assert (preset.learning_rate, preset.weight_decay, preset.alpha) == (0.01, 5e-4, 0.5)
    assert not preset.unlabelled_loss
    assert not preset.warmup_penalty
    assert info.asked == set()


@pytest.mark.parametrize(("dataset", "epochs", "warmup", "drop"), [("digits", 40, 5, 20), ("fashion", 1, 1, 1)])
def test_preset_elsewhere_follows_the_suite_and_asks_nothing(
    make_info: Callable[..., TaskInfo], dataset: str, epochs: int, warmup: int, drop: int
) -> None:
    info = make_info(dataset, "symmetric", 0.9, default_epochs=epochs)
    preset = DivideMix.preset(info)
    assert (preset.epochs, preset.backbone) == (epochs, "small-cnn")
    assert (preset.warmup_epochs, preset.lr_drop_epoch) == (warmup, drop)
    assert info.asked == set()


def test_clothing1m_is_trained_on_draws(make_info: Callable[..., TaskInfo]) -> None:
    info = make_info("clothing1m")
    preset = DivideMix.preset(info)
    assert (preset.epochs, preset.batch_size, preset.draw_size, preset.warmup_epochs) == (80, 32, 32_000, 1)
    assert (preset.learning_rate, preset.weight_decay, preset.lr_drop_epoch, preset.alpha) == (0.002, 1e-3, 40, 0.5)
    assert (preset.warmup_penalty, preset.unlabelled_loss, preset.lambda_u) == (True, False, 0.0)
    assert preset.backbone == "timm:resnet50+pretrained"
    assert info.asked == set()


def test_draws_and_averaged_losses_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="draw_size and loss_average_epochs exclude each other"):
        config(draw_size=32, loss_average_epochs=5)


def whole(clean_probs_N: Tensor) -> Division:
    """A division of the whole training set."""
    return Division(torch.arange(len(clean_probs_N)), clean_probs_N)


# ---------------------------------------------------------------- steps against worked numbers


def seen(*probs: list[float]) -> list[Seen]:
    """One pass for each of the predictions given, over a single image."""
    logits = torch.tensor(probs, dtype=torch.float64).log().unsqueeze(1)
    return [Seen(each[:, :0], each) for each in logits]


@pytest.mark.parametrize(
    ("clean_prob", "expected"), [(0.8, [0.016256, 0.982098, 0.001646]), (0.3, [0.365277, 0.597742, 0.036981])]
)
def test_co_refinement_worked_numbers(clean_prob: float, expected: list[float]) -> None:
    views = seen([0.6, 0.3, 0.1], [0.5, 0.25, 0.25])
    refined = DivideMix(config()).co_refine(views, torch.tensor([1]), torch.tensor([clean_prob]))
    np.testing.assert_allclose(refined.numpy(), [expected], atol=1e-6)


def test_co_guessing_worked_numbers() -> None:
    views = seen([0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1])
    np.testing.assert_allclose(DivideMix(config()).co_guess(views).numpy(), [[0.380952, 0.595238, 0.023810]], atol=1e-6)


@pytest.mark.parametrize(
    ("logits1", "logits2", "winner"),
    [([5.0, 4.0, 0.0], [0.0, 2.5, 0.0], 1), ([3.0, 0.0, 0.0], [0.0, 1.2, 1.3], 0)],
)
def test_prediction_sums_logits(logits1: list[float], logits2: list[float], winner: int) -> None:
    class Constant(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), -1)

    method = DivideMix(config())
    method.net1, method.net2 = Constant(logits1), Constant(logits2)
    scores = method.predict(torch.zeros(2, 1, 2, 2))
    np.testing.assert_allclose(scores.numpy(), [np.add(logits1, logits2)] * 2, rtol=1e-6)
    assert scores.argmax(1).tolist() == [winner] * 2


# ---------------------------------------------------------------- one step against NumPy


class Linear(nn.Module):
    """A linear classifier of the pixels, small enough to be written out in NumPy."""

    def __init__(self, generator: np.random.Generator, pixels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(generator.normal(size=(pixels, classes))))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def sharpened(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(probs**2 / (probs**2).sum(1, keepdims=True))  # T = 0.5


@pytest.mark.parametrize(("num_labelled", "num_unlabelled"), [(5, 7), (1, 4), (6, 1), (5, 0)])
@pytest.mark.parametrize("unlabelled_loss", [True, False])
def test_step_agrees_with_numpy(num_labelled: int, num_unlabelled: int, unlabelled_loss: bool) -> None:
    generator = np.random.default_rng(11)
    pixels, classes, lambda_u = 9, 4, 3.5
    network, peer = Linear(generator, pixels, classes), Linear(generator, pixels, classes)
    x1, x2 = generator.normal(size=(2, num_labelled, pixels))
    u1, u2 = generator.normal(size=(2, num_unlabelled, pixels))
    labels, clean_probs = generator.integers(classes, size=num_labelled), generator.random(num_labelled)

    def batch(views: tuple[NDArray[np.float64], ...], given: NDArray[np.int64]) -> Batch:
        shaped = tuple(torch.from_numpy(view).reshape(-1, 1, 3, 3) for view in views)
        return Batch(index=torch.arange(len(given)), labels=torch.from_numpy(given), views=shaped)

    loss, parts = DivideMix(config(alpha=4.0, unlabelled_loss=unlabelled_loss)).loss(
        network,
        peer,
        batch((x1, x2), labels),
        batch((u1, u2), np.zeros(num_unlabelled, dtype=np.int64)) if num_unlabelled else None,
        torch.from_numpy(clean_probs),
        lambda_u,
        np.random.default_rng(3),
        torch.Generator().manual_seed(4),
    )
    loss.backward()  # type: ignore[no-untyped-call]

    # The same step, written out.
    w, v = network.weight.detach().numpy(), peer.weight.detach().numpy()
    q = sum(softmax(u @ net) for net in (w, v) for u in (u1, u2)) / 4
    p = (softmax(x1 @ w) + softmax(x2 @ w)) / 2
    r = clean_probs[:, None] * np.eye(classes)[labels] + (1 - clean_probs[:, None]) * p
    rows = np.concatenate([x1, x2, u1, u2])
    targets = np.concatenate([sharpened(r), sharpened(r), sharpened(q), sharpened(q)])
    lam = np.random.default_rng(3).beta(4.0, 4.0)
    lam = max(lam, 1 - lam)
    sigma = torch.randperm(len(rows), generator=torch.Generator().manual_seed(4)).numpy()
    rows, targets = lam * rows + (1 - lam) * rows[sigma], lam * targets + (1 - lam) * targets[sigma]
    cut = 2 * num_labelled
    if not unlabelled_loss:
        rows, targets = rows[:cut], targets[:cut]
    probs = softmax(rows @ w)
    loss_x = -(targets[:cut] * np.log(probs[:cut])).sum() / cut
    size_u = targets[cut:].size
    loss_u = ((probs[cut:] - targets[cut:]) ** 2).sum() / max(size_u, 1)
    mean = probs.mean(0)
    loss_reg = (np.log(1 / classes / mean) / classes).sum()

    assert parts["loss_labelled"] == pytest.approx(loss_x)
    assert parts["loss_unlabelled"] == pytest.approx(loss_u)
    assert parts["loss_balance"] == pytest.approx(loss_reg)
    assert parts["loss"] == pytest.approx(loss_x + lambda_u * loss_u + loss_reg)
    assert parts["lambda_u"] == lambda_u
    assert loss_u <= 2 / classes
    np.testing.assert_allclose(targets.sum(1), 1)

    # Its gradient with the targets held constant, by hand: what reached the targets would show as a difference.
    by_probs = np.zeros_like(probs)
    by_probs[cut:] += lambda_u * 2 * (probs[cut:] - targets[cut:]) / max(size_u, 1)
    by_probs += -1 / (classes * mean) / len(rows)
    by_logits = probs * (by_probs - (by_probs * probs).sum(1, keepdims=True))
    by_logits[:cut] += (probs[:cut] - targets[:cut]) / cut
    assert network.weight.grad is not None
    np.testing.assert_allclose(network.weight.grad.numpy(), rows.T @ by_logits, atol=1e-12)
    assert peer.weight.grad is None


# ---------------------------------------------------------------- one epoch


def test_peer_is_untouched_and_batch_norm_moves_five_times_a_step(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, peer) = make_run(task), learners(method, task)
    clean_probs = torch.linspace(0, 1, task.num_train)
    learner_before, peer_before = copy_of(learner.network), copy_of(peer.network)
    peer.network.train()
    method.train_epoch(task, run, 2, learner, peer, whole(clean_probs))

    for name, value in peer.network.state_dict().items():
        assert torch.equal(value, peer_before[name]), name
    assert all(parameter.grad is None for parameter in peer.network.parameters())
    assert not peer.network.training
    assert learner.network.training
    steps = len(run.values("net1_loss"))
    assert steps == -(-int((clean_probs > 0.5).sum()) // 8)
    assert learner.network.state_dict()["layers.1.num_batches_tracked"] == 5 * steps
    assert not torch.equal(learner.network.state_dict()["head.weight"], learner_before["head.weight"])


def test_forward_passes_come_in_the_order_of_the_released_code(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config(batch_size=100))
    learner, peer = learners(method, task)
    calls: list[tuple[str, bool, bool, int]] = []
    for name, network in (("A", learner.network), ("B", peer.network)):
        network.register_forward_pre_hook(
            lambda module, args, name=name: calls.append((name, module.training, torch.is_grad_enabled(), len(args[0])))
        )
    clean_probs = (torch.arange(task.num_train) < 40).float()
    method.train_epoch(task, make_run(task), 2, learner, peer, whole(clean_probs))
    assert calls == [
        ("A", True, False, 50),
        ("A", True, False, 50),
        ("B", False, False, 50),
        ("B", False, False, 50),
        ("A", True, False, 40),
        ("A", True, False, 40),
        ("A", True, True, 180),
    ]


def test_without_unlabelled_loss_only_labelled_rows_are_forwarded(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config(batch_size=100, unlabelled_loss=False))
    run, (learner, peer) = make_run(task), learners(method, task)
    rows: list[int] = []
    learner.network.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    method.train_epoch(task, run, 2, learner, peer, whole((torch.arange(task.num_train) < 40).float()))
    assert rows == [50, 50, 40, 40, 80]
    assert run.values("net1_loss_unlabelled") == [0.0]


def test_lambda_u_ramps_within_the_epoch(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config(lambda_u=25.0, warmup_epochs=10))
    run, (learner, peer) = make_run(task), learners(method, task)
    # 40 = 5 * 8: the released code divides the epoch by one step more than there are.
    method.train_epoch(task, run, 12, learner, peer, whole((torch.arange(task.num_train) < 40).float()))
    assert run.values("net1_lambda_u") == pytest.approx([25 * (2 + step / 6) / 16 for step in range(5)])
    for epoch, expected in ((10, 0.0), (18, 12.5), (26, 25.0), (40, 25.0)):
        run.logged.clear()
        method.train_epoch(task, run, epoch, learner, peer, whole((torch.arange(task.num_train) < 5).float()))
        assert run.values("net1_lambda_u") == [pytest.approx(expected)]


def test_split_is_strict_and_unlabelled_batches_start_anew(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, peer) = make_run(task), learners(method, task)
    clean_probs = torch.full((task.num_train,), 0.51)
    clean_probs[:10] = 0.5
    method.train_epoch(task, run, 2, learner, peer, whole(clean_probs))
    labelled = torch.cat([rows for role, rows in task.served if role == "net1 labelled"])
    unlabelled = [rows for role, rows in task.served if role == "net1 unlabelled"]
    assert sorted(labelled.tolist()) == list(range(10, 90))
    assert sorted(torch.cat(unlabelled[:2]).tolist()) == list(range(10))
    assert [len(rows) for rows in unlabelled] == [8, 2] * 5
    assert run.values("net1_num_labelled") == [80.0]
    assert [(role, facts["views"], facts["batch_size"]) for role, facts in task.loaders] == [
        ("net1 labelled", ("weak", "weak"), 8),
        ("net1 unlabelled", ("weak", "weak"), 8),
    ]


def test_without_unlabelled_samples_it_trains_on_the_others(
    make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, peer) = make_run(task), learners(method, task)
    with caplog.at_level(logging.WARNING):
        method.train_epoch(task, run, 2, learner, peer, whole(torch.ones(task.num_train)))
    assert "every sample counts as clean" in caplog.text
    steps = len(run.values("net1_loss"))
    assert steps == 12
    assert run.values("net1_loss_unlabelled") == [0.0] * steps
    assert learner.network.state_dict()["layers.1.num_batches_tracked"] == 3 * steps


def test_without_labelled_samples_it_skips_the_epoch(
    make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, peer) = make_run(task), learners(method, task)
    before = copy_of(learner.network)
    with caplog.at_level(logging.WARNING):
        method.train_epoch(task, run, 2, learner, peer, whole(torch.full((task.num_train,), 0.5)))
    assert "no sample counts as clean" in caplog.text
    assert run.values("net1_num_labelled") == [0.0]
    assert all(torch.equal(value, before[name]) for name, value in learner.network.state_dict().items())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_no_step_waits_for_the_device(make_task: Any, make_run: Any, weight: float) -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Watch.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Watched(DivideMix):
        def loss(self, *args: Any, **kwargs: Any) -> Any:
            with Watch():
                loss, parts = super().loss(*args, **kwargs)
                torch.autograd.grad(loss, list(args[0].parameters()), retain_graph=True)
                return loss, parts

    task, method = make_task(), Watched(config(lambda_cvl=weight, lambda_cml=weight))
    method.train_epoch(task, make_run(task), 2, *learners(method, task), whole(torch.linspace(0, 1, task.num_train)))
    assert Watch.waits == 0
    with Watch():
        torch.ones(1).item()
    assert Watch.waits == 1


# ---------------------------------------------------------------- warm-up and division


@pytest.mark.parametrize("penalty", [False, True])
def test_warm_up_loss(make_task: Any, make_run: Any, penalty: bool) -> None:
    task, method = make_task(), DivideMix(config(batch_size=100, warmup_penalty=penalty))
    run, (learner, _) = make_run(task), learners(method, task)
    seen: list[Tensor] = []
    learner.network.register_forward_hook(lambda *call: seen.append(call[-1].detach().double()))
    method.warm_up(task, run, learner)
    probs, labels = softmax(seen[0].numpy()), task.labels[task.served[0][1]].numpy()
    expected = -np.log(probs[np.arange(len(labels)), labels]).mean()
    if penalty:
        expected += (probs * np.log(probs)).sum(1).mean()
    assert run.values("net1_loss_warmup") == [pytest.approx(expected, abs=1e-5)]
    assert learner.network.training
    assert task.loaders == [("net1 warm-up", {"batch_size": 200, "views": ("weak",), "shuffle": True})]


def test_division_uses_plain_images_in_eval_mode(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, _) = make_run(task), learners(method, task)
    learner.network.train()
    before = copy_of(learner.network)
    clean_probs = method.divide(task, run, learner).clean_probs
    assert all(torch.equal(value, before[name]) for name, value in learner.network.state_dict().items())
    assert task.loaders == [("net1 losses", {"batch_size": 32, "views": ("plain",), "shuffle": False})]

    with torch.no_grad():
        probs = softmax(learner.network(task.images).double().numpy())
    losses = -np.log(probs[np.arange(task.num_train), task.labels.numpy()])
    losses = (losses - losses.min()) / (losses.max() - losses.min())
    np.testing.assert_allclose(learner.history.mean().numpy(), losses, atol=1e-5)
    [(_, name, verdicts)] = run.reported
    assert name == "net1"
    assert torch.equal(verdicts["clean_probs"], clean_probs)
    assert torch.equal(verdicts["selected"], clean_probs > 0.5)
    assert ((clean_probs >= 0) & (clean_probs <= 1)).all()


def test_losses_are_averaged_over_the_last_five_epochs(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config(loss_average_epochs=5))
    run, (learner, _) = make_run(task), learners(method, task)
    normalised = []
    for epoch in range(7):
        run.clock.move_to(epoch)
        method.warm_up(task, run, learner)
        clean_probs = method.divide(task, run, learner).clean_probs
        losses = method.sample_losses(task, learner, torch.arange(task.num_train))
        normalised.append((losses - losses.min()) / (losses.max() - losses.min()))
        mean = torch.stack(normalised[-5:]).mean(0)
        assert torch.equal(learner.history.mean(), mean)
        run.clock.move_to(epoch)
        seed = run.rng("net1 gmm").seed()
        expected = clean_probabilities(mean, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
        assert torch.equal(clean_probs, expected)


def test_equal_losses_leave_every_sample_clean(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, _) = make_run(task), learners(method, task)
    nn.init.zeros_(learner.network.head.weight)
    nn.init.zeros_(learner.network.head.bias)
    assert method.divide(task, run, learner).clean_probs.tolist() == [1.0] * task.num_train


def test_a_draw_limits_division_warm_up_and_training(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config(draw_size=30))
    run, (learner, peer) = make_run(task), learners(method, task)
    method.warm_up(task, run, learner)
    warmed = torch.cat([rows for role, rows in task.served if role == "net1 warm-up"])
    division = method.divide(task, run, learner)
    sizes = torch.bincount(task.labels, minlength=task.num_classes)
    for index, count in ((warmed, 60), (division.index, 30)):
        limit = -(-count // task.num_classes)
        expected = torch.minimum(sizes, torch.tensor(limit))
        assert torch.equal(torch.bincount(task.labels[index], minlength=task.num_classes), expected)
    outside = torch.ones(task.num_train, dtype=torch.bool)
    outside[division.index] = False
    assert (division.clean_probs[outside] == 0).all()
    [(_, _, verdicts)] = run.reported
    assert verdicts["clean_probs"] is None, "nothing is claimed of samples that were not looked at"

    method.train_epoch(task, run, 2, peer, learner, division)
    used = torch.cat([rows for role, rows in task.served if role.startswith(("net2 labelled", "net2 unlabelled"))])
    assert not outside[used].any()
    run.clock.move_to(3)
    assert not torch.equal(method.draw(task, run, learner), division.index), "each epoch has a draw of its own"


def test_warm_up_starts_from_another_methods_selection(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, _) = make_run(task), learners(method, task)
    selected = torch.arange(task.num_train) % 3 == 0
    task.selection = Selection(clean_probs=selected.float(), selected=selected)
    method.warm_up(task, run, learner)
    assert selected[torch.cat([rows for _, rows in task.served])].all()
    assert len(method.divide(task, run, learner).index) == task.num_train, "afterwards it judges all samples itself"


def test_a_network_that_diverged_is_reported(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), DivideMix(config())
    run, (learner, _) = make_run(task), learners(method, task)
    nn.init.constant_(learner.network.head.bias, float("nan"))
    with pytest.raises(DivergedError, match="90 of 90 values are not finite"):
        method.divide(task, run, learner)


# ---------------------------------------------------------------- the loop


def test_each_network_trains_on_the_division_of_the_other(make_task: Any, make_run: Any) -> None:
    masks = {"net1": torch.arange(90) < 30, "net2": torch.arange(90) >= 50}

    class Fixed(DivideMix):
        def divide(self, task: Any, run: Any, learner: Learner) -> Division:
            super().divide(task, run, learner)
            return whole(masks[learner.role].float())

    task = make_task()
    Fixed(config(epochs=3)).fit(task, make_run(task))
    for role, other in (("net1", "net2"), ("net2", "net1")):
        seen = torch.cat([rows for served, rows in task.served if served == f"{role} labelled"])
        assert seen.sort().values.tolist() == masks[other].nonzero().flatten().tolist()
        unlabelled = torch.cat([rows for served, rows in task.served if served == f"{role} unlabelled"])
        assert not masks[other][unlabelled].any()
    assert [role for role, _ in task.loaders] == [
        *["net1 warm-up", "net2 warm-up"] * 2,
        *["net1 losses", "net2 losses"],
        *["net1 labelled", "net1 unlabelled", "net2 labelled", "net2 unlabelled"],
    ]


def test_learning_rate_drops_at_its_epoch(make_task: Any, make_run: Any) -> None:
    task = make_task(num_train=6)
    run = make_run(task)
    rates: list[list[float]] = []
    run.after_epoch = lambda _: rates.append(
        [run.tracked[name].param_groups[0]["lr"] for name in ("optimizer1", "optimizer2")]
    )
    DivideMix(config(epochs=152, warmup_epochs=152, lr_drop_epoch=150)).fit(task, run)
    assert rates[0] == rates[149] == [0.02, 0.02]
    assert rates[150] == rates[151] == pytest.approx([0.002, 0.002])


def test_the_two_networks_start_from_different_weights(make_task: Any) -> None:
    first, second = learners(DivideMix(config()), make_task())
    assert not torch.equal(first.network.state_dict()["head.weight"], second.network.state_dict()["head.weight"])


def test_learns_and_finds_the_clean_samples(make_task: Any, make_run: Any) -> None:
    task, clean = make_task(240, 4, 0.4), make_task(240, 4, 0.0)
    run, method = make_run(task), DivideMix(config(epochs=12, warmup_epochs=4, lr_drop_epoch=10))
    method.fit(task, run)
    with torch.no_grad():
        accuracy = (method.predict(task.images).argmax(1) == clean.labels).float().mean()
    assert accuracy > 0.95
    for _, _, verdicts in run.reported[-2:]:
        selected, right = verdicts["selected"], task.labels == clean.labels
        assert right[selected].float().mean() > 0.9
        assert selected[right].float().mean() > 0.8
    assert [(epoch, name) for epoch, name, _ in run.reported] == [
        (epoch, name) for epoch in range(4, 12) for name in ("net1", "net2")
    ]


@pytest.mark.parametrize("stop_after", [0, 2, 4])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    make_task: Any, make_run: Any, stop_after: int
) -> None:
    settings = config(loss_average_epochs=3)
    method, task = DivideMix(settings), make_task()
    method.fit(task, whole := make_run(task))

    DivideMix(settings).fit(first := make_task(), interrupted := make_run(first, stop_after=stop_after))
    assert interrupted.clock.epoch == stop_after
    resumed_method, second = DivideMix(settings), make_task()
    resumed_method.fit(second, resumed := make_run(second, resume=interrupted.saved))

    assert torch.equal(method.predict(task.images), resumed_method.predict(task.images))
    for name, state in whole.tracked.items():
        if isinstance(state, nn.Module):
            other = resumed.tracked[name].state_dict()
            assert all(torch.equal(value, other[key]) for key, value in state.state_dict().items())
    logged = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in whole.logged]
    again = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in resumed.logged]
    assert [each for each in logged if each[0] > stop_after] == again


def test_everything_with_state_is_tracked(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    DivideMix(config(epochs=1)).fit(task, run)
    kinds = {name: type(state) for name, state in run.tracked.items()}
    assert kinds.pop("net1") is kinds.pop("net2")
    assert kinds == {
        "optimizer1": torch.optim.SGD,
        "optimizer2": torch.optim.SGD,
        "history1": LossHistory,
        "history2": LossHistory,
    }


# ---------------------------------------------------------------- registration and page


def test_registration() -> None:
    [entry] = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("dividemix", 2, ("scratch",))
    assert entry.target == f"{DivideMix.__module__}:{DivideMix.__qualname__}"
    assert entry.paper is not None
    assert entry.paper.bibtex in README


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_dividemix as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_page_names_every_option_and_every_logged_metric(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    DivideMix(config(epochs=3, lambda_cvl=1, lambda_cml=1)).fit(task, run)
    metrics = {key.replace("net2", "net1") for _, values in run.logged for key in values}
    options = set(DivideMix.Config.model_fields)
    assert len(metrics) == 9
    assert [name for name in sorted(metrics | options) if f"| `{name}` |" not in README] == []
    assert all(field.description for field in DivideMix.Config.model_fields.values())
