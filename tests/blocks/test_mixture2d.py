from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lnlbench.blocks.mixture import clean_probabilities
from lnlbench.blocks.mixture2d import GaussianPair2d, fit_gaussian_pair_2d
from lnlbench.errors import DivergedError

LOSSES = torch.tensor([0, 0.04, 0.02, 0.16, 0.48, 0.62, 0.78, 0.70, 0.56, 1, 0.03, 0.76], dtype=torch.float64)
PROBS = torch.tensor([0.95, 0.80, 0.70, 0.30, 0.90, 0.02, 0.01, 0.05, 0, 0.03, 0.60, 0.40], dtype=torch.float64)
SETTINGS: dict[str, Any] = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}


def clouds(generator: np.random.Generator, clean: int = 70, noisy: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    losses = np.concatenate([generator.normal(0.1, 0.04, clean), generator.normal(0.6, 0.15, noisy)])
    probs = np.concatenate([generator.normal(0.8, 0.10, clean), generator.normal(0.2, 0.10, noisy)])
    return torch.from_numpy(losses), torch.from_numpy(probs)


@pytest.mark.parametrize(
    ("weights", "covariances", "expected"),
    [
        (
            [0.5, 0.5],
            [[[0.03, -0.005], [-0.005, 0.05]]] * 2,
            [0.999676, 0.500000, 0.025062, 0.122808, 0.826256],
        ),
        (
            [0.4, 0.6],
            [[[0.01, 0.0], [0.0, 0.04]], [[0.04, -0.01], [-0.01, 0.02]]],
            [0.999996, 0.162594, 0.000944, 0.000944, 0.626493],
        ),
    ],
)
def test_worked_posterior(weights: list[float], covariances: list[Any], expected: list[float]) -> None:
    # Worked with 1 - p as the second coordinate: means and off-diagonal signs are mirrored here.
    pair = GaussianPair2d(np.array(weights), np.array([[0.1, 0.8], [0.6, 0.1]]), np.array(covariances))
    points = torch.tensor([[0.1, 0.2], [0.35, 0.55], [0.3, 0.9], [0.7, 0.3], [0.2, 0.6]], dtype=torch.float64)
    probs = pair.clean_probs(points[:, 0], 1 - points[:, 1])
    assert probs.dtype == torch.float32
    np.testing.assert_allclose(probs.numpy(), expected, atol=6e-7)


def test_posterior_is_right_in_the_far_tails() -> None:
    pair = GaussianPair2d(np.array([0.5, 0.5]), np.array([[0.0, 1.0], [1.0, 0.0]]), np.stack([1e-3 * np.eye(2)] * 2))
    assert pair.clean_probs(torch.tensor([-90.0, 90.0]), torch.tensor([90.0, -90.0])).tolist() == [1.0, 0.0]


def test_log_odds_tell_samples_apart_where_posteriors_do_not() -> None:
    pair = GaussianPair2d(np.array([0.4, 0.6]), np.array([[0.1, 0.9], [0.8, 0.1]]), np.stack([1e-3 * np.eye(2)] * 2))
    losses, probs = torch.tensor([0.1, 0.12, 0.5]), torch.tensor([0.9, 0.8, 0.4])
    odds = pair.clean_log_odds(losses, probs)
    assert odds.dtype == torch.float64
    squares = [
        [(x - a) ** 2 + (y - b) ** 2 for x, y in zip(losses.tolist(), probs.tolist(), strict=True)]
        for a, b in pair.means.tolist()
    ]
    expected = np.log(0.4 / 0.6) - 0.5 * (np.array(squares[0]) - np.array(squares[1])) / 1e-3
    np.testing.assert_allclose(odds.numpy(), expected, rtol=1e-5)
    assert pair.clean_probs(losses, probs)[:2].tolist() == [1.0, 1.0]
    assert odds[0] > odds[1] > odds[2]


@pytest.mark.parametrize("random_state", range(5))
@pytest.mark.parametrize(
    ("covariance", "clean_mean", "expected"),
    [
        ("full", [0.121769, 0.708305], [1, 1, 1, 0.999547, 1, 0.000022, 0, 0.000005, 0.000077, 0, 1, 0.000918]),
        ("tied", None, [1, 1, 1, 0.995664, 0.999896, 0.000002, 0, 0, 0.000006, 0, 1, 0.000107]),
    ],
)
def test_worked_mixture_whatever_the_start(
    covariance: Literal["full", "tied"], clean_mean: list[float] | None, expected: list[float], random_state: int
) -> None:
    pair = fit_gaussian_pair_2d(LOSSES, PROBS, covariance=covariance, **SETTINGS, random_state=random_state)
    np.testing.assert_allclose(pair.clean_probs(LOSSES, PROBS).numpy(), expected, atol=1e-6)
    if clean_mean is not None:
        np.testing.assert_allclose(pair.means, [clean_mean, [0.736622, 0.084969]], atol=1e-6)
    else:
        np.testing.assert_array_equal(pair.covariances[0], pair.covariances[1])
    assert pair.agrees


def test_a_sample_of_high_loss_is_clean_in_the_plane_only() -> None:
    on_the_line = clean_probabilities(LOSSES, **SETTINGS, random_state=0)
    expected = [0.999943, 0.999882, 0.999922, 0.990231, 0, 0, 0, 0, 0, 0, 0.999905, 0]
    np.testing.assert_allclose(on_the_line.numpy(), expected, atol=1e-6)
    pair = fit_gaussian_pair_2d(LOSSES, PROBS, **SETTINGS, random_state=0)
    assert pair.clean_probs(LOSSES, PROBS)[4] > 0.999
    # Two mixtures on a line, weighted: the ablation of the paper.
    weighted = 0.2 * on_the_line + 0.8 * clean_probabilities(1 - PROBS, **SETTINGS, random_state=0)
    worked = [0.999988, 0.999931, 0.999171, 0.200598, 0.799997, 0, 0, 0, 0, 0, 0.983998, 0.065044]
    np.testing.assert_allclose(weighted.numpy(), worked, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_slow_expectation_maximisation(generator: np.random.Generator, tied: bool) -> None:
    """EM written out, from the start that two well separated clusters leave no doubt about."""
    losses, probs = clouds(generator)
    points = np.stack([losses.numpy(), probs.numpy()], axis=1)
    shares = np.stack([points[:, 0] < 0.35, points[:, 0] >= 0.35]).astype(float)

    def maximise() -> tuple[list[float], list[NDArray[Any]], list[NDArray[Any]]]:
        totals = [share.sum() for share in shares]
        means = [share @ points / total for share, total in zip(shares, totals, strict=True)]
        scatters = [
            sum(s * np.outer(x - m, x - m) for s, x in zip(share, points, strict=True))
            for share, m in zip(shares, means, strict=True)
        ]
        if tied:
            scatters = [sum(scatters) / len(points)] * 2
        else:
            scatters = [scatter / total for scatter, total in zip(scatters, totals, strict=True)]
        return [t / len(points) for t in totals], means, [scatter + 5e-4 * np.eye(2) for scatter in scatters]

    def density(k: int, point: NDArray[Any]) -> float:
        offset = point - means[k]
        power = -0.5 * offset @ np.linalg.solve(covariances[k], offset)
        return float(weights[k] * math.exp(power) / (2 * math.pi * math.sqrt(np.linalg.det(covariances[k]))))

    weights, means, covariances = maximise()
    for _ in range(10):
        densities = np.array([[density(k, point) for point in points] for k in (0, 1)])
        shares = densities / densities.sum(0)
        weights, means, covariances = maximise()

    covariance: Literal["full", "tied"] = "tied" if tied else "full"
    pair = fit_gaussian_pair_2d(
        losses, probs, covariance=covariance, max_iter=10, tol=1e-12, reg_covar=5e-4, random_state=0
    )
    # scikit-learn stops one maximisation earlier when nothing rises any more, hence the tolerance.
    np.testing.assert_allclose(pair.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(pair.means, means, rtol=1e-5)
    np.testing.assert_allclose(pair.covariances, covariances, rtol=1e-4, atol=1e-8)
    expected = [density(0, point) / (density(0, point) + density(1, point)) for point in points]
    np.testing.assert_allclose(pair.clean_probs(losses, probs).numpy(), expected, atol=1e-5)


def test_mirroring_the_second_coordinate_changes_nothing(generator: np.random.Generator) -> None:
    from sklearn.mixture import GaussianMixture

    losses, probs = clouds(generator)
    mirrored = np.stack([losses.numpy(), 1 - probs.numpy()], axis=1)
    reference = GaussianMixture(2, **SETTINGS, random_state=7).fit(mirrored)
    expected = reference.predict_proba(mirrored)[:, reference.means_.sum(1).argmin()]
    pair = fit_gaussian_pair_2d(losses, probs, **SETTINGS, random_state=7)
    np.testing.assert_allclose(pair.clean_probs(losses, probs).numpy(), expected.astype(np.float32), atol=1e-7)


def test_permuted_samples_have_permuted_probabilities(generator: np.random.Generator) -> None:
    losses, probs = clouds(generator)
    order = torch.from_numpy(generator.permutation(len(losses)))
    settings = SETTINGS | {"max_iter": 100, "tol": 1e-9}
    straight = fit_gaussian_pair_2d(losses, probs, **settings, random_state=0).clean_probs(losses, probs)
    permuted = fit_gaussian_pair_2d(losses[order], probs[order], **settings, random_state=0)
    np.testing.assert_allclose(permuted.clean_probs(losses[order], probs[order]).numpy(), straight[order], atol=1e-5)
    assert ((straight >= 0) & (straight <= 1)).all()


def test_clean_component_weighs_both_means() -> None:
    """The noisy component has the larger loss; which mean is smaller in one coordinate alone does not decide."""
    losses = torch.tensor([0.30, 0.32, 0.28, 0.31] * 5 + [0.25, 0.24, 0.26, 0.25] * 5)
    probs = torch.tensor([0.90, 0.88, 0.92, 0.91] * 5 + [0.10, 0.12, 0.08, 0.09] * 5)
    pair = fit_gaussian_pair_2d(losses, probs, **SETTINGS, random_state=0)
    assert (pair.clean_probs(losses, probs) > 0.5).tolist() == [True] * 20 + [False] * 20
    assert not pair.agrees


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_points_are_all_clean(count: int) -> None:
    losses, probs = torch.full((count,), 0.3), torch.full((count,), 0.1)
    pair = fit_gaussian_pair_2d(losses, probs, **SETTINGS, random_state=0)
    assert pair.clean_probs(losses, probs).tolist() == [1.0] * count


@pytest.mark.parametrize("constant", ["losses", "probs"])
def test_one_coordinate_alone_may_be_constant(constant: str) -> None:
    varied, equal = torch.tensor([0.1, 0.12, 0.9, 0.95]), torch.zeros(4)
    losses, probs = (equal, varied) if constant == "losses" else (varied, equal)
    clean = fit_gaussian_pair_2d(losses, probs, **SETTINGS, random_state=0).clean_probs(losses, probs) > 0.5
    assert clean.tolist() == [constant != "losses"] * 2 + [constant == "losses"] * 2


def test_em_cut_short_is_no_warning(generator: np.random.Generator) -> None:
    losses, probs = torch.from_numpy(generator.random((2, 200)))
    pair = fit_gaussian_pair_2d(losses, probs, max_iter=1, tol=1e-12, reg_covar=5e-4, random_state=0)
    assert pair.clean_probs(losses, probs).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(bad: float) -> None:
    losses, probs = LOSSES.clone(), PROBS.clone()
    losses[2], probs[2], probs[5] = bad, bad, bad
    with pytest.raises(DivergedError, match="the mixture cannot be fitted: 2 of 12 points are not finite"):
        fit_gaussian_pair_2d(losses, probs, **SETTINGS, random_state=0)
