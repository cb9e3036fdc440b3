"""What every method must do, as named checks: for ``lnlbench check`` and for pytest."""

from __future__ import annotations

import atexit
import functools
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.plugins import Registry, readme
from lnlbench.testing.laboratory import DRAWN, LIMIT, OWN, CheckError, Finished, Lab

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

_CHANCE = 0.1
_LEARNED = 3 * _CHANCE
_STOP_IN = 2


@dataclass(frozen=True)
class Check:
    """One thing a method must do."""

    name: str
    meaning: str
    """One sentence."""
    examine: Callable[[Lab], str]
    """Returns what was found, in a few words; raises ``CheckError`` with the reason."""


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    check: Check
    status: Literal["passed", "failed", "skipped"]
    detail: str
    """What was found, the reason of a failure, or that of a skip; one line."""
    seconds: float


def learns(lab: Lab) -> str:
    """Train on all digits at 40 % symmetric noise."""
    accuracy = lab.long.rows[-1]["test_accuracy"]
    found = f"{100 * accuracy:.1f} % of test images right, chance is {100 * _CHANCE:.0f} %"
    if accuracy < _LEARNED:
        raise CheckError(f"{found}; at least {100 * _LEARNED:.0f} % are expected")
    return found


def repeats(lab: Lab) -> str:
    """Run the same cell again: in this process, and in one of its own with nothing to fall back on."""
    again = lab.run(lab.cell(DRAWN, "0.40"), "again", data="data-again")
    _same(lab.short, again, "a second run with the same seed is another one")
    _same(lab.short, lab.elsewhere[0], "a run in a process of its own is another one")
    return "three runs are equal"


def resumes(lab: Lab) -> str:
    """Interrupt a run and go on with it."""
    cell = lab.cell(DRAWN, "0.40")
    lab.run(cell, "resumed", data="data-resumed", stop_in=_STOP_IN)
    resumed = lab.run(cell, "resumed", data="data-resumed")
    if resumed.record.resumed != 1:
        raise CheckError("it left the loop over run.epochs() early, so that it could not be interrupted")
    _same(lab.short, resumed, "a resumed run is another one; something that must survive is not handed to run.track()")
    return f"interrupted in epoch {_STOP_IN}, ended as the uninterrupted run"


def sees_no_truth(lab: Lab) -> str:
    """Train twice on the same given labels, the second time with true labels that make no sense."""
    seen, shuffled = (lab.run(lab.cell(OWN, task), task, data=f"data-{task}") for task in ("noisy", "shuffled-truth"))
    _same(seen, shuffled, "it does something else when the true labels are shuffled", same_truth=False)
    return "predictions, reports and log do not depend on the true labels"


def leaves_global_state(lab: Lab) -> str:
    """Compare the settings of the process before and after, and global generators between seeds."""
    first, second = lab.watched(1), lab.watched(2)
    if first.changes:
        raise CheckError(f"fit() leaves {', '.join(first.changes)} changed")
    for (moment, mine), (_, theirs) in zip(first.generators, second.generators, strict=False):
        for whose in mine:
            if mine[whose] == theirs[whose]:
                raise CheckError(f"it seeds {whose} global generator in {moment}; use run.rng(name) instead")
    if changes := lab.elsewhere[1]:
        raise CheckError(f"importing it changes {', '.join(changes)}")
    return "settings and seeds of the process are as before"


def uses_both_loaders(lab: Lab) -> str:
    """Train on colour images that are decoded from files as they are needed."""
    return _completes(lab, DRAWN, "files")


def is_documented(lab: Lab) -> str:
    """Look every option and every logged metric up in the tables of the distribution's README."""
    config = lab.cls.Config
    nameless = [name for name, option in config.model_fields.items() if not option.description]
    if nameless:
        raise CheckError(f"these options have no description: {', '.join(nameless)}")
    distribution = lab.registered.provider.distribution
    page = readme(distribution)
    if not page:
        raise CheckError(f'{distribution} has no README; name it in pyproject.toml: readme = "README.md"')
    documented = {_unnumbered(name) for name in _first_cells(page)}
    metrics = sorted({name for run in (lab.short, lab.long) for row in run.rows for name in row["logged"]})
    for kind, names in (("options", list(config.model_fields)), ("metrics", metrics)):
        missing = [name for name in names if _unnumbered(name) not in documented]
        if missing:
            raise CheckError(f"the README has no table row for these {kind}: {', '.join(missing)}")
    return f"{len(config.model_fields)} options and {len(metrics)} metrics"


def _completes(lab: Lab, suite: str, task: str, limit: int = LIMIT) -> str:
    run = lab.run(lab.cell(suite, task, limit=limit), f"{task}-{limit}")
    return f"{run.record.data.num_train} images, {len(run.rows)} epochs"


def _with_one_image_left(lab: Lab) -> str:
    size = lab.cell(DRAWN, "0.40").method.config["batch_size"]
    return _completes(lab, DRAWN, "0.40", limit=size + 1)


def _task(suite: str, task: str, limit: int = LIMIT) -> Callable[[Lab], str]:
    return functools.partial(_completes, suite=suite, task=task, limit=limit)


CHECKS = (
    Check("learns", "A short training on noisy digits is far better than guessing.", learns),
    Check("repeats", "The same seed gives the same run, bit for bit, in another process too.", repeats),
    Check("resumes", "An interrupted run that goes on ends exactly as the uninterrupted one.", resumes),
    Check("no-leak", "With other true labels and the same given ones, it does exactly the same.", sees_no_truth),
    Check("global-state", "Global seeds, threads, default dtype and the like are left alone.", leaves_global_state),
    Check("files", "It trains on images that are decoded from files while it runs.", uses_both_loaders),
    Check("no-noise", "A training set without a wrong label does no harm.", _task(DRAWN, "0.00")),
    Check("all-wrong", "A training set without a right label does no harm.", _task(DRAWN, "1.00")),
    Check("missing-class", "A class that no sample is labelled with does no harm.", _task(OWN, "missing-class")),
    Check("single-class", "A training set with one label only does no harm.", _task(OWN, "one-class")),
    Check("few-images", "A training set smaller than a batch does no harm.", _task(DRAWN, "0.40", limit=7)),
    Check("last-image", "A last batch of a single image does no harm.", _with_one_image_left),
    Check("documented", "The README's tables have every option and every logged metric.", is_documented),
)
"""In the order in which they are made."""


def examine(
    method: str,
    *,
    only: Sequence[str] = (),
    skip: Mapping[str, str] | None = None,
    installed: Registry | None = None,
) -> Generator[Outcome, None, None]:
    """Check a method, and yield each outcome as soon as it is known.

    A check is skipped if ``skip`` has a reason for it, or the method's class attribute ``skip_checks`` has.

    Args:
        method: Its name.
        only: Names of the checks to make; all of them if empty.
        skip: Names of checks to leave out, each with the reason.
        installed: What is installed; found out if ``None``.

    Raises:
        UnknownNameError: No method, or no check, of that name.
        UsageError: A reason is empty.
        PluginError: The method's code cannot be imported.
    """
    for name in only:
        find_check(name)
    lab = Lab(method, installed)
    try:
        reasons = _reasons(lab, skip or {})
        for check in CHECKS:
            if not only or check.name in only:
                yield _outcome(check, lab, reasons)
    finally:
        lab.close()


def checks(method: str, *, skip: Mapping[str, str] | None = None) -> list[ParameterSet]:
    """Return all checks of a method as parameters of a pytest function, which calls what it gets.

    >>> @pytest.mark.parametrize("check", checks("ce"))  # doctest: +SKIP
    ... def test_conforms(check):
    ...     check()

    Args:
        method: Its name.
        skip: Names of checks to leave out, each with the reason.

    Raises:
        UnknownNameError: No check of that name.
    """
    import pytest

    for name in skip or {}:
        find_check(name)

    def call(check: Check) -> None:
        lab = _shared_lab(method)
        outcome = _outcome(check, lab, _reasons(lab, skip or {}))
        if outcome.status == "skipped":
            pytest.skip(outcome.detail)
        if outcome.status == "failed":
            pytest.fail(f"{check.name}: {outcome.detail}\n{check.meaning}", pytrace=False)

    return [pytest.param(functools.partial(call, check), id=check.name) for check in CHECKS]


def find_check(name: str) -> Check:
    """Return a check by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    for check in CHECKS:
        if check.name == name:
            return check
    raise UnknownNameError("check", name, [check.name for check in CHECKS])


@functools.cache
def _shared_lab(method: str) -> Lab:
    # Checks share their runs; the folder goes when the tests end.
    lab = Lab(method)
    atexit.register(lab.close)
    return lab


def _reasons(lab: Lab, skip: Mapping[str, str]) -> dict[str, str]:
    reasons = {**getattr(lab.cls, "skip_checks", {}), **skip}
    for name, reason in reasons.items():
        find_check(name)
        if not reason.strip():
            raise UsageError(f"check {name!r} is skipped without a reason; say why it does not apply")
    return reasons


def _outcome(check: Check, lab: Lab, reasons: Mapping[str, str]) -> Outcome:
    if check.name in reasons:
        return Outcome(check, "skipped", reasons[check.name], 0.0)
    began = time.monotonic()
    try:
        detail = check.examine(lab)
    except CheckError as failure:
        return Outcome(check, "failed", str(failure), time.monotonic() - began)
    return Outcome(check, "passed", detail, time.monotonic() - began)


def _same(first: Finished, second: Finished, complaint: str, *, same_truth: bool = True) -> None:
    if difference := first.difference(second, same_truth=same_truth):
        raise CheckError(f"{complaint}: {difference}")


def _unnumbered(name: str) -> str:
    """Networks are numbered: a row about ``net1_loss`` is about ``net2_loss`` as well."""
    return re.sub(r"\d+", "#", name)


def _first_cells(readme: str) -> list[str]:
    rows = (line.split("|")[1] for line in readme.splitlines() if line.lstrip().startswith("|"))
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]
