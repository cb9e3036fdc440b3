"""Reported against measured: where both have the same suite, task and protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lnlbench.leaderboard.aggregate import Row
from lnlbench.leaderboard.reported import ReportedRow
from lnlbench.site.boards import Kind, score, spread
from lnlbench.site.model import Site, SuiteResults

_KIND: Mapping[str, Kind] = {
    "last": "last",
    "last10": "last10",
    "best": "best",
    "best-val": "best_val",
    # The headline, for want of anything better; nothing is judged by it.
    "unstated": "last10",
}
"""The measured score that a reported one is compared with."""

_CALLED = {"cnn7": "7-layer CNN"}
"""What papers call a backbone whose id is something else."""


@dataclass(frozen=True)
class Agreement:
    """A measured number beside a reported one."""

    row: Row
    """What was measured."""
    printed: ReportedRow
    """What a paper prints."""
    source: str
    """The paper, for people."""
    kind: Kind
    """The score that was measured."""
    unknown: tuple[str, ...]
    """What the paper does not state, so that nobody can tell whether the protocols are the same."""

    @property
    def measured(self) -> float:
        """Accuracy in percent."""
        return score(self.row, self.kind) or 0.0

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the measured runs; ``None`` for a single one."""
        return spread(self.row, self.kind)

    @property
    def difference(self) -> float:
        """Measured minus reported."""
        return round(self.measured - float(self.printed.accuracy), 2) + 0.0

    @property
    def within(self) -> bool | None:
        """Whether mean ± standard deviation of both overlap; ``None`` if nobody can tell.

        A number that is printed without a deviation stands for all that are rounded to it.
        """
        if self.deviation is None or self.unknown:
            return None
        _, _, decimals = self.printed.accuracy.partition(".")
        theirs = float(self.printed.sd) if self.printed.sd else 0.5 * 10.0 ** -len(decimals)
        return abs(self.difference) <= self.deviation + theirs + 1e-9

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.unknown:
            return f"not judged: {' and '.join(self.unknown)} not stated"
        if self.within is None:
            return "not judged: a single run has no spread"
        return "within the spread" if self.within else "outside the spread"

    def as_record(self) -> dict[str, object]:
        """Return a line of the table behind."""
        return {
            "task": self.row.task,
            "method": self.printed.method_id,
            "protocol_key": self.row.protocol_key,
            "paper": self.printed.paper,
            "table": self.printed.table,
            "provenance": self.printed.provenance,
            "score": self.kind,
            "measured": self.measured,
            "measured_sd": self.deviation,
            "n": self.row.n,
            "reported": float(self.printed.accuracy),
            "reported_sd": float(self.printed.sd) if self.printed.sd else None,
            "difference": self.difference,
            "verdict": self.verdict,
            "note": self.printed.note,
        }


def agreements(site: Site, results: SuiteResults) -> list[Agreement]:
    """Return every pair of a measured and a reported number that may be compared, by task and method.

    The measured row is a full run of the preset on the published data. What the paper states has to be the same:
    method, network, score. What it does not state is told.
    """
    found = [
        Agreement(row, printed, site.reported.papers[printed.paper].method, _KIND[printed.score], tuple(unknown))
        for row in results.rows
        if row.reduced == "" and row.edition == "canonical"
        for printed in results.reported
        if (unknown := _unknown(row, printed)) is not None
    ]
    return sorted(found, key=lambda each: (each.row.task, each.printed.method_id))


def _unknown(row: Row, printed: ReportedRow) -> list[str] | None:
    """Return what would have to be stated to tell that the protocols are the same; ``None`` if they are not."""
    same = (
        printed.level == row.task
        and printed.metric == "top1"
        and printed.variant == ""
        and printed.score in _KIND
        and printed.method_id == _method(row)
        and row.protocol == _preset(row)
        and (printed.backbone == "" or same_network(row.backbone, printed.backbone))
        and score(row, _KIND[printed.score]) is not None
    )
    if not same:
        return None
    unstated = {"network": printed.backbone == "", "score": printed.score == "unstated"}
    return [what for what, missing in unstated.items() if missing]


def _method(row: Row) -> str:
    selector, _, _ = row.selector.partition(" ")
    return f"{selector}+{row.method}" if selector else row.method


def _preset(row: Row) -> str:
    selector, _, _ = row.selector.partition(" ")
    return f"from {selector}'s selection" if selector else "preset"


def same_network(backbone: str, printed: str) -> bool:
    """Return whether a backbone's id is what a paper calls by a name.

    >>> same_network("preact-resnet18", "PreAct ResNet-18"), same_network("timm:resnet50+pretrained", "ResNet-50")
    (True, True)
    >>> same_network("resnet18-cifar", "ResNet-18"), same_network("small-cnn", "ResNet-18")
    (True, False)
    """
    name = backbone.removeprefix("timm:").removesuffix("+pretrained").removesuffix("-cifar")
    return _letters(_CALLED.get(name, name)) == _letters(printed)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
