"""Submissions, trust, and the judgement of repeated runs, on fabricated runs."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnlbench.cli.run import run as run_command
from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.leaderboard import bundle, store
from lnlbench.leaderboard.aggregate import protocol_digest
from lnlbench.leaderboard.bundle import Content
from lnlbench.leaderboard.reproduce import commands, find_bundles, find_sources, judge, load
from lnlbench.leaderboard.submission import LIST, inspect, submit
from lnlbench.leaderboard.trust import raise_trust, read_trust
from lnlbench.records import CellSpec, MethodSpec, NoiseSpec, RunRecord, Scores

Run = Callable[..., Path]
Spec = Callable[..., CellSpec]
Record = Callable[..., RunRecord]

SUITES = ("digits-sym", "mini-webvision", "cifar80n-o")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reason(folder: Path) -> str:
    """Return why something of a submission is refused; there is one reason, in one line."""
    (refused,) = inspect(folder).refused
    assert refused.reason.isprintable()
    return refused.reason


# Names of rows and cells


def test_rows_cells_and_paths_name_runs(run: Run, spec: Spec, board: Path) -> None:
    folders = [run(spec(seed=seed)) for seed in (2, 1)]
    other = run(spec("css"))
    store.score([*folders, other], board)
    records = [load(folder).record for folder in folders]
    key = protocol_digest(records[0])[:8]
    assert [folder.name for folder in find_bundles(board, f"digits-sym/0.40/ce-{key}")] == [
        record.cell for record in reversed(records)
    ]
    (one,) = find_bundles(board, records[0].cell)
    assert one == board / "bundles" / "digits-sym" / records[0].cell
    assert find_sources(board, [str(one), records[0].cell]) == [one]
    assert len(find_sources(board, [str(board)])) == 3
    assert find_sources(board, [str(folders[0])]) == [folders[0]]
    assert load(one).files == load(folders[0]).files


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("digits-sym/0.40/ce-00000000", "unknown row on the board .*; did you mean 'digits-sym/0.40/ce-"),
        ("digit-sym/0.40/ce-00000000", "unknown suite on the board .*; did you mean 'digits-sym'"),
        ("ce", "'ce' is no row: write SUITE/TASK/METHOD-KEY"),
        ("0123456789abcdef", "no cell 0123456789abcdef on the board"),
    ],
)
def test_an_unknown_row_is_one_line(run: Run, board: Path, name: str, error: str) -> None:
    store.score([run()], board)
    with pytest.raises(UsageError, match=error) as caught:
        find_bundles(board, name)
    assert "\n" not in str(caught.value)


# Commands


def words(record: RunRecord, **options: Any) -> list[str]:
    (command,) = commands([record], SUITES, **options)
    assert shlex.split(command.text) == ["lnlbench", "run", *command.arguments]
    assert command.cells == (record.cell,)
    # The parser of the real command takes every word.
    run_command.make_context("run", list(command.arguments))
    return list(command.arguments)


def test_a_command_names_what_differs(spec: Spec, record: Record) -> None:
    cell = spec(
        changed={"epochs": 3, "lr": 1e-05, "backbone": "timm:resnet18", "views": ["weak", "strong"], "tau": None},
        noise_seed=7,
        limit_train=150,
        deterministic=False,
        compile=True,
    )
    selector = MethodSpec(
        name="clipcleaner", version="0.1.0", distribution="d", config={}, changed={"theta": 0.9}, supervision=("clip",),
        networks=1, asked=(),
    )  # fmt: skip
    assert words(record(cell.model_copy(update={"selector": selector}))) == [
        *("--method", "ce", "--suite", "digits-sym", "--task", "0.40", "--seeds", "1", "--noise-seed", "7"),
        *("--select", "clipcleaner", "--epochs", "3", "--set", "backbone=timm:resnet18", "--set", "lr=1e-05"),
        *("--set", "tau=null", "--set", 'views=["weak", "strong"]', "--set", "clipcleaner.theta=0.9"),
        *("--limit-train", "150", "--precision", "float32", "--compile", "--fast-kernels"),
        *("--device", "cpu", "--threads", "2"),
    ]


def test_test_sets_and_levels_with_an_at_sign(spec: Spec, record: Record) -> None:
    noise = NoiseSpec(generator="own", options={}, rate=None, seed=None)
    sets = spec(suite="mini-webvision", task="full", noise=noise, test_sets=("webvision", "ilsvrc12"))
    assert words(record(sets))[2:6] == ["--suite", "mini-webvision", "--task", "webvision,ilsvrc12"]
    assert "--noise-seed" not in words(record(sets))
    level = spec(suite="cifar80n-o", task="sym@0.20", noise=noise)
    assert words(record(level))[4:6] == ["--task", "cifar80n-o@sym@0.20"]


def test_a_suite_of_the_command_line_is_put_together_again(spec: Spec, record: Record) -> None:
    own = spec(suite="folder-photos-symmetric", dataset="folder:photos", data_options={"size": "32"})
    assert words(record(own))[2:11] == [
        *("--dataset", "folder:photos", "--data-set", "size=32", "--noise", "symmetric", "--rate", "0.4", "--seeds")
    ]
    assert "count=exact" in words(record(own), switches=("count",))


def test_runs_that_differ_in_the_seed_only_share_a_command(spec: Spec, record: Record) -> None:
    seeds = [record(spec(seed=seed)) for seed in (5, 3, 1, 2, 9)]
    frozen = [record(spec(seed=seed, noise_seed=4)) for seed in (1, 2)]
    first = record(spec())
    elsewhere = record(spec(seed=6), environment=first.environment.model_copy(update={"threads": 8}))
    found = commands([*seeds, *frozen, elsewhere], SUITES)
    told = [command.arguments[command.arguments.index("--seeds") + 1] for command in found]
    assert told == ["1-3,5,9", "1,2", "6"]
    assert ["--noise-seed" in command.arguments for command in found] == [False, True, False]
    assert found[2].arguments[-1] == "8"


# Verdicts


def elsewhere(content: Content) -> Content:
    record = content.record
    environment = record.environment.model_copy(update={"device": "Another CPU"})
    return Content(record.model_copy(update={"environment": environment}), content.predictions, content.files)


def scored(content: Content, last10: float, images: int, again: bool) -> Content:
    """A run with a score of choice; if again, on another machine, with other predictions than those on record."""
    scores = Scores(last10=last10, last=last10, best=last10, best_epoch=0)
    data = content.record.data.model_copy(update={"num_test": images})
    changed = Content(content.record.model_copy(update={"scores": scores, "data": data}), content.predictions, {})
    return Content(elsewhere(changed).record, {}, {}) if again else changed


def test_equal_predictions_are_identical_wherever_they_were_made(run: Run) -> None:
    content = load(run())
    assert judge([content], [content]).outcome == "identical"
    verdict = judge([content], [elsewhere(content)])
    assert (verdict.outcome, verdict.runs[0].reason) == ("identical", "all predictions are equal")


def test_under_one_fingerprint_predictions_have_to_be_equal(run: Run, run_at: Run, tmp_path: Path) -> None:
    first, second = load(run()), load(run_at(tmp_path / "again", salt=1))
    verdict = judge([first], [second])
    assert verdict.outcome == "different"
    assert "nothing bit-exactness depends on differs" in verdict.runs[0].reason
    assert judge([first], [elsewhere(second)]).runs[0].outcome is None


def test_two_pooled_standard_deviations_by_hand(run: Run, spec: Spec) -> None:
    runs = [load(run(spec(seed=seed))) for seed in (1, 2, 3)]
    # 90, 91, 95: variance 7; three equal scores: variance 0; two pooled deviations are 2 sqrt(3.5) = 3.742.
    recorded = [scored(each, value, 10**6, False) for each, value in zip(runs, (0.90, 0.91, 0.95), strict=True)]
    verdict = judge(recorded, [scored(each, 0.8826, 10**6, True) for each in runs])
    (agreement,) = verdict.agreements
    assert agreement.spread == pytest.approx(2 * math.sqrt(3.5) / 100)
    assert (verdict.outcome, agreement.outcome) == ("same", "same")
    assert agreement.reason == "last10 92.00 on record, 88.26 again: within 2 pooled standard deviations (3.74)"
    verdict = judge(recorded, [scored(each, 0.8825, 10**6, True) for each in runs])
    assert verdict.outcome == "different"
    assert "beyond 2 pooled standard deviations (3.74) and 2 binomial standard errors" in verdict.agreements[0].reason


@pytest.mark.parametrize(("again", "outcome"), [(0.884, "same"), (0.881, "same"), (0.879, "different")])
def test_a_single_run_is_judged_by_the_size_of_the_test_set(run: Run, again: float, outcome: str) -> None:
    content = load(run())
    verdict = judge([scored(content, 0.9, 2000, False)], [scored(content, again, 2000, True)])
    (agreement,) = verdict.agreements
    assert agreement.spread is None
    # sqrt(0.9 * 0.1 / 2000) is 0.0067 and sqrt(0.88 * 0.12 / 2000) 0.0073: twice their root sum of squares is 0.0198.
    assert agreement.chance == pytest.approx(2 * math.sqrt((0.9 * 0.1 + again * (1 - again)) / 2000))
    assert agreement.chance == pytest.approx(0.0198, abs=2e-4)
    assert (verdict.outcome, verdict.runs[0].outcome) == (outcome, None)


def test_every_test_set_has_to_agree(run: Run, spec: Spec) -> None:
    first = load(run(spec(test_sets=("webvision", "ilsvrc12"))))
    record = elsewhere(first).record
    other = record.further_scores["ilsvrc12"].model_copy(update={"last10": 0.01})
    again = Content(record.model_copy(update={"further_scores": {"ilsvrc12": other}}), {}, {})
    verdict = judge([first], [again])
    assert [(each.test_set, each.outcome) for each in verdict.agreements] == [
        ("webvision", "same"),
        ("ilsvrc12", "different"),
    ]
    assert verdict.outcome == "different"
    # Thirty images, of the further test set.
    last10 = first.record.further_scores["ilsvrc12"].last10
    assert verdict.agreements[1].chance == pytest.approx(2 * math.sqrt((last10 * (1 - last10) + 0.01 * 0.99) / 30))
    assert "last10 on ilsvrc12" in verdict.agreements[1].reason


def test_other_data_and_another_end_are_different(run: Run, run_at: Run, spec: Spec, tmp_path: Path) -> None:
    content = load(run())
    for field in ("noise", "data"):
        part = getattr(content.record, field).model_copy(update={"digest": "0" * 64})
        other = Content(content.record.model_copy(update={field: part}), content.predictions, {})
        assert judge([content], [other]).runs[0].reason.startswith("made with other")
    diverged = load(run_at(tmp_path / "again", spec(), diverged=True))
    assert judge([content], [diverged]).runs[0].reason == "finished on record, diverged again"
    assert judge([diverged], [diverged]).outcome == "identical"
    with pytest.raises(UsageError, match="no run of these cells"):
        judge([content], [load(run(spec(seed=2)))])


# Submissions


def test_a_submission_holds_the_bundles_of_a_board_byte_for_byte(run: Run, spec: Spec, board: Path) -> None:
    folders = [run(spec(seed=1)), run(spec(seed=2), diverged=True)]
    store.score(folders, board)
    out, again = board.with_name("out"), board.with_name("again")
    assert submit(folders, out) == []
    assert submit(find_sources(board, [str(board)]), again) == []
    assert contents(out) == contents(again)
    kept = {name: data for name, data in contents(board).items() if name.startswith("bundles")}
    assert {name: data for name, data in contents(out).items() if name != LIST} == kept
    listed = json.loads((out / LIST).read_text())["bundles"]
    assert [each["cell"] for each in listed] == sorted(load(folder).record.cell for folder in folders)
    found = inspect(out)
    assert (len(found.bundles), found.refused) == (2, ())
    # A run and its own bundle are one and the same.
    assert submit([folders[0], *find_bundles(board, listed[0]["cell"])], board.with_name("third")) == []


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    folder, out = run(), tmp_path / "out"
    out.mkdir()
    submit([folder], out)
    before = contents(out)
    with pytest.raises(UsageError, match="overwrites nothing"):
        submit([folder], out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="overwrites nothing"):
        submit([folder], tmp_path / "file")
    assert (contents(out), (tmp_path / "file").read_text()) == (before, "mine")


def test_one_bad_run_keeps_everything_back(run: Run, run_at: Run, spec: Spec, tmp_path: Path) -> None:
    good, forged = run(), run(spec(seed=2))
    text = (forged / "result.json").read_text()
    record = json.loads(text)
    record["scores"]["last10"] = 1.0
    (forged / "result.json").write_text(json.dumps(record))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    refused = submit([good, forged, unfinished], tmp_path / "out")
    assert [each.path for each in refused] == [forged, unfinished]
    assert "scores.last10 is 1" in refused[0].reason
    with pytest.raises(UsageError, match="choose one"):
        submit([good, run_at(tmp_path / "again", salt=1)], tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.fixture
def submission(run: Run, tmp_path: Path) -> Path:
    submit([run()], tmp_path / "submission")
    return tmp_path / "submission"


@pytest.fixture
def only(submission: Path) -> Path:
    """The one bundle of the submission."""
    (folder,) = (submission / "bundles" / "digits-sym").iterdir()
    return folder


def test_a_link_is_refused_before_it_is_read(submission: Path, only: Path, tmp_path: Path) -> None:
    secret = (only / "run.json").rename(tmp_path / "secret")
    (only / "run.json").symlink_to(secret)
    assert "a link or another special file" in reason(submission)
    assert inspect(submission).bundles == ()


def test_a_pipe_makes_nobody_wait(submission: Path, only: Path) -> None:
    (only / "metrics.jsonl.gz").unlink()
    os.mkfifo(only / "metrics.jsonl.gz")
    assert "a link or another special file" in reason(submission)


def test_a_linked_folder_is_no_bundle(submission: Path, only: Path, tmp_path: Path) -> None:
    moved = only.rename(tmp_path / only.name)
    only.symlink_to(moved, target_is_directory=True)
    found = inspect(submission)
    assert found.bundles == ()
    assert any("not a bundle" in each.reason for each in found.refused)


def test_foreign_names_are_refused_and_cannot_steer_the_terminal(submission: Path, only: Path) -> None:
    odd = only / "\x1b[2J\nevil.py"
    odd.write_text("")
    assert "evil.py: no file of a bundle" in reason(submission)
    odd.unlink()
    (submission / "bundles" / "digits-sym" / "..odd").mkdir()
    assert "not a bundle" in reason(submission)
    (submission / "bundles" / "digits-sym" / "..odd").rmdir()
    (submission / "setup.py").write_text("")
    assert "no part of a submission" in reason(submission)


def test_a_bomb_is_refused_by_what_it_says_of_itself(submission: Path, only: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("epochs.npy", "test_labels.npy", "predictions.npy"):
            archive.writestr(name, bytes(20 * 2**20))
    files = {path.name: path.read_bytes() for path in only.iterdir() if path.name != "manifest.json"}
    files["predictions.npz"] = bomb.getvalue()
    (only / "predictions.npz").write_bytes(files["predictions.npz"])
    (only / "manifest.json").write_bytes(bundle.manifest(files))
    assert any("MiB unpacked" in each.reason for each in inspect(submission).refused)


def test_the_list_and_the_folder_have_to_agree(submission: Path, only: Path, run: Run, spec: Spec) -> None:
    listed = json.loads((submission / LIST).read_text())
    (submission / LIST).write_text(json.dumps(listed | {"bundles": []}))
    assert "not listed in submission.json" in reason(submission)
    (submission / LIST).write_text(json.dumps(listed))
    bundle.add(run(salt=1, spec=spec(seed=2)), submission)
    (submission / ".lock").unlink(missing_ok=True)
    assert "not listed in submission.json" in reason(submission)
    listed["bundles"][0]["manifest"] = "0" * 64
    (submission / LIST).write_text(json.dumps(listed))
    assert any("not the bundle that submission.json lists" in each.reason for each in inspect(submission).refused)
    (submission / LIST).write_text("[")
    assert "not the list of a submission" in reason(submission)
    (submission / LIST).unlink()
    (submission / LIST).symlink_to(only / "run.json")
    assert "not a regular file" in reason(submission)


def test_a_folder_without_bundles_is_no_submission(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a submission or a board"):
        inspect(tmp_path)


# Trust


def test_the_least_checked_run_decides_about_a_row(run: Run, spec: Spec, board: Path) -> None:
    folders = [run(spec(seed=seed)) for seed in (1, 2)]
    store.score(folders, board)
    cells = [load(folder).record.cell for folder in folders]
    path = board / "digits-sym.csv"

    def trust() -> str:
        store.rebuild(board, ["digits-sym"])
        (row,) = store.read_rows(path)
        return row.trust

    assert trust() == "claimed"
    raise_trust(board, "digits-sym", cells[:1], "re-run")
    assert trust() == "claimed"
    raise_trust(board, "digits-sym", cells, "validated")
    assert trust() == "validated"
    assert read_trust(board, "digits-sym") == {cells[0]: "re-run", cells[1]: "validated"}
    raise_trust(board, "digits-sym", reversed(cells), "re-run")
    assert trust() == "re-run"
    before = contents(board)
    raise_trust(board, "digits-sym", cells, "validated")
    assert trust() == "re-run"
    assert contents(board) == before


def test_a_replaced_bundle_is_claimed_again(run: Run, run_at: Run, board: Path, tmp_path: Path) -> None:
    folder = run()
    cell = load(folder).record.cell
    store.score([folder], board)
    raise_trust(board, "digits-sym", [cell], "validated")
    store.score([run_at(tmp_path / "again", salt=1)], board, replace=True)
    assert read_trust(board, "digits-sym") == {}
    assert store.read_rows(board / "digits-sym.csv")[0].trust == "claimed"


@pytest.mark.parametrize("text", ["[", "{}", '{"cells": {"x": {"tier": "blessed", "manifest": ""}}}'])
def test_a_damaged_file_of_tiers_is_one_line(run: Run, board: Path, text: str) -> None:
    store.score([run()], board)
    (board / "trust").mkdir()
    (board / "trust" / "digits-sym.json").write_text(text)
    with pytest.raises(DataError, match=r"trust/digits-sym\.json") as caught:
        store.rebuild(board)
    assert "\n" not in str(caught.value)


def test_unknown_suites_have_near_misses(run: Run, board: Path) -> None:
    store.score([run()], board)
    with pytest.raises(UnknownNameError, match="did you mean 'digits-sym'"):
        find_bundles(board, "digits-sim/0.40/ce-01234567")
