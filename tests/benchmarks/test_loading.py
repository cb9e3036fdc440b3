"""Loading CIFAR-10 until it can be trained on (verified, parsed, digested, on the device), against hashing its files.

The files are fabricated in the published layout and size, and registered as an edition: SHA-256 is what verifies them.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lnlbench.builtin.datasets.cifar import Cifar10
from lnlbench.engine.data import load_data
from lnlbench.engine.views import ImageStore
from lnlbench.store import LocalDataStore

GROUP = "e: loading CIFAR-10 against hashing its files"
IMAGES = 10_000
# A uint8 array of shape (10000, 3072), up to its content, as Python 2 wrote it.
ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01M\x10\x27M\x00\x0c\x86"
    b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
)


def batch(seed: int) -> bytes:
    """One file of random images; speed does not depend on what they show."""
    rng = np.random.default_rng(seed)
    numbers = b"".join(b"K%c" % label for label in rng.integers(0, 10, IMAGES))
    names = b"".join(b"U\x16%016d_s.pngr" % each + struct.pack("<I", each) for each in range(IMAGES))
    pixels = rng.integers(0, 256, (IMAGES, 3072), dtype=np.uint8).tobytes()
    data = ARRAY + struct.pack("<i", len(pixels)) + pixels + b"tb"
    return b"\x80\x02}(U\x06labels](" + numbers + b"eU\x04data" + data + b"U\x09filenames](" + names + b"eu."


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDataStore]:
    root = tmp_path_factory.mktemp("loading")
    folder = root / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(Cifar10.class_names)}, 2))
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(batch(seed))
    store = LocalDataStore(root, offline=True, progress=False)
    Cifar10().register(store, "made-up")
    yield store
    shutil.rmtree(root)


@pytest.mark.benchmark(group=GROUP)
def test_loading(
    benchmark: BenchmarkFixture,
    store: LocalDataStore,
    device: torch.device,
    synchronised: Callable[[Callable[[], Any]], Callable[[], None]],
) -> None:
    def load() -> tuple[ImageStore, ImageStore]:
        loaded = load_data(Cifar10(), store)
        mean, std = loaded.dataset.mean, loaded.dataset.std
        train, test = (torch.from_numpy(each) for each in (loaded.images.train_images, loaded.images.test_images))
        return ImageStore(train, mean, std, 4, device), ImageStore(test, mean, std, 0, device)

    benchmark.pedantic(synchronised(load), rounds=8, warmup_rounds=2)
    assert [each.size for each in load()] == [50_000, 10_000]


@pytest.mark.benchmark(group=GROUP)
def test_hashing(benchmark: BenchmarkFixture, store: LocalDataStore) -> None:
    expected = store.edition("cifar10").files

    def hash_files() -> dict[str, str]:
        found = {}
        for name in expected:
            with (store.folder("cifar10") / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    assert benchmark.pedantic(hash_files, rounds=8, warmup_rounds=2) == expected
