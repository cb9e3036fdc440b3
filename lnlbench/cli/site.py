"""``lnlbench site``."""

from __future__ import annotations

from pathlib import Path

import click

from lnlbench.cli.common import leaderboards_option, load_registry


@click.group()
def site() -> None:
    """Make the leaderboard pages."""


@site.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the site: a new one, an empty one, or an earlier site, which is replaced once the new one is done.",
)
@leaderboards_option
def build(out: Path, leaderboards: Path) -> None:
    """Write the leaderboards as pages that open from the disk and from any web server."""
    from lnlbench.site.build import build as build_site
    from lnlbench.site.model import read_site

    count = build_site(read_site(leaderboards, load_registry()), out)
    click.echo(f"site: {out / 'index.html'} ({count} pages)")
