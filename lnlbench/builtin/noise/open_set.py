"""Open-set noise: images of classes outside the task, with labels of classes inside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import GeneratedLabels, UsageError
from lnlbench.builtin.noise.draws import check_arguments, draw_below, random_stream, read_options
from lnlbench.builtin.noise.pair import pair
from lnlbench.builtin.noise.symmetric import symmetric


def open_set(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    """Give images of unknown classes uniform known labels, and flip those of known classes (Yao et al. 2021, Jo-SRC).

    A true label of ``num_classes`` or more is out of distribution, and wrong whatever the rate is. Known labels flip
    as in :func:`lnlbench.builtin.noise.symmetric.symmetric` with ``replacement=exclusive`` or in
    :func:`lnlbench.builtin.noise.pair.pair`; without unknown classes the outcome is exactly theirs. With a share o of
    images out of distribution, o + (1 - o) r of all labels are wrong.

    Args:
        true_labels: ``(N,)``, int64 from 0.
        rate: Share r of the *known* labels that flip, in [0, 1]; below 0.5 for ``flip=pair``.
        num_classes: Number of known classes C.
        seed: Noise seed.
        **options: ``flip``; ``count`` (see :mod:`lnlbench.builtin.noise.draws`); and ``stream``, where ``released``
            draws the numbers that the authors' code draws, whose seed is 0.

    Returns:
        The labels, and a matrix of one row per class up to the largest true label, known or not.

    Raises:
        UsageError: An argument is out of range, an option unknown, or the options do not go together.
    """
    switches = read_options("open-set", options)
    labels = check_arguments("open-set", true_labels, rate, num_classes, seed, open_set=True)
    known = labels < num_classes
    flip, needed = (pair, {}) if switches["flip"] == "pair" else (symmetric, {"replacement": "exclusive"})
    inside = flip(labels[known], rate, num_classes=num_classes, seed=seed, count=switches["count"], **needed)
    num_rows = max(num_classes, int(labels.max(initial=0)) + 1)
    unknown = np.full((num_rows - num_classes, num_classes), 1.0 / num_classes)
    matrix = np.concatenate([inside.matrix, unknown])
    if switches["stream"] == "released":
        return GeneratedLabels(_draw_as_released(labels, matrix, seed, switches["count"]), matrix)
    given = np.empty_like(labels)
    given[known] = inside.labels
    given[~known] = draw_below(random_stream("open-set", seed), num_classes, int(np.count_nonzero(~known)))
    return GeneratedLabels(given, matrix)


def _draw_as_released(
    labels: NDArray[np.int64], matrix: NDArray[np.float64], seed: int, count: str
) -> NDArray[np.int64]:
    """Draw one multinomial trial per sample in index order, from rows as wide as there are classes of either kind."""
    if count != "bernoulli":
        raise UsageError(f"open-set noise has stream 'released' for count 'bernoulli' only, not {count!r}")
    if seed >= 2**32:
        raise UsageError(f"seed {seed} of open-set noise is too large for stream 'released'; choose one below 2^32")
    # The columns of zeros matter: without them the last known class would be drawn without taking a number.
    rows = np.zeros((len(matrix), len(matrix)))
    rows[:, : matrix.shape[1]] = matrix
    stream = np.random.RandomState(seed)
    return np.array([stream.multinomial(1, rows[label]).argmax() for label in labels], dtype=np.int64)
