"""``lnlbench reproduce``."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import (
    data_options,
    json_option,
    leaderboards_option,
    load_registry,
    print_json,
)
from lnlbench.errors import LnlbenchError, UsageError

if TYPE_CHECKING:
    from lnlbench.leaderboard.bundle import Content
    from lnlbench.leaderboard.reproduce import Command, Verdict
    from lnlbench.plugins import Registry
    from lnlbench.records import Environment, RunRecord

_CELL_LENGTH = 16
_SHORT = 12


@click.command()
@click.argument("row")
@click.option("--run", "run_again", is_flag=True, help="Run the command, and compare.")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), default="reproduced", show_default=True,
    help="With --run: where run folders and a leaderboard of their own go.",
)  # fmt: skip
@click.option("--against", type=click.Path(path_type=Path), help="Compare with these runs, bundles or board.")
@click.option("--record", is_flag=True, help="If they agree, note on the board that the runs were run again.")
@leaderboards_option
@data_options
@json_option
def reproduce(
    row: str,
    run_again: bool,
    into: Path,
    against: Path | None,
    record: bool,
    leaderboards: Path,
    data: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Tell how to run ROW again: commands, digests, what differs here; and whether it came out alike.

    ROW is SUITE/TASK/METHOD-KEY with the protocol_key of the CSV, a cell id, or the path of a bundle or run. The exit
    code is 1 if the runs it is compared with are different.

    \b
    lnlbench reproduce digits-sym/0.40/ce-1a2b3c4d --run
    """
    from lnlbench.leaderboard.reproduce import find_sources, judge, load

    if run_again and against is not None:
        raise UsageError("give either --run or --against")
    if record and not (run_again or against):
        raise UsageError("--record goes with --run or --against: there is nothing to note before a comparison")
    if against is not None and not against.is_dir():
        raise UsageError(f"--against: no folder {against}")
    registry = load_registry()
    board = leaderboards / "measured"
    contents = [load(folder) for folder in find_sources(board, [row])]
    records = [content.record for content in contents]
    shared = [*(["--data", str(data)] if data else []), *(["--offline"] if offline else [])]
    checked = list(_checked(records, registry, shared))
    told = _facts(row, contents, checked)
    if not as_json:
        _print(told)
    if run_again:
        _run([command for command, _ in checked], into, shared)
    again = into / "runs" if run_again else against
    verdict = None
    if again is not None:
        cells = {record.cell for record in records}
        found = find_sources(board, [str(again)])
        # Both run folders and bundles end in the cell's id, and reading a whole board takes a while.
        folders = [folder for folder in found if folder.name[-_CELL_LENGTH:] in cells] or found
        verdict = judge(contents, [load(folder) for folder in folders])
        told["verdict"] = _verdict(verdict)
        if not as_json:
            _print_verdict(verdict)
    if as_json:
        print_json(told)
    if verdict is None or verdict.outcome == "different":
        return 0 if verdict is None else 1
    if record:
        _record(board, records, [run.cell for run in verdict.runs])
    return 0


def _checked(records: Sequence[RunRecord], registry: Registry, shared: Sequence[str]) -> Iterator[tuple[Command, str]]:
    """Make the commands, and find out by a dry run whether they give these cells here; say why if they do not."""
    from lnlbench.leaderboard.reproduce import commands

    installed = registry.suites
    for number, command in enumerate(commands(records, installed)):
        problem = _problem(command, shared)
        spec = next(record.spec for record in records if record.cell == command.cells[0])
        if problem and spec.suite not in installed:
            # Which switches were named on the command line is not on record, but there are few of them.
            names = sorted(spec.noise.options)
            for chosen in itertools.chain.from_iterable(
                itertools.combinations(names, count) for count in range(1, len(names) + 1)
            ):
                other = commands(records, installed, chosen)[number]
                if not _problem(other, shared):
                    command, problem = other, ""
                    break
        yield command, problem


def _problem(command: Command, shared: Sequence[str]) -> str:
    """Return why a command would not give its cells here; empty if it would."""
    from lnlbench.cli.run import run

    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer), contextlib.redirect_stderr(io.StringIO()):
            # The device is no part of a cell, and the one on record need not be here.
            words = [*command.arguments, "--device", "auto", *shared, "--dry-run", "--json"]
            run.main(words, prog_name="run", standalone_mode=False)
        planned = [each["cell"] for each in json.loads(answer.getvalue())]
    except LnlbenchError as error:
        return str(error)
    except click.ClickException as error:
        return error.format_message()
    if sorted(planned) != sorted(command.cells):
        return f"it gives {', '.join(planned)}, since method, suite, data edition or numerics are not those on record"
    return ""


def _run(commands: Sequence[Command], into: Path, shared: Sequence[str]) -> None:
    """Run again, beside the runs and boards that are there."""
    from lnlbench.cli.run import run
    from lnlbench.engine.device import resolve_devices

    where = ["--runs", str(into / "runs"), "--leaderboards", str(into / "leaderboards")]
    for command in commands:
        words = list(command.arguments)
        device = words.index("--device") + 1
        try:
            resolve_devices(words[device])
        except UsageError as error:
            click.echo(f"note: {error}; running on what there is", err=True)
            words[device] = "auto"
        with contextlib.redirect_stdout(io.StringIO()):
            code = run.main([*words, *shared, *where], prog_name="run", standalone_mode=False)
        if code:
            click.echo("note: not every cell could be finished; see above", err=True)


def _facts(row: str, contents: Sequence[Content], checked: Sequence[tuple[Command, str]]) -> dict[str, Any]:
    from lnlbench.leaderboard.reproduce import differences, needed

    records = [content.record for content in contents]
    changes = [each for record in records for each in differences(record.environment, _here(record.environment))]
    return {
        "row": row,
        "commands": [
            {"command": command.text, "cells": list(command.cells), "problem": problem} for command, problem in checked
        ],
        "needs": list(dict.fromkeys(each for record in records for each in needed(record))),
        "runs": [_run_facts(content) for content in contents],
        "environment": [
            {"name": name, "recorded": recorded, "here": here}
            for name, recorded, here in dict.fromkeys(changes)
        ],
    }  # fmt: skip


def _run_facts(content: Content) -> dict[str, Any]:
    import hashlib

    from lnlbench.leaderboard.content import PREDICTIONS

    record = content.record
    predictions = content.files.get(PREDICTIONS)
    return {
        "cell": record.cell,
        "seed": record.spec.seed,
        "noise_seed": record.spec.noise.seed,
        "status": record.status,
        "last10": None if record.scores is None else round(100 * record.scores.last10, 4),
        "data_digest": record.data.digest,
        "noise_digest": record.noise.digest,
        "predictions_sha256": None if predictions is None else hashlib.sha256(predictions).hexdigest(),
        "fingerprint": record.environment.fingerprint,
    }


def _here(recorded: Environment) -> Environment:
    """Return what a run would find here, on the kind of device and with the threads of the one on record."""
    import torch

    from lnlbench.engine.device import describe_environment

    there = recorded.device_type == "cuda" and torch.cuda.is_available()
    return describe_environment(torch.device("cuda" if there else "cpu"), recorded.threads)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome,
        "runs": [
            {"cell": run.cell, "seed": run.seed, "outcome": run.outcome, "reason": run.reason} for run in verdict.runs
        ],
        "means": [{"test_set": each.test_set, "reason": each.reason} for each in verdict.agreements],
    }


def _record(board: Path, records: Sequence[RunRecord], cells: Sequence[str]) -> None:
    from lnlbench.leaderboard.bundle import bundle_folder
    from lnlbench.leaderboard.store import rebuild
    from lnlbench.leaderboard.trust import raise_trust

    suite = records[0].spec.suite
    there = [cell for cell in cells if bundle_folder(board, suite, cell).is_dir()]
    if not there:
        raise UsageError(f"--record: none of these runs is on the board {board}; score them first")
    raise_trust(board, suite, there, "re-run")
    for path in rebuild(board, [suite]):
        click.echo(f"leaderboard: {path}", err=True)


def _print(told: dict[str, Any]) -> None:
    from lnlbench.cli.compare import encodable
    from lnlbench.leaderboard.submission import printable

    def say(text: str) -> None:
        click.echo(encodable(printable(text)))

    for each in told["commands"]:
        say(each["command"])
        cells = f"cell{'s' if len(each['cells']) > 1 else ''} {', '.join(each['cells'])}"
        say(f"  gives {cells} here" if not each["problem"] else f"  does not give {cells} here: {each['problem']}")
    say(f"needs: {'; '.join(told['needs'])}")
    say("digests:")
    for run in told["runs"]:
        noise = "" if run["noise_seed"] is None else f", noise seed {run['noise_seed']}"
        result = run["status"] if run["last10"] is None else f"last10 {run['last10']:.2f}"
        digests = (("data", "data_digest"), ("labels", "noise_digest"), ("predictions", "predictions_sha256"))
        shown = ", ".join(f"{name} {run[key][:_SHORT]}" for name, key in digests if run[key])
        say(f"  {run['cell']} seed {run['seed']}{noise}: {result}; {shown}")
    if not told["environment"]:
        say("environment: nothing on record differs here")
        return
    say("environment, on record and here:")
    for each in told["environment"]:
        say(f"  {each['name']}: {each['recorded'] or 'none'}; here {each['here'] or 'none'}")


def _print_verdict(verdict: Verdict) -> None:
    for run in verdict.runs:
        click.echo(f"  {run.cell} seed {run.seed}: {run.reason}")
    for agreement in verdict.agreements:
        click.echo(f"  {agreement.reason}")
    words = {
        "identical": "identical predictions",
        "same": "the same within the tolerance",
        "different": "different",
    }
    click.echo(f"verdict: {words[verdict.outcome]}")
