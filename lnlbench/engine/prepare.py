"""What a suite needs on the disk: datasets with their options, and released labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lnlbench.contracts.dataset import Dataset, DataStore, Needed
from lnlbench.contracts.noise import ReleasedLabels
from lnlbench.contracts.suite import Suite, SuiteTask
from lnlbench.engine.data import dataset_options, find_dataset
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, canonical_json


@dataclass(frozen=True)
class Requirement:
    """A dataset with options, or a set of released labels with options."""

    kind: str
    """``"dataset"`` or ``"labels"``."""
    name: str
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """For people: ``red-mini-imagenet (level=0.2)``."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name} ({options})" if options else self.name

    def needs(self, registry: Registry) -> tuple[Needed, ...]:
        """Return what a user must have."""
        if self.kind == "dataset":
            return self.dataset(registry).needs()
        return self._labels(registry).needs(self.options)

    def prepare(self, registry: Registry, store: DataStore) -> None:
        """Fetch what may be fetched and check everything.

        Raises:
            DataError: Something is missing or damaged.
        """
        if self.kind == "dataset":
            self.dataset(registry, store).prepare(store)
        else:
            self._labels(registry).prepare(store, self.options)

    def dataset(self, registry: Registry, store: DataStore | None = None) -> Dataset:
        """Build the dataset."""
        return find_dataset(registry, self.name, self.options, store)

    def _labels(self, registry: Registry) -> ReleasedLabels:
        released: ReleasedLabels = registry.noise.find(self.name).load()()
        return released


def of_suite(registry: Registry, suite: Suite, tasks: Iterable[SuiteTask] | None = None) -> list[Requirement]:
    """Return what the levels of a suite require, each thing once."""
    found = []
    for task in suite.tasks if tasks is None else tasks:
        found.append(Requirement("dataset", suite.dataset, dataset_options(suite, task)))
        if registry.noise.find(suite.noise.generator).entry.kind == "released":
            found.append(Requirement("labels", suite.noise.generator, {**suite.noise.options, **task.noise}))
    return _distinct(found)


def of_cells(registry: Registry, cells: Iterable[CellSpec]) -> list[Requirement]:
    """Return what cells require, each thing once."""
    found = []
    for cell in cells:
        found.append(Requirement("dataset", cell.dataset, cell.data_options))
        if registry.noise.find(cell.noise.generator).entry.kind == "released":
            found.append(Requirement("labels", cell.noise.generator, cell.noise.options))
    return _distinct(found)


def _distinct(requirements: Iterable[Requirement]) -> list[Requirement]:
    return list({(each.kind, each.name, canonical_json(each.options)): each for each in requirements}.values())
