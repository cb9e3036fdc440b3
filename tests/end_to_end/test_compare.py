"""``lnlbench compare`` and ``lnlbench table`` as users meet them, on boards of fabricated and of real runs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy import stats

from lnlbench.leaderboard.store import score

Cli = Callable[..., Any]

METHODS = ("ce", "css", "dividemix")
TASKS = ("0.20", "0.40")
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def fabricate() -> ModuleType:
    """The makers of run folders that the leaderboard's own tests use."""
    path = Path(__file__).parents[1] / "leaderboard" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fabricate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(fabricate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on two tasks with three seeds; dividemix diverged once, css ran reduced and with another option."""
    root = tmp_path_factory.mktemp("runs")
    for salt, method in enumerate(METHODS):
        for task in TASKS:
            for seed in SEEDS:
                diverged = (method, task, seed) == ("dividemix", "0.40", 3)
                fabricate.make_run(root, fabricate.make_spec(method, task, seed), diverged, salt=salt)
    make = fabricate.make_spec
    for method in ("ce", "css"):
        short = make(method, "0.40", config={"epochs": 2}, changed={"epochs": 2}, reduced=("2 of 12 epochs",))
        fabricate.make_run(root, short, salt=7)
    fabricate.make_run(root, make("css", "0.40", config={"tau": 0.9}, changed={"tau": 0.9}), salt=8)
    return root


@pytest.fixture(scope="module")
def scored(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboards")
    score([runs], folder / "measured")
    return folder


@pytest.fixture
def board(workplace: Path, scored: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the scored runs what commands find."""
    monkeypatch.setenv("LNLBENCH_LEADERBOARDS", str(scored))
    return scored


def scores_of(runs: Path, method: str, task: str, kind: str = "last10") -> dict[int, float]:
    """What the run folders themselves say, in per cent by seed."""
    found = {}
    for path in (runs / "digits-sym" / task / method).glob("*/result.json"):
        record = json.loads(path.read_text())
        if record["scores"] and not record["spec"]["method"]["changed"]:
            found[record["spec"]["seed"]] = 100 * record["scores"][kind]
    return dict(sorted(found.items()))


def one_error(answer: Any) -> str:
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1, answer.err
    return str(answer.err.removeprefix("lnlbench: error: ").rstrip())


def test_two_methods_are_compared(cli: Cli, board: Path, runs: Path) -> None:
    answer = cli("compare", "css", "dividemix", "--suite", "digits-sym")
    assert (answer.code, answer.err) == (0, "")
    first, second = (scores_of(runs, method, "0.20") for method in ("css", "dividemix"))
    p = stats.ttest_rel(list(first.values()), list(second.values())).pvalue
    means = [
        f"{statistics.fmean(each.values()):.2f} ± {statistics.stdev(each.values()):.2f} (3)" for each in (first, second)
    ]
    (line,) = [line for line in answer.out.splitlines() if line.startswith("0.20") and f"{p:.4f}" in line]
    assert means[0] in line
    assert means[1] in line
    assert f"{statistics.fmean(first.values()) - statistics.fmean(second.values()):+.2f}" in line
    told = " ".join(answer.out.split())
    assert "digits-sym, last10: mean test accuracy over the final ten epochs, in per cent" in told
    assert "css is" in told
    assert "dividemix diverged on 0.40 with seed 3: no score of it counts." in told
    assert "dividemix has no mean rank: diverged on 0.40 seed 3." in told
    assert "nan" not in told.lower()
    assert any(line.startswith("suite") for line in answer.out.splitlines())


def test_comparison_as_json(cli: Cli, board: Path, runs: Path) -> None:
    answer = cli("compare", "ce,css", "dividemix", "--suite", "digits-sym", "--score", "best", "--json")
    (found,) = json.loads(answer.out)
    assert (found["suite"], found["score"], found["reduced"]) == ("digits-sym", "best", False)
    assert [(each["name"], each["ruleset"]) for each in found["methods"]] == [(name, "agnostic") for name in METHODS]
    for task in found["tasks"]:
        raw = []
        values = {name: scores_of(runs, name, task["task"], "best") for name in METHODS}
        for method in task["methods"]:
            mine = list(values[method["name"]].values())
            assert method["n"] == len(mine)
            assert method["mean"] == pytest.approx(statistics.fmean(mine), abs=1e-4)
            assert method["sd"] == pytest.approx(statistics.stdev(mine), abs=1e-4)
            assert method["t_interval"] == pytest.approx(
                list(stats.ttest_1samp(mine, 0).confidence_interval(0.95)), abs=1e-3
            )
            low, high = method["bootstrap_interval"]
            assert min(mine) - 1e-4 <= low < high <= max(mine) + 1e-4
        for pair in task["pairs"]:
            one, other = values[pair["first"]], values[pair["second"]]
            shared = sorted(set(one) & set(other))
            assert pair["pairs"] == len(shared)
            if pair["p"] is not None:
                expected = stats.ttest_rel([one[seed] for seed in shared], [other[seed] for seed in shared]).pvalue
                assert pair["p"] == pytest.approx(expected)
                raw.append((pair["p"], pair["p_holm"]))
        highest = 0.0
        for place, (p, corrected) in enumerate(sorted(raw)):
            highest = max(highest, min(1.0, (len(raw) - place) * p))
            assert corrected == pytest.approx(highest)
    over = {each["name"]: each for each in found["over_suite"]["methods"]}
    assert over["dividemix"]["mean_rank"] is None
    assert over["dividemix"]["incomplete"] == "diverged on 0.40 seed 3"
    assert over["ce"]["mean_rank"] + over["css"]["mean_rank"] == pytest.approx(3)
    assert found["over_suite"]["cells"] == 6


def test_all_methods_of_the_board_each_with_its_options(cli: Cli, board: Path) -> None:
    (found,) = json.loads(cli("compare", "--suite", "digits-sym", "--json").out)
    assert [(each["name"], each["ruleset"]) for each in found["methods"]] == [
        ("ce", "agnostic"),
        ("css", "agnostic"),
        ("css (tau=0.9)", "tuned"),
        ("dividemix", "agnostic"),
    ]
    text = " ".join(cli("compare", "--suite", "digits-sym").out.split())
    assert "Rulesets differ: css (tau=0.9) tuned to the noise, the others agnostic." in text
    assert "not tested: fewer than two runs on the same noise and seed in common." in text
    (found,) = json.loads(cli("compare", "css (tau=0.9)", "css", "--suite", "digits-sym", "--json").out)
    assert [each["name"] for each in found["methods"]] == ["css (tau=0.9)", "css"]
    found = json.loads(cli("compare", "--suite", "digits-sym", "--ruleset", "agnostic", "--reduced", "--json").out)
    assert [([each["name"] for each in one["methods"]], one["title"]) for one in found] == [
        (["ce", "css", "dividemix"], "digits-sym"),
        (["ce", "css"], "digits-sym, reduced runs"),
    ]


def test_output_that_takes_ascii_only(cli_process: Cli, board: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    compared = cli_process("compare", "css", "ce", "--suite", "digits-sym", environment=ascii_only)
    assert (compared.code, compared.err) == (0, "")
    assert compared.out.isascii()
    assert "+/-" in compared.out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "compare css --suite digits-sym",
            "two methods with comparable runs are needed; what there is: digits-sym: css",
        ),
        ("compare css cee --suite digits-sym", "unknown method on the board of digits-sym 'cee'; did you mean 'ce'"),
        ("compare css ce --suite digit-sym", "did you mean 'digits-sym'?"),
        ("compare css ce --suite digits-sym --score lst", "Invalid value for '--score'"),
        (
            "compare css ce --suite digits-sym --score best_val",
            "no finished run of these methods on digits-sym has the",
        ),
        ("compare css ce --suite digits-sym --ruleset tuned", "ce has on digits-sym only runs under another ruleset"),
        ("compare css ce --suite digits-sym --leaderboards elsewhere", "unknown suite on the board elsewhere/measured"),
        ("compare css ce", "Missing option '--suite'"),
        ("table --suite digits-sym --score bst", "unknown score 'bst'; did you mean 'best'"),
        ("table --suite digits-sym --score ,", "--score names no score"),
        ("table --suite digits-sym --methods josrc", "unknown method on the board of digits-sym 'josrc'"),
        ("table --suite digits-sym --format html", "Invalid value for '--format'"),
    ],
)
def test_wrong_requests_exit_with_2_and_one_line(cli: Cli, board: Path, command: str, message: str) -> None:
    assert message in one_error(cli(*command.split()))


def test_a_plot_of_the_critical_difference(cli: Cli, fabricate: ModuleType, tmp_path: Path) -> None:
    for salt, method in enumerate(METHODS):
        for seed in SEEDS:
            fabricate.make_run(tmp_path / "runs", fabricate.make_spec(method, "0.40", seed), salt=salt)
    score([tmp_path / "runs"], tmp_path / "leaderboards" / "measured")
    board = ("--leaderboards", tmp_path / "leaderboards", "--suite", "digits-sym")
    told = cli("compare", *board, "--plot", tmp_path / "ranks.svg")
    assert told.code == 0, told.err
    drawing = ElementTree.fromstring((tmp_path / "ranks.svg").read_bytes())  # noqa: S314 - of our own making
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    words = drawing.attrib["aria-label"]
    assert words.startswith("digits-sym, last10: mean ranks over 3 cells")
    difference = re.search(r"Critical difference (\S+)\. ", words)
    assert difference is not None
    assert f"critical difference {difference[1]} (Nemenyi)" in " ".join(told.out.split())

    two = cli("compare", "ce", "css", *board, "--plot", tmp_path / "two.svg")
    assert "it takes three methods" in one_error(two)
    assert not (tmp_path / "two.svg").exists()
    assert "ends with .svg" in one_error(cli("compare", *board, "--plot", tmp_path / "ranks.png"))
    assert "does not exist" in one_error(cli("compare", *board, "--plot", tmp_path / "no" / "ranks.svg"))


def test_tables_of_a_suite(cli: Cli, board: Path, runs: Path) -> None:
    table = cli("table", "--suite", "digits-sym", "--methods", "dividemix,css")
    assert (table.code, table.err) == (0, "")
    lines = table.out.splitlines()
    assert lines[2] == "| Method | Score | 0.20 | 0.40 |"
    assert [line.split(" | ")[:2] for line in lines[4:8]] == [
        ["| dividemix", "Best"],
        ["| ", "Last 10"],
        ["| css", "Best"],
        ["| ", "Last 10"],
    ]
    latex = cli("table", "--suite", "digits-sym", "--format", "latex", "--score", "last10").out
    assert latex.count(r"\begin{table}") == 1
    assert r"css (tau=0.9) & " in latex
    rows = list(csv.DictReader(io.StringIO(cli("table", "--suite", "digits-sym", "--format", "csv").out)))
    (row,) = [row for row in rows if (row["method"], row["score"]) == ("css", "last10")]
    values = list(scores_of(runs, "css", "0.20").values())
    assert (row["0.20 mean"], row["0.20 sd"]) == (f"{statistics.fmean(values):.2f}", f"{statistics.stdev(values):.2f}")


def test_real_runs(cli: Cli, make_cells: Callable[..., Any], run_here: Callable[..., Any], tmp_path: Path) -> None:
    for overrides in ({}, {"momentum": "0.5"}):
        for cell in make_cells(seeds=[1, 2], overrides=overrides):
            run_here(cell)
    assert cli("score", tmp_path / "runs").code == 0
    assert "ce has on digits-sym only reduced runs; --reduced takes them" in one_error(
        cli("compare", "ce", "ce (momentum=0.5)", "--suite", "digits-sym")
    )
    (found,) = json.loads(cli("compare", "--suite", "digits-sym", "--reduced", "--json").out)
    assert found["title"] == "digits-sym, 150 training images, reduced runs"
    assert [each["name"] for each in found["methods"]] == ["ce", "ce (momentum=0.5)"]
    # Both were trained on the same noise, so that their runs pair up.
    assert [pair["pairs"] for task in found["tasks"] for pair in task["pairs"]] == [2]
