from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.leaderboard.standings import Comparison, Standing, compare, read_records, select, standings
from lnlbench.leaderboard.statistics import (
    Pair,
    Ranking,
    Verdict,
    bootstrap_interval,
    compare_pairs,
    critical_difference_svg,
    describe,
    holm,
    rank_over_cells,
    shared_ranks,
    t_interval,
    wilcoxon,
)
from lnlbench.leaderboard.store import score
from lnlbench.records import CellSpec, MethodSpec, NoiseSpec, RunRecord, Scores

Spec = Callable[..., CellSpec]
Record = Callable[..., RunRecord]

ACCURACIES = st.integers(0, 500).map(lambda right: right / 500)
CELLS = st.dictionaries(st.sampled_from("1234"), ACCURACIES)


def scores(last10: float, last: float = 0.5, best: float = 0.9, **further: float) -> Scores:
    return Scores(last10=last10, last=last, best=best, best_epoch=0, **further)


def numbered(values: list[float]) -> dict[str, float]:
    return {str(seed): value for seed, value in enumerate(values)}


def test_a_sample_worked_by_hand() -> None:
    sample = describe([0.95, 0.90, 0.91])
    # Mean 0.92; deviations 3, -2, -1 hundredths; sqrt(14 / 2) = 2.6458. Student's quantile of 2 degrees is 4.3027.
    assert sample.n == 3
    assert sample.mean == pytest.approx(0.92)
    assert sample.sd == pytest.approx(0.026458, abs=1e-6)
    assert sample.interval is not None
    half = 4.30265 * 0.0264575 / math.sqrt(3)
    assert (sample.interval.low, sample.interval.high) == pytest.approx((0.92 - half, 0.92 + half), abs=1e-6)


def test_what_a_spread_needs() -> None:
    assert describe([]) == describe(())
    assert (describe([]).n, describe([]).mean, describe([]).sd, describe([]).interval) == (0, None, None, None)
    assert (describe([0.9]).mean, describe([0.9]).sd, describe([0.9]).interval) == (0.9, None, None)
    # Sums of tenths are never quite equal in floating point; these are meant to be.
    equal = [0.3, 0.1 + 0.2, 0.3]
    assert describe(equal).sd == pytest.approx(0.0, abs=1e-12)
    assert (describe(equal).interval, t_interval(equal), bootstrap_interval(equal)) == (None, None, None)
    assert bootstrap_interval([0.9]) is None


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    values = [0.90, 0.91, 0.95]
    means = np.sort([np.mean(each) for each in itertools.product(values, repeat=3)])
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    found = bootstrap_interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    assert bootstrap_interval([0.95, 0.90, 0.91]) == found == bootstrap_interval(values)


@given(st.lists(ACCURACIES, max_size=8))
def test_intervals_hold_the_mean_whatever_the_scores(values: list[float]) -> None:
    sample = describe(values)
    assert sample == describe(values[::-1])
    if sample.interval is None:
        assert len(set(values)) < 2
    else:
        assert sample.mean is not None
        assert sample.interval.low < sample.mean < sample.interval.high
        low, high = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
        assert (sample.interval.low, sample.interval.high) == pytest.approx((low, high))


def test_holm_worked_by_hand() -> None:
    # Ascending 0.01, 0.03, 0.04 times 3, 2, 1 is 0.03, 0.06, 0.04; a later one is never below an earlier one.
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    assert holm([None, None]) == [None, None]
    assert holm([]) == []


def test_a_pair_worked_by_hand() -> None:
    block = {"a": numbered([0.90, 0.92, 0.94]), "b": numbered([0.88, 0.91, 0.91])}
    (pair,) = compare_pairs(block)
    # Differences 2, 1, 3 hundredths: t = 2 / (1 / sqrt 3) = 3.4641; with two degrees p = 1 - t / sqrt(t^2 + 2).
    assert pair.n == 3
    assert pair.difference == pytest.approx(0.02)
    assert pair.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14), abs=1e-9)
    assert pair.p_holm == pair.p
    assert pair.interval is not None
    assert (pair.interval.low, pair.interval.high) == pytest.approx((0.02 - 0.024841, 0.02 + 0.024841), abs=1e-6)
    assert pair.verdict == "not separable"
    (clear,) = compare_pairs({"a": numbered([0.90, 0.92, 0.94]), "b": numbered([0.40, 0.41, 0.43])})
    assert clear.verdict == "better"
    (turned,) = compare_pairs({"b": numbered([0.40, 0.41, 0.43]), "a": numbered([0.90, 0.92, 0.94])})
    assert (turned.verdict, turned.p, turned.difference) == ("worse", clear.p, -clear.difference)


def test_only_common_cells_are_compared() -> None:
    block = {"a": {"1": 0.9, "2": 0.8, "3": 0.7}, "b": {"2": 0.7, "3": 0.5, "4": 0.1}, "c": {"3": 0.7}, "d": {"9": 0.3}}
    pairs = compare_pairs(block)
    found = {(pair.first, pair.second): pair for pair in pairs}
    assert list(found) == list(itertools.combinations("abcd", 2))
    assert (found["a", "b"].n, found["a", "b"].difference) == (2, pytest.approx(0.15))
    assert found["a", "b"].p == pytest.approx(stats.ttest_rel([0.8, 0.7], [0.7, 0.5]).pvalue)
    assert (found["a", "c"].n, found["a", "c"].difference, found["a", "c"].p) == (1, 0.0, None)
    assert (found["c", "d"].n, found["c", "d"].difference, found["c", "d"].verdict) == (0, None, "not tested")
    assert found["a", "c"].verdict == "not tested"


def test_differences_without_spread_are_not_judged() -> None:
    same = {"a": numbered([0.9, 0.8, 0.7]), "b": numbered([0.6, 0.5, 0.4]), "c": numbered([0.9, 0.8, 0.7])}
    for test in (None, wilcoxon):
        pairs = compare_pairs(same, test)
        assert {each.p for each in pairs} == {None}
        assert {each.verdict for each in pairs} == {"not separable"}
        assert [round(each.difference or 0.0, 9) for each in pairs] == [0.3, 0.0, -0.3]


def test_the_correction_is_over_all_pairs() -> None:
    block = {"a": numbered([0.90, 0.92, 0.94]), "b": numbered([0.88, 0.91, 0.91]), "c": numbered([0.1, 0.2, 0.4])}
    pairs = compare_pairs(block)
    assert [each.p_holm for each in pairs] == holm([each.p for each in pairs])
    (alone,) = compare_pairs({name: block[name] for name in "ac"})
    assert alone.p == pairs[1].p
    assert pairs[1].p_holm is not None
    assert alone.p == alone.p_holm < pairs[1].p_holm
    assert compare_pairs({"a": {"1": 0.5}}) == compare_pairs({}) == []
    assert [each.verdict for each in compare_pairs({"a": {}, "b": {}})] == ["not tested"]


@settings(max_examples=15)
@given(st.fixed_dictionaries(dict.fromkeys("abc", CELLS)), st.booleans())
def test_pairs_are_what_scipy_says_of_each_by_itself(block: dict[str, dict[str, float]], ranks: bool) -> None:
    pairs = compare_pairs(block, wilcoxon if ranks else None)
    for each in pairs:
        shared = sorted(set(block[each.first]) & set(block[each.second]))
        differences = [round(block[each.first][cell] - block[each.second][cell], 9) for cell in shared]
        assert each.n == len(shared)
        assert each.difference == (pytest.approx(np.mean(differences), abs=1e-12) if shared else None)
        if len(shared) < 2 or len(set(differences)) == 1:
            assert (each.p, each.p_holm, each.interval) == (None, None, None)
        elif not ranks:
            assert each.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
            assert each.interval is not None
            assert each.interval.low < (each.difference or 0) < each.interval.high
        elif len({abs(each) for each in differences} - {0}) == len(differences):
            assert each.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    raw = [each.p for each in pairs if each.p is not None]
    by_hand, highest = np.zeros(len(raw)), 0.0
    for place, number in enumerate(np.argsort(raw, kind="stable")):
        highest = max(highest, min(1.0, (len(raw) - place) * raw[number]))
        by_hand[number] = highest
    assert [each.p_holm for each in pairs if each.p is not None] == pytest.approx(list(by_hand))


def test_signed_ranks_worked_by_hand() -> None:
    # All of n distinct differences positive: two of 2^n sign patterns are as extreme.
    assert [p for p, _ in wilcoxon(np.array([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]]))] == [2 / 32, 2 / 32]
    assert wilcoxon(np.array([[1.0, 2, 3, 4, 5, 6]])) == [(2 / 64, None)]
    # With ties the normal approximation: here T- = 0, mean 5, variance (4 5 9 - (2^3 - 2) / 2) / 24.
    ((p, _),) = wilcoxon(np.array([[1.0, 1, 2, 3]]))
    z = (5 - 0.5) / math.sqrt((4 * 5 * 9 - 3) / 24)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-9)


def pair(first: str, second: str, verdict: Verdict) -> Pair:
    p = {"better": 0.01, "worse": 0.01, "not separable": 0.5, "not tested": None}[verdict]
    difference = {"better": 0.1, "worse": -0.1, "not separable": 0.01, "not tested": None}[verdict]
    made = Pair(first, second, 0 if difference is None else 3, difference, None, p, p)
    assert made.verdict == verdict
    return made


def test_groups_that_share_a_rank() -> None:
    means = {"a": 0.90, "b": 0.89, "c": 0.80, "d": 0.79, "e": 0.78, "f": 0.95}
    pairs = [
        pair("a", "b", "not separable"),
        pair("a", "c", "better"),
        pair("a", "d", "not separable"),
        pair("c", "d", "not separable"),
        pair("a", "e", "better"),
        pair("e", "c", "worse"),
        pair("f", "a", "not tested"),
    ]
    # d is below c, which is worse than a: it is measured by c, for a rank never contradicts the means.
    assert shared_ranks(means, pairs) == {"f": None, "a": 1, "b": 1, "c": 3, "d": 3, "e": 5}
    assert list(shared_ranks(means, pairs)) == ["f", "a", "b", "c", "d", "e"]


def test_ranks_of_what_cannot_be_tested() -> None:
    assert shared_ranks({}, []) == {}
    assert shared_ranks({"a": 0.5}, []) == {"a": None}
    assert shared_ranks({"a": 0.5, "b": 0.6}, [pair("a", "b", "not tested")]) == {"b": None, "a": None}
    pairs = [pair("a", "b", "better"), pair("a", "c", "not tested"), pair("b", "c", "not separable")]
    assert shared_ranks({"a": 0.9, "b": 0.5, "c": 0.6}, pairs) == {"a": 1, "c": None, "b": 2}


@settings(max_examples=10)
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(ACCURACIES, CELLS), min_size=1), st.randoms())
def test_ranks_are_in_the_order_of_the_means(methods: dict[str, Any], rng: random.Random) -> None:
    means = {name: mean for name, (mean, _) in methods.items()}
    pairs = compare_pairs({name: cells for name, (_, cells) in methods.items()})
    ranks = shared_ranks(means, pairs)
    shuffled = list(methods.items())
    rng.shuffle(shuffled)
    again = compare_pairs({name: cells for name, (_, cells) in shuffled})
    assert shared_ranks(dict(sorted(means.items(), reverse=True)), again) == ranks
    given_ranks = [rank for rank in ranks.values() if rank is not None]
    assert given_ranks == sorted(given_ranks)
    for number, rank in enumerate(given_ranks, start=1):
        assert rank == number or (rank < number and rank == given_ranks[number - 2])
    verdicts = {frozenset((each.first, each.second)): each.verdict for each in pairs}
    for rank in set(given_ranks):
        best, *others = [name for name in ranks if ranks[name] == rank]
        assert {verdicts[frozenset((best, other))] for other in others} <= {"not separable"}


def test_mean_ranks_worked_by_hand() -> None:
    block = {
        "a": {"1": 0.9, "2": 0.8, "3": 0.9, "only a": 0.1},
        "b": {"1": 0.8, "2": 0.9, "3": 0.9},
        "c": {"1": 0.1, "2": 0.2, "3": 0.3},
    }
    ranking = rank_over_cells(block)
    assert ranking is not None
    assert (dict(ranking.mean_ranks), ranking.cells) == ({"a": 1.5, "b": 1.5, "c": 3.0}, 3)
    assert list(ranking.mean_ranks) == ["a", "b", "c"]
    assert ranking.friedman_p == pytest.approx(stats.friedmanchisquare([9, 8, 9], [8, 9, 9], [1, 2, 3]).pvalue)
    # Nemenyi: a difference of ranks over sqrt(k (k + 1) / (6 N)), in units of a Studentized range over sqrt 2.
    q = 1.5 / math.sqrt(3 * 4 / (6 * 3)) * math.sqrt(2)
    assert ranking.nemenyi["a", "c"] == ranking.nemenyi["c", "a"]
    assert ranking.nemenyi["a", "c"] == pytest.approx(stats.studentized_range.sf(q, 3, np.inf))
    assert ranking.nemenyi["a", "b"] == pytest.approx(1.0)


def test_the_critical_difference_of_the_worked_example_in_the_paper() -> None:
    # Demšar (2006), section 3.2.2: four classifiers on 14 data sets, q = 2.569, hence 1.25.
    rng = np.random.default_rng(0)
    ranking = rank_over_cells({name: {str(cell): rng.random() for cell in range(14)} for name in "abcd"})
    assert ranking is not None
    assert ranking.critical_difference == pytest.approx(1.25, abs=0.005)


def test_rankings_that_are_undefined() -> None:
    assert rank_over_cells({}) is None
    assert rank_over_cells({"a": numbered([0.1, 0.2])}) is None
    assert rank_over_cells({"a": {"1": 0.1}, "b": {"1": 0.2}}) is None
    two = rank_over_cells({"a": numbered([0.1, 0.2]), "b": numbered([0.2, 0.3])})
    assert two is not None
    assert two.friedman_p is None
    ties = rank_over_cells({name: numbered([0.1, 0.2]) for name in "abc"})
    assert ties is not None
    assert (set(ties.mean_ranks.values()), ties.friedman_p) == ({2.0}, None)
    assert b"nan" not in critical_difference_svg(ties, "ties")


def drawing() -> bytes:
    ranks = {"css": 1.1, "ce (lr=0.1)": 2.0, "a<b>&c": 3.1, "$x$": 3.8}
    nemenyi = {(a, b): 0.5 if abs(ranks[a] - ranks[b]) < 1.2 else 0.01 for a, b in itertools.permutations(ranks, 2)}
    return critical_difference_svg(Ranking(ranks, 12, 0.01, nemenyi, 1.2), 'of "digits" & <more>')


def test_the_drawing_is_the_same_in_every_process_and_says_what_it_shows() -> None:
    svg = drawing()
    # The order of sets of texts depends on this variable.
    script = f"import runpy, sys; sys.stdout.buffer.write(runpy.run_path({__file__!r})['drawing']())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    assert (
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout == svg
    )
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own bytes
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    label = root.get("aria-label", "")
    assert label.startswith(
        'of "digits" & <more>: mean ranks over 12 cells, 1 is best: css 1.10, ce (lr=0.1) 2.00, a<b>'
    )
    assert (
        "Critical difference 1.20. Not separable: css and ce (lr=0.1); ce (lr=0.1) and a<b>&c; a<b>&c and $x$." in label
    )
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(each).startswith("cd-") for each in ids)
    references = {each.get("{http://www.w3.org/1999/xlink}href", "#")[1:] for each in root.iter()} - {""}
    assert references <= set(ids)
    assert b"currentColor" in svg
    assert not [word for word in (b"<date>", b"#010203", b"#000000", b"http://localhost") if word in svg]


def test_a_drawing_names_pairs_that_are_separable_by_nothing() -> None:
    ranking = Ranking({"a": 1.0, "b": 2.0}, 9, None, {("a", "b"): 0.01, ("b", "a"): 0.01}, 0.7)
    assert b"Not separable: none." in critical_difference_svg(ranking, "x")


def test_the_seam_to_the_libraries_is_silent_on_every_degenerate_board() -> None:
    # pytest turns warnings into errors, so that going through is what is tested; and nothing is NaN.
    for values in ([], [0.5], [0.5, 0.5], [0.0, 1.0], [1.0, 1.0, 1.0]):
        block = {name: numbered(values) for name in "abc"}
        for test in (None, wilcoxon):
            for each in compare_pairs(block, test):
                assert all(number is None or math.isfinite(number) for number in (each.difference, each.p, each.p_holm))
        ranking = rank_over_cells(block)
        assert ranking is None or json.dumps(dict(ranking.mean_ranks), allow_nan=False)


# Standings: which runs are compared at all.


@pytest.fixture
def runs(spec: Spec, record: Record) -> Callable[..., list[RunRecord]]:
    """``runs(method, {task: [score, ...]}, **of the specification)``: seeds from 1 on; ``None`` is a diverged run."""

    def make(method: str, tasks: dict[str, list[float | None]], **changes: Any) -> list[RunRecord]:
        return [
            record(spec(method, task, seed, **changes), None if value is None else scores(value))
            for task, values in tasks.items()
            for seed, value in enumerate(values, start=1)
        ]

    return make


Runs = Callable[..., list[RunRecord]]


def of(records: list[RunRecord], *names: str, **options: Any) -> Standing:
    (standing,) = select(records, names, **options)
    return standing


def verdicts(comparison: Comparison) -> dict[str, list[str]]:
    return {result.task: [each.verdict for each in result.pairs] for result in comparison.tasks}


def test_two_methods_over_a_suite(runs: Runs) -> None:
    records = runs("css", {"0.20": [0.95, 0.96, 0.97], "0.40": [0.90, 0.92, 0.94]})
    records += runs("ce", {"0.20": [0.40, 0.41, 0.43], "0.40": [0.88, 0.91, 0.91]})
    comparison = compare(of(records, "css", "ce"))
    assert verdicts(comparison) == {"0.20": ["better"], "0.40": ["not separable"]}
    assert dict(comparison.means) == pytest.approx({"css": 0.94, "ce": (1.24 / 3 + 0.90) / 2})
    (overall,) = comparison.pairs
    assert (overall.n, overall.difference) == (6, pytest.approx((0.55 + 0.55 + 0.54 + 0.02 + 0.01 + 0.03) / 6))
    differences = [0.55, 0.55, 0.54, 0.02, 0.01, 0.03]
    assert overall.p == pytest.approx(stats.wilcoxon(differences, correction=True, method="asymptotic").pvalue)
    assert comparison.ranks == {"css": 1, "ce": 2}
    assert comparison.ranking is not None
    assert (dict(comparison.ranking.mean_ranks), comparison.ranking.cells) == ({"css": 1.0, "ce": 2.0}, 6)
    assert comparison.incomplete == {}
    assert [result.ranks for result in comparison.tasks] == [{"css": 1, "ce": 2}, {"css": 1, "ce": 1}]


def test_pairs_have_the_same_seed_and_the_same_labels(runs: Runs) -> None:
    records = runs("css", {"0.40": [0.9, 0.8, 0.7]}) + runs("ce", {"0.40": [0.6, 0.5]}, noise_seed=7)
    (result,) = compare(of(records)).tasks
    assert [(each.n, each.verdict) for each in result.pairs] == [(0, "not tested")]
    assert [sample.n for sample in result.samples.values()] == [2, 3]
    assert set(result.ranks.values()) == {None}
    assert compare(of(records)).ranking is None


def test_missing_and_diverged_runs_are_left_out_and_told(runs: Runs) -> None:
    tasks = {"0.20": [0.5, 0.6, 0.8], "0.40": [0.5, 0.6, 0.7]}
    records = runs("a", tasks) + runs("b", {**tasks, "0.40": [0.5, 0.61, None]}) + runs("c", {"0.20": [0.5, 0.6]})
    records += runs("d", tasks) + runs("e", {"0.20": [None, None]})
    comparison = compare(of(records))
    low, high = comparison.tasks
    assert {name: sample.n for name, sample in high.samples.items()} == {"a": 3, "b": 2, "c": 0, "d": 3, "e": 0}
    assert {name: seeds for name, seeds in low.diverged.items() if seeds} == {"e": (1, 2)}
    assert {name: seeds for name, seeds in high.diverged.items() if seeds} == {"b": (3,)}
    assert {(each.first, each.second): each.n for each in high.pairs if each.n} == {
        ("a", "b"): 2,
        ("a", "d"): 3,
        ("b", "d"): 2,
    }
    assert set(comparison.means) == {"a", "b", "d"}
    assert comparison.ranking is not None
    assert set(comparison.ranking.mean_ranks) == {"a", "d"}
    assert comparison.incomplete == {
        "b": "diverged on 0.40 seed 3",
        "c": "no finished run on 0.40",
        "e": "no finished run on 0.20, 0.40; diverged on 0.20 seed 1, 0.20 seed 2",
    }


def test_a_suite_has_mean_ranks_only_if_every_task_has_a_common_cell(runs: Runs) -> None:
    records = runs("a", {"0.20": [0.5, 0.6, 0.7], "0.40": [0.5]}) + runs("b", {"0.20": [0.5, 0.6, 0.7]})
    records += [each for each in runs("b", {"0.40": [0.5, 0.5]}) if each.spec.seed == 2]
    assert compare(of(records)).incomplete == {}
    assert compare(of(records)).ranking is None


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"edition": "jpeg", "edition_digest": "e" * 64}, "digits-sym, edition jpeg"),
        ({"limit_train": 100}, "digits-sym, 100 training images"),
        ({"suite_version": 2}, "digits-sym, version 2"),
        ({"numerics": 99}, "digits-sym, numerics 99"),
        ({"edition": "own"}, "digits-sym"),
    ],
    ids=str,
)
def test_results_that_differ_in_more_than_the_method_are_kept_apart(
    runs: Runs, change: dict[str, Any], title: str
) -> None:
    records = runs("a", {"0.40": [0.5, 0.6]}) + runs("b", {"0.40": [0.5, 0.7]})
    apart = select([*records, *runs("a", {"0.40": [0.1, 0.2]}, **change), *runs("c", {"0.40": [0.3]}, **change)])
    usual, other = sorted(apart, key=lambda each: "c" in [entry.name for entry in each.entries])
    assert [entry.name for entry in usual.entries] == ["a", "b"]
    assert [entry.name for entry in other.entries] == ["a", "c"]
    assert other.title == title
    (result,) = compare(usual).tasks
    assert result.samples["a"].mean == pytest.approx(0.55)


def test_own_data_are_told_apart_by_their_digest(runs: Runs) -> None:
    first = runs("a", {"0.40": [0.5]}, edition="own")
    second = [each.model_copy(update={"data": each.data.model_copy(update={"digest": "e" * 64})}) for each in first]
    assert [each.title for each in standings([*first, *second])] == [
        "digits-sym, data dddddddd",
        "digits-sym, data eeeeeeee",
    ]


def test_reduced_runs_stand_apart_and_only_if_asked_for(runs: Runs) -> None:
    short: dict[str, Any] = {"config": {"epochs": 2}, "changed": {"epochs": 2}, "reduced": ("2 of 12 epochs",)}
    records = runs("a", {"0.40": [0.5]}) + runs("a", {"0.40": [0.1]}, **short) + runs("b", {"0.40": [0.2]}, **short)
    (full,) = select(records)
    assert ([entry.name for entry in full.entries], full.reduced, full.title) == (["a"], False, "digits-sym")
    _, reduced = select(records, reduced=True)
    assert ([entry.name for entry in reduced.entries], reduced.title) == (["a", "b"], "digits-sym, reduced runs")
    with pytest.raises(UsageError, match="b has on digits-sym only reduced runs; --reduced takes them"):
        select(records, ["b"])
    with pytest.raises(UsageError, match="digits-sym has no full runs; --reduced takes the reduced ones"):
        select([each for each in records if each.spec.reduced])


def test_entries_are_named_by_what_tells_them_apart(runs: Runs) -> None:
    chooser = MethodSpec(
        name="chooser",
        version="1",
        distribution="x",
        config={},
        changed={},
        supervision=("clip",),
        networks=1,
        asked=(),
    )
    task = {"0.40": [0.5]}
    records = (
        runs("a", task) + runs("a", task, changed={"lr": 0.5}, config={"lr": 0.5}) + runs("a", task, selector=chooser)
    )
    assert [entry.name for entry in of(records).entries] == ["a", "a (from chooser's selection)", "a (lr=0.5)"]
    assert [entry.name for entry in of(records, "a (lr=0.5)", "a").entries] == ["a (lr=0.5)", "a"]
    records += runs("a", task, version="0.2.0") + runs("a", task, precision="bf16")
    names = [entry.name for entry in of(records).entries]
    assert len(set(names)) == 5
    assert {"a 0.2.0", "a 0.1.0 float32", "a 0.1.0 bf16"} < set(names)
    with pytest.raises(UsageError, match=r'a has several entries on digits-sym; name one of these: "a \(from'):
        select(records, ["a"])
    with pytest.raises(UnknownNameError, match=r"unknown method on the board of digits-sym 'aa'"):
        select(records, ["aa"])


def test_a_preset_that_changed_without_its_version_splits_the_entry(runs: Runs) -> None:
    records = runs("a", {"0.40": [0.5, 0.6], "0.60": [0.4]}) + runs("a", {"0.40": [0.1]}, config={"lr": 0.9})
    names = [entry.name for entry in of(records).entries]
    assert len(names) == 3
    assert all(name.startswith("a ") and len(name) == len("a ") + 8 for name in names)
    changed = runs("b", {"0.40": [0.5]}, changed={"x": "\x1b[31m" + "y" * 200}, config={"x": 1})
    (entry,) = of(changed).entries
    assert entry.name.isprintable()
    assert len(entry.name) < 100


def test_presets_may_differ_by_task(runs: Runs) -> None:
    records = runs("a", {"0.40": [0.5]}, config={"lambda_u": 25}) + runs("a", {"0.60": [0.4]}, config={"lambda_u": 0})
    records += runs("b", {"0.40": [0.5], "0.60": [0.4]})
    assert [(entry.name, entry.ruleset) for entry in of(records).entries] == [("a", "tuned"), ("b", "agnostic")]
    assert [entry.name for entry in of(records, ruleset="agnostic").entries] == ["b"]
    with pytest.raises(UsageError, match="a has on digits-sym only runs under another ruleset than 'agnostic'"):
        select(records, ["a"], ruleset="agnostic")
    with pytest.raises(UsageError, match="digits-sym has no runs under the ruleset 'tuned'"):
        select([each for each in records if each.spec.method.name == "b"], ruleset="tuned")


def test_each_test_set_is_a_task(spec: Spec, record: Record) -> None:
    own = NoiseSpec(generator="own", options={}, rate=None, seed=None)
    records = [
        record(
            spec(method, "full", seed, noise=own, test_sets=("webvision", "ilsvrc12")),
            scores(0.5 + seed / 10),
            further_scores={"ilsvrc12": scores(0.4 + seed / 10, best_val=0.3)},
        )
        for method in ("a", "b")
        for seed in (1, 2)
    ]
    comparison = compare(of(records))
    assert [result.task for result in comparison.tasks] == ["ilsvrc12", "webvision"]
    assert [result.samples["a"].mean for result in comparison.tasks] == pytest.approx([0.55, 0.65])
    by_val = compare(of(records), "best_val")
    assert [result.samples["a"].n for result in by_val.tasks] == [2, 0]


def test_records_come_from_the_bundles(run: Callable[..., Path], spec: Spec, board: Path) -> None:
    score([run(spec("ce", seed=seed)) for seed in (1, 2)], board)
    assert sorted(each.spec.seed for each in read_records(board, "digits-sym")) == [1, 2]
    with pytest.raises(UnknownNameError, match="did you mean 'digits-sym'"):
        read_records(board, "digits-sim")
    (board / "bundles" / "empty").mkdir()
    with pytest.raises(UsageError, match="no runs of empty on the board"):
        read_records(board, "empty")
    bundles = sorted((board / "bundles" / "digits-sym").iterdir())
    (bundles[0] / "run.json").write_text("{}")
    with pytest.raises(DataError):
        read_records(board, "digits-sym")
