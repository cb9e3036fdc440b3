"""Symmetric noise: a touched label is replaced uniformly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import GeneratedLabels
from lnlbench.builtin.noise.draws import check_arguments, draw_below, random_stream, read_options, touch


def symmetric(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    """Replace a share of the labels by uniform draws.

    With ``replacement=exclusive`` the draw is over the wrong classes and the realised rate is the nominal one (Han et
    al. 2018, Co-teaching). With ``inclusive`` it is over all classes, so that 1/C of the touched labels stay right (Li
    et al. 2020, DivideMix): nominal 50 % is 45 % wrong for ten classes.

    Args:
        true_labels: ``(N,)``, int64 in [0, num_classes).
        rate: Share of labels that are touched, in [0, 1].
        num_classes: Number of classes C.
        seed: Noise seed.
        **options: ``count`` (see :mod:`lnlbench.builtin.noise.draws`) and ``replacement``.

    Raises:
        UsageError: An argument is out of range or an option unknown.
    """
    switches = read_options("symmetric", options)
    labels = check_arguments("symmetric", true_labels, rate, num_classes, seed)
    stream = random_stream("symmetric", seed)
    touched = touch(stream, labels, rate, switches["count"], num_classes)
    if switches["replacement"] == "inclusive":
        drawn = draw_below(stream, num_classes, len(labels))
        replacement = np.full((num_classes, num_classes), 1.0 / num_classes)
    else:
        drawn = (labels + 1 + draw_below(stream, num_classes - 1, len(labels))) % num_classes
        replacement = (1.0 - np.eye(num_classes)) / (num_classes - 1)
    probability = touched.probability[:, np.newaxis]
    matrix = (1.0 - probability) * np.eye(num_classes) + probability * replacement
    return GeneratedLabels(np.where(touched.mask, drawn, labels), matrix)
