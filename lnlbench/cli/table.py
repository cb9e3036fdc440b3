"""``lnlbench table``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from lnlbench.cli.common import leaderboards_option, split_names
from lnlbench.cli.compare import SCORES, encodable, split_entries
from lnlbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from lnlbench.leaderboard.standings import ScoreKind
    from lnlbench.leaderboard.tables import Format


@click.command()
@click.option("--suite", required=True, help="The suite whose tasks are the columns.")
@click.option(
    "--format", "form", type=click.Choice(("latex", "markdown", "csv")), default="markdown", show_default=True,
    help="How the table is written.",
)  # fmt: skip
@click.option(
    "--score", "scores", multiple=True, default=("best,last10",), show_default=True,
    help=f"Rows of each method, comma-separated: {', '.join(SCORES)}.",
)  # fmt: skip
@click.option("--methods", multiple=True, help="Methods in the order of their rows, comma-separated; all by default.")
@click.option("--reduced", is_flag=True, help="Add tables of reduced runs, marked as such.")
@click.option("--ruleset", type=click.Choice(("agnostic", "tuned")), help="Only methods under this ruleset.")
@leaderboards_option
def table(
    suite: str,
    form: Format,
    scores: tuple[str, ...],
    methods: tuple[str, ...],
    reduced: bool,
    ruleset: str | None,
    leaderboards: Path,
) -> None:
    """Write the results of a suite as a table for a paper.

    Bold are the methods that are not separable from the best of a task, underlined those of the group after it.
    """
    from lnlbench.leaderboard.standings import read_records, select
    from lnlbench.leaderboard.tables import result_table, write_tables

    kinds = split_names(scores)
    if not kinds:
        raise UsageError("--score names no score")
    for kind in kinds:
        if kind not in SCORES:
            raise UnknownNameError("score", kind, SCORES)
    found = select(read_records(leaderboards / "measured", suite), split_entries(methods), reduced, ruleset)
    tables = [result_table(standing, cast("list[ScoreKind]", kinds)) for standing in found]
    click.echo(encodable(write_tables(tables, form)), nl=False)
