"""Writes the reference pages from the installed program, so that they cannot drift from it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import comparison
import fidelity
import file_pages
from file_pages import cell as _cell
from sphinx.application import Sphinx

from lnlbench.api import MethodConfig
from lnlbench.engine.planner import noise_spec
from lnlbench.engine.prepare import Requirement, of_suite
from lnlbench.plugins import Registered, Registry, discover
from lnlbench.records import NoiseSpec
from lnlbench.site.methods import type_name
from lnlbench.testing import CHECKS

_ADDRESS = re.compile(r"https?://[^\s|<>()]*[^\s|<>().,;:]")
_LITERAL = re.compile(r"[A-Za-z0-9-]+@(?:LEVEL|\d\.\d+)|lnlbench run --.*(?<! )")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("sphinx-click-process-description", mark_literals)
    app.connect("sphinx-click-process-options", mark_literals)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write every generated page."""
    registry = discover()
    if registry.broken:
        raise RuntimeError(str(registry.broken[0]))
    folder = Path(app.srcdir) / "reference" / "generated"
    notes = fidelity.read(registry)
    pages = {
        "methods.md": methods_page(registry),
        "suites.md": suites_page(registry),
        "extensions.md": extensions_page(registry),
        "csv.md": file_pages.csv_page(),
        "files.md": file_pages.files_page(),
        "suite-files.md": file_pages.suite_files_page(registry),
        "coverage.md": coverage_page(registry, Path(app.srcdir) / "coverage.toml"),
        "needs.md": needs_page(registry),
        "comparison.md": comparison.page(registry, Path(app.srcdir) / "reference" / "comparison.json"),
    }
    parts = {
        "checks.inc": "\n".join(file_pages.listed("check", {each.name: each.meaning for each in CHECKS})),
        "options.inc": "\n".join(file_pages.content(MethodConfig)),
        "fidelity.inc": fidelity.table(notes),
    }
    pages |= {f"fidelity/{each.registered.entry.name}.md": fidelity.page(each) for each in notes}
    for name, text in {**pages, **parts}.items():
        write_page(folder / name, text)
    for page in folder.glob("fidelity/*.md"):
        # Of a method that is no longer installed.
        if f"fidelity/{page.name}" not in pages:
            page.unlink()


def write_page(path: Path, text: str) -> None:
    """Write a page, unless it is as it should be: Sphinx reads what was written since."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def mark_literals(_app: Sphinx, _context: Any, lines: list[str]) -> None:
    """Set ``SUITE@LEVEL`` as code; it looks like an address otherwise. Commands in running text likewise."""
    lines[:] = [_LITERAL.sub(lambda found: f"``{found[0]}``", line) for line in lines]


def methods_page(registry: Registry) -> str:
    """Every installed method with its options."""
    lines = ["# Methods", "", "Written from the installed plugins.", ""]
    for registered in registry.methods:
        entry = registered.entry
        lines += [f"## {entry.name}", "", entry.summary, ""]
        if entry.paper:
            paper = entry.paper
            title = f"[{paper.title}]({paper.url})" if paper.url else f"*{paper.title}*"
            lines += [f"{paper.authors}: {title}. {paper.venue}, {paper.year}.", ""]
        lines += [
            f"Supervision: {', '.join(entry.supervision)}. Networks at test: {entry.networks_at_test}.",
            f"Presets, departures from the paper, results: [its notes](fidelity/{entry.name}.md).",
            "",
            "| option | type | meaning |",
            "| --- | --- | --- |",
        ]
        for name, field in registered.load().Config.model_fields.items():
            lines.append(f"| `{name}` | {_cell(type_name(field.annotation))} | {_cell(field.description)} |")
        lines.append("")
    return "\n".join(lines)


def suites_page(registry: Registry) -> str:
    """Every suite with its tasks."""
    lines = [
        "# Suites",
        "",
        "From the installed suite files. Rates are nominal; `lnlbench noise show SUITE@LEVEL` gives the realised one.",
        "",
        "| suite | tasks | dataset | noise | definition |",
        "| --- | --- | --- | --- | --- |",
    ]
    for registered in registry.suites:
        suite = registered.entry
        options = ", ".join(f"{key} = {value}" for key, value in suite.noise.options.items())
        tasks = " ".join(f"`{task.name}`" for task in suite.tasks)
        noise = f"{suite.noise.generator}: {options}" if options else suite.noise.generator
        lines.append(f"| `{suite.name}` | {tasks} | {suite.dataset} | {noise} | {_cell(suite.facts)} |")
    return "\n".join([*lines, ""])


def extensions_page(registry: Registry) -> str:
    """Datasets, noise generators, backbones, encoders and executors."""
    lines = ["# Datasets, noise, backbones, encoders, executors", ""]
    for kind in ("datasets", "noise", "backbones", "encoders", "executors"):
        lines += [f"## {kind.capitalize()}", "", "| name | what | options |", "| --- | --- | --- |"]
        lines += [_extension_row(registered) for registered in registry.catalogues()[kind]]
        lines.append("")
    return "\n".join(lines)


def coverage_page(registry: Registry, source: Path) -> str:
    """Every result table of the papers with the suite that stands for it."""
    lines = [
        "# Which suite is which table",
        "",
        "Every column of every result table of four papers, and the suite that measures it here. The variant is the",
        "noise as it is configured; what a task differs in is part of it. What must be fetched is told in full by",
        "[](needs.md).",
        "",
    ]
    for paper in tomllib.loads(source.read_text(encoding="utf-8"))["paper"]:
        lines += [f"## {paper['name']}", ""]
        lines += ["| table | column | suite and tasks | variant | definition from | to fetch |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [_coverage_row(registry, **row) for row in paper["rows"]]
        lines.append("")
    return "\n".join(lines)


def _coverage_row(registry: Registry, table: str, column: str, suite: str, tasks: list[str], note: str = "") -> str:
    found = registry.suites.find(suite).entry
    levels = [found.task(task) for task in tasks]
    noises = [noise_spec(registry, found, level, 1) for level in levels]
    # In words: a long piece of code would not wrap.
    variants = "; ".join(dict.fromkeys(_variant(noise) for noise in noises))
    fetch = "; ".join(dict.fromkeys(_short_need(registry, each) for each in of_suite(registry, found, levels)))
    named = " ".join(f"`{task}`" for task in tasks)
    text = f"{_cell(column)}. {_cell(note)}" if note else _cell(column)
    return f"| {table} | {text} | `{suite}`: {named} | {_cell(variants)} | {_cell(found.facts)} | {fetch} |"


def _variant(noise: NoiseSpec) -> str:
    options = ", ".join(f"{key} {value}" for key, value in sorted(noise.options.items()))
    return f"{noise.generator}: {options}" if options else noise.generator


def _short_need(registry: Registry, requirement: Requirement) -> str:
    needs = requirement.needs(registry)
    if not needs:
        return "nothing"
    if all(need.download for need in needs):
        return f"{requirement.name}: downloaded"
    return f"{requirement.name}: [by you](needs.md)"


def needs_page(registry: Registry) -> str:
    """What every dataset and every set of released labels needs."""
    lines = [
        "# What must be fetched",
        "",
        "Paths are relative to the folder of the dataset, or of the labels, in the data folder.",
        "`lnlbench prepare SUITE` downloads what may be downloaded, checks what is there, and says what is missing.",
        "",
    ]
    requirements = {}
    for registered in registry.suites:
        for requirement in of_suite(registry, registered.entry):
            requirements.setdefault(requirement.name, []).append(requirement)
    for name, several in sorted(requirements.items()):
        needs = list(dict.fromkeys(need for each in several for need in each.needs(registry)))
        lines += [f"## {name}", ""]
        if several[0].kind == "dataset":
            dataset = several[0].dataset(registry)
            lines += [
                f"{dataset.num_classes} classes, {dataset.num_train:,} training and {dataset.num_test:,} test images.",
                f"Source: {_linked(dataset.source)}. Licence: {_cell(dataset.licence)}.",
                "",
            ]
        if not needs:
            lines += ["Nothing: it is part of an installed library.", ""]
            continue
        lines += ["| path | what | where from | fetched by |", "| --- | --- | --- | --- |"]
        for need in needs:
            who = "`lnlbench prepare`" if need.download else "you"
            lines.append(f"| `{need.path}` | {_cell(need.what)} | {_linked(need.source)} | {who} |")
        lines.append("")
    return "\n".join(lines)


def _extension_row(registered: Registered[Any]) -> str:
    options = getattr(registered.entry, "options", {})
    listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in options.items())
    return f"| `{registered.entry.name}` | {_cell(registered.entry.summary)} | {_cell(listed)} |"


def _linked(text: str) -> str:
    return _ADDRESS.sub(r"<\g<0>>", _cell(text))
