from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lnlbench.api import Batch, Ensemble, TaskInfo
from lnlbench.blocks.mixture import clean_probabilities
from lnlbench.engine.views import ImageStore
from lnlbench.testing import MemoryTask, toy_task
from lnlbench_ccl import lnlbench_methods
from lnlbench_ccl.ccl import STRONG, Ccl, Learner, Seen

Array = NDArray[np.float64]
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# What leaves one part of the method out, by the paper's name of it (its Table 7).
ABLATIONS: dict[str, dict[str, Any]] = {
    "CCL": {},
    "without mimicry": {"lambda_mimicry": 0.0},
    "without threshold": {"pg_threshold": 0.0},
    "without refurbished labels": {"refurbished_positives": False},
    "without L_CVL": {"lambda_cvl": 0.0},
    "without L_CML": {"lambda_cml": 0.0},
}
OTHER_READINGS: tuple[dict[str, Any], ...] = (
    {"sharpen_peer": False},
    {"pg_source": "strong", "pg_threshold": 0.99},
    {"detach_weak": True},
    {"contrast_temperature": 0.1, "temperature": 0.3, "pg_threshold": 0.7},
    {"lambda_div": 0.0},
    {"lambda_cvl": 0.3, "lambda_cml": 2.0, "lambda_div": 2.0, "lambda_mimicry": 0.5},
)


def config(**changes: Any) -> Ccl.Config:
    settings: dict[str, Any] = {
        "epochs": 5,
        "batch_size": 8,
        "backbone": "any",
        "warmup_epochs": 2,
        "lr_drop_epoch": 4,
    }
    return Ccl.Config(**(settings | changes))


def learners(method: Ccl, task: Any) -> tuple[Learner, Learner]:
    return method.build(task, "net1"), method.build(task, "net2")


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


# ---------------------------------------------------------------- preset


@pytest.mark.parametrize(("dataset", "warmup"), [("cifar10", 10), ("cifar100", 30)])
def test_preset_for_cifar(make_info: Callable[..., TaskInfo], dataset: str, warmup: int) -> None:
    info = make_info(dataset, "symmetric", 0.8, image_size=32, channels=3)
    assert Ccl.preset(info) == Ccl.Config(
        epochs=500,
        batch_size=128,
        backbone="resnet18-cifar",
        strong_view="robust-lr",
        warmup_epochs=warmup,
        warmup_penalty=False,
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=0.0,
        lr_drop_epoch=400,
        lr_drop_factor=0.1,
        confidence_view="strong",
        gmm_max_iter=10,
        gmm_tol=1e-2,
        gmm_reg_covar=5e-4,
        contrast_temperature=0.5,
        proj_dim=0,
        lambda_mimicry=1.0,
        lambda_cvl=1.0,
        pg_threshold=0.95,
        pg_source="weak",
        detach_weak=False,
        lambda_cml=1.0,
        sharpen_peer=True,
        temperature=0.5,
        refurbished_positives=True,
        lambda_div=1.0,
    )
    assert info.asked == set()


@pytest.mark.parametrize(("dataset", "warmup"), [("animal10n", 30), ("mini-webvision", 80)])
def test_presets_for_large_images(make_info: Callable[..., TaskInfo], dataset: str, warmup: int) -> None:
    info = make_info(dataset, "own", None, image_size=224, channels=3)
    preset = Ccl.preset(info)
    assert (preset.epochs, preset.batch_size, preset.warmup_epochs, preset.lr_drop_epoch) == (500, 128, warmup, 400)
    assert (preset.backbone, preset.strong_view, preset.learning_rate) == ("timm:resnet50", "strong", 1e-3)
    assert info.asked == set()


@pytest.mark.parametrize(("epochs", "warmup", "drop"), [(40, 5, 32), (1, 1, 1)])
def test_preset_elsewhere_follows_the_suite_and_asks_nothing(
    make_info: Callable[..., TaskInfo], epochs: int, warmup: int, drop: int
) -> None:
    info = make_info("digits", "symmetric", 0.6, default_epochs=epochs)
    preset = Ccl.preset(info)
    assert (preset.epochs, preset.backbone, preset.strong_view) == (epochs, "small-cnn", "strong")
    assert (preset.warmup_epochs, preset.lr_drop_epoch) == (warmup, drop)
    assert info.asked == set()


# ---------------------------------------------------------------- worked numbers

ANCHORS = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
CANDIDATES = [[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]


def seen(features: Any, logits: Any = None) -> Seen:
    features = torch.as_tensor(features, dtype=torch.float64)
    logits = torch.zeros(len(features), 3) if logits is None else torch.as_tensor(logits)
    return Seen(features, logits.double())


def test_contrast_and_mimicry_of_two_views_worked_numbers() -> None:
    for temperature, expected in ((0.5, 0.126928), (0.1, 0.0000453989)):
        axes = seen([[1.0, 0.0], [0.0, 1.0]])
        _, parts = Ccl(config(contrast_temperature=temperature)).across_views(axes, axes)
        np.testing.assert_allclose(parts["loss_instance"], [expected] * 2, rtol=5e-6)
        np.testing.assert_allclose(parts["loss_view_mimicry"], 0, atol=1e-12)
    _, parts = Ccl(config()).across_views(seen(ANCHORS), seen(CANDIDATES))
    np.testing.assert_allclose(parts["loss_instance"], [0.627123, 1.352984, 1.151251], atol=6e-7)
    np.testing.assert_allclose(parts["loss_view_mimicry"], [0.280132, 0.321351, 0.0], atol=6e-7)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([0, 1, 1], [0.627123, 0.439969, 0.238235]),
        ([2, 2, 2], [0.0, 0.0, 0.0]),
        ([2, 0, 1], [0.627123, 1.352984, 1.151251]),
    ],
)
def test_contrast_of_two_networks_worked_numbers(classes: list[int], expected: list[float]) -> None:
    _, parts = Ccl(config()).across_models(seen(ANCHORS), seen(CANDIDATES), torch.tensor(classes))
    np.testing.assert_allclose(parts["loss_class"], expected, atol=6e-7)
    np.testing.assert_allclose(parts["loss_model_mimicry"], [0.280132, 0.321351, 0.0], atol=6e-7)
    plain = Ccl(config(refurbished_positives=False))
    _, parts = plain.across_models(seen(ANCHORS), seen(CANDIDATES), torch.tensor(classes))
    np.testing.assert_allclose(parts["loss_class"], [0.627123, 1.352984, 1.151251], atol=6e-7)


@pytest.mark.parametrize(("sharpen_peer", "target"), [(True, [0.782609, 0.195652, 0.021739]), (False, [0.6, 0.3, 0.1])])
def test_target_from_the_peer_worked_numbers(sharpen_peer: bool, target: list[float]) -> None:
    peer = seen(torch.ones(3, 2), torch.tensor([[0.6, 0.3, 0.1]] * 3).log())
    # Each of the three rows bets on one class; log-probabilities are then the logits up to a constant.
    strong = seen(torch.ones(3, 2), 2 * torch.eye(3))
    method = Ccl(config(sharpen_peer=sharpen_peer))
    _, parts = method.across_models(strong, peer, torch.arange(3))
    np.testing.assert_allclose(parts["loss_peer"], math.log(math.e**2 + 2) - 2 * np.array(target), atol=2e-6)


@pytest.mark.parametrize(
    ("clean_prob", "expected"),
    [(0.4, [0.42, 0.52, 0.06]), (0.3, [0.49, 0.44, 0.07]), (1, [0, 1, 0]), (0, [0.7, 0.2, 0.1])],
)
def test_refurbished_labels_worked_numbers(clean_prob: float, expected: list[float]) -> None:
    peer = seen(torch.ones(1, 2), torch.tensor([[0.7, 0.2, 0.1]]).log())
    # Sharpening has no part in it: at 0.4 the class would be another one.
    refurbished = Ccl(config()).refurbish(torch.tensor([1]), torch.tensor([clean_prob]), peer)
    np.testing.assert_allclose(refurbished, [expected], atol=1e-6)


def test_guidance_counts_confident_predictions_on_weak_views_over_all_images() -> None:
    weak = torch.tensor([[0.96, 0.03, 0.01], [0.02, 0.02, 0.96], [0.90, 0.05, 0.05], [0.25, 0.5, 0.25]]).log()
    strong = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.97, 0.02, 0.01]]).log()
    views = (seen(torch.ones(4, 2), strong), seen(torch.ones(4, 2), weak))
    _, parts = Ccl(config()).across_views(*views)
    np.testing.assert_allclose(parts["loss_guidance"], [math.log(2), math.log(5), 0, 0], atol=1e-6)
    assert parts["guided"].tolist() == [1, 1, 0, 0]
    _, parts = Ccl(config(pg_source="strong")).across_views(*views)
    np.testing.assert_allclose(parts["loss_guidance"], [0, 0, 0, -math.log(0.97)], atol=1e-6)
    # A probability equal to the threshold is enough; none reaches more than 1; all reach 0.
    for threshold, guided in ((0.5, [1, 1, 1, 1]), (1.01, [0, 0, 0, 0]), (0.0, [1, 1, 1, 1])):
        logits = torch.tensor([[50.0, 0, 0], [0, 50.0, 0], [0, 0, 50.0], [0, 0, -1e9]])
        _, parts = Ccl(config(pg_threshold=threshold)).across_views(views[0], seen(torch.ones(4, 2), logits))
        assert parts["guided"].tolist() == guided


def test_one_positive_among_random_features_costs_about_the_logarithm_of_their_number() -> None:
    generator = torch.Generator().manual_seed(3)
    strong, peer = (seen(torch.randn(128, 512, generator=generator)) for _ in range(2))
    _, parts = Ccl(config()).across_models(strong, peer, torch.arange(128))
    assert float(parts["loss_class"].mean()) == pytest.approx(math.log(128), abs=0.05)


class Losses(nn.Module):
    """Gives class 0 the loss that is the image's only pixel."""

    def forward(self, images: Tensor) -> Tensor:
        other_B1 = images.flatten(1).expm1().log()
        return torch.cat([torch.zeros_like(other_B1), other_B1], 1)


def test_clean_probabilities_worked_numbers(make_run: Any) -> None:
    losses = torch.tensor([0.05, 0.1, 0.2, 0.15, 2.5, 3.1, 2.8, 0.3, 1.2], dtype=torch.float64)
    task = MemoryTask(losses.view(-1, 1, 1, 1), torch.tensor([0] * 9))
    method, network = Ccl(config(confidence_view="plain")), Losses()
    peer = Learner("net2", network, nn.Identity(), torch.optim.Adam([torch.zeros(1, requires_grad=True)]))
    learner = Learner("net1", nn.Linear(1, 1), nn.Identity(), peer.optimizer)
    clean_probs = method.clean_probs(task, make_run(task), learner, peer)
    np.testing.assert_allclose(clean_probs, [1, 1, 1, 1, 1e-6, 0, 0, 1, 1], atol=6e-7)


@pytest.mark.parametrize(
    ("logits1", "logits2", "expected"),
    [
        ([[2.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]], None),
        # A confident network and a faint one: logits would be added to class 1, probabilities to class 0.
        ([[5.0, 4.0, 0.0]], [[0.0, 2.5, 0.0]], 1),
        ([[200.0, 0.0, 0.0]], [[0.0, 500.0, 0.0]], None),
    ],
)
def test_prediction_is_the_mean_of_both(
    logits1: list[list[float]], logits2: list[list[float]], expected: int | None
) -> None:
    class Constant(nn.Module):
        def __init__(self, logits: list[list[float]]) -> None:
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), -1)

    method = Ccl(config())
    method.net1, method.net2 = Constant(logits1), Constant(logits2)
    answer = method.predict(torch.zeros(2, 1, 2, 2))
    assert isinstance(answer, Ensemble)
    mean = (softmax(np.array(logits1)) + softmax(np.array(logits2))) / 2
    np.testing.assert_allclose(answer.logits.exp(), mean.repeat(2, 0), atol=1e-6)
    assert answer.logits.isfinite().all()
    assert expected is None or answer.logits.argmax(1).tolist() == [expected] * 2
    np.testing.assert_array_equal(answer.networks["net1"], np.repeat(logits1, 2, 0))
    np.testing.assert_array_equal(answer.networks["net2"], np.repeat(logits2, 2, 0))


# ---------------------------------------------------------------- one step against NumPy


class Linear(nn.Module):
    """Linear features and a linear layer, small enough to be written out in NumPy."""

    def __init__(self, generator: np.random.Generator, pixels: int, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(generator.normal(size=(pixels, features))))
        self.last = nn.Parameter(torch.tensor(generator.normal(size=(features, classes))))

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.first

    def classify(self, features: Tensor) -> Tensor:
        return features @ self.last


def slow_rows(anchors: Array, candidates: Array, temperature: float) -> tuple[Array, Array]:
    """Return what each anchor makes of the candidates, and each candidate of the anchors, as rows."""
    count = len(anchors)
    powers = np.empty((count, count))
    for i in range(count):
        for j in range(count):
            cosine = anchors[i] @ candidates[j] / math.sqrt((anchors[i] ** 2).sum() * (candidates[j] ** 2).sum())
            powers[i, j] = math.exp(cosine / temperature)
    forward = np.array([[powers[i, j] / powers[i].sum() for j in range(count)] for i in range(count)])
    backward = np.array([[powers[j, i] / powers[:, i].sum() for j in range(count)] for i in range(count)])
    return forward, backward


def slow_kl(p: Array, q: Array) -> Array:
    return np.asarray((p * (np.log(p) - np.log(q))).sum(1))


def slow_step(
    options: Ccl.Config,
    strong: tuple[Array, Array],
    weak: tuple[Array, Array],
    weak_features: Array,
    peer: tuple[Array, Array],
    labels: NDArray[np.int64],
    omega: Array,
) -> tuple[float, dict[str, float], list[int]]:
    """Compute the loss of a step from features and logits, sample by sample; the peer is (features, logits)."""
    tau, classes = options.contrast_temperature, strong[1].shape[1]
    p_strong, p_weak, p_peer = softmax(strong[1]), softmax(weak[1]), softmax(peer[1])
    given = np.eye(classes)[labels]
    refurbished = [int((w * y + (1 - w) * p).argmax()) for w, y, p in zip(omega, given, p_peer, strict=True)]
    positives = refurbished if options.refurbished_positives else list(range(len(labels)))
    guide = p_weak if options.pg_source == "weak" else p_strong
    power = 1 / options.temperature if options.sharpen_peer else 1
    target = p_peer**power / (p_peer**power).sum(1, keepdims=True)
    sw, ws = slow_rows(strong[0], weak_features, tau)
    m2p, p2m = slow_rows(strong[0], peer[0], tau)
    vm, mm = slow_kl(sw, ws), slow_kl(m2p, p2m)

    total, sums = 0.0, dict.fromkeys(["label", "guidance", "guided", "instance", "peer", "class"], 0.0)
    for i, label in enumerate(labels):
        l_label = -math.log(p_strong[i, label])
        gate = guide[i].max() >= options.pg_threshold
        l_pg = -math.log(p_strong[i, guide[i].argmax()]) if gate else 0.0
        l_acl = -math.log(sw[i, i])
        l_peer = -sum(target[i, k] * math.log(p_strong[i, k]) for k in range(classes))
        l_class = -math.log(sum(m2p[i, j] for j in range(len(labels)) if positives[j] == positives[i]))
        cvl = l_pg + l_acl + options.lambda_mimicry * vm[i]
        cml = l_peer + l_class + options.lambda_mimicry * mm[i]
        total += omega[i] * l_label + (1 - omega[i]) / 2 * (options.lambda_cvl * cvl + options.lambda_cml * cml)
        for name, value in zip(sums, (l_label, l_pg, gate, l_acl, l_peer, l_class), strict=True):
            sums[name] += value
    mean = p_strong.mean(0)
    l_div = sum(math.log(1 / classes / mean[k]) / classes for k in range(classes))
    n = len(labels)
    parts = {name if name == "guided" else f"loss_{name}": value / n for name, value in sums.items()}
    parts |= {"loss_view_mimicry": vm.mean(), "loss_model_mimicry": mm.mean()}
    parts |= {"loss_balance": l_div, "clean_prob": omega.mean(), "loss": total / n + options.lambda_div * l_div}
    return parts["loss"], parts, refurbished


def small_step(seed: int, count: int) -> tuple[Learner, Learner, Batch, Tensor]:
    generator = np.random.default_rng(seed)
    pixels, features, classes = 4, 6, 4
    networks = [Linear(generator, pixels, features, classes) for _ in range(2)]
    first, second = (
        Learner(role, network, nn.Identity(), torch.optim.Adam(network.parameters()))
        for role, network in zip(("net1", "net2"), networks, strict=True)
    )
    views = tuple(torch.tensor(generator.normal(size=(count, 1, 2, 2))) for _ in range(2))
    labels = torch.from_numpy(generator.integers(classes, size=count))
    return first, second, Batch(torch.arange(count), labels, views), torch.from_numpy(generator.random(count))


@pytest.mark.parametrize("changes", [*ABLATIONS.values(), *OTHER_READINGS])
@pytest.mark.parametrize("count", [7, 1])
def test_step_agrees_with_numpy(changes: dict[str, Any], count: int) -> None:
    first, second, batch, clean_probs = small_step(11, count)
    method = Ccl(config(**({"pg_threshold": 0.6} | changes)))
    loss, parts, classes = method.loss(first, second, batch, clean_probs)
    loss.backward()  # type: ignore[no-untyped-call]

    w, x = batch.views[0].flatten(1).numpy(), batch.views[1].flatten(1).numpy()
    a, b = (parameter.detach().numpy() for parameter in first.network.parameters())
    c, d = (parameter.detach().numpy() for parameter in second.network.parameters())

    def slow(a: Array, b: Array) -> tuple[float, dict[str, float], list[int]]:
        weak_features = w @ (a0 if method.config.detach_weak else a)
        peer = (w @ c, w @ c @ d)
        return slow_step(
            method.config,
            (x @ a, x @ a @ b),
            (w @ a, w @ a @ b),
            weak_features,
            peer,
            batch.labels.numpy(),
            clean_probs.numpy(),
        )

    a0 = a
    expected, expected_parts, refurbished = slow(a, b)
    assert classes.tolist() == refurbished
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(expected_parts, abs=1e-12)
    assert loss.item() == pytest.approx(expected)
    if count > 1 and changes.get("pg_threshold") != 0:
        assert 0 < expected_parts["guided"] < 1

    # Gradient along random directions: what reached a constant would show as a difference.
    generator, step = np.random.default_rng(5), 1e-6
    for _ in range(3):
        u, v = generator.normal(size=a.shape), generator.normal(size=b.shape)
        slope = (slow(a + step * u, b + step * v)[0] - slow(a - step * u, b - step * v)[0]) / (2 * step)
        found = sum(
            float((parameter.grad * torch.from_numpy(direction)).sum())  # type: ignore[operator]
            for parameter, direction in zip(first.network.parameters(), (u, v), strict=True)
        )
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert all(parameter.grad is None for parameter in second.network.parameters())


def test_a_head_is_trained_and_only_features_to_compare_pass_through_it(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Ccl(config(proj_dim=5))
    first, second = learners(method, task)
    batch = next(iter(task.loader("any", batch_size=8, views=("weak", "strong"))))
    first.network.eval()
    seen = method.look(first, batch.images)
    assert seen.features.shape == (8, 5)
    assert torch.equal(seen.logits, first.network(batch.images))
    hidden = first.head[0](first.network.embed(batch.images)).relu()  # type: ignore[operator,index]
    assert torch.equal(seen.features, first.head[2](hidden))  # type: ignore[index,operator]
    assert not torch.equal(first.head[0].weight, second.head[0].weight)  # type: ignore[index,arg-type,union-attr]

    before, peer_before = copy_of(first.head), copy_of(second.head)
    method.train_epoch(task, make_run(task), first, second)
    assert not any(torch.equal(value, before[name]) for name, value in first.head.state_dict().items())
    assert all(torch.equal(value, peer_before[name]) for name, value in second.head.state_dict().items())


# ---------------------------------------------------------------- invariants of the loss


@given(seed=st.integers(0, 2**31), count=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_invariants(seed: int, count: int) -> None:
    first, second, batch, clean_probs = small_step(seed, count)
    method = Ccl(config(pg_threshold=0.5))
    loss, parts, classes = method.loss(first, second, batch, clean_probs)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    permuted = Batch(batch.index[order], batch.labels[order], tuple(view[order] for view in batch.views))
    permuted_loss, _, permuted_classes = method.loss(first, second, permuted, clean_probs[order])
    assert permuted_loss.item() == pytest.approx(loss.item())
    assert torch.equal(permuted_classes, classes[order])

    strong, weak, peer = (
        method.look(learner, batch.views[view]) for learner, view in ((first, 1), (first, 0), (second, 0))
    )
    across_views, view_parts = method.across_views(strong, weak)
    across_models, model_parts = method.across_models(strong, peer, classes)
    rescaled = Seen(strong.features * torch.linspace(0.1, 9, count, dtype=torch.float64)[:, None], strong.logits)
    torch.testing.assert_close(method.across_views(rescaled, weak)[0], across_views)
    torch.testing.assert_close(method.across_models(rescaled, peer, classes)[0], across_models)
    own_only = method.across_models(strong, peer, torch.arange(count))[1]["loss_class"]
    assert (model_parts["loss_class"] >= -1e-12).all()
    assert (model_parts["loss_class"] <= own_only + 1e-12).all()
    assert (view_parts["loss_view_mimicry"] >= -1e-12).all()
    assert (model_parts["loss_model_mimicry"] >= -1e-12).all()
    assert parts["loss_balance"] >= -1e-12
    if count == 1:
        for term in ("loss_instance", "loss_view_mimicry", "loss_class", "loss_model_mimicry"):
            assert (view_parts | model_parts)[term].tolist() == [0.0]


def test_where_every_label_is_surely_right_only_cross_entropy_and_balance_are_left() -> None:
    first, second, batch, _ = small_step(2, 9)
    loss, parts, classes = Ccl(config()).loss(first, second, batch, torch.ones(9, dtype=torch.float64))
    p = softmax(first.network.classify(first.network.embed(batch.views[1])).detach().numpy())  # type: ignore[operator]
    cross_entropy = -np.log(p[np.arange(9), batch.labels.numpy()]).mean()
    balance = -np.log(4 * p.mean(0)).mean()
    assert loss.item() == pytest.approx(cross_entropy + balance)
    assert parts["loss_balance"].item() == pytest.approx(balance)
    assert torch.equal(classes, batch.labels)


def test_networks_that_agree_see_peer_and_own_weak_view_alike() -> None:
    first, _, batch, clean_probs = small_step(2, 9)
    method = Ccl(config(refurbished_positives=False))
    _, parts, _ = method.loss(first, Learner("net2", first.network, first.head, first.optimizer), batch, clean_probs)
    assert parts["loss_class"] == parts["loss_instance"]
    assert parts["loss_model_mimicry"] == parts["loss_view_mimicry"]


@pytest.mark.parametrize("clean_prob", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("logit", [0.0, 1e4])
def test_batches_of_one_class_and_overconfident_networks_give_finite_gradients(clean_prob: float, logit: float) -> None:
    first, second, batch, _ = small_step(4, 6)
    with torch.no_grad():
        for learner in (first, second):
            learner.network.last[:, 0] += logit  # type: ignore[index,operator]
    batch = Batch(batch.index, torch.full_like(batch.labels, 2), batch.views)
    loss, _, _ = Ccl(config()).loss(first, second, batch, torch.full((6,), clean_prob, dtype=torch.float64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in first.network.parameters())  # type: ignore[union-attr]


# ---------------------------------------------------------------- one epoch


def test_two_passes_with_gradient_and_one_of_the_peer_without(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Ccl(config())
    run, (learner, peer) = make_run(task), learners(method, task)
    calls: list[tuple[str, bool, bool, int]] = []
    for name, network in (("own", learner.network), ("peer", peer.network)):
        network.layers.register_forward_pre_hook(
            lambda module, args, name=name: calls.append((name, module.training, torch.is_grad_enabled(), len(args[0])))
        )
    learner_before, peer_before = copy_of(learner.network), copy_of(peer.network)
    learner.network.eval()
    peer.network.train()
    method.train_epoch(task, run, learner, peer)

    # First the peer looks at everything, then 11 steps of 8 images; the two images left over are left out.
    confidence, steps = calls[:3], calls[3:]
    assert confidence == [("peer", False, False, size) for size in (32, 32, 26)]
    assert steps == [("own", True, True, 8), ("own", True, True, 8), ("peer", False, False, 8)] * 11
    assert learner.network.state_dict()["layers.1.num_batches_tracked"] == 22
    for name, value in peer.network.state_dict().items():
        assert torch.equal(value, peer_before[name]), name
    assert all(parameter.grad is None for parameter in peer.network.parameters())
    assert not any(torch.equal(learner.network.state_dict()[name], learner_before[name]) for name in learner_before)
    assert [(role, facts["views"], facts["batch_size"], facts["shuffle"]) for role, facts in task.loaders] == [
        ("net1 confidence", ("strong",), 32, False),
        ("net1", ("weak", "strong"), 8, True),
    ]


def test_views_are_those_of_the_options(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Ccl(config(strong_view="robust-lr", confidence_view="strong"))
    method.train_epoch(task, make_run(task), *learners(method, task))
    assert [facts["views"] for _, facts in task.loaders] == [(STRONG,), ("weak", STRONG)]
    for view in ("weak", "plain"):
        task, method = make_task(), Ccl(config(confidence_view=view))
        method.train_epoch(task, make_run(task), *learners(method, task))
        assert [facts["views"] for _, facts in task.loaders] == [(view,), ("weak", "strong")]


def test_a_training_set_smaller_than_a_batch_is_one_batch(make_run: Any) -> None:
    task, method = toy_task(num_train=5), Ccl(config(batch_size=128))
    run = make_run(task)
    first, second = learners(method, task)
    method.warm_up(task, run, first)
    method.train_epoch(task, run, first, second)
    assert [(role, len(rows)) for role, rows in task.served] == [
        ("net1 warm-up", 5),
        ("net1 confidence", 5),
        ("net1", 5),
    ]


def test_clean_probabilities_come_from_the_losses_of_the_peer(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Ccl(config(confidence_view="plain"))
    run, (learner, peer) = make_run(task), learners(method, task)
    peer.network.eval()
    with torch.no_grad():
        probs = softmax(peer.network(task.images).double().numpy())
    losses = -np.log(probs[np.arange(task.num_train), task.labels.numpy()])
    losses = (losses - losses.min()) / (losses.max() - losses.min())
    expected = clean_probabilities(
        torch.from_numpy(losses),
        max_iter=10,
        tol=1e-2,
        reg_covar=5e-4,
        random_state=make_run(task).rng("net1 gmm").seed(),
    )
    method.train_epoch(task, run, learner, peer)
    [(_, name, verdicts)] = run.reported
    assert name == "net1"
    np.testing.assert_allclose(verdicts["clean_probs"], expected, atol=1e-4)
    assert torch.equal(verdicts["selected"], verdicts["clean_probs"] >= 0.5)


def test_refurbished_labels_are_reported_of_the_samples_that_were_seen(make_task: Any, make_run: Any) -> None:
    task = make_task()
    wanted: dict[int, int] = {}

    class Watched(Ccl):
        def loss(self, *args: Any) -> Any:
            _, peer, batch, clean_probs = args
            with torch.no_grad():
                probs = softmax(peer.network(batch.views[0]).double().numpy())
            for row, index in enumerate(batch.index.tolist()):
                target = (1 - float(clean_probs[row])) * probs[row]
                target[batch.labels[row]] += float(clean_probs[row])
                wanted[index] = int(target.argmax())
            return super().loss(*args)

    method = Watched(config())
    run = make_run(task)
    method.train_epoch(task, run, *learners(method, task))
    [(_, _, verdicts)] = run.reported
    assert len(wanted) == 88
    assert verdicts["pseudo_labels"].tolist() == [wanted.get(index, -1) for index in range(90)]


def test_the_second_network_learns_from_the_first_as_the_epoch_has_left_it(make_task: Any, make_run: Any) -> None:
    task, calls = make_task(), []

    class Watched(Ccl):
        def train_epoch(self, task: Any, run: Any, learner: Learner, peer: Learner) -> None:
            calls.append((learner.role, peer.role, copy_of(peer.network)))
            super().train_epoch(task, run, learner, peer)

    method = Watched(config(epochs=3, warmup_epochs=2, lr_drop_epoch=2))
    method.fit(task, make_run(task))
    assert [(own, other) for own, other, _ in calls] == [("net1", "net2"), ("net2", "net1")]
    for name, value in method.net1.state_dict().items():
        assert torch.equal(value, calls[1][2][name])
    assert not torch.equal(method.net2.state_dict()["head.weight"], calls[0][2]["head.weight"])


def test_no_step_waits_for_the_device(make_task: Any, make_run: Any) -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Watch.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Watched(Ccl):
        def loss(self, *args: Any) -> Any:
            with Watch():
                loss, parts, classes = super().loss(*args)
                torch.autograd.grad(loss, list(args[0].network.parameters()), retain_graph=True)
                return loss, parts, classes

    task, method = make_task(), Watched(config())
    method.train_epoch(task, make_run(task), *learners(method, task))
    assert Watch.waits == 0
    with Watch():
        torch.ones(1).item()
    assert Watch.waits == 1


# ---------------------------------------------------------------- warm-up and the whole loop


@pytest.mark.parametrize("penalty", [False, True])
def test_warm_up_loss(make_task: Any, make_run: Any, penalty: bool) -> None:
    task, method = make_task(), Ccl(config(batch_size=45, warmup_penalty=penalty))
    run, (learner, _) = make_run(task), learners(method, task)
    logits: list[Tensor] = []
    learner.network.register_forward_hook(lambda *call: logits.append(call[-1].detach().double()))
    learner.network.eval()
    method.warm_up(task, run, learner)
    expected = []
    for (_, rows), batch in zip(task.served, logits, strict=True):
        probs, labels = softmax(batch.numpy()), task.labels[rows].numpy()
        expected.append(-np.log(probs[np.arange(45), labels]).mean() + penalty * (probs * np.log(probs)).sum(1).mean())
    assert run.values("net1_loss_warmup") == pytest.approx(expected, abs=1e-5)
    assert len(expected) == 2
    assert learner.network.training
    assert task.loaders == [("net1 warm-up", {"batch_size": 45, "views": ("weak",), "shuffle": True})]


def test_both_networks_warm_up_and_the_learning_rate_drops(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Ccl(config(learning_rate=0.01, momentum=0.8, weight_decay=1e-4))
    run = make_run(task)
    optimizers: list[torch.optim.Optimizer] = []
    rates: list[list[float]] = []

    class Watched(Ccl):
        def build(self, task: Any, role: str) -> Learner:
            learner = super().build(task, role)
            optimizers.append(learner.optimizer)
            return learner

    run.after_epoch = lambda _: rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    method = Watched(method.config)
    method.fit(task, run)
    assert rates == [[0.01, 0.01]] * 4 + [[pytest.approx(0.001)] * 2]
    assert all(optimizer.param_groups[0]["betas"] == (0.8, 0.999) for optimizer in optimizers)
    assert all(optimizer.param_groups[0]["weight_decay"] == 1e-4 for optimizer in optimizers)
    epochs = {
        key: sorted({epoch for epoch, values in run.logged if key in values})
        for key in ("net1_loss_warmup", "net2_loss_warmup", "net1_loss", "net2_loss")
    }
    assert epochs == {
        "net1_loss_warmup": [0, 1],
        "net2_loss_warmup": [0, 1],
        "net1_loss": [2, 3, 4],
        "net2_loss": [2, 3, 4],
    }
    assert not torch.equal(method.net1.state_dict()["head.weight"], method.net2.state_dict()["head.weight"])
    assert [(epoch, name) for epoch, name, _ in run.reported] == [(e, n) for e in (2, 3, 4) for n in ("net1", "net2")]


def test_learns(make_task: Any, make_run: Any) -> None:
    task, truth = make_task(), toy_task(noise=0.0).labels
    method = Ccl(config(epochs=8, warmup_epochs=3, lr_drop_epoch=6, learning_rate=0.01))
    method.fit(task, make_run(task))
    answer = method.predict(task.images)
    assert float((answer.logits.argmax(1) == truth).float().mean()) > 0.95
    assert set(answer.networks) == {"net1", "net2"}


def test_where_there_is_one_class_every_label_is_right(make_run: Any) -> None:
    task, method = toy_task(num_train=24, num_classes=1, noise=0.0), Ccl(config(epochs=2, warmup_epochs=1))
    run = make_run(task)
    method.fit(task, run)
    assert all(math.isfinite(float(value)) for _, values in run.logged for value in values.values())
    assert all((verdicts["clean_probs"] == 1).all() for _, _, verdicts in run.reported)
    assert method.predict(task.images).logits.tolist() == [[0.0]] * 24


def test_repeats_and_resumes_exactly(make_run: Any) -> None:
    def fit(**kwargs: Any) -> tuple[Ccl, Any]:
        task, method = toy_task(num_train=40), Ccl(config(epochs=4, proj_dim=4))
        run = make_run(task, **kwargs)
        method.fit(task, run)
        return method, run

    whole, _ = fit()
    others = [fit()[0]]
    for stop_after in (0, 2):
        _, broken = fit(stop_after=stop_after)
        others.append(fit(resume=broken.saved)[0])
    for other in others:
        for network in ("net1", "net2"):
            for name, value in getattr(whole, network).state_dict().items():
                assert torch.equal(value, getattr(other, network).state_dict()[name])


# ---------------------------------------------------------------- the strong view


def test_strong_view_covers_a_square_of_up_to_half_the_side() -> None:
    white = torch.full((400, 32, 32, 3), 255, dtype=torch.uint8)
    store = ImageStore(white, (0.0,) * 3, (1.0,) * 3, 4, torch.device("cpu"))
    (images,) = next(store.batches(torch.arange(400), 400, 1, (STRONG,), (7,)))
    covered = ((255 * images).round() == torch.tensor([125.0, 123.0, 114.0]).view(3, 1, 1)).all(1)
    heights, widths = (covered.any(axis).sum(1) for axis in (2, 1))
    sides = torch.maximum(heights, widths)
    assert sides.max() == 16
    assert sides.min() == 0
    # Uniform on 0 to 16, but for squares that the border cuts on both sides.
    assert float(sides.float().mean()) == pytest.approx(8, abs=0.8)
    assert covered.sum() == (heights * widths).sum()


# ---------------------------------------------------------------- the page and the entry


def test_page_names_every_option_and_every_logged_metric(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    Ccl(config(epochs=3)).fit(task, run)
    metrics = {key for _, values in run.logged for key in values}
    assert {key.replace("net2", "net1") for key in metrics} == {key for key in metrics if key.startswith("net1")}
    names = {key for key in metrics if key.startswith("net1")} | set(Ccl.Config.model_fields)
    assert [name for name in sorted(names) if f"| `{name}` |" not in README] == []
    assert all(field.description for field in Ccl.Config.model_fields.values())


def test_page_names_every_departure_once() -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", README, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("row", ABLATIONS)
def test_command_lines_of_the_ablations(row: str) -> None:
    (options,) = re.findall(rf"^\| {re.escape(row)} \| (.*?) \|", README, flags=re.MULTILINE)
    words = shlex.split(options.replace("`", "")) if ABLATIONS[row] else []
    settings = dict(word.split("=") for word in words if word != "--set")
    changed = Ccl.Config.model_validate(config().model_dump() | settings)
    assert changed == config(**ABLATIONS[row])


def test_entry() -> None:
    (entry,) = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("ccl", 2, ("scratch",))
    assert not entry.starts_from_selection
    assert entry.target == f"{Ccl.__module__}:{Ccl.__qualname__}"
    assert entry.paper is not None
    assert entry.paper.bibtex in README


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_ccl as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"
