"""``lnlbench new-method`` and ``lnlbench new-suite``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lnlbench.cli.common import load_registry

if TYPE_CHECKING:
    from lnlbench.scaffold import Kind

F = TypeVar("F", bound=Callable[..., Any])


def _folder_option(function: F) -> F:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path),
        help="Folder to write to, absent or empty.  [default: lnlbench-NAME]",
    )(function)


@click.command("new-method")
@click.argument("name")
@_folder_option
def new_method(name: str, folder: Path | None) -> None:
    """Write a package with a method called NAME, which works as it is: code, page and tests.

    Make it your own step by step; `lnlbench check NAME` tells whether it still does what every method must.

    \b
    lnlbench new-method mymethod
    python3 -m pip install -e lnlbench-mymethod
    """
    _write("method", name, folder, [f"lnlbench run --method {name} --suite digits-sym", f"lnlbench check {name}"])


@click.command("new-suite")
@click.argument("name")
@_folder_option
def new_suite(name: str, folder: Path | None) -> None:
    """Write a package with a suite called NAME, which works as it is: one TOML file, page and tests.

    \b
    lnlbench new-suite mysuite
    python3 -m pip install -e lnlbench-mysuite
    """
    _write("suite", name, folder, [f"lnlbench info {name}", f"lnlbench run --method METHOD --suite {name}"])


def _write(kind: Kind, name: str, folder: Path | None, then: list[str]) -> None:
    from lnlbench.scaffold import write_package

    folder, written = write_package(kind, name, folder, load_registry())
    for path in written:
        click.echo(folder / path)
    click.echo("\nnext:")
    for command in (f"python3 -m pip install -e {folder}", *then):
        click.echo(f"  {command}")
