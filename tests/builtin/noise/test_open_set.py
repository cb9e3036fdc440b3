"""Open-set noise: the sets of Jo-SRC, and what holds for every other choice of known classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from lnlbench.builtin.noise.open_set import open_set
from lnlbench.builtin.noise.pair import pair
from lnlbench.builtin.noise.symmetric import symmetric
from lnlbench.errors import UsageError

Labels = NDArray[np.int64]
STREAMS = pytest.mark.parametrize("stream", ["lnlbench", "released"])
SETS = pytest.mark.parametrize(
    ("flip", "rate", "overall"),
    [("symmetric", 0.2, 0.36), ("symmetric", 0.5, 0.60), ("symmetric", 0.8, 0.84), ("pair", 0.4, 0.52)],
)
CIFAR100 = np.repeat(np.arange(100, dtype=np.int64), 500)


@STREAMS
@SETS
def test_cifar80n_o(flip: str, rate: float, overall: float, stream: str) -> None:
    # Seed 0 is the one of the paper's sets.
    generated = open_set(CIFAR100, rate, num_classes=80, seed=0, flip=flip, stream=stream)
    given_labels = generated.labels
    unknown = CIFAR100 >= 80
    assert given_labels.min() == 0
    assert given_labels.max() == 79
    assert np.mean(given_labels != CIFAR100) == pytest.approx(overall, abs=0.01)
    low, high = stats.binom.interval(0.999, 40_000, rate)
    flipped = (given_labels != CIFAR100) & ~unknown
    assert low <= np.count_nonzero(flipped) <= high
    # 10,000 images over 80 classes: 45 is four standard deviations.
    per_class = np.bincount(given_labels[unknown], minlength=80)
    assert np.abs(per_class - 125).max() <= 45
    assert stats.chisquare(per_class).pvalue > 0.001
    steps = (given_labels - CIFAR100)[flipped] % 80
    if flip == "pair":
        assert set(steps.tolist()) == {1}
    else:
        assert stats.chisquare(np.bincount(steps, minlength=80)[1:]).pvalue > 0.001


@SETS
def test_the_matrix_has_a_row_for_every_class(flip: str, rate: float, overall: float) -> None:
    matrix = open_set(CIFAR100, rate, num_classes=80, seed=1, flip=flip).matrix
    expected = np.full((100, 80), 1 / 80)
    for row in range(80):
        expected[row] = rate / 79 if flip == "symmetric" else 0
        expected[row, (row + 1) % 80] = rate if flip == "pair" else rate / 79
        expected[row, row] = 1 - rate
    np.testing.assert_allclose(matrix, expected, atol=1e-15)
    assert 1 - np.diag(matrix).sum() / 100 == pytest.approx(overall)


@pytest.mark.parametrize("count", ["bernoulli", "exact", "exact-per-class"])
def test_without_unknown_classes_it_is_symmetric_or_pair_noise(count: str) -> None:
    for flip, expected in (
        ("symmetric", symmetric(CIFAR100, 0.4, num_classes=100, seed=6, count=count, replacement="exclusive")),
        ("pair", pair(CIFAR100, 0.4, num_classes=100, seed=6, count=count)),
    ):
        generated = open_set(CIFAR100, 0.4, num_classes=100, seed=6, flip=flip, count=count)
        assert (generated.labels == expected.labels).all()
        assert (generated.matrix == expected.matrix).all()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_known_label_flips_to_another_and_every_unknown_one_becomes_known(data: st.DataObject) -> None:
    known, unknown = data.draw(st.integers(2, 9)), data.draw(st.integers(0, 4))
    labels = np.array(data.draw(st.lists(st.integers(0, known + unknown - 1), max_size=80)), dtype=np.int64)
    percent = data.draw(st.integers(0, 49))
    seed = data.draw(st.integers(0, 2**32 - 1))
    flip = data.draw(st.sampled_from(["symmetric", "pair"]))
    generated = open_set(labels, percent / 100, num_classes=known, seed=seed, flip=flip, count="exact")
    inside = labels < known
    assert ((generated.labels >= 0) & (generated.labels < known)).all()
    assert np.count_nonzero((generated.labels != labels) & inside) == percent * np.count_nonzero(inside) // 100
    assert generated.matrix.shape == (max(known, labels.max(initial=0) + 1), known)
    np.testing.assert_allclose(generated.matrix.sum(axis=1), 1.0)


def test_unknown_labels_do_not_depend_on_the_rate() -> None:
    low, high = (open_set(CIFAR100, rate, num_classes=80, seed=1).labels for rate in (0.0, 0.8))
    assert (low == high)[CIFAR100 >= 80].all()
    assert (low == CIFAR100)[CIFAR100 < 80].all()


@STREAMS
def test_seeds_matter(stream: str) -> None:
    first, second = (open_set(CIFAR100, 0.2, num_classes=80, seed=seed, stream=stream).labels for seed in (1, 2))
    assert (first != second)[CIFAR100 >= 80].any()
    assert (first != second)[CIFAR100 < 80].any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flip": "pair", "rate": 0.5}, "rate 0.5 of pair noise is not below 0.5"),
        ({"flip": "next"}, "unknown 'flip' of open-set noise: 'next'; known: pair, symmetric"),
        ({"stream": "released", "count": "exact"}, "stream 'released' for count 'bernoulli' only, not 'exact'"),
        ({"stream": "released", "seed": 2**32}, "seed 4294967296 of open-set noise is too large for stream 'released'"),
        ({"true_labels": np.array([3, -1])}, "label -1 at index 1 is not a class id; .* needs labels from 0 on"),
    ],
)
def test_wrong_arguments_are_one_line(changes: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {"true_labels": CIFAR100, "rate": 0.2, "num_classes": 80, "seed": 1}
    with pytest.raises(UsageError, match=said) as caught:
        open_set(**(arguments | changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.realdata
@pytest.mark.skipif(
    "LNLBENCH_TEST_CIFARN" not in os.environ, reason="LNLBENCH_TEST_CIFARN names no folder with cifar100n.npz"
)
@pytest.mark.parametrize(
    ("flip", "rate", "counts"),
    [
        ("symmetric", 0.2, (31_942, 8_058, 10_000)),
        ("symmetric", 0.5, (19_903, 20_097, 10_000)),
        ("symmetric", 0.8, (7_926, 32_074, 10_000)),
        ("pair", 0.4, (24_127, 15_873, 10_000)),
    ],
)
def test_the_released_stream_at_seed_0_is_the_set_of_the_paper(
    flip: str, rate: float, counts: tuple[int, int, int]
) -> None:
    """Clean, flipped and out of distribution, as the authors' code counts them on the order of CIFAR-100."""
    with np.load(Path(os.environ["LNLBENCH_TEST_CIFARN"]) / "cifar100n.npz") as file:
        labels = file["clean_label"].astype(np.int64)
    given_labels = open_set(labels, rate, num_classes=80, seed=0, flip=flip, stream="released").labels
    inside, same = labels < 80, given_labels == labels
    found = (np.count_nonzero(same), np.count_nonzero(inside & ~same), np.count_nonzero(~inside))
    assert found == counts
