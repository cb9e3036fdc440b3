from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from lnlbench.errors import DataError, LnlbenchError, StorageError
from lnlbench.files import OsFs
from lnlbench.leaderboard import bundle, store
from lnlbench.leaderboard.content import JSON_LIMIT
from lnlbench.records import CellSpec, RunRecord

Run = Callable[..., Path]
Spec = Callable[..., CellSpec]


def refused(folder: Path) -> str:
    """Return why ``verify`` refuses a bundle; fail if it does not, or in more than one line."""
    with pytest.raises(DataError) as caught:
        bundle.verify(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder.name) in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, files: dict[str, bytes], remake: bool) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if remake:
        rest = {name: data for name, data in files.items() if name != "manifest.json"}
        (folder / "manifest.json").write_bytes(bundle.manifest(rest))


def leftovers(board: Path) -> list[Path]:
    return [path for path in board.rglob("*") if path.suffix in (".stage", ".old", ".tmp")]


def test_a_bundle_holds_the_run_byte_for_byte(run: Run, board: Path) -> None:
    folder = run()
    added = bundle.add(folder, board)
    assert (added.outcome, added.agrees) == ("added", None)
    assert added.folder == board / "bundles" / "digits-sym" / added.cell
    kept = contents(added.folder)
    assert set(kept) == {"run.json", "metrics.jsonl.gz", "predictions.npz", "manifest.json"}
    assert kept["run.json"] == (folder / "result.json").read_bytes()
    assert kept["predictions.npz"] == (folder / "predictions.npz").read_bytes()
    bundle.verify(added.folder)
    assert bundle.read(added.folder) == RunRecord.model_validate_json(kept["run.json"])
    assert not leftovers(board)


def test_a_diverged_run_is_kept_without_predictions(run: Run, board: Path) -> None:
    added = bundle.add(run(diverged=True), board)
    bundle.verify(added.folder)
    assert bundle.read(added.folder).scores is None
    assert not (added.folder / "predictions.npz").exists()


@pytest.mark.parametrize("epochs", [1, 2, 9, 10, 11, 30])
def test_schedules_of_any_length_pass(run: Run, spec: Spec, board: Path, epochs: int) -> None:
    added = bundle.add(run(spec(config={"epochs": epochs})), board)
    bundle.verify(added.folder)
    assert bundle.read(added.folder).spec.method.config["epochs"] == epochs


def test_the_first_bundle_of_a_cell_stays_unless_told(run: Run, tmp_path: Path, board: Path) -> None:
    again = run().rename(tmp_path / "first")
    other = run(salt=1)
    bundle.add(again, board)
    kept = bundle.add(again, board)
    assert (kept.outcome, kept.agrees) == ("kept", True)
    before = contents(kept.folder)
    differing = bundle.add(other, board)
    assert (differing.outcome, differing.agrees) == ("kept", False)
    assert contents(kept.folder) == before
    replaced = bundle.add(other, board, replace=True)
    assert (replaced.outcome, replaced.agrees) == ("replaced", False)
    assert contents(kept.folder)["predictions.npz"] == (other / "predictions.npz").read_bytes()
    bundle.verify(kept.folder)
    assert not leftovers(board)


def test_a_damaged_bundle_is_reported_and_can_be_replaced(run: Run, board: Path) -> None:
    folder = run()
    added = bundle.add(folder, board)
    (added.folder / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"predictions\.npz"):
        bundle.add(folder, board)
    assert bundle.add(folder, board, replace=True).agrees is False
    bundle.verify(added.folder)


def test_an_unfinished_run_is_refused(tmp_path: Path, board: Path) -> None:
    with pytest.raises(DataError, match=r"no result\.json; finish the run"):
        bundle.add(tmp_path, board)
    assert not board.exists()


@pytest.mark.parametrize("missing", ["metrics.jsonl", "predictions.npz"])
def test_a_finished_run_needs_all_its_files(run: Run, board: Path, missing: str) -> None:
    folder = run()
    (folder / missing).unlink()
    with pytest.raises(DataError, match="the file is missing"):
        bundle.add(folder, board)
    assert not board.exists()


def change(data: bytes, path: str, value: object) -> bytes:
    """Set a value in JSON text by its dotted path."""
    root = json.loads(data)
    node = root
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    return json.dumps(root, indent=2).encode()


KINDS = (
    *("score", "best epoch", "spec", "cell", "accuracy", "inflated", "line", "selection", "noise", "status"),
    *("test images", "predictions", "labels", "epochs"),
)


def edit(rng: random.Random, files: dict[str, bytes], archive: Callable[..., bytes]) -> str:
    """Falsify something that recomputation must notice, in place; return what."""
    record = json.loads(files["run.json"])
    lines = [json.loads(line) for line in gzip.decompress(files["metrics.jsonl.gz"]).splitlines()]
    with np.load(io.BytesIO(files["predictions.npz"])) as arrays:
        labels, epochs, predictions = arrays["test_labels"], arrays["epochs"], arrays["predictions"].copy()
    kind = rng.choice(KINDS)
    if kind == "score":
        name = rng.choice(["last10", "last", "best"])
        shift = rng.choice([-1, 1]) * rng.uniform(1e-5, 0.2)
        files["run.json"] = change(files["run.json"], f"scores.{name}", record["scores"][name] + shift)
    elif kind == "best epoch":
        wrong = rng.choice([each for each in range(-3, 20) if each != record["scores"]["best_epoch"]])
        files["run.json"] = change(files["run.json"], "scores.best_epoch", wrong)
    elif kind == "spec":
        path, value = rng.choice(
            [
                ("seed", rng.randrange(2, 99)),
                ("noise.seed", rng.randrange(2, 99)),
                ("noise.rate", rng.random()),
                ("task", "0.60"),
                ("method.name", "mine"),
                ("method.version", f"0.{rng.randrange(2, 99)}"),
                ("method.config", record["spec"]["method"]["config"] | {"lr": rng.random()}),
                ("reduced", [f"epochs {rng.randrange(9)} of 40"]),
                ("precision", "bf16"),
            ]
        )
        files["run.json"] = change(files["run.json"], f"spec.{path}", value)
    elif kind == "cell":
        files["run.json"] = change(files["run.json"], "cell", f"{rng.getrandbits(64):016x}")
    elif kind in ("accuracy", "inflated"):
        epoch = rng.choice(epochs.tolist()) if kind == "accuracy" else rng.randrange(len(lines))
        old = lines[epoch]["test_accuracy"]
        # To lower an epoch whose predictions are not kept would move no score, so nothing could tell.
        lower = [old / 2 + 0.001] if kind == "accuracy" else []
        lines[epoch]["test_accuracy"] = rng.choice([*lower, 1.0, 2.0, -0.1, None, "0.5", 10**400])
    elif kind == "line":
        match rng.randrange(4):
            case 0:
                del lines[rng.randrange(len(lines))]
            case 1:
                lines.insert(0, lines[rng.randrange(len(lines))])
            case 2:
                lines[rng.randrange(len(lines))]["epoch"] = rng.randrange(100, 200)
            case _:
                lines.append({**lines[-1], "epoch": len(lines)})
    elif kind == "selection":
        name = rng.choice(list(record["selection"]))
        if rng.random() < 0.5:
            files["run.json"] = change(files["run.json"], f"selection.{name}", rng.uniform(2, 3))
        else:
            lines[rng.randrange(2, 12)]["selection"][name] += 0.5
    elif kind == "noise":
        path, value = rng.choice([("num_changed", 1), ("realised_rate", rng.random()), ("confusion", [[3, 2], [2, 3]])])
        files["run.json"] = change(files["run.json"], f"noise.{path}", value)
    elif kind == "predictions":
        row = rng.randrange(len(epochs))
        right = np.flatnonzero(predictions[row] == labels)
        changed = rng.sample(right.tolist(), rng.randrange(1, len(right)))
        predictions[row, changed] = (labels[changed] + 1) % 4
    elif kind == "labels":
        labels = np.roll(labels, 1) if rng.random() < 0.5 else (labels + 1).astype(labels.dtype)
    elif kind == "epochs":
        epochs = rng.choice([epochs[::-1], epochs + 1, epochs.astype(float), epochs[:-1]])
    elif kind == "status":
        files["run.json"] = change(files["run.json"], "status", rng.choice(["diverged", "good", None]))
    else:
        files["run.json"] = change(files["run.json"], "data.num_test", rng.randrange(51, 99))
    files["metrics.jsonl.gz"] = gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    if kind in ("predictions", "labels", "epochs"):
        files["predictions.npz"] = archive(labels, epochs, predictions)
    return kind


def test_a_thousand_edits_with_a_matching_manifest_are_caught(
    run: Run, board: Path, archive: Callable[..., bytes]
) -> None:
    folder = bundle.add(run(), board).folder
    good = contents(folder)
    rng = random.Random(0)
    caught = set()
    for _ in range(1000):
        files = dict(good)
        caught.add(edit(rng, files, archive))
        write(folder, files, remake=True)
        refused(folder)
    assert caught == set(KINDS)
    write(folder, good, remake=True)
    bundle.verify(folder)


def test_a_thousand_edits_without_a_new_manifest_are_caught(run: Run, board: Path) -> None:
    folder = bundle.add(run(), board).folder
    good = contents(folder)
    rng = random.Random(1)
    for _ in range(1000):
        name = rng.choice(sorted(good))
        data = bytearray(good[name])
        match rng.randrange(3):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case _:
                data.insert(rng.randrange(len(data) + 1), rng.choice(b" \n09"))
        (folder / name).write_bytes(data)
        refused(folder)
        (folder / name).write_bytes(good[name])
    bundle.verify(folder)
    for name in good:
        (folder / name).rename(folder / "away")
        refused(folder)
        (folder / "away").rename(folder / name)
    (folder / "more.txt").write_text("hello")
    assert "more.txt" in refused(folder)


def test_a_rebuild_notices_a_changed_record_without_recomputing(run: Run, board: Path) -> None:
    folder = bundle.add(run(), board).folder
    path = folder / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"parameters": 12345', b'"parameters": 12346'))
    with pytest.raises(DataError, match=r"run\.json: its content is not what manifest\.json says"):
        bundle.read(folder)


def test_scores_that_end_early_are_averaged_over_the_final_epochs_only(run: Run, board: Path) -> None:
    folder = run()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["selection"] = {"clean_auc": row["epoch"] / 20, "gone": 1.0} if row["epoch"] < 4 else {}
        if row["epoch"] >= 2:
            row["selection"].pop("gone", None)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = folder / "result.json"
    # Of the final ten of twelve epochs, 2 and 3 have the score.
    path.write_bytes(change(path.read_bytes(), "selection", {"clean_auc": 0.125}))
    bundle.verify(bundle.add(folder, board).folder)
    path.write_bytes(change(path.read_bytes(), "selection", {"clean_auc": 0.125, "gone": 1.0}))
    with pytest.raises(DataError, match="record and metrics disagree about gone"):
        bundle.add(folder, board, replace=True)


def test_the_confusion_matrix_can_be_left_out(run: Run, board: Path) -> None:
    folder = bundle.add(run(), board).folder
    full, light = bundle.read(folder), bundle.read(folder, confusion=False)
    assert full.noise.confusion != []
    assert light == full.model_copy(update={"noise": full.noise.model_copy(update={"confusion": []})})


def test_a_bundle_in_the_wrong_place_is_refused(run: Run, board: Path) -> None:
    folder = bundle.add(run(), board).folder
    moved = folder.with_name("0123456789abcdef")
    folder.rename(moved)
    assert "wrong place" in refused(moved)
    with pytest.raises(DataError, match="wrong place"):
        bundle.read(moved)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["scores.last10", "timing.train_seconds", "noise.realised_rate", "spec.noise.rate"])
def test_nan_and_infinity_are_refused(run: Run, board: Path, value: float, place: str) -> None:
    folder = run()
    path = folder / "result.json"
    path.write_bytes(change(path.read_bytes(), place, value))
    with pytest.raises(DataError, match=r"result\.json: not JSON without NaN"):
        bundle.add(folder, board)
    assert not board.exists()


@pytest.mark.parametrize("place", ["scores.last10", "timing.train_seconds", "noise.realised_rate", "spec.noise.rate"])
def test_a_number_that_overflows_is_refused(run: Run, board: Path, place: str) -> None:
    folder = run()
    path = folder / "result.json"
    path.write_bytes(change(path.read_bytes(), place, "huge").replace(b'"huge"', b"1e999"))
    with pytest.raises(DataError, match=r"result\.json"):
        bundle.add(folder, board)
    assert not board.exists()


def test_nan_in_the_metrics_is_refused(run: Run, board: Path) -> None:
    folder = run()
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss": 1.0', b'"loss": NaN', 1))
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 1 is not JSON without NaN"):
        bundle.add(folder, board)
    assert not board.exists()


def test_records_of_newer_versions_and_hostile_suites_are_refused(run: Run, spec: Spec, board: Path) -> None:
    folder = run()
    path = folder / "result.json"
    good = path.read_bytes()
    path.write_bytes(change(good, "format", 99))
    with pytest.raises(DataError, match=r"format 99 is newer than 1, .* upgrade lnlbench"):
        bundle.add(folder, board)
    path.write_bytes(change(good, "surprise", 1))
    with pytest.raises(DataError, match="surprise: Extra inputs are not permitted"):
        bundle.add(folder, board)
    for suite in ("", "..", ".hidden", "a/b", "a\nb"):
        hostile = spec(suite=suite)
        raw = json.loads(good) | {"spec": hostile.model_dump(mode="json"), "cell": hostile.id}
        path.write_text(json.dumps(raw))
        with pytest.raises(DataError, match="cannot be the name of a folder"):
            bundle.add(folder, board)
    assert not board.exists()


def test_oversized_files_and_pipes_are_refused(run: Run, board: Path, archive: Callable[..., bytes]) -> None:
    folder = run()
    good = (folder / "result.json").read_bytes()
    (folder / "result.json").write_bytes(good + b" " * JSON_LIMIT)
    with pytest.raises(DataError, match="more than 1 MiB"):
        bundle.add(folder, board)
    (folder / "result.json").write_bytes(good)
    # 60 MB of zeros pack into 60 kB.
    bomb = archive(np.zeros(10**6, np.uint8), np.arange(60), np.zeros((60, 10**6), np.uint8))
    (folder / "predictions.npz").write_bytes(bomb)
    with pytest.raises(DataError, match="more than 50 MiB unpacked"):
        bundle.add(folder, board)
    (folder / "predictions.npz").unlink()
    os.mkfifo(folder / "predictions.npz")
    with pytest.raises(DataError, match="not a regular file"):
        bundle.add(folder, board)
    assert not board.exists()


def test_object_arrays_are_never_unpickled(run: Run, board: Path, archive: Callable[..., bytes]) -> None:
    folder = run()
    harmful = np.array([print], dtype=object)
    (folder / "predictions.npz").write_bytes(archive(harmful, harmful, harmful))
    with pytest.raises(DataError, match="not a readable archive of arrays"):
        bundle.add(folder, board)
    assert not board.exists()


class Failing(OsFs):
    """Fails, or kills its process, at one of its calls."""

    def __init__(self, at: int, number: int = errno.ENOSPC, kill: bool = False) -> None:
        self.calls = 0
        self.at = at
        self.number = number
        self.kill = kill

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.number, os.strerror(self.number))

    def open(self, path: Path, mode: str) -> IO[bytes]:
        self._count()
        return super().open(path, mode)

    def fsync(self, file: IO[bytes]) -> None:
        self._count()
        super().fsync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._count()
        super().replace(source, target)

    def fsync_dir(self, path: Path) -> None:
        self._count()
        super().fsync_dir(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("replace", [False, True])
def test_any_failing_call_leaves_the_board_as_it_was_or_complete(
    run: Run, spec: Spec, board: Path, number: int, replace: bool
) -> None:
    store.score([run(spec(seed=1))], board)
    second = run(spec(seed=2))
    if replace:
        store.score([second], board)
        shutil.rmtree(second)
        run(spec(seed=2), salt=1)
    csv = board / "digits-sym.csv"
    old = csv.read_bytes()
    spare = board.with_name("spare")
    shutil.copytree(board, spare)
    counting = Failing(at=0)
    store.score([second], spare, replace=replace, fs=counting)
    assert counting.calls >= 11
    new = (spare / "digits-sym.csv").read_bytes()
    assert new != old
    shutil.rmtree(spare)
    shutil.copytree(board, spare)
    for at in range(1, counting.calls + 1):
        with pytest.raises(StorageError) as caught:
            store.score([second], board, replace=replace, fs=Failing(at, number))
        assert str(board) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert csv.read_bytes() in (old, new)
        assert not leftovers(board) or replace
        for folder in store.bundles_of(board, "digits-sym"):
            bundle.verify(folder)
        store.score([second], board, replace=replace)
        assert csv.read_bytes() == new
        assert not leftovers(board)
        shutil.rmtree(board)
        shutil.copytree(spare, board)


def test_a_writer_killed_at_any_call_loses_nothing(run: Run, tmp_path: Path, board: Path) -> None:
    first = run().rename(tmp_path / "first")
    second = run(salt=1)
    bundle.add(first, board)
    wanted = {(each / "predictions.npz").read_bytes() for each in (first, second)}
    spare = board.with_name("spare")
    shutil.copytree(board, spare)
    killed = 0
    for at in range(1, 100):
        if not in_child(lambda at=at: bundle.add(second, board, replace=True, fs=Failing(at, kill=True))):  # type: ignore[misc]
            break
        killed += 1
        # The next writer cleans up, whatever the dead one left.
        kept = bundle.add(first, board)
        assert kept.outcome == "kept"
        bundle.verify(kept.folder)
        assert (kept.folder / "predictions.npz").read_bytes() in wanted
        assert not leftovers(board)
        shutil.rmtree(board)
        shutil.copytree(spare, board)
    assert killed >= 11


def in_child(work: Callable[[], Any]) -> int:
    """Run something in a forked process; return the signal that ended it, 0 if none did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, of which this process has none that matter
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1


def test_a_board_that_cannot_be_a_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LnlbenchError) as caught:
        bundle.add(run(), tmp_path / "file")
    assert isinstance(caught.value, StorageError)
    assert "\n" not in str(caught.value)


def test_a_board_locked_for_too_long_is_one_line(run: Run, board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LOCK_SECONDS", 0.05)
    folder = run()

    def locked_out() -> None:
        with pytest.raises(StorageError, match="locked by another process"):
            bundle.add(folder, board)
        os.kill(os.getpid(), signal.SIGUSR1)

    with bundle.locked(board):
        assert in_child(locked_out) == signal.SIGUSR1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"plain" + data,
        lambda _data: gzip.compress(bytes(60 * 2**20)),
    ],
    ids=["cut", "longer", "not gzip", "bomb"],
)
def test_damaged_packing_is_refused(run: Run, board: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = bundle.add(run(), board).folder
    files = contents(folder)
    files["metrics.jsonl.gz"] = damage(files["metrics.jsonl.gz"])
    write(folder, files, remake=True)
    with pytest.raises(DataError, match=r"metrics\.jsonl\.gz"):
        bundle.verify(folder)


def test_equal_runs_give_equal_bundles(run: Run, tmp_path: Path) -> None:
    folder = run()
    first, second = (bundle.add(folder, tmp_path / name).folder for name in ("a", "b"))
    assert contents(first) == contents(second)
