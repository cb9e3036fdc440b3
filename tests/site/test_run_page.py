"""The page of a measured row: scores, curves, given labels, configuration, environment, and how to repeat it."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnlbench.errors import DataError
from lnlbench.leaderboard.aggregate import Row, scores_on
from lnlbench.leaderboard.store import score
from lnlbench.plugins import Registry
from lnlbench.records import DataFacts, NoiseFacts
from lnlbench.site import model, runs, workers
from lnlbench.site.model import Site, read_site

CURVES = ["Test accuracy", "Clean-selection precision", "Clean-selection recall", "Clean-selection AUC"]


def find(site: Site, method: str, suite: str = "digits-sym", task: str = "0.40", **columns: Any) -> Row:
    (row,) = [
        row
        for row in site.rows()
        if (row.method, row.suite, row.task) == (method, suite, task)
        and all(
            getattr(row, name) == value for name, value in {"reduced": "", "edition": "canonical", **columns}.items()
        )
    ]
    return row


@pytest.fixture
def open_row(built: Path, site: Site, window: Any) -> Callable[..., tuple[Any, Row]]:
    def open_row(*names: str, **columns: Any) -> tuple[Any, Row]:
        row = find(site, *names, **columns)
        window.page.goto((built / site.row_url(row)).as_uri())
        return window.page, row

    return open_row


@pytest.fixture
def page_of(
    fabricate: Callable[..., Path], registry: Registry, tmp_path: Path, window: Any
) -> Callable[..., tuple[Any, dict[str, str]]]:
    """Fabricate runs of one row, and open its page; returns it and the files of the site about runs."""

    def page_of(*options: dict[str, Any], change: Callable[[Path], None] | None = None) -> tuple[Any, dict[str, str]]:
        for each in options:
            folder = fabricate(tmp_path / "runs", 0.8, **each)
            if change is not None:
                change(folder)
        report = score([tmp_path / "runs"], tmp_path / "boards" / "measured")
        assert not report.refused
        site = read_site(tmp_path / "boards", registry)
        (row,) = site.rows()
        made = dict(runs.pages(site))
        window.page.set_content(made[site.row_url(row)])
        return window.page, made

    return page_of


def rows_of(page: Any, name: str) -> list[list[str]]:
    """Return the cells of a table, shown or not."""
    found = page.locator(f'[aria-label="Table: {name}"] tbody tr')
    return [row.locator("th, td").all_text_contents() for row in found.all()]


class TestScores:
    def test_means_spread_and_every_run(self, open_row: Any, site: Site) -> None:
        page, row = open_row("dividemix")
        shown = {cells[0]: cells[1:] for cells in rows_of(page, "Test accuracy of dividemix")}
        assert shown["Mean of the last 10 epochs"] == [f"{row.last10_mean:.2f}", f"{row.last10_std:.2f}"]
        assert shown["Best epoch, chosen on the test set optimistic"] == [f"{row.best_mean:.2f}", f"{row.best_std:.2f}"]
        listed = rows_of(page, "Runs")
        for cells, run in zip(listed, site.runs_of(row), strict=True):
            scores = run.record.scores
            assert scores is not None
            assert cells[:3] == [
                f"seed {run.record.spec.seed}",
                f"{100 * scores.last10:.2f}",
                f"{100 * scores.last:.2f}",
            ]
            assert int(cells[4]) == scores.best_epoch + 1

    def test_a_run_is_one_click_away_and_has_an_address(self, open_row: Any, site: Site) -> None:
        page, row = open_row("dividemix")
        page.get_by_role("link", name="seed 3", exact=True).click()
        run = site.runs_of(row)[2]
        assert page.url.endswith(f"#{run.anchor}")
        section = page.locator(f"#{run.anchor}")
        assert section.locator("h2").inner_text() == "Run: seed 3"
        text = section.inner_text()
        for told in (run.record.cell, run.record.noise.digest, run.record.data.digest, "torch 2.13.0+cpu"):
            assert told in text
        assert "Some CPU (cpu), 2 CPU threads, AVX2" in text
        assert run.record.environment.fingerprint in text

    def test_a_diverged_run_says_why(self, open_row: Any) -> None:
        page, _row = open_row("css", "digits-sym", "0.60")
        assert "5 finished runs, 1 diverged" in page.locator(".lead").inner_text()
        (seed,) = [cells for cells in rows_of(page, "Runs") if cells[0] == "seed 6"]
        assert seed[1:5] == ["", "", "", ""]
        assert seed[6] == "diverged"
        assert page.get_by_text("loss became NaN in epoch 3, step 7").count() == 1

    def test_what_is_not_comparable_is_marked(self, open_row: Any) -> None:
        page, _ = open_row("ce", reduced="3 of 12 epochs")
        assert (
            "3 of 12 epochs: not comparable with full runs"
            in page.locator(".badge.warn >> xpath=..").first.inner_text()
        )
        page, _ = open_row("ce", edition="jpeg")
        assert "edition jpeg of digits (lnlbench prepare), digest eeeeeeeeeeee" in page.locator("main").inner_text()

    def test_a_row_of_one_of_several_test_sets_has_its_own_numbers(self, open_row: Any, site: Site) -> None:
        page, row = open_row("ce", "mini-webvision", "ilsvrc12")
        run = site.runs_of(row)[0]
        scores = scores_on(run.record, "ilsvrc12")
        assert scores is not None
        assert scores != run.record.scores
        assert rows_of(page, "Runs")[0][1] == f"{100 * scores.last10:.2f}"
        labels = ["Test accuracy", "Top-5 test accuracy", "Accuracy on clean validation data", *CURVES[1:]]
        assert page.locator(".plot > title").all_text_contents()[: len(labels)] == labels
        last = rows_of(page, "Numbers by epoch: seed 1")[-1]
        accuracies = run.epochs()[-1].accuracies
        assert last[1:4] == [f"{100 * accuracies[name]:.2f}" for name in ("ilsvrc12", "ilsvrc12.top5", "validation")]


class TestCurves:
    def test_there_is_a_line_of_each_run_through_its_numbers(self, open_row: Any, site: Site) -> None:
        page, row = open_row("dividemix")
        assert page.locator(".plot > title").all_text_contents()[:4] == CURVES
        plot = page.locator(".plot").first
        assert plot.locator(".key").all_text_contents() == [f"seed {seed}" for seed in (1, 2, 3, 4, 5)]
        ticks = {each.text_content(): float(each.get_attribute("y")) - 4 for each in plot.locator(".tick.end").all()}
        (low, at_low), (high, at_high) = ((float(name), at) for name, at in list(ticks.items())[:: len(ticks) - 1])
        for number, run in enumerate(site.runs_of(row)):
            path = plot.locator("g > .line").nth(number).get_attribute("d")
            heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
            drawn = [low + (y - at_low) / (at_high - at_low) * (high - low) for y in heights]
            told = [100 * epoch.accuracies[""] for epoch in run.epochs()]
            assert drawn == pytest.approx(told, abs=0.1)

    def test_numbers_are_there_as_text(self, open_row: Any, site: Site) -> None:
        page, row = open_row("dividemix")
        page.get_by_text("Numbers by epoch, seed 2").click()
        shown = rows_of(page, "Numbers by epoch: seed 2")
        epochs = site.runs_of(row)[1].epochs()
        assert page.get_by_role("region", name="Numbers by epoch: seed 2").is_visible()
        assert len(shown) == len(epochs) == 12
        for cells, (number, epoch) in zip(shown, enumerate(epochs, start=1), strict=True):
            selection = [epoch.selection.get(name) for name in ("clean_precision", "clean_recall", "clean_auc")]
            numbers = [epoch.accuracies[""], *selection]
            assert cells == [str(number), *("" if each is None else f"{100 * each:.2f}" for each in numbers)]

    def test_of_many_epochs_some_are_shown_and_all_are_in_the_files(self, page_of: Any) -> None:
        page, files = page_of({"config": {"epochs": 300}})
        shown = [int(cells[0]) for cells in rows_of(page, "Numbers by epoch: seed 1")]
        assert shown[0] == 1
        assert shown[-1] == 300
        assert len(shown) == 12
        assert {b - a for a, b in itertools.pairwise(shown)} == {27, 28}
        assert "12 of 300 epochs" in page.locator("main").text_content()
        (text,) = [text for path, text in files.items() if path.startswith("data/runs/") and path.endswith(".csv")]
        assert len(text.splitlines()) == 301

    def test_files_hold_every_epoch_of_every_run(self, built: Path, site: Site) -> None:
        row = find(site, "dividemix")
        stem = built / "data" / site.row_url(row).removesuffix(".html")
        lines = list(csv.DictReader(io.StringIO(Path(f"{stem}.csv").read_text())))
        table = json.loads(Path(f"{stem}.json").read_text())
        assert [dict(zip(table["columns"], each, strict=True)) for each in table["rows"]] == [
            {name: None if text == "" else text if name == "cell" else float(text) for name, text in line.items()}
            for line in lines
        ]
        number = 0
        for run in site.runs_of(row):
            for line in gzip.decompress((run.folder / "metrics.jsonl.gz").read_bytes()).splitlines():
                wanted, held = json.loads(line), lines[number]
                assert (int(held["seed"]), int(held["epoch"])) == (run.record.spec.seed, wanted["epoch"])
                assert float(held["test_accuracy"]) == wanted["test_accuracy"]
                assert float(held["logged.loss"]) == wanted["logged"]["loss"]
                for name in ("clean_precision", "clean_size"):
                    assert held[f"selection.{name}"] == str(wanted["selection"].get(name, ""))
                number += 1
        assert number == len(lines)

    def test_memorised_noise_has_a_curve_where_it_is_known(self, page_of: Any) -> None:
        def memorise(folder: Path) -> None:
            metrics = folder / "metrics.jsonl"
            lines = [json.loads(line) for line in metrics.read_text().splitlines()]
            for line in lines:
                line["selection"] |= {"memorised_noise": line["epoch"] / 100}
            metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            result = json.loads((folder / "result.json").read_text())
            result["selection"] |= {"memorised_noise": sum(line["epoch"] / 100 for line in lines[-10:]) / 10}
            (folder / "result.json").write_text(json.dumps(result))

        page, _ = page_of({}, change=memorise)
        assert page.locator(".plot > title").all_text_contents()[:5] == [*CURVES, "Memorised noise"]
        assert rows_of(page, "Numbers by epoch: seed 1")[-1][-1] == "11.00"

    def test_runs_of_one_seed_are_told_apart(self, page_of: Any) -> None:
        page, _ = page_of({"seed": 1, "noise_seed": 5}, {"seed": 1, "noise_seed": 6}, {"seed": 1})
        named = [cells[0] for cells in rows_of(page, "Runs")]
        assert named == ["seed 1", "seed 1, noise seed 5", "seed 1, noise seed 6"]
        ids = page.locator("section[id]").evaluate_all("sections => sections.map(each => each.id)")
        assert len(set(ids)) == 3


class TestGivenLabels:
    def test_the_transition_matrix_has_its_numbers_beside_it(self, open_row: Any, site: Site) -> None:
        page, row = open_row("dividemix")
        page.get_by_text("Numbers of seed 1", exact=True).click()
        name = "Share of given classes by true class, in percent: seed 1"
        assert page.get_by_role("region", name=name).is_visible()
        counts = site.runs_of(row)[0].with_confusion().noise.confusion
        assert counts is not None
        wanted = [[f"{100 * count / sum(line):.2f}" for count in line] for line in counts]
        assert [cells[1:] for cells in rows_of(page, name)] == wanted
        picture = page.get_by_role("img", name="Transition matrix of the given labels").first
        assert picture.locator(".share").all_text_contents()[:4] == ["80", "10", "10", ""]
        told = picture.locator("desc").text_content()
        assert "from 0.00 to 80.00 %" in told
        assert "Most often, class " in told

    def test_one_picture_of_labels_that_runs_share(self, page_of: Any) -> None:
        page, files = page_of({"seed": 1, "noise_seed": 5}, {"seed": 2, "noise_seed": 5}, {"seed": 3, "noise_seed": 6})
        assert page.locator(".shades").count() == 2
        captions = page.locator("#labels ~ .plots figcaption").all_text_contents()
        assert captions[0].startswith("seed 1, noise seed 5; seed 2, noise seed 5: 30 wrong labels of 40 known")
        assert sum(path.startswith("data/noise/") for path in files) == 4

    def test_of_many_classes_the_largest_shares_are_told(self, page_of: Any) -> None:
        confusion = [[80 if row == column else 0 for column in range(100)] for row in range(100)]
        confusion[7][9], confusion[3][1] = 60, 20
        noise = NoiseFacts(
            digest="b" * 64, num_known=8080, num_changed=80, realised_rate=80 / 8080, confusion=confusion
        )
        data = DataFacts(
            edition="canonical", digest="d" * 64, num_train=8080, num_test=50, num_classes=100, image_size=8
        )
        page, files = page_of({"record": {"noise": noise, "data": data}})
        assert rows_of(page, "Most frequent wrong labels: seed 1") == [["7", "9", "42.86"], ["3", "1", "20.00"]]
        assert "right labels by class: 57.14 to 100.00 %" in page.locator("#labels ~ .plots").text_content()
        (text,) = [text for path, text in files.items() if path.startswith("data/noise/") and path.endswith(".csv")]
        table = list(csv.reader(io.StringIO(text)))
        assert [[int(count) for count in line[1:]] for line in table[1:]] == confusion

    def test_classes_outside_the_task_are_named_so(self, page_of: Any) -> None:
        confusion = [*([8 if row == column else 0 for column in range(4)] for row in range(4)), [2, 2, 2, 2]]
        noise = NoiseFacts(
            digest="b" * 64, num_known=40, num_changed=8, num_ood=8, realised_rate=0.2, confusion=confusion
        )
        page, _ = page_of({"known_classes": 4, "record": {"noise": noise}})
        last = rows_of(page, "Share of given classes by true class, in percent: seed 1")[-1]
        assert last == ["4 (outside the task)", "25.00", "25.00", "25.00", "25.00"]

    def test_few_classes_have_their_names(self, page_of: Any) -> None:
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        confusion = [[80 if row == column else 0 for column in range(10)] for row in range(10)]
        confusion[3][5] = 20
        noise = NoiseFacts(digest="b" * 64, num_known=820, num_changed=20, realised_rate=20 / 820, confusion=confusion)
        data = DataFacts(
            edition="canonical", digest="d" * 64, num_train=820, num_test=50, num_classes=10, image_size=32
        )
        page, _ = page_of({"dataset": "cifar10", "record": {"noise": noise, "data": data}})
        picture = page.get_by_role("img", name="Transition matrix of the given labels")
        assert picture.locator(".tick").all_text_contents() == [*names, *names]
        assert "Most often, cat is labelled dog: 20.00 %." in picture.locator("desc").text_content()
        table = page.locator('[aria-label="Table: Share of given classes by true class, in percent: seed 1"]')
        assert table.locator("thead th").all_text_contents() == ["True class", *names]
        assert table.locator("tbody th").all_text_contents() == names

    def test_without_true_classes_there_is_no_picture(self, page_of: Any) -> None:
        noise = NoiseFacts(digest="b" * 64, num_known=0, num_changed=0, realised_rate=None, confusion=None)
        page, _ = page_of({"record": {"noise": noise}})
        assert page.locator(".shades").count() == 0
        assert page.get_by_text("The true classes are not known.").count() == 1


class TestConfiguration:
    def test_every_option_and_what_the_preset_has_otherwise(self, open_row: Any, site: Site) -> None:
        page, _row = open_row("ce", protocol="lr=0.01")
        assert rows_of(page, "Resolved configuration") == [
            ["backbone", "mlp", ""],
            ["batch_size", "64", ""],
            ["epochs", "12", ""],
            ["lr", "0.01", "not the preset's"],
        ]

    def test_the_protocol_is_told(self, open_row: Any) -> None:
        page, row = open_row("coteaching")
        facts = page.locator("#protocol + dl").inner_text()
        for told in (row.protocol_key, "symmetric(count=exact)", "nominal 40.00 %", row.data_digest, "tuned"):
            assert told in facts


def command(page: Any) -> list[str]:
    found: list[str] = page.get_by_label("Command", exact=True).all_text_contents()
    return found


class TestRepeat:
    def test_commands_are_ready_to_be_copied(self, open_row: Any) -> None:
        page, row = open_row("ce", protocol="lr=0.01")
        (printed,) = command(page)
        assert printed == (
            "lnlbench run --method ce --suite digits-sym --task 0.40 --seeds 1 --set lr=0.01 --precision float32 "
            "--device cpu --threads 2"
        )
        compare = page.get_by_label("Command that compares").inner_text()
        assert compare == f"lnlbench reproduce digits-sym/0.40/ce-{row.protocol_key} --run"

    def test_a_hostile_name_is_quoted_for_the_shell_too(self, open_row: Any) -> None:
        page, _ = open_row("<script>alert(1)</script>")
        assert "--method '<script>alert(1)</script>' --suite" in command(page)[0]


def test_without_bundles_the_page_has_what_the_row_says(leaderboards: Path, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    text = (leaderboards / "measured" / "cifar10-sym.csv").read_bytes()
    (tmp_path / "measured" / "cifar10-sym.csv").write_bytes(text)
    site = read_site(tmp_path, registry)
    ((path, page),) = runs.pages(site)
    assert path == site.row_url(next(site.rows()))
    assert "The runs behind this row are not at hand" in page
    assert "3 finished runs" in page
    assert "<svg" not in page


def test_several_processes_write_the_same_files(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = dict(runs.pages(site))
    monkeypatch.setattr(workers, "MANY_RUNS", 1)
    monkeypatch.setattr(runs, "_CHUNK", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with runs.writing(site, tmp_path) as written:
        paths = list(written)
    assert sorted(paths) == sorted(alone)
    assert {path: (tmp_path / path).read_bytes().decode() for path in paths} == alone


def test_several_processes_read_the_same_runs(
    leaderboards: Path, registry: Registry, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MANY_RUNS", 1)
    monkeypatch.setattr(model, "_CHUNK", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert read_site(leaderboards, registry).runs == site.runs


def test_damage_that_another_process_finds_is_told(
    leaderboards: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MANY_RUNS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    shutil.copytree(leaderboards / "measured", tmp_path / "measured")
    record = next((tmp_path / "measured" / "bundles").rglob("run.json"))
    record.write_bytes(record.read_bytes().replace(b"finished", b"finishes"))
    with pytest.raises(DataError, match=r"its content is not what manifest\.json says"):
        read_site(tmp_path, registry)
