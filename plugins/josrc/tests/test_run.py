"""The method under the real harness, on a few of the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lnlbench.cli.main import main
from lnlbench_josrc.josrc import JoSrc

COMMAND = ["run", "--method", "josrc", "--suite", "digits-openset", "--task", "sym@0.50", "--seeds", "1"]
TINY = ["--executor", "inline", "--limit-train", "161", "--epochs", "4", "--set", "warmup_epochs=2"]


def run(folder: Path, data: Path) -> tuple[int, Path]:
    places = ["--data", str(data), "--runs", str(folder / "runs"), "--leaderboards", str(folder / "leaderboards")]
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, *TINY, *places])
    (spec,) = (folder / "runs").rglob("spec.json")
    return int(stop.value.code or 0), spec.parent


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def same_predictions(one: Path, other: Path) -> bool:
    with np.load(one / "predictions.npz") as here, np.load(other / "predictions.npz") as there:
        return np.array_equal(here["predictions"], there["predictions"])


def test_runs_repeat_and_resume_bit_for_bit_on_an_open_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, whole = run(tmp_path / "whole", tmp_path / "data")
    assert code == 0
    record = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert (record["status"], record["resumed"], record["asked"]) == ("finished", 0, [])
    code, again = run(tmp_path / "again", tmp_path / "data")
    assert code == 0
    assert rows(again) == rows(whole)
    assert same_predictions(again, whole)

    train, calls = JoSrc.train_epoch, iter(range(9))

    def stumble(self: JoSrc, *arguments: Any) -> None:
        if next(calls) == 3:
            raise RuntimeError("stumbled")
        train(self, *arguments)

    monkeypatch.setattr(JoSrc, "train_epoch", stumble)
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 1
    assert not (broken / "result.json").exists()
    monkeypatch.undo()
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 0
    record = json.loads((broken / "result.json").read_text(encoding="utf-8"))
    assert (record["resumed"], record["resume"]) == (1, "exact")
    assert rows(broken) == rows(whole)
    assert same_predictions(broken, whole)

    # Samples out of distribution are scored from the first epoch after warm-up on.
    selections = [row["selection"] for row in rows(whole)]
    assert all("clean_auc" in selection for selection in selections)
    assert ["ood_recall" in selection for selection in selections] == [False, False, True, True]
    assert ["id_noise_recall" in selection for selection in selections] == [False, False, True, True]
