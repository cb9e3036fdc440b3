from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lnlbench.blocks.contrastive import class_contrast, instance_contrast, mimicry, nt_xent, similarity

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


# ---------------------------------------------------------------- one matrix of similarities, one value per anchor

STRONG = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
WEAK = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
WORKED = similarity(STRONG, WEAK, 0.5)


def draw(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return anchors, candidates and classes."""
    generator = np.random.default_rng(seed)
    anchors, candidates = torch.from_numpy(generator.normal(size=(2, rows, 5)))
    return anchors, candidates, torch.from_numpy(generator.integers(3, size=rows))


def softmax_of_rows(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[math.exp(each) / sum(map(math.exp, row)) for each in row] for row in matrix])


def per_anchor(similarity_BB: torch.Tensor, classes: torch.Tensor) -> list[torch.Tensor]:
    return [instance_contrast(similarity_BB), class_contrast(similarity_BB, classes), mimicry(similarity_BB)]


def test_worked_similarities() -> None:
    np.testing.assert_allclose(
        WORKED.softmax(1),
        [[0.534126, 0.107838, 0.358036], [0.355943, 0.258468, 0.385589], [0.211983, 0.471776, 0.316241]],
        atol=6e-7,
    )
    np.testing.assert_allclose(
        WORKED.T.softmax(1),
        [[0.328143, 0.451895, 0.219961], [0.074951, 0.371234, 0.553816], [0.211983, 0.471776, 0.316241]],
        atol=6e-7,
    )


def test_worked_terms() -> None:
    np.testing.assert_allclose(instance_contrast(WORKED), [0.627123, 1.352984, 1.151251], atol=6e-7)
    np.testing.assert_allclose(mimicry(WORKED), [0.280132, 0.321351, 0], atol=6e-7)
    np.testing.assert_allclose(
        class_contrast(WORKED, torch.tensor([0, 1, 1])), [0.627123, 0.439969, 0.238235], atol=6e-7
    )


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.126928), (0.1, 0.0000453989)])
def test_worked_identity(temperature: float, expected: float) -> None:
    matrix = similarity(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), temperature)
    np.testing.assert_allclose(instance_contrast(matrix), [expected] * 2, atol=6e-7, rtol=1e-5)
    assert mimicry(matrix).tolist() == [0, 0]


def test_equal_and_distinct_classes() -> None:
    assert class_contrast(WORKED, torch.zeros(3, dtype=torch.int64)).tolist() == [0, 0, 0]
    np.testing.assert_allclose(class_contrast(WORKED, torch.arange(3)), instance_contrast(WORKED), atol=1e-15)


def test_equal_features_give_the_logarithm_of_the_batch() -> None:
    features = torch.ones(128, 4, dtype=torch.float64)
    matrix = similarity(features, features, 0.5)
    np.testing.assert_allclose(instance_contrast(matrix), math.log(128))
    np.testing.assert_allclose(class_contrast(matrix, torch.arange(128)), math.log(128))


def test_random_features_are_near_the_logarithm_of_the_batch(generator: np.random.Generator) -> None:
    anchors, candidates = torch.from_numpy(generator.normal(size=(2, 256, 512)))
    losses = class_contrast(similarity(anchors, candidates, 0.5), torch.arange(256))
    assert losses.mean().item() == pytest.approx(math.log(256), rel=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_formulas_per_anchor(dtype: torch.dtype, tolerance: float) -> None:
    anchors, candidates, classes = draw(seed=1, rows=9)
    a, c = anchors.numpy(), candidates.numpy()
    cosines = [[x @ y / math.sqrt(x @ x) / math.sqrt(y @ y) for y in c] for x in a]
    expected = np.array(cosines) / 0.2
    there, back = softmax_of_rows(expected), softmax_of_rows(expected.T)
    found = similarity(anchors.to(dtype), candidates.to(dtype), 0.2)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    positives = [sum(there[i, j] for j in range(9) if classes[j] == classes[i]) for i in range(9)]
    np.testing.assert_allclose(instance_contrast(found), -np.log(np.diag(there)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(class_contrast(found, classes), -np.log(positives), rtol=tolerance, atol=tolerance)
    divergences = [
        sum(p * math.log(p / q) for p, q in zip(*pair, strict=True)) for pair in zip(there, back, strict=True)
    ]
    np.testing.assert_allclose(mimicry(found), divergences, rtol=tolerance, atol=tolerance)


def test_half_precision_features_are_compared_in_single_precision() -> None:
    anchors, candidates, _ = (each.bfloat16() for each in draw(seed=2, rows=4))
    assert torch.equal(similarity(anchors, candidates, 0.1), similarity(anchors.float(), candidates.float(), 0.1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_order_of_the_batch_does_not_matter(seed: int, rows: int) -> None:
    anchors, candidates, classes = draw(seed, rows)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows))
    before = per_anchor(similarity(anchors, candidates, 0.5), classes)
    after = per_anchor(similarity(anchors[order], candidates[order], 0.5), classes[order])
    for first, second in zip(before, after, strict=True):
        np.testing.assert_allclose(first[order], second, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_length_of_a_feature_does_not_matter(seed: int, first: float, second: float) -> None:
    anchors, candidates, _ = draw(seed, rows=6)
    np.testing.assert_allclose(
        similarity(first * anchors, second * candidates, 0.1), similarity(anchors, candidates, 0.1), atol=1e-12
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.05, 5))
def test_bounds(seed: int, rows: int, temperature: float) -> None:
    anchors, candidates, classes = draw(seed, rows)
    matrix = similarity(anchors, candidates, temperature)
    by_instance, by_class, mimicked = per_anchor(matrix, classes)
    assert (matrix.abs() <= 1 / temperature + 1e-9).all()
    assert (by_class >= -1e-12).all()
    assert (by_class <= by_instance + 1e-12).all()
    assert (mimicked >= -1e-12).all()
    if rows == 1:
        assert [each.item() for each in (by_instance, by_class, mimicked)] == [0, 0, 0]


def test_gradients_per_anchor() -> None:
    anchors, candidates, _ = draw(seed=4, rows=4)
    inputs = (anchors.requires_grad_(), candidates.requires_grad_())
    classes = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, c: instance_contrast(similarity(a, c, 0.5)), inputs)
    assert torch.autograd.gradcheck(lambda a, c: class_contrast(similarity(a, c, 0.5), classes), inputs)
    assert torch.autograd.gradcheck(lambda a, c: mimicry(similarity(a, c, 0.5)), inputs)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e15])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_extreme_features_and_batches_give_finite_terms_and_gradients(rows: int, value: float) -> None:
    features = torch.full((rows, 2), value, requires_grad=True)
    terms = per_anchor(similarity(features, features, 0.05), torch.arange(rows))
    torch.stack(terms).sum().backward()
    for term in terms:
        assert term.shape == (rows,)
        assert term.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_similarity_refuses_other_shapes_and_temperatures() -> None:
    with pytest.raises(ValueError, match=r"anchors and candidates must have one shape, got \(3, 2\) and \(2, 2\)"):
        similarity(STRONG, WEAK[:2], 0.5)
    with pytest.raises(ValueError, match="temperature must be above 0, got -1"):
        similarity(STRONG, WEAK, -1)
