"""A torn log, or lines of epochs that the checkpoint does not know: after a resume each epoch is there once."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from lnlbench.engine import checkpoint
from lnlbench.engine.live import LiveRun
from lnlbench.engine.scoring import Answers, PredictionLog, Truth
from lnlbench.engine.seeding import Clock
from lnlbench.engine.stages import StageCache
from lnlbench.errors import StorageError

if TYPE_CHECKING:
    from tests.faults.conftest import Lab

Essence = Callable[[Path], dict[str, Any]]
TOTAL = 7
LABELS = np.arange(6) % 3


def predict(_: list[nn.Module]) -> dict[str, Answers]:
    return {"": Answers(LABELS, None)}


def train(folder: Path, stop_in: int | None = None, emit: Callable[[dict[str, Any]], None] = bool) -> list[int]:
    """Count epochs in a harness of its own, up to the middle of one; return the epochs that were run."""
    cpu = torch.device("cpu")
    clock = Clock(1)
    log = PredictionLog({"": LABELS}, 3)
    stages = StageCache(folder, {}, "", emit)
    run = LiveRun(folder, clock, cpu, "here", Truth.of(LABELS, LABELS, 3), log, predict, stages, emit)
    state = {"sum": 0}
    run.track(state=state)
    epochs = []
    for epoch in run.epochs(TOTAL):
        if epoch == stop_in:
            return epochs
        epochs.append(epoch)
        state["sum"] += epoch
        run.log(loss=1.0 / (1 + state["sum"]))
    assert state["sum"] == sum(range(TOTAL))
    return epochs


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A whole run, and one that was killed in epoch 5 with its only checkpoint after epoch 1."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    monkeypatch.setattr(checkpoint, "_PACE", 0.0)
    train(whole)
    train(part, stop_in=2)
    monkeypatch.setattr(checkpoint.Checkpoints, "due", lambda _: False)
    assert train(part, stop_in=5) == [2, 3, 4]
    assert [row["epoch"] for row in rows(part)] == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    return whole, part


def test_log_torn_at_every_byte_of_its_last_lines(logs: tuple[Path, Path], tmp_path: Path) -> None:
    whole, part = logs
    content = (part / "metrics.jsonl").read_bytes()
    start = sum(len(line) for line in content.splitlines(keepends=True)[:-3])
    assert len(content) - start > 300
    # What is in the log's last line when the run goes on has been torn, is whole, or has something after it.
    torn = [content[:length] for length in range(start, len(content) + 1)]
    torn += [content + extra for extra in (b"\n", b"\0" * 512, b'{"epoch": 5', content, b"\xff\n")]
    torn += [b"", content[: start // 2], content.replace(b"\n", b"")]
    for number, text in enumerate(torn):
        folder = tmp_path / str(number)
        shutil.copytree(part, folder)
        (folder / "metrics.jsonl").write_bytes(text)
        assert train(folder, stop_in=2) == []
        assert without_seconds(rows(folder)) == without_seconds(rows(whole))[:2]
        if number % 20 and number < len(torn) - 10:
            # Whatever was there, the log is now what the checkpoint knows; some runs go on to the end all the same.
            shutil.rmtree(folder)
            continue
        assert train(folder) == [2, 3, 4, 5, 6]
        assert [row["epoch"] for row in rows(folder)] == list(range(TOTAL))
        assert without_seconds(rows(folder)) == without_seconds(rows(whole))
        shutil.rmtree(folder)


def test_log_that_is_gone(logs: tuple[Path, Path]) -> None:
    whole, part = logs
    (part / "metrics.jsonl").unlink()
    train(part)
    assert without_seconds(rows(part)) == without_seconds(rows(whole))


def test_log_without_a_checkpoint_starts_anew(logs: tuple[Path, Path]) -> None:
    whole, part = logs
    shutil.rmtree(part / "checkpoints")
    assert train(part) == list(range(TOTAL))
    assert without_seconds(rows(part)) == without_seconds(rows(whole))


def test_every_line_is_on_the_disk_before_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint never knows of an epoch that a reader of the log could not see."""
    seen = []
    save = checkpoint.Checkpoints.save

    def spy(self: checkpoint.Checkpoints, epoch: int, payload: dict[str, Any]) -> None:
        seen.append([row["epoch"] for row in rows(tmp_path)] == list(range(epoch + 1)))
        save(self, epoch, payload)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", spy)
    monkeypatch.setattr(checkpoint, "_PACE", 0.0)
    train(tmp_path)
    assert seen == [True] * TOTAL


def test_a_line_that_fits_only_in_part_is_an_error(logs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel writes what fits and says so in a number only; a run must not go on behind half a line."""
    whole, part = logs
    lines = (part / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    # The checkpoints are larger than the log, so none may be written under this limit.
    monkeypatch.setattr(checkpoint.Checkpoints, "due", lambda _: False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(b"".join(lines[:2])) + 40, hard))
    try:
        with pytest.raises(StorageError, match=r"metrics\.jsonl: File too large") as caught:
            train(part, emit=make_room)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    train(part)
    assert without_seconds(rows(part)) == without_seconds(rows(whole))


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_whole_cell_with_a_torn_log_ends_bit_identical(
    lab: Lab, essence: Essence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(checkpoint, "_PACE", 0.0)
    cell = lab.cell("ce", epochs=6)
    lab.run(cell, tmp_path / "whole")
    lab.run(cell, tmp_path / "part", stop_after=3)
    log = tmp_path / "part" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    lab.run(cell, tmp_path / "part")
    assert essence(tmp_path / "part") == essence(tmp_path / "whole")
