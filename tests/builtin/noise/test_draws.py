from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.builtin.noise.draws import (
    confusion_counts,
    draw_below,
    floor_share,
    random_stream,
    touch,
    transition_matrix,
)


@pytest.mark.parametrize(
    ("rate", "size", "expected"),
    [(0.57, 50_000, 28_500), (0.2, 1_437, 287), (0.29, 100, 29), (1.0, 7, 7), (0.0, 7, 0), (0.5, 0, 0), (0.999, 1, 0)],
)
def test_floor_share_repairs_binary_fractions(rate: float, size: int, expected: int) -> None:
    assert floor_share(rate, np.array([size])).tolist() == [expected]


def test_the_plain_product_would_be_one_short() -> None:
    assert int(0.57 * 50_000) == 28_499


@given(percent=st.integers(0, 100), size=st.integers(0, 10**7))
def test_floor_share_of_whole_percents_is_integer_arithmetic(percent: int, size: int) -> None:
    assert floor_share(percent / 100, np.array([size]))[0] == percent * size // 100


def test_the_stream_is_the_same_for_ever() -> None:
    # Computed with NumPy 2.4; a change here would change every realisation of everybody.
    assert random_stream("symmetric", 1).random_sample(3).tolist() == [
        0.9888254178860036,
        0.1833816244135389,
        0.6513474001438105,
    ]


def test_streams_differ_between_generators_and_seeds() -> None:
    firsts = {random_stream(name, seed).random_sample() for name in ("symmetric", "pair") for seed in range(50)}
    assert len(firsts) == 100


@given(bound=st.integers(1, 10**6), seed=st.integers(0, 2**32))
def test_draw_below_stays_below(bound: int, seed: int) -> None:
    drawn = draw_below(random_stream("test", seed), bound, 50)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < bound


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 10, 99, 100, 1000, 2**20, 2**20 + 1])
def test_the_largest_double_below_one_stays_below(bound: int) -> None:
    assert int(np.nextafter(1.0, 0.0) * bound) == bound - 1


@pytest.mark.parametrize("count", ["exact", "exact-per-class", "bernoulli"])
def test_labels_touched_at_a_low_rate_are_touched_at_a_higher_one(count: str) -> None:
    labels = np.arange(1_000, dtype=np.int64) % 7
    low, high = (touch(random_stream("test", 3), labels, rate, count, 7).mask for rate in (0.2, 0.5))
    assert low.sum() < high.sum()
    assert not (low & ~high).any()


def test_the_chance_of_being_touched_is_the_quota_over_the_size() -> None:
    labels = np.array([0] * 7 + [1] * 3, dtype=np.int64)
    exact = touch(random_stream("test", 1), labels, 0.55, "exact", 3)
    by_class = touch(random_stream("test", 1), labels, 0.55, "exact-per-class", 3)
    assert exact.probability.tolist() == [0.5, 0.5, 0.5]
    assert by_class.probability.tolist() == [3 / 7, 1 / 3, 0.55]
    assert [by_class.mask[labels == label].sum() for label in (0, 1)] == [3, 1]


def test_confusion_counts_and_transition_matrix() -> None:
    true_labels = np.array([0, 0, 0, 0, 1, 1], dtype=np.int64)
    given_labels = np.array([0, 0, 0, 2, 1, 0], dtype=np.int64)
    assert confusion_counts(true_labels, given_labels, 3).tolist() == [[3, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert transition_matrix(true_labels, given_labels, 3).tolist() == [[0.75, 0, 0.25], [0.5, 0.5, 0], [0, 0, 0]]


def test_listing_the_generators_imports_no_numpy() -> None:
    code = "import sys, lnlbench.builtin.noise as noise; print(noise.ENTRIES[0].name, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["symmetric", "False"]
