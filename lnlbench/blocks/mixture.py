"""Which samples are clean: a mixture of two Gaussians fitted to per-sample losses.

Shapes: N training set.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lnlbench.errors import DivergedError


def min_max_normalise(values_N: Tensor) -> Tensor:
    r"""Map values linearly onto [0, 1]: :math:`(v_n - \min v) / (\max v - \min v)`; equal values all become 0.

    Gradient flows, though its use is on detached losses. Nothing waits for the device.

    Args:
        values_N: ``(N,)``, floating point.

    Returns:
        ``(N,)``, dtype and device of the input, in [0, 1]. Values that are not finite stay so.

    >>> min_max_normalise(torch.tensor([0.1, 0.3, 5.1, 2.6]))
    tensor([0.0000, 0.0400, 1.0000, 0.5000])
    >>> min_max_normalise(torch.tensor([0.7, 0.7]))
    tensor([0., 0.])
    """
    if values_N.numel() == 0:
        return values_N
    low, high = values_N.aminmax()
    span = high - low
    return (values_N - low) / torch.where(span == 0, torch.ones_like(span), span)


@dataclass(frozen=True)
class GaussianPair:
    r"""Two Gaussians on a line, the one with the smaller mean first: :math:`\sum_k \pi_k N(v; \mu_k, s_k)`.

    >>> pair = GaussianPair(weights=(0.55, 0.45), means=(0.05, 0.6), variances=(0.003, 0.04))
    >>> pair.low_probs(torch.tensor([0.0, 0.2, 0.3], dtype=torch.float64))
    tensor([9.9624e-01, 4.3679e-01, 4.1126e-04])
    """

    weights: tuple[float, float]
    """Mixing weights ``pi``, positive, sum 1."""
    means: tuple[float, float]
    """Means ``mu``, ascending."""
    variances: tuple[float, float]
    """Variances ``s``, positive."""

    def low_probs(self, values_N: Tensor) -> Tensor:
        r"""Return the posterior of the first component, :math:`\pi_0 N_0(v) / (\pi_0 N_0(v) + \pi_1 N_1(v))`.

        Computed in float64 from log densities, so that it is right in the far tails as well. Gradient flows.

        Args:
            values_N: ``(N,)``, floating point.

        Returns:
            ``(N,)``, float32, in [0, 1], on the input's device.
        """
        values_N = values_N.double()
        low_N, high_N = (
            math.log(weight) - 0.5 * math.log(variance) - (values_N - mean).square() / (2.0 * variance)
            for weight, mean, variance in zip(self.weights, self.means, self.variances, strict=True)
        )
        return torch.sigmoid(low_N - high_N).float()


def fit_gaussian_pair(
    values_N: Tensor, *, max_iter: int, tol: float, reg_covar: float, random_state: int
) -> GaussianPair:
    """Fit a mixture of two Gaussians by expectation maximisation from one k-means start, in float64 on the CPU.

    Args:
        values_N: ``(N,)``, floating point, ``N >= 2``.
        max_iter: Most EM iterations.
        tol: EM stops when the mean log-likelihood rises by less than this.
        reg_covar: Added to both variances, so that neither can collapse.
        random_state: Seed of the k-means start.

    Returns:
        The fitted pair.

    Raises:
        DivergedError: A value is not finite.

    >>> losses = torch.tensor([0, 0.04, 0.02, 0.08, 0.06, 0.62, 0.78, 0.70, 0.56, 1, 0.03, 0.76])
    >>> pair = fit_gaussian_pair(losses, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    >>> [round(mean, 4) for mean in pair.means], [round(variance, 4) for variance in pair.variances]
    ([0.0383, 0.7367], [0.0012, 0.0202])
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    samples = values_N.detach().double().cpu().reshape(-1, 1)
    bad = int((~samples.isfinite()).sum())
    if bad:
        raise DivergedError(f"the mixture cannot be fitted: {bad} of {len(samples)} values are not finite")
    mixture = GaussianMixture(
        n_components=2, max_iter=max_iter, tol=tol, reg_covar=reg_covar, random_state=random_state
    )
    with warnings.catch_warnings():
        # EM is cut short on purpose: methods prescribe a few iterations, and that they did not converge is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(samples.numpy())
    low, high = mixture.means_.ravel().argsort(kind="stable").tolist()
    weights, means, variances = mixture.weights_.ravel(), mixture.means_.ravel(), mixture.covariances_.ravel()
    return GaussianPair(
        weights=(float(weights[low]), float(weights[high])),
        means=(float(means[low]), float(means[high])),
        variances=(float(variances[low]), float(variances[high])),
    )


def clean_probabilities(losses_N: Tensor, *, max_iter: int, tol: float, reg_covar: float, random_state: int) -> Tensor:
    """Return each sample's probability of being clean: the posterior of the small-loss Gaussian.

    Losses that are all equal separate nothing; then every sample counts as clean. No gradient flows.

    Args:
        losses_N: ``(N,)``, floating point: per-sample losses, as a rule from :func:`min_max_normalise`.
        max_iter: See :func:`fit_gaussian_pair`, likewise the three below.
        tol: Stopping tolerance of EM.
        reg_covar: Added to both variances.
        random_state: Seed of the k-means start.

    Returns:
        ``(N,)``, float32, in [0, 1], on the input's device.

    Raises:
        DivergedError: A loss is not finite.

    >>> losses = torch.tensor([0, 0.04, 0.02, 0.08, 0.06, 0.62, 0.78, 0.70, 0.56, 1, 0.03, 0.76])
    >>> clean_probabilities(losses, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).round(decimals=3)
    tensor([1., 1., 1., 1., 1., 0., 0., 0., 0., 0., 1., 0.])
    """
    losses_N = losses_N.detach()
    if losses_N.numel() == 0 or bool((losses_N == losses_N[0]).all()):
        if not bool(losses_N.isfinite().all()):
            raise DivergedError(f"the mixture cannot be fitted: none of {len(losses_N)} values is finite")
        return torch.ones(losses_N.shape, dtype=torch.float32, device=losses_N.device)
    pair = fit_gaussian_pair(losses_N, max_iter=max_iter, tol=tol, reg_covar=reg_covar, random_state=random_state)
    return pair.low_probs(losses_N)


def clean_probabilities_per_class(
    losses_N: Tensor,
    labels_N: Tensor,
    num_classes: int,
    *,
    max_iter: int,
    tol: float,
    reg_covar: float,
    random_state: int,
) -> Tensor:
    """Fit a mixture to the losses of each class by itself, and return each sample's probability of being clean.

    The losses of a class are normalised by :func:`min_max_normalise` before, and what :func:`clean_probabilities` says
    of equal losses holds for a class: of fewer than two distinct losses, all samples count as clean.

    Args:
        losses_N: ``(N,)``, floating point: per-sample losses.
        labels_N: int64 in [0, C), on the device of the losses.
        num_classes: Number of classes C.
        max_iter: See :func:`fit_gaussian_pair`, likewise the three below.
        tol: Stopping tolerance of EM.
        reg_covar: Added to both variances.
        random_state: Seed of the k-means starts.

    Returns:
        ``(N,)``, float32, in [0, 1], on the input's device.

    Raises:
        DivergedError: A loss is not finite.

    >>> losses, labels = torch.tensor([0.1, 0.2, 3.0, 7.0, 7.1, 9.0, 5.0]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    >>> clean_probabilities_per_class(
    ...     losses, labels, 3, max_iter=100, tol=1e-3, reg_covar=1e-6, random_state=0
    ... ).round(decimals=3)
    tensor([1., 1., 0., 1., 1., 0., 1.])
    """
    probs_N = torch.ones(losses_N.shape, dtype=torch.float32, device=losses_N.device)
    for label in range(num_classes):
        of_class_N = labels_N == label
        probs_N[of_class_N] = clean_probabilities(
            min_max_normalise(losses_N[of_class_N].detach()),
            max_iter=max_iter,
            tol=tol,
            reg_covar=reg_covar,
            random_state=random_state,
        )
    return probs_N
