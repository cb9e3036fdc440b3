"""SEAL's released labels: a strict parser of their CSV files, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lnlbench.builtin.noise import ENTRIES, seal
from lnlbench.builtin.noise.seal import Seal, read_label_pairs
from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.store import LocalDataStore

Labels = NDArray[np.int64]
Put = Callable[[bytes], Path]

TRUE = np.arange(200, dtype=np.int64) * 3 % 10
GIVEN = np.where(np.arange(200) % 4 == 0, (TRUE + 1) % 10, TRUE)
HEADER = b"label,label_noisy\n"
OPTIONS = {"level": "0.2"}


def csv(true: Labels, noisy: Labels) -> bytes:
    rows = (f"{left},{right}\n" for left, right in zip(true.tolist(), noisy.tolist(), strict=True))
    return HEADER + "".join(rows).encode()


@pytest.fixture
def store(tmp_path: Path) -> LocalDataStore:
    return LocalDataStore(tmp_path, offline=True, progress=False)


@pytest.fixture
def put(store: LocalDataStore, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write the file of level 0.2, and take its checksum for the published one."""

    def write(data: bytes) -> Path:
        path = store.folder("seal") / "dependent0.2.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        monkeypatch.setitem(seal.DIGESTS, "0.2", f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}")
        return path

    return write


def load(store: LocalDataStore, true: Labels = TRUE, num_classes: int = 10) -> Labels:
    return Seal().load(store, true, num_classes=num_classes, options=OPTIONS)


def test_a_file_is_read(store: LocalDataStore, put: Put) -> None:
    put(csv(TRUE, GIVEN))
    Seal().prepare(store, OPTIONS)
    labels = load(store)
    assert labels.dtype == np.int64
    assert labels.tolist() == GIVEN.tolist()


def test_the_levels_are_the_options() -> None:
    entry = next(entry for entry in ENTRIES if entry.name == "seal")
    assert entry.options == {"level": tuple(seal.DIGESTS)}
    assert entry.kind == "released"


@pytest.mark.parametrize("level", ["0.1", "0.4"])
def test_a_missing_file_says_where_it_goes_and_where_it_is(level: str, store: LocalDataStore) -> None:
    (needed,) = Seal().needs({"level": level})
    assert needed.path == f"dependent{level}.csv"
    assert not needed.download
    assert "https://github.com/chenpf1025/IDN" in needed.source
    for use in (Seal().prepare, lambda *rest: Seal().load(rest[0], TRUE, num_classes=10, options=rest[1])):
        with pytest.raises(DataError) as caught:
            use(store, {"level": level})
        text = str(caught.value)
        assert text.startswith(f"{store.root / 'seal' / needed.path}: is missing; put the published {needed.path}")
        assert needed.source in text
        assert "\n" not in text


def test_another_checksum_is_refused(store: LocalDataStore, put: Put) -> None:
    path = put(csv(TRUE, GIVEN))
    path.write_bytes(csv(TRUE, TRUE))
    for use in (lambda: Seal().prepare(store, OPTIONS), lambda: load(store)):
        with pytest.raises(DataError, match=r"md5 is .*, expected .*; put the published dependent0\.2\.csv there"):
            use()


OTHER_ORDER = np.roll(TRUE, 1)
FAR = GIVEN.copy()
FAR[9] = 10
WRONG = {
    "another order": (csv(OTHER_ORDER, GIVEN), "its true label at index 0 is 7, that of the training set is 0"),
    "too short": (csv(TRUE[:-1], GIVEN[:-1]), "199 labels for a training set of 200 images"),
    "out of range": (csv(TRUE, FAR), "label 10 at index 9 is not one of the classes 0 to 9"),
    "no header": (csv(TRUE, GIVEN)[len(HEADER) :], "its first line is '0,1', expected 'label,label_noisy'"),
    "a pickle": (b"\x80\x04cos\nsystem\n", r"its first line is"),
}


@pytest.mark.parametrize(("data", "said"), WRONG.values(), ids=list(WRONG))
def test_wrong_content_is_one_line(data: bytes, said: str, store: LocalDataStore, put: Put) -> None:
    path = put(data)
    with pytest.raises(DataError) as caught:
        load(store)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_other_datasets_and_levels_are_refused(store: LocalDataStore) -> None:
    with pytest.raises(UsageError, match="released labels of seal are for cifar10 only, not for 100 classes"):
        load(store, num_classes=100)
    for use in (Seal().needs, lambda options: Seal().prepare(store, options)):
        with pytest.raises(UnknownNameError, match=r"unknown 'level' of seal noise: '0\.5'"):
            use({"level": "0.5"})


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 9_999), st.integers(0, 9_999)), max_size=30))
def test_whatever_is_written_is_read(pairs: list[tuple[int, int]]) -> None:
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    found = read_label_pairs(csv(columns[:, 0], columns[:, 1]), "a")
    assert found.dtype == np.int64
    assert found.T.tolist() == columns.tolist()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (b"1,2,3", 3), (b"1", 3), (b"", 3), (b"1,", 3), (b",1", 3), (b" 1,2", 3), (b"1, 2", 3), (b"1;2", 3),
        (b"-1,2", 3), (b"+1,2", 3), (b"1.0,2", 3), (b"0x1,2", 3), (b"1_0,2", 3), (b"12345,2", 3), (b"1,2\r", 3),
        (b"1,2\x0b3,4", 3), ("١,2".encode(), 3), (b"\xb2,2", 3), (b"nan,2", 3), (b'"1",2', 3), (b"1,2\n\n", 4),
        (b"\x1b[2J,2", 3),
    ],
)  # fmt: skip
def test_any_other_row_is_named(row: bytes, line: int) -> None:
    with pytest.raises(
        DataError, match=rf"^a: line {line} is .*, expected two whole numbers; fetch it again$"
    ) as caught:
        read_label_pairs(HEADER + b"1,2\n" + row + b"\n3,4\n", "a")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "its first line is '', expected"),
        (b"label,label_noisy", "its last line is cut off"),
        (HEADER + b"1,2\n3,", "its last line is cut off"),
        (b"label,label_noisy\r\n1,2\r\n", "its first line is"),
        (b"\xef\xbb\xbf" + HEADER, "its first line is"),
        (b"x" * 10_000_000, "its first line is"),
    ],
)
def test_other_files_are_one_short_line(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_label_pairs(data, "a")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@settings(deadline=None, max_examples=200)
@given(body=st.text(alphabet="0123456789,\n -.\r٣", max_size=40).map(str.encode))
def test_random_rows_are_read_strictly_or_refused(body: bytes) -> None:
    rows = body.split(b"\n")
    sound = rows.pop() == b"" and all(
        len(fields := row.split(b",")) == 2 and all(field.isdigit() and len(field) <= 4 for field in fields)
        for row in rows
    )
    if sound:
        expected = [[int(field) for field in row.split(b",")] for row in rows]
        assert read_label_pairs(HEADER + body, "a").T.tolist() == expected
    else:
        with pytest.raises(DataError):
            read_label_pairs(HEADER + body, "a")


@settings(deadline=None)
@given(data=st.binary(max_size=100))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        read_label_pairs(data, "a")


@pytest.mark.realdata
@pytest.mark.skipif(
    "LNLBENCH_TEST_SEAL" not in os.environ, reason="LNLBENCH_TEST_SEAL names no folder with dependent0.1.csv and so on"
)
def test_the_released_labels(store: LocalDataStore) -> None:
    source = Path(os.environ["LNLBENCH_TEST_SEAL"])
    store.folder("seal").mkdir()
    true = read_label_pairs((source / "dependent0.1.csv").read_bytes(), "a")[0]
    assert np.bincount(true).tolist() == [5_000] * 10
    previous = true
    for level, wrong in (("0.1", 5_000), ("0.2", 10_000), ("0.3", 15_000), ("0.4", 20_000)):
        shutil.copy(source / f"dependent{level}.csv", store.folder("seal"))
        Seal().prepare(store, {"level": level})
        labels = Seal().load(store, true, num_classes=10, options={"level": level})
        assert np.count_nonzero(labels != true) == wrong
        assert (labels == previous)[previous != true].all()
        previous = labels
    # At the highest level cats (3) and dogs (5) have fewer right labels than wrong ones.
    kept = [np.mean(previous[true == label] == label) for label in range(10)]
    assert [label for label in range(10) if kept[label] < 0.5] == [3, 5]
