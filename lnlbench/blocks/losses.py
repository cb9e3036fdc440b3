"""Losses on logits and soft targets.

All of them work from log-softmax, so large logits neither overflow nor lose their gradient, and all return a finite
zero for a batch without rows.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def cross_entropy_per_sample(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    r"""Compute :math:`\ell_b = -\log \mathrm{softmax}(z_b)_{y_b}` for every sample.

    Gradient flows to the logits.

    Args:
        logits_BC: ``(B, C)``, floating point.
        labels_B: ``(B,)``, int64 in [0, C).

    Returns:
        ``(B,)``, dtype of the logits, non-negative.

    >>> cross_entropy_per_sample(torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
    tensor([0.1698, 1.5514])
    """
    return F.cross_entropy(logits_BC, labels_B, reduction="none")


def soft_cross_entropy_per_sample(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    r"""Compute :math:`\ell_b = -\sum_c t_{bc} \log \mathrm{softmax}(z_b)_c` for every sample.

    Gradient flows to logits and, if they ask for it, to targets.

    Args:
        logits_BC: ``(B, C)``, floating point.
        targets_BC: ``(B, C)``, floating point, rows of probabilities.

    Returns:
        ``(B,)``, non-negative.

    Raises:
        ValueError: The two shapes differ.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> soft_cross_entropy_per_sample(logits, torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]))
    tensor([0.3698, 1.0514])
    """
    return -_weighted_log_probs(logits_BC, targets_BC).sum(dim=1)


def soft_cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    r"""Compute cross-entropy with soft targets, :math:`-\frac1B \sum_b \sum_c t_{bc} \log \mathrm{softmax}(z_b)_c`.

    Gradient flows to logits and, if they ask for it, to targets.

    Args:
        logits_BC: ``(B, C)``, floating point.
        targets_BC: ``(B, C)``, floating point, rows of probabilities.

    Returns:
        A scalar, non-negative; 0 if ``B`` is 0.

    Raises:
        ValueError: The two shapes differ.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> soft_cross_entropy(logits, torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]))
    tensor(0.7106)
    """
    # One sum over rows and classes; a sum of row sums would round otherwise.
    return -_weighted_log_probs(logits_BC, targets_BC).sum() / max(logits_BC.shape[0], 1)


def squared_error_of_probs(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    r"""Compute the Brier-like error :math:`\frac{1}{BC} \sum_b \sum_c (\mathrm{softmax}(z_b)_c - t_{bc})^2`.

    The mean is over rows *and* classes. Gradient flows to logits and, if they ask for it, to targets.

    Args:
        logits_BC: ``(B, C)``, floating point.
        targets_BC: ``(B, C)``, floating point, rows of probabilities.

    Returns:
        A scalar in [0, 2/C]; 0 if ``B`` is 0.

    Raises:
        ValueError: The two shapes differ.

    >>> logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    >>> squared_error_of_probs(logits, torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]))
    tensor(0.0083)
    """
    _require_equal_shapes(logits_BC, targets_BC)
    return (F.softmax(logits_BC, dim=1) - targets_BC).square().sum() / max(logits_BC.numel(), 1)


def class_balance_divergence(logits_BC: Tensor) -> Tensor:
    r"""Compute how far the mean prediction is from uniform, :math:`\sum_c \frac1C \log \frac{1/C}{\bar p_c}`.

    This is KL(uniform || mean prediction) with :math:`\bar p = \frac1B \sum_b \mathrm{softmax}(z_b)`. The mean is taken
    in the log domain, so a class that nobody predicts costs much but never infinitely much. Gradient flows.

    Args:
        logits_BC: ``(B, C)``, floating point.

    Returns:
        A scalar, non-negative up to rounding, 0 iff the mean prediction is uniform; 0 if ``B`` is 0.

    >>> class_balance_divergence(torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]))
    tensor(0.0063)
    """
    rows, classes = logits_BC.shape
    if rows == 0:
        return logits_BC.sum()
    log_mean_C = torch.logsumexp(F.log_softmax(logits_BC, dim=1), dim=0) - math.log(rows)
    return -log_mean_C.mean() - math.log(classes)


def negative_entropy(logits_BC: Tensor) -> Tensor:
    r"""Compute :math:`\frac1B \sum_b \sum_c p_{bc} \log p_{bc}` with :math:`p = \mathrm{softmax}(z)`.

    Minimising it keeps predictions from becoming over-confident. Gradient flows.

    Args:
        logits_BC: ``(B, C)``, floating point.

    Returns:
        A scalar in [-log C, 0]; 0 if ``B`` is 0.

    >>> negative_entropy(torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    tensor(-0.7498)
    >>> negative_entropy(torch.zeros(1, 3))
    tensor(-1.0986)
    """
    log_probs_BC = F.log_softmax(logits_BC, dim=1)
    return (log_probs_BC.exp() * log_probs_BC).sum() / max(logits_BC.shape[0], 1)


def _weighted_log_probs(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    _require_equal_shapes(logits_BC, targets_BC)
    return targets_BC * F.log_softmax(logits_BC, dim=1)


def _require_equal_shapes(logits_BC: Tensor, targets_BC: Tensor) -> None:
    if logits_BC.shape != targets_BC.shape:
        raise ValueError(
            f"logits and targets must have one shape, got {tuple(logits_BC.shape)} and {tuple(targets_BC.shape)}"
        )
