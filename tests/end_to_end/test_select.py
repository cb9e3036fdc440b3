"""Selecting clean samples before training, as users meet it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
TASK = ("--suite", "digits-sym", "--task", "0.60", "--seeds", "1")
SHORT = ("--epochs", "2", "--limit-train", "400", "--executor", "inline")


def one_error(answer: Any) -> str:
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1, answer.err
    return str(answer.err.removeprefix("lnlbench: error: ").rstrip())


def test_verdicts_are_written_and_scored(cli: Cli, workplace: Path) -> None:
    answer = cli("select", "--method", "clipcleaner", *TASK, "--out", "chosen", "--json")
    assert answer.code == 0, answer.err
    (scores,) = json.loads(answer.out)
    rows = list(csv.DictReader((workplace / scores["file"]).read_text().splitlines()))
    assert list(rows[0]) == ["index", "given_label", "clean_prob", "selected"]
    assert [int(row["index"]) for row in rows] == list(range(1437))
    assert all(0.0 <= float(row["clean_prob"]) <= 1.0 for row in rows)
    chosen = [row for row in rows if row["selected"] == "1"]
    assert len(chosen) / len(rows) == pytest.approx(scores["clean_size"])

    exported = cli("noise", "export", "digits-sym@0.60", "labels.csv")
    assert exported.code == 0
    true = [row["true_label"] for row in csv.DictReader((workplace / "labels.csv").read_text().splitlines())]
    right = sum(row["given_label"] == true[int(row["index"])] for row in chosen)
    assert right / len(chosen) == pytest.approx(scores["clean_precision"])
    # A vision-language model that has never seen handwriting, on labels of which 60 % are wrong.
    assert scores["clean_precision"] >= 0.85
    assert not list(workplace.glob("runs/**/*.json")), "nothing is trained"


def test_the_table_names_every_task_and_seed(cli: Cli) -> None:
    answer = cli("select", "--method", "clipcleaner", "--suite", "digits-sym", "--task", "0.20,0.40", "--seeds", "1,2")
    assert answer.code == 0, answer.err
    assert [line.split()[:2] for line in answer.out.splitlines() if line.startswith("digits-sym@")] == [
        [f"digits-sym@{task}", seed] for task in ("0.20", "0.40") for seed in ("1", "2")
    ]


def test_plain_training_starts_from_a_selection(cli: Cli, workplace: Path) -> None:
    command = ("run", "--method", "ce,dividemix", "--select", "clipcleaner", *TASK, *SHORT)
    answer = cli(*command, "--set", "dividemix.warmup_epochs=1", "--set", "clipcleaner.theta_cons=0.9")
    assert answer.code == 0, answer.err
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    rows = {row["method"]: row for row in csv.DictReader(board.read_text().splitlines())}
    assert set(rows) == {"ce", "dividemix"}
    for row in rows.values():
        assert row["selector"].startswith("clipcleaner ")
        assert row["supervision"] == "clip"
        assert "from clipcleaner's selection (theta_cons=0.9)" in row["protocol"]
    assert float(rows["ce"]["clean_precision_mean"]) >= 85


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("select", "--method", "ce", "--suite", "digits-sym"), "'ce' selects nothing before training"),
        (("select", "--method", "clipclener", "--suite", "digits-sym"), "did you mean 'clipcleaner'"),
        (("run", "--method", "css", "--suite", "digits-sym", "--select", "clipcleaner"), "cannot start from another"),
        (("run", "--method", "css", "--suite", "digits-sym", "--set", "encoder=glyps"), "did you mean 'glyphs'"),
    ],
)
def test_wrong_requests_are_one_line(arguments: tuple[str, ...], said: str, cli: Cli) -> None:
    assert said in one_error(cli(*arguments))
