"""The method under the real harness, on a few of the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lnlbench.cli.main import main
from lnlbench_ccl.ccl import Ccl

COMMAND = ["run", "--method", "ccl", "--suite", "digits-sym", "--task", "0.40", "--seeds", "1", "--executor", "inline"]
TINY = ["--limit-train", "100", "--epochs", "4", "--set", "warmup_epochs=1"]


def run(folder: Path, data: Path, *more: str) -> tuple[int, Path]:
    places = ["--data", str(data), "--runs", str(folder / "runs"), "--leaderboards", str(folder / "leaderboards")]
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, *TINY, *more, *places])
    (spec,) = (folder / "runs").rglob("spec.json")
    return int(stop.value.code or 0), spec.parent


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def predictions(folder: Path) -> Any:
    with np.load(folder / "predictions.npz") as stored:
        return stored["predictions"]


def test_a_run_repeats_bit_for_bit_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, whole = run(tmp_path / "whole", tmp_path / "data")
    assert code == 0
    record = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert (record["status"], record["resumed"]) == ("finished", 0)
    code, again = run(tmp_path / "again", tmp_path / "data")
    assert code == 0

    train_epoch, calls = Ccl.train_epoch, iter(range(9))

    def stumble(self: Ccl, *arguments: Any) -> None:
        # The second network of the third epoch: the first one of it has been trained already.
        if next(calls) == 3:
            raise RuntimeError("stumbled")
        train_epoch(self, *arguments)

    monkeypatch.setattr(Ccl, "train_epoch", stumble)
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 1
    assert not (broken / "result.json").exists()
    monkeypatch.undo()
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 0
    record = json.loads((broken / "result.json").read_text(encoding="utf-8"))
    assert (record["resumed"], record["resume"]) == (1, "exact")

    assert rows(again) == rows(broken) == rows(whole)
    np.testing.assert_array_equal(predictions(again), predictions(whole))
    np.testing.assert_array_equal(predictions(broken), predictions(whole))

    last = rows(whole)[-1]
    assert set(last["networks"]) == {"net1", "net2"}
    assert {"clean_auc.net1", "clean_precision.net2", "pseudo_label_accuracy.net1"} <= set(last["selection"])
    assert set(rows(whole)[0]["selection"]) == {"memorised_noise"}


def test_a_batch_may_be_larger_than_the_training_set(tmp_path: Path) -> None:
    code, folder = run(
        tmp_path, tmp_path / "data", "--epochs", "2", "--set", "batch_size=4096", "--set", "pg_threshold=0"
    )
    assert code == 0
    assert rows(folder)[-1]["logged"]["net1_guided"] == 1.0
