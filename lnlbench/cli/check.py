"""``lnlbench check``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import json_option, load_registry, print_json, split_names
from lnlbench.errors import UsageError

if TYPE_CHECKING:
    from lnlbench.testing.conformance import Outcome

_WORDS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


@click.command()
@click.argument("method", required=False)
@click.option("--only", multiple=True, help="Make this check alone; repeat it or separate by commas.")
@click.option("--skip", multiple=True, metavar="CHECK=REASON", help="Leave a check out, and say why.")
@click.option("--list", "listing", is_flag=True, help="Say what each check is about, and stop.")
@json_option
def check(method: str | None, only: tuple[str, ...], skip: tuple[str, ...], listing: bool, as_json: bool) -> int:
    """Check that METHOD does what every method must: learn, repeat, resume, see no truth, survive strange data.

    Small runs on embedded digits, on the CPU, in a temporary folder. The exit code is 1 if any check failed. A method
    can also say in its class which checks do not apply to it: skip_checks = {"CHECK": "REASON"}.

    \b
    lnlbench check dividemix
    lnlbench check mymethod --only learns,resumes --skip single-class="needs pairs of classes"
    """
    from lnlbench.engine.planner import parse_overrides
    from lnlbench.testing.conformance import CHECKS, examine

    if listing:
        _list([(each.name, each.meaning) for each in CHECKS], as_json)
        return 0
    if method is None:
        raise UsageError("which method? `lnlbench list methods` shows what there is")
    outcomes = examine(method, only=split_names(only), skip=parse_overrides(skip, "--skip"), installed=load_registry())
    with contextlib.closing(outcomes):
        if as_json:
            found = list(outcomes)
            print_json([_facts(each) for each in found])
        else:
            found = list(_told(outcomes))
            _sum_up(found)
    return 1 if any(each.status == "failed" for each in found) else 0


def _list(rows: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, "meaning": meaning} for name, meaning in rows])
    else:
        for name, meaning in rows:
            click.echo(f"{name:<15}{meaning}")


def _told(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    for each in outcomes:
        click.echo(f"{_WORDS[each.status]:<9}{each.check.name:<15}{each.detail}")
        if each.status == "failed":
            click.echo(f"{'':<24}{each.check.meaning}")
        yield each


def _sum_up(found: list[Outcome]) -> None:
    counts = {status: sum(each.status == status for each in found) for status in _WORDS}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    click.echo(f"{len(found)} checks: {told}")


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "check": outcome.check.name,
        "meaning": outcome.check.meaning,
        "status": outcome.status,
        "detail": outcome.detail,
        "seconds": round(outcome.seconds, 1),
    }
