from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from lnlbench.builtin.datasets import ENTRIES, digits
from lnlbench.builtin.datasets.digits import Digits
from lnlbench.errors import DataError, UsageError
from lnlbench.formats.canonical import data_digest
from lnlbench.store import LocalDataStore


@pytest.fixture
def store(tmp_path):
    return LocalDataStore(tmp_path / "data", offline=True)


def test_the_split_never_changes(store):
    data = Digits().load(store)
    # Stored results refer to this digest; a change of this number makes them incomparable.
    assert data_digest(data.train_images, data.train_labels, data.test_images, data.test_labels) == (
        "b637259174a4c23cb8ddc200e92dec79d6106d9c3c6e618eeda9e536b7db21d6"
    )
    assert not store.root.exists()


def test_shapes_counts_and_statistics(store):
    data = Digits().load(store)
    assert data.train_images.shape == (Digits.num_train, 8, 8, 1) == (1437, 8, 8, 1)
    assert data.test_images.shape == (Digits.num_test, 8, 8, 1) == (360, 8, 8, 1)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.train_images.flags.c_contiguous
    assert data.train_images.flags.writeable
    assert np.bincount(data.train_labels).tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert np.bincount(data.test_labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert (data.train_images / 255).mean() == pytest.approx(Digits.mean[0], abs=1e-4)
    assert (data.train_images / 255).std() == pytest.approx(Digits.std[0], abs=1e-4)


def test_grey_levels_are_scaled_exactly_and_reversibly(store):
    data = Digits().load(store)
    index = set(json.loads(digits._TEST_INDEX.read_text()))
    original = sklearn.datasets.load_digits().images
    train = [position for position in range(1797) if position not in index]
    levels = np.rint(data.train_images[..., 0].astype(np.float64) * 16 / 255)
    assert np.array_equal(levels, original[train])
    assert sorted(np.unique(data.train_images)) == [round(level * 255 / 16) for level in range(17)]


def test_training_and_test_are_every_image_once(store):
    index = json.loads(Path(digits._TEST_INDEX).read_text())
    assert index == sorted(set(index))
    assert len(index) == 360
    assert 0 <= index[0] <= index[-1] < 1797


def test_other_upstream_data_are_noticed(store, monkeypatch):
    bunch = sklearn.datasets.load_digits()
    bunch.images[5, 3, 3] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    for use in (Digits().load, Digits().prepare):
        with pytest.raises(DataError, match="install another version of scikit-learn") as caught:
            use(store)
        assert "\n" not in str(caught.value)


def test_fractional_grey_levels_are_noticed(store, monkeypatch):
    bunch = sklearn.datasets.load_digits()
    bunch.images[5, 3, 3] += 0.25
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    with pytest.raises(DataError):
        Digits().load(store)


def test_there_is_nothing_to_fetch_or_register(store):
    assert Digits().files() == ()
    Digits().prepare(store)
    with pytest.raises(UsageError, match="canonical"):
        Digits().register(store, "mine")
    assert not store.root.exists()


def test_every_entry_leads_to_a_class_of_that_name():
    import importlib

    names = [entry.name for entry in ENTRIES]
    assert names[:4] == ["digits", "fashion", "cifar10", "cifar100"]
    assert {"animal10n", "red-mini-imagenet", "mini-webvision", "clothing1m", "food101n", "folder:"} == set(names[4:])
    for entry in ENTRIES:
        module, _, attribute = entry.target.partition(":")
        dataset = getattr(importlib.import_module(module), attribute)
        assert dataset.name == entry.name
        if entry.name != "folder:":  # has classes once it is opened
            assert len(dataset.class_names) == len(set(dataset.class_names)) == dataset.num_classes
        assert len(dataset.mean) == len(dataset.std) == dataset.channels
        assert dataset.licence
        assert dataset.source
        assert all(file.url.startswith("https://") for file in dataset().files())


def test_listing_datasets_imports_no_numpy():
    import subprocess
    import sys

    code = (
        "import sys, lnlbench.builtin.datasets; print([n for n in ('numpy', 'sklearn', 'torch') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
