"""Cross-learning under the real harness, on a few of the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lnlbench.cli.main import main
from lnlbench_dividemix.dividemix import DivideMix

COMMAND = ["run", "--method", "dividemix", "--suite", "digits-sym", "--task", "0.40", "--seeds", "1"]
TINY = ["--executor", "inline", "--limit-train", "100", "--epochs", "3", "--set", "warmup_epochs=1"]
TERMS = ["--set", "lambda_cvl=1", "--set", "lambda_cml=1"]


def run(folder: Path, data: Path) -> tuple[int, Path]:
    places = ["--data", str(data), "--runs", str(folder / "runs"), "--leaderboards", str(folder / "leaderboards")]
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, *TINY, *TERMS, *places])
    (spec,) = (folder / "runs").rglob("spec.json")
    return int(stop.value.code or 0), spec.parent


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, whole = run(tmp_path / "whole", tmp_path / "data")
    assert code == 0
    for row in rows(whole)[1:]:
        for name in ("net1_loss_cvl", "net1_loss_cml", "net2_loss_cvl", "net2_loss_cml"):
            assert 0 < row["logged"][name] < np.inf

    divide, calls = DivideMix.divide, iter(range(9))

    def stumble(self: DivideMix, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("stumbled")
        return divide(self, *arguments)

    monkeypatch.setattr(DivideMix, "divide", stumble)
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 1
    assert not (broken / "result.json").exists()
    monkeypatch.undo()
    code, broken = run(tmp_path / "broken", tmp_path / "data")
    assert code == 0
    record = json.loads((broken / "result.json").read_text(encoding="utf-8"))
    assert (record["resumed"], record["resume"]) == (1, "exact")
    assert rows(broken) == rows(whole)
    with np.load(whole / "predictions.npz") as one, np.load(broken / "predictions.npz") as other:
        np.testing.assert_array_equal(one["predictions"], other["predictions"])
