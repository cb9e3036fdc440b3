"""Contrastive loss on two views of each image.

Shapes: B batch, D features, A anchors, Z both views (2B).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float, *, symmetric: bool = False) -> Tensor:
    r"""Compute the normalised-temperature cross-entropy (Chen et al. 2020, SimCLR, eq. 1) of two views.

    With all features scaled to length 1 and :math:`Z = [a_1 \dots a_B, b_1 \dots b_B]`:

    .. math:: -\frac1B \sum_{i=1}^{B} \log \frac{\exp(a_i \cdot b_i / \tau)}{\sum_{j \ne i} \exp(a_i \cdot Z_j / \tau)}

    Anchors are the first views, as Miao et al. 2023 (CSS) write it, or both, as in SimCLR. Gradient flows.

    Args:
        first_BD: ``(B, D)``, floating point, of any length: features of the first views.
        second_BD: ``(B, D)``: features of the second views.
        temperature: ``tau``, above 0.
        symmetric: Average over all 2B anchors instead of the B first views.

    Returns:
        A scalar, non-negative; ``log(2B - 1)`` if all features coincide; 0 if ``B`` is 0.

    Raises:
        ValueError: The two shapes differ, or ``temperature`` is not above 0.

    >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> second = torch.tensor([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]])
    >>> nt_xent(first, second, 0.5), nt_xent(first, second, 0.5, symmetric=True)
    (tensor(0.7324), tensor(0.9762))
    """
    if first_BD.shape != second_BD.shape:
        raise ValueError(f"views must have one shape, got {tuple(first_BD.shape)} and {tuple(second_BD.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    rows = first_BD.shape[0]
    candidates_ZD = F.normalize(torch.cat([first_BD, second_BD]), dim=1)
    anchors_AD = candidates_ZD if symmetric else candidates_ZD[:rows]
    position_Z = torch.arange(2 * rows, device=first_BD.device)
    position_A = position_Z[: anchors_AD.shape[0]]
    # An anchor is no candidate of its own.
    itself_AZ = position_A[:, None] == position_Z
    logits_AZ = (anchors_AD @ candidates_ZD.T / temperature).masked_fill(itself_AZ, -torch.inf)
    positive_A = (position_A + rows) % max(2 * rows, 1)
    return F.cross_entropy(logits_AZ, positive_A, reduction="sum") / max(anchors_AD.shape[0], 1)
