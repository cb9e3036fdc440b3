from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lnlbench.blocks.mixture import (
    GaussianPair,
    clean_probabilities,
    clean_probabilities_per_class,
    fit_gaussian_pair,
    min_max_normalise,
)
from lnlbench.errors import DivergedError

LOSSES = [0.1, 0.3, 0.2, 0.5, 0.4, 3.2, 4.0, 3.6, 2.9, 5.1, 0.25, 3.9]
NORMALISED = [0, 0.04, 0.02, 0.08, 0.06, 0.62, 0.78, 0.70, 0.56, 1, 0.03, 0.76]
CLEAN = [0, 1, 2, 3, 4, 10]
SETTINGS = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}


def test_worked_normalisation() -> None:
    np.testing.assert_allclose(min_max_normalise(torch.tensor(LOSSES)).numpy(), NORMALISED, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_losses_span_the_unit_interval(generator: np.random.Generator, dtype: torch.dtype) -> None:
    normalised = min_max_normalise(torch.tensor(generator.exponential(3, size=500), dtype=dtype))
    assert normalised.dtype == dtype
    assert (normalised.min().item(), normalised.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [0.7, 0.7, 0.7]])
def test_equal_values_become_zero(values: list[float]) -> None:
    assert min_max_normalise(torch.tensor(values)).tolist() == [0.0] * len(values)


@pytest.mark.parametrize("random_state", range(5))
def test_worked_mixture_whatever_the_start(random_state: int) -> None:
    pair = fit_gaussian_pair(torch.tensor(NORMALISED), **SETTINGS, random_state=random_state)
    np.testing.assert_allclose(pair.means, [0.038333, 0.736665], atol=2e-6)
    np.testing.assert_allclose(pair.variances, [0.001181, 0.020157], atol=2e-6)
    np.testing.assert_allclose(pair.weights, [0.5, 0.5], atol=1e-3)
    probs = clean_probabilities(torch.tensor(NORMALISED), **SETTINGS, random_state=random_state)
    assert probs.dtype == torch.float32
    noisy = [row for row in range(12) if row not in CLEAN]
    assert (probs[CLEAN] > 0.99998).all()
    assert (probs[noisy] < 1e-6).all()


def test_worked_posterior() -> None:
    pair = GaussianPair(weights=(0.55, 0.45), means=(0.05, 0.6), variances=(0.003, 0.04))
    probs = pair.low_probs(torch.tensor([0, 0.1, 0.2, 0.25, 0.3], dtype=torch.float64))
    np.testing.assert_allclose(probs.numpy(), [0.996238, 0.985286, 0.436791, 0.025590, 0.000411], atol=6e-7)


def test_posterior_is_right_in_the_far_tails() -> None:
    pair = GaussianPair(weights=(0.5, 0.5), means=(0.0, 1.0), variances=(1e-3, 1e-3))
    assert pair.low_probs(torch.tensor([-100.0, 100.0])).tolist() == [1.0, 0.0]


def test_agrees_with_slow_expectation_maximisation(generator: np.random.Generator) -> None:
    """EM written out sample by sample, from the start that two well separated clusters leave no doubt about."""
    values = np.concatenate([generator.normal(0.1, 0.03, 60), generator.normal(0.7, 0.1, 40)])
    high = (values > 0.4).astype(float)
    shares = np.stack([1 - high, high])

    def maximise() -> tuple[list[float], list[float], list[float]]:
        weights, means, variances = [], [], []
        for share in shares:
            total = sum(share)
            mean = sum(p * v for p, v in zip(share, values, strict=True)) / total
            variance = sum(p * (v - mean) ** 2 for p, v in zip(share, values, strict=True)) / total
            weights.append(total / len(values))
            means.append(mean)
            variances.append(variance + 5e-4)
        return weights, means, variances

    def densities(row: int) -> list[float]:
        return [
            w * math.exp(-((values[row] - m) ** 2) / (2 * s)) / math.sqrt(2 * math.pi * s)
            for w, m, s in zip(weights, means, variances, strict=True)
        ]

    weights, means, variances = maximise()
    for _ in range(10):
        posteriors = [[d / sum(densities(row)) for d in densities(row)] for row in range(len(values))]
        shares = np.array(posteriors).T
        weights, means, variances = maximise()

    pair = fit_gaussian_pair(torch.from_numpy(values), max_iter=10, tol=1e-12, reg_covar=5e-4, random_state=0)
    np.testing.assert_allclose(pair.means, means, rtol=1e-6)
    np.testing.assert_allclose(pair.variances, variances, rtol=1e-6)
    np.testing.assert_allclose(pair.weights, weights, rtol=1e-6)
    expected = [densities(row)[0] / sum(densities(row)) for row in range(len(values))]
    np.testing.assert_allclose(pair.low_probs(torch.from_numpy(values)).numpy(), expected, atol=1e-6)


def test_agrees_with_scikit_learn(generator: np.random.Generator) -> None:
    from sklearn.mixture import GaussianMixture

    values = np.concatenate([generator.exponential(0.05, 300), generator.normal(0.5, 0.15, 200)])
    reference = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=7).fit(values[:, None])
    expected = reference.predict_proba(values[:, None])[:, reference.means_.argmin()]
    probs = clean_probabilities(torch.from_numpy(values), **SETTINGS, random_state=7)
    np.testing.assert_allclose(probs.numpy(), expected, atol=1e-6)
    assert ((probs >= 0) & (probs <= 1)).all()


def test_repeats_with_its_seed(generator: np.random.Generator) -> None:
    values = torch.tensor(generator.random(200))
    first, second = (clean_probabilities(values, **SETTINGS, random_state=3) for _ in range(2))
    assert torch.equal(first, second)


def test_em_cut_short_is_no_warning(generator: np.random.Generator) -> None:
    values = torch.tensor(generator.random(200))
    probs = clean_probabilities(values, max_iter=1, tol=1e-12, reg_covar=5e-4, random_state=0)
    assert probs.isfinite().all()


@pytest.mark.parametrize("values", [[], [0.4], [0.0, 0.0, 0.0]])
def test_equal_losses_are_all_clean(values: list[float]) -> None:
    probs = clean_probabilities(torch.tensor(values), **SETTINGS, random_state=0)
    assert probs.dtype == torch.float32
    assert probs.tolist() == [1.0] * len(values)


def test_two_distinct_losses_are_enough() -> None:
    probs = clean_probabilities(torch.tensor([0.0, 1.0]), **SETTINGS, random_state=0)
    assert probs[0] > 0.9
    assert probs[1] < 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("count", [1, 4])
def test_refuses_what_is_not_finite(bad: float, count: int) -> None:
    values = torch.rand(4)
    values[:count] = bad
    with pytest.raises(DivergedError, match="the mixture cannot be fitted: "):
        clean_probabilities(values, **SETTINGS, random_state=0)


def test_does_not_pass_gradient() -> None:
    losses = torch.rand(20, requires_grad=True)
    assert not clean_probabilities(losses, **SETTINGS, random_state=0).requires_grad


LOG_PROBS = [-0.10, -0.20, -0.15, -3.0, -2.8, -0.05, -3.2, -0.12, -1.4]
UNCUT = {"max_iter": 100, "tol": 1e-3, "reg_covar": 1e-6}


def test_worked_mixture_of_a_class() -> None:
    losses = -torch.tensor(LOG_PROBS, dtype=torch.float64)
    rescaled = [0.984127, 0.952381, 0.968254, 0.063492, 0.126984, 1, 0, 0.977778, 0.571429]
    np.testing.assert_allclose(1 - min_max_normalise(losses).numpy(), rescaled, atol=1e-6)
    pair = fit_gaussian_pair(min_max_normalise(losses), **UNCUT, random_state=0)
    np.testing.assert_allclose([1 - mean for mean in pair.means], [0.908994, 0.063492], atol=1e-6)
    probs = clean_probabilities_per_class(losses, torch.zeros(9, dtype=torch.int64), 1, **UNCUT, random_state=0)
    np.testing.assert_allclose(probs.numpy(), [1, 1, 1, 0, 0.000002, 1, 0, 1, 1], atol=1e-6)


def test_each_class_has_a_mixture_of_its_own(generator: np.random.Generator) -> None:
    from sklearn.mixture import GaussianMixture

    sizes, scales = (80, 120, 60), (1.0, 10.0, 0.1)
    losses = np.concatenate(
        [
            scale * np.concatenate([generator.exponential(0.1, size // 2), generator.normal(1, 0.2, size // 2)])
            for size, scale in zip(sizes, scales, strict=True)
        ]
    )
    labels = np.repeat(np.arange(3), sizes)
    order = generator.permutation(len(losses))
    losses, labels = losses[order], labels[order]
    probs = clean_probabilities_per_class(torch.tensor(losses), torch.tensor(labels), 3, **UNCUT, random_state=5)
    for label in range(3):
        scores = -losses[labels == label, None]
        scores = (scores - scores.min()) / (scores.max() - scores.min())
        reference = GaussianMixture(2, **UNCUT, random_state=5).fit(scores)
        expected = reference.predict_proba(scores)[:, reference.means_.argmax()]
        np.testing.assert_allclose(probs.numpy()[labels == label], expected, atol=1e-4)


def test_classes_that_separate_nothing_are_clean() -> None:
    losses, labels = torch.tensor([0.3, 2.0, 2.0, 0.1, 0.2, 4.0]), torch.tensor([0, 2, 2, 3, 3, 3])
    probs = clean_probabilities_per_class(losses, labels, 5, **UNCUT, random_state=0)
    np.testing.assert_allclose(probs.numpy(), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert clean_probabilities_per_class(losses[:0], labels[:0], 5, **UNCUT, random_state=0).shape == (0,)


def test_one_bad_loss_of_one_class_is_refused() -> None:
    losses = torch.tensor([0.3, 2.0, float("nan"), 0.1])
    with pytest.raises(DivergedError, match="the mixture cannot be fitted: "):
        clean_probabilities_per_class(losses, torch.tensor([0, 0, 1, 1]), 2, **UNCUT, random_state=0)
