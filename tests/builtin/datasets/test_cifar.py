from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from lnlbench.builtin.datasets import cifar
from lnlbench.builtin.datasets.cifar import Cifar10, Cifar100
from lnlbench.errors import DataError, UsageError
from lnlbench.store import LocalDataStore

# Of the published training and test labels, in this order, as little-endian int64.
LABELS_SHA256 = "5083e6dd0895f94970ae8513f046bf3004b333931aad82b619d23ab76f2e1845"


class Python2Pickle:
    """Writes protocol 2 the way Python 2 did: byte strings, memo numbers, arrays by their old name."""

    def __init__(self):
        self._parts = [b"\x80\x02"]
        self._memo = 0

    def _put(self):
        self._memo += 1
        number = self._memo
        self._parts.append(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def _write(self, value):
        if isinstance(value, str):
            self._parts += [b"U", bytes([len(value)]), value.encode()]
            self._put()
        elif isinstance(value, int):
            self._parts.append(b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value))
        elif isinstance(value, list):
            self._parts.append(b"]")
            self._put()
            for start in range(0, len(value), 1000):
                self._parts.append(b"(")
                for item in value[start : start + 1000]:
                    self._write(item)
                self._parts.append(b"e")
        else:
            rows, columns = (struct.pack("<H", length) for length in value.shape)
            self._parts += [b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"]
            self._put()
            self._parts += [b"(K\x01M", rows, b"M", columns, b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"]
            self._parts += [b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"]
            self._parts += [struct.pack("<i", value.nbytes), value.tobytes(), b"tb"]

    def dump(self, content):
        self._parts.append(b"}")
        self._put()
        self._parts.append(b"(")
        for key, value in content.items():
            self._write(key)
            self._write(value)
        self._parts.append(b"u.")
        return b"".join(self._parts)


def rows(count, shift):
    """Cheap images with a recognisable value at every place: (image + position + shift) modulo 256."""
    return np.add.outer(np.arange(count, dtype=np.uint16), np.arange(3072, dtype=np.uint16) + shift).astype(np.uint8)


def labels(count, classes, shift):
    return [(number * 7 + shift) % classes for number in range(count)]


def batch10(number, count=10_000):
    return {
        "batch_label": f"training batch {number} of 5",
        "labels": labels(count, 10, number),
        "data": rows(count, number),
        "filenames": [f"file_{number}_{image}.png" for image in range(count)],
    }


def split100(count, shift):
    return {
        "filenames": [f"file_{image}.png" for image in range(count)],
        "batch_label": "training batch 1 of 1",
        "fine_labels": labels(count, 100, shift),
        "coarse_labels": labels(count, 20, shift),
        "data": rows(count, shift),
    }


META10 = {"num_cases_per_batch": 10_000, "label_names": list(Cifar10.class_names), "num_vis": 3072}
META100 = {"fine_label_names": list(Cifar100.class_names), "coarse_label_names": ["aquatic_mammals", "fish"]}


@pytest.fixture(scope="module")
def files10():
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    files = {name: Python2Pickle().dump(batch10(number)) for number, name in enumerate(names, 1)}
    return files | {"batches.meta": Python2Pickle().dump(META10)}


@pytest.fixture(scope="module")
def files100():
    return {
        "train": Python2Pickle().dump(split100(50_000, 0)),
        "test": Python2Pickle().dump(split100(10_000, 50)),
        "meta": Python2Pickle().dump(META100),
    }


@pytest.fixture
def store(tmp_path):
    yield LocalDataStore(tmp_path / "data", offline=True, progress=False)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # 180 MB a test are too much for pytest to keep


def unpack(folder, inner, files):
    (folder / inner).mkdir(parents=True)
    for name, data in files.items():
        (folder / inner / name).write_bytes(data)
    return folder / inner


def pack(folder, inner, files, archive):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folder_info = tarfile.TarInfo(inner)
        folder_info.type = tarfile.DIRTYPE
        tar.addfile(folder_info)
        for name, data in (files | {"readme.html": b"<html>"}).items():
            info = tarfile.TarInfo(f"{inner}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / archive).write_bytes(gzip.compress(buffer.getbuffer(), 1, mtime=0))
    return folder / archive


@pytest.fixture(scope="module")
def archive100(files100, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar100")
    return pack(folder, "cifar-100-python", files100, "cifar-100-python.tar.gz").read_bytes()


def put(folder, archive100):
    folder.mkdir(parents=True)
    (folder / "cifar-100-python.tar.gz").write_bytes(archive100)
    return folder / "cifar-100-python.tar.gz"


def refusal(call, *args, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def tree(folder):
    """Digest of everything below a folder, cheap enough to be taken often: names, sizes, times of change."""
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def expected_images(count, shift):
    return rows(count, shift).reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)


def check10(data):
    assert data.train_images.shape == (50_000, 32, 32, 3)
    assert data.test_images.shape == (10_000, 32, 32, 3)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.train_images.flags.c_contiguous
    assert data.train_images.flags.writeable
    for number in range(1, 6):
        part = slice(10_000 * (number - 1), 10_000 * number)
        assert np.array_equal(data.train_images[part], expected_images(10_000, number))
        assert data.train_labels[part].tolist() == labels(10_000, 10, number)
    assert np.array_equal(data.test_images, expected_images(10_000, 6))
    assert data.test_labels.tolist() == labels(10_000, 10, 6)


def test_the_fabricated_files_are_what_any_unpickler_reads(files10):
    read = pickle.loads(files10["data_batch_2"], encoding="latin1")
    assert read.keys() == batch10(2).keys()
    assert read["labels"] == labels(10_000, 10, 2)
    assert np.array_equal(read["data"], rows(10_000, 2))


def test_cifar10_unpacked(store, files10):
    folder = unpack(store.folder("cifar10"), "cifar-10-batches-py", files10)
    edition = Cifar10().register(store, "made-up")
    assert edition.name == "made-up"
    assert edition.files == {
        f"cifar-10-batches-py/{name}": hashlib.sha256(data).hexdigest() for name, data in files10.items()
    }
    assert store.edition("cifar10") == edition
    assert json.loads((store.folder("cifar10") / "edition.json").read_text())["name"] == "made-up"
    before = tree(store.root)
    Cifar10().prepare(store)
    check10(Cifar10().load(store))
    assert tree(store.root) == before
    # A file that is exchanged later is noticed, even for a sound one.
    (folder / "data_batch_3").write_bytes(files10["data_batch_4"])
    message = refusal(Cifar10().load, store)
    assert str(folder / "data_batch_3") in message
    assert "--edition" in message


def test_cifar10_archive(store, files10):
    archive = pack(store.folder("cifar10"), "cifar-10-batches-py", files10, "cifar-10-python.tar.gz")
    edition = Cifar10().register(store, "made-up")
    assert edition.files == {"cifar-10-python.tar.gz": hashlib.sha256(archive.read_bytes()).hexdigest()}
    before = tree(store.root)
    check10(Cifar10().load(store))
    assert tree(store.root) == before


def test_cifar100_beside_other_data_in_the_root(store, files100):
    unpack(store.root, "cifar-100-python", files100)
    edition = Cifar100().register(store, "made-up")
    assert sorted(edition.files) == [f"../cifar-100-python/{name}" for name in ("meta", "test", "train")]
    data = Cifar100().load(store)
    assert np.array_equal(data.train_images, expected_images(50_000, 0))
    assert np.array_equal(data.test_images, expected_images(10_000, 50))
    assert data.train_labels.tolist() == labels(50_000, 100, 0)
    assert data.test_labels.tolist() == labels(10_000, 100, 50)


def test_cifar100_archive_in_the_root(store, archive100):
    put(store.root, archive100)
    assert list(Cifar100().register(store, "made-up").files) == ["../cifar-100-python.tar.gz"]
    assert np.array_equal(Cifar100().load(store).test_images, expected_images(10_000, 50))


def test_published_checksums_are_required_by_default(store, files100):
    folder = unpack(store.folder("cifar100"), "cifar-100-python", files100)
    for use in (Cifar100().load, Cifar100().prepare):
        message = refusal(use, store)
        assert message.startswith(f"{folder / 'meta'}: md5 is ")
        assert "7973b15100ade9c7d40fb424638fde48" in message
        assert "lnlbench prepare cifar100 --edition NAME" in message
    shutil.rmtree(folder)
    archive = pack(store.folder("cifar100"), "cifar-100-python", {"meta": b"x"}, "cifar-100-python.tar.gz")
    assert refusal(Cifar100().load, store).startswith(f"{archive}: sha256 is ")


def test_nothing_is_parsed_before_it_was_verified(store, files100, monkeypatch):
    def parse(data, source):
        raise AssertionError(source)

    monkeypatch.setattr(cifar, "load_plain_pickle", parse)
    monkeypatch.setattr(cifar, "read_members", parse)
    unpack(store.folder("cifar100"), "cifar-100-python", files100)
    assert "md5 is" in refusal(Cifar100().load, store)
    shutil.rmtree(store.folder("cifar100"))
    put(store.folder("cifar100"), b"not an archive")
    assert "sha256 is" in refusal(Cifar100().load, store)


def test_every_file_is_read_once(store, files100, monkeypatch):
    # What is parsed must be what was verified, also if somebody exchanges a file in between.
    unpack(store.folder("cifar100"), "cifar-100-python", files100)
    Cifar100().register(store, "made-up")
    read = []

    def note(path, limit, hint):
        read.append(path.name)
        return memoryview(files100[path.name])

    monkeypatch.setattr(cifar, "_read", note)
    shutil.rmtree(store.folder("cifar100") / "cifar-100-python")
    (store.folder("cifar100") / "cifar-100-python").mkdir()
    Cifar100().load(store)
    assert read == ["meta", "train", "test"]


def test_one_file_is_read_ahead_and_no_more():
    made = []
    contents = (made.append(number) or number for number in range(6))
    used = []
    for each in cifar._one_ahead(contents):
        used.append(each)
        assert len(made) <= len(used) + 1
    assert used == made == list(range(6))


def test_a_file_that_cannot_be_read_stops_the_loading_in_its_turn():
    def contents():
        yield 0
        yield 1
        raise DataError("x: is missing")

    threads = threading.active_count()
    used = []
    with pytest.raises(DataError, match="x: is missing"):
        used.extend(cifar._one_ahead(contents()))
    ahead = cifar._one_ahead(contents())
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == threads


def test_odd_files_are_refused_as_any_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert cifar._read(tmp_path / "file", 3, "h") == b"abc"
    assert "3 bytes, expected at most 2; h" in refusal(cifar._read, tmp_path / "file", 2, "h")
    assert "is missing; h" in refusal(cifar._read, tmp_path / "none", 3, "h")
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe"):
        assert "not a regular file; h" in refusal(cifar._read, odd, 3, "h")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_that_is_longer_than_announced_is_read_to_its_end():
    assert Path("/proc/self/stat").stat().st_size == 0
    assert bytes(cifar._read(Path("/proc/self/stat"), 2**16, "h")).startswith(b"%d (" % os.getpid())


def test_the_published_meta_file_is_accepted():
    """The only published file that is small enough to be written down here."""
    assert hashlib.md5(Python2Pickle().dump(META10), usedforsecurity=False).hexdigest() == Cifar10._md5["batches.meta"]


def test_class_names_are_in_alphabetical_order():
    assert list(Cifar100.class_names) == sorted(Cifar100.class_names)
    assert len(set(Cifar100.class_names)) == 100
    assert Cifar10.class_names[3] == "cat"


def test_absent_files_are_named_with_the_way_to_get_them(store):
    for use in (Cifar10().load, Cifar10().prepare):
        message = refusal(use, store)
        for part in (
            str(store.folder("cifar10") / "cifar-10-python.tar.gz"),
            "170,498,071 bytes",
            "https://www.cs.toronto.edu/",
            "lnlbench prepare cifar10",
        ):
            assert part in message
    assert "nothing to register" in refusal(Cifar10().register, store, "made-up")
    assert not store.root.exists()


def test_an_incomplete_folder_names_the_missing_file(store, files10):
    folder = unpack(store.folder("cifar10"), "cifar-10-batches-py", {"batches.meta": files10["batches.meta"]})
    message = refusal(Cifar10().load, store)
    assert message.startswith(f"{folder / 'data_batch_1'}: is missing")


def test_a_registered_edition_does_not_fall_back_to_other_files(store, files100):
    folder = unpack(store.folder("cifar100"), "cifar-100-python", files100)
    Cifar100().register(store, "made-up")
    folder.rename(store.root / "cifar-100-python")
    assert "not part of the registered edition" in refusal(Cifar100().load, store)
    shutil.rmtree(store.root / "cifar-100-python")
    assert "registered edition 'made-up' are missing" in refusal(Cifar100().load, store)


def test_bad_edition_names_are_refused(store, files100):
    unpack(store.folder("cifar100"), "cifar-100-python", files100)
    assert "edition" in refusal(Cifar100().register, store, "canonical", kind=UsageError)
    assert store.edition("cifar100").is_canonical


def small(**changes):
    return {"labels": labels(10_000, 10, 0), "data": rows(10_000, 0)} | changes


ODD = {
    "a list": lambda: Python2Pickle().dump(META10)[:2] + b"]q\x01.",
    "no labels": lambda: Python2Pickle().dump({"data": rows(10_000, 0)}),
    "labels of the other CIFAR": lambda: Python2Pickle().dump(small(labels=labels(10_000, 100, 0))),
    "too few labels": lambda: Python2Pickle().dump(small(labels=labels(9_999, 10, 0))),
    "fractional labels": lambda: pickle.dumps(small(labels=[0.5] * 10_000), 2),
    "true as a label": lambda: pickle.dumps(small(labels=[True] * 10_000), 2),
    "negative labels": lambda: pickle.dumps(small(labels=[-1] * 10_000), 2),
    "gigantic labels": lambda: pickle.dumps(small(labels=[10**30] * 10_000), 2),
    "labels as an array": lambda: pickle.dumps(small(labels=np.zeros(10_000, np.int64)), 2),
    "no images": lambda: Python2Pickle().dump({"labels": labels(10_000, 10, 0)}),
    "too few images": lambda: Python2Pickle().dump(small(data=rows(9_999, 0))),
    "grey images": lambda: Python2Pickle().dump(small(data=rows(10_000, 0)[:, :1024])),
    "signed images": lambda: pickle.dumps(small(data=rows(10_000, 0).view(np.int8)), 2),
    "four dimensions": lambda: pickle.dumps(small(data=rows(10_000, 0).reshape(-1, 3, 32, 32)), 2),
    "an object": lambda: pickle.dumps(small(extra=Path("x")), 2),
    "a web page": lambda: b"<html></html>",
    "nothing": lambda: b"",
    "far too large": lambda: bytes(40_000_000),
}


@pytest.mark.parametrize("what", ODD)
def test_files_in_another_format_cannot_be_registered(what, store, files10):
    folder = unpack(store.folder("cifar10"), "cifar-10-batches-py", files10 | {"data_batch_1": ODD[what]()})
    before = tree(store.root)
    message = refusal(Cifar10().register, store, "made-up")
    assert message.startswith(f"{folder / 'data_batch_1'}: ")
    assert tree(store.root) == before


@pytest.mark.parametrize("names", [None, "cat", [], ["cat"] * 10, list(reversed(Cifar10.class_names))])
def test_other_class_names_cannot_be_registered(names, store):
    unpack(store.folder("cifar10"), "cifar-10-batches-py", {"batches.meta": pickle.dumps({"label_names": names}, 2)})
    assert "class names" in refusal(Cifar10().register, store, "made-up")


def test_class_names_as_bytes_are_fine(store):
    meta = {b"label_names": [name.encode() for name in Cifar10.class_names]}
    unpack(store.folder("cifar10"), "cifar-10-batches-py", {"batches.meta": pickle.dumps(meta, 4)})
    assert "data_batch_1: is missing" in refusal(Cifar10().register, store, "made-up")


@pytest.mark.parametrize(("kind", "flips", "cuts"), [("archive", 440, 88), ("batch", 60, 12)])
def test_damage_is_refused_in_one_line_that_names_the_file(kind, flips, cuts, store, files100, archive100):
    """With test_fashion.py: 1,000 flipped bits and 200 truncations."""
    if kind == "archive":
        damaged = put(store.folder("cifar100"), archive100)
    else:
        unpack(store.folder("cifar100"), "cifar-100-python", files100)
        damaged = store.folder("cifar100") / "cifar-100-python" / "test"
    Cifar100().register(store, "made-up")
    others = [path for path in store.root.rglob("*") if path.is_file() and path != damaged]
    untouched = {path: path.read_bytes() for path in others if path.stat().st_size < 2**20}
    dataset = Cifar100()
    if kind == "batch":
        # Only the damaged file: hashing the sound 155 MB before it each time would show nothing more.
        dataset._md5 = {"test": ""}
        dataset._limits = lambda: {"test": 2**26}
    data = damaged.read_bytes()
    names = sorted(path.name for path in store.root.rglob("*"))
    rng = random.Random(11)
    refused = 0
    for trial in range(flips + cuts):
        position = rng.randrange(len(data))
        with damaged.open("r+b") as file:
            if trial < flips:
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << rng.randrange(8)]))
            else:
                file.truncate(position)
        assert str(damaged) in refusal(dataset.prepare, store)
        refused += 1
        with damaged.open("r+b") as file:
            file.seek(position)
            file.write(data[position : position + 1] if trial < flips else data[position:])
    assert refused == flips + cuts
    assert sorted(path.name for path in store.root.rglob("*")) == names
    assert {path: path.read_bytes() for path in untouched} == untouched
    assert damaged.read_bytes() == data
    dataset.prepare(store)


def test_a_web_page_in_place_of_the_archive_is_refused(store, httpserver, monkeypatch):
    store.offline = False
    monkeypatch.setenv("LNLBENCH_MIRROR", httpserver.url_for(""))
    httpserver.expect_request("/cifar-100-python.tar.gz").respond_with_data(b"<html>", content_type="text/html")
    message = refusal(Cifar100().load, store)
    assert str(store.folder("cifar100") / "cifar-100-python.tar.gz") in message
    assert not (store.folder("cifar100") / "cifar-100-python.tar.gz").exists()


def test_an_absent_archive_is_downloaded(store, archive100, httpserver, monkeypatch):
    monkeypatch.setattr(
        Cifar100,
        "_archive",
        Cifar100._archive.model_copy(
            update={"size": len(archive100), "digest": f"sha256:{hashlib.sha256(archive100).hexdigest()}"}
        ),
    )
    store.offline = False
    monkeypatch.setenv("LNLBENCH_MIRROR", httpserver.url_for(""))
    httpserver.expect_request("/cifar-100-python.tar.gz").respond_with_data(archive100)
    data = Cifar100().load(store)
    assert np.array_equal(data.test_images, expected_images(10_000, 50))
    store.offline = True
    Cifar100().prepare(store)
    assert len(httpserver.log) == 1


@pytest.mark.realdata
@pytest.mark.skipif(
    "LNLBENCH_TEST_CIFAR10" not in os.environ, reason="LNLBENCH_TEST_CIFAR10 names no folder with cifar-10-batches-py"
)
def test_real_cifar10(store):
    source = Path(os.environ["LNLBENCH_TEST_CIFAR10"]) / "cifar-10-batches-py"
    store.folder("cifar10").mkdir(parents=True)
    (store.folder("cifar10") / "cifar-10-batches-py").symlink_to(source.resolve())
    Cifar10().register(store, "given")
    data = Cifar10().load(store)
    every = np.concatenate([data.train_labels, data.test_labels])
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert hashlib.sha256(every.astype("<i8").tobytes()).hexdigest() == LABELS_SHA256
    assert data.train_images.mean(axis=(0, 1, 2)) / 255 == pytest.approx(Cifar10.mean, abs=1e-3)
