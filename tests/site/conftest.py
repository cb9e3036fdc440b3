"""Leaderboards fabricated for the pages: small ones with everything that can be on a board, and a very large one."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import Row, summarise
from lnlbench.leaderboard.content import METRICS, RUN
from lnlbench.leaderboard.store import score, to_csv
from lnlbench.plugins import Registry
from lnlbench.records import RunRecord, Scores, digest
from lnlbench.site.build import build
from lnlbench.site.model import Site, read_site

REPOSITORY = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).parents[2])
HOSTILE = "<script>alert(1)</script>"


def _load_fabrication() -> ModuleType:
    path = REPOSITORY / "tests" / "leaderboard" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fabrication", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fabrication"] = module
    spec.loader.exec_module(module)
    return module


fabrication = _load_fabrication()


def run(root: Path, skill: float, *, method: str = "ce", task: str = "0.40", seed: int = 1, **options: Any) -> Path:
    """Write the folder of a run whose accuracy ends near ``skill``."""

    def answers(rng: np.random.Generator, epochs: int, images: int, peak: int) -> Any:
        labels = rng.integers(0, fabrication.CLASSES, images, dtype=np.uint8)
        right = rng.random((epochs, images)) < np.linspace(skill - 0.3, skill, epochs)[:, None]
        right[min(peak, epochs - 1)] = rng.random(images) < min(skill + 0.08, 1)
        classes = np.where(right, labels, (labels + 1) % fabrication.CLASSES).astype(np.uint8)
        top5 = right | (rng.random((epochs, images)) < 0.5)
        accuracies = [int((each == labels).sum()) / images for each in classes]
        return fabrication.Answers(labels, classes, top5, accuracies, [int(each.sum()) / images for each in top5])

    fabrication.make_answers = answers
    names = ("diverged", "salt", "top5", "validation")
    of_run = {name: options.pop(name) for name in names if name in options}
    of_record = options.pop("record", {})
    spec = fabrication.make_spec(method, task, seed, **options)
    # Runs of one seed and task have the same given labels, whatever the method.
    return fabrication.make_run(root, spec, **of_run, **of_record)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def leaderboards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of leaderboards: measured ones with all that may occur, and the reported ones of the repository."""
    root = tmp_path_factory.mktemp("leaderboards")
    fabricate_small(root / "runs", root / "leaderboards")
    return root / "leaderboards"


def fabricate_small(runs: Path, leaderboards: Path) -> None:
    """Write a small board."""
    two = {"networks": 2, "record": {"parameters": 24690}}
    for task, seed in itertools.product(("0.20", "0.40", "0.60"), (1, 2, 3, 4, 5)):
        hard = float(task) / 3
        run(runs, 0.90 - hard, task=task, seed=seed)
        run(runs, 0.99 - hard / 4, method="dividemix", task=task, seed=seed, salt=1, **two)
        run(runs, 0.98 - hard / 4, method="css", task=task, seed=seed, salt=2, supervision=("clip",), **two)
        if task != "0.60":
            run(runs, 0.80 - hard, method=HOSTILE, task=task, seed=seed, salt=3, distribution="hostile")
        if seed < 4:
            asked = {"asked": ("noise rate",), "parameters": 9999}
            run(runs, 0.93 - hard, method="coteaching", task=task, seed=seed, salt=4, record=asked)
            asked["timing"] = fabrication.Timing(
                train_seconds=1000.0, evaluate_seconds=1.0, harness_seconds=0.5, stage_seconds={}
            )
            run(runs, 0.95 - hard, method="josrc", task=task, seed=seed, salt=5, record=asked)
    run(runs, 0.9, method="css", task="0.60", seed=6, diverged=True, supervision=("clip",), networks=2)
    lr = {"config": {"lr": 0.01}, "changed": {"lr": 0.01}}
    run(runs, 0.85, seed=1, salt=6, **lr)
    run(runs, 0.60, seed=1, reduced=("3 of 12 epochs",), config={"epochs": 3}, changed={"epochs": 3})
    run(runs, 0.70, seed=1, salt=7, edition="jpeg", edition_digest="e" * 64)
    tests = {"suite": "mini-webvision", "task": "0.20", "test_sets": ("webvision", "ilsvrc12")}
    for seed in (1, 2, 3):
        run(runs, 0.7, seed=seed, top5=True, validation=True, dataset="mini-webvision", **tests)
        again = {"epochs": 12, "backbone": "preact-resnet18"}
        run(runs, 0.86, suite="cifar10-sym", task="0.20", seed=seed, dataset="cifar10", config=again)
    report = score([runs], leaderboards / "measured")
    assert not report.refused
    shutil.copytree(REPOSITORY / "leaderboards" / "reported", leaderboards / "reported")


def fabricate_large(leaderboards: Path, bundles: bool, methods: int = 50, tasks: int = 100, seeds: int = 5) -> None:
    """Write a large board; its bundles are without predictions, which the pages do not show."""
    rng = np.random.default_rng(0)
    measured = leaderboards / "measured"
    folder = measured / bundle.BUNDLES / "large"
    levels = [f"{number / tasks:.3f}" for number in range(tasks)]
    means = 0.9 - np.arange(tasks) / tasks / 4 + np.arange(methods)[:, None] / 500
    scores = np.clip(means[..., None, None] + rng.normal(0, 0.01, (methods, tasks, seeds, 12)), 0, 1).round(4)
    measured.mkdir(parents=True)
    if bundles:
        folder.mkdir(parents=True)
        records = []
        for number, level, seed in np.ndindex(methods, tasks, seeds):
            record = _record(number, levels[level], seed, scores[number, level, seed].tolist())
            records.append(record)
            _place(folder / record.cell, record.model_dump_json().encode(), scores[number, level, seed].tolist())
        rows = summarise(records)
    else:
        (example,) = summarise([_record(0, levels[0], seed, scores[0, 0, seed].tolist()) for seed in range(seeds)])
        rows = [_row(example, number, level, scores[number, at]) for number, at, level in _cells(methods, levels)]
    (measured / "large.csv").write_bytes(to_csv(rows))


def _cells(methods: int, levels: list[str]) -> Iterator[tuple[int, int, str]]:
    return ((number, at, level) for number in range(methods) for at, level in enumerate(levels))


def _row(example: Row, number: int, level: str, scores_SE: Any) -> Row:
    last10, best = 100 * scores_SE[:, -10:].mean(axis=1), 100 * scores_SE.max(axis=1)
    changes = {
        "task": level,
        "method": f"method-{number:02}",
        "protocol_key": digest([number, level])[:8],
        "nominal_rate": 100 * float(level),
        "parameters": 1000 * (number + 1),
        "last10_mean": last10.mean(),
        "last10_std": last10.std(ddof=1),
        "best_mean": best.mean(),
        "best_std": best.std(ddof=1),
    }
    return example.model_copy(update=changes)


def _record(number: int, task: str, seed: int, accuracies: list[float]) -> RunRecord:
    spec = fabrication.make_spec(f"method-{number:02}", task, seed, suite="large", dataset="large")
    best = accuracies.index(max(accuracies))
    scores = Scores(last10=sum(accuracies[-10:]) / 10, last=accuracies[-1], best=accuracies[best], best_epoch=best)
    record = fabrication.make_record(spec, scores)
    return record.model_copy(update={"parameters": 1000 * (number + 1)})  # type: ignore[no-any-return]


def _place(folder: Path, record: bytes, accuracies: list[float]) -> None:
    lines = [
        json.dumps({"epoch": epoch, "test_accuracy": each, "logged": {"loss": 1.0}, "selection": {"clean_auc": 0.9}})
        for epoch, each in enumerate(accuracies)
    ]
    metrics = gzip.compress("".join(f"{line}\n" for line in lines).encode(), 1, mtime=0)
    files = {RUN: record, METRICS: metrics}
    folder.mkdir()
    for name, data in {**files, "manifest.json": bundle.manifest(files)}.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="session")
def site(leaderboards: Path, registry: Registry) -> Site:
    """Everything on the small board."""
    return read_site(leaderboards, registry)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Path:
    """The folder of the site of the small board."""
    folder = tmp_path_factory.mktemp("built") / "site"
    build(site, folder)
    return folder


@pytest.fixture
def fabricate() -> Callable[..., Path]:
    """``fabricate(root, skill, method=..., task=..., seed=..., ...)`` writes a run folder."""
    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real, headless Chromium: that of the system, since the tests download none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"the pages are tested in a browser: install one of {', '.join(names)}")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found)


@dataclass
class Window:
    """A page of the browser, and what went wrong in it."""

    page: Page
    complaints: list[str]
    """Console messages and uncaught errors."""
    requests: list[str]
    """Addresses it asked for."""


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    """A window of 1280 pixels. At the end nothing may have been complained of, and nothing fetched but files."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(5000)
    made = Window(context.new_page(), [], [])
    made.page.on("console", lambda message: made.complaints.append(message.text))
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.page.on("request", lambda request: made.requests.append(request.url))
    yield made
    context.close()
    assert made.complaints == []
    assert [url for url in made.requests if not url.startswith(("file://", "data:"))] == []


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaderboards with 50 methods on 100 tasks, five runs each, without the bundles."""
    folder = tmp_path_factory.mktemp("large")
    fabricate_large(folder, bundles=False)
    return folder


@pytest.fixture
def fabricate_huge() -> Callable[..., None]:
    """``fabricate_huge(folder, bundles)`` writes such a board."""
    return fabricate_large
