"""From a suite's words to data in memory: verified, cut to what the task is about, and digested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lnlbench.contracts.dataset import Dataset, DataStore, ImageData, ImageFiles, Split
from lnlbench.contracts.suite import Suite, SuiteTask
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine.scoring import TRAINING, VALIDATION
from lnlbench.engine.seeding import derive_seed, hash_index
from lnlbench.errors import DataError, PluginError
from lnlbench.formats.canonical import image_data_digest
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, DataFacts, digest

_SAMPLED = 1000


@dataclass(frozen=True, eq=False)
class LoadedData:
    """The data of a task, on the host.

    Shapes: N training samples used, A training samples of the whole dataset.
    """

    dataset: Dataset
    images: ImageData
    """What is used: classes outside the task removed from the tests, training samples limited."""
    facts: DataFacts
    num_classes: int
    """Classes of the task, C."""
    class_names: tuple[str, ...]
    """Names of all true classes; those after the first C are outside the task."""
    all_true_labels: NDArray[np.int64]
    """``(A,)``: the true labels before any limit."""
    kept: NDArray[np.int64] | None
    """``(N,)``: which of them are used; ``None`` for all."""


def find_dataset(
    registry: Registry, name: str, options: Mapping[str, Any] | None = None, store: DataStore | None = None
) -> Dataset:
    """Build a dataset by name and, if there is a data folder to look at, open it.

    Raises:
        UnknownNameError: Nothing has this name.
        PluginError: Its code cannot be loaded.
        UsageError: An option is unknown or has a bad value.
        DataError: Its facts depend on the user's copy, which is not there.
    """
    dataset: Dataset = registry.datasets.find(name).load()(name, options)
    if store is not None:
        dataset.open(store)
    return dataset


def dataset_options(suite: Suite, task: SuiteTask) -> dict[str, Any]:
    """Return the options a task sets on its dataset."""
    options = {**suite.data, **task.data}
    if task.test_sets:
        options["test_sets"] = list(task.test_sets)
    return options


def edition_digest(store: DataStore, dataset: str) -> tuple[str, str]:
    """Return name and digest of the declared edition; the digest is empty for the canonical one."""
    edition = store.edition(dataset)
    return edition.name, "" if edition.is_canonical else digest(edition.files)


def load_data(
    dataset: Dataset,
    store: DataStore,
    limit_train: int | None = None,
    *,
    known_classes: int | None = None,
    test_sets: tuple[str, ...] = (),
) -> LoadedData:
    """Load what a task is about.

    Args:
        dataset: The dataset, opened.
        store: The data folder.
        limit_train: Use a fixed random subset of so many training images.
        known_classes: Classes from this one on are outside the task: removed from the tests, kept for training.
        test_sets: Names of the test sets, the main one first; empty if the dataset has one only.

    Raises:
        DataError: A file is missing or damaged.
        PluginError: The dataset did not return what its contract says.
    """
    whole = dataset.load(store)
    _check_contract(dataset, whole, test_sets)
    num_classes = known_classes or dataset.num_classes
    tests = {name: whole.further_tests[name] for name in test_sets[1:]}
    main = Split(whole.test_images, whole.test_labels)
    if known_classes is not None:
        main = _known(main, num_classes)
        tests = {name: _known(split, num_classes) for name, split in tests.items()}
    images = replace(
        whole, test_images=main.images, test_labels=main.labels, further_tests=tests, validation=whole.validation
    )
    kept = None if limit_train is None else limited_index(len(whole.train_labels), limit_train)
    if kept is not None:
        images = replace(
            images,
            train_images=_take(whole.train_images, kept),
            train_labels=whole.train_labels[kept],
            given_labels=None if whole.given_labels is None else whole.given_labels[kept],
            correct=None if whole.correct is None else whole.correct[kept],
        )
    facts = DataFacts(
        edition=store.edition(dataset.name).name,
        digest=image_data_digest(images),
        num_train=len(images.train_labels),
        num_test=len(images.test_labels),
        num_further_test={name: len(split.labels) for name, split in tests.items()},
        num_validation=0 if images.validation is None else len(images.validation.labels),
        num_classes=num_classes,
        image_size=dataset.image_size,
    )
    return LoadedData(dataset, images, facts, num_classes, dataset.class_names, whole.train_labels, kept)


def load_cell(cell: CellSpec, registry: Registry, store: DataStore) -> LoadedData:
    """Load the data of a cell.

    Raises:
        DataError: A file is missing or damaged, or the declared edition is another one than when the cell was planned.
    """
    dataset = find_dataset(registry, cell.dataset, cell.data_options, store)
    check_edition(cell, store)
    return load_data(dataset, store, cell.limit_train, known_classes=cell.known_classes, test_sets=cell.test_sets)


def limited_index(num_train: int, limit: int) -> NDArray[np.int64]:
    """Return the ``limit`` training positions of a reduced run: the same for every seed, method and machine.

    A smaller limit is a subset of a larger one.
    """
    bits = hash_index(derive_seed("limit train"), torch.arange(num_train))
    chosen: NDArray[np.int64] = np.sort(torch.argsort(bits)[:limit].numpy())
    return chosen


def training_sample(images: ImageData, given_labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], Split]:
    """Return the positions of up to 1,000 training images, the same for every seed and method, and what is there.

    Right and wrong labels are among them as they come, so that being asked for these images tells a method nothing.
    """
    index = limited_index(len(given_labels), min(_SAMPLED, len(given_labels)))
    return index, Split(_take(images.train_images, index), given_labels[index])


def task_info(suite: Suite, task: SuiteTask, dataset: Dataset, limit_train: int | None = None) -> TaskInfo:
    """Collect what a method may know of a task."""
    num_classes = suite.known_classes or dataset.num_classes
    return TaskInfo(
        suite=suite.name,
        task=task.name,
        dataset=dataset.name,
        num_classes=num_classes,
        num_train=limit_train or dataset.num_train,
        image_size=dataset.image_size,
        channels=dataset.channels,
        class_names=dataset.class_names[:num_classes],
        default_backbone=suite.backbone,
        default_epochs=suite.epochs,
        default_encoder=suite.encoder,
        _noise_type=suite.noise.generator,
        _noise_rate=task.rate,
        asked=set(),
    )


def check_edition(cell: CellSpec, store: DataStore) -> None:
    """Refuse to run a cell planned for other bytes than those that lie in the data folder now.

    Raises:
        DataError: The declared edition changed since the cell was planned.
    """
    if edition_digest(store, cell.dataset) != (cell.edition, cell.edition_digest):
        raise DataError(
            f"dataset {cell.dataset!r} was edition {cell.edition!r} when this cell was planned and is now "
            f"{store.edition(cell.dataset).name!r}; issue the run command again"
        )


def _take(images: NDArray[np.uint8] | ImageFiles, index: NDArray[np.int64]) -> NDArray[np.uint8] | ImageFiles:
    return images.take(index) if isinstance(images, ImageFiles) else images[index]


def _known(split: Split, num_classes: int) -> Split:
    index = np.flatnonzero(split.labels < num_classes)
    return Split(_take(split.images, index), split.labels[index])


def _check_contract(dataset: Dataset, data: ImageData, test_sets: tuple[str, ...]) -> None:
    """Datasets come from plugins; one that errs must fail here and not as a strange accuracy."""
    parts = {"training": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    parts |= {name: (split.images, split.labels) for name, split in data.further_tests.items()}
    if data.validation is not None:
        parts["validation"] = (data.validation.images, data.validation.labels)
    found = ""
    for name, (images, labels) in parts.items():
        if len(images) != len(labels):
            found = f"{len(images)} {name} images with {len(labels)} labels"
    for name, array in (("given_labels", data.given_labels), ("correct", data.correct)):
        if array is not None and array.shape != data.train_labels.shape:
            found = f"{name} of shape {array.shape} for {len(data.train_labels)} training images"
    given = data.given_labels
    if not found and data.correct is not None and ((data.correct < 0) & (data.train_labels >= 0)).any():
        found = "true labels of samples of which it says that nobody knows whether their given label is right"
    if given is not None and given.size and not 0 <= given.min() <= given.max() < dataset.num_classes:
        found = f"given labels from {given.min()} to {given.max()} for {dataset.num_classes} classes"
    if reserved := [name for name in (TRAINING, VALIDATION) if name in data.further_tests]:
        found = f"a test set {reserved[0]!r}, which is what lnlbench calls something else"
    if missing := [name for name in test_sets[1:] if name not in data.further_tests]:
        found = f"no test set {missing[0]!r}"
    if found:
        raise PluginError(f"dataset {dataset.name!r} broke its contract: it returned {found}")
