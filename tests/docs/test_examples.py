"""The examples of the documentation, installed by pip as a reader would, and each used for what it is."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lnlbench.api import UsageError
from lnlbench.plugins import Registry, discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
PAGE = (ROOT / "docs" / "howto" / "extend.md").read_text()
PROVIDER = "lnlbench-stripes 0.1"

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page about extensions, file by file as the page has it, and the one about methods."""
    source, folder = tmp_path_factory.mktemp("lnlbench-stripes"), tmp_path_factory.mktemp("site")
    for name, text in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    options = ["--isolated", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    packages = [str(source), str(ROOT / "docs" / "examples" / "small_loss")]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(autouse=True)
def _installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("lnlbench_stripes", "lnlbench_smallloss")]:
        del sys.modules[name]


@pytest.fixture
def registry() -> Registry:
    return discover()


def scored(workplace: Path, suite: str) -> list[dict[str, str]]:
    board = workplace / "leaderboards" / "measured" / f"{suite}.csv"
    return list(csv.DictReader(board.read_text().splitlines()))


@pytest.mark.parametrize(
    ("kind", "name", "provider"),
    [
        ("methods", "smallloss", "lnlbench-smallloss 0.1.0"),
        ("suites", "stripes-zero", PROVIDER),
        ("datasets", "stripes", PROVIDER),
        ("noise", "to-zero", PROVIDER),
        ("backbones", "linear", PROVIDER),
        ("encoders", "parities", PROVIDER),
        ("executors", "nice", PROVIDER),
    ],
)
def test_it_is_listed_with_the_package_it_comes_from(cli: Cli, kind: str, name: str, provider: str) -> None:
    answer = cli("list", kind, "--json")
    assert (answer.code, answer.err) == (0, "")
    (row,) = [row for row in json.loads(answer.out) if row["name"] == name]
    assert row["provider"] == provider


def test_listing_it_imports_neither_pytorch_nor_its_parts() -> None:
    code = "import sys, lnlbench_stripes as p; [call() for name, call in vars(p).items() if name[:9] == 'lnlbench_']; "
    code += "print([name for name in sys.modules if name in ('torch', 'numpy') or name[:17] == 'lnlbench_stripes.'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_dataset_is_what_it_says_it_is(cli: Cli, registry: Registry) -> None:
    answer = cli("prepare", "stripes", "--offline")
    assert (answer.code, answer.err) == (0, "")
    dataset = registry.datasets.find("stripes").load()
    first, second = (dataset().load(None) for _ in range(2))
    assert first.train_images.shape == (dataset.num_train, 8, 8, 1)
    assert first.test_images.shape == (dataset.num_test, 8, 8, 1)
    assert np.bincount(first.train_labels).tolist() == [100] * 4
    assert np.array_equal(first.train_images, second.train_images)
    for image, label in zip(first.test_images[..., 0], first.test_labels, strict=True):
        lines = image if label < 2 else image.T
        assert lines[label % 2 :: 2].min() >= 150 > lines[1 - label % 2 :: 2].max()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_noise_has_its_rate_and_depends_on_nothing_but_its_arguments(registry: Registry, rate: float) -> None:
    to_zero = registry.noise.find("to-zero").load()
    true_labels = np.arange(400) % 4
    before = true_labels.copy()
    one, same, other = (to_zero(true_labels, rate, num_classes=4, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.labels, same.labels)
    assert np.array_equal(one.labels, other.labels) == (rate in (0.0, 1.0))
    assert np.array_equal(true_labels, before)
    assert (one.labels != true_labels).sum() == ((one.labels == 0) & (true_labels != 0)).sum() <= rate * 400
    np.testing.assert_allclose(one.matrix.sum(1), 1.0)
    kept = [(one.labels[true_labels == label] == label).mean() for label in range(4)]
    np.testing.assert_allclose(kept, np.diag(one.matrix), atol=0.1)
    with pytest.raises(UsageError, match="to-zero has no options; got count"):
        to_zero(true_labels, rate, num_classes=4, seed=1, count="exact")


def test_the_suite_shows_the_noise_it_defines(cli: Cli) -> None:
    answer = cli("noise", "show", "stripes-zero@0.30", "--json")
    assert answer.code == 0, answer.err
    shown = json.loads(answer.out)
    assert (shown["variant"], shown["nominal_rate"]) == ("to-zero", 0.3)
    # 30 % of the labels become 0, and a quarter of them is 0 already.
    assert shown["realised_rate"] == pytest.approx(0.225, abs=0.03)


def test_the_backbone_is_its_parts_in_a_row_and_serves_other_suites(
    cli: Cli, registry: Registry, workplace: Path
) -> None:
    network = registry.backbones.find("linear").load()("linear", num_classes=4, channels=1, image_size=8)
    images = torch.rand(3, 1, 8, 8)
    assert network.embed(images).shape == (3, network.num_features) == (3, 64)
    assert torch.equal(network(images), network.classify(network.embed(images)))

    command = "run --method ce --suite digits-sym --task 0.40 --seeds 1 --epochs 1 --limit-train 100 --executor inline"
    answer = cli(*command.split(), "--set", "backbone=linear")
    assert answer.code == 0, answer.err
    assert [row["backbone"] for row in scored(workplace, "digits-sym")] == ["linear"]


def test_the_encoder_serves_a_method_that_knows_nothing_of_it(cli: Cli, workplace: Path) -> None:
    answer = cli("select", "--method", "clipcleaner", "--suite", "stripes-zero", "--seeds", "1", "--json")
    assert answer.code == 0, answer.err
    (row,) = json.loads(answer.out)
    # 22.5 % of the labels are wrong; the encoder knows lines by name, and finds which.
    assert 0.95 < row["clean_precision"] <= 1.0, row


def test_the_executor_runs_all_cells_and_one_that_fails_stops_no_other(cli: Cli, workplace: Path) -> None:
    command = "run --method smallloss,ce --suite stripes-zero --seeds 1 --epochs 1 --executor nice"
    answer = cli(*command.split(), "--set", "ce.backbone=cnn7", "--set", "smallloss.backbone=timm:no-such-model")
    assert answer.code == 1
    assert "no-such-model" in answer.err + answer.out
    assert [row["method"] for row in scored(workplace, "stripes-zero")] == ["ce"]


def test_the_method_of_the_page_does_what_every_method_must(cli: Cli) -> None:
    # `lnlbench check` without these makes all of them, for which there is no time here.
    quick = ("no-noise", "all-wrong", "single-class", "few-images", "documented")
    checked = cli("check", "smallloss", "--only", ",".join(quick), "--json")
    assert checked.code == 0, checked.out
    assert [(each["check"], each["status"]) for each in json.loads(checked.out)] == [(n, "passed") for n in quick]


def test_what_the_page_says_besides_parses(cli: Cli) -> None:
    commands = re.findall(r"`lnlbench (run [^`]*)`", PAGE)
    assert len(commands) == 2
    for command in commands:
        planned = cli(*command.split(), "--seeds", "1", "--dry-run")
        assert planned.code == 0, planned.err
