"""``lnlbench analyse`` as users meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
RUN = ("run", "--epochs", "2", "--limit-train", "150", "--seeds", "1", "--executor", "inline", "--threads", "1")
TASK = ("--suite", "digits-sym", "--task", "0.40")
SHAPES = "".join(f'{digit} = "{"round" if digit in (0, 6, 8, 9) else "open"}"\n' for digit in range(10))


@pytest.fixture
def two_runs(cli: Cli, workplace: Path) -> Path:
    answer = cli(*RUN, *TASK, "--method", "ce,dividemix", "--set", "dividemix.warmup_epochs=1")
    assert answer.code == 0, answer.err
    return workplace / "runs"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_runs_below_a_folder(two_runs: Path, cli: Cli, workplace: Path) -> None:
    before = contents(workplace)
    answer = cli("analyse", "runs", "runs/digits-sym")
    assert (answer.code, answer.err) == (0, "")
    lines = [line.split() for line in answer.out.splitlines()]
    assert [" ".join(line) for line in lines if "seed" in line] == [
        "ce digits-sym@0.40 seed 1, 360 test images",
        "dividemix digits-sym@0.40 seed 1, 360 test images",
    ]
    assert [line[0] for line in lines if line and line[0] in ("network", "net1", "net2")].count("network") == 3
    header = "network    accuracy    variance entropy    of its maximum"
    assert [line.rstrip() for line in answer.out.splitlines()].count(header) == 2
    assert sum("embedding consistency" in line for line in answer.out.splitlines()) == 1
    assert "LCA" not in answer.out
    assert contents(workplace) == before

    (result,) = two_runs.glob("digits-sym/0.40/ce/*/result.json")
    last = json.loads(result.read_text())["scores"]["last"]
    assert f"{100 * last:.2f}" in answer.out

    rows = json.loads(cli("analyse", "runs", "--json").out)
    assert [(row["method"], len(row["networks"]), len(row["pairs"])) for row in rows] == [
        ("ce", 1, 0),
        ("dividemix", 2, 1),
    ]
    assert rows[0]["networks"][0]["accuracy"] == last
    assert f"{rows[1]['pairs'][0]['embedding_consistency']:.4f}" in answer.out
    assert f"{rows[1]['pairs'][0]['logit_wasserstein']:.4f}" in answer.out


def test_a_taxonomy_of_ones_own(two_runs: Path, cli: Cli, workplace: Path) -> None:
    (workplace / "shapes.toml").write_text(f'{SHAPES}round = "digit"\nopen = "digit"\n')
    answer = cli("analyse", "runs", "--taxonomy", "shapes.toml")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("LCA distance") == 2
    assert answer.out.count("taxonomy: shapes.toml") == 2
    rows = json.loads(cli("analyse", "runs", "--taxonomy", "shapes.toml", "--json").out)
    assert all(1 <= network["lca_distance"] <= 2 for row in rows for network in row["networks"])

    (workplace / "shapes.toml").write_text(SHAPES)
    refused = cli("analyse", "runs", "--taxonomy", "shapes.toml")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == ("lnlbench: error: taxonomy shapes.toml has 2 roots, 'open', 'round'; give them one parent\n")
    (workplace / "shapes.toml").write_text('7 = "digit"\n')
    refused = cli("analyse", "runs/digits-sym/0.40/ce", "--taxonomy", "shapes.toml")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert "taxonomy shapes.toml: class '0' (and 8 more) has no parent; name one" in refused.err


def test_what_cannot_be_analysed_does_not_hold_up_the_rest(two_runs: Path, cli: Cli) -> None:
    (unfinished,) = two_runs.glob("digits-sym/0.40/ce/*")
    (unfinished / "result.json").unlink()
    answer = cli("analyse", "runs")
    assert answer.code == 0
    place = unfinished.relative_to(two_runs.parent)
    assert answer.err == f"not analysed: {place}: the run is not finished; issue its run command again\n"
    assert "dividemix digits-sym@0.40" in answer.out

    (checkpoint,) = two_runs.glob("digits-sym/0.40/dividemix/*/checkpoints/ckpt-000001.pt")
    checkpoint.write_bytes(b"damaged")
    answer = cli("analyse", "runs", "--json")
    assert answer.code == 1
    assert json.loads(answer.out) == []
    assert answer.err.count("\n") == 2
    assert "checkpoint ckpt-000001.pt is damaged, and the final networks with it; run the cell anew" in answer.err


def test_nothing_to_analyse(cli: Cli, workplace: Path) -> None:
    (workplace / "runs").mkdir()
    empty = cli("analyse", "runs")
    assert (empty.code, empty.out, empty.err) == (1, "", "not analysed: runs: no run is there\n")
    missing = cli("analyse", "rums")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err == "lnlbench: error: no folder rums; name a run folder or one that holds run folders\n"
    assert cli("analyse").code == 2


def test_a_run_of_ones_own_suite(cli: Cli) -> None:
    # Its suite is in no catalogue.
    trained = cli(*RUN, "--method", "ce", "--dataset", "digits", "--noise", "symmetric", "--rate", "0.3")
    assert trained.code == 0, trained.err
    (row,) = json.loads(cli("analyse", "runs", "--json").out)
    assert (row["suite"], row["task"], row["num_test"]) == ("digits-symmetric", "0.30", 360)


def test_networks_of_different_widths_and_samples_are_noted(
    cli: Cli, plugins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.add(
        "lnlbench-mixed",
        "lnlbench_mixed",
        """
        from lnlbench.api import Method, MethodConfig, MethodEntry, hookimpl

        @hookimpl
        def lnlbench_methods():
            return [MethodEntry(name="mixed", target="lnlbench_mixed:Mixed", summary="Three networks.")]

        class Mixed(Method[MethodConfig]):
            Config = MethodConfig

            @classmethod
            def preset(cls, task):
                return MethodConfig(epochs=2, batch_size=50, backbone="small-cnn")

            def fit(self, task, run):
                self.a, self.b = task.network("a", "small-cnn"), task.network("b", "small-cnn")
                self.c = task.network("c", "cnn7")
                run.track(a=self.a, b=self.b, c=self.c)
                for _epoch in run.epochs(self.config.epochs):
                    pass

            def predict(self, images):
                return self.a(images)
        """,
    )
    trained = cli(*RUN, *TASK, "--method", "mixed")
    assert trained.code == 0, trained.err
    monkeypatch.setattr("lnlbench.engine.analyse.ALL_PAIRS", 100)
    monkeypatch.setattr("lnlbench.engine.analyse.SAMPLED_PAIRS", 500)
    answer = cli("analyse", "runs")
    assert (answer.code, answer.err) == (0, "")
    assert "a and b: consistency over a sample of 500 pairs of images" in answer.out
    assert "a has 64 features and c 16: consistency needs as many in both" in answer.out
    assert "b has 64 features and c 16: consistency needs as many in both" in answer.out
