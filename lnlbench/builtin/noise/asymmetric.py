"""Asymmetric noise: a touched label moves to the one class that its class is confused with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import GeneratedLabels, UsageError
from lnlbench.builtin.noise.draws import check_arguments, random_stream, read_options, touch
from lnlbench.builtin.noise.maps import class_map, move


def asymmetric(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    """Move a share of the labels along a class map (Patrini et al. 2017).

    The rate holds inside each class that the map moves. ``cifar10`` and ``mnist`` move five of ten classes, so that
    nominal 40 % is 20 % wrong labels if classes are balanced. With ``count=exact`` the floor(r N) touched samples are
    taken from all classes and those in classes that the map spares stay as they are (Li et al. 2020, DivideMix).

    Args:
        true_labels: ``(N,)``, int64 in [0, num_classes).
        rate: Share of labels that are touched, in [0, 0.5].
        num_classes: Number of classes C.
        seed: Noise seed.
        **options: ``count`` (see :mod:`lnlbench.builtin.noise.draws`) and ``map`` (see
            :func:`lnlbench.builtin.noise.maps.class_map`).

    Raises:
        UsageError: An argument is out of range, an option unknown, or the map made for other classes.
    """
    switches = read_options("asymmetric", options)
    labels = check_arguments("asymmetric", true_labels, rate, num_classes, seed)
    targets = class_map(switches["map"], num_classes)
    # Every map has a cycle of classes. Above one half its labels would only be renamed, with the rest as the noise.
    if rate > 0.5:
        raise UsageError(
            f"rate {rate} of asymmetric noise is above 0.5, where map {switches['map']!r} would exchange classes; "
            "choose one from 0 to 0.5"
        )
    stream = random_stream("asymmetric", seed)
    return move(labels, targets, touch(stream, labels, rate, switches["count"], num_classes))
