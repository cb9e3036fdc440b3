"""The ranks of the pages are those of a comparison, though no pair of methods is made."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnlbench.leaderboard import statistics
from lnlbench.leaderboard.statistics import compare_pairs, rank_by_tests, shared_ranks

CELLS = st.dictionaries(st.sampled_from("12345678"), st.integers(0, 100).map(lambda hits: hits / 100))
BLOCKS = st.dictionaries(st.sampled_from("abcdefg"), CELLS)
TESTS = {
    "t": (statistics.paired_t, statistics.t_probabilities),
    "wilcoxon": (statistics.wilcoxon, statistics.wilcoxon_probabilities),
}


@pytest.mark.parametrize("test", TESTS)
@given(block=BLOCKS)
@settings(derandomize=True, deadline=None)
def test_the_same_ranks_as_from_all_pairs(test: str, block: dict[str, dict[str, float]]) -> None:
    of_pairs, probabilities = TESTS[test]
    means = {name: fmean(cells.values()) for name, cells in block.items() if cells}
    wanted = shared_ranks(means, compare_pairs(block, of_pairs))
    assert list(rank_by_tests(means, block, probabilities).items()) == list(wanted.items())


def test_what_differs_clearly_has_a_rank_of_its_own() -> None:
    block = {"a": {"1": 0.90, "2": 0.92, "3": 0.94}, "b": {"1": 0.40, "2": 0.41, "3": 0.43}}
    means = {"a": 0.92, "b": 0.41, "never run": 0.5}
    assert rank_by_tests(means, block, statistics.t_probabilities) == {"a": 1, "never run": None, "b": 2}
