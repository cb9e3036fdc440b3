from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lnlbench.blocks.divergences import jensen_shannon_bits, kl_divergence

Rows = NDArray[np.float64]


def logs(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def smoothed(classes: int, share: float, label: int) -> tuple[float, ...]:
    return tuple(1 - share if c == label else share / (classes - 1) for c in range(classes))


def one_hot(classes: int, label: int) -> tuple[float, ...]:
    return tuple(float(c == label) for c in range(classes))


def divergence(p: Rows, q: Rows, log: Callable[[float], float]) -> list[float]:
    return [sum(a * log(a / b) for a, b in zip(x, y, strict=True) if a > 0) for x, y in zip(p, q, strict=True)]


def draw(seed: int, rows: int = 6, classes: int = 5) -> tuple[Rows, Rows]:
    """Return two sets of distributions, some of whose probabilities are tiny."""
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(classes, 0.3), size=rows), generator.dirichlet(np.ones(classes), size=rows)


# ---------------------------------------------------------------- worked numbers


def test_symmetric_divergence_in_bits() -> None:
    p, q = logs((0.7, 0.2, 0.1)), logs((0.5, 0.3, 0.2))
    bits = (kl_divergence(p, q) + kl_divergence(q, p)) / math.log(2)
    assert bits.item() == pytest.approx(0.255582, abs=6e-7)


@pytest.mark.parametrize(("label", "clean"), [(0, 0.925106), (3, 0.722824)])
def test_clean_likelihood_of_a_prediction(label: int, clean: float) -> None:
    bits = jensen_shannon_bits(logs((0.7, 0.1, 0.1, 0.05, 0.05)), logs(smoothed(5, 0.6, label)))
    assert 1 - bits.item() == pytest.approx(clean, abs=6e-7)


@pytest.mark.parametrize(
    ("classes", "share", "right", "wrong", "uniform", "other"),
    [
        (80, 0.6, 0.604184, 0.032236, 0.799694, 0.646900),
        (14, 0.7, 0.506577, 0.153350, 0.933842, 0.863859),
        (101, 0.65, 0.557298, 0.028316, 0.827133, 0.690344),
    ],
)
def test_clean_likelihood_of_special_predictions(
    classes: int, share: float, right: float, wrong: float, uniform: float, other: float
) -> None:
    predictions = logs(one_hot(classes, 0), one_hot(classes, 1), (1 / classes,) * classes, smoothed(classes, share, 1))
    targets = logs(smoothed(classes, share, 0)).expand_as(predictions)
    np.testing.assert_allclose(1 - jensen_shannon_bits(predictions, targets), [right, wrong, uniform, other], atol=6e-7)
    assert jensen_shannon_bits(targets, targets).tolist() == [0, 0, 0, 0]


# ---------------------------------------------------------------- formulas and invariants


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_formulas(dtype: torch.dtype, tolerance: float) -> None:
    p, q = draw(seed=3, rows=40, classes=10)
    log_p, log_q = torch.tensor(np.log(p), dtype=dtype), torch.tensor(np.log(q), dtype=dtype)
    middle = (p + q) / 2
    bits = (np.array(divergence(p, middle, math.log2)) + divergence(q, middle, math.log2)) / 2
    assert kl_divergence(log_p, log_q).dtype == jensen_shannon_bits(log_p, log_q).dtype == dtype
    np.testing.assert_allclose(kl_divergence(log_p, log_q), divergence(p, q, math.log), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(jensen_shannon_bits(log_p, log_q), bits, rtol=tolerance, atol=tolerance)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_invariants(seed: int, classes: int) -> None:
    p, q = (torch.from_numpy(each).log() for each in draw(seed, classes=classes))
    bits = jensen_shannon_bits(p, q)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))
    assert (kl_divergence(p, q) >= -1e-12).all()
    assert ((bits >= 0) & (bits <= 1)).all()
    np.testing.assert_allclose(bits, jensen_shannon_bits(q, p), atol=1e-12)
    np.testing.assert_allclose(bits, jensen_shannon_bits(p[:, order], q[:, order]), atol=1e-12)
    np.testing.assert_allclose(kl_divergence(p, q), kl_divergence(p[:, order], q[:, order]), atol=1e-12)
    assert kl_divergence(p, p).tolist() == [0] * 6


def test_gradients_agree_with_differences() -> None:
    inputs = tuple(torch.from_numpy(np.log(each)).requires_grad_() for each in draw(seed=5, rows=3, classes=4))
    assert torch.autograd.gradcheck(kl_divergence, inputs)
    assert torch.autograd.gradcheck(jensen_shannon_bits, inputs)


# ---------------------------------------------------------------- zeros


def test_absent_classes_count_nothing() -> None:
    p, q = logs((1, 0, 0), (0.5, 0.5, 0), (0, 1, 0)), logs((0.5, 0.5, 0), (0, 0, 1), (0, 1, 0))
    assert kl_divergence(p, q).tolist() == pytest.approx([math.log(2), math.inf, 0])
    assert jensen_shannon_bits(p, q).tolist() == pytest.approx([0.311278, 1, 0], abs=6e-7)
    assert jensen_shannon_bits(p, q).isfinite().all()


def test_absent_classes_leave_gradients_finite() -> None:
    p, q = logs((1, 0, 0), (0.5, 0.5, 0)).requires_grad_(), logs((0.5, 0.5, 0), (0, 0, 1)).requires_grad_()
    jensen_shannon_bits(p, q).sum().backward()  # type: ignore[no-untyped-call]
    kl_divergence(p[:1], q[:1]).sum().backward()  # type: ignore[no-untyped-call]
    for each in (p, q):
        assert each.grad is not None
        assert each.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_give_finite_values_and_gradients(scale: float) -> None:
    logits = torch.tensor([[scale, 0.0, -scale], [0.0, 0.0, scale]], requires_grad=True)
    smooth = torch.tensor([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]]).log()
    values = kl_divergence(logits.log_softmax(1), smooth), jensen_shannon_bits(logits.log_softmax(1), smooth)
    torch.stack(values).sum().backward()
    assert values[0].tolist() == pytest.approx([-math.log(0.4), -math.log(0.3)])
    assert ((values[1] > 0) & (values[1] < 1)).all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_probability_that_rounds_to_zero_counts_nothing() -> None:
    p, q = torch.tensor([[0.0, -200.0]]), torch.tensor([[-1.0, -torch.inf]])
    assert kl_divergence(p, q).tolist() == [1]


@pytest.mark.parametrize("divergence_of", [kl_divergence, jensen_shannon_bits])
def test_no_rows_and_other_shapes(divergence_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert divergence_of(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 3\) and \(1, 3\)"):
        divergence_of(torch.zeros(2, 3), torch.zeros(1, 3))
