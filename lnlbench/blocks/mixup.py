"""Mixup: convex combinations of images and of their soft targets.

Shapes: B batch, C classes, H and W pixels, M mixed rows (at most B).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def draw_mixup_weight(alpha: float, generator: np.random.Generator) -> float:
    r"""Draw a mixup weight: :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, then :math:`\max(\lambda, 1-\lambda)`.

    The second step keeps a mixed row closer to its own image than to its partner.

    Args:
        alpha: Both parameters of the Beta distribution, above 0; large values concentrate the weight at 1/2.
        generator: Where the randomness comes from; one draw is taken.

    Returns:
        A weight in [0.5, 1].

    Raises:
        ValueError: ``alpha`` is not above 0.

    >>> weights = [draw_mixup_weight(4.0, np.random.default_rng(seed)) for seed in range(100)]
    >>> 0.5 <= min(weights) <= max(weights) <= 1.0
    True
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    weight = float(generator.beta(alpha, alpha))
    return max(weight, 1.0 - weight)


def mixup(images_BCHW: Tensor, targets_BC: Tensor, weight: float, partners_M: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mix row ``m`` with row ``partners_M[m]``: :math:`\lambda v_m + (1-\lambda) v_{\sigma(m)}`, likewise the targets.

    Only the first ``M`` rows are mixed, so a permutation of all rows that is cut short gives the head of the mixed
    batch without the cost of its tail; partners may still come from anywhere. Gradient flows.

    Args:
        images_BCHW: ``(B, ...)``, floating point; any trailing shape. Its memory format is kept.
        targets_BC: ``(B, C)``, floating point.
        weight: The weight ``lambda`` of a row itself, in [0, 1].
        partners_M: ``(M,)``, int64 in [0, B): the partners ``sigma`` of the first ``M`` rows, ``M <= B``.

    Returns:
        Mixed images ``(M, ...)`` and mixed targets ``(M, C)``.

    Raises:
        ValueError: Images and targets differ in their number of rows, or there are more partners than rows.

    >>> import torch
    >>> images, targets = mixup(
    ...     torch.tensor([1.0, 2.0, 3.0, 4.0]),
    ...     torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8]]),
    ...     0.7,
    ...     torch.tensor([2, 0, 3, 1]),
    ... )
    >>> images
    tensor([1.6000, 1.7000, 3.3000, 3.4000])
    >>> targets
    tensor([[0.8500, 0.1500],
            [0.3000, 0.7000],
            [0.4100, 0.5900],
            [0.1400, 0.8600]])
    """
    rows, mixed = images_BCHW.shape[0], partners_M.shape[0]
    if targets_BC.shape[0] != rows:
        raise ValueError(f"images and targets must have equally many rows, got {rows} and {targets_BC.shape[0]}")
    if mixed > rows:
        raise ValueError(f"there must be at most one partner per row, got {mixed} partners for {rows} rows")
    mixed_images = weight * images_BCHW[:mixed] + (1.0 - weight) * images_BCHW[partners_M]
    mixed_targets = weight * targets_BC[:mixed] + (1.0 - weight) * targets_BC[partners_M]
    return mixed_images, mixed_targets
