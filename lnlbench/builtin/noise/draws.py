"""What all generators share: their own random stream, which labels are touched, and the checks of their arguments.

The literature counts the touched labels in three ways, and few papers say which:

``exact``
    A random subset of exactly floor(r N) of all samples (Li et al. 2020, DivideMix).
``exact-per-class``
    The same inside every class (Liu et al. 2020, ELR).
``bernoulli``
    Every sample on its own with probability r (Patrini et al. 2017; Han et al. 2018, Co-teaching).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import UnknownNameError, UsageError
from lnlbench.builtin.noise import ENTRIES

_DECIMALS = 6
"""Decimals kept before rounding down. The error of ``rate * size`` is far smaller, a meant fraction far larger."""


def random_stream(generator: str, seed: int) -> np.random.RandomState:
    """Return the random stream of one generator and seed, untouched by anything else that draws.

    Args:
        generator: Generator id; two generators with one seed draw independently.
        seed: Noise seed, a non-negative integer.
    """
    # NumPy may change what a ``Generator`` draws in any release, while the streams of ``RandomState`` are frozen for
    # ever (NEP 19). Only ``random_sample`` is used of it: integers drawn with the platform's default type differ
    # between operating systems, doubles do not.
    words = np.frombuffer(hashlib.blake2b(f"lnlbench:{generator}:{seed}".encode(), digest_size=32).digest(), "<u4")
    return np.random.RandomState([int(word) for word in words])


def floor_share(rate: float, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return floor(rate * size) of every size, where a product that is whole up to rounding counts as whole.

    >>> floor_share(0.57, np.array([50_000, 1_437])).tolist()
    [28500, 819]
    """
    return np.floor(np.round(rate * sizes, _DECIMALS)).astype(np.int64)


@dataclass(frozen=True)
class Touched:
    """Which labels a generator may change. A touched label can still stay, by chance or since its class is spared."""

    mask: NDArray[np.bool_]
    """``(N,)``"""
    probability: NDArray[np.float64]
    """``(C,)``: the chance of a sample of each class to be touched, over all seeds."""


def touch(
    stream: np.random.RandomState, labels: NDArray[np.int64], rate: float, count: str, num_classes: int
) -> Touched:
    """Choose the labels to touch; takes exactly N doubles from the stream.

    One number per sample decides, the smallest first, so that with one seed the labels touched at a low rate are among
    those touched at a higher one.

    Args:
        stream: Where the numbers come from.
        labels: ``(N,)``, int64 in [0, C).
        rate: Share to touch.
        count: ``exact``, ``exact-per-class`` or ``bernoulli``.
        num_classes: Number of classes C.
    """
    keys = stream.random_sample(len(labels))
    if count == "bernoulli":
        return Touched(keys < rate, np.full(num_classes, rate))
    # With exact counts the chance of a sample is the quota over the size, which rounding down may put below the rate.
    if count == "exact":
        size = np.array([len(labels)], dtype=np.int64)
        groups = np.zeros_like(labels)
    else:
        size = np.bincount(labels, minlength=num_classes).astype(np.int64)
        groups = labels
    quota = floor_share(rate, size)
    probability = np.divide(quota, size, out=np.full(len(size), rate), where=size > 0)
    order = np.lexsort((keys, groups))
    rank = np.arange(len(labels)) - (np.cumsum(size) - size)[groups[order]]
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[order] = rank < quota[groups[order]]
    return Touched(mask, np.broadcast_to(probability, num_classes).copy())


def draw_below(stream: np.random.RandomState, bound: int, size: int) -> NDArray[np.int64]:
    """Draw ``size`` integers uniformly from [0, bound)."""
    # A double below 1 times an integer below 2^53, rounded down, never reaches the integer.
    return (stream.random_sample(size) * bound).astype(np.int64)


def read_options(generator: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Complete a built-in generator's options by its defaults.

    Raises:
        UsageError: An option or a value is unknown.
    """
    allowed = next(entry.options for entry in ENTRIES if entry.name == generator)
    for name in options:
        if name not in allowed:
            raise UnknownNameError(f"option of {generator} noise", name, allowed)
    resolved = {name: options.get(name, values[0]) for name, values in allowed.items()}
    for name, value in resolved.items():
        if value not in allowed[name]:
            raise UnknownNameError(f"{name!r} of {generator} noise:", str(value), allowed[name])
    return resolved


def check_arguments(
    generator: str,
    true_labels: NDArray[np.int64],
    rate: float,
    num_classes: int,
    seed: int,
    *,
    open_set: bool = False,
) -> NDArray[np.int64]:
    """Return the labels as int64 after checking what every generator needs.

    Args:
        generator: Generator id, for messages.
        true_labels: ``(N,)``, integers.
        rate: Nominal noise rate.
        num_classes: Number of classes C of the task.
        seed: Noise seed.
        open_set: Whether labels of ``num_classes`` and more, those of classes outside the task, are welcome.

    Raises:
        UsageError: The rate is not in [0, 1], the seed is negative, or the labels are not class ids.
    """
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"rate {rate} of {generator} noise is out of range; choose one from 0 to 1")
    if seed < 0:
        raise UsageError(f"seed {seed} of {generator} noise is negative; choose a whole number from 0 on")
    if num_classes < 2:
        raise UsageError(f"{generator} noise needs at least two classes, this dataset has {num_classes}")
    labels = np.asarray(true_labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(
            f"{generator} noise needs a one-dimensional array of integer labels, not {labels.ndim} dimensions of type "
            f"{labels.dtype}"
        )
    outside = np.flatnonzero((labels < 0) | ((labels >= num_classes) & (not open_set)))
    if len(outside):
        first = labels[outside[0]]
        needed = "labels from 0 on" if open_set else f"labels from 0 to {num_classes - 1}"
        way_out = "; if it is of a class outside the task, use noise 'open-set'" if first >= num_classes else ""
        raise UsageError(
            f"label {first} at index {outside[0]} is not a class id; {generator} noise over {num_classes} classes "
            f"needs {needed}{way_out}"
        )
    return labels.astype(np.int64)


def confusion_counts(
    true_labels: NDArray[np.int64], given_labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count the pairs of labels: ``(C, C)``, row = true class, column = given class."""
    cells = np.bincount(true_labels * num_classes + given_labels, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def transition_matrix(
    true_labels: NDArray[np.int64], given_labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Estimate P(given = column | true = row) from labels: ``(C, C)``; the row of an absent class is zero."""
    counts = confusion_counts(true_labels, given_labels, num_classes)
    matrix: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return matrix
