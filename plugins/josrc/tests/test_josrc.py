from __future__ import annotations

import math
import re
import subprocess
import sys
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

from lnlbench.builtin.backbones.cnn7 import cnn7
from lnlbench.engine.planner import Request, plan
from lnlbench.plugins import discover
from lnlbench.store import LocalDataStore
from lnlbench.testing import MemoryRun, MemoryTask, task_info, toy_task
from lnlbench_josrc import lnlbench_methods
from lnlbench_josrc.josrc import Division, JoSrc, smoothed_labels, step_unless, two_layer_head

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

Array = NDArray[np.float64]


def config(**changes: Any) -> JoSrc.Config:
    usual: dict[str, Any] = {"epochs": 6, "batch_size": 16, "backbone": "any", "warmup_epochs": 2}
    return JoSrc.Config(**(usual | {"smoothing": 0.4, "learning_rate": 3e-3} | changes))


def fitted(task: MemoryTask, **changes: Any) -> tuple[JoSrc, MemoryRun]:
    method, run = JoSrc(config(**changes)), MemoryRun(task)
    method.fit(task, run)
    return method, run


def logits_of(probs: Any) -> Tensor:
    return torch.tensor(probs, dtype=torch.float32).log()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def jensen_shannon(p: Array, q: Array) -> Array:
    m = (p + q) / 2
    return np.asarray(0.5 * (p * np.log2(p / m)).sum(1) + 0.5 * (q * np.log2(q / m)).sum(1))


def smoothed(labels: list[int], classes: int, eps: float) -> Array:
    result = np.full((len(labels), classes), eps / (classes - 1))
    result[np.arange(len(labels)), labels] = 1 - eps
    return result


def random_probs(rows: int, classes: int, seed: int) -> Array:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_preset_for_cifar_is_the_released_configuration(dataset: str) -> None:
    info = task_info(dataset)
    assert JoSrc.preset(info) == JoSrc.Config(
        epochs=200,
        batch_size=128,
        backbone="cnn7",
        head="mlp2",
        warmup_epochs=10,
        count_from=0,
        smoothing=0.6,
        clean_threshold=0.75,
        final_threshold=0.95,
        clean_test="at-least",
        clean_view="first",
        soft_label="both",
        flattening=10,
        trained_on="all",
        alpha=0.5,
        ood_limit=None,
        ema_decay=0.99,
        optimizer="adam",
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=0,
        decay_start=0.4,
        late_beta1=0.1,
    )
    assert info.asked == set()


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("clothing1m", ("timm:resnet18+pretrained", 15, 5, 2e-3, 1e-4, 0.9, 0.7, 0.4)),
        ("food101n", ("timm:resnet50+pretrained", 50, 5, 1e-3, 5e-3, 0.75, 0.65, 0.5)),
    ],
)
def test_presets_for_photographs(dataset: str, expected: tuple[Any, ...]) -> None:
    info = task_info(dataset)
    preset = JoSrc.preset(info)
    assert (
        preset.backbone,
        preset.epochs,
        preset.warmup_epochs,
        preset.learning_rate,
        preset.weight_decay,
        preset.clean_threshold,
        preset.smoothing,
        preset.alpha,
    ) == expected
    assert (preset.batch_size, preset.optimizer, preset.momentum, preset.final_threshold) == (128, "sgd", 0.9, 0.95)
    assert info.asked == set()


@pytest.mark.parametrize("classes", [2, 8, 10, 100])
def test_the_preset_elsewhere_suits_any_number_of_classes(classes: int) -> None:
    """A right and certain prediction is never relabelled at first, another smoothed class never passes for clean."""
    info = task_info(num_classes=classes)
    preset = JoSrc.preset(info)
    assert (preset.epochs, preset.backbone) == (info.default_epochs, info.default_backbone)
    assert info.asked == set()
    given_BC = smoothed_labels(torch.tensor([0, 0]), classes, preset.smoothing)
    certain = torch.tensor([30.0] + [0.0] * (classes - 1))
    other = smoothed_labels(torch.tensor([1]), classes, preset.smoothing).log()
    probs = JoSrc(preset).clean_probs(torch.cat([certain[None], other]), torch.zeros(2, classes), given_BC)
    if classes > 2:
        assert probs[0] >= preset.clean_threshold > probs[1]


# ---------------------------------------------------------------- clean likelihood


def test_smoothing_shares_the_rest_among_the_other_classes() -> None:
    assert smoothed_labels(torch.tensor([2]), 5, 0.6).tolist() == [pytest.approx([0.15, 0.15, 0.4, 0.15, 0.15])]


@pytest.mark.parametrize(("label", "expected"), [(0, 0.925106), (3, 0.722824)])
def test_clean_likelihood_is_measured_in_bits(label: int, expected: float) -> None:
    logits = logits_of([[0.7, 0.1, 0.1, 0.05, 0.05]])
    probs = JoSrc(config()).clean_probs(logits, logits, smoothed_labels(torch.tensor([label]), 5, 0.6))
    assert probs.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("classes", "eps", "right", "wrong", "uniform", "other"),
    [
        (80, 0.6, 0.604184, 0.032236, 0.799694, 0.646900),
        (14, 0.7, 0.506577, 0.153350, 0.933842, 0.863859),
        (101, 0.65, 0.557298, 0.028316, 0.827133, 0.690344),
    ],
)
def test_clean_likelihood_of_special_predictions(
    classes: int, eps: float, right: float, wrong: float, uniform: float, other: float
) -> None:
    given_BC = smoothed_labels(torch.zeros(5, dtype=torch.int64), classes, eps)
    certain = torch.full((2, classes), -200.0)
    certain[0, 0] = certain[1, 1] = 200.0
    shifted = smoothed_labels(torch.tensor([1, 0]), classes, eps).log()
    logits = torch.cat([certain, torch.zeros(1, classes), shifted])
    probs = JoSrc(config()).clean_probs(logits, logits, given_BC)
    assert probs.tolist() == pytest.approx([right, wrong, uniform, other, 1.0], abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_clean_likelihood_against_numpy(classes: int, eps: float, seed: int) -> None:
    p, q = random_probs(6, classes, seed), random_probs(6, classes, seed + 1)
    labels = np.random.default_rng(seed).integers(classes, size=6).tolist()
    given_BC = smoothed_labels(torch.tensor(labels), classes, eps)
    first = 1 - jensen_shannon(p, smoothed(labels, classes, eps))
    second = 1 - jensen_shannon(q, smoothed(labels, classes, eps))
    for view, expected in (("first", first), ("both", (first + second) / 2)):
        probs = JoSrc(config(clean_view=view)).clean_probs(logits_of(p), logits_of(q), given_BC).numpy()
        np.testing.assert_allclose(probs, expected, atol=1e-5)
        assert ((probs >= 0) & (probs <= 1)).all()


# ---------------------------------------------------------------- schedules


def test_threshold_of_each_epoch() -> None:
    cifar = JoSrc(JoSrc.preset(task_info("cifar100")))
    expected = {0: 0.0, 5: 0.375, 9: 0.675, 10: 0.75, 100: 0.844737, 199: 0.948947}
    assert {epoch: cifar.threshold(epoch) for epoch in expected} == pytest.approx(expected, abs=1e-6)
    assert [cifar.warms_up(epoch) for epoch in (0, 9, 10, 199)] == [True, True, False, False]
    assert JoSrc(JoSrc.preset(task_info("clothing1m"))).threshold(14) == pytest.approx(0.945)
    assert JoSrc(JoSrc.preset(task_info("food101n"))).threshold(49) == pytest.approx(0.945556, abs=1e-6)


def test_epochs_counted_from_one_as_in_the_paper() -> None:
    method = JoSrc(JoSrc.preset(task_info("cifar100")).model_copy(update={"count_from": 1}))
    assert [method.threshold(epoch) for epoch in (0, 9, 199)] == pytest.approx([0.075, 0.75, 0.95])
    assert [method.warms_up(epoch) for epoch in (0, 8, 9)] == [True, True, False]


@pytest.mark.parametrize("changes", [{"warmup_epochs": 0}, {"warmup_epochs": 6, "count_from": 1}])
def test_threshold_at_the_ends(changes: dict[str, Any]) -> None:
    method = JoSrc(config(**changes))
    assert method.threshold(changes["warmup_epochs"] - changes.get("count_from", 0)) == 0.75


def rates(epochs: int, **changes: Any) -> list[tuple[float, float]]:
    """Learning rate and first momentum coefficient of each epoch."""
    method = JoSrc(config(epochs=epochs, **changes))
    task = toy_task()
    method.student = method.build(task, MemoryRun(task))
    optimizer, result = method.build_optimizer(), []
    for epoch in range(epochs):
        method.set_rates(optimizer, epoch)
        [group] = optimizer.param_groups
        result.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
    return result


def test_adam_decays_linearly_and_loses_its_momentum() -> None:
    cifar = rates(200, learning_rate=1e-3)
    expected = {79: (0.001, 0.9), 80: (0.001, 0.1), 81: (0.000991667, 0.1), 199: (0.00000833333, 0.1)}
    assert {epoch: cifar[epoch] for epoch in expected} == {
        epoch: pytest.approx(pair, rel=1e-5) for epoch, pair in expected.items()
    }
    assert rates(20, learning_rate=1e-3)[7:9] == [(0.001, 0.9), (0.001, 0.1)], "the schedule scales with the epochs"
    assert rates(3, decay_start=1.0) == [(3e-3, 0.9)] * 3


def test_sgd_follows_half_a_cosine() -> None:
    expected = [0.002 * 0.5 * (1 + math.cos(math.pi * epoch / 15)) for epoch in range(15)]
    assert rates(15, optimizer="sgd", learning_rate=0.002) == [(pytest.approx(rate), 0.9) for rate in expected]


# ---------------------------------------------------------------- network


class Cifar(MemoryTask):
    def network(self, role: str, backbone: str) -> nn.Module:
        return cnn7("cnn7", num_classes=self.num_classes, channels=3, image_size=32)


@pytest.mark.parametrize(
    ("classes", "head", "expected"),
    [(80, "mlp2", 689_228), (100, "mlp2", 699_488), (80, "linear", 536_140), (100, "linear", 541_280)],
)
def test_trained_parameters_of_the_seven_layer_network(classes: int, head: str, expected: int) -> None:
    labels = torch.tensor([0, classes - 1, 1, 2])
    method, _ = fitted(Cifar(torch.randn(4, 3, 32, 32), labels), batch_size=4, epochs=1, head=head)
    trained = {name: value for name, value in method.student.named_parameters() if value.grad is not None}
    assert sum(value.numel() for value in trained.values()) == expected
    assert sum(value.numel() for name, value in trained.items() if ".layers." in name) == 515_580


def test_head_is_drawn_after_he_and_repeats() -> None:
    one, again, other = (two_layer_head(256, 80, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert same(one.state_dict(), again.state_dict())
    assert not torch.equal(one[0].weight, other[0].weight)
    assert one[0].weight.shape == (512, 256)
    assert one[0].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert one[3].weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not one[0].bias.any()
    assert not one[3].bias.any()


def test_two_runs_of_a_seed_start_alike_and_other_seeds_do_not() -> None:
    def head(seed: int) -> dict[str, Tensor]:
        task = toy_task()
        task = MemoryTask(task.images, task.labels, task.info, seed=seed)
        built = JoSrc(config()).build(task, MemoryRun(task)).head
        assert built is not None
        return weights(built)

    assert same(head(1), head(1))
    assert not same(head(1), head(2))


# ---------------------------------------------------------------- a step, by hand

P = [[0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]]
P2 = [[0.45, 0.3, 0.25], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]]
Q = [[0.4, 0.3, 0.3], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]]
Q2 = [[0.4, 0.4, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]


class Fixed(nn.Module):
    """Answers with given probabilities, whatever it is asked."""

    def forward(self, probs: Tensor) -> Tensor:
        return probs.log()


def teacher_of(method: JoSrc) -> JoSrc:
    method.teacher = Fixed()  # type: ignore[assignment]
    return method


def test_a_worked_step() -> None:
    method = teacher_of(JoSrc(config(smoothing=0.6, alpha=0.5)))
    logits, others = logits_of(P), logits_of(P2)
    given_BC = smoothed_labels(torch.tensor([0, 0, 1]), 3, 0.6)
    clean_probs = method.clean_probs(logits, others, given_BC)
    assert clean_probs.tolist() == pytest.approx([1, 0.807681, 0.920319], abs=1e-6)
    division = method.divide(logits, others, clean_probs, 0.95)
    assert division.clean.tolist() == [True, False, False]
    assert division.ood.tolist() == [False, False, True]
    targets = method.targets(given_BC, method.soft_labels((torch.tensor(Q), torch.tensor(Q2))), division)
    expected = [[0.4, 0.3, 0.3], [0.15, 0.75, 0.1], [0.335559, 0.332220, 0.332220]]
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-6)
    loss, parts = method.joint_loss(logits, others, targets, division.ood, method.trained(division))
    assert parts["loss_classification"].item() == pytest.approx(2.115425, abs=1e-5)
    assert parts["loss_consistency"].item() == pytest.approx(-0.814683, abs=1e-5)
    assert loss.item() == pytest.approx(0.650371, abs=1e-5)

    # The parts of the sums: each sample trained on alone.
    alone = [
        method.joint_loss(logits, others, targets, division.ood, torch.arange(3) == sample)[1] for sample in range(3)
    ]
    sums = [each["loss_classification"].item() for each in alone]
    assert sums == pytest.approx([2.185383, 1.482184, 2.678707], abs=1e-5)
    signed = [each["loss_consistency"].item() for each in alone]
    assert signed == pytest.approx([0.021648, 0.119265, -2.584963], abs=1e-5)


def test_symmetric_divergence_in_bits() -> None:
    one, other = logits_of([[0.7, 0.2, 0.1]]), logits_of([[0.5, 0.3, 0.2]])
    for ood, sign in ((False, 1), (True, -1)):
        _, parts = JoSrc(config()).joint_loss(one, other, one.exp(), torch.tensor([ood]), torch.tensor([True]))
        assert parts["loss_consistency"].item() == pytest.approx(sign * 0.255582, abs=1e-6)


def test_flattened_label_is_a_softmax_of_probabilities() -> None:
    division = Division(clean=torch.tensor([False]), ood=torch.tensor([True]))
    soft = torch.tensor([[0.9, 0.05, 0.05]])
    targets = JoSrc(config()).targets(soft, soft, division)
    assert targets.tolist() == [pytest.approx([0.352482, 0.323759, 0.323759], abs=1e-6)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 9),
    st.floats(0.1, 0.9),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["clean", "clean+id", "all"]),
    st.integers(0, 2**31),
)
def test_joint_loss_against_numpy(
    classes: int, eps: float, alpha: float, threshold: float, trained_on: str, seed: int
) -> None:
    p, p2, q, q2 = (random_probs(7, classes, seed + shift) for shift in range(4))
    p2[:3] = p[:3]
    labels = np.random.default_rng(seed).integers(classes, size=7).tolist()
    method = teacher_of(JoSrc(config(smoothing=eps, alpha=alpha, trained_on=trained_on)))
    logits, others = logits_of(p), logits_of(p2)
    given_BC = smoothed_labels(torch.tensor(labels), classes, eps)
    clean_probs = method.clean_probs(logits, others, given_BC)
    division = method.divide(logits, others, clean_probs, threshold)
    soft = method.soft_labels((torch.tensor(q).float(), torch.tensor(q2).float()))
    targets = method.targets(given_BC, soft, division)
    trained_B = method.trained(division)
    loss, _ = method.joint_loss(logits, others, targets, division.ood, trained_B)

    clean, ood = division.clean.numpy(), division.ood.numpy()
    assert not (clean & ood).any()
    assert not ood[:3].any(), "two equal predictions never disagree"
    y = smoothed(labels, classes, eps)
    mean = (q + q2) / 2
    flat = np.exp(mean / 10) / np.exp(mean / 10).sum(1, keepdims=True)
    expected = np.where(clean[:, None], y, np.where(ood[:, None], flat, mean))
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(targets.sum(1).numpy(), 1, atol=1e-5)
    in_use = {"clean": clean, "clean+id": ~ood, "all": np.ones(7, bool)}[trained_on]
    assert trained_B.tolist() == in_use.tolist()
    cross = -(expected * (np.log(p) + np.log(p2))).sum(1)
    both = ((p - p2) * (np.log2(p) - np.log2(p2))).sum(1)
    count = max(in_use.sum(), 1)
    total = (1 - alpha) * cross[in_use].sum() / count + alpha * (np.where(ood, -1, 1) * both)[in_use].sum() / count
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_equal_views_are_consistent_and_never_out_of_distribution() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    method = JoSrc(config())
    division = method.divide(logits, logits, torch.zeros(20), 0.5)
    assert not (division.clean | division.ood).any()
    _, parts = method.joint_loss(logits, logits, logits.softmax(1), division.ood, method.trained(division))
    assert parts["loss_consistency"].item() == 0.0


def test_a_sample_right_at_the_threshold() -> None:
    logits, probs = torch.zeros(2, 3), torch.tensor([0.5, 0.75])
    at_least = JoSrc(config()).divide(logits, logits, probs, 0.5)
    above = JoSrc(config(clean_test="above")).divide(logits, logits, probs, 0.5)
    assert (at_least.clean.tolist(), above.clean.tolist()) == ([True, True], [False, True])


def test_soft_label_of_the_first_view_only() -> None:
    views = (torch.tensor(Q), torch.tensor(Q2))
    soft = teacher_of(JoSrc(config(soft_label="first"))).soft_labels(views)
    np.testing.assert_allclose(soft.numpy(), Q, atol=1e-6)


def test_divergence_of_samples_out_of_distribution_may_be_limited() -> None:
    logits, others = logits_of(P), logits_of(P2)
    ood_B, all_B = torch.tensor([False, False, True]), torch.ones(3, dtype=torch.bool)
    _, parts = JoSrc(config(ood_limit=2.0)).joint_loss(logits, others, torch.tensor(Q), ood_B, all_B)
    assert parts["loss_consistency"].item() == pytest.approx((0.021648 + 0.119265 - 2.0) / 3, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.1])
@pytest.mark.parametrize("agree", [True, False])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_degenerate_batches_give_finite_losses_and_gradients(
    threshold: float, agree: bool, labels: list[int], scale: float
) -> None:
    method = JoSrc(config())
    logits = (scale * torch.eye(4, 3)).requires_grad_()
    others = (scale * (torch.eye(4, 3) if agree else torch.eye(4, 3).roll(1, 1))).requires_grad_()
    given_BC = smoothed_labels(torch.tensor(labels), 3, 0.4)
    clean_probs = method.clean_probs(logits, others, given_BC)
    division = method.divide(logits, others, clean_probs, threshold)
    targets = method.targets(given_BC, torch.full((4, 3), 1 / 3), division)
    for trained_on in ("clean", "clean+id", "all"):
        trained_B = JoSrc(config(trained_on=trained_on)).trained(division)
        for loss, _ in (
            method.warm_up_loss(logits, others, given_BC, division.clean),
            method.joint_loss(logits, others, targets, division.ood, trained_B),
        ):
            gradients = torch.autograd.grad(loss, [logits, others])
            assert loss.isfinite()
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_warm_up_loss_is_a_mean_over_the_selected() -> None:
    given_BC = smoothed_labels(torch.tensor([0, 0, 1]), 3, 0.6)
    method, selected = JoSrc(config()), torch.tensor([True, False, True])
    loss, _ = method.warm_up_loss(logits_of(P), logits_of(P2), given_BC, selected)
    cross = -(smoothed([0, 0, 1], 3, 0.6) * (np.log(P) + np.log(P2))).sum(1)
    assert loss.item() == pytest.approx((cross[0] + cross[2]) / 2, rel=1e-5)
    loss, _ = method.warm_up_loss(logits_of(P), logits_of(P2), given_BC, torch.zeros(3, dtype=torch.bool))
    assert loss.item() == 0.0


# ---------------------------------------------------------------- steps that are skipped


def optimiser_of(kind: str, parameter: nn.Parameter, fused: bool) -> torch.optim.Optimizer:
    if not fused:
        if kind == "adam":
            return torch.optim.Adam([parameter], 3e-3, weight_decay=0.01)
        return torch.optim.SGD([parameter], 3e-3, momentum=0.9, nesterov=True, weight_decay=0.01)
    method = JoSrc(config(optimizer=kind, weight_decay=0.01))
    method.student = nn.ParameterList([parameter])  # type: ignore[assignment]
    return method.build_optimizer()


@pytest.mark.parametrize("skipped", [(0,), (0, 1, 4), (2,), ()])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_skipped_step_leaves_no_trace(kind: str, skipped: tuple[int, ...]) -> None:
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    here, there = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizer, reference = optimiser_of(kind, here, fused=True), optimiser_of(kind, there, fused=False)
    for step, gradient in enumerate(gradients):
        skip = step in skipped
        here.grad = torch.zeros(5) if skip else gradient.clone()
        before = here.detach().clone()
        step_unless(torch.tensor(skip), optimizer)
        assert torch.equal(here, before) == skip
        if not skip:
            there.grad = gradient.clone()
            reference.step()
        torch.testing.assert_close(here.detach(), there.detach())
    mine, theirs = optimizer.state[here], reference.state[there]
    for name in ("step", "exp_avg", "exp_avg_sq") if kind == "adam" else ("momentum_buffer",):
        torch.testing.assert_close(mine[name], theirs[name])


class NothingIsClean(JoSrc):
    def threshold(self, epoch: int) -> float:
        return 2.0 if epoch == 1 else super().threshold(epoch)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_an_epoch_without_a_selected_sample_changes_no_weight(kind: str) -> None:
    task = toy_task()
    run, method = MemoryRun(task), NothingIsClean(config(epochs=3, warmup_epochs=3, optimizer=kind))
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    run.after_epoch = lambda _: seen.append(
        (
            {name: value.detach().clone() for name, value in method.student.named_parameters()},
            {name: value.detach().clone() for name, value in method.teacher.named_parameters()},
        )
    )
    method.fit(task, run)
    assert same(seen[0][0], seen[1][0])
    assert not same(seen[1][0], seen[2][0])
    assert not same(seen[0][1], seen[1][1]), "the teacher goes on following"
    steps = [(epoch, float(values["skipped_steps"]), float(values["loss_warmup"])) for epoch, values in run.logged]
    assert all(skipped == (epoch == 1) and (loss == 0) == (epoch == 1) for epoch, skipped, loss in steps)


# ---------------------------------------------------------------- student and teacher


class Counting(JoSrc):
    """Counts forward passes by epoch, network and whether they keep a graph."""

    def fit(self, task: Any, run: Any) -> None:
        self.passes: list[tuple[int, str, bool, bool]] = []
        self.run = run
        super().fit(task, run)

    def build_optimizer(self) -> torch.optim.Optimizer:
        for name, module in (("student", self.student), ("teacher", self.teacher)):
            module.register_forward_hook(self._note(name))
        return super().build_optimizer()

    def _note(self, name: str) -> Any:
        return lambda module, _, logits: self.passes.append(
            (self.run.clock.epoch, name, logits.requires_grad, module.training)
        )


@pytest.mark.parametrize(("soft_label", "of_teacher"), [("both", 2), ("first", 1)])
def test_passes_of_a_step(soft_label: str, of_teacher: int) -> None:
    task = toy_task(num_train=32)
    method = Counting(config(epochs=3, batch_size=16, soft_label=soft_label))
    method.fit(task, MemoryRun(task))
    student, teacher = ("student", True, True), ("teacher", False, True)
    for epoch in range(3):
        passes = [each[1:] for each in method.passes if each[0] == epoch]
        assert passes == ([student] * 2 + [teacher] * (0 if epoch < 2 else of_teacher)) * 2


@pytest.mark.parametrize("epochs", [1, 4])
def test_teacher_is_the_moving_average_from_the_first_step_on(epochs: int) -> None:
    task, start = toy_task(num_train=16), toy_task(num_train=16)
    run, method = MemoryRun(task), JoSrc(config(epochs=epochs, batch_size=16))
    students = [dict(method.build(start, MemoryRun(start)).named_parameters())]
    run.after_epoch = lambda _: students.append(
        {name: value.detach().clone() for name, value in method.student.named_parameters()}
    )
    method.fit(task, run)
    for name, value in method.teacher.named_parameters():
        expected = students[0][name].detach().double().numpy()
        for student in students[1:]:
            expected = 0.99 * expected + 0.01 * student[name].double().numpy()
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-6)
        assert not value.requires_grad
        assert value.grad is None
    assert not {value.data_ptr() for value in method.teacher.state_dict().values()} & {
        value.data_ptr() for value in method.student.state_dict().values()
    }


def test_statistics_of_batch_norm_are_not_averaged() -> None:
    """The teacher sees nothing in warm-up, so its running statistics stay those of the start."""
    task = toy_task()
    method, _ = fitted(task, epochs=2)
    buffers = dict(method.teacher.named_buffers())
    assert not any(value.any() for name, value in buffers.items() if name.endswith("running_mean"))
    assert all(value.any() for name, value in method.student.named_buffers() if name.endswith("running_mean"))


def test_warm_up_does_not_depend_on_the_teacher() -> None:
    class Spoilt(JoSrc):
        def build_optimizer(self) -> torch.optim.Optimizer:
            for value in self.teacher.parameters():
                value.fill_(7.0)
            return super().build_optimizer()

    task, other = toy_task(), toy_task()
    plain, _ = fitted(task, epochs=2)
    spoilt = Spoilt(config(epochs=2))
    spoilt.fit(other, MemoryRun(other))
    assert same(weights(plain.student), weights(spoilt.student))


def test_the_student_answers() -> None:
    task = toy_task()
    method, _ = fitted(task, epochs=1)
    with torch.no_grad():
        assert torch.equal(method.predict(task.images), method.student(task.images))


def test_no_step_waits_for_the_device() -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Watch.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    task = toy_task()
    run, method = MemoryRun(task), JoSrc(config(clean_view="both", ood_limit=3.0))
    method.student, method.teacher = method.build(task, run), method.build(task, run)
    optimizer = method.build_optimizer()
    batches = list(task.loader("net", batch_size=16, views=("weak", "weak")))
    task.loader = lambda *_, **__: batches  # type: ignore[method-assign,assignment]
    with Watch():
        method.train_epoch(task, run, optimizer, 0)
        method.train_epoch(task, run, optimizer, 5)
    assert Watch.waits == 0
    with Watch():
        torch.ones(1).item()
    assert Watch.waits == 1


# ---------------------------------------------------------------- the loop


def test_learns_and_finds_the_clean_samples() -> None:
    task, clean = toy_task(240, 4, 0.4), toy_task(240, 4, 0.0)
    method, run = fitted(task, epochs=24, warmup_epochs=8, smoothing=0.3, final_threshold=0.85)
    with torch.no_grad():
        assert (method.predict(task.images).argmax(1) == clean.labels).float().mean() > 0.95
    verdicts, right = run.reported[-1][2], task.labels == clean.labels
    assert right[verdicts["selected"]].float().mean() > 0.9
    assert verdicts["selected"][right].float().mean() > 0.8


def test_reports_of_an_epoch() -> None:
    task = toy_task()
    method, run = fitted(task, epochs=4, final_threshold=0.8)
    assert [(epoch, name) for epoch, name, _ in run.reported] == [(epoch, "") for epoch in range(4)]
    for epoch, _, verdicts in run.reported:
        assert set(verdicts) == {"clean_probs", "selected"} | ({"pseudo_labels", "ood"} if epoch >= 2 else set())
        assert ((verdicts["clean_probs"] > 0) & (verdicts["clean_probs"] <= 1)).all()
    assert run.reported[0][2]["selected"].all(), "the threshold begins at 0"
    last = run.reported[-1][2]
    assert not (last["selected"] & last["ood"]).any()
    assert torch.equal(last["pseudo_labels"] == -1, last["selected"])
    assert torch.equal(last["selected"], last["clean_probs"] >= method.threshold(3))


@pytest.mark.parametrize(("trained_on", "kind"), [("clean", "selected"), ("clean+id", "ood")])
def test_what_is_not_trained_on_gets_no_pseudo_label(trained_on: str, kind: str) -> None:
    _, run = fitted(toy_task(), epochs=4, trained_on=trained_on, clean_threshold=0.9)
    last = run.reported[-1][2]
    left_out = torch.ones_like(last["ood"]) if kind == "selected" else last["ood"] | last["selected"]
    assert torch.equal(last["pseudo_labels"] == -1, left_out)


@pytest.mark.parametrize("head", ["mlp2", "linear"])
def test_a_last_batch_of_one_image_is_left_out(head: str) -> None:
    task = toy_task(num_train=33)
    _, run = fitted(task, epochs=3, head=head)
    assert [len(index) for _, index in task.served] == [16, 16] * 3
    for epoch, _, verdicts in run.reported:
        seen = torch.cat([index for _, index in task.served[2 * epoch : 2 * epoch + 2]])
        unseen = torch.ones(33, dtype=torch.bool).index_fill(0, seen, False)
        assert verdicts["clean_probs"][unseen].tolist() == [0.0]
        assert not verdicts["selected"][unseen].any()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_set_of_one_given_label_does_no_harm(classes: int) -> None:
    task = toy_task(num_classes=classes)
    task.labels[:] = 1
    method, run = fitted(task, epochs=4, clean_threshold=0.95)
    with torch.no_grad():
        assert method.predict(task.images).isfinite().all()
    assert all(math.isfinite(value) for value in run.values("loss"))


RESUMED = [{}, {"optimizer": "sgd", "head": "linear"}, {"count_from": 1, "clean_view": "both", "late_beta1": 0.5}]


@pytest.mark.parametrize("changes", RESUMED)
@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(stop_after: int, changes: dict[str, Any]) -> None:
    task, first, second = toy_task(), toy_task(), toy_task()
    method, whole = fitted(task, **changes)
    interrupted = MemoryRun(first, stop_after=stop_after)
    JoSrc(config(**changes)).fit(first, interrupted)
    resumed, resumed_method = MemoryRun(second, resume=interrupted.saved), JoSrc(config(**changes))
    resumed_method.fit(second, resumed)
    assert same(weights(method.student), weights(resumed_method.student))
    assert same(weights(method.teacher), weights(resumed_method.teacher))
    logged = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in whole.logged]
    again = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in resumed.logged]
    assert [each for each in logged if each[0] > stop_after] == again
    assert set(whole.tracked) == {"student", "teacher", "optimizer"}


# ---------------------------------------------------------------- options, registration and page


@pytest.mark.parametrize(
    "changes", [{"smoothing": 0.0}, {"smoothing": 1.0}, {"batch_size": 1}, {"count_from": 2}, {"momentum": 0.0}]
)
def test_impossible_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)


def planned(tmp_path: Path, options: dict[str, str]) -> JoSrc.Config:
    """Return the configuration that ``--set`` options lead to."""
    request = Request(methods=["josrc"], suites=["cifar80n-o"], tasks=["sym@0.20"], overrides=options)
    cells = plan(request, discover(), LocalDataStore(tmp_path, offline=True, progress=False)).cells
    return JoSrc.Config.model_validate(cells[0].method.config)


def test_variants_are_options_of_the_command_line(tmp_path: Path) -> None:
    options = {"count_from": "1", "clean_test": "above", "clean_view": "both", "head": "linear", "ood_limit": "2.5"}
    preset = JoSrc.preset(task_info("cifar100"))
    expected = {"count_from": 1, "clean_test": "above", "clean_view": "both", "head": "linear", "ood_limit": 2.5}
    assert planned(tmp_path, options) == preset.model_copy(update=expected)


def test_rows_of_the_ablation(tmp_path: Path) -> None:
    """The command lines of the page are what they say, and train."""
    rows = dict(re.findall(r"^\| (Jo-SRC\S*) \| [^|]* \| (.*) \|$", README.split("### The paper's ablation")[1], re.M))
    assert list(rows) == ["Jo-SRC-C", "Jo-SRC-CI", "Jo-SRC-CIO", "Jo-SRC"]
    expected = [("clean", 0.0), ("clean+id", 0.0), ("all", 0.0), ("all", 0.5)]
    for line, (trained_on, alpha) in zip(rows.values(), expected, strict=True):
        settings = planned(tmp_path, dict(option.split("=") for option in re.findall(r"--set ([^`\s]+)", line)))
        assert settings == planned(tmp_path, {}).model_copy(update={"trained_on": trained_on, "alpha": alpha})
        _, run = fitted(toy_task(), epochs=4, trained_on=trained_on, alpha=alpha)
        if alpha == 0.0:
            assert run.values("loss") == pytest.approx(run.values("loss_classification"))


def test_registration() -> None:
    [entry] = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("josrc", 1, ("scratch",))
    assert entry.target == f"{JoSrc.__module__}:{JoSrc.__qualname__}"
    assert entry.paper is not None
    assert entry.paper.bibtex in README


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_josrc as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_page_names_every_option_and_every_logged_metric() -> None:
    _, run = fitted(toy_task(), epochs=3)
    metrics = {key for _, values in run.logged for key in values}
    options = set(JoSrc.Config.model_fields)
    assert len(metrics) == 6
    assert [name for name in sorted(metrics | options) if f"| `{name}` |" not in README] == []
    assert all(field.description for field in JoSrc.Config.model_fields.values())
