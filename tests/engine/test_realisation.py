from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lnlbench.builtin.noise.asymmetric import asymmetric
from lnlbench.builtin.noise.symmetric import symmetric
from lnlbench.contracts.noise import GeneratedLabels, NoiseGenerator
from lnlbench.engine import realisation as module
from lnlbench.engine.realisation import NoiseRealisation, export_csv, labels_digest, realise
from lnlbench.errors import DataError, PluginError, StorageError, UsageError
from lnlbench.files import OsFs
from lnlbench.records import NoiseSpec

TRUE = np.arange(1_437, dtype=np.int64) % 10
NAMES = tuple("abcdefghij")
SPEC = NoiseSpec(generator="symmetric", options={"count": "exact", "replacement": "exclusive"}, rate=0.2, seed=3)


def make(
    root: Path, noise: NoiseSpec = SPEC, generator: NoiseGenerator = symmetric, **changes: Any
) -> NoiseRealisation:
    arguments: dict[str, Any] = {"suite": "digits-sym", "suite_version": 1, "task": "0.20", "dataset": "digits"}
    rest: dict[str, Any] = {"true_labels": TRUE, "num_classes": 10, "class_names": NAMES} | arguments | changes
    return realise(root, noise=noise, generator=generator, **rest)


def never(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    raise AssertionError("the stored labels should have been used")


def folder_of(realisation: NoiseRealisation) -> Path:
    assert realisation.path is not None
    return realisation.path


def test_facts_of_a_realisation(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.given_labels.dtype == np.int64
    assert made.facts.num_changed == 287
    assert made.facts.realised_rate == 287 / 1_437
    assert made.facts.digest == labels_digest(made.given_labels)
    confusion = np.array(made.facts.confusion)
    assert confusion.sum() == 1_437
    assert np.trace(confusion) == 1_437 - 287
    assert (confusion.sum(axis=1) == np.bincount(TRUE)).all()
    np.testing.assert_allclose(made.intended.sum(axis=1), 1.0)
    assert made.class_names == NAMES
    assert made.noise == SPEC


def test_the_files_and_where_they_are(tmp_path: Path) -> None:
    folder = folder_of(make(tmp_path))
    assert folder.parent == tmp_path / "noise" / "digits-sym@1" / "0.20"
    assert folder.name.startswith("seed-3-")
    assert len(folder.name) == len("seed-3-") + 8
    assert sorted(path.name for path in folder.iterdir()) == ["labels.npy", "noise.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    assert labels.dtype == np.dtype("<i2")
    facts = json.loads((folder / "noise.json").read_text())
    assert facts["variant"] == "symmetric(count=exact,replacement=exclusive)"
    assert facts["noise"] == {"generator": "symmetric", "options": SPEC.options, "rate": 0.2, "seed": 3}
    assert (facts["dataset"], facts["num_samples"], facts["num_classes"]) == ("digits", 1_437, 10)
    np.testing.assert_allclose(np.sum(facts["transition"], axis=1), 1.0)


def test_the_second_time_nothing_is_drawn(tmp_path: Path) -> None:
    first = make(tmp_path)
    second = make(tmp_path, generator=never)
    assert (first.given_labels == second.given_labels).all()
    assert (first.intended == second.intended).all()
    assert first.facts == second.facts
    assert first.path == second.path


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": SPEC.model_copy(update={"seed": 4})},
        {"noise": SPEC.model_copy(update={"rate": 0.3})},
        {"noise": SPEC.model_copy(update={"options": {"count": "exact", "replacement": "inclusive"}})},
        {"true_labels": (TRUE + 1) % 10},
        {"true_labels": TRUE[:500]},
        {"num_classes": 11, "class_names": (*NAMES, "k")},
        {"suite": "digits-sym-incl"},
        {"suite_version": 2},
        {"task": "0.40"},
    ],
)
def test_whatever_differs_has_a_folder_of_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = make(tmp_path)
    other = make(tmp_path, **changes)
    assert first.path != other.path
    assert folder_of(other).is_dir()
    assert make(tmp_path, generator=never).facts == first.facts


def test_options_that_json_changes_are_still_the_same_options(tmp_path: Path) -> None:
    def generator(
        true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
    ) -> GeneratedLabels:
        return symmetric(true_labels, rate, num_classes=num_classes, seed=seed)

    noise = SPEC.model_copy(update={"options": {"classes": (1, 2)}})
    assert make(tmp_path, noise, generator).facts == make(tmp_path, noise, never).facts


def test_many_classes_need_wider_labels() -> None:
    labels = np.array([0, 39_999, 5], dtype=np.int64)
    stored = np.load(io.BytesIO(module._npy(labels, 40_000)), allow_pickle=False)
    assert stored.tolist() == labels.tolist()
    assert stored.dtype == np.dtype("<i4")


def corrupt_labels(folder: Path) -> None:
    data = bytearray((folder / "labels.npy").read_bytes())
    data[-1] ^= 1
    (folder / "labels.npy").write_bytes(data)


def truncate_labels(folder: Path) -> None:
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:-100])


def remove_labels(folder: Path) -> None:
    (folder / "labels.npy").unlink()


def empty_facts(folder: Path) -> None:
    (folder / "noise.json").write_text("")


def binary_facts(folder: Path) -> None:
    (folder / "noise.json").write_bytes(b"\xff\xfe")


def remove_facts(folder: Path) -> None:
    (folder / "noise.json").unlink()


def edit(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / "noise.json").read_text())
    (folder / "noise.json").write_text(json.dumps(facts | changes))


def replace_labels(folder: Path, labels: NDArray[Any]) -> None:
    """Put other labels there, with the checksum adjusted."""
    np.save(folder / "labels.npy", labels, allow_pickle=True)
    edit(folder, file_digest=hashlib.sha256((folder / "labels.npy").read_bytes()).hexdigest())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "labels.npy is wrong": corrupt_labels,
    "checksum of labels.npy": truncate_labels,
    "No such file": remove_labels,
    "validation error": empty_facts,
    "1 validation error": binary_facts,
    "damaged: No such file": remove_facts,
    "it belongs to other labels": lambda folder: edit(folder, true_digest="0" * 64),
    "Extra inputs|validation error": lambda folder: edit(folder, more=1),
    "matrix in noise.json": lambda folder: edit(folder, intended=[[1.0]]),
    "inhomogeneous": lambda folder: edit(folder, intended=[[1.0], []]),
    "facts in noise.json are not those": lambda folder: replace_labels(folder, TRUE.astype("<i2")),
    "holds 3 labels instead of 1437": lambda folder: replace_labels(folder, TRUE[:3]),
    "no class ids": lambda folder: replace_labels(folder, TRUE + 5),
    "pickle": lambda folder: replace_labels(folder, TRUE.astype(object)),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, said: str) -> None:
    folder = folder_of(make(tmp_path))
    DAMAGES[said](folder)
    with pytest.raises(DataError, match=said) as caught:
        make(tmp_path, generator=never)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    assert "delete this folder" in message


def test_after_deleting_the_damaged_folder_the_labels_are_the_same(tmp_path: Path) -> None:
    first = make(tmp_path)
    folder = folder_of(first)
    corrupt_labels(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert make(tmp_path).facts == first.facts


class FailingFs(OsFs):
    """Fails at one call with one error."""

    def __init__(self, call: str, number: int) -> None:
        self.call, self.number = call, number

    def open(self, path: Path, mode: str) -> IO[bytes]:
        self._fail("open", path)
        return super().open(path, mode)

    def fsync(self, file: IO[bytes]) -> None:
        self._fail("fsync")
        super().fsync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._fail("replace" if target.suffix else "publish", target)
        super().replace(source, target)

    def _fail(self, call: str, path: Path | None = None) -> None:
        if call == self.call:
            raise OSError(self.number, os.strerror(self.number), str(path))


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "publish"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_where_nothing_can_be_stored_the_labels_are_the_same(tmp_path: Path, call: str, number: int) -> None:
    made = make(tmp_path / "broken", fs=FailingFs(call, number))
    assert made.path is None
    stored = make(tmp_path / "good")
    assert made.facts == stored.facts
    assert (made.given_labels == stored.given_labels).all()
    assert (made.intended == stored.intended).all()
    assert [path for path in (tmp_path / "broken").rglob("*") if path.is_file()] == []
    # The next attempt, on a file system that works again, is not hindered.
    assert make(tmp_path / "broken").path is not None


def test_a_file_in_the_way_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "noise").write_text("")
    assert make(tmp_path).path is None


def test_a_read_only_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = make(tmp_path)

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    # Permissions would not do: the tests may be run by root.
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert make(tmp_path, generator=never).path == stored.path
    assert make(tmp_path, suite="other").path is None
    assert make(tmp_path, suite="other").facts == stored.facts


def test_a_root_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for call in ("is_dir", "mkdir"):
        monkeypatch.setattr(Path, call, refuse)
    assert make(tmp_path).facts.num_changed == 287


def test_the_loser_of_a_race_uses_the_labels_of_the_winner(tmp_path: Path) -> None:
    class Late(OsFs):
        def replace(self, source: Path, target: Path) -> None:
            if not target.suffix:
                winners.append(make(tmp_path))
            super().replace(source, target)

    def other(
        true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
    ) -> GeneratedLabels:
        return symmetric(true_labels, rate, num_classes=num_classes, seed=seed + 1, **options)

    winners: list[NoiseRealisation] = []
    loser = make(tmp_path, generator=other, fs=Late())
    assert len(winners) == 1
    assert loser.facts == winners[0].facts
    assert [path.name for path in folder_of(loser).parent.iterdir()] == [folder_of(loser).name]


def _race(root: Path, barrier: Any, answers: Any) -> None:
    barrier.wait()
    for seed in range(8):
        made = make(root, SPEC.model_copy(update={"seed": seed}))
        answers.put((seed, made.facts.digest, str(made.path)))


def test_processes_side_by_side_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_race, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = {answers.get(timeout=60) for _ in range(4 * 8)}
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(found) == 8
    assert len({digest for _, digest, _ in found}) == 8
    folder = tmp_path / "noise" / "digits-sym@1" / "0.20"
    assert len(list(folder.iterdir())) == 8
    assert all(path.name.startswith("seed-") for path in folder.iterdir())


def returning(labels: Any, matrix: Any) -> NoiseGenerator:
    def generator(true_labels: NDArray[np.int64], rate: float, **options: Any) -> GeneratedLabels:
        return GeneratedLabels(labels, matrix)

    return generator


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        (returning(TRUE[:5], np.eye(10)), r"labels of shape \(5,\) and type int64; 1437 integers are expected"),
        (returning(TRUE.astype(float), np.eye(10)), "type float64"),
        (returning(TRUE + 1, np.eye(10)), "labels from 1 to 10; expected are 0 to 9"),
        (returning(TRUE, np.eye(9)), r"a matrix of shape \(9, 9\); 10 x 10 is expected"),
        (returning(TRUE, np.eye(10) * 2), "rows are not probabilities"),
        (returning(TRUE, np.eye(10) * np.nan), "rows are not probabilities"),
        (returning(TRUE, 2 * np.eye(10) - 0.1), "rows are not probabilities"),
    ],
)
def test_a_generator_that_breaks_its_contract_is_named(tmp_path: Path, generator: NoiseGenerator, said: str) -> None:
    with pytest.raises(PluginError, match=f"noise generator 'symmetric' broke its contract: .*{said}"):
        make(tmp_path, generator=generator)
    assert list(tmp_path.iterdir()) == []


def test_what_the_generator_refuses_reaches_the_user(tmp_path: Path) -> None:
    noise = NoiseSpec(generator="asymmetric", options={"map": "superclass"}, rate=0.2, seed=1)
    with pytest.raises(UsageError, match="'superclass' needs 100 classes"):
        make(tmp_path, noise, asymmetric)


def test_export(tmp_path: Path) -> None:
    made = make(tmp_path)
    path = tmp_path / "new" / "labels.csv"
    export_csv(made, path)
    assert path.read_bytes().startswith(b"index,given_label,true_label,changed,ood\n0,")
    with path.open(newline="") as file:
        rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["index"] for row in rows] == list(range(1_437))
    assert [row["given_label"] for row in rows] == made.given_labels.tolist()
    assert [row["true_label"] for row in rows] == TRUE.tolist()
    assert all(row["changed"] == (row["given_label"] != row["true_label"]) for row in rows)
    assert sum(row["changed"] for row in rows) == 287
    assert not any(row["ood"] for row in rows)


def test_labels_outside_the_task(tmp_path: Path) -> None:
    """Eight known classes; images of 8 and 9 get the labels 0 and 1."""
    given = np.where(TRUE < 8, TRUE, TRUE - 8)
    matrix = np.eye(10)[:, :8]
    matrix[8, 0] = matrix[9, 1] = 1.0
    made = make(tmp_path, generator=returning(given, matrix), num_classes=8)
    assert np.array(made.facts.confusion).shape == (10, 8)
    assert made.facts.num_ood == made.facts.num_changed == (TRUE >= 8).sum()
    assert made.intended is not None
    assert made.intended.shape == (10, 8)
    export_csv(made, tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text().splitlines()[9] == "8,0,8,1,1"


def test_images_are_part_of_what_labels_belong_to(tmp_path: Path) -> None:
    seen: list[Any] = []

    def generator(true_labels: NDArray[np.int64], rate: float, **options: Any) -> GeneratedLabels:
        seen.append(options["images"].shape)
        return GeneratedLabels(true_labels, np.eye(10))

    black, white = (np.full((len(TRUE), 2, 2, 1), value, dtype=np.uint8) for value in (0, 255))
    first, second = (make(tmp_path, generator=generator, images=images) for images in (black, white))
    assert first.path != second.path
    assert make(tmp_path, generator=never, images=black).path == first.path
    assert seen == [(1_437, 2, 2, 1)] * 2


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    made = make(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text("old")
    with pytest.raises(StorageError, match=r"disk full while writing .*labels\.csv"):
        export_csv(made, path, FailingFs("fsync", errno.ENOSPC))
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.glob("*.tmp")] == []


def test_digest_is_of_little_endian_int64() -> None:
    expected = hashlib.sha256(b"\x01" + bytes(7) + b"\x02" + bytes(7)).hexdigest()
    assert labels_digest(np.array([1, 2], dtype=np.int64)) == expected
    assert labels_digest(np.array([1, 9, 2, 9], dtype=np.int64)[::2]) == expected
