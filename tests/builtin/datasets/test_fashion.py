from __future__ import annotations

import gzip
import hashlib
import random
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from lnlbench.builtin.datasets import fashion
from lnlbench.builtin.datasets.fashion import Fashion
from lnlbench.errors import DataError
from lnlbench.formats.canonical import data_digest
from lnlbench.store import LocalDataStore


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def store(tmp_path):
    return LocalDataStore(tmp_path / "data", offline=True)


@pytest.fixture
def contents(monkeypatch, tmp_path):
    """A small Fashion-MNIST: the unpacked files by name, known to the reader by their checksums."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (60, 28, 28), dtype=np.uint8),
        rng.integers(0, 10, 60, dtype=np.uint8),
        rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        rng.integers(0, 10, 10, dtype=np.uint8),
    ]
    files = [idx(array) for array in arrays]
    parts = tuple(
        replace(
            part,
            shape=array.shape,
            size=len(data),
            md5=md5(data),
            packed_size=len(gzip.compress(data, mtime=0)),
            packed_md5=md5(gzip.compress(data, mtime=0)),
        )
        for part, array, data in zip(fashion._PARTS, arrays, files, strict=True)
    )
    monkeypatch.setattr(fashion, "_PARTS", parts)
    monkeypatch.setattr(Fashion, "system_folder", tmp_path / "system")
    return {part.name: data for part, data in zip(parts, files, strict=True)}


def place(folder, contents, packed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data, 1) if packed else data)


def digest(data):
    return data_digest(data.train_images, data.train_labels, data.test_images, data.test_labels)


def tree(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["data folder", "system folder"])
def test_round_trip(packed, where, store, contents):
    place(store.folder("fashion") if where == "data folder" else Fashion.system_folder, contents, packed)
    Fashion().prepare(store)
    data = Fashion().load(store)
    assert data.train_images.shape == (60, 28, 28, 1)
    assert data.train_images.tobytes() == contents["train-images-idx3-ubyte"][16:]
    assert data.test_images.tobytes() == contents["t10k-images-idx3-ubyte"][16:]
    assert bytes(data.train_labels.tolist()) == contents["train-labels-idx1-ubyte"][8:]
    assert bytes(data.test_labels.tolist()) == contents["t10k-labels-idx1-ubyte"][8:]
    assert data.test_labels.dtype == np.int64
    assert data.train_images.flags.writeable


def test_the_data_folder_goes_before_the_system_folder(store, contents):
    place(Fashion.system_folder, contents, packed=True)
    place(store.folder("fashion"), dict.fromkeys(contents, b"damaged"), packed=False)
    with pytest.raises(DataError, match=str(store.folder("fashion"))):
        Fashion().load(store)


def test_absent_files_are_named_with_the_way_to_get_them(store, contents):
    with pytest.raises(DataError) as caught:
        Fashion().load(store)
    message = str(caught.value)
    for part in ("train-images-idx3-ubyte.gz", str(store.folder("fashion")), "https://", "lnlbench prepare fashion"):
        assert part in message
    assert "\n" not in message
    assert not store.root.exists()


def test_absent_files_are_downloaded(store, contents, httpserver, monkeypatch):
    store.offline = False
    monkeypatch.setenv("LNLBENCH_MIRROR", httpserver.url_for(""))
    for name, data in contents.items():
        httpserver.expect_request(f"/{name}.gz").respond_with_data(gzip.compress(data, mtime=0))
    Fashion().prepare(store)
    assert len(httpserver.log) == 4
    store.offline = True
    assert Fashion().load(store).train_images.shape == (60, 28, 28, 1)


def content_of(data):
    if not data.startswith(b"\x1f\x8b"):
        return bytes(data)
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


@pytest.mark.parametrize("packed", [True, False])
def test_damage_is_refused_in_one_line_that_names_the_file(packed, store, contents):
    """250 flipped bits and 50 truncations of either kind of file."""
    place(store.folder("fashion"), contents, packed)
    sound = digest(Fashion().load(store))
    rng = random.Random(7)
    refused = 0
    for trial in range(300):
        path = store.folder("fashion") / (rng.choice(sorted(contents)) + (".gz" if packed else ""))
        data = path.read_bytes()
        # The first ten bytes of a gzip file hold its date and system; they are not part of the content.
        first = 10 if packed else 0
        damaged = bytearray(data)
        while content_of(damaged) == content_of(data):  # padding bits of a gzip file are no part of it either
            damaged = bytearray(data)
            position = rng.randrange(first, len(data))
            if trial < 250:
                damaged[position] ^= 1 << rng.randrange(8)
            else:
                del damaged[position:]
        path.write_bytes(damaged)
        before = tree(store.root)
        with pytest.raises(DataError) as caught:
            Fashion().load(store)
        refused += 1
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()
        assert tree(store.root) == before
        path.write_bytes(data)
    assert refused == 300
    assert digest(Fashion().load(store)) == sound


def test_a_bomb_is_refused(store, contents):
    place(store.folder("fashion"), contents, packed=True)
    path = store.folder("fashion") / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**17)))
    with pytest.raises(DataError, match="unpacks to more than"):
        Fashion().load(store)


def test_a_file_of_another_shape_is_refused_even_with_the_right_checksum(store, contents, monkeypatch):
    place(store.folder("fashion"), contents, packed=False)
    first, *others = fashion._PARTS
    monkeypatch.setattr(fashion, "_PARTS", (replace(first, shape=(61, 28, 28)), *others))
    with pytest.raises(DataError, match="expected \\(61, 28, 28\\)"):
        Fashion().load(store)


@pytest.mark.skipif(
    not Fashion.system_folder.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_real_data(store):
    data = Fashion().load(store)
    assert digest(data) == "1db4284cfb0cd9b50f87102aa068cfa91f5eb9f15de0ed5248881c0ad2dab2cb"
    assert data.train_images.shape == (Fashion.num_train, 28, 28, 1)
    assert data.test_images.shape == (Fashion.num_test, 28, 28, 1)
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert (data.train_images / 255).mean() == pytest.approx(Fashion.mean[0], abs=1e-4)
    assert (data.train_images / 255).std() == pytest.approx(Fashion.std[0], abs=1e-4)
    assert not store.root.exists()
