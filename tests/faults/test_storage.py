"""A full or read-only disk: one line, nothing half-written, and bit-identical once there is room again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lnlbench.engine.planner import cell_folder

if TYPE_CHECKING:
    from tests.faults.conftest import ForkServer, Lab

Essence = Callable[[Path], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("small_disk")


def test_checkpoint_on_a_full_disk(forks: ForkServer, tmp_path: Path) -> None:
    """20 amounts of free space: the checkpoint before is intact whenever the new one did not fit."""
    free_kib = [*range(0, 320, 20), 360, 400, 500, 600]
    child = forks.start("save_on_small_disk", mount=str(tmp_path / "disk"), free_kib=free_kib)
    assert child.finish()[-1]["event"] == "done", child.events[-1]
    outcomes = child.named("saved")
    assert len(outcomes) == 20
    for outcome in outcomes:
        assert outcome["intact"], outcome
        assert outcome["warnings"] == []
        assert not [name for name in outcome["files"] if name.endswith(".tmp")], outcome
        if outcome["raised"] is None:
            assert outcome["epoch"] == 1
            continue
        kind, message = outcome["raised"]
        assert kind == "StorageError"
        assert message.startswith(f"disk full while writing {tmp_path / 'disk' / 'checkpoints'}/")
        assert message.endswith("MiB); free some space and run the command again")
        assert "\n" not in message
        assert outcome["epoch"] == 0
    full = [outcome for outcome in outcomes if outcome["raised"]]
    assert 14 <= len(full) < 20


@pytest.mark.parametrize(("free_kib", "fill_at"), [(0, 0), (0, 2), (4, 1), (40, 2), (200, 3)])
def test_cell_on_a_disk_that_fills_up(
    lab: Lab, forks: ForkServer, essence: Essence, tmp_path: Path, free_kib: int, fill_at: int
) -> None:
    cell = lab.cell("ce", epochs=6)
    lab.run(cell, tmp_path / "whole")
    disk = tmp_path / "disk"
    child = forks.start(
        "run_on_small_disk",
        mount=str(disk),
        job=lab.job(cell, disk / "run").model_dump(mode="json"),
        size_kib=2048,
        free_kib=free_kib,
        fill_at=fill_at,
        copy_to=str(tmp_path / "copy"),
    )
    assert child.finish()[-1]["event"] == "done", child.events[-1]
    full, freed = child.named("attempt")
    assert "result.json" not in full["files"]
    assert not [name for name in full["files"] if name.endswith(".tmp")]
    if full["raised"] is None:
        # There was room for the note on what failed.
        assert "failure.json" in full["files"]
    else:
        kind, message = full["raised"]
        assert kind == "StorageError"
        assert "disk full" in message
        assert "\n" not in message
    assert freed["raised"] is None
    assert "result.json" in freed["files"]
    assert "failure.json" not in freed["files"]
    assert essence(tmp_path / "copy") == essence(tmp_path / "whole")
    if fill_at > 0:
        assert json.loads((tmp_path / "copy" / "result.json").read_text())["resumed"] == 1


@pytest.mark.parametrize("executor", ["inline", "local"])
@pytest.mark.parametrize("trouble", ["full", "read-only", "full cell", "read-only cell"])
def test_command_on_a_bad_disk(
    lab: Lab, forks: ForkServer, essence: Essence, tmp_path: Path, trouble: str, executor: str
) -> None:
    cell = lab.cell("ce", epochs=2)
    disk = tmp_path / "disk"
    arguments = ["run", "--method", "ce", "--suite", "digits-sym", "--task", "0.40", "--seeds", "1", "--epochs", "2"]
    arguments += ["--limit-train", "200", "--device", "cpu", "--data", str(lab.root / "data"), "--offline"]
    arguments += ["--runs", str(disk / "runs"), "--leaderboards", str(tmp_path / "boards")]
    folder = cell_folder(disk / "runs", cell)
    child = forks.start(
        "command_on_bad_disk",
        mount=str(disk),
        trouble=trouble.removesuffix(" cell"),
        folders=[str(folder)] if trouble.endswith("cell") else [],
        arguments=arguments,
        executor=executor,
        copy_to=str(tmp_path / "copy"),
    )
    assert child.finish()[-1]["event"] == "done", child.events[-1]
    bad, good = child.named("command")
    assert bad["code"] == 1
    assert "Traceback" not in bad["err"]
    assert "internal error" not in bad["err"]
    told = "disk full while writing " if trouble.startswith("full") else "Read-only file system"
    (line,) = [line for line in bad["err"].splitlines() if str(disk) in line]
    assert told in line
    ((names),) = (event["names"] for event in child.named("files"))
    assert not [name for name in names if name.endswith(("result.json", ".tmp", ".pt"))]

    assert good["code"] == 0, good["err"]
    lab.run(cell, tmp_path / "whole")
    assert essence(cell_folder(tmp_path / "copy" / "runs", cell)) == essence(tmp_path / "whole")
