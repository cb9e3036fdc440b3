"""The two terms of Fan & Li (AAAI 2025) inside DivideMix's step, each against an independent computation in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lnlbench.api import Batch
from lnlbench.blocks.losses import class_balance_divergence, soft_cross_entropy, squared_error_of_probs
from lnlbench.blocks.mixup import draw_mixup_weight, mixup
from lnlbench.blocks.sharpen import sharpen
from lnlbench_dividemix.cross_learning import Seen, across_networks, across_views
from lnlbench_dividemix.dividemix import DivideMix, Division

Rows = NDArray[np.float64]
PIXELS, WIDTH, CLASSES = 9, 5, 4


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


class TwoLayers(nn.Module):
    """Features and logits are linear in the pixels, small enough to be written out in NumPy."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = np.random.default_rng(seed)
        self.first = nn.Parameter(torch.tensor(generator.normal(size=(PIXELS, WIDTH))))
        self.last = nn.Parameter(torch.tensor(0.4 * generator.normal(size=(WIDTH, CLASSES))))

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.first

    def classify(self, features: Tensor) -> Tensor:
        return features @ self.last

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.embed(images))


def step_of(
    num_labelled: int, num_unlabelled: int, seed: int = 11
) -> tuple[Batch, Batch | None, Tensor, dict[str, Rows]]:
    """Return a step's batches, clean probabilities and, for NumPy, the first and third view of all its images."""
    generator = np.random.default_rng(seed)
    total = num_labelled + num_unlabelled
    views = generator.normal(size=(3, total, PIXELS))
    labels = generator.integers(CLASSES, size=total)
    clean_probs = generator.random(total)

    def batch(rows: slice) -> Batch:
        images = tuple(torch.from_numpy(view[rows]).reshape(-1, 1, 3, 3) for view in views)
        return Batch(index=torch.arange(total)[rows], labels=torch.from_numpy(labels[rows]), views=images)

    unlabelled = batch(slice(num_labelled, total)) if num_unlabelled else None
    arrays = {"weak": views[0], "strong": views[2], "labels": labels, "clean_probs": clean_probs}
    return batch(slice(num_labelled)), unlabelled, torch.from_numpy(clean_probs), arrays


def loss_of(
    changes: dict[str, Any], network: nn.Module, peer: nn.Module, step: Any
) -> tuple[Tensor, dict[str, Tensor | float]]:
    labelled, unlabelled, clean_probs, _ = step
    streams = np.random.default_rng(3), torch.Generator().manual_seed(4)
    return DivideMix(config(**changes)).loss(network, peer, labelled, unlabelled, clean_probs, 3.5, *streams)


# ---------------------------------------------------------------- the terms in NumPy


def softmax(logits: Rows) -> Rows:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def unit(features: Rows) -> Rows:
    return np.asarray(features / np.sqrt((features**2).sum(1, keepdims=True)))


def divergence(p: Rows, q: Rows) -> Rows:
    return np.asarray((p * np.log(p / q)).sum(1))


def cross_view(features_s: Rows, probs_s: Rows, features_w: Rows, guide: Rows, confidence: float, tau: float) -> Rows:
    rows = np.arange(len(guide))
    matrix = unit(features_s) @ unit(features_w).T / tau
    there, back = softmax(matrix), softmax(matrix.T)
    guidance = (guide.max(1) >= confidence) * -np.log(probs_s[rows, guide.argmax(1)])
    return np.asarray(guidance - np.log(there[rows, rows]) + divergence(there, back))


def refurbished(labels: Rows, clean_probs: Rows, peer_probs: Rows) -> Rows:
    return np.asarray(clean_probs[:, None] * np.eye(CLASSES)[labels] + (1 - clean_probs[:, None]) * peer_probs)


def cross_model(features_s: Rows, probs_s: Rows, features_p: Rows, target: Rows, classes: Rows, tau: float) -> Rows:
    matrix = unit(features_s) @ unit(features_p).T / tau
    there, back = softmax(matrix), softmax(matrix.T)
    positives = (there * (classes[:, None] == classes)).sum(1)
    return np.asarray(-(target * np.log(probs_s)).sum(1) - np.log(positives) + divergence(there, back))


@pytest.mark.parametrize(("num_labelled", "num_unlabelled"), [(5, 7), (1, 4), (6, 1), (5, 0), (1, 0)])
@pytest.mark.parametrize(("lambda_cvl", "lambda_cml"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_added_terms_and_their_gradient_agree_with_numpy(
    num_labelled: int, num_unlabelled: int, lambda_cvl: float, lambda_cml: float
) -> None:
    network, peer, step = TwoLayers(1), TwoLayers(2), step_of(num_labelled, num_unlabelled)
    changes = {
        "lambda_cvl": lambda_cvl,
        "lambda_cml": lambda_cml,
        "confidence": 0.7,
        "contrast_temperature": 0.4,
        "temperature": 0.5,
    }
    plain, _ = loss_of({}, network, peer, step)
    plain_gradients = torch.autograd.grad(plain, [network.first, network.last])
    loss, parts = loss_of(changes, network, peer, step)
    gradients = torch.autograd.grad(loss, [network.first, network.last], retain_graph=True)

    arrays = step[3]
    weak, strong, labels, clean_probs = (arrays[key] for key in ("weak", "strong", "labels", "clean_probs"))
    first, last = network.first.detach().numpy(), network.last.detach().numpy()
    features_p = weak @ peer.first.detach().numpy()
    peer_probs = softmax(features_p @ peer.last.detach().numpy())
    # What is constant in the gradient is computed once.
    guide, target = softmax(weak @ first @ last), peer_probs**2 / (peer_probs**2).sum(1, keepdims=True)
    classes = refurbished(labels, clean_probs, peer_probs).argmax(1)

    if num_unlabelled == 7:
        assert 0 < (guide.max(1) >= 0.7).sum() < 12
        assert 1 < len(set(classes)) < 12

    def terms(first: Rows, last: Rows) -> tuple[float, float]:
        features_s, features_w = strong @ first, weak @ first
        probs_s = softmax(features_s @ last)
        doubt = (1 - clean_probs) / 2
        cvl = cross_view(features_s, probs_s, features_w, guide, 0.7, 0.4)
        cml = cross_model(features_s, probs_s, features_p, target, classes, 0.4)
        return (doubt * cvl).mean(), (doubt * cml).mean()

    def added(first: Rows, last: Rows) -> float:
        cvl, cml = terms(first, last)
        return lambda_cvl * cvl + lambda_cml * cml

    cvl, cml = terms(first, last)
    assert parts.get("loss_cvl") == (pytest.approx(cvl) if lambda_cvl else None)
    assert parts.get("loss_cml") == (pytest.approx(cml) if lambda_cml else None)
    assert parts["loss"] == pytest.approx(plain.item() + added(first, last))

    for number, (gradient, before) in enumerate(zip(gradients, plain_gradients, strict=True)):
        expected = np.zeros(gradient.shape)
        for place in np.ndindex(*gradient.shape):
            sides = []
            for sign in (1, -1):
                moved = [first.copy(), last.copy()]
                moved[number][place] += sign * 1e-5
                sides.append(added(*moved))
            expected[place] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose((gradient - before).numpy(), expected, atol=1e-7)
    loss.backward()  # type: ignore[no-untyped-call]
    assert peer.first.grad is None
    assert peer.last.grad is None


def test_label_and_prediction_decide_the_class_as_far_as_the_label_is_trusted() -> None:
    """Worked numbers: the peer says (.7, .2, .1), the label is 1; at .4 the label wins, at .3 the prediction."""
    features = torch.eye(2, 3, dtype=torch.float64)
    peer = Seen(features, torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]], dtype=torch.float64).log())
    strong = Seen(features, torch.zeros(2, 3, dtype=torch.float64))
    labels = torch.tensor([1, 1])
    # Both of class 1: each is the other's positive, and that term vanishes. Else it is that of two orthogonal features.
    for clean_prob, contrast in ((0.4, 0.0), (0.3, 0.126928)):
        cml = across_networks(config(), strong, peer, labels, torch.full((2,), clean_prob, dtype=torch.float64))
        np.testing.assert_allclose(cml.numpy(), math.log(3) + contrast, atol=6e-7)


def test_worked_numbers_of_two_views() -> None:
    strong = Seen(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([[2.0, 0, 1], [1, 1, 0], [1, 1, 0]]))
    weak = Seen(
        torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([[6.0, 0, 1], [2, 1.5, 0], [0, 5, 0.5]])
    )
    guidance, contrast, mimicry = [0.407606, 0, 0.861995], [0.627123, 1.352984, 1.151251], [0.280132, 0.321351, 0]
    np.testing.assert_allclose(
        across_views(config(), strong, weak).numpy(), np.sum([guidance, contrast, mimicry], axis=0), atol=2e-6
    )
    unguided = across_views(config(confidence=1.1), strong, weak)
    np.testing.assert_allclose(unguided.numpy(), np.sum([contrast, mimicry], axis=0), atol=2e-6)


def test_images_whose_labels_are_surely_right_learn_nothing_from_it() -> None:
    network, peer, (labelled, unlabelled, clean_probs, arrays) = TwoLayers(1), TwoLayers(2), step_of(5, 3)
    step = labelled, unlabelled, torch.ones_like(clean_probs), arrays
    plain, _ = loss_of({}, network, peer, step)
    loss, parts = loss_of({"lambda_cvl": 1, "lambda_cml": 1}, network, peer, step)
    assert (parts["loss_cvl"], parts["loss_cml"]) == (0, 0)
    assert loss == plain


# ---------------------------------------------------------------- weights of 0 leave the step as it is


@pytest.mark.parametrize("num_unlabelled", [0, 7])
def test_without_weights_a_step_has_the_bits_of_plain_dividemix(make_task: Any, num_unlabelled: int) -> None:
    task, method = make_task(), DivideMix(config())
    network, peer = (method._build(task, role).network for role in ("net1", "net2"))
    peer.eval()
    rows = torch.arange(5 + num_unlabelled)
    images, labels = task.images[rows], task.labels[rows]
    clean_probs = torch.linspace(0.9, 0.1, len(rows))
    x = Batch(index=rows[:5], labels=labels[:5], views=(images[:5], images[:5].roll(1, 3)))
    u = Batch(index=rows[5:], labels=labels[5:], views=(images[5:], images[5:].roll(1, 3)))
    step = x, (u if num_unlabelled else None), clean_probs, {}
    state = {name: value.clone() for name, value in network.state_dict().items()}

    loss, _ = loss_of({}, network, peer, step)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    statistics = [value.clone() for value in network.buffers()]
    network.load_state_dict(state)

    # The published step, pass by pass.
    with torch.no_grad():
        views, targets = [*x.views], []
        if num_unlabelled:
            votes = [net(view).softmax(1) for net in (network, peer) for view in u.views]
            targets = [sharpen(torch.stack(votes).mean(0), 0.5)] * 2
            views += u.views
        probs = torch.stack([network(view).softmax(1) for view in x.views]).mean(0)
        given, w = torch.eye(3)[x.labels], clean_probs[:5, None]
        targets = [sharpen(w * given + (1 - w) * probs, 0.5)] * 2 + targets
        partners = torch.randperm(2 * len(rows), generator=torch.Generator().manual_seed(4))
        weight = draw_mixup_weight(4.0, np.random.default_rng(3))
        mixed, wanted = mixup(torch.cat(views), torch.cat(targets), weight, partners)
    logits = network(mixed)
    expected = (
        soft_cross_entropy(logits[:10], wanted[:10])
        + 3.5 * squared_error_of_probs(logits[10:], wanted[10:])
        + class_balance_divergence(logits)
    )
    assert torch.equal(loss, expected)
    for found, each in zip(gradients, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        assert torch.equal(found, each)
    for found, each in zip(statistics, network.buffers(), strict=True):
        assert torch.equal(found, each)


def passes_of(make_task: Any, make_run: Any, clean_probs: Tensor, **changes: Any) -> tuple[Any, Any, list[Any]]:
    """Train for an epoch of one step; return task, run and, for each pass: whose, mode, gradient, rows."""
    task, method = make_task(), DivideMix(config(batch_size=100, **changes))
    run, calls = make_run(task), []
    learner, peer = method._build(task, "net1"), method._build(task, "net2")
    for name, network in (("A", learner.network), ("B", peer.network)):
        network.layers.register_forward_pre_hook(
            lambda module, args, name=name: calls.append((name, module.training, torch.is_grad_enabled(), len(args[0])))
        )
    before = {name: value.clone() for name, value in peer.network.state_dict().items()}
    method.train_epoch(task, run, 2, learner, peer, Division(torch.arange(task.num_train), clean_probs))
    assert all(torch.equal(value, before[name]) for name, value in peer.network.state_dict().items())
    assert all(parameter.grad is None for parameter in peer.network.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in learner.network.parameters())
    return task, run, calls


@pytest.mark.parametrize(
    ("changes", "attached", "added"),
    [
        ({}, False, []),
        ({"lambda_cvl": 1}, True, [("A", True, True, 90)]),
        ({"lambda_cml": 1}, False, [("A", True, True, 90), ("B", False, False, 40)]),
        ({"lambda_cvl": 1, "lambda_cml": 1}, True, [("A", True, True, 90), ("B", False, False, 40)]),
    ],
)
def test_passes_of_a_step(
    make_task: Any, make_run: Any, changes: dict[str, float], attached: bool, added: list[Any]
) -> None:
    clean_probs = (torch.arange(90) < 40).float()
    task, _, calls = passes_of(make_task, make_run, clean_probs, **changes)
    assert calls == [
        ("A", True, attached, 50),
        ("A", True, False, 50),
        ("B", False, False, 50),
        ("B", False, False, 50),
        ("A", True, attached, 40),
        ("A", True, False, 40),
        ("A", True, True, 180),
        *added,
    ]
    views = ("weak", "weak", "strong") if changes else ("weak", "weak")
    assert [facts["views"] for _, facts in task.loaders] == [views, views]


@pytest.mark.parametrize("num_labelled", [90, 1])
def test_an_empty_or_tiny_part_gives_finite_terms(make_task: Any, make_run: Any, num_labelled: int) -> None:
    clean_probs = torch.where(torch.arange(90) < num_labelled, 0.6, 0.4)
    _, run, calls = passes_of(make_task, make_run, clean_probs, lambda_cvl=1, lambda_cml=1)
    assert calls[-2:] == [("A", True, True, 90), ("B", False, False, num_labelled)]
    for name in ("net1_loss", "net1_loss_cvl", "net1_loss_cml"):
        (value,) = run.values(name)
        assert math.isfinite(value)
        assert value > 0
