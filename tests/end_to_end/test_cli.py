"""Every command as users meet it."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import lnlbench

SCRIPT = Path(sys.executable).with_name("lnlbench")
RUN = ("run", "--method", "ce", "--suite", "digits-sym", "--task", "0.4", "--seeds", "1", "--limit-train", "150")
SHORT = (*RUN, "--epochs", "2", "--executor", "inline")
Cli = Callable[..., Any]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_error(answer: Any, code: int = 2) -> str:
    """What a failed command said: nothing but one line, on standard error."""
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.count("\n") == 1, answer.err
    assert answer.err.startswith("lnlbench: error: ")
    assert "Traceback" not in answer.err
    return str(answer.err.removeprefix("lnlbench: error: ").rstrip())


def test_a_run_is_scored_and_its_second_issue_runs_nothing(cli: Cli, cli_process: Cli, workplace: Path) -> None:
    command = (*RUN, "--epochs", "2")
    # Whoever works in a folder that holds something named like a package still runs what is installed.
    (workplace / "lnlbench").mkdir()
    (workplace / "lnlbench" / "__init__.py").write_text("raise ImportError('not the one that is installed')")
    first = cli_process(*command)
    assert first.code == 0, first.err
    assert "ce digits-sym@0.40 seed 1: started on cpu" in first.err
    assert "epoch 2/2, test accuracy" in first.err
    assert "ce (reduced)" in first.out
    told = " ".join(first.out.split())
    assert "2 of 40 epochs, 150 of 1437 training images" in told
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    (row,) = csv.DictReader(board.read_text().splitlines())
    assert (row["method"], row["task"], row["n"], row["seeds"]) == ("ce", "0.40", "1", "1")
    assert row["reduced"] == "2 of 40 epochs; 150 of 1437 training images"
    (result,) = (workplace / "runs").rglob("result.json")
    scores = json.loads(result.read_text())["scores"]
    for column, score in (("last10_mean", "last10"), ("last_mean", "last"), ("best_mean", "best")):
        assert float(row[column]) == pytest.approx(100 * scores[score], abs=0.005)

    before = files_in(workplace)
    began = time.monotonic()
    second = cli(*command)
    assert time.monotonic() - began < 30
    assert (second.code, second.err) == (0, "1 of 1 cells are finished already\n")
    assert second.out == first.out
    assert files_in(workplace) == before


def test_the_same_cell_is_the_same_in_this_process(cli: Cli, workplace: Path) -> None:
    # Training here and in a worker differ in nothing: the cell's id and its predictions say so.
    assert cli(*SHORT).code == 0
    (folder,) = (workplace / "runs" / "digits-sym" / "0.40" / "ce").iterdir()
    again = cli(*SHORT, "--runs", "others", "--leaderboards", "elsewhere")
    assert again.code == 0
    twin = workplace / "others" / "digits-sym" / "0.40" / "ce" / folder.name
    assert (twin / "predictions.npz").read_bytes() == (folder / "predictions.npz").read_bytes()
    assert f"leaderboard: {Path('elsewhere', 'measured', 'digits-sym.csv')}\n" in again.out


def test_run_as_json(cli: Cli) -> None:
    answer = cli(*SHORT, "--json")
    assert answer.code == 0
    (row,) = json.loads(answer.out)
    assert (row["method"], row["task"], row["n"]) == ("ce", "0.40", 1)


def test_a_dry_run_writes_nothing(cli: Cli, workplace: Path) -> None:
    answer = cli(*RUN, "--method", "dividemix", "--epochs", "2", "--seeds", "1-3", "--dry-run")
    assert answer.code == 0
    assert files_in(workplace) == {}
    assert not list(workplace.iterdir())
    assert re.search(r"ce\s+digits-sym@0\.40\s+1 2 3\s+2 \(reduced\)\s+no earlier run\s+to do", answer.out)
    assert "6 cells, 6 to run, 12 epochs" in answer.out
    rows = json.loads(cli(*RUN, "--dry-run", "--json").out)
    assert [(row["method"], row["seed"], row["done"], row["epochs"]) for row in rows] == [("ce", 1, False, 40)]
    assert rows[0]["reduced"] == ["150 of 1437 training images"]


def test_a_dry_run_tells_what_is_done_and_how_long_the_rest_takes(cli: Cli) -> None:
    assert cli(*SHORT).code == 0
    rows = json.loads(cli(*SHORT, "--seeds", "1,2", "--dry-run", "--json").out)
    assert [row["done"] for row in rows] == [True, False]
    assert rows[1]["estimated_seconds"] > 0
    assert "1 of 2 finished" in cli(*SHORT, "--seeds", "1,2", "--dry-run").out


USAGE = {
    "method": ((*RUN, "--method", "dividemx"), "unknown method 'dividemx'; did you mean 'dividemix'?"),
    "suite": ((*RUN, "--suite", "digits-sim"), "unknown suite 'digits-sim'; did you mean 'digits-sym'"),
    "task": ((*RUN, "--task", "0.44"), "unknown task of suite 'digits-sym' '0.44'; did you mean '0.40'"),
    "suite of a task": ((*RUN, "--task", "digits-sy@0.40"), "did you mean 'digits-sym'?"),
    "option": ((*RUN, "--set", "momentun=1"), "unknown option of ce (in --set) 'momentun'; did you mean 'momentum'?"),
    "type": ((*RUN, "--set", "momentum=much"), "ce: option momentum: "),
    "range": ((*RUN, "--set", "momentum=1.5"), "ce: option momentum: Input should be less than 1 (got '1.5')"),
    "form": ((*RUN, "--set", "momentum"), "--set 'momentum' is not of the form option=value"),
    "seeds": ((*RUN, "--seeds", "one"), "seeds 'one' are not of the form 1,2,5-7"),
    "limit": ((*RUN, "--limit-train", "0"), "--limit-train 0: at least one image is needed"),
    "epochs": ((*RUN, "--epochs", "0"), "Invalid value for '--epochs'"),
    "precision": ((*RUN, "--precision", "fp16"), "Invalid value for '--precision'"),
    "executor": ((*RUN, "--executor", "locl"), "unknown executor 'locl'; did you mean 'local'?"),
    "device": ((*RUN, "--device", "cuda:99"), "device 'cuda:99' is not available here; available: auto, cpu"),
    "missing option": (("run", "--suite", "digits-sym"), "Missing option '--method'"),
    "run option": ((*RUN, "--epoch", "2"), "No such option"),
    "command": (("rum",), "unknown command 'rum'; did you mean 'run'"),
    "kind": (("list", "metods"), "unknown kind 'metods'; did you mean 'methods'?"),
    "name": (("info", "dividemx"), "unknown name 'dividemx'; did you mean 'dividemix'?"),
    "level": (("info", "digits-sym@0.99"), "unknown task of suite 'digits-sym' '0.99'"),
    "backbone": (("info", "timm:resnet19"), "unknown timm model 'resnet19'; did you mean 'resnet18'"),
    "dataset": (("prepare", "cifar1O"), "unknown dataset or suite 'cifar1O'; did you mean 'cifar10'"),
    "editions": (("prepare", "digits", "cifar10", "--edition", "x"), "--edition registers one dataset at a time"),
    "edition": (("prepare", "digits", "--edition", "x"), "dataset 'digits' has only its canonical edition"),
    "noise task": (("noise", "show", "digits-sym"), "'digits-sym' is not a task; write SUITE@LEVEL"),
    "noise suite": (("noise", "show", "digit-sym@0.4"), "unknown suite 'digit-sym'; did you mean 'digits-sym'"),
    "scored folder": (("score", "nowhere"), "no folder nowhere"),
    "scored suite": (("score", "--suite", "digits-sym"), "digits-sym"),
}


@pytest.mark.parametrize(("command", "message"), USAGE.values(), ids=USAGE.keys())
def test_wrong_requests_exit_with_2_and_one_line(
    cli: Cli, workplace: Path, command: tuple[str, ...], message: str
) -> None:
    # For each option the later one counts, except for those that may be repeated.
    changed = command[len(RUN) :]
    if changed and changed[0] in ("--method", "--suite", "--task"):
        position = RUN.index(changed[0])
        command = (*RUN[:position], *changed, *RUN[position + 2 :])
    assert message in one_error(cli(*command))
    assert "result.json" not in {path.name for path in workplace.rglob("*")}


def test_a_suite_of_the_user_with_an_impossible_rate(cli: Cli, plugins: Any, tmp_path: Path) -> None:
    usual = (Path(lnlbench.__file__).parent / "builtin" / "suites" / "digits-sym.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(usual.replace('"digits-sym"', '"mine"').replace("rate = 0.40", "rate = 40"))
    source = f"""
        from lnlbench.api import SuiteFile, hookimpl

        @hookimpl
        def lnlbench_suites():
            return [SuiteFile(path={str(file)!r})]
    """
    plugins.add("lnlbench-mine", "mine_suites", source)
    answer = cli("run", "--method", "ce", "--suite", "mine")
    warning, error = answer.err.splitlines()
    assert answer.code == 2
    assert f"{file}: tasks.1.rate: input should be less than or equal to 1" in warning
    assert warning.startswith("lnlbench: warning: plugin 'mine_suites' of lnlbench-mine 1.0 is broken: ")
    assert error.startswith("lnlbench: error: unknown suite 'mine'")


def test_a_diverged_cell_fails_the_command_and_the_others_are_scored(cli: Cli, workplace: Path) -> None:
    command = list(SHORT)
    command[command.index("ce")] = "ce,dividemix"
    answer = cli(*command, "--set", "ce.learning_rate=1e38")
    assert answer.code == 1
    assert re.search(r"^diverged: ce digits-sym@0.40 seed 1: loss is (nan|inf) at epoch 0, step \d+$", answer.err, re.M)
    assert answer.err.endswith("1 of 2 cells did not finish; the others are scored\n")
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    rows = {row["method"]: row for row in csv.DictReader(board.read_text().splitlines())}
    assert (rows["ce"]["n_diverged"], rows["ce"]["last10_mean"]) == ("1", "")
    assert 0 < float(rows["dividemix"]["last10_mean"]) <= 100
    # It is a result: it is told again, and not tried again.
    again = cli(*command, "--set", "ce.learning_rate=1e38")
    assert again.code == 1
    assert again.err.startswith("2 of 2 cells are finished already\n")


FAILING = """
    from lnlbench.api import Method, MethodConfig, MethodEntry, hookimpl

    @hookimpl
    def lnlbench_methods():
        return [MethodEntry(name="failing", target="failing_plugin:Failing", summary="For tests.")]

    class Failing(Method):
        Config = MethodConfig

        @classmethod
        def preset(cls, task):
            return MethodConfig(epochs=2, batch_size=64, backbone=task.default_backbone)

        def fit(self, task, run):
            raise ValueError("no [bold]luck[/bold]")

        def predict(self, images):
            return None
"""


def test_a_failed_cell_is_told_and_leaves_valid_json(cli: Cli, plugins: Any) -> None:
    plugins.add("lnlbench-failing", "failing_plugin", FAILING, version="0.3")
    command = (*SHORT[:2], "failing", *SHORT[3:])
    answer = cli(*command, "--json")
    assert answer.code == 1
    assert json.loads(answer.out) == []
    told = "failed: failing digits-sym@0.40 seed 1: failing (lnlbench-failing 0.3) failed: ValueError: no [bold]luck"
    assert told in answer.err
    mixed = cli(*SHORT[:2], "failing,ce", *SHORT[3:])
    assert mixed.code == 1
    assert "1 of 2 cells did not finish; the others are scored" in mixed.err
    assert "ce (reduced)" in mixed.out


def test_a_declined_task_is_told(cli: Cli, plugins: Any) -> None:
    supports = """
        @classmethod
        def supports(cls, task):
            return "not today"
    """
    plugins.add("lnlbench-failing", "failing_plugin", FAILING + supports)
    answer = cli(*SHORT[:2], "failing,ce", *SHORT[3:], "--dry-run")
    assert answer.code == 0
    assert answer.err == "skipped: failing on digits-sym@0.40: not today\n"
    nothing = one_error(cli(*SHORT[:2], "failing", *SHORT[3:]))
    assert nothing == "nothing to run: failing on digits-sym@0.40: not today"


INFO = {
    "ce": ("method", ["learning_rate", "(float) Initial learning rate", "lnlbench-ce"]),
    "digits-sym": ("suite", ["digits-sym@0.40: nominal rate 0.4", "digits-sym-incl", "small-cnn", "seeds"]),
    "digits-sym@0.4": ("task", ["digits-sym@0.40", "ce: epochs=40", "dividemix: epochs=40", "1437"]),
    "digits": ("dataset", ["8 x 8 x 1", "CC BY 4.0", "digits-sym"]),
    "cifar10": ("dataset", ["sha256:", "32 x 32 x 3", "https://"]),
    "symmetric": ("noise", ["exclusive", "(default: ", "cifar10-sym"]),
    "small-cnn": ("backbone", ["parameters", "(10 classes, 3 x 32 x 32 images)"]),
    "timm:": ("backbone", ["timm:resnet50"]),
    "local": ("executor", ["worker process"]),
}


@pytest.mark.parametrize(("name", "expected"), INFO.items(), ids=INFO.keys())
def test_info_of_each_kind(cli: Cli, name: str, expected: tuple[str, list[str]]) -> None:
    kind, parts = expected
    answer = cli("info", name)
    assert (answer.code, answer.err) == (0, "")
    unwrapped = " ".join(answer.out.split())
    for part in parts:
        assert part in unwrapped
    described = json.loads(cli("info", name, "--json").out)
    assert [each["kind"] for each in described] == [kind]


def test_info_counts_the_parameters_of_a_timm_model(cli: Cli) -> None:
    (facts,) = json.loads(cli("info", "timm:resnet18", "--json").out)
    assert facts["parameters"].startswith("11,181,642 ")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", {"ce", "dividemix"}),
        ("method", {"ce", "dividemix"}),
        ("suites", {"digits-sym", "cifar100-asym-block5"}),
        ("datasets", {"digits", "fashion", "cifar10", "cifar100"}),
        ("noise", {"symmetric", "asymmetric", "pair"}),
        ("backbones", {"preact-resnet18", "cnn7", "small-cnn", "timm:"}),
        ("executors", {"local", "inline"}),
        ("plugins", {"builtin", "ce", "dividemix"}),
    ],
)
def test_lists(cli: Cli, kind: str, names: set[str]) -> None:
    rows = json.loads(cli("list", kind, "--json").out)
    assert {row["name"] for row in rows} >= names
    text = cli("list", kind)
    assert (text.code, text.err) == (0, "")
    for row in rows:
        assert re.search(rf"^{re.escape(row['name'])}\s", text.out, re.M)
    if kind == "suites":
        (suite,) = [row for row in rows if row["name"] == "digits-sym"]
        assert suite["tasks"] == ["0.20", "0.40", "0.60"]


def test_noise_is_shown(cli: Cli) -> None:
    text = cli("noise", "show", "digits-sym@0.4")
    facts = json.loads(cli("noise", "show", "digits-sym@0.4", "--json").out)
    assert text.code == 0
    assert facts["variant"] == "symmetric(count=exact,replacement=exclusive)"
    assert (facts["nominal_rate"], facts["num_train"], facts["num_changed"]) == (0.4, 1_437, 574)
    assert facts["realised_rate"] == pytest.approx(574 / 1_437)
    confusion = np.array(facts["confusion"])
    assert confusion.sum() - np.trace(confusion) == 574
    np.testing.assert_allclose(np.array(facts["intended_matrix"]).sum(1), 1.0)
    for part in (facts["variant"], facts["digest"], "0.3994 (574 of 1437 labels)"):
        assert part in text.out
    other = json.loads(cli("noise", "show", "digits-sym@0.4", "--seed", "2", "--json").out)
    assert other["digest"] != facts["digest"]


def test_exported_noise_equals_the_realisation(cli: Cli, workplace: Path, data_root: Path) -> None:
    answer = cli("noise", "export", "digits-asym@0.30", "labels.csv", "--seed", "5")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("labels.csv: 1437 labels, realised rate 0.")
    with (workplace / "labels.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    index, given, true, changed = np.array([[int(value) for value in row[:4]] for row in rows]).T
    (stored,) = (data_root / "noise" / "digits-asym@1" / "0.30").glob("seed-5-*/labels.npy")
    np.testing.assert_array_equal(index, np.arange(1_437))
    np.testing.assert_array_equal(given, np.load(stored))
    np.testing.assert_array_equal(changed, given != true)
    facts = json.loads(cli("noise", "show", "digits-asym@0.30", "--seed", "5", "--json").out)
    assert changed.sum() == facts["num_changed"]


def test_prepare(cli: Cli, workplace: Path) -> None:
    answer = cli("prepare", "digits", "digits-sym")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "digits: ready (canonical edition, the installed package)\n"
    answer = cli("prepare", "cifar10", "--offline", "--data", "nothing")
    assert (answer.code, answer.out) == (1, "")
    problem, *belongs, count = answer.err.splitlines()
    assert str(Path("nothing", "cifar10", "cifar-10-python.tar.gz")) in problem
    assert all("https://" in line for line in (problem, belongs[-1]))
    assert count == "1 of 1 not ready"
    assert not (workplace / "nothing").exists()


def test_a_run_without_its_data_stops_before_any_cell(cli: Cli, workplace: Path) -> None:
    command = ("run", "--method", "ce", "--suite", "cifar10-sym", "--offline", "--data", "nothing")
    assert "cifar-10-python.tar.gz" in one_error(cli(*command), code=1)
    assert "spec.json" not in {path.name for path in workplace.rglob("*")}


def test_doctor(cli: Cli, workplace: Path) -> None:
    text = cli("doctor", "--offline")
    facts = json.loads(cli("doctor", "--json").out)
    assert text.code == (1 if any(each["state"] == "problem" for each in facts) else 0)
    by_what = {each["what"]: each for each in facts}
    for what in ("python", "torch", "cpu", "method ce", "method dividemix", "dataset digits", "run folders"):
        assert by_what[what]["state"] == "ok", by_what[what]
        assert f"ok       {what}: " in text.out
    # Data that are not there are no problem until somebody wants them.
    assert by_what["dataset cifar10"]["state"] == "note"
    assert by_what["dataset cifar10"]["advice"] == "lnlbench prepare cifar10"
    assert not list(workplace.iterdir())


def test_doctor_calls_an_unusable_folder_a_problem(cli: Cli, workplace: Path) -> None:
    (workplace / "file").write_text("")
    facts = {each["what"]: each for each in json.loads(cli("doctor", "--json", "--data", "file/data").out)}
    assert facts["data folder"]["state"] == "problem"


def test_score_rebuilds_byte_for_byte(cli: Cli, workplace: Path) -> None:
    assert cli(*SHORT).code == 0
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    original = board.read_bytes()
    board.unlink()
    answer = cli("score")
    assert answer.code == 0
    assert answer.out == f"leaderboard: {Path('leaderboards', 'measured', 'digits-sym.csv')} (every bundle verified)\n"
    assert board.read_bytes() == original
    board.write_bytes(original[:-5] + b"99.99")
    assert cli("score", "--suite", "digits-sym").code == 0
    assert board.read_bytes() == original


def test_score_of_run_folders(cli: Cli, workplace: Path) -> None:
    assert cli(*SHORT).code == 0
    here = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    for _ in range(2):
        answer = cli("score", "runs", "--leaderboards", "copied")
        assert (answer.code, answer.err) == (0, "")
        assert (workplace / "copied" / "measured" / "digits-sym.csv").read_bytes() == here.read_bytes()
    (result,) = (workplace / "runs").rglob("result.json")
    result.unlink()
    unfinished = cli("score", "runs", "--leaderboards", "third")
    assert unfinished.code == 1
    assert unfinished.err.startswith(f"not scored: {result.parent.relative_to(workplace)}: ")


def test_a_file_in_place_of_a_folder(cli: Cli, workplace: Path) -> None:
    (workplace / "file").write_text("in the way")
    assert "is a file" in one_error(cli(*SHORT, "--runs", "file"))
    assert "cannot write" in one_error(cli(*SHORT, "--runs", "file/runs"), code=1)
    assert "is a file" in one_error(cli("score", "--leaderboards", "file"))
    blocked = cli(*SHORT, "--leaderboards", "file/board")
    assert blocked.code == 1
    assert "lnlbench: error: " in blocked.err.splitlines()[-1]
    assert "Traceback" not in blocked.err
    assert (workplace / "file").read_text() == "in the way"


def test_a_damaged_result_is_told_in_one_line(cli: Cli, workplace: Path) -> None:
    assert cli(*SHORT).code == 0
    (result,) = (workplace / "runs").rglob("result.json")
    result.write_text(result.read_text()[:100])
    assert "result.json is damaged" in one_error(cli(*SHORT), code=1)


@pytest.mark.parametrize("command", [(), ("noise",)], ids=["nothing", "a group"])
def test_no_command_is_answered_with_help(cli: Cli, command: tuple[str, ...]) -> None:
    answer = cli(*command)
    assert answer.code == 2
    assert (answer.out + answer.err).startswith("Usage: lnlbench")
    assert len(answer.err.splitlines()) > 5
    assert "error" not in answer.err


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"lnlbench, version {lnlbench.__version__}\n"


SLOW = """
    import time
    from lnlbench.api import Method, MethodConfig, MethodEntry, hookimpl

    @hookimpl
    def lnlbench_methods():
        return [MethodEntry(name="slow", target="slow_plugin:Slow", summary="For tests.")]

    class Slow(Method):
        Config = MethodConfig

        @classmethod
        def preset(cls, task):
            return MethodConfig(epochs=4, batch_size=64, backbone=task.default_backbone)

        def fit(self, task, run):
            self.network = task.network("net", self.config.backbone)
            run.track(network=self.network)
            import os
            for epoch in run.epochs(4):
                if epoch == 2 and not os.environ.get("HURRY"):
                    time.sleep(300)

        def predict(self, images):
            return self.network(images)
"""


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    for _ in range(1_200):
        if what():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it took longer than two minutes")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_resumed(
    cli: Cli, plugins: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    plugins.add("lnlbench-slow", "slow_plugin", SLOW)
    command = ["run", "--method", "slow", "--suite", "digits-sym", "--task", "0.4", "--seeds", "1"]
    process = subprocess.Popen(
        [SCRIPT, *command], cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(len(f.read_text().splitlines()) == 2 for f in workplace.rglob("metrics.jsonl")), process)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err.endswith("interrupted; issue the same command again to go on\n")
    assert "Traceback" not in err
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    monkeypatch.setenv("HURRY", "1")
    again = cli(*command, "--executor", "inline")
    assert again.code == 0, again.err
    assert re.search(r"resumed at epoch [12] of 4", again.err)
    (result,) = workplace.rglob("result.json")
    record = json.loads(result.read_text())
    assert (record["status"], record["resumed"]) == ("finished", 1)
    assert len((result.parent / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "arguments", [("list", "suites"), ("list", "suites", "--json"), ("run", "--help")], ids=" ".join
)
def test_a_reader_that_leaves_is_no_failure(workplace: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([SCRIPT, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_head_of_a_list(workplace: Path) -> None:
    pipeline = f"set -o pipefail; '{SCRIPT}' list suites | head -1"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["name", "tasks", "dataset", "title", "provider"]


@pytest.fixture
def in_terminal(workplace: Path) -> Callable[..., tuple[int, str]]:
    """Run a command in a terminal of 80 columns; returns its exit code and all lines the terminal ever showed."""

    def read(terminal: int) -> Iterator[bytes]:
        while True:
            try:
                chunk = os.read(terminal, 65_536)
            except OSError:  # Linux says so when the other side has closed
                return
            if not chunk:
                return
            yield chunk

    def run(*arguments: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        process = subprocess.Popen(
            [SCRIPT, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=workplace,
            env={**environment, "TERM": "xterm"},
        )
        os.close(theirs)
        shown = b"".join(read(ours)).decode()
        os.close(ours)
        return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")

    return run


def test_eighty_columns(cli: Cli, in_terminal: Callable[..., tuple[int, str]]) -> None:
    made = cli(*SHORT)
    assert made.code == 0
    (row,) = json.loads(cli(*SHORT, "--json").out)
    for arguments in (SHORT, ("list", "suites"), ("info", "ce")):
        code, shown = in_terminal(*arguments)
        assert code == 0, shown
        assert "Traceback" not in shown
        assert "…" not in shown
        assert max(len(line) for line in shown.splitlines()) <= 80
    _, shown = in_terminal(*SHORT)
    numbers = re.findall(r"\d+\.\d\d", shown)
    for field in ("last10_mean", "last_mean", "best_mean", "gap_mean"):
        assert f"{row[field]:.2f}" in numbers


def test_the_package_runs_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "lnlbench", "list", "methods"], capture_output=True, text=True, check=True
    )
    assert "dividemix" in answer.stdout
    assert answer.stderr == ""
