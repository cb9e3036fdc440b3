"""From a cell's specification to data in memory: verified, cut to size, and digested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lnlbench.contracts.dataset import Dataset, DataStore, ImageData
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine.seeding import derive_seed, hash_index
from lnlbench.errors import DataError
from lnlbench.formats.canonical import data_digest
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, DataFacts, digest


@dataclass(frozen=True)
class LoadedData:
    """Data of a cell, on the host."""

    dataset: Dataset
    images: ImageData
    facts: DataFacts


def find_dataset(registry: Registry, name: str) -> Dataset:
    """Build a dataset by name.

    Raises:
        UnknownNameError: Nothing has this name.
        PluginError: Its code cannot be loaded.
    """
    dataset: Dataset = registry.datasets.find(name).load()()
    return dataset


def edition_digest(store: DataStore, dataset: str) -> tuple[str, str]:
    """Return name and digest of the declared edition; the digest is empty for the canonical one."""
    edition = store.edition(dataset)
    return edition.name, "" if edition.is_canonical else digest(edition.files)


def load_data(dataset: Dataset, store: DataStore, limit_train: int | None) -> LoadedData:
    """Load a dataset, optionally only a fixed random subset of its training images.

    Raises:
        DataError: A file is missing or damaged.
    """
    images = dataset.load(store)
    if limit_train is not None:
        kept = limited_index(len(images.train_labels), limit_train)
        images = ImageData(images.train_images[kept], images.train_labels[kept], images.test_images, images.test_labels)
    facts = DataFacts(
        edition=store.edition(dataset.name).name,
        digest=data_digest(images.train_images, images.train_labels, images.test_images, images.test_labels),
        num_train=len(images.train_labels),
        num_test=len(images.test_labels),
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
    )
    return LoadedData(dataset, images, facts)


def limited_index(num_train: int, limit: int) -> NDArray[np.int64]:
    """Return the ``limit`` training positions of a reduced run: the same for every seed, method and machine.

    A smaller limit is a subset of a larger one.
    """
    bits = hash_index(derive_seed("limit train"), torch.arange(num_train))
    chosen: NDArray[np.int64] = np.sort(torch.argsort(bits)[:limit].numpy())
    return chosen


def task_info(
    registry: Registry,
    suite: str,
    task: str,
    dataset: Dataset,
    noise_type: str,
    noise_rate: float | None,
    limit_train: int | None,
) -> TaskInfo:
    """Collect what a method may know of a task."""
    found = registry.suites.find(suite).entry
    return TaskInfo(
        suite=suite,
        task=task,
        dataset=dataset.name,
        num_classes=dataset.num_classes,
        num_train=limit_train or dataset.num_train,
        image_size=dataset.image_size,
        channels=dataset.channels,
        class_names=dataset.class_names,
        default_backbone=found.backbone,
        default_epochs=found.epochs,
        _noise_type=noise_type,
        _noise_rate=noise_rate,
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
