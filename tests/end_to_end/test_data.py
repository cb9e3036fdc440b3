"""Getting data ready and using one's own, as users meet it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]
SHORT = ("--seeds", "1", "--epochs", "2", "--set", "backbone=small-cnn")


def one_error(answer: Any) -> str:
    """What a refused command said: nothing but one line, on standard error."""
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1, answer.err
    return str(answer.err.removeprefix("lnlbench: error: ").rstrip())


def rows_of(workplace: Path, suite: str) -> list[dict[str, str]]:
    board = workplace / "leaderboards" / "measured" / f"{suite}.csv"
    return list(csv.DictReader(board.read_text().splitlines()))


@pytest.fixture
def photos(workplace: Path, trees: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small images of three classes in the current folder, and a data folder in which nothing has a name yet."""
    monkeypatch.setenv("LNLBENCH_DATA", str(workplace / "data"))
    trees.own_images(workplace / "photos", train=10, test=4)
    return workplace / "photos"


def test_prepare_says_what_is_missing_and_whom_to_ask(cli: Cli, workplace: Path) -> None:
    answer = cli("prepare", "clothing1m", "digits", "--data", workplace / "data", "--offline")
    assert (answer.code, answer.out) == (1, "digits: ready (canonical edition, the installed package)\n")
    lines = answer.err.splitlines()
    assert lines[0].startswith("not ready: clothing1m: no noisy_label_kv.txt in ")
    assert lines[1] == f"  what belongs into {workplace / 'data' / 'clothing1m'}:"
    assert all(line.startswith("  not there  ") for line in lines[2:-1])
    assert "signed agreement" in lines[2]
    assert lines[-1] == "1 of 2 not ready"


def test_prepare_takes_tasks_and_released_labels(cli: Cli, workplace: Path) -> None:
    data = ("--data", workplace / "data", "--offline")
    for name, files in (("cifar-n", {"CIFAR-10_human.pt", "CIFAR-100_human.pt"}), ("seal", {"dependent0.4.csv"})):
        answer = cli("prepare", name, *data)
        assert answer.code == 1
        assert {file for file in files if f"  not there  {file}: " in answer.err} == files
    answer = cli("prepare", "cifar10-idn-seal@0.30", *data)
    assert "dependent0.3.csv" in answer.err
    assert "dependent0.4.csv" not in answer.err
    assert "did you mean 'cifar10' or 'cifar10n'" in one_error(cli("prepare", "cifar10m"))


def test_verify_finds_what_changed(cli: Cli, workplace: Path, trees: ModuleType) -> None:
    data = ("--data", workplace / "data", "--offline")
    folder = workplace / "data" / "animal10n"
    trees.animal10n(folder)
    assert cli("prepare", "animal10n", "--edition", "few", *data).code == 0
    sound = cli("prepare", "animal10n", "--verify", *data)
    assert sound.code == 0, sound.err
    assert "30 training and 10 test images, digest " in sound.out

    # The same size and the same time of change: only reading it again can tell.
    victim = folder / "training" / "3_img_13.jpg"
    content, times = bytearray(victim.read_bytes()), victim.stat()
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cli("prepare", "animal10n", *data).code == 0
    damaged = cli("prepare", "animal10n", "--verify", *data)
    assert damaged.code == 1
    assert "animal10n" in damaged.err


def test_own_images_as_they_are(cli_process: Cli, photos: Path, workplace: Path) -> None:
    """In worker processes, which have never heard of the suite."""
    answer = cli_process("run", "--method", "ce,dividemix", "--dataset", "folder:photos", *SHORT)
    assert answer.code == 0, answer.err
    rows = rows_of(workplace, "folder-photos")
    assert [row["method"] for row in rows] == ["ce", "dividemix"]
    for row in rows:
        assert (row["task"], row["edition"], row["train_images"], row["test_images"]) == ("full", "own", "30", "12")
        assert (row["realised_rate_mean"], row["nominal_rate"], row["noise_seeds"]) == ("", "", "")
        assert (row["clean_auc_mean"], row["known_truth"]) == ("", "0.00"), "nobody knows which labels are right"
    kept = [path for path in (workplace / "leaderboards").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if str(workplace).encode() in path.read_bytes()], "no path of this machine"


def test_own_images_with_noise_and_with_noisy_labels(cli: Cli, photos: Path, workplace: Path) -> None:
    command = ("run", "--method", "ce", "--dataset", "folder:photos", "--executor", "inline", *SHORT)
    noisy = cli(*command, "--noise", "symmetric", "--rate", "0.2,0.4", "--noise-set", "count=exact-per-class")
    assert noisy.code == 0, noisy.err
    (board,) = (workplace / "leaderboards" / "measured").glob("folder-photos-symmetric-*.csv")
    rows = list(csv.DictReader(board.read_text().splitlines()))
    assert [(row["task"], row["realised_rate_mean"]) for row in rows] == [("0.20", "20.00"), ("0.40", "40.00")]

    (photos / "labels.csv").write_text("file,given_label\ncat/000.jpg,dog\ncat/001.png,2\nowl/003.png,owl\n")
    own = cli(*command)
    assert own.code == 0, own.err
    (row,) = rows_of(workplace, "folder-photos")
    assert row["realised_rate_mean"] == f"{100 * 2 / 30:.2f}"
    assert "noisy already" in cli(*command, "--noise", "symmetric", "--rate", "0.2").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --suite or --dataset"),
        (["--suite", "digits-sym", "--dataset", "digits"], "give either --suite or --dataset"),
        (["--suite", "digits-sym", "--rate", "0.2"], "--noise, --rate, --noise-set and --data-set go with --dataset"),
        (["--dataset", "digits", "--noise", "symmetric"], "--noise symmetric needs a rate, e.g. --rate 0.4"),
        (["--dataset", "digits", "--noise", "symetric", "--rate", "0.2"], "did you mean 'symmetric'"),
        (["--dataset", "digits", "--rate", "0.2"], "--rate goes with noise that is drawn; 'own' is not"),
        (["--dataset", "digits", "--noise", "pair", "--rate", "x"], "--rate 'x' is not of the form 0.2,0.4"),
        (["--dataset", "digits", "--noise", "pair", "--rate", "1.2"], "--rate 1.2 is not between 0 and 1"),
        (["--dataset", "digits", "--data-set", "size=3"], "dataset 'digits': option 'size'"),
        (["--dataset", "digits", "--noise", "pair", "--rate", "0.2", "--noise-set", "a=1"], "option of pair noise"),
        (["--dataset", "digit"], "did you mean 'digits'"),
    ],
)
def test_wrong_requests_are_one_line(arguments: list[str], said: str, cli: Cli) -> None:
    assert said in one_error(cli("run", "--method", "ce", *arguments))


def test_a_folder_that_is_not_there(cli: Cli, photos: Path) -> None:
    answer = cli("run", "--method", "ce", "--dataset", "folder:nowhere")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "nowhere: no such folder; expected train/<class>/*" in answer.err


def test_decoded_images_change_nothing_but_speed(cli: Cli, photos: Path, workplace: Path, trees: ModuleType) -> None:
    trees.own_images(workplace / "large", train=4, test=2, size=(90, 70))
    data = ("--data-set", "image_size=72")
    command = ("run", "--method", "ce", "--dataset", "folder:large", *data, "--executor", "inline", *SHORT)
    first = cli(*command, "--runs", workplace / "one")
    assert first.code == 0, first.err
    decoded = cli("prepare", "folder:large", "--decode")
    assert decoded.code == 0, decoded.err
    assert "decoded images: " in decoded.out
    second = cli(*command, "--runs", workplace / "two")
    assert second.code == 0, second.err
    (one,), (two,) = ((workplace / runs).rglob("predictions.npz") for runs in ("one", "two"))
    with np.load(one) as left, np.load(two) as right:
        assert left["predictions"].tolist() == right["predictions"].tolist()


def test_labels_of_every_kind_are_shown_and_exported(cli: Cli, workplace: Path) -> None:
    shown = cli("noise", "show", "digits-openset@sym@0.20")
    assert shown.code == 0, shown.err
    assert "out of distribution" in shown.out
    exported = cli("noise", "export", "digits-openset@sym@0.20", workplace / "labels.csv")
    assert exported.code == 0, exported.err
    rows = list(csv.DictReader((workplace / "labels.csv").read_text().splitlines()))
    outside = [row for row in rows if row["ood"] == "1"]
    assert outside
    assert {row["true_label"] for row in outside} == {"8", "9"}
    assert all(row["changed"] == "1" and int(row["given_label"]) < 8 for row in outside)
