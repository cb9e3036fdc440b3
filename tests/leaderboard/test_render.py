from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from lnlbench.leaderboard.aggregate import Row, summarise
from lnlbench.leaderboard.render import leaderboard_table, rows_as_json
from lnlbench.records import CellSpec, NoiseSpec, RunRecord, Scores

WIDTHS = (80, 100, 120, 200)


@pytest.fixture
def rows(spec: Callable[..., CellSpec], record: Callable[..., RunRecord]) -> list[Row]:
    selection = {"clean_precision": 0.9812, "clean_recall": 0.9123, "clean_auc": 0.9951, "clean_size": 25.0}

    def runs(last10: float, **changes: object) -> list[RunRecord]:
        return [
            record(
                spec(seed=seed, **changes),
                Scores(last10=last10 + seed / 1000, last=last10, best=last10 + 0.0512, best_epoch=1),
                selection=selection,
            )
            for seed in (1, 2, 3)
        ]

    records = [
        *runs(0.8345, method="ce"),
        *runs(0.9312, method="dividemix", networks=2, changed={"lambda_u": 25}),
        *runs(0.9123, method="ce", task="0.20"),
        *runs(0.7012, method="clipcleaner", task="0.20", supervision=("clip",), edition="cifar10-jpeg"),
        *runs(0.5512, method="ce", reduced=("epochs 3 of 40",), changed={"epochs": 3}),
        record(spec("ce", seed=4)),
        record(spec("fragile", seed=1)),
    ]
    return summarise(records)


def shown(rows: list[Row], width: int, title: str = "Digits", encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width, force_terminal=False
    )
    console.print(leaderboard_table(rows, title))
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_is_whole_and_no_line_is_too_long(rows: list[Row], width: int) -> None:
    text = shown(rows, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text
    for row in rows:
        if row.last10_mean is not None:
            assert f"{row.last10_mean:.2f} ± {row.last10_std:.2f}" in text
            assert f" {row.last_mean:.2f} " in text
            assert f" {row.best_mean:.2f} " in text
            assert f" {row.gap_mean:.2f} " in text
            assert all(number in text for number in ("99.5", "98.1", "91.2"))
    assert "best: the highest epoch, chosen on the test set" in text
    assert "last10: mean test accuracy over the final ten epochs" in " ".join(text.split())
    assert "on test)" in text


def test_wide_terminals_get_one_table_and_narrow_ones_two(rows: list[Row]) -> None:
    full = [row for row in rows if not row.reduced]
    assert "(continued)" not in shown(full, 120)
    assert "(continued)" not in shown(full, 100)
    accuracies, rest = shown(full, 80).split("(continued)")
    assert "last10" in accuracies
    assert "s/run" in rest


@pytest.mark.parametrize("width", WIDTHS)
def test_reduced_rows_stand_apart_with_their_reason(rows: list[Row], width: int) -> None:
    text = shown(rows, width)
    full, reduced = text.split("REDUCED RUNS", 1)
    assert "55.3" not in full
    assert "epochs 3 of 40" not in full
    assert "ce (reduced)" in reduced
    assert "epochs 3 of 40" in " ".join(reduced.split())
    assert "REDUCED" not in shown([row for row in rows if not row.reduced], width)


def test_columns_appear_where_there_is_something_in_them(rows: list[Row]) -> None:
    text = shown(rows, 200)
    for absent in ("on val", "top-5", "OOD", "noise"):
        assert absent not in text
    bare = [
        row.model_copy(update={"clean_auc_mean": None, "clean_precision_mean": None, "clean_recall_mean": None})
        for row in rows
    ]
    assert "clean" not in shown([row for row in bare if row.supervision == "scratch"], 200)
    open_set = [row.model_copy(update={"ood_precision_mean": 81.23, "id_noise_recall_mean": 72.34}) for row in rows[:2]]
    text = shown([*open_set, rows[2]], 200)
    assert "81.2" in text
    assert "72.3" in text
    assert "ID noise, OOD: how well it finds" in text
    (header,) = (line.split() for line in text.splitlines() if "prec" in line.split())
    # A precision each of clean and out-of-distribution samples, a recall each of clean and mislabelled ones.
    assert (header.count("prec"), header.count("rec")) == (2, 2)


@pytest.mark.parametrize("width", WIDTHS)
def test_both_test_sets_with_top5_and_validation_fit(
    spec: Callable[..., CellSpec], record: Callable[..., RunRecord], width: int
) -> None:
    own = NoiseSpec(generator="own", options={}, rate=None, seed=None)
    scores = Scores(
        last10=0.7712, last=0.7634, best=0.7856, best_epoch=1, best_val=0.7501, top5_last10=0.9123, top5_best=0.93
    )
    other = Scores(last10=0.7212, last=0.7134, best=0.7356, best_epoch=1, best_val=0.7002, top5_last10=0.8923)
    runs = [
        record(
            spec("dividemix", "full", seed, noise=own, test_sets=("webvision", "ilsvrc12"), networks=2),
            scores,
            further_scores={"ilsvrc12": other},
            selection={"clean_auc": 0.8123},
        )
        for seed in (1, 2)
    ]
    text = shown(summarise(runs), width, "mini-WebVision")
    assert max(map(cell_len, text.splitlines())) <= width
    for number in ("77.12", "72.12", "76.34", "71.34", "78.56", "73.56", "75.01", "70.02", "91.23", "89.23", "81.2"):
        assert number in text
    joined = "".join(text.split())
    assert "webvision" in joined
    assert "ilsvrc12" in joined
    assert "top-5: as last10" in text
    assert "best on val: test accuracy at the epoch" in " ".join(text.split())


def test_own_data_are_told_from_published_files_and_from_editions(rows: list[Row]) -> None:
    text = shown([rows[0].model_copy(update={"edition": "own"})], 120)
    assert "own data" in text
    assert "†" not in text


def test_what_sets_a_row_apart_is_said_below_its_name(rows: list[Row]) -> None:
    text = shown(rows, 200)
    assert "lambda_u=25; 2 networks" in text
    assert "clipcleaner†" in text
    assert "edition cifar10-jpeg; uses clip" in text
    assert "† not made with the published data files" in text
    assert "1 diverged" in text
    assert re.search(r"fragile +diverged +0", text)
    assert "†" not in shown([row for row in rows if row.edition == "canonical"], 200)


def test_several_suites_are_told_apart(rows: list[Row]) -> None:
    other = rows[0].model_copy(update={"suite": "fashion-sym"})
    text = shown([rows[0], other], 120)
    assert "digits-sym@0.20" in text
    assert "fashion-sym@0.20" in text


def test_long_names_fold_and_hostile_ones_are_shown_as_they_are(rows: list[Row]) -> None:
    name = "a-method-with-a-name-that-goes-on-and-on-for-sixty-characters"
    hostile = rows[0].model_copy(update={"method": "[red]x[/red]\x1b[31m\r", "protocol": "=cmd|' /C calc'!A0"})
    for width in WIDTHS:
        text = shown([rows[0].model_copy(update={"method": name}), hostile], width)
        assert "\x1b" not in text
        assert "[red]" in text
        assert max(map(cell_len, text.splitlines())) <= width
        assert f"{rows[0].last10_mean:.2f} ± {rows[0].last10_std:.2f}" in text
    joined = re.sub(r"\s", "", shown([rows[0].model_copy(update={"method": name})], 80))
    assert name[:20] in joined


def test_a_terminal_without_unicode_gets_ascii(rows: list[Row]) -> None:
    text = shown([*rows, rows[0].model_copy(update={"method": "naïve"})], 120, encoding="ascii")
    assert "+/-" in text
    assert "na\\xefve" in text


def test_an_empty_board_says_so() -> None:
    assert shown([], 80) == "Digits: no runs yet\n"


def test_json_has_every_column_and_null_for_what_is_missing(rows: list[Row]) -> None:
    values = json.loads(rows_as_json(rows), parse_constant=pytest.fail)
    assert [list(value) for value in values] == [list(Row.model_fields)] * len(rows)
    (fragile,) = (value for value in values if value["method"] == "fragile")
    assert (fragile["last10_mean"], fragile["n"], fragile["n_diverged"]) == (None, 0, 1)
    assert [Row.model_validate(value) for value in values] == rows
