"""How a network's features arrange the classes, and how far two networks agree in that.

The measures that Fan & Li 2025 (CCL) compare methods by. Everything is computed in float64; a measure that cannot be
computed is NaN. No gradient flows.

Shapes: N images, D features, C classes, P pairs of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROWS, _PAIRS = 256, 4096
"""Rows of a block of the matrix of pairs, and listed pairs in one go: what bounds the memory."""
_NO_DIFFERENCE = 1e-12
"""A squared distance below this share of the squared lengths is rounding."""


def class_variances(features_ND: Tensor, labels_N: Tensor) -> Tensor:
    r"""Compute how widely the features of each class scatter.

    .. math:: v_c = \mathrm{mean}_{n \in c} \|f_n - \bar f_c\|^2

    Args:
        features_ND: ``(N, D)``, floating point.
        labels_N: ``(N,)``, int64: true labels.

    Returns:
        ``(C,)``, float64, non-negative: one value for each class that occurs, in ascending order of the labels.

    >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, 5.0], [5.0, 3.0]])
    >>> class_variances(features, torch.tensor([0, 0, 3, 3, 3]))
    tensor([1.0000, 2.6667], dtype=torch.float64)
    """
    features_ND = features_ND.detach().double()
    classes = sorted(set(labels_N.tolist()))
    variances = [features_ND[labels_N == label].var(dim=0, correction=0).sum() for label in classes]
    return torch.stack(variances) if variances else features_ND.new_empty(0)


def variance_entropy(variances_C: Tensor) -> Tensor:
    r"""Compute the entropy of the classes' shares in the variance.

    .. math:: -\sum_c s_c \log s_c, \qquad s_c = v_c / \sum_k v_k

    The higher, the more evenly the classes scatter; ``log C`` if all do alike. (Fan & Li 2025 compare class variances
    in a figure; the formula is ours.)

    Args:
        variances_C: ``(C,)``, non-negative: from :func:`class_variances`.

    Returns:
        A scalar, float64, in nats, in [0, log C]; NaN if all variances are 0.

    >>> variance_entropy(torch.tensor([1.0, 1.0, 1.0])), variance_entropy(torch.tensor([2.0, 1.0, 1.0]))
    (tensor(1.0986, dtype=torch.float64), tensor(1.0397, dtype=torch.float64))
    """
    variances_C = variances_C.detach().double()
    entropy: Tensor = torch.special.entr(variances_C / variances_C.sum()).sum()
    return entropy


def lca_distances(lines: Sequence[Sequence[str]]) -> Tensor:
    """Compute how far classes are from each other in a tree.

    The distance is half the number of edges on the way through the lowest common ancestor. Where all classes are
    equally deep, that is the height of the ancestor above them: 1 for siblings, 2 for cousins.

    Args:
        lines: For each of the C classes, itself and all its ancestors up to the root, which is the same for all.

    Returns:
        ``(C, C)``, float64, symmetric: a multiple of 1/2, 0 on the diagonal.

    >>> lca_distances([("cat", "mammal", "animal"), ("dog", "mammal", "animal"), ("frog", "animal")])
    tensor([[0.0000, 1.0000, 1.5000],
            [1.0000, 0.0000, 1.5000],
            [1.5000, 1.5000, 0.0000]], dtype=torch.float64)
    """
    nodes = [set(line) for line in lines]
    # What lies between a class and the common ancestor is on its own line only.
    return torch.tensor([[len(one ^ other) / 2 for other in nodes] for one in nodes], dtype=torch.float64)


def top2_lca_distance(logits_NC: Tensor, distances_CC: Tensor) -> Tensor:
    """Compute the mean distance between each image's two most probable classes (Fan & Li 2025, Table 8).

    The lower, the closer in meaning are the classes that the network confuses.

    Args:
        logits_NC: ``(N, C)``, floating point, ``C >= 2``: any monotone score per class.
        distances_CC: ``(C, C)``, symmetric: from :func:`lca_distances`.

    Returns:
        A scalar, float64, non-negative; NaN if N is 0.

    >>> distances = lca_distances([("cat", "mammal", "animal"), ("dog", "mammal", "animal"), ("frog", "animal")])
    >>> top2_lca_distance(torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]), distances)
    tensor(1.2500, dtype=torch.float64)
    """
    first_N, second_N = logits_NC.detach().topk(2, dim=1).indices.unbind(1)
    return distances_CC.double().to(logits_NC.device)[first_N, second_N].mean()


def logit_wasserstein(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    r"""Compute the mean Wasserstein distance between two networks' logits of the same image.

    Each vector counts as a distribution of C equally probable numbers on the line, so that for sorted logits it is
    :math:`\frac1C \sum_c |z_{(c)} - z'_{(c)}|`. Which class a logit belongs to plays no part. (Fan & Li 2025, Figure 3,
    name the distance and give no formula.)

    Args:
        first_NC: ``(N, C)``, floating point: logits of one network.
        second_NC: ``(N, C)``: those of the other.

    Returns:
        A scalar, float64, non-negative; NaN if N is 0.

    Raises:
        ValueError: The two shapes differ.

    >>> logit_wasserstein(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[5.0, 2.0, 0.0]]))
    tensor(0.3333, dtype=torch.float64)
    """
    _require_equal_shapes(first_NC, second_NC)
    first_NC, second_NC = (logits.detach().double().sort(dim=1).values for logits in (first_NC, second_NC))
    return (first_NC - second_NC).abs().mean(dim=1).mean()


def draw_pairs(num_images: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw pairs of different images, uniformly and with replacement.

    Args:
        num_images: N, at least 2.
        count: P, how many pairs.
        generator: On the CPU.

    Returns:
        ``(P, 2)``, int64, in [0, N), on the CPU.

    >>> draw_pairs(2, 4, torch.Generator().manual_seed(0)).sum(dim=1)
    tensor([1, 1, 1, 1])
    """
    first_P = torch.randint(num_images, (count,), generator=generator)
    step_P = torch.randint(1, num_images, (count,), generator=generator)
    return torch.stack([first_P, (first_P + step_P) % num_images], dim=1)


def embedding_consistency(first_ND: Tensor, second_ND: Tensor, pairs_P2: Tensor | None = None) -> Tensor:
    r"""Compute whether two networks place images alike (Fan & Li 2025, eq. 4).

    .. math:: \mathrm{mean}_{a \ne b} \cos(f_0(a) - f_0(b),\; f_1(a) - f_1(b))

    It does not change when either network's features are shifted or scaled, or both are rotated alike. Two networks
    trained apart have no common axes, so that even two good ones may come near 0. A pair that one of the networks maps
    to one point has no direction and is left out.

    Args:
        first_ND: ``(N, D)``, floating point: features of one network.
        second_ND: ``(N, D)``: those of the other.
        pairs_P2: ``(P, 2)``, int64: the pairs to take; all ``N (N - 1) / 2`` if ``None``.

    Returns:
        A scalar, float64, in [-1, 1]; NaN if there is no pair to take.

    Raises:
        ValueError: The two shapes differ; a cosine is defined between vectors of one width.

    >>> first = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> embedding_consistency(first, 3 * first + 1)
    tensor(1., dtype=torch.float64)
    >>> embedding_consistency(first, first * torch.tensor([1.0, -1.0]))
    tensor(0., dtype=torch.float64)
    """
    _require_equal_shapes(first_ND, second_ND)
    # Shifted to the middle, so that less is lost where squared distances are differences of squared lengths.
    first_ND, second_ND = (
        each.double() - each.double().mean(dim=0) for each in (first_ND.detach(), second_ND.detach())
    )
    total, count = first_ND.new_zeros(()), first_ND.new_zeros(())
    num_images = first_ND.shape[0]
    if pairs_P2 is None:
        for start in range(0, num_images, _ROWS):
            # Rows are images a, columns images b from the first row on: each pair comes once, above the diagonal.
            cosines = _cosines_of_block(first_ND[start:], second_ND[start:], min(_ROWS, num_images - start))
            total, count = total + cosines.nansum(), count + (~cosines.isnan()).sum()
    else:
        for part_P2 in torch.split(pairs_P2.to(first_ND.device), _PAIRS):
            cosines = _cosines_of_pairs(first_ND, second_ND, part_P2)
            total, count = total + cosines.nansum(), count + (~cosines.isnan()).sum()
    return total / count


def _cosines_of_block(first_ND: Tensor, second_ND: Tensor, rows: int) -> Tensor:
    """Return the cosine of each of the first rows' images a with each image b after it, NaN elsewhere."""
    products_N = (first_ND * second_ND).sum(dim=1)
    crossed = first_ND[:rows] @ second_ND.T + second_ND[:rows] @ first_ND.T
    products = products_N[:rows, None] + products_N - crossed

    def squares(features_ND: Tensor) -> tuple[Tensor, Tensor]:
        lengths_N = features_ND.square().sum(dim=1)
        lengths = lengths_N[:rows, None] + lengths_N
        return lengths - 2.0 * features_ND[:rows] @ features_ND.T, lengths

    cosines = _cosines(products, *squares(first_ND), *squares(second_ND))
    above = torch.ones_like(cosines, dtype=torch.bool).triu(diagonal=1)
    return cosines.masked_fill(~above, torch.nan)


def _cosines_of_pairs(first_ND: Tensor, second_ND: Tensor, pairs_P2: Tensor) -> Tensor:
    def ends(features_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ends_P2D = features_ND[pairs_P2]
        differences_PD = ends_P2D[:, 0] - ends_P2D[:, 1]
        return differences_PD, differences_PD.square().sum(dim=1), ends_P2D.square().sum(dim=(1, 2))

    first_PD, first_squares, first_lengths = ends(first_ND)
    second_PD, second_squares, second_lengths = ends(second_ND)
    products = (first_PD * second_PD).sum(dim=1)
    return _cosines(products, first_squares, first_lengths, second_squares, second_lengths)


def _cosines(
    products: Tensor, first_squares: Tensor, first_lengths: Tensor, second_squares: Tensor, second_lengths: Tensor
) -> Tensor:
    """Divide products of differences by their lengths; NaN where a difference is none."""
    differ = (first_squares > _NO_DIFFERENCE * first_lengths) & (second_squares > _NO_DIFFERENCE * second_lengths)
    cosines = products / (first_squares * second_squares).sqrt()
    return torch.where(differ, cosines, torch.nan)


def _require_equal_shapes(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"both networks must give one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
