"""Which samples are clean: a mixture of two Gaussians fitted to loss and probability of the given label together.

Shapes: N training set.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnlbench.errors import DivergedError

Covariance = Literal["full", "tied"]


@dataclass(frozen=True, eq=False)
class GaussianPair2d:
    r"""Two Gaussians in the plane, the clean one first: :math:`\sum_k \alpha_k N(\omega; \mu_k, \Sigma_k)`.

    A point is :math:`\omega = (l, p)`: a loss and the probability of the given label, both in [0, 1].

    >>> pair = GaussianPair2d(
    ...     weights=np.array([0.5, 0.5]),
    ...     means=np.array([[0.1, 0.8], [0.6, 0.1]]),
    ...     covariances=np.array([[[0.03, -0.005], [-0.005, 0.05]]] * 2),
    ... )
    >>> pair.clean_probs(torch.tensor([0.1, 0.35, 0.7]), torch.tensor([0.8, 0.45, 0.7]))
    tensor([0.9997, 0.5000, 0.1228])
    """

    weights: NDArray[np.float64]
    """``(2,)``, mixing weights ``alpha``, sum 1."""
    means: NDArray[np.float64]
    """``(2, 2)``, means ``mu``, one a row."""
    covariances: NDArray[np.float64]
    """``(2, 2, 2)``, covariances ``Sigma``, positive definite."""

    @property
    def agrees(self) -> bool:
        """Whether the clean component has both the smaller loss and the larger probability."""
        return bool(self.means[0, 0] <= self.means[1, 0] and self.means[0, 1] >= self.means[1, 1])

    def clean_log_odds(self, losses_N: Tensor, probs_N: Tensor) -> Tensor:
        r"""Return :math:`\log \alpha_0 N_0(\omega) - \log \alpha_1 N_1(\omega)`, by which samples can be ranked.

        Posteriors of well separated components are mostly 0 or 1 exactly, and no longer tell samples apart.

        Args:
            losses_N: ``(N,)``, floating point.
            probs_N: ``(N,)``, floating point.

        Returns:
            ``(N,)``, float64, on the input's device.
        """
        losses_N, probs_N = losses_N.double(), probs_N.double()
        return self._log_density(0, losses_N, probs_N) - self._log_density(1, losses_N, probs_N)

    def clean_probs(self, losses_N: Tensor, probs_N: Tensor) -> Tensor:
        r"""Return the posterior of the clean component, :math:`\alpha_0 N_0(\omega) / \sum_k \alpha_k N_k(\omega)`.

        Computed in float64 from log densities, so that it is right in the far tails as well.

        Args:
            losses_N: ``(N,)``, floating point.
            probs_N: ``(N,)``, floating point.

        Returns:
            ``(N,)``, float32, in [0, 1], on the input's device.
        """
        return torch.sigmoid(self.clean_log_odds(losses_N, probs_N)).float()

    def _log_density(self, k: int, losses_N: Tensor, probs_N: Tensor) -> Tensor:
        (a, b), (_, d) = np.linalg.inv(self.covariances[k]).tolist()
        x_N, y_N = losses_N - float(self.means[k, 0]), probs_N - float(self.means[k, 1])
        with np.errstate(divide="ignore"):
            constant = float(np.log(self.weights[k]) - 0.5 * np.linalg.slogdet(self.covariances[k]).logabsdet)
        distance_N: Tensor = a * x_N.square() + 2.0 * b * x_N * y_N + d * y_N.square()
        return constant - 0.5 * distance_N


def fit_gaussian_pair_2d(
    losses_N: Tensor,
    probs_N: Tensor,
    *,
    covariance: Covariance = "full",
    max_iter: int,
    tol: float,
    reg_covar: float,
    random_state: int,
) -> GaussianPair2d:
    r"""Fit a mixture of two Gaussians to points (loss, probability) by expectation maximisation, in float64 on the CPU.

    The clean component is :math:`\arg\min_k \mu_{k1} + 1 - \mu_{k2}`: small loss and large probability of the given
    label. "The smaller mean" (Miao et al. 2023, CSS, section on sample selection) says nothing in the plane. Points
    that are all equal separate nothing; then all of them belong to the clean component.

    Args:
        losses_N: ``(N,)``, floating point, ``N >= 1``; as a rule from
            :func:`lnlbench.blocks.mixture.min_max_normalise`.
        probs_N: ``(N,)``, floating point: probabilities of the given labels.
        covariance: ``"full"``: each component has its own covariance; ``"tied"``: one for both.
        max_iter: Most EM iterations.
        tol: EM stops when the mean log-likelihood rises by less than this.
        reg_covar: Added to all variances, so that none can collapse.
        random_state: Seed of the k-means start.

    Returns:
        The fitted pair, clean component first.

    Raises:
        DivergedError: A value is not finite.

    >>> losses = torch.tensor([0, 0.04, 0.02, 0.16, 0.48, 0.62, 0.78, 0.70, 0.56, 1, 0.03, 0.76])
    >>> probs = torch.tensor([0.95, 0.80, 0.70, 0.30, 0.90, 0.02, 0.01, 0.05, 0, 0.03, 0.60, 0.40])
    >>> pair = fit_gaussian_pair_2d(losses, probs, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    >>> pair.means.round(3).tolist()
    [[0.122, 0.708], [0.737, 0.085]]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    points = torch.stack([losses_N, probs_N], dim=1).detach().double().cpu().numpy()
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise DivergedError(f"the mixture cannot be fitted: {bad} of {len(points)} points are not finite")
    if (points == points[0]).all():
        return GaussianPair2d(np.array([1.0, 0.0]), np.stack([points[0]] * 2), np.stack([np.eye(2)] * 2))
    mixture = GaussianMixture(
        n_components=2,
        covariance_type=covariance,
        max_iter=max_iter,
        tol=tol,
        reg_covar=reg_covar,
        random_state=random_state,
    )
    with warnings.catch_warnings():
        # EM is cut short on purpose: methods prescribe a few iterations, and that they did not converge is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(points)
    order = (mixture.means_[:, 0] + 1.0 - mixture.means_[:, 1]).argsort(kind="stable")
    covariances = mixture.covariances_ if covariance == "full" else np.stack([mixture.covariances_] * 2)
    return GaussianPair2d(mixture.weights_[order], mixture.means_[order], covariances[order])
