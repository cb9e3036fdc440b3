"""The noisy training set as a method sees it: loaders with named views, networks by role, and no truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lnlbench.contracts.backbone import BackboneEntry, BackboneFactory
from lnlbench.contracts.task import Batch, Loader, Selection, TaskInfo, ValidationSplit
from lnlbench.contracts.views import PLAIN, ViewRecipe
from lnlbench.engine.encoders import Encoders, TaskEncoder
from lnlbench.engine.networks import PrecisionNetwork
from lnlbench.engine.seeding import Clock, derive_seed, hash_index
from lnlbench.engine.views import PixelSource
from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.plugins import Catalogue


class DeviceLoader:
    """Mini-batches from a :class:`PixelSource`; implements :class:`lnlbench.contracts.task.Loader`."""

    def __init__(
        self,
        source: PixelSource,
        labels: Tensor,
        clock: Clock,
        role: str,
        batch_size: int,
        recipes: tuple[ViewRecipe, ...],
        index: Tensor,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        self._source = source
        self._labels = labels
        self._clock = clock
        self._role = role
        self._batch_size = batch_size
        self._recipes = recipes
        self._index = index
        self._shuffle = shuffle
        self._drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self._index), self._batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[Batch]:
        clock = self._clock
        number = clock.next_pass(self._role)
        where = (clock.seed, self._role, clock.moment, number)
        index = self._index
        if self._shuffle:
            # Sorting by a hash of the index gives a permutation that is the same on every device.
            index = index[torch.argsort(hash_index(derive_seed("data order", *where), index))]
        labels = self._labels[index]
        keys = tuple(derive_seed("augmentation", *where, view) for view in range(len(self._recipes)))
        batches = self._source.batches(index, self._batch_size, len(self), self._recipes, keys)
        for batch, views in enumerate(batches):
            rows = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            yield Batch(index=index[rows], labels=labels[rows], views=views)

    def forever(self) -> Iterator[Batch]:
        """Start a new pass whenever one is exhausted."""
        if len(self) == 0:
            raise ValueError(f"loader {self._role!r} has no batch to repeat")
        while True:
            yield from self


class DeviceTask:
    """Implements :class:`lnlbench.contracts.task.Task`."""

    def __init__(
        self,
        info: TaskInfo,
        source: PixelSource,
        given_labels: Tensor,
        views: dict[str, ViewRecipe],
        clock: Clock,
        backbones: Catalogue[BackboneEntry],
        device: torch.device,
        precision: str,
        compile_networks: bool,
        encoders: Encoders,
    ) -> None:
        self.info = info
        self.num_train = len(given_labels)
        self.num_classes = info.num_classes
        self.device = device
        self.labels = given_labels.to(device)
        self.selection: Selection | None = None
        self._encoders = encoders
        self._views = {"plain": PLAIN, **views}
        self._clock = clock
        self._backbones = backbones
        self._precision = precision
        self._compile = compile_networks
        self._source = source

    def encoder(self, name: str) -> TaskEncoder:
        """See :meth:`lnlbench.contracts.task.Task.encoder`."""
        return self._encoders.get(name)

    def network(self, role: str, backbone: str) -> nn.Module:
        """See :meth:`lnlbench.contracts.task.Task.network`."""
        factory: BackboneFactory = self._backbones.find(backbone).load()
        with torch.random.fork_rng(devices=[]):
            # Weights are drawn on the CPU, so that they are the same whatever the device.
            torch.manual_seed(derive_seed(self._clock.seed, "stream", f"init:{role}") & 0x7FFFFFFFFFFFFFFF)
            inner = factory(
                backbone,
                num_classes=self.num_classes,
                channels=self.info.channels,
                image_size=self.info.image_size,
            )
        return PrecisionNetwork(inner, self._precision, self.device, self._compile)

    def loader(
        self,
        role: str,
        *,
        batch_size: int,
        views: Sequence[str | ViewRecipe] = ("weak",),
        index: Tensor | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Loader:
        """See :meth:`lnlbench.contracts.task.Task.loader`."""
        return DeviceLoader(
            self._source,
            self.labels,
            self._clock,
            role,
            batch_size,
            tuple(self._recipe(view) for view in views),
            torch.arange(self.num_train, device=self.device) if index is None else index.to(self.device),
            shuffle,
            drop_last,
        )

    def ask_validation(self, fraction: float = 0.1) -> ValidationSplit:
        """See :meth:`lnlbench.contracts.task.Task.ask_validation`."""
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"validation fraction {fraction} is not strictly between 0 and 1")
        self.info.asked.add("validation")
        index = torch.arange(self.num_train, device=self.device)
        bits = hash_index(derive_seed(self._clock.seed, "validation"), index)
        held_out = torch.zeros(self.num_train, dtype=torch.bool, device=self.device)
        for label in range(self.num_classes):
            members = index[self.labels == label]
            count = round(fraction * len(members))
            held_out[members[torch.argsort(bits[members])[:count]]] = True
        return ValidationSplit(train_index=index[~held_out], validation_index=index[held_out])

    def _recipe(self, view: str | ViewRecipe) -> ViewRecipe:
        if isinstance(view, ViewRecipe):
            return view
        if view not in self._views:
            raise UnknownNameError(f"view of suite {self.info.suite!r}", view, self._views)
        return self._views[view]
