"""Several processes want one run folder: one gets it, the others are told in a line, and a dead owner frees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.conftest import ForkServer, Lab

ROUNDS, PROCESSES = 20, 4


def test_20_rounds_of_4_processes_have_20_owners(lab: Lab, forks: ForkServer, tmp_path: Path) -> None:
    cell = lab.cell("ce", epochs=1)
    job = lab.job(cell, tmp_path / "run")
    owners, refused = [], []
    for _ in range(ROUNDS):
        children = [forks.start("hold", job=job.model_dump(mode="json")) for _ in range(PROCESSES)]
        # The owner stays at its start until it is killed, so each of the others meets a lock that is held.
        for child in children:
            while (event := child.listen()) is not None and event["event"] not in ("start", "raised"):
                pass
        owners += [child for child in children if child.named("start")]
        refused += [event for child in children for event in child.named("raised")]
        assert len(owners) + len(refused) == PROCESSES * (len(owners) or 1)
        for child in children:
            child.kill()
    assert len(owners) == ROUNDS
    assert len(refused) == ROUNDS * (PROCESSES - 1)
    assert {event["type"] for event in refused} == {"CellBusyError"}
    assert {event["message"] for event in refused} == {
        f"ce digits-sym@0.40 seed 1 is being run by another process ({tmp_path / 'run'})"
    }
    # The last owner was killed too; its lock went with it.
    last = forks.run(job)
    assert last.finish()[-1]["event"] == "done"
    assert json.loads((job.folder / "result.json").read_text())["status"] == "finished"


def test_a_refused_process_touches_nothing(lab: Lab, forks: ForkServer, tmp_path: Path) -> None:
    cell = lab.cell("ce", epochs=1)
    job = lab.job(cell, tmp_path / "run")
    owner = forks.start("hold", job=job.model_dump(mode="json"))
    assert owner.until("start")
    # A file being written by the owner looks like a dead one's leftover to anybody else.
    (job.folder / "result.json.1.abc.tmp").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in job.folder.iterdir()}
    other = forks.run(job)
    assert other.finish()[-1]["type"] == "CellBusyError"
    assert {path.name: path.stat().st_mtime_ns for path in job.folder.iterdir()} == before
    owner.kill()
    assert forks.run(job).finish()[-1]["event"] == "done"
    assert not list(job.folder.glob("*.tmp"))
