from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lnlbench.blocks.contrastive import nt_xent

A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
B = torch.tensor([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "one_sided", "both_sided"),
    [(0.5, 0.732417, 0.976158), (0.1, 0.296215, 1.105739), (0.05, 0.240140, 1.869990)],
)
def test_worked_numbers(temperature: float, one_sided: float, both_sided: float) -> None:
    assert nt_xent(A, B, temperature).item() == pytest.approx(one_sided, abs=6e-7)
    assert nt_xent(A, B, temperature, symmetric=True).item() == pytest.approx(both_sided, abs=6e-7)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(generator: np.random.Generator, dtype: torch.dtype, symmetric: bool) -> None:
    first, second = generator.normal(size=(2, 7, 5))
    z = np.concatenate([first, second])
    z = z / np.sqrt((z**2).sum(1, keepdims=True))
    losses = []
    for i in range(14 if symmetric else 7):
        powers = [math.exp(z[i] @ z[j] / 0.2) for j in range(14) if j != i]
        losses.append(-math.log(math.exp(z[i] @ z[(i + 7) % 14] / 0.2) / sum(powers)))
    found = nt_xent(torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype), 0.2, symmetric=symmetric)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("rows", "expected"), [(1, 0.0), (3, 1.609438), (128, 5.541264)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_features_give_the_logarithm_of_the_candidates(rows: int, expected: float, symmetric: bool) -> None:
    features = torch.ones(rows, 4, dtype=torch.float64)
    assert nt_xent(features, features, 0.1, symmetric=symmetric).item() == pytest.approx(expected, abs=6e-7)


def test_length_of_features_does_not_matter() -> None:
    assert nt_xent(3 * A, 0.1 * B, 0.1).item() == pytest.approx(nt_xent(A, B, 0.1).item())


def test_is_not_negative(generator: np.random.Generator) -> None:
    for _ in range(20):
        first, second = torch.from_numpy(generator.normal(size=(2, 4, 3)))
        assert nt_xent(first, second, 0.05).item() >= 0


def test_gradient(generator: np.random.Generator) -> None:
    first, second = torch.from_numpy(generator.normal(size=(2, 4, 3)))
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), inputs)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, symmetric=True), inputs)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e15])
def test_extreme_features_give_finite_losses_and_gradients(value: float) -> None:
    features = torch.full((3, 2), value, requires_grad=True)
    loss = nt_xent(features, features, 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_no_rows_give_zero() -> None:
    features = torch.zeros(0, 3, requires_grad=True)
    loss = nt_xent(features, features, 0.1) + nt_xent(features, features, 0.1, symmetric=True)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


def test_refuses_other_shapes_and_temperatures() -> None:
    with pytest.raises(ValueError, match=r"views must have one shape, got \(3, 2\) and \(2, 2\)"):
        nt_xent(A, B[:2], 0.1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        nt_xent(A, B, 0)
