from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnlbench.blocks.losses import (
    class_balance_divergence,
    cross_entropy_per_sample,
    negative_entropy,
    soft_cross_entropy,
    soft_cross_entropy_per_sample,
    squared_error_of_probs,
)

Z_X = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
Y_X = [[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]
Z_U = [[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]
Y_U = [[0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits])


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_numbers() -> None:
    loss_labelled = soft_cross_entropy(double(Z_X), double(Y_X))
    loss_unlabelled = squared_error_of_probs(double(Z_U), double(Y_U))
    logits = double(Z_X + Z_U)
    loss_balance = class_balance_divergence(logits)
    assert loss_labelled.item() == pytest.approx(0.710645, abs=5e-7)
    assert loss_unlabelled.item() == pytest.approx(0.008289, abs=5e-7)
    assert 3 * loss_unlabelled.item() == pytest.approx(0.024866, abs=1e-6)
    np.testing.assert_allclose(softmax(logits.numpy()).mean(0), [0.380833, 0.289477, 0.329689], atol=1e-6)
    assert loss_balance.item() == pytest.approx(0.006280, abs=5e-7)
    total = loss_labelled + 25 * (12 + 3 / 8 - 10) / 16 * loss_unlabelled + loss_balance
    assert total.item() == pytest.approx(0.747683, abs=1e-6)
    assert negative_entropy(double(Z_X)).item() == pytest.approx(-0.749797, abs=5e-7)
    assert negative_entropy(double([[0.0, 0.0, 0.0]])).item() == pytest.approx(-1.098612, abs=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (13, 10), (40, 100)])
def test_formulas(generator: np.random.Generator, dtype: torch.dtype, rows: int, classes: int) -> None:
    logits = generator.normal(scale=3, size=(rows, classes))
    targets = generator.dirichlet(np.ones(classes), size=rows)
    labels = generator.integers(classes, size=rows)
    z, t, y = torch.tensor(logits, dtype=dtype), torch.tensor(targets, dtype=dtype), torch.tensor(labels)
    probs = softmax(logits)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11

    per_sample = [-math.log(probs[row, label]) for row, label in enumerate(labels)]
    soft_per_sample = [sum(-targets[b, c] * math.log(probs[b, c]) for c in range(classes)) for b in range(rows)]
    soft = sum(soft_per_sample) / rows
    squared = sum((probs[b, c] - targets[b, c]) ** 2 for b in range(rows) for c in range(classes)) / (rows * classes)
    mean = [sum(probs[b, c] for b in range(rows)) / rows for c in range(classes)]
    balance = sum((1 / classes) * math.log((1 / classes) / mean[c]) for c in range(classes))
    entropy = sum(probs[b, c] * math.log(probs[b, c]) for b in range(rows) for c in range(classes)) / rows

    np.testing.assert_allclose(cross_entropy_per_sample(z, y).numpy(), per_sample, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        soft_cross_entropy_per_sample(z, t).numpy(), soft_per_sample, rtol=tolerance, atol=tolerance
    )
    for found, expected in (
        (soft_cross_entropy(z, t), soft),
        (squared_error_of_probs(z, t), squared),
        (class_balance_divergence(z), balance),
        (negative_entropy(z), entropy),
    ):
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_mean_soft_cross_entropy_is_one_sum_over_rows_and_classes(generator: np.random.Generator) -> None:
    logits = torch.tensor(generator.normal(size=(37, 10)), dtype=torch.float32)
    targets = torch.tensor(generator.dirichlet(np.ones(10), size=37), dtype=torch.float32)
    assert torch.equal(soft_cross_entropy(logits, targets), -(targets * logits.log_softmax(1)).sum() / 37)


def test_ranges(generator: np.random.Generator) -> None:
    for _ in range(20):
        logits = torch.tensor(generator.normal(scale=8, size=(6, 4)))
        targets = torch.tensor(generator.dirichlet(np.full(4, 0.1), size=6))
        assert 0 <= squared_error_of_probs(logits, targets).item() <= 2 / 4
        assert class_balance_divergence(logits).item() >= 0
        assert -math.log(4) <= negative_entropy(logits).item() <= 0
        assert (cross_entropy_per_sample(logits, torch.zeros(6, dtype=torch.int64)) >= 0).all()


def test_balance_is_zero_iff_the_mean_prediction_is_uniform() -> None:
    one_class_each = 50 * torch.eye(4, dtype=torch.float64)
    assert class_balance_divergence(one_class_each).item() == pytest.approx(0, abs=1e-12)
    assert class_balance_divergence(one_class_each[:3]).item() > 1


def test_hard_targets_agree_with_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    soft = soft_cross_entropy(logits, torch.eye(3, dtype=torch.float64)[labels])
    assert soft.item() == pytest.approx(cross_entropy_per_sample(logits, labels).mean().item())


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_give_finite_losses_and_gradients(scale: float) -> None:
    targets = torch.full((2, 3), 1 / 3)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda z: soft_cross_entropy(z, targets),
        lambda z: squared_error_of_probs(z, targets),
        class_balance_divergence,
        negative_entropy,
        lambda z: cross_entropy_per_sample(z, torch.tensor([1, 2])).sum(),
    ]
    for loss in losses:
        logits = torch.tensor([[scale, 0.0, 1.0], [scale, 0.0, 1.0]], requires_grad=True)
        value = loss(logits)
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_gradients_agree_with_differences() -> None:
    logits = double(Z_X).requires_grad_()
    targets = double(Y_X)
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, targets), (logits,))
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy_per_sample(z, targets), (logits,))
    assert torch.autograd.gradcheck(lambda z: squared_error_of_probs(z, targets), (logits,))
    assert torch.autograd.gradcheck(class_balance_divergence, (logits,))
    assert torch.autograd.gradcheck(negative_entropy, (logits,))


def test_no_rows_give_zero() -> None:
    logits, targets = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3)
    values = [
        soft_cross_entropy(logits, targets),
        squared_error_of_probs(logits, targets),
        class_balance_divergence(logits),
        negative_entropy(logits),
    ]
    assert [value.item() for value in values] == [0, 0, 0, 0]
    torch.stack(values).sum().backward()
    assert cross_entropy_per_sample(logits, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert soft_cross_entropy_per_sample(logits, targets).shape == (0,)


@pytest.mark.parametrize("loss", [soft_cross_entropy, soft_cross_entropy_per_sample, squared_error_of_probs])
def test_refuses_other_shapes(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 3\) and \(1, 3\)"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3))
