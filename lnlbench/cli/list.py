"""``lnlbench list``."""

from __future__ import annotations

from typing import Any

import click

from lnlbench.cli.common import console, json_option, load_registry, print_json
from lnlbench.errors import UnknownNameError

_KINDS = ("methods", "suites", "datasets", "noise", "backbones", "encoders", "executors", "plugins")


@click.command("list")
@click.argument("kind")
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List KIND: methods, suites, datasets, noise, backbones, encoders, executors or plugins."""
    plural = kind if kind in _KINDS else f"{kind}s"
    if plural not in _KINDS:
        raise UnknownNameError("kind", kind, _KINDS)
    registry = load_registry()
    rows = _plugins(registry) if plural == "plugins" else _entries(plural, registry.catalogues()[plural])
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(rows[0]) if rows else ["name"]
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "version"))
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    console().print(table)


def _entries(kind: str, catalogue: Any) -> list[dict[str, Any]]:
    rows = []
    for registered in catalogue:
        entry = registered.entry
        if kind == "suites":
            row = {
                "name": entry.name,
                "tasks": [task.name for task in entry.tasks],
                "dataset": entry.dataset,
                "title": entry.title,
            }
        else:
            row = {"name": entry.name, "summary": entry.summary}
        if kind == "methods":
            row["supervision"] = list(entry.supervision)
        row["provider"] = str(registered.provider)
        rows.append(row)
    return rows


def _plugins(registry: Any) -> list[dict[str, Any]]:
    rows = [
        {"name": name, "provider": str(provider), "state": "ok", "reason": ""} for name, provider in registry.providers
    ]
    rows += [
        {"name": each.entry_point, "provider": str(each.provider), "state": "broken", "reason": each.reason}
        for each in registry.broken
    ]
    return rows


def _cell(value: Any) -> str:
    from rich.markup import escape

    return escape(" ".join(value) if isinstance(value, list) else str(value))
