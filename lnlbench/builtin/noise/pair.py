"""Pair-flip noise: a touched label moves to the next class id."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import GeneratedLabels, UsageError
from lnlbench.builtin.noise.draws import check_arguments, random_stream, read_options, touch
from lnlbench.builtin.noise.maps import class_map, move


def pair(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    """Move a share of the labels from class i to (i + 1) mod C (Han et al. 2018, Co-teaching).

    The realised rate is the nominal one. Where ids have no natural order, "next" has no meaning either.

    Args:
        true_labels: ``(N,)``, int64 in [0, num_classes).
        rate: Share of labels that are touched, in [0, 0.5).
        num_classes: Number of classes C.
        seed: Noise seed.
        **options: ``count`` (see :mod:`lnlbench.builtin.noise.draws`); ``bernoulli`` unless told otherwise.

    Raises:
        UsageError: An argument is out of range or an option unknown.
    """
    switches = read_options("pair", options)
    labels = check_arguments("pair", true_labels, rate, num_classes, seed)
    if rate >= 0.5:
        raise UsageError(
            f"rate {rate} of pair noise is not below 0.5, where the next class would be as likely as the true one"
        )
    stream = random_stream("pair", seed)
    return move(labels, class_map("next", num_classes), touch(stream, labels, rate, switches["count"], num_classes))
