"""The page of a suite: what stands in one ranking, how it reads, and what papers report beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Locator

from lnlbench.leaderboard.reported import ReportedRow
from lnlbench.leaderboard.standings import compare, read_records, select
from lnlbench.plugins import Registry
from lnlbench.site.boards import Board, boards_of
from lnlbench.site.compare import Agreement, agreements, same_network
from lnlbench.site.figures import _front
from lnlbench.site.model import Site, read_site

SUITE = "digits-sym"


@pytest.fixture(scope="module")
def boards(site: Site) -> dict[str, Board]:
    return {board.anchor: board for board in boards_of(site, SUITE)}


@pytest.fixture
def page(built: Path, window: Any) -> Iterator[Any]:
    window.page.goto((built / "suites" / f"{SUITE}.html").as_uri())
    return window.page


def methods(page: Any, board: str = "agnostic") -> list[str]:
    rows: list[str] = page.locator(f"#{board}-table tbody tr:visible th a").all_inner_texts()
    return rows


def header(page: Any, name: str, board: str = "agnostic") -> Locator:
    found: Locator = page.locator(f"#{board}-table thead th", has=page.get_by_role("button", name=name, exact=True))
    return found


def cell(page: Any, method: str, column: int, board: str = "agnostic") -> str:
    row = page.locator(f"#{board}-table tbody tr", has=page.get_by_role("link", name=method, exact=True))
    text: str = row.locator(f"xpath=./*[{column}]").inner_text()
    return " ".join(text.split())


class TestBoards:
    def test_rulesets_editions_and_reduced_runs_are_apart(self, boards: dict[str, Board]) -> None:
        told = {anchor: (board.title, [entry.name for entry in board.entries]) for anchor, board in boards.items()}
        assert told == {
            "agnostic": (
                "Agnostic: one setting for all levels",
                ["dividemix", "css", "ce", "<script>alert(1)</script>"],
            ),
            "tuned": ("Tuned to the noise", ["coteaching", "josrc", "ce (lr=0.01)"]),
            "agnostic-2": ("Agnostic: one setting for all levels, edition jpeg of the data", ["ce"]),
            "agnostic-reduced": ("Agnostic: one setting for all levels, reduced runs", ["ce"]),
        }

    @pytest.mark.parametrize("kind", ["last10", "last", "best"])
    @pytest.mark.parametrize("ruleset", ["agnostic", "tuned"])
    def test_ranks_are_those_of_the_compare_command(
        self, leaderboards: Path, boards: dict[str, Board], kind: Any, ruleset: str
    ) -> None:
        records = read_records(leaderboards / "measured", SUITE)
        standing = select(records, ruleset=ruleset)[0]
        wanted, board = compare(standing, kind), boards[ruleset]
        for entry in board.entries:
            assert board.rank(entry, kind) == wanted.ranks.get(entry.name)
            mean = wanted.means.get(entry.name)
            assert board.mean(entry, kind) == (None if mean is None else pytest.approx(100 * mean))
            assert wanted.ranking is not None
            assert board.mean_rank(entry, kind) == wanted.ranking.mean_ranks.get(entry.name)
            for result in wanted.tasks:
                assert board.rank(entry, kind, result.task) == result.ranks.get(entry.name)

    def test_a_missing_or_diverged_run_leaves_no_mean_rank(self, boards: dict[str, Board]) -> None:
        board = boards["agnostic"]
        ranks = {entry.name: (board.mean(entry, "last10"), board.mean_rank(entry, "last10")) for entry in board.entries}
        assert ranks["<script>alert(1)</script>"] == (None, None)
        assert ranks["css"][0] is not None
        assert ranks["css"][1] is None
        assert ranks["dividemix"][1] == 1.0

    def test_several_test_sets_are_columns(self, site: Site) -> None:
        (board,) = boards_of(site, "mini-webvision")
        assert board.tasks == ("ilsvrc12", "webvision")
        assert board.kinds == ("last10", "last", "best", "best_val", "top5_last10")

    def test_a_method_in_two_versions_has_two_entries(
        self, fabricate: Callable[..., Path], registry: Registry, tmp_path: Path
    ) -> None:
        from lnlbench.leaderboard.store import score

        for version in ("1.0", "2.0"):
            fabricate(tmp_path / "runs", 0.8, version=version)
        fabricate(tmp_path / "runs", 0.8, suite_version=2, seed=2)
        score([tmp_path / "runs"], tmp_path / "boards" / "measured")
        newest, earlier = boards_of(read_site(tmp_path / "boards", registry), SUITE)
        assert [entry.name for entry in newest.entries] == ["ce"]
        assert earlier.setting == ("version 1 of the suite",)
        assert {entry.name for entry in earlier.entries} == {"ce 1.0", "ce 2.0"}


class TestTable:
    def test_shows_mean_spread_and_marks(self, page: Any, boards: dict[str, Board]) -> None:
        row = boards["agnostic"].entries[0].rows["0.20"]
        assert cell(page, "dividemix", 3) == f"{row.last10_mean:.2f} ± {row.last10_std:.2f}"
        assert cell(page, "<script>alert(1)</script>", 5) == ""
        assert cell(page, "css", 5).endswith("1 diverged")
        assert "over 5 runs unless marked" in page.locator("#agnostic-table caption").inner_text()
        assert "n 1" in cell(page, "ce", 4, "tuned")
        weights = page.locator("#agnostic-table tbody tr td:nth-child(3) b:visible").evaluate_all(
            "cells => cells.map((each) => getComputedStyle(each).fontWeight)"
        )
        assert weights == ["700", "700", "400", "400"]

    def test_sorts_by_mouse_and_keyboard(self, page: Any) -> None:
        assert methods(page)[:3] == ["dividemix", "css", "ce"]
        column = header(page, "Method")
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == "ascending"
        assert methods(page) == ["<script>alert(1)</script>", "ce", "css", "dividemix"]
        page.keyboard.press("Enter")
        assert column.get_attribute("aria-sort") == "descending"
        assert methods(page)[0] == "dividemix"
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert header(page, "0.20").get_attribute("aria-sort") == "descending"
        assert column.get_attribute("aria-sort") is None
        assert methods(page, "tuned")[0] == "coteaching"

    def test_blanks_stay_last_in_both_directions(self, page: Any) -> None:
        button = header(page, "0.60").get_by_role("button")
        button.click()
        assert methods(page)[-1] == "<script>alert(1)</script>"
        button.click()
        assert methods(page) == ["ce", "css", "dividemix", "<script>alert(1)</script>"]

    def test_ranks_follow_the_level_that_is_sorted_by(self, page: Any) -> None:
        ranks = page.locator("#agnostic-table td.rank")
        assert ranks.all_inner_texts() == ["=1", "=1", "3", ""]
        header(page, "0.40").get_by_role("button").click()
        assert header(page, "Rank on 0.40").count() == 1
        assert ranks.all_inner_texts() == ["=1", "=1", "3", "4"]
        header(page, "Method").get_by_role("button").click()
        assert header(page, "Rank").count() == 1
        assert ranks.all_inner_texts() == ["", "3", "=1", "=1"]

    def test_the_best_epoch_is_marked_as_chosen_on_the_test_set(self, page: Any, boards: dict[str, Board]) -> None:
        caption = page.locator("#agnostic-table caption")
        assert "chosen on the test set" not in caption.inner_text()
        page.get_by_label("Best epoch, chosen on the test set").check()
        assert "Best epoch, chosen on the test set." in caption.inner_text()
        row = boards["agnostic"].entries[0].rows["0.20"]
        assert cell(page, "dividemix", 3).startswith(f"{row.best_mean:.2f}")
        assert page.url.endswith("#score=best")

    def test_filters_by_name_and_by_what_a_method_uses(self, page: Any) -> None:
        page.get_by_label("Name contains").fill("C")
        assert methods(page) == ["css", "ce", "<script>alert(1)</script>"]
        page.get_by_label("clip").uncheck()
        assert methods(page) == ["ce", "<script>alert(1)</script>"]
        page.get_by_label("Name contains").fill("")
        page.get_by_label("noise-rate").uncheck()
        page.get_by_role("checkbox", name="2", exact=True).uncheck()
        assert methods(page) == ["ce", "<script>alert(1)</script>"]
        assert methods(page, "tuned") == ["ce"]
        page.get_by_role("checkbox", name="tuned").uncheck()
        assert page.locator("#tuned .empty").is_visible()
        assert page.locator("#count").inner_text() == "4 of 9 rows shown."
        page.get_by_role("button", name="Reset").click()
        assert len(methods(page)) == 4
        assert "#" not in page.url

    def test_the_address_brings_it_all_back(self, built: Path, page: Any) -> None:
        page.get_by_label("Best epoch, chosen on the test set").check()
        page.get_by_label("clip").uncheck()
        page.get_by_label("Name contains").fill("e")
        header(page, "0.20").get_by_role("button").click()
        header(page, "0.20").get_by_role("button").click()
        address, shown = page.url, methods(page)
        page.goto("about:blank")
        page.goto(address)
        assert methods(page) == shown == ["<script>alert(1)</script>", "ce", "dividemix"]
        assert header(page, "0.20").get_attribute("aria-sort") == "ascending"
        assert page.get_by_label("Name contains").input_value() == "e"
        assert not page.get_by_label("clip").is_checked()
        assert "#score=best" in address

    @pytest.mark.parametrize(
        "address", ["score=x&sort=y:z:up", "sort=agnostic-table:99:ascending&without=%3Cb%3E", "sort=:::=%", "=&="]
    )
    def test_nonsense_in_the_address_is_passed_over(self, built: Path, window: Any, address: str) -> None:
        window.page.goto((built / "suites" / f"{SUITE}.html").as_uri() + f"#{address}")
        assert len(methods(window.page)) == 4

    def test_an_address_of_a_section_goes_there(self, built: Path, window: Any) -> None:
        window.page.goto((built / "suites" / f"{SUITE}.html").as_uri() + "#tuned")
        assert window.page.locator("#tuned h2").is_visible()
        assert abs(window.page.locator("#tuned").bounding_box()["y"]) < 200
        assert window.page.url.endswith("#tuned")

    def test_without_the_script_everything_is_there(self, built: Path, browser: Any) -> None:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto((built / "suites" / f"{SUITE}.html").as_uri())
        assert len(methods(page)) == 4
        assert not page.locator("#controls").is_visible()
        assert not page.locator("#agnostic .empty").is_visible()
        context.close()


class TestDownloads:
    def test_rows_are_the_board_itself(self, built: Path, leaderboards: Path) -> None:
        path = built / "data" / f"{SUITE}.csv"
        assert path.read_bytes() == (leaderboards / "measured" / f"{SUITE}.csv").read_bytes()
        assert len(json.loads(path.with_suffix(".json").read_text())) == len(path.read_text().splitlines()) - 1

    def test_ranks_are_what_the_page_shows(self, built: Path, page: Any) -> None:
        lines = list(csv.DictReader(io.StringIO((built / "data" / "ranks" / f"{SUITE}.csv").read_text())))
        assert json.loads((built / "data" / "ranks" / f"{SUITE}.json").read_text())[0]["method"] == "dividemix"
        (line,) = (
            each
            for each in lines
            if (each["method"], each["score"], each["task"], each["reduced"]) == ("ce", "last10", "0.40", "False")
            and "edition" not in each["board"]
        )
        assert cell(page, "ce", 4) == f"{float(line['mean']):.2f} ± {float(line['sd']):.2f}"
        assert line["rank"] == "3"


class TestReported:
    def test_is_a_table_of_its_own(self, built: Path, window: Any) -> None:
        page = window.page
        page.goto((built / "suites" / "cifar10-sym.html").as_uri())
        table = page.locator("#reported-table")
        assert table.get_by_text("published").count() > 0
        assert table.get_by_text("quoted").count() > 0
        own = table.locator("tbody tr", has_text="CLIPCleaner, table 4").filter(has_text="published")
        assert "95.92 ± 0.15" in own.inner_text().replace("\n", " ")
        assert "unstated" in own.inner_text()
        note = table.locator("sup a").first
        target = page.locator(f"[id='{note.get_attribute('href')[1:]}']")
        assert len(target.inner_text()) > 10
        assert page.locator("#reported-table td.rank").count() == 0
        assert table.locator("thead th", has_text="Rank").count() == 0

    def test_stands_beside_what_was_measured(self, built: Path, window: Any, site: Site) -> None:
        found = agreements(site, site.suites["cifar10-sym"])
        assert {(each.row.method, each.row.task) for each in found} == {("ce", "0.20")}
        window.page.goto((built / "suites" / "cifar10-sym.html").as_uri())
        line = window.page.locator("#agreement-table tbody tr").first.inner_text()
        assert "not judged: network not stated" in line
        assert f"{found[0].difference:+.2f}" in line


@pytest.fixture
def pair(site: Site) -> Callable[..., Agreement]:
    """``pair(mean, sd, accuracy, printed_sd)``: a measured row beside a printed number."""
    results = site.suites["cifar10-sym"]

    def make(mean: float, sd: float | None, accuracy: str, printed_sd: str = "", **unknown: Any) -> Agreement:
        row = results.rows[0].model_copy(update={"last10_mean": mean, "last10_std": sd})
        printed = results.reported[0].model_copy(update={"accuracy": accuracy, "sd": printed_sd})
        return Agreement(row, printed, "CSS", "last10", unknown.get("unknown", ()))

    return make


class TestAgreement:
    @pytest.mark.parametrize(
        ("mean", "sd", "accuracy", "printed_sd", "difference", "within"),
        [
            (96.30, 0.15, "96.5", "", -0.20, True),  # 0.15 + half of a tenth
            (96.29, 0.15, "96.5", "", -0.21, False),
            (96.30, 0.15, "96.50", "", -0.20, False),  # two decimals: half of a hundredth
            (95.00, 0.20, "95.50", "0.30", -0.50, True),
            (95.00, 0.20, "95.51", "0.30", -0.51, False),
            (95.60, 0.00, "95.6", "", 0.00, True),
            (95.00, None, "95.0", "", 0.00, None),
        ],
    )
    def test_spreads_overlap_or_not(
        self,
        pair: Callable[..., Agreement],
        mean: float,
        sd: float | None,
        accuracy: str,
        printed_sd: str,
        difference: float,
        within: bool | None,
    ) -> None:
        found = pair(mean, sd, accuracy, printed_sd)
        assert found.difference == difference
        assert found.within is within

    def test_what_a_paper_does_not_state_is_not_judged(self, pair: Callable[..., Agreement]) -> None:
        found = pair(95.0, 0.2, "95.0", unknown=("network", "score"))
        assert found.within is None
        assert found.verdict == "not judged: network and score not stated"
        assert pair(95.0, None, "95.0").verdict == "not judged: a single run has no spread"
        assert pair(95.0, 0.1, "95.0").verdict == "within the spread"
        assert pair(95.0, 0.1, "90.0").verdict == "outside the spread"

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, 1),
            ({"backbone": "PreAct ResNet-18"}, 1),
            ({"backbone": "ResNet-34"}, 0),
            ({"variant": "without mixup"}, 0),
            ({"metric": "top5"}, 0),
            ({"method_id": "css"}, 0),
            ({"method_id": "clipcleaner+ce"}, 0),
            ({"score_kind": "untrained"}, 0),
            ({"score_kind": "best-val"}, 0),
            ({"score_kind": "best"}, 1),
            ({"score_actual": "last10-2net"}, 0),
            ({"task": "0.50"}, 0),
        ],
    )
    def test_only_the_same_protocol_is_compared(self, site: Site, change: dict[str, str], expected: int) -> None:
        results = site.suites["cifar10-sym"]
        printed = results.reported[0]
        assert (printed.method_id, printed.task, printed.score_kind) == ("ce", "0.20", "last10")
        changed = ReportedRow.model_validate(printed.model_dump(mode="json") | change | {"trials": ""})
        found = agreements(site, type(results)(results.name, results.suite, results.rows, (changed,)))
        assert len(found) == expected

    @pytest.mark.parametrize("change", [{"reduced": "3 of 12 epochs"}, {"protocol": "lr=0.2"}, {"edition": "jpeg"}])
    def test_only_full_runs_of_the_preset_are_compared(self, site: Site, change: dict[str, str]) -> None:
        results = site.suites["cifar10-sym"]
        rows = tuple(row.model_copy(update=change) for row in results.rows)
        assert agreements(site, type(results)(results.name, results.suite, rows, results.reported)) == []

    def test_a_method_from_a_selection_is_compared_with_its_like(self, site: Site) -> None:
        results = site.suites["cifar10-sym"]
        change = {"selector": "clipcleaner 0.1.0", "protocol": "from clipcleaner's selection"}
        rows = tuple(row.model_copy(update=change) for row in results.rows)
        printed = results.reported[0].model_copy(update={"method_id": "clipcleaner+ce"})
        assert len(agreements(site, type(results)(results.name, results.suite, rows, (printed,)))) == 1

    def test_networks_by_their_printed_names(self) -> None:
        assert same_network("cnn7", "7-layer CNN")
        assert same_network("timm:inception_resnet_v2", "Inception-ResNet-v2")
        assert same_network("timm:vgg19_bn", "VGG-19-BN")
        assert not same_network("preact-resnet18", "ResNet-18")


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    entries: Any = [(None, float(cost), float(accuracy)) for cost, accuracy in points]
    front = {(cost, accuracy) for _, cost, accuracy in _front(entries)}
    beaten = {
        (cost, accuracy)
        for cost, accuracy in points
        for other, better in points
        if other <= cost and better >= accuracy and (other, better) != (cost, accuracy)
    }
    assert front == set(points) - beaten


def test_the_overview_names_the_leaders(built: Path, window: Any) -> None:
    window.page.goto((built / "index.html").as_uri())
    table = window.page.get_by_role("region", name=f"Leaders on {SUITE}")
    first = table.locator("tbody tr").first
    assert first.locator("th").inner_text() == "0.20"
    assert first.locator("td").first.locator("a").all_inner_texts() == ["dividemix", "css"]
    assert first.locator("td").nth(1).locator("a").all_inner_texts() == ["coteaching", "josrc"]
    first.locator("a").first.click()
    assert "/runs/digits-sym/0.20/dividemix-" in window.page.url
