"""``lnlbench score``."""

from __future__ import annotations

from pathlib import Path

import click

from lnlbench.cli.common import leaderboards_option


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@leaderboards_option
@click.option("--suite", "suites", multiple=True, help="Rebuild only this suite.")
@click.option("--replace", is_flag=True, help="Let my run of a cell take the place of the one on the board.")
def score(folders: tuple[Path, ...], leaderboards: Path, suites: tuple[str, ...], replace: bool) -> int:
    """Score finished runs found under FOLDERS into the leaderboard.

    Without FOLDERS, every CSV is rebuilt from the bundles beside it, and each bundle's scores are recomputed from its
    test predictions first.
    """
    from lnlbench.cli.common import split_names, tell_of
    from lnlbench.leaderboard.store import find_runs, rebuild
    from lnlbench.leaderboard.store import score as score_folders

    board = leaderboards / "measured"
    if not folders:
        for path in rebuild(board, split_names(suites) or None, verify=True):
            click.echo(f"leaderboard: {path} (every bundle verified)")
        return 0
    report = score_folders([run for folder in folders for run in find_runs(folder)], board, replace=replace)
    for path in report.boards:
        click.echo(f"leaderboard: {path}")
    tell_of(report)
    return 1 if report.refused or not report.added else 0
