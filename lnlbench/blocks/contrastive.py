"""Contrastive losses on two views, or two networks' features, of each image.

:func:`nt_xent` is one loss of all pairs. The others share a matrix of similarities and give one value per anchor, so
that a method can weight its samples.

Shapes: B batch, D features, A anchors, Z both views (2B).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lnlbench.blocks.divergences import kl_divergence


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float, *, symmetric: bool = False) -> Tensor:
    r"""Compute the normalised-temperature cross-entropy (Chen et al. 2020, SimCLR, eq. 1) of two views.

    With all features scaled to length 1 and :math:`Z = [a_1 \ldots a_B, b_1 \ldots b_B]`:

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


def similarity(anchors_BD: Tensor, candidates_BD: Tensor, temperature: float) -> Tensor:
    r"""Compute the cosine of every anchor with every candidate, over the temperature.

    Anchor ``i`` and candidate ``i`` belong to the same image. A feature of length 0 has similarity 0 with everything.
    Gradient flows to both.

    Args:
        anchors_BD: ``(B, D)``, floating point, of any length.
        candidates_BD: ``(B, D)``.
        temperature: Above 0.

    Returns:
        ``(B, B)``, anchors in rows, in [-1/temperature, 1/temperature]; float32, or float64 where the features are.

    Raises:
        ValueError: The two shapes differ, or ``temperature`` is not above 0.

    >>> strong = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> weak = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> similarity(strong, weak, 0.5)
    tensor([[1.6000, 0.0000, 1.2000],
            [1.9200, 1.6000, 2.0000],
            [1.2000, 2.0000, 1.6000]])
    """
    if anchors_BD.shape != candidates_BD.shape:
        raise ValueError(
            f"anchors and candidates must have one shape, got {tuple(anchors_BD.shape)} and "
            f"{tuple(candidates_BD.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    # Half precision would round similarities that are then divided by small temperatures.
    dtype = torch.promote_types(anchors_BD.dtype, torch.float32)
    anchors_BD, candidates_BD = F.normalize(anchors_BD.to(dtype), dim=1), F.normalize(candidates_BD.to(dtype), dim=1)
    return anchors_BD @ candidates_BD.T / temperature


def instance_contrast(similarity_BB: Tensor) -> Tensor:
    r"""Compute how hard it is to tell an anchor's own candidate from the others (Fan & Li 2025, CCL, eq. 5).

    :math:`-\log \mathrm{softmax}(S_i)_i`: cross-entropy of choosing among all B candidates. Gradient flows.

    Args:
        similarity_BB: ``(B, B)``, floating point, anchors in rows: see :func:`similarity`.

    Returns:
        ``(B,)``, non-negative; ``log B`` for equal similarities.

    >>> instance_contrast(torch.tensor([[1.6, 0.0, 1.2], [1.92, 1.6, 2.0], [1.2, 2.0, 1.6]]))
    tensor([0.6271, 1.3530, 1.1513])
    """
    itself_B = torch.arange(similarity_BB.shape[0], device=similarity_BB.device)
    return F.cross_entropy(similarity_BB, itself_B, reduction="none")


def class_contrast(similarity_BB: Tensor, classes_B: Tensor) -> Tensor:
    r"""Compute how hard it is to tell candidates of the anchor's class from the others (Fan & Li 2025, CCL, eq. 9, 10).

    :math:`-\log \sum_{j : c_j = c_i} \mathrm{softmax}(S_i)_j`: one logarithm of a sum, to which the anchor's own
    candidate always belongs. Gradient flows.

    Args:
        similarity_BB: ``(B, B)``, floating point, anchors in rows: see :func:`similarity`.
        classes_B: ``(B,)``, integers: the class of anchor and candidate ``i``.

    Returns:
        ``(B,)``, non-negative; 0 where all classes are equal, :func:`instance_contrast` where all differ.

    >>> similarity_BB = torch.tensor([[1.6, 0.0, 1.2], [1.92, 1.6, 2.0], [1.2, 2.0, 1.6]])
    >>> class_contrast(similarity_BB, torch.tensor([0, 1, 1]))
    tensor([0.6271, 0.4400, 0.2382])
    """
    different_BB = classes_B[:, None] != classes_B
    positives_B = torch.logsumexp(similarity_BB.masked_fill(different_BB, -torch.inf), dim=1)
    return torch.logsumexp(similarity_BB, dim=1) - positives_B


def mimicry(similarity_BB: Tensor) -> Tensor:
    r"""Compute how far anchors and candidates are from seeing each other alike (Fan & Li 2025, CCL, eq. 6, 12).

    :math:`\mathrm{KL}(\mathrm{softmax}(S_i) \| \mathrm{softmax}(S^\top_i))`: row ``i``, as anchor ``i`` sees the
    candidates, against column ``i``, as candidate ``i`` sees the anchors. Gradient flows through both.

    Args:
        similarity_BB: ``(B, B)``, floating point, anchors in rows: see :func:`similarity`.

    Returns:
        ``(B,)``, non-negative up to rounding; 0 for a symmetric matrix.

    >>> mimicry(torch.tensor([[1.6, 0.0, 1.2], [1.92, 1.6, 2.0], [1.2, 2.0, 1.6]]))
    tensor([0.2801, 0.3214, 0.0000])
    """
    return kl_divergence(F.log_softmax(similarity_BB, dim=1), F.log_softmax(similarity_BB.T, dim=1))
