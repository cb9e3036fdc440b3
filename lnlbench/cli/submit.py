"""``lnlbench submit``."""

from __future__ import annotations

from pathlib import Path

import click

from lnlbench.cli.common import leaderboards_option


@click.command()
@click.argument("rows", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder, which must not exist yet.")
@leaderboards_option
def submit(rows: tuple[str, ...], out: Path, leaderboards: Path) -> int:
    """Bundle the runs of ROWS for a pull request: results, metrics, predictions and digests.

    A row is SUITE/TASK/METHOD-KEY with the protocol_key of the CSV, a cell id, or the path of a bundle, a run, or a
    folder that holds runs. If one of them cannot be verified, nothing is written and the exit code is 1.

    \b
    lnlbench submit digits-sym/0.40/ce-1a2b3c4d --out submission
    """
    from lnlbench.leaderboard.reproduce import find_sources
    from lnlbench.leaderboard.submission import submit as write

    sources = find_sources(leaderboards / "measured", rows)
    refused = write(sources, out)
    for each in refused:
        click.echo(f"refused: {each.reason}", err=True)
    if refused:
        click.echo(f"{len(refused)} of {len(sources)} refused, so nothing was written", err=True)
        return 1
    count = f"{len(sources)} bundle{'s' if len(sources) > 1 else ''}"
    click.echo(f"{out}: {count}; check with `lnlbench validate {out}`, then open a pull request with this folder")
    return 0
