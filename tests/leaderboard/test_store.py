from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_benchmark.fixture import BenchmarkFixture

from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.leaderboard import bundle, store
from lnlbench.leaderboard.aggregate import Row, decimals, summarise
from lnlbench.records import CellSpec, RunRecord, Scores

Run = Callable[..., Path]
Spec = Callable[..., CellSpec]
Record = Callable[..., RunRecord]

TRIGGERS = "=+-@\t\r\n|%＝＋－＠"
SUITE = "digits-sym"


@pytest.fixture
def row(spec: Spec, record: Record) -> Row:
    return summarise([record(spec(), Scores(last10=0.9, last=0.9, best=0.95, best_epoch=1))])[0]


def test_scoring_writes_bundles_and_csv(run: Run, spec: Spec, board: Path, tmp_path: Path) -> None:
    runs = [run(spec(method, seed=seed)) for method in ("ce", "NA") for seed in (1, 2, 3)]
    run(spec("ce", seed=4), diverged=True)
    report = store.score([tmp_path / "runs"], board)
    assert len(report.added) == len(runs) + 1
    assert report.boards == (board / f"{SUITE}.csv",)
    assert [*report.unfinished, *report.refused, *report.disagreeing] == []
    rows = store.read_rows(report.boards[0])
    assert [(row.method, row.n, row.n_diverged) for row in rows] == [("NA", 3, 0), ("ce", 3, 1)]
    assert rows == summarise(bundle.read(folder) for folder in store.bundles_of(board, SUITE))
    frame = store.read_board(report.boards[0])
    assert list(frame.columns) == list(store.COLUMNS)
    assert list(frame["method"]) == ["NA", "ce"]
    assert list(frame["n"]) == ["3", "3"]


def test_numbers_have_fixed_decimals_and_gaps_are_blank(run: Run, board: Path) -> None:
    (path,) = store.score([run()], board).boards
    header, line = csv.reader(io.StringIO(path.read_text(), newline=""))
    cells = dict(zip(header, line, strict=True))
    for column in ("last10_mean", "best_mean", "gap_mean", "clean_auc_mean"):
        whole, fraction = cells[column].split(".")
        assert whole.isdigit()
        assert len(fraction) == 2
    assert cells["last10_std"] == ""
    assert cells["train_seconds_mean"] == "12.5"
    assert b"\r" not in path.read_bytes()
    assert path.read_bytes().endswith(b"\n")


def test_unfinished_and_damaged_runs_are_reported_and_stop_nobody(
    run: Run, spec: Spec, board: Path, tmp_path: Path
) -> None:
    good, going, failed, bad = (run(spec(seed=seed)) for seed in (1, 2, 3, 4))
    (going / "result.json").unlink()
    (failed / "result.json").unlink()
    (failed / "failure.json").write_text("{}")
    (bad / "predictions.npz").write_bytes(b"not an archive")
    (tmp_path / "runs" / "empty").mkdir()
    report = store.score([tmp_path / "runs", good, tmp_path / "runs" / "empty"], board)
    assert [each.cell for each in report.added] == [good.name.split("-")[1]]
    reasons = {each.folder: each.reason for each in report.unfinished}
    assert set(reasons) == {going, failed, tmp_path / "runs" / "empty"}
    assert "run the same command again" in reasons[going]
    assert "failure.json" in reasons[failed]
    (refused,) = report.refused
    assert refused.folder == bad
    assert "predictions.npz" in refused.reason
    assert [row.n for row in store.read_rows(board / f"{SUITE}.csv")] == [1]


def test_a_folder_that_does_not_exist_is_a_usage_error(tmp_path: Path, board: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*nowhere; name a run folder"):
        store.score([tmp_path / "nowhere"], board)
    assert not board.exists()


def test_disagreeing_runs_are_reported(run: Run, tmp_path: Path, board: Path) -> None:
    first = run().rename(tmp_path / "first")
    store.score([first], board)
    assert not store.score([first], board).disagreeing
    before = (board / f"{SUITE}.csv").read_bytes()
    report = store.score([run(salt=1)], board)
    assert [each.outcome for each in report.disagreeing] == ["kept"]
    assert (board / f"{SUITE}.csv").read_bytes() == before


def test_the_csv_is_a_pure_function_of_the_bundles(run: Run, spec: Spec, tmp_path: Path) -> None:
    runs = [
        run(spec(method, task, seed, reduced=reduced))
        for method in ("ce", "dividemix")
        for task in ("0.20", "0.40")
        for seed in (1, 2, 3)
        for reduced in ((), ("epochs 3 of 12",))
    ]
    contents = set()
    for number in range(3):
        board = tmp_path / f"board{number}"
        random.Random(number).shuffle(runs)
        for folder in runs:
            bundle.add(folder, board)
        (path,) = store.rebuild(board, verify=True)
        contents.add(path.read_bytes())
        path.unlink()
        assert store.rebuild(board, [SUITE]) == [path]
        contents.add(path.read_bytes())
    assert len(contents) == 1
    path.write_text("vandalised")
    store.rebuild(board)
    assert path.read_bytes() in contents
    assert [row.n for row in store.read_rows(path)] == [3] * 8


def test_rows_of_others_stay(run: Run, spec: Spec, board: Path) -> None:
    store.score([run(spec("theirs", seed=1)), run(spec("theirs", seed=2)), run(spec("x", suite="other"))], board)
    before = store.read_rows(board / f"{SUITE}.csv")
    other = (board / "other.csv").read_bytes()
    report = store.score([run(spec("mine"))], board)
    after = store.read_rows(board / f"{SUITE}.csv")
    assert [row for row in after if row.method == "theirs"] == before
    assert [row.method for row in after] == ["mine", "theirs"]
    assert report.boards == (board / f"{SUITE}.csv",)
    assert (board / "other.csv").read_bytes() == other


def test_full_and_reduced_runs_never_merge(run: Run, spec: Spec, board: Path) -> None:
    store.score([run(spec()), run(spec(seed=2, reduced=("epochs 12 of 40",)))], board)
    rows = store.read_rows(board / f"{SUITE}.csv")
    assert [(row.reduced, row.n) for row in rows] == [("", 1), ("epochs 12 of 40", 1)]


def test_a_damaged_bundle_is_named_and_no_csv_changes(run: Run, spec: Spec, board: Path) -> None:
    store.score([run(spec(suite="a")), run(spec(suite="b"))], board)
    before = {path: path.read_bytes() for path in board.glob("*.csv")}
    assert len(before) == 2
    (folder,) = store.bundles_of(board, "b")
    bundle.add(run(spec(suite="a", seed=2)), board)
    good = (folder / "run.json").read_bytes()
    for damaged in (good[:-100], good.replace(b"0.1.0", b"0.1.1"), b""):
        (folder / "run.json").write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            store.rebuild(board)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert {path: path.read_bytes() for path in board.glob("*.csv")} == before
    (folder / "run.json").write_bytes(good)
    (folder / "predictions.npz").unlink()
    assert len(store.rebuild(board)) == 2
    with pytest.raises(DataError, match=r"predictions\.npz"):
        store.rebuild(board, verify=True)
    stray = folder.with_name("notes")
    stray.mkdir()
    with pytest.raises(DataError, match="notes: not a bundle"):
        store.rebuild(board)


def test_unknown_suites_and_empty_boards(run: Run, board: Path) -> None:
    assert store.rebuild(board) == []
    store.score([run()], board)
    with pytest.raises(UnknownNameError, match="did you mean 'digits-sym'"):
        store.rebuild(board, ["digit-sym"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"a,b\n1\n", "row 2 has 1 cells, not 2"),
        (b'a\n"b', "not a CSV file"),
        (b"\xff\n", "not a CSV file"),
        (b"suite\nx\n", "in 'suite_version', the first of 70 columns"),
    ],
)
def test_broken_csv_files_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        store.read_rows(path)
    assert "\n" not in str(caught.value)


def test_a_wrong_cell_is_named_by_row_and_column(tmp_path: Path, row: Row) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(store.to_csv([row]).replace(b"90.00", b"ninety", 1))
    with pytest.raises(DataError, match="row 2, column last10_mean: Input should be a valid number"):
        store.read_rows(path)


def test_names_that_look_like_something_else_survive(tmp_path: Path, row: Row) -> None:
    names = ["NA", "null", "None", "007", "1e5", "True", "", "nan", "-", "'", "''x", "a\rb", 'say "x"', "a,b", "\x00"]
    path = tmp_path / "x.csv"
    path.write_bytes(store.to_csv(row.model_copy(update={"method": name}) for name in names))
    assert list(store.read_board(path)["method"]) == names
    assert [each.method for each in store.read_rows(path)] == names


cells = st.one_of(
    st.text(max_size=20),
    st.builds(str.__add__, st.sampled_from([*TRIGGERS, "'", '"', ","]), st.text(max_size=20)),
    st.builds(str.__mul__, st.sampled_from([*TRIGGERS, "'"]), st.integers(0, 4)),
)


@settings(
    derandomize=True, deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(cells, cells, cells, st.integers(-10_000, 10_000)), max_size=4))
def test_no_cell_is_a_formula_and_every_row_comes_back(
    tmp_path: Path, row: Row, hostile: list[tuple[str, str, str, int]]
) -> None:
    rows = [
        row.model_copy(update={"method": method, "protocol": protocol, "device": device, "gap_mean": number / 100})
        for method, protocol, device, number in hostile
    ]
    path = tmp_path / "x.csv"
    path.write_bytes(store.to_csv(rows))
    header, *lines = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    for line in lines:
        for column, cell in zip(header, line, strict=True):
            assert decimals(column) is not None or not cell.startswith(tuple(TRIGGERS))
    assert store.read_rows(path) == rows
    frame = store.read_board(path)
    assert list(frame["method"]) == [each.method for each in rows]
    assert list(frame["protocol"]) == [each.protocol for each in rows]


@pytest.mark.benchmark(group="one run more on a board of 400")
def test_one_run_more_on_a_large_board(thousand: list[list[Path]], board: Path, benchmark: BenchmarkFixture) -> None:
    runs = [folder for method in thousand for folder in method[:101]]
    for folder in runs[:400]:
        bundle.add(folder, board)
    rest = iter(runs[400:])
    benchmark.pedantic(store.score, setup=lambda: (([next(rest)], board), {}), rounds=4)
    scored = len(runs) - len(list(rest))
    assert scored > 400
    assert sum(row.n for row in store.read_rows(board / f"{SUITE}.csv")) == scored
