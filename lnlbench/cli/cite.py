"""``lnlbench cite``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import load_registry, split_names
from lnlbench.errors import UnknownNameError

if TYPE_CHECKING:
    from lnlbench.contracts.method import Paper
    from lnlbench.contracts.suite import Suite
    from lnlbench.plugins import Catalogue, Registry

_KEY = re.compile(r"@\w+\{([^,\s]+)")


@click.command()
@click.argument("names", nargs=-1)
def cite(names: tuple[str, ...]) -> None:
    """Print BibTeX entries for NAMES: methods, suites, datasets, noise, encoders; for lnlbench itself without NAMES.

    A suite stands for its dataset and its noise.

    \b
    lnlbench cite css cifar100n
    """
    if not names:
        click.echo(_own_entry())
        return
    registry = load_registry()
    entries: dict[str, str] = {}
    for name in split_names(names):
        for what, paper in _papers(registry, name):
            if paper is not None and paper.bibtex:
                entries.setdefault(_title(paper), paper.bibtex.strip())
            else:
                click.echo(_without_entry(what, paper), err=True)
    if entries:
        click.echo("\n\n".join(_with_unique_keys(entries.values())))


def _papers(registry: Registry, name: str) -> list[tuple[str, Paper | None]]:
    """Return the papers behind a name, each with what it is about.

    Raises:
        UnknownNameError: Nothing has this name.
    """
    suite_name, _, level = name.partition("@")
    suites = [registry.suites.find(suite_name).entry] if suite_name in registry.suites else []
    for suite in suites:
        if level:
            suite.task(level)
    found = [paper for suite in suites for paper in _of_suite(registry, suite)]
    catalogues: dict[str, Catalogue[Any]] = {
        "method": registry.methods,
        "dataset": registry.datasets,
        "noise": registry.noise,
        "encoder": registry.encoders,
    }
    prefix = f"{name.partition(':')[0]}:"
    for kind, catalogue in catalogues.items():
        if name in catalogue or (":" in name and prefix in catalogue):
            found.append((f"{kind} {name}", catalogue.find(name).entry.paper))
    if not found:
        known = {each for catalogue in (registry.suites, *catalogues.values()) for each in catalogue.names()}
        raise UnknownNameError("name", name, known)
    return list(dict(found).items())


def _of_suite(registry: Registry, suite: Suite) -> list[tuple[str, Paper | None]]:
    found = [(f"dataset {suite.dataset}", registry.datasets.find(suite.dataset).entry.paper)]
    noise = registry.noise.find(suite.noise.generator).entry
    # Labels that a dataset comes with are published with it.
    return found if noise.kind == "own" else [*found, (f"noise {noise.name}", noise.paper)]


def _with_unique_keys(entries: Iterable[str]) -> list[str]:
    """Give entries of different papers different keys: the second ``li2020`` becomes ``li2020b``."""
    taken: set[str] = set()
    made = []
    for entry in entries:
        found = _KEY.search(entry)
        key = found[1] if found else ""
        suffixes = ("", *"bcdefghijklmnopqrstuvwxyz")
        unique = next((key + suffix for suffix in suffixes if (key + suffix).lower() not in taken), key)
        taken.add(unique.lower())
        made.append(entry.replace(f"{{{key}", f"{{{unique}", 1))
    return made


def _title(paper: Paper) -> str:
    return "".join(char for char in paper.title.lower() if char.isalnum())


def _without_entry(what: str, paper: Paper | None) -> str:
    if paper is None:
        return f"{what}: no publication is known to lnlbench"
    where = f", {paper.url}" if paper.url else ""
    return f"{what}: no BibTeX entry yet; it is {paper.authors}: {paper.title}. {paper.venue} {paper.year}{where}"


def _own_entry() -> str:
    import lnlbench

    return f"""@software{{lnlbench,
  title   = {{{{lnlbench}}: a benchmark harness for Learning with Noisy Labels}},
  author  = {{{{The lnlbench developers}}}},
  version = {{{lnlbench.__version__}}},
  year    = {{2026}}
}}"""
