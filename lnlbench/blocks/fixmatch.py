"""Learning from unlabelled images: confident predictions on weak views teach the strong ones (FixMatch).

Shapes: B batch, C classes.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def pseudo_label_loss(
    weak_logits_BC: Tensor, strong_logits_BC: Tensor, threshold: float, *, hard: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Compute cross-entropy of strong views with confident predictions on weak ones (Sohn et al. 2020, eq. 4).

    With :math:`q_b = \mathrm{softmax}(\text{weak}_b)`, which is held constant:

    .. math:: \frac1B \sum_b 1[\max q_b > \delta] \cdot
              \Bigl(- \sum_c q_{bc} \log \mathrm{softmax}(\text{strong}_b)_c\Bigr)

    The sum is divided by B, not by the number of rows kept. Gradient flows to the strong logits only.

    Args:
        weak_logits_BC: ``(B, C)``, floating point.
        strong_logits_BC: ``(B, C)``, floating point.
        threshold: ``delta``; a row is kept if its largest probability is above.
        hard: Teach the most probable class (FixMatch) instead of all probabilities (Miao et al. 2023, CSS).

    Returns:
        The loss, a non-negative scalar, and the share of rows kept, without gradient; both 0 if ``B`` is 0.

    Raises:
        ValueError: The two shapes differ.

    >>> import torch
    >>> weak = torch.tensor([[6.0, 0.0, 1.0], [2.0, 1.5, 0.0], [0.0, 5.0, 0.5]])
    >>> strong = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    >>> pseudo_label_loss(weak, strong, 0.95)
    (tensor(0.4307), tensor(0.6667))
    """
    confidence_B, losses_B = _pseudo_labelled(weak_logits_BC, strong_logits_BC, hard=hard)
    rows = max(losses_B.shape[0], 1)
    kept_B = (confidence_B > threshold).to(confidence_B.dtype)
    return (kept_B * losses_B).sum() / rows, kept_B.sum() / rows


def pseudo_label_losses(
    weak_logits_BC: Tensor, strong_logits_BC: Tensor, threshold: float, *, hard: bool
) -> tuple[Tensor, Tensor]:
    r"""Compute the terms of :func:`pseudo_label_loss` for every sample (Fan & Li 2025, CCL, eq. 7).

    Here a row whose largest probability equals the threshold is kept too. Gradient flows to the strong logits only.

    Args:
        weak_logits_BC: ``(B, C)``, floating point.
        strong_logits_BC: ``(B, C)``, floating point.
        threshold: A row is kept if its largest probability is no less.
        hard: Teach the most probable class (CCL) instead of all probabilities.

    Returns:
        The losses ``(B,)``, 0 in rows that are not kept, and ``(B,)`` without gradient: 1 where a row is kept, else 0.

    Raises:
        ValueError: The two shapes differ.

    >>> import torch
    >>> weak = torch.tensor([[6.0, 0.0, 1.0], [2.0, 1.5, 0.0], [0.0, 5.0, 0.5]])
    >>> strong = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    >>> pseudo_label_losses(weak, strong, 0.95, hard=True)
    (tensor([0.4076, 0.0000, 0.8620]), tensor([1., 0., 1.]))
    """
    confidence_B, losses_B = _pseudo_labelled(weak_logits_BC, strong_logits_BC, hard=hard)
    kept_B = (confidence_B >= threshold).to(confidence_B.dtype)
    return kept_B * losses_B, kept_B


def _pseudo_labelled(weak_logits_BC: Tensor, strong_logits_BC: Tensor, *, hard: bool) -> tuple[Tensor, Tensor]:
    """Return the weak views' largest probabilities, and the cross-entropy of the strong views with what they say."""
    if weak_logits_BC.shape != strong_logits_BC.shape:
        raise ValueError(
            f"weak and strong logits must have one shape, got {tuple(weak_logits_BC.shape)} "
            f"and {tuple(strong_logits_BC.shape)}"
        )
    probs_BC = F.softmax(weak_logits_BC.detach(), dim=1)
    confidence_B, class_B = probs_BC.max(dim=1)
    target = class_B if hard else probs_BC
    return confidence_B, F.cross_entropy(strong_logits_BC, target, reduction="none")
