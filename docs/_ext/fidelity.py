"""Fidelity notes: a page for each installed method, which is the README that its distribution carries."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lnlbench.api import MethodEntry
from lnlbench.plugins import Registered, Registry, readme

_DEPARTURE = re.compile(r"^\d+\. ", re.M)


@dataclass(frozen=True)
class Notes:
    """What the README of a method says."""

    registered: Registered[MethodEntry]
    text: str

    def section(self, heading: str) -> str:
        """Return what stands under a second-level heading; empty if there is none."""
        found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", self.text, re.M | re.S)
        return found[1] if found else ""

    @property
    def departures(self) -> int:
        """How many departures it numbers."""
        return len(_DEPARTURE.findall(self.section("Departures")))


def read(registry: Registry) -> list[Notes]:
    """Read the README of every installed method."""
    return [Notes(each, readme(each.provider.distribution)) for each in registry.methods]


def page(notes: Notes) -> str:
    """Return the page of a method: the README, and where it comes from."""
    title, _, body = notes.text.lstrip().partition("\n")
    name = notes.registered.entry.name
    return "\n".join(
        [
            title,
            "",
            f"*This page is the README of `{notes.registered.provider}`, as installed.",
            f"[](../../../explanation/fidelity.md) says how to read it; [](../methods.md#{name}) has the types of its",
            "options.*",
            body,
        ]
    )


def table(several: list[Notes]) -> str:
    """Return the methods with their papers and the count of their departures."""
    lines = ["| method | paper | departures | distribution |", "| --- | --- | --- | --- |"]
    for notes in several:
        entry = notes.registered.entry
        paper = f"{entry.paper.authors} {entry.paper.year}" if entry.paper else "none: the baseline of all papers"
        link = f"[{entry.name}](../reference/generated/fidelity/{entry.name}.md)"
        lines.append(f"| {link} | {paper} | {notes.departures or '-'} | `{notes.registered.provider}` |")
    return "\n".join([*lines, ""])
