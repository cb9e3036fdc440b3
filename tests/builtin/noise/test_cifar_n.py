"""The released human labels: made-up containers in the published form, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lnlbench.builtin.noise import ENTRIES, cifar_n
from lnlbench.builtin.noise.cifar_n import CifarN
from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.store import LocalDataStore

Labels = NDArray[np.int64]
Put = Callable[..., Path]

TRUE = {
    "cifar10": np.arange(400, dtype=np.int64) * 7 % 10,
    "cifar100": np.arange(400, dtype=np.int64) * 7 % 100,
}
KEYS = {part.dataset: part.label_sets for part in cifar_n.PARTS}
NAMES = {part.dataset: part.remote.name for part in cifar_n.PARTS}


def noisy(dataset: str, key: str) -> Labels:
    """Labels that differ between label sets."""
    true = TRUE[dataset]
    wrong = np.arange(len(true)) % (KEYS[dataset].index(key) + 3) == 0
    return np.where(wrong, (true + 1) % (true.max() + 1), true)


def content(dataset: str) -> dict[str, Any]:
    found: dict[str, Any] = {key: noisy(dataset, key) for key in KEYS[dataset]}
    found["clean_label"] = TRUE[dataset]
    if dataset == "cifar100":
        found["noisy_coarse_label"] = [int(label) % 20 for label in TRUE[dataset]]
    return found


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> LocalDataStore:
    return LocalDataStore(tmp_path / "data", offline=True, progress=False)


@pytest.fixture
def put(store: LocalDataStore, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write a file where the labels are looked for, and take its checksum for the published one."""

    def write(dataset: str, data: bytes, folder: str = "cifar-n", published: bytes | None = None) -> Path:
        path = store.root / folder / NAMES[dataset]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        right = data if published is None else published
        digest = {"size": len(right), "digest": f"md5:{hashlib.md5(right, usedforsecurity=False).hexdigest()}"}
        parts = [
            part if part.dataset != dataset else cifar_n._Part(
                part.dataset, part.num_classes, part.remote.model_copy(update=digest), part.label_sets
            )
            for part in cifar_n.PARTS
        ]  # fmt: skip
        monkeypatch.setattr(cifar_n, "PARTS", tuple(parts))
        return path

    return write


def load(store: LocalDataStore, dataset: str, key: str, true: Labels | None = None) -> Labels:
    num_classes = {"cifar10": 10, "cifar100": 100}[dataset]
    labels = TRUE[dataset] if true is None else true
    return CifarN().load(store, labels, num_classes=num_classes, options={"labels": key})


@pytest.mark.parametrize(("dataset", "key"), [(dataset, key) for dataset, keys in KEYS.items() for key in keys])
def test_every_label_set_is_read(dataset: str, key: str, store: LocalDataStore, put: Put) -> None:
    put(dataset, saved(content(dataset)))
    labels = load(store, dataset, key)
    assert labels.dtype == np.int64
    assert labels.tolist() == noisy(dataset, key).tolist()
    labels[0] = 3  # a copy, that is


def test_the_label_sets_are_the_options() -> None:
    entry = next(entry for entry in ENTRIES if entry.name == "cifar-n")
    assert entry.options["labels"] == (*KEYS["cifar10"], *KEYS["cifar100"])
    assert entry.kind == "released"


@pytest.mark.parametrize("folder", ["cifar-n", "cifar10", "."])
def test_a_file_that_is_there_already_is_found(folder: str, store: LocalDataStore, put: Put) -> None:
    put("cifar10", saved(content("cifar10")), folder)
    CifarN().prepare(store, {"labels": "worse_label"})
    assert load(store, "cifar10", "worse_label").tolist() == noisy("cifar10", "worse_label").tolist()


def test_a_missing_file_says_where_it_goes_where_it_is_and_its_terms(store: LocalDataStore) -> None:
    for use in (
        lambda: CifarN().prepare(store, {"labels": "noisy_label"}),
        lambda: load(store, "cifar100", "noisy_label"),
    ):
        with pytest.raises(DataError) as caught:
            use()
        text = str(caught.value)
        assert str(store.root / "cifar-n" / "CIFAR-100_human.pt") in text
        assert "https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/" in text
        assert "CC BY-NC 4.0" in text
        assert "\n" not in text
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("key", "name", "size"),
    [("aggre_label", "CIFAR-10_human.pt", "2,401,007"), ("noisy_label", "CIFAR-100_human.pt", "1,000,959")],
)
def test_what_is_needed(key: str, name: str, size: str) -> None:
    (needed,) = CifarN().needs({"labels": key})
    assert needed.path == name
    assert needed.download
    assert size in needed.what
    assert needed.source.endswith(f"/data/{name} (CC BY-NC 4.0, no commercial use)")


def test_it_is_downloaded_and_verified(
    store: LocalDataStore, put: Put, httpserver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(content("cifar10"))
    put("cifar10", data).unlink()
    httpserver.expect_request("/CIFAR-10_human.pt").respond_with_data(data)
    monkeypatch.setenv("LNLBENCH_MIRROR", httpserver.url_for("/").rstrip("/"))
    store.offline = False
    CifarN().prepare(store, {"labels": "aggre_label"})
    store.offline = True
    assert load(store, "cifar10", "aggre_label").tolist() == noisy("cifar10", "aggre_label").tolist()
    assert len(httpserver.log) == 1


def test_another_checksum_is_refused_before_anything_is_read(store: LocalDataStore, put: Put) -> None:
    good = saved(content("cifar10"))
    path = put("cifar10", good[:-1] + b"x", published=good)
    for use in (lambda: CifarN().prepare(store, {}), lambda: load(store, "cifar10", "aggre_label")):
        with pytest.raises(
            DataError, match=r"md5 is .*, expected .*; delete it to download the published file"
        ) as caught:
            use()
        assert str(path) in str(caught.value)


def test_a_cut_file_is_refused(store: LocalDataStore, put: Put) -> None:
    good = saved(content("cifar10"))
    put("cifar10", good[:-100], published=good)
    with pytest.raises(DataError, match=f"{len(good) - 100:,} bytes, expected {len(good):,}"):
        load(store, "cifar10", "aggre_label")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def changed(**changes: object) -> bytes:
    return saved({key: value for key, value in (content("cifar10") | changes).items() if value is not None})


def in_container(data: bytes, name: str = "archive/data.pkl", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


OUT_OF_RANGE = noisy("cifar10", "aggre_label").copy()
OUT_OF_RANGE[17] = 10
SWAPPED = TRUE["cifar10"].copy()
SWAPPED[[30, 31]] = SWAPPED[[31, 30]]
WRONG = {
    "not a container": (b"PK\x03\x04 no", "not a file of torch.save"),
    "truncated": (saved(content("cifar10"))[:2000], "not a file of torch.save"),
    "bomb": (in_container(bytes(2**27), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "payload": (in_container(pickle.dumps(Payload(), 2)), "which may run code"),
    "misnamed": (in_container(pickle.dumps(content("cifar10"), 2), "archive/data.pickle"), "0 members are named"),
    "a list": (saved([1, 2]), "'clean_label' and 'aggre_label' are not both in it"),
    "no true labels": (changed(clean_label=None), "'clean_label' and 'aggre_label' are not both in it"),
    "no such labels": (changed(aggre_label=None), "'clean_label' and 'aggre_label' are not both in it"),
    "a list of labels": (changed(aggre_label=[1, 2]), "'aggre_label': not a one-dimensional array of integers"),
    "fractions": (changed(aggre_label=np.zeros(400)), "'aggre_label': not a one-dimensional array of integers"),
    "too short": (changed(aggre_label=np.zeros(399, np.int64)), "'aggre_label': 399 labels for a training set of 400"),
    "too long": (changed(clean_label=np.zeros(401, np.int64)), "'clean_label': 401 labels for a training set of 400"),
    "out of range": (changed(aggre_label=OUT_OF_RANGE), "label 10 at index 17 is not one of the classes 0 to 9"),
    "negative": (changed(aggre_label=-TRUE["cifar10"]), "label -7 at index 1 is not one of the classes"),
    "another order": (
        changed(clean_label=SWAPPED),
        "its true label at index 30 is 7, that of the training set is 0 (2 differ): the file or the images are in ano",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), WRONG.values(), ids=list(WRONG))
def test_wrong_content_is_one_line(
    data: bytes, said: str, store: LocalDataStore, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put("cifar10", data)
    monkeypatch.chdir(path.parent)
    with pytest.raises(DataError) as caught:
        load(store, "cifar10", "aggre_label")
    text = str(caught.value)
    assert text.startswith(str(path))
    assert said in text
    assert text.isprintable()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("num_classes", "key", "said"),
    [
        (10, "noisy_label", "'noisy_label' of cifar-n is for cifar100, not for 10 classes; choose aggre_label or"),
        (100, "worse_label", "'worse_label' of cifar-n is for cifar10, not for 100 classes; choose noisy_label"),
        (8, "worse_label", "'worse_label' of cifar-n is for cifar10, not for 8 classes"),
    ],
)
def test_labels_of_the_other_dataset_are_refused(num_classes: int, key: str, said: str, store: LocalDataStore) -> None:
    with pytest.raises(UsageError, match=said):
        CifarN().load(store, TRUE["cifar10"], num_classes=num_classes, options={"labels": key})


def test_unknown_labels_are_refused(store: LocalDataStore) -> None:
    for use in (
        lambda options: CifarN().needs(options),
        lambda options: CifarN().prepare(store, options),
        lambda options: CifarN().load(store, TRUE["cifar10"], num_classes=10, options=options),
    ):
        with pytest.raises(UnknownNameError, match="'labels' of cifar-n noise: 'worst_label'; did you mean"):
            use({"labels": "worst_label"})


def test_the_published_size_and_speed_are_no_trouble(store: LocalDataStore, put: Put, benchmark: Any) -> None:
    """A container of published size: 50,000 samples, two of its entries plain lists."""
    true = np.arange(50_000, dtype=np.int64) % 100
    lists = {name: (true % 20).tolist() for name in ("clean_coarse_label", "noisy_coarse_label")}
    put("cifar100", saved({"clean_label": true, "noisy_label": true[::-1].copy(), **lists}))
    labels = benchmark(load, store, "cifar100", "noisy_label", true)
    assert (labels == true[::-1]).all()


@pytest.mark.realdata
@pytest.mark.skipif(
    "LNLBENCH_TEST_CIFARN" not in os.environ,
    reason="LNLBENCH_TEST_CIFARN names no folder with cifar10n.npz and cifar100n.npz",
)
@pytest.mark.parametrize(
    ("dataset", "key", "wrong"),
    [
        ("cifar10", "aggre_label", 4_505),
        ("cifar10", "random_label1", 8_617),
        ("cifar10", "random_label2", 9_061),
        ("cifar10", "random_label3", 8_820),
        ("cifar10", "worse_label", 20_104),
        ("cifar100", "noisy_label", 20_100),
    ],
)
def test_the_released_labels(dataset: str, key: str, wrong: int, store: LocalDataStore, put: Put) -> None:
    """The published arrays in a container like the published one, read by the loader."""
    with np.load(Path(os.environ["LNLBENCH_TEST_CIFARN"]) / f"{dataset}n.npz") as file:
        found: dict[str, Any] = {name: file[name].astype(np.int64) for name in file if "label" in name}
    for name in found:
        if "coarse" in name:
            found[name] = found[name].tolist()
    data = saved(found)
    # What the container adds depends on the version of PyTorch that wrote it.
    published = {"cifar10": 2_401_007, "cifar100": 1_000_959}[dataset]
    assert len(data) == pytest.approx(published, abs=2_000)
    put(dataset, data)
    labels = load(store, dataset, key, found["clean_label"])
    assert np.count_nonzero(labels != found["clean_label"]) == wrong
