"""Part-dependent noise: what makes it the noise of its paper, on made-up and on real images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats  # type: ignore[import-untyped]

from lnlbench.builtin.noise import part_dependent as module
from lnlbench.builtin.noise.draws import confusion_counts, random_stream, transition_matrix
from lnlbench.builtin.noise.part_dependent import part_dependent
from lnlbench.errors import UsageError

Labels = NDArray[np.int64]
Images = NDArray[np.uint8]
every_variant = pytest.mark.parametrize(
    ("features", "projection"), [(f, p) for f in ("raw", "normalised") for p in ("per-class", "shared")]
)


def made_up(num_samples: int, num_classes: int, side: int = 4, channels: int = 3) -> tuple[Labels, Images]:
    draw = np.random.RandomState(5)
    labels = draw.permutation(np.arange(num_samples, dtype=np.int64) % num_classes).astype(np.int64)
    return labels, draw.randint(0, 256, (num_samples, side, side, channels), dtype=np.uint8)


def sample_by_sample(
    labels: Labels, images: Images, rate: float, num_classes: int, seed: int, features: str, projection: str
) -> tuple[Labels, NDArray[np.float64]]:
    """The definition, one sample after the other: given labels and ``(N, C)`` rows."""
    stream = random_stream("part-dependent", seed)
    low, high = (0.0 - rate) / 0.1, (1.0 - rate) / 0.1
    rates = [stats.truncnorm.ppf(stream.random_sample(), low, high, rate, 0.1) for _ in labels]
    flip_keys, target_keys = stream.random_sample(len(labels)), stream.random_sample(len(labels))
    values = images.transpose(0, 3, 1, 2).astype(np.float64)
    if features == "normalised":
        values = (values - values.mean((0, 2, 3), keepdims=True)) / values.std((0, 2, 3), keepdims=True)
    vectors = values.reshape(len(labels), -1)
    shape = (vectors.shape[1], num_classes)
    if projection == "shared":
        projections = [special.ndtri(stream.random_sample(shape))] * num_classes
    else:
        projections = [special.ndtri(stream.random_sample(shape)) for _ in range(num_classes)]
    given_labels, rows = labels.copy(), np.zeros((len(labels), num_classes))
    for n, label in enumerate(labels):
        scores = vectors[n] @ projections[label]
        scores[label] = -np.inf
        target_probs = special.softmax(scores)
        rows[n] = rates[n] * target_probs
        rows[n, label] = 1 - rates[n]
        if flip_keys[n] < rates[n]:
            given_labels[n] = np.searchsorted(np.cumsum(target_probs), target_keys[n], side="right")
    return given_labels, rows


@every_variant
@pytest.mark.parametrize("chunk", [1, 2**19], ids=["chunks of one", "one chunk"])
def test_it_is_the_definition_sample_by_sample(
    features: str, projection: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    labels, images = made_up(300, 7)
    labels[labels == 4] = 5
    generated = part_dependent(
        labels, 0.45, num_classes=7, seed=3, images=images, features=features, projection=projection
    )
    expected, rows = sample_by_sample(labels, images, 0.45, 7, 3, features, projection)
    assert (generated.labels == expected).all()
    assert np.count_nonzero(expected != labels) > 90
    for label in (0, 1, 2, 3, 5, 6):
        np.testing.assert_allclose(generated.matrix[label], rows[labels == label].mean(axis=0), atol=1e-12)
    assert generated.matrix[4].tolist() == [0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("rate", "mean"), [(0.1, 0.1288), (0.2, 0.2055), (0.3, 0.3004), (0.4, 0.4), (0.5, 0.5), (0.0, 0.0798)]
)
def test_truncation_moves_the_rate(rate: float, mean: float) -> None:
    labels, images = made_up(100_000, 2, side=1, channels=1)
    generated = part_dependent(labels, rate, num_classes=2, seed=1, images=images)
    assert stats.truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, rate, 0.1) == pytest.approx(mean, abs=1e-4)
    wrong = np.count_nonzero(generated.labels != labels)
    assert wrong / len(labels) == pytest.approx(mean, abs=4 * np.sqrt(mean * (1 - mean) / len(labels)))
    # The mean of 50,000 rates, each with a standard deviation of at most 0.1.
    assert np.diag(generated.matrix) == pytest.approx([1 - mean] * 2, abs=4 * 0.1 / np.sqrt(50_000) + 1e-4)


def test_flip_rates_are_truncated_normal() -> None:
    keys = np.random.RandomState(0).random_sample(20_000)
    for rate in (0.05, 0.2, 0.95):
        law = stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, rate, 0.1)
        rates = module._flip_rates(keys, rate)
        assert 0 <= rates.min() < rates.max() <= 1
        np.testing.assert_allclose(rates, law.ppf(keys), atol=1e-9)
        assert stats.kstest(rates, law.cdf).pvalue > 0.001


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_ends_of_the_uniform_numbers_are_finite(rate: float) -> None:
    rates = module._flip_rates(np.array([0.0, np.nextafter(1.0, 0.0)]), rate)
    assert rates.tolist() == pytest.approx([0.0, 1.0] if rate else [0.0, rates[1]], abs=1.0)
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    assert (rates <= 1).all()


@settings(deadline=None, max_examples=40)
@given(low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_label_changed_at_a_low_rate_has_the_same_class_at_a_higher_one(low: float, high: float, seed: int) -> None:
    labels, images = made_up(200, 5, side=2)
    less, more = (
        part_dependent(labels, rate, num_classes=5, seed=seed, images=images).labels for rate in sorted((low, high))
    )
    assert (less == more)[less != labels].all()


@every_variant
def test_labels_come_with_their_images(features: str, projection: str) -> None:
    """Which position an image has decides about luck only: shuffled together, each keeps its probabilities."""
    labels, images = made_up(6, 3)
    order = np.array([3, 0, 5, 1, 4, 2])
    counts = np.zeros((2, 6, 3))
    for seed in range(400):
        options: dict[str, Any] = {"seed": seed, "num_classes": 3, "features": features, "projection": projection}
        plain = part_dependent(labels, 0.5, images=images, **options).labels
        shuffled = part_dependent(labels[order], 0.5, images=images[order], **options).labels
        counts[0, np.arange(6), plain] += 1
        counts[1, order, shuffled] += 1
    assert np.abs(counts[0] - counts[1]).max() < 4.5 * np.sqrt(2 * 400 * 0.25)


@every_variant
def test_images_without_content_give_class_conditional_noise(features: str, projection: str) -> None:
    labels, _ = made_up(40_000, 4, side=2)
    images = np.full((40_000, 2, 2, 3), 1, dtype=np.uint8)
    generated = part_dependent(
        labels, 0.4, num_classes=4, seed=2, images=images, features=features, projection=projection
    )
    halves = np.split(labels, 2), np.split(generated.labels, 2)
    by_half = [transition_matrix(true, noisy, 4) for true, noisy in zip(*halves, strict=True)]
    np.testing.assert_allclose(by_half[0], by_half[1], atol=4.5 * 0.5 * np.sqrt(2 / 5_000))
    np.testing.assert_allclose(by_half[0], generated.matrix, atol=4.5 * 0.5 / np.sqrt(5_000))
    if features == "normalised":  # all pixels are zero then, and so are all scores
        off_diagonal = generated.matrix[~np.eye(4, dtype=bool)].reshape(4, 3)
        np.testing.assert_allclose(off_diagonal, np.repeat(off_diagonal[:, :1], 3, axis=1))


def test_the_image_decides_about_the_class() -> None:
    """Two kinds of images in one class: with raw pixels nearly every flip of a kind goes to one class."""
    kinds = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    labels = np.zeros(4_000, dtype=np.int64)
    images = kinds[np.arange(4_000) % 2]
    targets = []
    for seed in range(12):
        generated = part_dependent(labels, 0.5, num_classes=10, seed=seed, images=images).labels
        counts = [np.bincount(generated[kind::2], minlength=10)[1:] for kind in (0, 1)]
        assert all(count.max() > 0.95 * count.sum() for count in counts)
        targets.append(tuple(int(count.argmax()) for count in counts))
    assert any(first != second for first, second in targets)


def test_a_channel_of_one_value_does_no_harm() -> None:
    labels, images = made_up(200, 3)
    images[..., 1] = 77
    generated = part_dependent(labels, 0.4, num_classes=3, seed=1, images=images, features="normalised")
    assert np.isfinite(generated.matrix).all()
    # Its pixels are zero then, so that their value does not matter.
    images[..., 1] = 200
    again = part_dependent(labels, 0.4, num_classes=3, seed=1, images=images, features="normalised")
    assert (generated.labels == again.labels).all()


def test_normalising_removes_brightness_and_contrast() -> None:
    labels, images = made_up(500, 5)
    dark = (images // 4).astype(np.uint8)
    bright = (dark * 3 + 40).astype(np.uint8)
    first, second = (
        part_dependent(labels, 0.5, num_classes=5, seed=1, images=each, features="normalised")
        for each in (dark, bright)
    )
    assert (first.labels == second.labels).all()
    np.testing.assert_allclose(first.matrix, second.matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "depends on the training images; this dataset does not hand them out"),
        (
            np.zeros((3, 1, 1, 1)),
            r"needs 3 images as a uint8 array \(N, H, W, K\), not float64 of shape \(3, 1, 1",
        ),
        (np.zeros((3, 4), dtype=np.uint8), r"not uint8 of shape \(3, 4\)"),
        (np.zeros((2, 2, 2, 1), dtype=np.uint8), r"not uint8 of shape \(2, 2, 2, 1\)"),
    ],
)
def test_images_that_do_not_fit_are_one_line(images: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        part_dependent(np.array([0, 1, 2]), 0.2, num_classes=3, seed=1, images=images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["feature", "count"])
def test_unknown_options_are_one_line(option: str) -> None:
    with pytest.raises(UsageError, match=f"unknown option of part-dependent noise '{option}'"):
        part_dependent(
            np.array([0, 1]), 0.2, num_classes=2, seed=1, images=np.zeros((2, 1, 1, 1), np.uint8), **{option: "raw"}
        )


@pytest.mark.realdata
@pytest.mark.skipif(
    "LNLBENCH_TEST_CIFAR10_RAW" not in os.environ,
    reason="LNLBENCH_TEST_CIFAR10_RAW names no folder with cifar10_raw_subset.npz",
)
@pytest.mark.parametrize(
    ("features", "projection", "least", "most"),
    [("raw", "per-class", 0.64, 0.80), ("normalised", "per-class", 0.22, 0.30), ("raw", "shared", 0.5, 0.99)],
)
def test_how_many_flips_of_a_class_go_to_one_class_on_real_images(
    features: str, projection: str, least: float, most: float
) -> None:
    with np.load(Path(os.environ["LNLBENCH_TEST_CIFAR10_RAW"]) / "cifar10_raw_subset.npz") as file:
        images = file["train_images"].transpose(0, 2, 3, 1)
        labels = file["train_labels"].astype(np.int64)
    shares = []
    for seed in range(10):
        generated = part_dependent(
            labels, 0.4, num_classes=10, seed=seed, images=images, features=features, projection=projection
        )
        flips = confusion_counts(labels, generated.labels, 10) * (1 - np.eye(10))
        shares.append(np.mean(flips.max(axis=1) / flips.sum(axis=1)))
    assert least < np.mean(shares) < most
