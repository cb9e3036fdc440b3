from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lnlbench.blocks.fixmatch import pseudo_label_loss, pseudo_label_losses

WEAK = torch.tensor([[6, 0, 1], [2, 1.5, 0], [0, 5, 0.5]], dtype=torch.float64)
STRONG = torch.tensor([[2, 0, 1], [1, 1, 0], [1, 1, 0]], dtype=torch.float64)


def test_worked_numbers() -> None:
    np.testing.assert_allclose(WEAK.softmax(1).amax(1), [0.990867, 0.574097, 0.982466], atol=6e-7)
    soft, kept = pseudo_label_loss(WEAK, STRONG, 0.95)
    hard, _ = pseudo_label_loss(WEAK, STRONG, 0.95, hard=True)
    assert soft.item() == pytest.approx(0.430701, abs=6e-7)
    assert hard.item() == pytest.approx(0.423200, abs=6e-7)
    assert kept.item() == pytest.approx(2 / 3)
    # Dividing by the rows kept would be another loss.
    assert (soft / kept).item() == pytest.approx(0.646052, abs=6e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hard", [False, True])
def test_formula(generator: np.random.Generator, dtype: torch.dtype, hard: bool) -> None:
    weak, strong = generator.normal(scale=3, size=(2, 30, 4))
    softmax = [[[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in each] for each in (weak, strong)]
    total, count = 0.0, 0
    for q, p in zip(*softmax, strict=True):
        if max(q) > 0.8:
            count += 1
            taught = [float(c == np.argmax(q)) for c in range(4)] if hard else q
            total -= sum(t * math.log(each) for t, each in zip(taught, p, strict=True))
    loss, kept = pseudo_label_loss(torch.tensor(weak, dtype=dtype), torch.tensor(strong, dtype=dtype), 0.8, hard=hard)
    assert 0 < count < 30
    assert (loss.dtype, kept.dtype) == (dtype, dtype)
    assert loss.item() == pytest.approx(total / 30, rel=1e-5)
    assert kept.item() == pytest.approx(count / 30)


def test_only_strong_views_of_confident_rows_learn() -> None:
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    loss, kept = pseudo_label_loss(weak, strong, 0.95)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weak.grad is None
    assert strong.grad is not None
    assert not kept.requires_grad
    assert (strong.grad.abs().sum(1) > 0).tolist() == [True, False, True]
    assert torch.autograd.gradcheck(lambda z: pseudo_label_loss(WEAK, z, 0.95)[0], (strong,))


def test_nothing_confident_gives_zero_with_zero_gradient() -> None:
    strong = STRONG.clone().requires_grad_()
    loss, kept = pseudo_label_loss(torch.zeros(3, 3), strong, 0.95)
    loss.backward()  # type: ignore[no-untyped-call]
    assert (loss.item(), kept.item()) == (0, 0)
    assert strong.grad is not None
    assert not strong.grad.any()


def test_threshold_is_strict() -> None:
    _, kept = pseudo_label_loss(torch.zeros(2, 2), torch.zeros(2, 2), 0.5)
    assert kept.item() == 0


def test_huge_logits_give_a_finite_loss() -> None:
    strong = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss, _ = pseudo_label_loss(torch.tensor([[0.0, 1e4, 0.0]]), strong, 0.95)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(1e4)
    assert strong.grad is not None
    assert strong.grad.isfinite().all()


def test_no_rows_give_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss, kept = pseudo_label_loss(logits, logits, 0.95)
    loss.backward()  # type: ignore[no-untyped-call]
    assert (loss.item(), kept.item()) == (0, 0)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 3\) and \(2, 3\)"):
        pseudo_label_loss(WEAK, STRONG[:2], 0.95)


def test_worked_numbers_per_sample() -> None:
    soft, kept = pseudo_label_losses(WEAK, STRONG, 0.95, hard=False)
    hard, _ = pseudo_label_losses(WEAK, STRONG, 0.95, hard=True)
    np.testing.assert_allclose(hard, [0.407606, 0, 0.861995], atol=6e-7)
    assert kept.tolist() == [1, 0, 1]
    assert soft.mean().item() == pytest.approx(0.430701, abs=6e-7)
    assert hard.mean().item() == pytest.approx(0.423200, abs=6e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hard", [False, True])
def test_formula_per_sample(generator: np.random.Generator, dtype: torch.dtype, hard: bool) -> None:
    weak, strong = generator.normal(scale=3, size=(2, 30, 4))
    softmax = [[[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in each] for each in (weak, strong)]
    expected = []
    for q, p in zip(*softmax, strict=True):
        taught = [float(c == np.argmax(q)) for c in range(4)] if hard else q
        expected.append((max(q) >= 0.8) * -sum(t * math.log(each) for t, each in zip(taught, p, strict=True)))
    losses, kept = pseudo_label_losses(
        torch.tensor(weak, dtype=dtype), torch.tensor(strong, dtype=dtype), 0.8, hard=hard
    )
    assert (losses.dtype, kept.dtype) == (dtype, dtype)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    assert kept.tolist() == [max(q) >= 0.8 for q in softmax[0]]


def test_threshold_per_sample_is_not_strict() -> None:
    weak = torch.zeros(2, 2, dtype=torch.float64)
    assert pseudo_label_losses(weak, weak, 0.5, hard=True)[1].tolist() == [1, 1]
    assert pseudo_label_losses(weak, weak, 0.5 + 1e-9, hard=True)[1].tolist() == [0, 0]
    assert pseudo_label_losses(50 * torch.eye(2), weak, 1.1, hard=True)[0].tolist() == [0, 0]


def test_only_strong_views_of_confident_rows_learn_per_sample() -> None:
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    losses, kept = pseudo_label_losses(weak, strong, 0.95, hard=True)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert weak.grad is None
    assert strong.grad is not None
    assert not kept.requires_grad
    assert (strong.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_no_rows_and_other_shapes_per_sample() -> None:
    losses, kept = pseudo_label_losses(torch.zeros(0, 3), torch.zeros(0, 3), 0.95, hard=True)
    assert (losses.shape, kept.shape) == ((0,), (0,))
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 3\) and \(2, 3\)"):
        pseudo_label_losses(WEAK, STRONG[:2], 0.95, hard=True)
