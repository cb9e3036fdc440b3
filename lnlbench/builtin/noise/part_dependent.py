"""Part-dependent noise: what an image shows decides to which class its label flips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lnlbench.api import GeneratedLabels, UsageError
from lnlbench.builtin.noise.draws import check_arguments, random_stream, read_options

_SPREAD = 0.1
"""Standard deviation of the flip rates before truncation."""

_CHUNK_BYTES = 2**19
"""Memory for the features of the images that are projected at a time: as much as stays in a processor's cache."""


def part_dependent(
    true_labels: NDArray[np.int64],
    rate: float,
    *,
    num_classes: int,
    seed: int,
    images: NDArray[np.uint8] | None = None,
    **options: Any,
) -> GeneratedLabels:
    """Flip labels by a rate of their own to a class that depends on the image (Xia et al. 2020, Algorithm 2).

    Sample n with features x and true label y has a flip rate q_n from a normal distribution with mean r and standard
    deviation 0.1, truncated to [0, 1], and a class has a random projection W_y with independent standard normal
    entries. The label stays with probability 1 - q_n and becomes class j with q_n softmax(x W_y)_j, where the softmax
    is over the wrong classes. Truncation moves the mean of the rates: nominal 0.1 is 0.1288, 0.2 is 0.2055 and 0.3 is
    0.3004; from 0.4 to 0.6 the difference is below 0.0001. A label that flips at a low rate flips to the same class at
    every higher one.

    The features are the pixels, channel by channel. ``raw`` ones are 0 to 255, as in the authors' code: since none is
    negative, the softmax is all but one-hot and most flips of a class go to one other class. ``normalised`` ones have
    mean 0 and standard deviation 1 in each channel, over all images given.

    ``projection=shared`` uses one W for all classes, as the label files do that are passed on with re-implementations;
    with raw features nearly all flips of all classes then go to one and the same class.

    Args:
        true_labels: ``(N,)``, int64 in [0, num_classes).
        rate: Mean r of the flip rates before truncation, in [0, 1].
        num_classes: Number of classes C.
        seed: Noise seed.
        images: ``(N, H, W, K)``, uint8: the training images.
        **options: ``features`` and ``projection``.

    Returns:
        The labels, and for each class the mean of its samples' transition probabilities; a class without samples has
        a row that keeps its label.

    Raises:
        UsageError: An argument is out of range, an option unknown, or the images do not fit the labels.
    """
    switches = read_options("part-dependent", options)
    labels = check_arguments("part-dependent", true_labels, rate, num_classes, seed)
    pixels = _check_images(images, len(labels))
    stream = random_stream("part-dependent", seed)
    flip_rates = _flip_rates(stream.random_sample(len(labels)), rate)
    flips = stream.random_sample(len(labels)) < flip_rates
    target_keys = stream.random_sample(len(labels))
    shift, scale = _channel_statistics(pixels, switches["features"])

    given = labels.copy()
    matrix = np.eye(num_classes)
    for label, projection in enumerate(_projections(stream, pixels.shape[1:], num_classes, switches["projection"])):
        index = np.flatnonzero(labels == label)
        if not len(index):
            continue
        wrong = np.delete(np.arange(num_classes), label)
        # The pixels stay as they are: (x - shift) / scale projected by W is x projected by W / scale, less a constant.
        weights = projection[..., wrong] / scale[:, np.newaxis]
        offset = np.einsum("pkc,k->c", weights, shift)
        flat_weights = weights.reshape(-1, len(wrong))
        scores = np.concatenate([features @ flat_weights for features in _features(pixels, index)])
        target_probs = _softmax(scores - offset)
        drawn = wrong[_draw_columns(target_probs, target_keys[index])]
        given[index] = np.where(flips[index], drawn, label)
        matrix[label, wrong] = flip_rates[index] @ target_probs / len(index)
        matrix[label, label] = 1.0 - flip_rates[index].mean()
    return GeneratedLabels(given, matrix)


def _check_images(images: NDArray[np.uint8] | None, num_samples: int) -> NDArray[np.uint8]:
    if images is None:
        raise UsageError("part-dependent noise depends on the training images; this dataset does not hand them out")
    pixels = np.ascontiguousarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or len(pixels) != num_samples:
        raise UsageError(
            f"part-dependent noise needs {num_samples} images as a uint8 array (N, H, W, K), not {pixels.dtype} of "
            f"shape {pixels.shape}"
        )
    return pixels


def _flip_rates(keys: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Turn uniform numbers into truncated normal ones; each grows with the rate."""
    low, high = special.ndtr((np.array([0.0, 1.0]) - rate) / _SPREAD)
    rates: NDArray[np.float64] = rate + _SPREAD * special.ndtri(low + keys * (high - low))
    return rates.clip(0.0, 1.0)


def _projections(
    stream: np.random.RandomState, shape: tuple[int, ...], num_classes: int, which: str
) -> Iterator[NDArray[np.float64]]:
    """Yield for each class its projection, ``(H * W, K, C)``; one at a time, as a hundred take a quarter gigabyte."""
    height, width, channels = shape

    def draw() -> NDArray[np.float64]:
        # A draw may be 0, where the inverse distribution function is minus infinity.
        keys = np.maximum(stream.random_sample((channels, height * width, num_classes)), 2.0**-54)
        normal: NDArray[np.float64] = special.ndtri(keys)
        # Drawn channel by channel, used in the order in which pixels lie in memory.
        return normal.swapaxes(0, 1)

    shared = draw() if which == "shared" else None
    for _ in range(num_classes):
        yield draw() if shared is None else shared


def _channel_statistics(pixels: NDArray[np.uint8], features: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``(K,)`` means and standard deviations to normalise by; zeros and ones for raw features."""
    channels = pixels.shape[-1]
    if features == "raw" or not pixels.size:
        return np.zeros(channels), np.ones(channels)
    sums, squares = np.zeros(pixels[0].size), np.zeros(pixels[0].size)
    for values in _features(pixels, np.arange(len(pixels))):
        sums += values.sum(axis=0)
        squares += np.einsum("np,np->p", values, values)
    # Whole numbers until here: the order of summation does not matter, and a constant channel has variance 0 exactly.
    mean = sums.reshape(-1, channels).sum(axis=0) / (pixels.size // channels)
    variance = squares.reshape(-1, channels).sum(axis=0) / (pixels.size // channels) - mean**2
    return mean, np.sqrt(np.where(variance > 0.0, variance, 1.0))


def _features(pixels: NDArray[np.uint8], index: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Yield the pixels of these images, an image a row, a few rows at a time; the next ones overwrite them."""
    rows = pixels.reshape(len(pixels), -1)
    size = max(1, _CHUNK_BYTES // (8 * max(1, rows.shape[1])))
    # One buffer for all: to the operating system, new memory for every chunk costs more than the computation.
    buffer = np.empty((min(size, len(index)), rows.shape[1]))
    for start in range(0, len(index), size):
        part = index[start : start + size]
        buffer[: len(part)] = rows[part]
        yield buffer[: len(part)]


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probs: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probs


def _draw_columns(probs: NDArray[np.float64], keys: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row the column that its key, uniform in [0, 1), falls on."""
    bounds = np.cumsum(probs, axis=1)
    # The last bound is 1 up to rounding; measured by it, no key lies beyond the last column.
    columns: NDArray[np.int64] = (bounds[:, :-1] <= keys[:, np.newaxis] * bounds[:, -1:]).sum(axis=1)
    return columns
