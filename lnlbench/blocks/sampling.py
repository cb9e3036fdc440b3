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
    keys_N = torch.rand(len(labels_N), generator=generator, device=labels_N.device)
    order_N = torch.argsort(keys_N)
    by_class_N = order_N[torch.argsort(labels_N[order_N], stable=True)]
    sizes_C = torch.bincount(labels_N, minlength=num_classes)
    first_C = torch.cumsum(sizes_C, dim=0) - sizes_C
    rank_N = torch.arange(len(labels_N), device=labels_N.device) - first_C[labels_N[by_class_N]]
    return by_class_N[rank_N < math.ceil(count / num_classes)].sort().values
