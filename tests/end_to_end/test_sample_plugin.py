"""A package that is no part of this project: pip installs it, then it is listed, run, scored, checked and shown."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lnlbench.testing import CHECKS

SOURCE = Path(__file__).parents[1] / "sample_plugin"
ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).parents[2])
PROVIDER = "lnl-co-teaching 1.0.0"
RUN = "run --method co-teaching --suite digits-sym --task 0.40 --seeds 1 --epochs 3 --limit-train 300"

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, as its author has it."""
    folder = tmp_path_factory.mktemp("author") / "lnl-co-teaching"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip makes of it, in a folder of its own; nothing is fetched."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--isolated", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package on the path of this process and of those it starts."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "co_teaching"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_it_is_listed_run_scored_and_shown(cli: Cli, workplace: Path) -> None:
    for kind, name in (("methods", "co-teaching"), ("backbones", "cnn9")):
        (row,) = [row for row in json.loads(cli("list", kind, "--json").out) if row["name"] == name]
        assert row["provider"] == PROVIDER

    answer = cli(*RUN.split())
    assert answer.code == 0, answer.err
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    (ours,) = csv.DictReader(board.read_text().splitlines())
    assert (ours["method"], ours["method_version"], ours["networks"]) == ("co-teaching", "1.0.0", "1")
    assert (ours["ruleset"], ours["n"]) == ("tuned", "1")
    assert float(ours["clean_auc_mean"]) > 50
    # Over ten epochs, 40 % are given up. Of nine batches of 32 and one of 12, 300, 291 and 282 samples are kept.
    assert ours["clean_size_mean"] == "97.00"
    (result,) = workplace.glob("runs/digits-sym/0.40/co-teaching/*/result.json")
    log = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
    assert [round(epoch["logged"]["keep_rate"], 6) for epoch in log] == [1.0, 0.96, 0.92]
    assert all(set(epoch["networks"]) == {"net1", "net2"} for epoch in log)
    assert log[-1]["networks"]["net1"] == pytest.approx(log[-1]["test_accuracy"], abs=1e-6)

    built = cli("site", "build", "--out", "pages")
    assert (built.code, built.err) == (0, "")
    overview = (workplace / "pages" / "index.html").read_text()
    assert "co-teaching" in overview
    page = (workplace / "pages" / "methods" / "co-teaching.html").read_text()
    for told in ("Extremely Noisy Labels", PROVIDER, "forget_rate", "3 of 40 epochs", "rounds down"):
        assert told in page
    assert "co-teaching" in (workplace / "pages" / "suites" / "digits-sym.html").read_text()


@pytest.mark.usefixtures("installed")
def test_it_does_what_every_method_must(cli: Cli) -> None:
    checked = cli("check", "co-teaching", "--json")
    assert checked.code == 0, checked.out
    assert [row["status"] for row in json.loads(checked.out)] == ["passed"] * len(CHECKS)


@pytest.mark.usefixtures("installed")
def test_its_own_tests_pass_where_it_is_installed(package: Path) -> None:
    # All of them but the checks, which the test above makes; of those, one shows that they can be called from there.
    options = ["-q", "-p", "no:cacheprovider", "-k", "not must or no-noise", "-W", "error"]
    options += ["-W", "ignore:The pynvml package is deprecated:FutureWarning"]
    command = [sys.executable, "-m", "pytest", *options, "tests"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CHECKS) - 1} deselected" in done.stdout


@pytest.mark.usefixtures("installed")
def test_its_network_serves_other_methods(cli: Cli) -> None:
    command = "run --method ce --suite digits-sym --task 0.40 --seeds 1 --set backbone=cnn9 --executor inline"
    refused = cli(*command.split())
    assert refused.code == 1
    assert "backbone 'cnn9' needs images of at least 28 pixels, these have 8" in refused.err + refused.out


def test_no_line_of_it_is_in_the_core_or_in_another_plugin() -> None:
    # "Co-teaching", in the name of the paper, is cited where noise is defined.
    own = ("co_teaching", "co-teaching", "CoTeaching", "cnn9", "Cnn9")
    files = [path for folder in ("lnlbench", "plugins") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix != ".pyc"]
    assert len(texts) > 100
    for path in texts:
        content = path.read_bytes()
        assert [name for name in own if name.encode() in content] == [], path
