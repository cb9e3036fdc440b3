"""Statistics of scores: intervals, paired tests, methods that share a rank, mean ranks over a suite.

Scores are fractions. What is undefined (the spread of a single run, the test of differences that are all alike) is
``None``, never NaN, and nothing warns. The formulas are those of SciPy, statsmodels and scikit-posthocs, which are
imported where they are used because that takes seconds.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Level of every interval."""

ALPHA = 0.05
"""Two methods are separable if the corrected probability of their difference is below this."""

RESAMPLES = 9999
"""Bootstrap samples per interval."""

_SEED = 20240501
_DIGITS = 9
"""Scores are ratios of small whole numbers; beyond this decimal there is nothing but rounding errors."""

_INK = "#010203"
"""A colour nothing else has, to be replaced by that of the surrounding text."""

Verdict = Literal["better", "worse", "not separable", "not tested"]


@dataclass(frozen=True)
class Interval:
    """An interval of confidence."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


Block = Mapping[str, Mapping[str, float]]
"""For each method its scores by cell. A cell is named so that the same noise and seed have the same name."""

Tested = list[tuple[float, Interval | None]]
"""For each row of differences the probability that there is none, and the interval of their mean if there is one."""

Test = Callable[[NDArray[np.float64]], Tested]
"""Takes differences, shape (P pairs, n cells), no row of which is constant."""

Probabilities = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes the same, and returns nothing but the probabilities, shape (P,)."""


@dataclass(frozen=True)
class Sample:
    """The scores of one method on one task."""

    n: int
    """How many there are."""
    mean: float | None
    """Their mean; ``None`` if there are none."""
    sd: float | None
    """Their sample standard deviation (n - 1); ``None`` below two."""
    interval: Interval | None
    """95 % interval of the mean by Student's t; ``None`` below two scores, or if all are equal."""


@dataclass(frozen=True)
class Pair:
    """The comparison of two methods on the cells that both have finished."""

    first: str
    """One method."""
    second: str
    """The other one."""
    n: int
    """Cells in common: same task, training seed and given labels."""
    difference: float | None
    """Mean of the differences, first minus second; ``None`` if there is no common cell."""
    interval: Interval | None
    """95 % interval of that mean by Student's t; ``None`` where the test is undefined."""
    p: float | None
    """Two-sided probability; ``None`` below two common cells, or if all differences are equal."""
    p_holm: float | None
    """The same after Holm's correction over all pairs that were compared together."""

    @property
    def verdict(self) -> Verdict:
        """What is said of the first method. Differences that are all equal have no spread to judge them by."""
        if self.n < 2 or self.difference is None:
            return "not tested"
        if self.p_holm is None or self.p_holm >= ALPHA:
            return "not separable"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over the cells that all of them have finished (Demšar 2006). Rank 1 is best."""

    mean_ranks: Mapping[str, float]
    """Mean rank by method, best first."""
    cells: int
    """How many cells they are over."""
    friedman_p: float | None
    """Friedman's test that all methods are alike; ``None`` below three methods, or if every cell is a tie."""
    nemenyi: Mapping[tuple[str, str], float]
    """Nemenyi's probability for each pair of methods, in both orders."""
    critical_difference: float
    """Mean ranks that differ by less are not separable by Nemenyi's test at 5 %."""


def describe(scores: Sequence[float]) -> Sample:
    """Summarise the scores of one method on one task, which come in any order."""
    scores = sorted(scores)
    mean = statistics.fmean(scores) if scores else None
    sd = statistics.stdev(scores) if len(scores) > 1 else None
    return Sample(len(scores), mean, sd, t_interval(scores))


def t_interval(scores: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the mean by Student's t; ``None`` below two scores, or if all are equal."""
    if not _varies(scores):
        return None
    from scipy import stats

    low, high = stats.t.interval(LEVEL, len(scores) - 1, loc=np.mean(scores), scale=stats.sem(scores))
    return Interval(float(low), float(high))


def bootstrap_interval(scores: Sequence[float]) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of the mean (Efron 1979), the same one on each call.

    It never leaves the range of the scores, so with a handful of them it is too narrow. ``None`` below two scores, or
    if all are equal.
    """
    if not _varies(scores):
        return None
    from scipy import stats

    found = stats.bootstrap(
        (np.sort(np.asarray(scores, dtype=np.float64)),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _varies(scores: Sequence[float]) -> bool:
    return len(scores) > 1 and bool(np.ptp(np.round(scores, _DIGITS)) > 0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct probabilities for being many (Holm 1979). Tests that are undefined stay so and do not count."""
    return _optional(_holm(np.array([math.nan if p is None else p for p in p_values], dtype=np.float64)))


def _holm(p_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Do the same for an array, in which NaN stands for what is undefined."""
    defined = ~np.isnan(p_P)
    if not defined.any():
        return p_P
    from statsmodels.stats.multitest import multipletests

    corrected_P = p_P.copy()
    # The library collects garbage in each call, which takes half a second where a large board is in memory.
    with memory_set_aside():
        corrected_P[defined] = multipletests(p_P[defined], method="holm")[1]
    return corrected_P


_set_aside = 0
"""How many of those below are open in this process."""


@contextlib.contextmanager
def memory_set_aside() -> Iterator[None]:
    """Keep the garbage collector away from all that is there now, also in processes that are forked meanwhile."""
    global _set_aside
    # What came into being since the last time is set aside as well; this only joins two lists.
    gc.freeze()
    _set_aside += 1
    try:
        yield
    finally:
        _set_aside -= 1
        if not _set_aside:
            gc.unfreeze()


def _optional(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def compare_pairs(block: Block, test: Test | None = None) -> list[Pair]:
    """Compare every two methods, and correct over all pairs.

    Args:
        block: Usually the scores on a task. Only cells that both methods have enter their comparison.
        test: Student's paired test by default.

    Returns:
        The pairs, in the order in which the block names the methods.
    """
    names = list(block)
    couples, differences = _differences(block)
    counts, means = _summarised(differences)
    results: list[tuple[float, Interval | None] | None] = [None] * len(couples)
    for rows, cells in _alike(differences):
        for row, tested in zip(rows, (test or paired_t)(differences[rows][:, cells]), strict=True):
            results[row] = tested
    corrected = holm([None if result is None else result[0] for result in results])
    made = []
    for (one, other), n, mean, result, p_holm in zip(couples, counts, means, results, corrected, strict=True):
        p, interval = result or (None, None)
        made.append(Pair(names[one], names[other], int(n), float(mean) if n else None, interval, p, p_holm))
    return made


def rank_by_tests(means: Mapping[str, float], block: Block, probabilities: Probabilities) -> dict[str, int | None]:
    """Return the :func:`shared_ranks` of all pairs of a block, in a fraction of the time: no pair is made.

    Args:
        means: Mean score of each method.
        block: What :func:`compare_pairs` takes.
        probabilities: :func:`t_probabilities` or :func:`wilcoxon_probabilities`.
    """
    couples, differences = _differences(block)
    counts, _ = _summarised(differences)
    p_P = np.full(len(couples), math.nan)
    for rows, cells in _alike(differences):
        p_P[rows] = probabilities(differences[rows][:, cells])
    numbers = {name: number for number, name in enumerate(block)}
    tested = np.zeros((len(numbers), len(numbers)), dtype=np.bool_)
    separable = np.zeros_like(tested)
    corrected_P = _holm(p_P)
    for one, other in (couples.T, couples.T[::-1]):
        tested[one, other] = counts >= 2
        separable[one, other] = corrected_P < ALPHA

    def verdict(best: str, method: str) -> Verdict:
        pair = numbers[best], numbers[method]
        # The best one has the higher mean.
        return "better" if separable[pair] else "not separable" if tested[pair] else "not tested"

    return _rank(means, {name for name, number in numbers.items() if tested[number].any()}, verdict)


def _differences(block: Block) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return every two methods of a block by their numbers, shape (P, 2), and how much the first is better.

    The differences have shape (P, n) for n cells, and are NaN where one of the two has no score.
    """
    couples = np.array(list(itertools.combinations(range(len(block)), 2)), dtype=np.int64).reshape(-1, 2)
    cells = sorted({cell for scores in block.values() for cell in scores})
    table = np.array([[scores.get(cell, math.nan) for cell in cells] for scores in block.values()], dtype=np.float64)
    table = table.reshape(len(block), len(cells))
    return couples, np.round(table[couples[:, 0]] - table[couples[:, 1]], _DIGITS)


def _summarised(differences: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each row how many differences there are, and their mean; 0 if there are none."""
    counts = np.count_nonzero(~np.isnan(differences), axis=1)
    return counts, np.nansum(differences, axis=1) / np.maximum(counts, 1)


def _alike(differences: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield the rows that can be tested together, as they have the same cells; and these cells."""
    present = ~np.isnan(differences)
    for mask in present[:1] if present.all() else np.unique(present, axis=0):
        if mask.sum() < 2:
            continue
        rows = np.flatnonzero((present == mask).all(axis=1))
        rows = rows[np.ptp(differences[rows][:, mask], axis=1) > 0]
        if len(rows):
            yield rows, mask


def paired_t(differences_Pn: NDArray[np.float64]) -> Tested:
    """Return, for each row of differences, Student's two-sided paired probability and the interval of the mean."""
    from scipy import stats

    found = stats.ttest_1samp(differences_Pn, 0.0, axis=1)
    intervals = found.confidence_interval(LEVEL)
    return [
        (float(p), Interval(float(low), float(high)))
        for p, low, high in zip(found.pvalue, intervals.low, intervals.high, strict=True)
    ]


def t_probabilities(differences_Pn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of :func:`paired_t` alone, shape (P,)."""
    from scipy import stats

    return np.asarray(stats.ttest_1samp(differences_Pn, 0.0, axis=1).pvalue)


def wilcoxon(differences_Pn: NDArray[np.float64]) -> Tested:
    """Return, for each row of differences, the two-sided probability of Wilcoxon's signed-rank test (1945).

    It is exact where no two differences tie, up to 50 of them, else by the normal approximation. Cells in which two
    methods are equal say nothing in this test.
    """
    return [(p, None) for p in wilcoxon_probabilities(differences_Pn).tolist()]


def wilcoxon_probabilities(differences_Pn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of :func:`wilcoxon` as an array, shape (P,)."""
    from scipy import stats

    sizes = np.sort(np.abs(differences_Pn), axis=1)
    exact = (sizes[:, :1] > 0).all(axis=1) & (np.diff(sizes, axis=1) > 0).all(axis=1) & (sizes.shape[1] <= 50)
    p_P = np.empty(len(differences_Pn))
    for rows, method in ((exact, "exact"), (~exact, "approx")):
        if rows.any():
            found = stats.wilcoxon(differences_Pn[rows], correction=method == "approx", method=method, axis=1)
            p_P[rows] = found.pvalue
    return p_P


def shared_ranks(means: Mapping[str, float], pairs: Sequence[Pair]) -> dict[str, int | None]:
    """Rank methods so that those which are not separable share a rank.

    Go down the means: a method joins the group above it unless it is separable from that group's best; if it is, it
    is the best of a group of its own. A group's rank is one more than the number of methods in better groups. A
    method that cannot be tested against the best of the group above it has no rank, and is nobody's measure.

    Args:
        means: Mean score of each method; methods without one are left out.
        pairs: All comparisons among them. A method that is in no pair with two common cells has no rank.

    Returns:
        The rank of each method, best first; ``None`` if it has none. Equal means come in the order of their names.
    """
    verdicts: dict[tuple[str, str], Verdict] = {}
    testable = set()
    for pair in pairs:
        verdicts[pair.first, pair.second] = verdicts[pair.second, pair.first] = pair.verdict
        if pair.verdict != "not tested":
            testable |= {pair.first, pair.second}
    return _rank(means, testable, lambda first, second: verdicts.get((first, second), "not tested"))


def _rank(
    means: Mapping[str, float], testable: Set[str], verdict: Callable[[str, str], Verdict]
) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    best, rank, ranked = None, 1, 0
    for method in sorted(means, key=lambda each: (-means[each], each)):
        judged = "not tested" if method not in testable else "better" if best is None else verdict(best, method)
        if judged == "not tested":
            ranks[method] = None
            continue
        if judged != "not separable":
            best, rank = method, ranked + 1
        ranks[method] = rank
        ranked += 1
    return ranks


def rank_over_cells(scores: Block) -> Ranking | None:
    """Rank methods in each cell that all of them have finished, and average; equal scores share their mean rank.

    Returns:
        The ranking; ``None`` below two methods or two common cells.
    """
    cells = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    if len(scores) < 2 or len(cells) < 2:
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy import stats

    methods = sorted(scores)
    losses = -np.round([[scores[method][cell] for method in methods] for cell in cells], _DIGITS)
    ranks = stats.rankdata(losses, axis=1).mean(axis=0)
    probabilities = posthoc_nemenyi_friedman(losses).to_numpy()
    # Demšar (2006), section 3.2.2: the Studentized range quantile is to be divided by the square root of two.
    quantile = stats.studentized_range.ppf(1 - ALPHA, len(methods), np.inf) / math.sqrt(2)
    order = sorted(range(len(methods)), key=lambda each: (ranks[each], methods[each]))
    return Ranking(
        mean_ranks={methods[each]: float(ranks[each]) for each in order},
        cells=len(cells),
        friedman_p=_friedman(losses),
        nemenyi={
            (methods[one], methods[other]): float(probabilities[one, other])
            for one, other in itertools.permutations(range(len(methods)), 2)
        },
        critical_difference=float(quantile * math.sqrt(len(methods) * (len(methods) + 1) / (6 * len(cells)))),
    )


def _friedman(losses: NDArray[np.float64]) -> float | None:
    from scipy import stats

    if losses.shape[1] < 3 or not np.ptp(losses, axis=1).any():
        return None
    return float(stats.friedmanchisquare(*losses.T).pvalue)


def critical_difference_svg(ranking: Ranking, title: str) -> bytes:
    """Draw mean ranks, with a bar across methods that Nemenyi's test does not separate (Demšar 2006, figure 1).

    The drawing takes the colour of the surrounding text, and says in words what it shows. Same ranking, same bytes.

    Args:
        ranking: What to draw.
        title: What the ranks are of; the beginning of the text alternative.

    Returns:
        An ``<svg>`` element in UTF-8, to be put into a page or a file.
    """
    import pandas as pd
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    methods = list(ranking.mean_ranks)
    # Numbers stand for the methods, since the library walks through sets, whose order changes with the hash of a text.
    numbers = range(len(methods))
    matrix = [[ranking.nemenyi.get((one, other), 1.0) for other in methods] for one in methods]
    colours = dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color"), _INK)
    with style.context(["default", {"svg.hashsalt": "lnlbench", "svg.fonttype": "path", **colours}]):
        figure = Figure(figsize=(8, 1.2 + 0.25 * len(methods)))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        drawn = critical_difference_diagram(
            dict(zip(numbers, ranking.mean_ranks.values(), strict=True)),
            pd.DataFrame(matrix, index=numbers, columns=numbers),
            alpha=ALPHA,
            ax=axes,
            label_fmt_left="{label:.0f}",
            label_fmt_right="{label:.0f}",
            label_props={"parse_math": False},
            elbow_props={"color": _INK, "linewidth": 1},
            crossbar_props={"color": _INK},
        )
        for label in drawn["labels"]:
            method = methods[int(label.get_text())]
            label.set_text(f" {method} ({ranking.mean_ranks[method]:.2f}) ")
        # The library would draw this bar through the numbers of the axis.
        best = ranking.mean_ranks[methods[0]]
        axes.plot([best, best + ranking.critical_difference], [1.8, 1.8], color=_INK, linewidth=2)
        axes.text(best, 2.1, f"critical difference {ranking.critical_difference:.2f}")
        target = io.BytesIO()
        figure.savefig(
            target,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = target.getvalue().decode()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Several drawings may share a page, and ids are of the page.
    prefix = f"cd-{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg", f'<svg role="img" aria-label={quoteattr(_in_words(ranking, title))}', 1).encode()


def _in_words(ranking: Ranking, title: str) -> str:
    ranks = ", ".join(f"{method} {rank:.2f}" for method, rank in ranking.mean_ranks.items())
    alike = [
        f"{one} and {other}"
        for one, other in itertools.combinations(ranking.mean_ranks, 2)
        if ranking.nemenyi[one, other] >= ALPHA
    ]
    return (
        f"{title}: mean ranks over {ranking.cells} cells, 1 is best: {ranks}. "
        f"Critical difference {ranking.critical_difference:.2f}. Not separable: {'; '.join(alike) or 'none'}."
    )
