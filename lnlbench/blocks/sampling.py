"""Which samples an epoch uses."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_balanced_draw(labels_N: Tensor, count: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw samples at random, equally many of each class as far as there are enough.

    This is the draw of DivideMix's released code for Clothing1M: samples come in random order, and one is taken as long
    as its class has fewer than count / C. A class with fewer gives all it has.

    Args:
        labels_N: int64 in [0, C), on any device.
        count: Samples to draw; rounding up within classes may give up to C - 1 more, small classes give fewer.
        num_classes: Number of classes C.
        generator: A generator on the device of the labels.

    Returns:
        ``index_n``, int64, ascending.

    >>> labels_N = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    >>> labels_N[class_balanced_draw(labels_N, 4, 2, torch.Generator().manual_seed(1))].tolist()
    [0, 0, 1, 1]
    """
    by_class_N, rank_N = _in_random_order_by_class(labels_N, num_classes, generator)
    return by_class_N[rank_N < math.ceil(count / num_classes)].sort().values


def class_balanced_pass(labels_N: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return a pass in random order in which every class comes equally often, as often as the largest has samples.

    Of a class with n samples, where the largest has m, each comes floor(m / n) times, and m mod n of them, chosen at
    random, once more. A class without samples is left out. This is the sampler of CLIPCleaner's released code.

    Args:
        labels_N: int64 in [0, C), on any device.
        num_classes: Number of classes C.
        generator: A generator on the device of the labels.

    Returns:
        ``positions_n`` in [0, N), int64, with repetitions; empty if N is 0.

    >>> labels_N = torch.tensor([0, 0, 0, 2, 2])
    >>> positions_n = class_balanced_pass(labels_N, 3, torch.Generator().manual_seed(1))
    >>> labels_N[positions_n].bincount().tolist()
    [3, 0, 3]
    """
    by_class_N, rank_N = _in_random_order_by_class(labels_N, num_classes, generator)
    sizes_C = torch.bincount(labels_N, minlength=num_classes)
    sizes_N, largest = sizes_C[labels_N[by_class_N]], sizes_C.max()
    positions_n = by_class_N.repeat_interleave(largest // sizes_N + (rank_N < largest % sizes_N))
    return positions_n[torch.randperm(len(positions_n), generator=generator, device=labels_N.device)]


def _in_random_order_by_class(labels_N: Tensor, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the samples sorted by class, in random order within each, and their ranks within their classes."""
    keys_N = torch.rand(len(labels_N), generator=generator, device=labels_N.device)
    order_N = torch.argsort(keys_N)
    by_class_N = order_N[torch.argsort(labels_N[order_N], stable=True)]
    sizes_C = torch.bincount(labels_N, minlength=num_classes)
    first_C = torch.cumsum(sizes_C, dim=0) - sizes_C
    rank_N = torch.arange(len(labels_N), device=labels_N.device) - first_C[labels_N[by_class_N]]
    return by_class_N, rank_N
