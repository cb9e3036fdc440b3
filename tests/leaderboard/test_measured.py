"""The board of the repository: what it says follows from its bundles, and the README shows what it says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from lnlbench.leaderboard.bundle import read
from lnlbench.leaderboard.store import bundles_of, read_rows, rebuild, suites_of
from lnlbench.plugins import Registry, discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
BOARD = ROOT / "leaderboards" / "measured"
PLUGINS = {folder.name for folder in (ROOT / "plugins").iterdir() if folder.is_dir()}

pytestmark = pytest.mark.skipif(not BOARD.is_dir(), reason="the leaderboards are part of the source tree alone")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


def test_every_table_follows_from_the_bundles(tmp_path: Path) -> None:
    copy = tmp_path / "measured"
    shutil.copytree(BOARD, copy)
    for table in copy.glob("*.csv"):
        table.write_text("")
    assert [path.stem for path in rebuild(copy, verify=True)] == suites_of(BOARD)
    for table in BOARD.glob("*.csv"):
        assert (copy / table.name).read_bytes() == table.read_bytes(), table.name


def test_every_method_is_there_on_every_embedded_suite(registry: Registry) -> None:
    assert set(registry.methods.names()) >= PLUGINS
    suites = [each.entry for each in registry.suites if each.entry.dataset == "digits"]
    assert len(suites) == 5
    for suite in suites:
        rows = [row for row in read_rows(BOARD / f"{suite.name}.csv") if row.protocol == "preset"]
        cells = {(row.method, row.task) for row in rows}
        assert cells == {(method, task.name) for method in PLUGINS for task in suite.tasks}, suite.name
        assert {(row.seeds, row.n_diverged, row.reduced) for row in rows} == {("1 2 3", 0, "")}


def test_what_was_measured_in_part_says_so(registry: Registry) -> None:
    for suite in suites_of(BOARD):
        for row in read_rows(BOARD / f"{suite}.csv"):
            full = registry.suites.find(suite).entry.dataset == "digits"
            assert full == (row.reduced == ""), row

        for bundle in bundles_of(BOARD, suite):
            # From a commit that anybody can check out.
            assert re.fullmatch(r"[0-9a-f]{7,40}", read(bundle).environment.commit), bundle


def test_the_readme_shows_the_board() -> None:
    text = (ROOT / "README.md").read_text()
    rows = {(row.task, row.method): row for row in read_rows(BOARD / "digits-sym.csv") if row.protocol == "preset"}
    task, shown = "", set()
    for line in text.splitlines():
        if found := re.match(r"(0\.\d\d)?\s+(\w+) +([\d.]+) ± ([\d.]+) +([\d.]+) +([\d.]+) ", line):
            task = found[1] or task
            row = rows[task, found[2]]
            printed = (row.last10_mean, row.last10_std, row.last_mean, row.best_mean)
            assert tuple(map(float, found.groups()[2:])) == printed, line
            shown.add((task, found[2]))
    assert shown == set(rows)


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_the_readme_of_a_method_shows_the_board(plugin: str) -> None:
    compared = 0
    places: list[tuple[str, str]] = []
    for line in (ROOT / "plugins" / plugin / "README.md").read_text().splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            places = []
        elif named := re.search("`(digits-[a-z-]+)`", line):
            # A suite is named with its first level, or before all of them. Other tables are not about scores alone.
            suite, places = named[1], []
            for cell in cells:
                suite = found[1] if (found := re.search("`(digits-[a-z-]+)`", cell)) else suite
                if level := re.fullmatch(r"(?:`.*`)? ?(?:(sym|asym)[ @])?(\d\d)", cell):
                    places.append((suite, f"{level[1]}@0.{level[2]}" if level[1] else f"0.{level[2]}"))
        elif places and (row := re.fullmatch(r"\**(ours|`\w+`), (last|best)\**", first)):
            method = plugin if row[1] == "ours" else row[1].strip("`")
            for (suite, task), cell in zip(places, cells, strict=True):
                (of,) = (
                    each
                    for each in read_rows(BOARD / f"{suite}.csv")
                    if (each.method, each.task, each.protocol) == (method, task, "preset")
                )
                held = f"{of.last10_mean:.2f} ± {of.last10_std:.2f}" if row[2] == "last" else f"{of.best_mean:.2f}"
                assert cell == held, (suite, task, first)
                compared += 1
    assert compared >= 6
