"""``lnlbench prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lnlbench.cli.common import data_options, data_store, dataset_name, load_registry, split_names
from lnlbench.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from lnlbench.contracts.dataset import Needed
    from lnlbench.engine.prepare import Requirement
    from lnlbench.plugins import Registry
    from lnlbench.store import LocalDataStore


@click.command()
@click.argument("names", nargs=-1, required=True)
@data_options
@click.option("--edition", help="Register the files that lie in the data folder as this edition of the dataset.")
@click.option("--verify", is_flag=True, help="Check every byte again, whatever was checked before; print the digests.")
@click.option("--decode", is_flag=True, help="Store large images decoded and resized, so that epochs need no decoding.")
def prepare(
    names: tuple[str, ...], data: Path | None, offline: bool, edition: str | None, verify: bool, decode: bool
) -> int:
    """Fetch and verify data of datasets, suites, tasks (SUITE@LEVEL) or released labels NAMES; say what is missing.

    Public archives are downloaded, with progress, and checked. For data that only their owners may hand out, the
    command says what belongs where and checks what is there. With --edition, files that deliberately differ from the
    published ones are accepted under that name; every result made with them carries it.

    \b
    lnlbench prepare cifar10-sym
    lnlbench prepare clothing1m --decode
    lnlbench prepare folder:photos
    """
    registry = load_registry()
    store = data_store(data, offline)
    requirements = _requirements(registry, store, split_names(names))
    if edition is not None:
        _register(registry, store, requirements, edition)
    not_ready = 0
    for group in _by_name(requirements):
        problems: dict[str, None] = {}
        if verify and group[0].kind == "dataset":
            group[0].dataset(registry).forget(store)
        for requirement in group:
            try:
                requirement.prepare(registry, store)
            except DataError as error:
                problems[str(error)] = None
                if requirement.kind == "labels" and set(requirement.needs(registry)) == set(_needs(registry, group)):
                    break  # the others want the same file
                continue
            click.echo(_ready(registry, store, requirement))
            if requirement.kind == "dataset" and (verify or decode):
                _load(registry, store, requirement, verify, decode)
        if problems:
            not_ready += 1
            _explain(registry, store, group, list(problems))
    if not_ready:
        click.echo(f"{not_ready} of {len(_by_name(requirements))} not ready", err=True)
    return 1 if not_ready else 0


def _by_name(requirements: Sequence[Requirement]) -> list[list[Requirement]]:
    groups: dict[tuple[str, str], list[Requirement]] = {}
    for each in requirements:
        groups.setdefault((each.kind, each.name), []).append(each)
    return list(groups.values())


def _needs(registry: Registry, group: Sequence[Requirement]) -> dict[Needed, None]:
    return dict.fromkeys(need for requirement in group for need in requirement.needs(registry))


def _requirements(registry: Registry, store: LocalDataStore, names: Sequence[str]) -> list[Requirement]:
    from lnlbench.engine.prepare import Requirement, of_suite

    found: dict[str, Requirement] = {}
    for name in names:
        suite_name, at, level = name.partition("@")
        if suite_name in registry.suites:
            suite = registry.suites.find(suite_name).entry
            requirements = of_suite(registry, suite, [suite.task(level)] if at else None)
        elif name in registry.datasets or ":" in name:
            requirements = [Requirement("dataset", dataset_name(name, store), {})]
        elif name in registry.noise and registry.noise.find(name).entry.kind == "released":
            suites = [each.entry for each in registry.suites if each.entry.noise.generator == name]
            requirements = [each for suite in suites for each in of_suite(registry, suite) if each.kind == "labels"]
        else:
            raise UnknownNameError("dataset or suite", name, [*registry.datasets.names(), *registry.suites.names()])
        found.update({str(each): each for each in requirements})
    return list(found.values())


def _register(registry: Registry, store: LocalDataStore, requirements: list[Requirement], edition: str) -> None:
    datasets = [each for each in requirements if each.kind == "dataset"]
    if len({each.name for each in datasets}) != 1:
        raise UsageError("--edition registers one dataset at a time")
    registered = datasets[0].dataset(registry, store).register(store, edition)
    count = len(registered.files)
    click.echo(f"{datasets[0].name}: registered {count} file{'s' if count > 1 else ''} as edition {edition!r}")


def _ready(registry: Registry, store: LocalDataStore, requirement: Requirement) -> str:
    if not requirement.needs(registry):
        return f"{requirement.label}: ready ({store.edition(requirement.name).name} edition, the installed package)"
    if requirement.kind == "labels":
        return f"{requirement.label}: ready ({store.folder(requirement.name)})"
    edition = store.edition(requirement.name).name
    return f"{requirement.label}: ready ({edition} edition, {store.folder(requirement.name)})"


def _explain(registry: Registry, store: LocalDataStore, group: Sequence[Requirement], problems: Sequence[str]) -> None:
    name, folder = group[0].name, store.folder(group[0].name)
    for problem in problems:
        click.echo(f"not ready: {problem if name in problem else f'{name}: {problem}'}", err=True)
    needs = _needs(registry, group)
    if needs:
        click.echo(f"  what belongs into {folder}:", err=True)
    for each in needs:
        there = "there    " if (folder / each.path).exists() else "not there"
        how = "this command downloads it from" if each.download else "to be had from"
        click.echo(f"  {there}  {each.path}: {each.what}; {how} {each.source}", err=True)


def _load(registry: Registry, store: LocalDataStore, requirement: Requirement, verify: bool, decode: bool) -> None:
    from lnlbench.engine.data import load_data
    from lnlbench.engine.sources import store_decoded

    dataset = requirement.dataset(registry, store)
    data = load_data(dataset, store, test_sets=tuple(requirement.options.get("test_sets", ())))
    if verify:
        facts = data.facts
        click.echo(f"  {facts.num_train} training and {facts.num_test} test images, digest {facts.digest}")
    if decode:
        folder = store_decoded(data, store)
        click.echo(f"  decoded images: {folder}" if folder else "  images of this dataset are kept in memory decoded")
