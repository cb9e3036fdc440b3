"""Every suite from its files to a row: made-up files in the published layouts, the real commands."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lnlbench.builtin.datasets import fashion, webvision
from lnlbench.builtin.datasets.cifar import Cifar10, Cifar100
from lnlbench.builtin.noise import cifar_n, seal
from lnlbench.plugins import discover

EDITION = "made-up"
SUITES = [each.entry.name for each in discover().suites if each.entry.variant_of is None]
TRAIN, TEST = 500, 100
"""What is left of the 50,000 and 10,000 images of CIFAR."""
UNREGISTERED = {"digits", "fashion"}
METHODS = ("ccl", "ce", "dividemix", "josrc")
CASES = [
    # All methods on all suites take minutes, so that each suite has one of them in turn, and all when there is time.
    *(pytest.param(name, METHODS[number % 4 :][:1], id=name) for number, name in enumerate(SUITES)),
    *(pytest.param(name, METHODS, id=f"{name}-all", marks=pytest.mark.slow) for name in SUITES),
]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write_cifar(folder: Path, num_classes: int) -> NDArray[np.int64]:
    """Write CIFAR-10 or CIFAR-100 with random pixels; returns the training labels."""
    rng = np.random.default_rng(num_classes)
    if num_classes == 10:
        inner, key, names = "cifar-10-batches-py", "labels", {"label_names": list(Cifar10.class_names)}
        files = {f"data_batch_{number}": TRAIN // 5 for number in range(1, 6)} | {"test_batch": TEST}
        meta = "batches.meta"
    else:
        inner, key, names = "cifar-100-python", "fine_labels", {"fine_label_names": list(Cifar100.class_names)}
        files, meta = {"train": TRAIN, "test": TEST}, "meta"
    place = folder / inner
    place.mkdir(parents=True)
    (place / meta).write_bytes(pickle.dumps(names, protocol=2))
    labels = {}
    for name, count in files.items():
        labels[name] = rng.permutation(count) % num_classes
        # Below 128, a byte stays a byte in the text that protocol 2 stores it as.
        rows = rng.integers(0, 128, (count, 3072), dtype=np.uint8)
        (place / name).write_bytes(pickle.dumps({key: labels[name].tolist(), "data": rows}, protocol=2))
    return np.concatenate([each for name, each in labels.items() if not name.startswith("test")]).astype(np.int64)


def write_fashion(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    parts = []
    for part, shape in zip(fashion._PARTS, ((200, 28, 28), (200,), (20, 28, 28), (20,)), strict=True):
        array = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        data = struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()
        (folder / f"{part.name}.gz").write_bytes(gzip.compress(data, 1))
        parts.append(replace(part, shape=array.shape, size=len(data), md5=md5(data)))
    fashion._PARTS = tuple(parts)


def write_released(root: Path, true: dict[str, NDArray[np.int64]]) -> None:
    """Write the label files of CIFAR-N and SEAL, and have their checksums taken for the published ones."""
    parts = []
    for part in cifar_n.PARTS:
        labels = true[part.dataset]
        shifted = np.where(np.arange(len(labels)) % 4 == 0, (labels + 1) % part.num_classes, labels)
        buffer = io.BytesIO()
        torch.save({"clean_label": labels} | dict.fromkeys(part.label_sets, shifted), buffer)
        path = root / "cifar-n" / part.remote.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        digest = {"size": path.stat().st_size, "digest": f"md5:{md5(path.read_bytes())}"}
        parts.append(replace(part, remote=part.remote.model_copy(update=digest)))
    cifar_n.PARTS = tuple(parts)
    for level in seal.DIGESTS:
        labels = true["cifar10"]
        wrong = np.arange(len(labels)) % 10 < round(10 * float(level))
        rows = (f"{a},{b}" for a, b in zip(labels, np.where(wrong, (labels + 1) % 10, labels), strict=True))
        data = "\n".join(["label,label_noisy", *rows, ""]).encode()
        path = root / "seal" / f"dependent{level}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        seal.DIGESTS[level] = f"md5:{md5(data)}"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, trees: ModuleType, web_trees: ModuleType) -> Iterator[Path]:
    """A data folder with files for every suite; nothing is prepared yet."""
    root = tmp_path_factory.mktemp("everything")
    published = (fashion._PARTS, cifar_n.PARTS, dict(seal.DIGESTS))
    counts = {cls: (cls.num_train, cls.num_test) for cls in (Cifar10, Cifar100)}
    for cls in counts:
        cls.num_train, cls.num_test = TRAIN, TEST
    write_released(
        root, {name: write_cifar(root / name, count) for name, count in (("cifar10", 10), ("cifar100", 100))}
    )
    write_fashion(root / "fashion")
    trees.animal10n(root / "animal10n")
    for level in ("0.2", "0.4", "0.6", "0.8"):
        web_trees.red_mini_imagenet(root / "red-mini-imagenet", level=level)
    web_trees.webvision(root / "mini-webvision", per_class=1)
    web_trees.ilsvrc12(root / "mini-webvision", list(webvision._CLASSES))
    web_trees.clothing1m(root / "clothing1m")
    web_trees.food101n(root / "food101n")
    yield root
    fashion._PARTS, cifar_n.PARTS, digests = published
    seal.DIGESTS.update(digests)
    for cls, (train, test) in counts.items():
        cls.num_train, cls.num_test = train, test


@pytest.mark.parametrize(("name", "methods"), CASES)
def test_every_suite_runs(
    name: str, methods: tuple[str, ...], everything: Path, cli: Callable[..., Any], workplace: Path
) -> None:
    suite = discover().suites.find(name).entry
    data = ("--data", everything, "--offline")
    if suite.dataset not in UNREGISTERED and not (everything / suite.dataset / "edition.json").exists():
        if suite.dataset not in ("cifar10", "cifar100"):
            refused = cli("prepare", name, *data)
            assert refused.code == 1, "a handful of images is not the published set"
            assert "--edition" in refused.err
        registered = cli("prepare", suite.dataset, "--edition", EDITION, *data)
        assert registered.code == 0, registered.err
    prepared = cli("prepare", name, *data)
    assert prepared.code == 0, prepared.err
    assert "ready" in prepared.out

    task = suite.tasks[-1]
    command = (
        "run",
        "--method",
        ",".join(methods),
        "--suite",
        name,
        "--task",
        task.name,
        "--seeds",
        "1",
        "--epochs",
        "2",
    )
    # A backbone that is quick on 8 as on 299 pixels; of its kind small enough for a batch of one.
    small = "small-cnn" if suite.dataset in ("digits", "fashion", "cifar10", "cifar100") else "timm:test_resnet"
    options = ["--epochs", "2", "--set", f"backbone={small}", "--limit-train", "24"]
    for method in methods:
        options += () if method == "ce" else ("--set", f"{method}.warmup_epochs=1")
    answer = cli(*command, *options, "--executor", "inline", "--precision", "float32", *data)
    assert answer.code == 0, answer.err
    board = workplace / "leaderboards" / "measured" / f"{name}.csv"
    rows = list(csv.DictReader(board.read_text().splitlines()))
    tests = task.test_sets or (task.name,)
    assert sorted((row["method"], row["task"]) for row in rows) == sorted(
        (method, test) for method in methods for test in tests
    )
    own = suite.noise.generator == "own"
    for row in rows:
        assert row["edition"] == ("canonical" if suite.dataset in UNREGISTERED else EDITION)
        assert row["last10_mean"] != ""
        assert (row["top5_last10_mean"] != "") == suite.top5
        assert (row["best_val_mean"] != "") == (suite.dataset == "clothing1m")
        assert (row["noise_seeds"] == "") == (own or suite.noise.generator in ("cifar-n", "seal"))
        assert (row["ood_share_mean"] not in ("", "0.00")) == (suite.known_classes is not None)
        known_truth = not own or suite.dataset in ("red-mini-imagenet", "food101n") or "+clean-train" in name
        assert (row["realised_rate_mean"] != "") == known_truth, "unknown is blank, not zero"
        assert (row["nominal_rate"] != "") == (task.rate is not None)
    # The board recomputes to the same bytes.
    before = board.read_bytes()
    assert cli("score").code == 0
    assert board.read_bytes() == before
