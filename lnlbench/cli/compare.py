"""``lnlbench compare``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import json_option, leaderboards_option
from lnlbench.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from lnlbench.leaderboard.standings import Comparison, ScoreKind, TaskResult
    from lnlbench.leaderboard.statistics import Interval, Pair, Ranking, Sample

SCORES = ("last10", "last", "best", "best_val")
_OVERALL = "suite"


@click.command()
@click.argument("methods", nargs=-1)
@click.option("--suite", required=True, help="The suite on whose tasks they are compared.")
@click.option("--score", "kind", type=click.Choice(SCORES), default="last10", show_default=True, help="By which score.")
@click.option("--reduced", is_flag=True, help="Compare reduced runs as well, among themselves.")
@click.option("--ruleset", type=click.Choice(("agnostic", "tuned")), help="Only methods under this ruleset.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the mean ranks and the critical difference into this file, a .svg.",
)
@leaderboards_option
@json_option
def compare(
    methods: tuple[str, ...],
    suite: str,
    kind: ScoreKind,
    reduced: bool,
    ruleset: str | None,
    plot: Path | None,
    leaderboards: Path,
    as_json: bool,
) -> None:
    """Compare METHODS on the same noise and seeds, task by task and over the suite; all methods if none is named.

    A method that is on the board with other options too is named with them, as the board of the suite shows it:
    "ce (lr=0.1)".
    """
    from lnlbench.cli.common import print_json
    from lnlbench.leaderboard.standings import compare as compare_entries
    from lnlbench.leaderboard.standings import read_records, select

    found = select(read_records(leaderboards / "measured", suite), split_entries(methods), reduced, ruleset)
    comparable = [standing for standing in found if len(standing.entries) > 1]
    if not comparable:
        who = "; ".join(f"{each.title}: {', '.join(entry.name for entry in each.entries)}" for each in found)
        raise UsageError(f"two methods with comparable runs are needed; what there is: {who}")
    comparisons = [compare_entries(standing, kind) for standing in comparable]
    if not any(sample.n for each in comparisons for result in each.tasks for sample in result.samples.values()):
        raise UsageError(f"no finished run of these methods on {suite} has the score {kind}")
    if plot is not None:
        _draw(plot, comparisons)
    if as_json:
        print_json([_as_json(each) for each in comparisons])
        return
    for each in comparisons:
        _print(each)


def split_entries(values: Iterable[str]) -> list[str]:
    """Flatten repeated and comma-separated names; commas in parentheses belong to a name."""
    return [name.strip() for value in values for name in re.split(r",(?![^(]*\))", value) if name.strip()]


def encodable(text: str) -> str:
    """Spell out what the encoding of standard output lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace("±", "+/-").replace("…", "...")
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _draw(plot: Path, comparisons: Iterable[Comparison]) -> None:
    """Write the critical-difference diagram of the one comparison that has mean ranks of three methods or more."""
    from lnlbench.files import write_bytes
    from lnlbench.leaderboard.statistics import critical_difference_svg

    if plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot {plot}: the drawing is an SVG; name a file that ends with .svg")
    if not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {plot}: the folder {plot.parent} does not exist")
    drawable = [(each, each.ranking) for each in comparisons if each.ranking and len(each.ranking.mean_ranks) > 2]
    if not drawable:
        raise UsageError(f"--plot {plot}: it takes three methods that have finished every task, with no diverged run")
    if len(drawable) > 1:
        titles = "; ".join(each.standing.title for each, _ in drawable)
        raise UsageError(f"--plot {plot}: several comparisons have mean ranks ({titles}); name the methods of one")
    ((comparison, ranking),) = drawable
    write_bytes(plot, critical_difference_svg(ranking, f"{comparison.standing.title}, {comparison.kind}"))


def _print(comparison: Comparison) -> None:
    from lnlbench.cli.common import console
    from lnlbench.leaderboard.standings import SCORE_KINDS

    out = console()
    title = f"{comparison.standing.title}, {comparison.kind}: {SCORE_KINDS[comparison.kind]}, in per cent"
    for part in (title, _scores_table(comparison), "", _pairs_table(comparison), "", *_notes(comparison), ""):
        out.print(encodable(part) if isinstance(part, str) else part, markup=False)


def _scores_table(comparison: Comparison) -> Table:
    """Lay out every method on every task, and over the suite."""
    mean_ranks = comparison.ranking.mean_ranks if comparison.ranking else {}
    table = _table("task", "method", "mean ± sd (n)", "95 % (t)", "95 % (bootstrap)", "rank", "mean rank")
    for result in comparison.tasks:
        for name, sample in result.samples.items():
            intervals = (_interval(sample.interval), _interval(comparison.bootstrap(name, result.task)))
            _add(table, result.task, name, _mean(result, name), *intervals, _rank(result.ranks, name), "")
        table.add_section()
    for name in (entry.name for entry in comparison.standing.entries):
        mean_rank = f"{mean_ranks[name]:.2f}" if name in mean_ranks else ""
        mean = _percent(comparison.means.get(name))
        _add(table, _OVERALL, name, mean, "", "", _rank(comparison.ranks, name), mean_rank)
    return table


def _pairs_table(comparison: Comparison) -> Table:
    """Lay out every pair on every task, and over the suite. Where there is only one pair, its means stand beside it."""
    entries = [entry.name for entry in comparison.standing.entries]
    one_pair = len(entries) == 2
    first, second = entries if one_pair else ("first", "second")
    table = _table("task", first, second, "difference", "95 %", "pairs", "p", "p Holm", f"{first} is")
    for result in comparison.tasks:
        for pair in result.pairs:
            names = (pair.first, pair.second)
            told = [_mean(result, name) for name in names] if one_pair else names
            _add(table, result.task, *told, *_of_pair(pair))
        if not one_pair:
            table.add_section()
    for pair in comparison.pairs:
        names = (pair.first, pair.second)
        told = [_percent(comparison.means.get(name)) for name in names] if one_pair else names
        _add(table, _OVERALL, *told, *_of_pair(pair))
    return table


def _of_pair(pair: Pair) -> tuple[str, ...]:
    difference = "" if pair.difference is None else f"{100 * pair.difference:+.2f}"
    p_values = (_probability(pair.p), _probability(pair.p_holm))
    return (difference, _interval(pair.interval), str(pair.n), *p_values, pair.verdict)


def _table(*headers: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(Text(encodable(header)), overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(encodable(cell)) for cell in cells))


def _notes(comparison: Comparison) -> Iterable[str]:
    """Say what the numbers are, and what is missing among them."""
    tests = [pair for result in comparison.tasks for pair in result.pairs] + list(comparison.pairs)
    yield "sd: of a sample (n - 1). pairs: runs on the same noise and seed that both methods have finished."
    yield (
        "p: Student's paired test on a task, Wilcoxon's signed-rank test over the suite. Holm's correction is over all "
        "pairs of methods; they are separable where it leaves p below 0.05."
    )
    yield "rank: shared by the methods that are not separable from the best of their group; blank where untestable."
    if any(pair.verdict == "not tested" for pair in tests):
        yield "not tested: fewer than two runs on the same noise and seed in common."
    if any(pair.verdict == "not separable" and pair.p is None for pair in tests):
        yield "not separable, without p: the difference is the same in every run, so it has no spread to be judged by."
    for result in comparison.tasks:
        for name, seeds in result.diverged.items():
            if seeds:
                yield f"{name} diverged on {result.task} with seed {', '.join(map(str, seeds))}: no score of it counts."
    for name, why in comparison.incomplete.items():
        yield f"{name} has no mean rank: {why}."
    if comparison.ranking is not None:
        yield (
            f"mean rank: over {comparison.ranking.cells} cells that all methods with one have finished; critical "
            f"difference {comparison.ranking.critical_difference:.2f} (Nemenyi){_friedman(comparison.ranking)}."
        )
    tuned = [entry.name for entry in comparison.standing.entries if entry.ruleset == "tuned"]
    if 0 < len(tuned) < len(comparison.standing.entries):
        yield f"Rulesets differ: {', '.join(tuned)} tuned to the noise, the others agnostic."


def _friedman(ranking: Ranking) -> str:
    return "" if ranking.friedman_p is None else f", Friedman's p {_probability(ranking.friedman_p)}"


def _mean(result: TaskResult, name: str) -> str:
    sample = result.samples[name]
    if sample.mean is None:
        return "diverged" if result.diverged[name] else ""
    spread = "" if sample.sd is None else f" ± {100 * sample.sd:.2f}"
    return f"{100 * sample.mean:.2f}{spread} ({sample.n})"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.2f} … {100 * interval.high:.2f}"


def _rank(ranks: Mapping[str, int | None], name: str) -> str:
    rank = ranks.get(name)
    return "" if rank is None else str(rank)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _probability(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything, accuracies in per cent; what is undefined is null."""
    standing, ranking = comparison.standing, comparison.ranking
    return {
        "suite": standing.suite,
        "title": standing.title,
        "score": comparison.kind,
        "reduced": standing.reduced,
        "methods": [{"name": entry.name, "ruleset": entry.ruleset} for entry in standing.entries],
        "tasks": [
            {
                "task": result.task,
                "methods": [_sample_as_json(comparison, result, name) for name in result.samples],
                "pairs": [_pair_as_json(pair) for pair in result.pairs],
            }
            for result in comparison.tasks
        ],
        "over_suite": {
            "methods": [
                {
                    "name": entry.name,
                    "mean": _rounded(comparison.means.get(entry.name)),
                    "rank": comparison.ranks.get(entry.name),
                    "mean_rank": ranking.mean_ranks.get(entry.name) if ranking else None,
                    "incomplete": comparison.incomplete.get(entry.name),
                }
                for entry in standing.entries
            ],
            "pairs": [_pair_as_json(pair) for pair in comparison.pairs],
            "cells": ranking.cells if ranking else None,
            "friedman_p": ranking.friedman_p if ranking else None,
            "critical_difference": ranking.critical_difference if ranking else None,
        },
    }


def _sample_as_json(comparison: Comparison, result: TaskResult, name: str) -> dict[str, Any]:
    sample: Sample = result.samples[name]
    return {
        "name": name,
        "n": sample.n,
        "mean": _rounded(sample.mean),
        "sd": _rounded(sample.sd),
        "t_interval": _ends(sample.interval),
        "bootstrap_interval": _ends(comparison.bootstrap(name, result.task)),
        "diverged_seeds": list(result.diverged[name]),
        "rank": result.ranks.get(name),
    }


def _pair_as_json(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "pairs": pair.n,
        "difference": _rounded(pair.difference),
        "interval": _ends(pair.interval),
        "p": pair.p,
        "p_holm": pair.p_holm,
        "verdict": pair.verdict,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(100 * interval.low, 4), round(100 * interval.high, 4)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 4)
