"""Measuring what methods cost, and the page that compares them."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnlbench.engine.profile import Measurement
from lnlbench.plugins import discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
KEPT = ROOT / "docs" / "reference" / "comparison.json"
TASK = ("--suite", "digits-sym", "--task", "0.40")
SHORT = ("--epochs", "2", "--limit-train", "150", "--set", "dividemix.warmup_epochs=1")
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def page() -> str:
    spec = importlib.util.spec_from_file_location("comparison", ROOT / "docs" / "_ext" / "comparison.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.page(discover(), KEPT)
    return text


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_the_page_says_is_what_is_counted_now(cli: Cli, workplace: Path, temporary: Path) -> None:
    answer = cli("profile", "--method", "ce,dividemix", *TASK, *SHORT, "--out", "found/costs.json")
    assert answer.code == 0, answer.err
    assert answer.err.splitlines() == [
        "measuring ce digits-sym@0.40 seed 1",
        "measuring dividemix digits-sym@0.40 seed 1",
    ]
    rows = [line.split() for line in answer.out.splitlines()]
    assert ["ce", "1", "/", "1", "/", "1", "weak"] in rows
    assert ["dividemix", "2", "/", "2", "/", "2", "weak,", "weak"] in rows
    assert any(row[:4] == ["dividemix", "1", "/", "6"] for row in rows)

    assert list(temporary.iterdir()) == [], "no run is kept"
    assert [path.name for path in workplace.iterdir()] == ["found"]

    now = Measurement.model_validate_json((workplace / "found" / "costs.json").read_text())
    assert (now.suite, now.task, now.num_train, now.environment.threads) == ("digits-sym", "0.40", 150, 1)
    kept = {each.method: each for each in Measurement.model_validate_json(KEPT.read_text()).methods}
    structure = ("networks_trained", "networks_run", "views", "passes_with_gradient", "passes_without_gradient")
    for each in now.methods:
        before = kept[each.method]
        for name in (*structure, "sets_outside_steps", "reports", "encoders", "sets_encoded"):
            assert getattr(each.usage, name) == getattr(before.usage, name), f"{each.method}: {name}"
        assert (each.parameters, each.networks_at_test) == (before.parameters, before.networks_at_test)
        assert (each.epochs, each.changed["epochs"], each.asked) == (2, 2, ())
        assert 0 < each.seconds_per_epoch < 60
        assert 2**26 < each.peak_memory_bytes < 2**34
    assert now.methods[0].usage.steps == 3


def test_every_method_of_the_repository_is_on_the_page(page: str) -> None:
    ours = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists())
    tables = re.findall(r"^\| method .*\n\|[- :|]*\n((?:\|.*\n)+)", page, re.M)
    assert len(tables) == 2
    for table in tables:
        rows = {line.split("`")[1]: line for line in table.splitlines()}
        assert set(ours) <= set(rows)
        for name in ours:
            assert "—" not in rows[name], f"{name} is not measured: the page has the command"


def test_the_measurement_on_the_page_is_of_whole_runs() -> None:
    kept = Measurement.model_validate_json(KEPT.read_text())
    assert kept.methods[0].method == "ce"
    for each in kept.methods:
        assert each.changed == {}, each.method
        assert each.seconds_per_epoch > 0


def test_the_page_says_who_asks_for_what(page: str) -> None:
    (row,) = re.findall(r"^\| `dividemix` .*\| noise type.*$", page, re.M)
    # Its table of lambda_u depends on the rate under symmetric noise.
    assert "noise rate (on cifar10-sym, cifar100-sym)" in row
    assert re.search(r"^- No knowledge of the noise: .*`ce`", page, re.M)
    assert not re.search(r"^- No knowledge of the noise: .*`dividemix`", page, re.M)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "dividemx", *TASK), "did you mean 'dividemix'"),
        (("--method", "ce", "--suite", "digits-sym", "--task", "0.41"), "0.41"),
        (("--method", "ce", *TASK, "--set", "learning_rat=1"), "did you mean 'learning_rate'"),
        (("--method", "ce", *TASK, "--device", "tpu"), "device 'tpu' is not available"),
    ],
)
def test_wrong_requests_are_one_line(arguments: tuple[str, ...], said: str, cli: Cli, workplace: Path) -> None:
    answer = cli("profile", *arguments, "--out", "costs.json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("lnlbench: error: ")
    assert answer.err.count("\n") == 1, answer.err
    assert said in answer.err
    assert list(workplace.iterdir()) == []


def test_a_failure_is_named_and_nothing_is_written(cli: Cli, workplace: Path, plugins: Any, temporary: Path) -> None:
    plugins.add(
        "lnlbench-stumble",
        "stumble_plugin",
        """
        from lnlbench.api import Method, MethodConfig, MethodEntry, hookimpl

        class Stumble(Method[MethodConfig]):
            Config = MethodConfig

            @classmethod
            def preset(cls, task):
                return MethodConfig(epochs=1, batch_size=8, backbone="small-cnn")

            @classmethod
            def supports(cls, task):
                return "it is too hard" if task.task == "0.60" else None

            def fit(self, task, run):
                raise RuntimeError("stumbled")

            def predict(self, images):
                raise NotImplementedError

        @hookimpl
        def lnlbench_methods():
            return [MethodEntry(name="stumble", target="stumble_plugin:Stumble", summary="Falls.")]
        """,
    )
    answer = cli("profile", "--method", "stumble", *TASK, "--out", "costs.json", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("\n") == 2
    assert "failed: stumble digits-sym@0.40 seed 1: stumble (lnlbench-stumble 1.0) failed: RuntimeError" in answer.err
    # What the worker printed can be read.
    (log,) = temporary.glob("*/**/log.txt")
    assert f"see {log}" in answer.err
    assert "Traceback" in log.read_text()

    declined = cli("profile", "--method", "stumble", "--suite", "digits-sym", "--task", "0.60")
    assert declined.code == 2
    assert "it is too hard" in declined.err
    assert list(workplace.iterdir()) == []
