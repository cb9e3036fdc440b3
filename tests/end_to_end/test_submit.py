"""``lnlbench reproduce``, ``submit`` and ``validate`` as users meet them."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lnlbench.cli.main import _run
from lnlbench.engine.data import find_dataset
from lnlbench.engine.own import own_suite
from lnlbench.engine.planner import Request, plan
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.trust import read_trust
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, cell_id
from lnlbench.store import LocalDataStore

Cli = Callable[..., Any]
Change = Callable[[dict[str, Any]], None]

SMALL = ("--epochs", "2", "--limit-train", "150", "--set", "learning_rate=0.05", "--executor", "inline")


@pytest.fixture(scope="module")
def fabricate() -> ModuleType:
    """The makers of run folders that the leaderboard's own tests use."""
    path = Path(__file__).parents[1] / "leaderboard" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fabricate_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A real row: plain training on a few digits, two seeds."""
    root = tmp_path_factory.mktemp("measured")
    where = ("--runs", root / "runs", "--leaderboards", root / "leaderboards", "--data", data_root)
    what = ("--method", "ce", "--suite", "digits-sym", "--task", "0.40", "--seeds", "1,2")
    assert _run([str(word) for word in ("run", *what, *SMALL, *where)]) == 0
    return root


@pytest.fixture
def here(workplace: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the real runs and their board."""
    shutil.copytree(measured, workplace, dirs_exist_ok=True)
    return workplace


@pytest.fixture
def row(here: Path) -> str:
    (row,) = board(here)
    return f"{row['suite']}/{row['task']}/{row['method']}-{row['protocol_key']}"


def board(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "leaderboards" / "measured" / "digits-sym.csv").read_text().splitlines()))


def cells(folder: Path) -> set[str]:
    return {path.parent.name.partition("-")[2] for path in folder.rglob("result.json")}


def one_error(answer: Any, code: int = 2) -> str:
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.count("\n") == 1, answer.err
    return str(answer.err.removeprefix("lnlbench: error: ").rstrip())


# reproduce


def test_the_printed_command_gives_the_same_cells_and_predictions(cli: Cli, here: Path, row: str) -> None:
    told = cli("reproduce", row)
    assert (told.code, told.err) == (0, "")
    command = told.out.splitlines()[0]
    assert command == (
        "lnlbench run --method ce --suite digits-sym --task 0.40 --seeds 1,2 --epochs 2 --set learning_rate=0.05 "
        "--limit-train 150 --precision float32 --device cpu --threads 1"
    )
    ids = cells(here / "runs")
    assert re.search(r"gives cells (\w+), (\w+) here", told.out).groups() == tuple(  # type: ignore[union-attr]
        each["cell"] for each in json.loads(cli("reproduce", row, "--json").out)["runs"]
    )
    assert "environment: nothing on record differs here" in told.out
    done = cli(*shlex.split(command)[1:], "--executor", "inline", "--runs", "again", "--leaderboards", "other")
    assert done.code == 0, done.err
    assert cells(here / "again") == ids
    answer = cli("reproduce", row, "--against", "again")
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "verdict: identical predictions")
    assert answer.out.count("all predictions are equal") == 2


def test_a_run_that_was_run_again_says_so(cli: Cli, here: Path) -> None:
    measured = here / "leaderboards" / "measured"
    before = {path: path.read_bytes() for path in (measured / "bundles").rglob("*.*")}
    (cell, _) = sorted(cells(here / "runs"))
    answer = cli("reproduce", cell, "--run", "--record", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["verdict"]["outcome"] == "identical"
    assert cells(here / "reproduced" / "runs") == {cell}
    assert read_trust(measured, "digits-sym") == {cell: "re-run"}
    # The other run of the row has not been checked.
    assert [each["trust"] for each in board(here)] == ["claimed"]
    assert before == {path: path.read_bytes() for path in before}


def test_another_outcome_is_different_and_is_not_recorded(cli: Cli, here: Path, row: str) -> None:
    shutil.copytree(here / "runs", here / "again")
    for result in (here / "again").rglob("result.json"):
        record = json.loads(result.read_text())
        record |= {"status": "diverged", "message": "loss", "scores": None, "selection": {}}
        result.write_text(json.dumps(record))
        result.with_name("predictions.npz").unlink()
    answer = cli("reproduce", row, "--against", "again", "--record")
    assert (answer.code, answer.out.splitlines()[-1]) == (1, "verdict: different")
    assert "finished on record, diverged again" in answer.out
    assert [each["trust"] for each in board(here)] == ["claimed"]


def test_one_cell_and_json(cli: Cli, here: Path) -> None:
    (cell, _) = sorted(cells(here / "runs"))
    told = json.loads(cli("reproduce", cell, "--json").out)
    (run,) = told["runs"]
    (result,) = (json.loads(path.read_text()) for path in here.glob(f"runs/**/seed*-{cell}/result.json"))
    assert (run["cell"], run["data_digest"], run["noise_digest"]) == (
        *(cell, result["data"]["digest"], result["noise"]["digest"]),
    )
    (command,) = told["commands"]
    assert (command["cells"], command["problem"]) == ([cell], "")
    assert told["needs"] == [f"lnlbench {result['environment']['lnlbench']}", "lnlbench-ce 0.1.0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["ce"], "select": "clipcleaner", "overrides": {"clipcleaner.theta_cons": "0.9"}, "epochs": 3},
        {"methods": ["dividemix"], "overrides": {"lambda_u": "12.5", "epochs": "7"}, "noise_seed": 5, "seeds": [3]},
        {"methods": ["ce"], "precision": "bf16", "deterministic": False, "compile": True},
        {"methods": ["ce"], "suites": ["digits-openset"], "tasks": ["sym@0.20"], "limit_train": 99},
        {"methods": ["ce"], "suites": ["cifar10n"], "tasks": ["worse"], "overrides": {"backbone": "small-cnn"}},
        {"methods": ["ce"], "suites": ["mini-webvision"], "tasks": ["ilsvrc12"]},
        {"methods": ["ce"], "suites": ["mini-webvision"], "tasks": []},
        {"methods": ["css"], "suites": ["fashion-pdn"], "tasks": ["0.20"]},
    ],
)
def test_commands_of_every_kind_give_their_cells(
    cli: Cli, workplace: Path, fabricate: ModuleType, registry: Registry, store: LocalDataStore, changes: dict[str, Any]
) -> None:
    usual: dict[str, Any] = {"suites": ["digits-sym"], "tasks": ["0.40"], "seeds": [1]}
    (cell,) = plan(Request(**(usual | changes)), registry, store).cells
    assert problem_of(cli, fabricate, workplace, cell) == ""


@pytest.mark.parametrize("switches", [{}, {"count": "bernoulli"}, {"count": "exact", "replacement": "inclusive"}])
def test_a_suite_put_together_on_the_command_line_is_put_together_again(
    cli: Cli,
    workplace: Path,
    fabricate: ModuleType,
    registry: Registry,
    store: LocalDataStore,
    switches: dict[str, str],
) -> None:
    suite = own_suite(find_dataset(registry, "digits", {}, store), {}, "symmetric", switches, [0.3])
    request = Request(methods=["ce"], suites=[], own_suites=(suite,), seeds=[1])
    (cell,) = plan(request, registry, store).cells
    assert problem_of(cli, fabricate, workplace, cell) == ""


def problem_of(cli: Cli, fabricate: ModuleType, workplace: Path, cell: CellSpec) -> str:
    """Return why the command for a cell would not give it; empty if it would."""
    answer = cli("reproduce", fabricate.make_run(workplace / "runs", cell), "--json")
    assert answer.code == 0, answer.err
    (command,) = json.loads(answer.out)["commands"]
    assert command["cells"] == [cell.id]
    return str(command["problem"])


def test_what_cannot_be_repeated_here_is_said(cli: Cli, workplace: Path, fabricate: ModuleType) -> None:
    told = cli("reproduce", fabricate.make_run(workplace / "runs", fabricate.make_spec("css", version="9.9")))
    assert told.code == 0
    assert "does not give" in told.out
    assert "needs: lnlbench 0.1.0; lnlbench-css 9.9" in told.out
    assert "device: Some CPU; here" in told.out
    answer = cli("reproduce", fabricate.make_run(workplace / "runs", fabricate.make_spec("nobodys")))
    assert "unknown method 'nobodys'" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-sym/0.40/ce-00000000",), "did you mean 'digits-sym/0.40/ce-"),
        (("ROW", "--record"), "--record goes with --run or --against"),
        (("ROW", "--against", "nowhere"), "--against: no folder nowhere"),
        (("ROW", "--run", "--against", "runs"), "give either --run or --against"),
    ],
)
def test_bad_requests_are_one_line(cli: Cli, here: Path, row: str, arguments: tuple[str, ...], message: str) -> None:
    assert message in one_error(cli("reproduce", *(row if each == "ROW" else each for each in arguments)))


# submit and validate


def test_from_a_row_to_a_validated_row(cli: Cli, here: Path, row: str) -> None:
    answer = cli("submit", row, "--out", "mine")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("mine: 2 bundles; check with `lnlbench validate mine`")
    answer = cli("validate", "mine")
    assert (answer.code, answer.out) == (0, "2 of 2 readable bundles validated, 0 in part; 0 mismatches\n")

    # What the page about submissions tells the maintainers to do.
    shutil.rmtree(here / "leaderboards")
    shutil.copytree(here / "mine" / "bundles", here / "leaderboards" / "measured" / "bundles")
    assert cli("score").code == 0
    assert [each["trust"] for each in board(here)] == ["claimed"]
    assert cli("validate", "leaderboards/measured", "--record").code == 0
    assert [each["trust"] for each in board(here)] == ["validated"]
    assert cli("score").code == 0
    assert [each["trust"] for each in board(here)] == ["validated"]

    assert "a submission overwrites nothing" in one_error(cli("submit", row, "--out", "mine"))
    assert "is a submission" in one_error(cli("validate", "mine", "--record"))


def test_a_run_that_was_touched_is_not_submitted(cli: Cli, here: Path) -> None:
    (first, _) = sorted((here / "runs").rglob("result.json"))
    first.write_text(first.read_text().replace('"best":', '"best": 1.0, "worst":'))
    answer = cli("submit", "runs", "--out", "mine")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("refused: ") == 1
    assert "1 of 2 refused, so nothing was written" in answer.err
    assert not (here / "mine").exists()


def forge(here: Path, change: Change, predictions: bytes | None = None) -> Path:
    """Make a submission that fits together in itself, of a real run with a changed record."""
    source = next((here / "leaderboards" / "measured" / "bundles" / "digits-sym").iterdir())
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.name != "manifest.json"}
    record = json.loads(files["run.json"])
    change(record)
    record["cell"] = cell_id(record["spec"])
    files["run.json"] = json.dumps(record).encode()
    files["predictions.npz"] = predictions or files["predictions.npz"]
    folder = here / "forged" / "bundles" / record["spec"]["suite"] / record["cell"]
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(bundle.manifest(files))
    bundle.verify(folder)
    return here / "forged"


def at(path: str, value: object) -> Change:
    """Return the change of one value by its dotted path."""

    def change(record: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            record = record[name]
        record[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("spec.suite", "digits-mine"), "suite: digits-mine is not installed here"),
        (at("spec.suite_version", 2), "suite_version: 2, expected is 1"),
        (at("spec.task", "0.41"), "unknown task of suite 'digits-sym' '0.41'"),
        (at("spec.task", "0.4"), "task: 0.4, expected is 0.40"),
        (at("spec.noise.rate", 0.1), "noise.rate: 0.1, expected is 0.4"),
        (at("spec.views.weak.ops", []), "views.weak.ops: [], expected is [{"),
        (at("spec.numerics", 0), "numerics: 0, expected is 1"),
        (at("spec.method.config.momentum", 0.1), "method.config.momentum: 0.1, expected is 0.9"),
        (at("spec.method.changed.lr", 1), "unknown option of ce (in --set) 'lr'"),
        (at("spec.reduced", []), "reduced: [], expected is ['2 of 40 epochs'"),
        (at("spec.method.networks", 2), "method.networks: 2, expected is 1"),
        (at("spec.seed", -1), "seed: negative"),
        (at("data.digest", "0" * 64), f"data.digest: {'0' * 64}, expected is"),
        (at("data.image_size", 9), "data.image_size: 9, expected is 8"),
        (at("noise.digest", "0" * 64), f"noise.digest: {'0' * 64}, expected is"),
        (at("noise.confusion", None), "noise.confusion: None, expected is [["),
    ],
)
def test_a_mismatch_is_one_line(cli: Cli, here: Path, change: Change, message: str) -> None:
    answer = cli("validate", forge(here, change))
    first, *rest = answer.out.splitlines()
    assert answer.code == 1
    assert first.startswith(f"mismatch: {here / 'forged'}")
    assert message in first
    assert rest == ["0 of 1 readable bundles validated, 0 in part; 1 mismatches"]


def test_invented_test_labels_are_found(cli: Cli, here: Path) -> None:
    source = next((here / "leaderboards" / "measured" / "bundles").rglob("predictions.npz"))
    with np.load(source) as arrays:
        held = dict(arrays)
    order = np.arange(len(held["test_labels"]))[::-1]
    held |= {"test_labels": held["test_labels"][order], "predictions": held["predictions"][:, order]}
    target = io.BytesIO()
    np.savez_compressed(target, **held)
    answer = cli("validate", forge(here, lambda _: None, target.getvalue()))
    assert answer.code == 1
    assert "predictions: test labels are not those of digits" in answer.out


def test_scores_that_do_not_follow_are_found(cli: Cli, here: Path, row: str) -> None:
    cli("submit", row, "--out", "mine")
    path = next((here / "mine").rglob("run.json"))
    path.write_text(re.sub(r'"last10": 0\.\d+', '"last10": 0.99', path.read_text()))
    answer = cli("validate", "mine")
    assert answer.code == 1
    assert "scores.last10 is 0.99, recomputed it is" in answer.out
    assert answer.out.count("mismatch: ") == 1
    assert "1 of 1 readable bundles validated, 0 in part; 1 mismatches" in answer.out


def test_what_could_not_be_checked_is_said(
    cli: Cli, workplace: Path, fabricate: ModuleType, registry: Registry, store: LocalDataStore
) -> None:
    request = Request(methods=["ce"], suites=["cifar10-sym"], tasks=["0.50"], seeds=[1], epochs=3)
    (cell,) = plan(request, registry, store).cells
    unknown = cell.model_copy(update={"method": cell.method.model_copy(update={"version": "9.9"})})
    for each in (cell, unknown):
        fabricate.make_run(workplace / "runs", each)
    assert cli("submit", "runs", "--out", "mine").code == 0
    answer = cli("validate", "mine", "--data", "nothing")
    assert answer.code == 0, answer.out
    lines = answer.out.splitlines()
    assert sum("data and noisy labels, since the data are not here: " in line for line in lines) == 2
    assert sum("method ce of lnlbench-ce 9.9 is here as of lnlbench-ce 0.1.0" in line for line in lines) == 1
    assert all(line.startswith("not checked: ") for line in lines[:-1])
    assert lines[-1] == "0 of 2 readable bundles validated, 2 in part; 0 mismatches"


def test_a_folder_that_is_no_submission(cli: Cli, here: Path) -> None:
    assert "name a submission or a board" in one_error(cli("validate", "runs"))
