"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from lnlbench.leaderboard.store import ScoreReport
    from lnlbench.plugins import Registry
    from lnlbench.store import LocalDataStore

F = TypeVar("F", bound=Callable[..., Any])


def data_options(function: F) -> F:
    """Add ``--data`` and ``--offline``."""
    function = click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="LNLBENCH_DATA",
        help="Folder of all data.  [default: the user's cache folder]",
    )(function)
    return click.option(
        "--offline", is_flag=True, envvar="LNLBENCH_OFFLINE", help="Never download; say what is missing instead."
    )(function)


def runs_option(function: F) -> F:
    """Add ``--runs``."""
    return click.option(
        "--runs",
        type=click.Path(file_okay=False, path_type=Path),
        default="runs",
        show_default=True,
        envvar="LNLBENCH_RUNS",
        help="Folder of all run folders.",
    )(function)


def leaderboards_option(function: F) -> F:
    """Add ``--leaderboards``."""
    return click.option(
        "--leaderboards",
        type=click.Path(file_okay=False, path_type=Path),
        default="leaderboards",
        show_default=True,
        envvar="LNLBENCH_LEADERBOARDS",
        help="Folder of the leaderboards.",
    )(function)


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(function)


def data_store(data: Path | None, offline: bool) -> LocalDataStore:
    """Open the data folder."""
    from lnlbench.store import LocalDataStore, default_data_root

    return LocalDataStore(data or default_data_root(), offline=offline)


def dataset_name(text: str, store: LocalDataStore) -> str:
    """Return the name of a dataset given by the user, who may give a folder of images by its path.

    Raises:
        UsageError: The folder's name is taken by another folder.
    """
    if text.startswith("folder:"):
        from lnlbench.builtin.datasets.folder import name_folder

        return name_folder(text, store)
    return text


def split_names(values: Iterable[str]) -> list[str]:
    """Flatten repeated options and comma-separated lists."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def load_registry() -> Registry:
    """Discover plugins, and warn of each broken one in a line of its own."""
    from lnlbench.plugins import discover

    registry = discover()
    for broken in registry.broken:
        click.echo(f"lnlbench: warning: {broken}", err=True)
    return registry


def print_json(value: object) -> None:
    """Print JSON to standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def console(stderr: bool = False) -> Console:
    """Return a console that is wide enough for whole numbers when it is not a terminal."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=120)
    return made


def tell_of(report: ScoreReport) -> None:
    """Say on standard error what was not scored, and what was on the board before."""
    for left in (*report.unfinished, *report.refused):
        click.echo(f"not scored: {left.folder}: {left.reason}", err=True)
    for added in report.disagreeing:
        kept = "replaced by this run" if added.outcome == "replaced" else "kept; --replace puts this run in its place"
        click.echo(
            f"note: cell {added.cell} is on the board already with other test predictions, which were {kept}", err=True
        )
