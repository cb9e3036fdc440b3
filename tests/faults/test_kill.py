"""SIGKILL at any moment, inside the writing of a checkpoint too: the resumed run equals the uninterrupted one."""

from __future__ import annotations

import contextlib
import csv
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from lnlbench.records import CellSpec
    from tests.faults.conftest import ForkServer, Lab

Essence = Callable[[Path], dict[str, Any]]

# Everything that DivideMix has is at work: warm-up, averaged losses, the unlabelled loss and its ramp.
DIVIDEMIX = {"warmup_epochs": 2, "loss_average_epochs": 3, "lambda_u": 25, "rampup_epochs": 2}
SAVES = ("open", "write", "fsync", "replace", "fsync_dir")


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run and how long it took."""

    cell: CellSpec
    essence: dict[str, Any]
    seconds: float
    calls: int
    """File-system calls of all its saves."""


def refer(lab: Lab, forks: ForkServer, essence: Essence, cell: CellSpec, folder: Path) -> Reference:
    child = forks.run(lab.job(cell, folder), pace=0.0)
    assert child.until("start")
    began = time.monotonic()
    child.finish()
    seconds = time.monotonic() - began
    (calls,) = child.named("calls")
    return Reference(cell, essence(folder), seconds, len(calls["names"]))


@pytest.fixture(scope="module")
def dividemix(lab: Lab, forks: ForkServer, essence: Essence, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    cell = lab.cell("dividemix", epochs=6, limit=100, options=DIVIDEMIX)
    return refer(lab, forks, essence, cell, tmp_path_factory.mktemp("dividemix") / "run")


@pytest.fixture(scope="module")
def ce(lab: Lab, forks: ForkServer, essence: Essence, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return refer(lab, forks, essence, lab.cell("ce", epochs=4), tmp_path_factory.mktemp("ce") / "run")


def kill_once(lab: Lab, forks: ForkServer, reference: Reference, folder: Path, dice: random.Random, aim: int) -> bool:
    """Start the run and kill it: at any moment, a little into a save, or right before a file-system call of a save.

    Returns:
        Whether it was killed; it may have ended just before.
    """
    job = lab.job(reference.cell, folder)
    if aim == 0:
        child = forks.run(job, pace=0.0, die_at=dice.randrange(reference.calls))
        child.finish()
    elif aim == 2:
        child = forks.run(job, pace=0.0)
        for _ in range(dice.randint(1, 4)):
            child.until("saving")
        time.sleep(dice.uniform(0.0, 0.02))
    else:
        # Saves as seldom as usual, so the resumed run has epochs to repeat.
        child = forks.run(job)
        child.until("start")
        time.sleep(dice.uniform(0.0, reference.seconds))
    child.kill()
    return not child.named("done")


def survive(
    lab: Lab, forks: ForkServer, essence: Essence, reference: Reference, folder: Path, kills: int, most_per_run: int
) -> tuple[int, int, list[int]]:
    """Kill runs until so many kills hit a living run; each run is then resumed to its end and compared.

    Returns:
        The number of runs, how many of the kills left a half-written file, and the runs that differ.
    """
    dice = random.Random(20)
    hits = torn = number = 0
    unequal = []
    while hits < kills:
        place = folder / str(number)
        for attempt in range(dice.randint(1, most_per_run)):
            hits += kill_once(lab, forks, reference, place, dice, (number + attempt) % 4)
            torn += any(place.rglob("*.tmp"))
        last = forks.run(lab.job(reference.cell, place))
        assert last.finish()[-1]["event"] == "done", last.events[-1]
        assert not list(place.rglob("*.tmp"))
        if essence(place) != reference.essence:
            unequal.append(number)
        number += 1
    return number, torn, unequal


def test_dividemix_killed_10_times_ends_bit_identical(
    lab: Lab, forks: ForkServer, essence: Essence, dividemix: Reference, tmp_path: Path
) -> None:
    runs, torn, unequal = survive(lab, forks, essence, dividemix, tmp_path, kills=10, most_per_run=1)
    assert runs >= 10
    assert torn >= 2, "too few kills hit a file while it was written"
    assert unequal == []


def test_ce_killed_5_times_ends_bit_identical(
    lab: Lab, forks: ForkServer, essence: Essence, ce: Reference, tmp_path: Path
) -> None:
    runs, _, unequal = survive(lab, forks, essence, ce, tmp_path, kills=5, most_per_run=1)
    assert runs >= 5
    assert unequal == []


@pytest.mark.parametrize("method", ["ccl", "josrc"])
def test_state_of_every_kind_survives_kills(
    lab: Lab, forks: ForkServer, essence: Essence, tmp_path: Path, method: str
) -> None:
    # Two networks that take turns; a mean teacher and an optimiser whose settings change on the way.
    cell = lab.cell(method, epochs=5, limit=100, options={"warmup_epochs": 2})
    reference = refer(lab, forks, essence, cell, tmp_path / "whole")
    runs, _, unequal = survive(lab, forks, essence, reference, tmp_path / "killed", kills=2, most_per_run=1)
    assert runs >= 2
    assert unequal == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dividemix_killed_200_times_ends_bit_identical(
    lab: Lab, forks: ForkServer, essence: Essence, dividemix: Reference, tmp_path: Path
) -> None:
    runs, torn, unequal = survive(lab, forks, essence, dividemix, tmp_path, kills=200, most_per_run=3)
    assert runs >= 67
    assert torn >= 10
    assert unequal == []


def test_death_before_each_call_of_a_save(
    lab: Lab, forks: ForkServer, essence: Essence, ce: Reference, tmp_path: Path
) -> None:
    """The process kills itself before a chosen file-system call: every kind of call, in the second and third save."""
    whole = forks.run(lab.job(ce.cell, tmp_path / "whole"), pace=0.0)
    whole.finish()
    assert essence(tmp_path / "whole") == ce.essence
    (calls,) = (event["names"] for event in whole.named("calls"))
    ends = [number for number, name in enumerate(calls) if name == "fsync_dir"]
    # A save writes the checkpoint and then the index, and ends each with the folder; the third deletes the first's.
    second_save = range(ends[1] + 1, ends[3] + 1)
    third_save = range(ends[3] + 1, ends[5] + 2)
    assert [calls[number] for number in second_save if calls[number] != "write"] == ["open", *SAVES[2:]] * 2
    assert calls[third_save[-1]] == "unlink"
    writes = [number for number in second_save if calls[number] == "write"]
    chosen = {number for number in second_save if calls[number] != "write"} | {third_save[-1]}
    chosen |= {writes[0], writes[len(writes) // 2], writes[-2], writes[-1]}
    for number in sorted(chosen):
        folder = tmp_path / f"before call {number}"
        assert forks.run(lab.job(ce.cell, folder), pace=0.0, die_at=number).until("done") is None
        resumed = forks.run(lab.job(ce.cell, folder), pace=0.0)
        assert resumed.finish()[-1]["event"] == "done"
        # The first checkpoint was complete, so at least that one is what the run goes on from.
        (event,) = resumed.named("resumed")
        expected = 3 if number > ends[5] else 2 if number > second_save[-2] else 1
        assert event["epoch"] == expected, (number, calls[number])
        assert essence(folder) == ce.essence, (number, calls[number])


def test_command_killed_with_its_workers(
    lab: Lab, forks: ForkServer, essence: Essence, dividemix: Reference, tmp_path: Path
) -> None:
    """``lnlbench run`` is killed while a worker trains: the worker goes too, and the same command finishes the cell."""
    options = [part for key, value in DIVIDEMIX.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", "from lnlbench.cli.main import main; main()", "run", "--method", "dividemix"]
    command += ["--suite", "digits-sym", "--task", "0.40", "--seeds", "1", "--noise-seed", "1", "--epochs", "6"]
    command += ["--limit-train", "100", *options, "--device", "cpu", "--data", str(lab.root / "data"), "--offline"]
    command += ["--runs", str(tmp_path / "runs"), "--leaderboards", str(tmp_path / "boards")]
    with psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as coordinator:
        workers = list(wait_for_epochs(coordinator, tmp_path / "runs", 3))
        coordinator.kill()
    assert len(workers) == 1
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert not list(tmp_path.rglob("result.json"))

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    (folder,) = (path.parent for path in tmp_path.glob("runs/**/result.json"))
    assert folder.name.endswith(dividemix.cell.id)
    assert essence(folder) == dividemix.essence
    with (tmp_path / "boards" / "measured" / "digits-sym.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {key: row[key] for key in dividemix.essence["row"]} == dividemix.essence["row"]


ABANDON = """
import os, subprocess, sys
from pathlib import Path
from lnlbench.contracts.executor import Job
from lnlbench.engine.launch import EngineLauncher
from lnlbench.plugins import Registry

job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
command, environment = EngineLauncher(Registry()).command(job, "cpu")
print(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).pid, flush=True)
os._exit(0)
"""


def test_worker_whose_coordinator_died_at_once(lab: Lab, tmp_path: Path) -> None:
    """It dies before the worker could ask to die with it; the worker must not train on and hold the cell."""
    job = lab.job(lab.cell("ce", epochs=1000), tmp_path / "run")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    coordinator = subprocess.run(
        [sys.executable, "-c", ABANDON, str(tmp_path / "job.json")], capture_output=True, text=True, check=True
    )
    with contextlib.suppress(psutil.NoSuchProcess):
        worker = psutil.Process(int(coordinator.stdout))
        _, alive = psutil.wait_procs([worker], timeout=30)
        for process in alive:
            process.kill()
        assert alive == []
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def wait_for_epochs(coordinator: psutil.Popen, runs: Path, epochs: int) -> Iterator[psutil.Process]:
    """Wait until a worker has logged some epochs; yield the workers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = list(runs.glob("**/metrics.jsonl"))
        if logs and len(logs[0].read_bytes().splitlines()) >= epochs:
            break
        assert coordinator.poll() is None, "the command ended before it could be killed"
        time.sleep(0.01)
    for process in coordinator.children(recursive=True):
        if "lnlbench.engine.launch" in process.cmdline():
            yield process
