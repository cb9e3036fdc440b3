"""``lnlbench prepare``."""

from __future__ import annotations

from pathlib import Path

import click

from lnlbench.cli.common import data_options, data_store, load_registry, split_names
from lnlbench.errors import UnknownNameError, UsageError


@click.command()
@click.argument("names", nargs=-1, required=True)
@data_options
@click.option("--edition", help="Register the files that lie in the data folder as this edition of the dataset.")
def prepare(names: tuple[str, ...], data: Path | None, offline: bool, edition: str | None) -> None:
    """Fetch and verify the data of datasets or suites NAMES.

    Public archives are downloaded, with progress, and checked. With --edition, files that deliberately differ from the
    published ones are accepted under that name; every result made with them carries it.
    """
    registry = load_registry()
    datasets: dict[str, None] = {}
    for name in split_names(names):
        if name in registry.datasets:
            datasets[name] = None
        elif name in registry.suites:
            datasets[registry.suites.find(name).entry.dataset] = None
        else:
            raise UnknownNameError("dataset or suite", name, [*registry.datasets.names(), *registry.suites.names()])
    if edition is not None and len(datasets) != 1:
        raise UsageError("--edition registers one dataset at a time")
    from lnlbench.engine.data import find_dataset

    store = data_store(data, offline)
    for name in datasets:
        dataset = find_dataset(registry, name)
        if edition is not None:
            registered = dataset.register(store, edition)
            click.echo(f"{name}: registered {len(registered.files)} files as edition {edition!r}")
        dataset.prepare(store)
        which = store.edition(name)
        where = store.folder(name) if dataset.files() else "the installed package"
        click.echo(f"{name}: ready ({which.name} edition, {where})")
