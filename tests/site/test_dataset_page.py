"""The page of a dataset: its facts, where it is from, and what was measured on it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lnlbench.contracts.dataset import DatasetEntry
from lnlbench.leaderboard.store import score
from lnlbench.plugins import Provider, Registered, Registry
from lnlbench.site.datasets import pages
from lnlbench.site.model import Site, read_site


@pytest.fixture
def open_page(built: Path, site: Site, window: Any) -> Any:
    def open_page(name: str) -> Any:
        window.page.goto((built / site.dataset_url(name)).as_uri())
        return window.page

    return open_page


def facts(page: Any) -> dict[str, str]:
    names, values = (page.locator(f"h1 ~ dl.facts >> nth=0 >> {tag}").all_inner_texts() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def rows_of(page: Any, name: str) -> list[list[str]]:
    found = page.locator(f'[aria-label="Table: {name}"] tbody tr')
    return [[" ".join(text.split()) for text in row.locator("th, td").all_inner_texts()] for row in found.all()]


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_facts_licence_and_source(open_page: Any, registry: Registry, name: str) -> None:
    page, registered = open_page(name), registry.datasets.find(name)
    dataset, told = registered.load()(name), facts(page)
    assert page.locator(".lead").inner_text() == registered.entry.summary
    assert told["Classes"] == str(dataset.num_classes)
    assert told["Training images"] == f"{dataset.num_train:,}"
    assert told["Test images"] == f"{dataset.num_test:,}"
    assert told["Licence"] == dataset.licence
    assert told["Source"] == dataset.source
    assert registered.entry.paper is not None
    assert registered.entry.paper.title in told["Paper"]
    page.get_by_text(f"{dataset.num_classes} classes", exact=True).click()
    assert page.locator("details li").all_inner_texts() == list(dataset.class_names)


def test_published_files_with_their_checksums(open_page: Any, registry: Registry) -> None:
    page = open_page("cifar10")
    (file,) = registry.datasets.find("cifar10").load()("cifar10").files()
    assert rows_of(page, "published files of cifar10") == [[file.name, f"{file.size:,}", file.digest, file.url]]


def test_what_must_be_had_by_hand(open_page: Any) -> None:
    page = open_page("clothing1m")
    assert "lnlbench prepare clothing1m then checks it" in " ".join(page.locator("main").inner_text().split())


def test_every_suite_that_uses_it(open_page: Any, registry: Registry, built: Path, site: Site) -> None:
    page = open_page("digits")
    wanted = sorted(each.entry.name for each in registry.suites if each.entry.dataset == "digits")
    shown = {row[0].split()[0]: row[1:] for row in rows_of(page, "suites on digits")}
    assert sorted(shown) == wanted
    count = len(site.suites["digits-sym"].rows)
    assert shown["digits-sym"] == ["symmetric", "0.20, 0.40, 0.60", str(count), ""]
    link = page.get_by_role("link", name="digits-sym", exact=True)
    assert link.evaluate("link => link.href") == (built / "suites" / "digits-sym.html").as_uri()


def test_reported_results_count_too(open_page: Any, site: Site) -> None:
    shown = {row[0].split()[0]: row[1:] for row in rows_of(open_page("cifar10"), "suites on cifar10")}
    assert shown["cifar10-sym"][2:] == ["1", str(len(site.suites["cifar10-sym"].reported))]


def test_editions_of_the_measured_runs(open_page: Any, built: Path) -> None:
    page = open_page("digits")
    editions = rows_of(page, "data of the measured runs")
    assert [row[0] for row in editions] == ["canonical", "jpeg not canonical"]
    assert editions[1][1:] == ["d" * 12, "40", "50", "", "4", "8", "1", "digits-sym"]
    records = json.loads((built / "data" / "datasets" / "digits.json").read_text())
    lines = list(csv.DictReader(io.StringIO((built / "data" / "datasets" / "digits.csv").read_text())))
    assert [each["edition"] for each in records] == [each["edition"] for each in lines] == ["canonical", "jpeg"]
    assert sum(each["runs"] for each in records) == sum(int(each["runs"]) for each in lines)


def test_validation_and_further_test_sets(open_page: Any) -> None:
    (row,) = rows_of(open_page("mini-webvision"), "data of the measured runs")
    assert row[3:5] == ["50 and 30 of ilsvrc12", "20"]


def test_a_dataset_that_nobody_provides(
    fabricate: Callable[..., Path], registry: Registry, tmp_path: Path, window: Any
) -> None:
    name = "folder:<i>mine</i>"
    fabricate(tmp_path / "runs", 0.8, dataset=name, suite="mine", edition="own")
    score([tmp_path / "runs"], tmp_path / "boards" / "measured")
    site = read_site(tmp_path / "boards", Registry())
    window.page.set_content(dict(pages(site))[site.dataset_url(name)])
    assert window.page.locator("h1").inner_text() == name
    assert "Not installed" in window.page.locator(".lead").inner_text()
    assert facts(window.page) == {}
    assert rows_of(window.page, f"suites on {name}")[0][0] == "mine"


def test_code_that_does_not_load_costs_the_facts_only(site: Site) -> None:
    registry = Registry()
    entry = DatasetEntry(name="gone", target="no.such.module:Gone", summary="It went.")
    registry.datasets.add(Registered(entry, Provider("lnlbench-gone", "1.0")))
    page = dict(pages(replace(site, registry=registry)))["datasets/gone.html"]
    assert "It went." in page
    assert "Classes" not in page
