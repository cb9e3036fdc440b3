"""Divergences between class distributions, from log-probabilities.

Log-probabilities come from log-softmax, or from the logarithm of any distribution: a probability of 0 is ``-inf``.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_divergence(log_probs_BC: Tensor, log_others_BC: Tensor) -> Tensor:
    r"""Compute :math:`\mathrm{KL}(p_b \| q_b) = \sum_c p_{bc} (\log p_{bc} - \log q_{bc})` for every row, in nats.

    Entries with :math:`p = 0` count 0, whatever ``q`` is. Gradient flows to both.

    Args:
        log_probs_BC: ``(B, C)``, floating point: :math:`\log p`.
        log_others_BC: ``(B, C)``: :math:`\log q`.

    Returns:
        ``(B,)``, non-negative up to rounding; infinite where ``q`` is 0 and ``p`` is not.

    Raises:
        ValueError: The two shapes differ.

    >>> p = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    >>> q = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.5, 0.0]])
    >>> kl_divergence(p.log(), q.log())
    tensor([0.0851, 0.6931])
    """
    _require_equal_shapes(log_probs_BC, log_others_BC)
    # Replaced before the difference is taken: inf - inf is NaN, and so is its gradient even where it is masked later.
    absent_BC = log_probs_BC.exp() == 0
    log_probs_BC = log_probs_BC.masked_fill(absent_BC, 0.0)
    log_others_BC = log_others_BC.masked_fill(absent_BC, 0.0)
    return (log_probs_BC.exp() * (log_probs_BC - log_others_BC)).sum(dim=1)


def jensen_shannon_bits(log_probs_BC: Tensor, log_others_BC: Tensor) -> Tensor:
    r"""Compute the Jensen-Shannon divergence of every row in bits (Lin 1991, eq. 3.3 with equal weights).

    With :math:`m = (p + q) / 2`, taken in the log domain:

    .. math:: \tfrac12 \sum_c p_c \log_2 \frac{p_c}{m_c} + \tfrac12 \sum_c q_c \log_2 \frac{q_c}{m_c}

    Gradient flows to both.

    Args:
        log_probs_BC: ``(B, C)``, floating point: :math:`\log p`.
        log_others_BC: ``(B, C)``: :math:`\log q`.

    Returns:
        ``(B,)`` in [0, 1]: 0 for equal rows, 1 for rows without a class in common.

    Raises:
        ValueError: The two shapes differ.

    >>> p = torch.tensor([[0.7, 0.1, 0.1, 0.05, 0.05], [1.0, 0.0, 0.0, 0.0, 0.0]])
    >>> q = torch.tensor([[0.4, 0.15, 0.15, 0.15, 0.15], [0.0, 0.5, 0.5, 0.0, 0.0]])
    >>> jensen_shannon_bits(p.log(), q.log())
    tensor([0.0749, 1.0000])
    """
    _require_equal_shapes(log_probs_BC, log_others_BC)
    # The lowest finite number still has probability 0, but where both have it the gradient of logaddexp is no NaN.
    lowest = torch.finfo(log_probs_BC.dtype).min
    log_probs_BC, log_others_BC = log_probs_BC.clamp(min=lowest), log_others_BC.clamp(min=lowest)
    log_mean_BC = torch.logaddexp(log_probs_BC, log_others_BC) - math.log(2.0)
    nats_B = kl_divergence(log_probs_BC, log_mean_BC) + kl_divergence(log_others_BC, log_mean_BC)
    return (nats_B / (2.0 * math.log(2.0))).clamp(0.0, 1.0)


def _require_equal_shapes(log_probs_BC: Tensor, log_others_BC: Tensor) -> None:
    if log_probs_BC.shape != log_others_BC.shape:
        raise ValueError(
            f"log-probabilities must have one shape, got {tuple(log_probs_BC.shape)} and {tuple(log_others_BC.shape)}"
        )
