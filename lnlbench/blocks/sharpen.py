"""Sharpening of class probabilities.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from torch import Tensor


def sharpen(probs_BC: Tensor, temperature: float) -> Tensor:
    r"""Make each row more peaked: :math:`p_c^{1/T} / \sum_k p_k^{1/T}`.

    ``T = 1`` leaves a normalised row as it is; the smaller ``T``, the closer the row comes to one-hot. Gradient flows.

    Args:
        probs_BC: ``(B, C)``, floating point, non-negative, with a positive entry in every row; rows need not sum to 1.
        temperature: The temperature ``T``, above 0.

    Returns:
        ``(B, C)``, dtype and device of the input, in [0, 1], rows sum to 1.

    Raises:
        ValueError: ``temperature`` is not above 0.

    >>> import torch
    >>> sharpen(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64), 0.5)
    tensor([[0.6579, 0.2368, 0.1053]], dtype=torch.float64)
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    # Scaled to a maximum of 1 first, so that a large power cannot make a whole row underflow to zero.
    powers_BC = (probs_BC / probs_BC.amax(dim=1, keepdim=True)) ** (1.0 / temperature)
    return powers_BC / powers_BC.sum(dim=1, keepdim=True)
