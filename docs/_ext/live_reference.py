"""Writes the reference pages from the installed program, so that they cannot drift from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from lnlbench.leaderboard.aggregate import Row
from lnlbench.plugins import Registered, Registry, discover

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
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "methods.md": methods_page(registry),
        "suites.md": suites_page(registry),
        "extensions.md": extensions_page(registry),
        "csv.md": csv_page(),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


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
            lines += [f"{paper.authors}: *{paper.title}*. {paper.venue}, {paper.year}.", ""]
        lines += [
            f"Supervision: {', '.join(entry.supervision)}. Networks at test: {entry.networks_at_test}.",
            "",
            "| option | type | meaning |",
            "| --- | --- | --- |",
        ]
        for name, field in registered.load().Config.model_fields.items():
            lines.append(f"| `{name}` | {_type_name(field.annotation)} | {_cell(field.description)} |")
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
        noise = f"{suite.noise.generator}: {options}"
        lines.append(f"| `{suite.name}` | {tasks} | {suite.dataset} | {noise} | {_cell(suite.facts)} |")
    return "\n".join([*lines, ""])


def extensions_page(registry: Registry) -> str:
    """Datasets, noise generators, backbones and executors."""
    lines = ["# Datasets, noise, backbones, executors", ""]
    for kind in ("datasets", "noise", "backbones", "executors"):
        lines += [f"## {kind.capitalize()}", "", "| name | what | options |", "| --- | --- | --- |"]
        lines += [_extension_row(registered) for registered in registry.catalogues()[kind]]
        lines.append("")
    return "\n".join(lines)


def csv_page() -> str:
    """The columns of a leaderboard CSV."""
    lines = [
        "# Columns of a leaderboard CSV",
        "",
        "Accuracies are in per cent, standard deviations are those of a sample (n - 1); what is unknown is blank.",
        "",
        "| column | meaning |",
        "| --- | --- |",
    ]
    lines += [f"| `{name}` | {_cell(field.description)} |" for name, field in Row.model_fields.items()]
    return "\n".join([*lines, ""])


def _extension_row(registered: Registered[Any]) -> str:
    options = getattr(registered.entry, "options", {})
    listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in options.items())
    return f"| `{registered.entry.name}` | {_cell(registered.entry.summary)} | {_cell(listed)} |"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else _cell(str(annotation).replace("typing.", ""))
