"""What datasets of many image files have in common: their own lists say which images there are, in which order."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import filelock
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lnlbench.api import DataError, Dataset, DataStore, Edition, ImageData, ImageFiles, RemoteFile, Resize, Split
from lnlbench.files import make_folder, read_json, storage_errors, write_json
from lnlbench.formats.inventory import MISSING, Inventory, look, read_inventory, take_stock

TRAIN = "train"
VALIDATION = "validation"
LARGEST_SIDE = "largest side"
INVENTORY_FILE = "inventory.npz"
COUNTS_FILE = "counts.json"


@dataclass(frozen=True, eq=False)
class Listed:
    """One split as its list says."""

    paths: tuple[str, ...]
    """n paths, relative to :attr:`Listing.root`, ``/`` between parts."""
    labels: NDArray[np.int64]
    """``(n,)``, int64 in [0, C)."""


@dataclass(frozen=True, eq=False)
class Listing:
    """What a dataset's own lists say, before any image file was looked at."""

    root: Path
    """Folder that all paths start from."""
    train: Listed
    """The N training images with their given labels."""
    true_labels: NDArray[np.int64] | None
    """``(N,)``, int64: -1 where nobody knows; ``None`` if the labels are clean and noise is up to the suite."""
    tests: Mapping[str, Listed]
    """The test sets by name, the main one first."""
    correct: NDArray[np.int8] | None = None
    """``(N,)``: as :attr:`lnlbench.api.ImageData.correct`."""
    validation: Listed | None = None
    """A clean validation set, if there is one."""

    def splits(self) -> dict[str, Listed]:
        """Return every split by name: training, the test sets, validation."""
        splits = {TRAIN: self.train, **self.tests}
        return splits if self.validation is None else {**splits, VALIDATION: self.validation}

    def all_paths(self) -> list[str]:
        """Return the paths of all splits, one after the other."""
        return [path for listed in self.splits().values() for path in listed.paths]

    def without(self, missing: frozenset[str]) -> Listing:
        """Return what is left when images are missing; the order stays."""
        if not missing:
            return self
        kept = _positions_outside(self.train, missing)
        return replace(
            self,
            train=_take(self.train, kept),
            true_labels=None if self.true_labels is None else self.true_labels[kept],
            correct=None if self.correct is None else self.correct[kept],
            tests={name: _take(each, _positions_outside(each, missing)) for name, each in self.tests.items()},
            validation=self.validation and _take(self.validation, _positions_outside(self.validation, missing)),
        )


class FileDataset(Dataset):
    """A dataset of JPEG or PNG files. A subclass reads its lists; all the rest is here.

    ``prepare`` reads every listed file once, makes sure that it is an image, and notes its SHA-256 in an inventory in
    the dataset's folder; an interrupted ``prepare`` goes on where it stopped. ``load`` reads no image: it compares
    sizes and times of change with the inventory.
    """

    channels: int = 3
    expected: Mapping[str, int] = {}
    """Published number of images by split (``train``, ``validation``, or the name of a test set), where known; the
    canonical edition has exactly these. An instance may correct it."""
    main_test: str = "test"
    """Name of the main test set. An instance may correct it."""
    list_options: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """The choices of options under which the lists differ; an edition is registered for all of them at once."""

    @abstractmethod
    def resize(self) -> Resize:
        """Return what is done to every image; may depend on options."""

    @abstractmethod
    def resident(self) -> bool:
        """Return whether all images fit on the device once decoded; only for squares of the image size."""

    @abstractmethod
    def listing(self, store: DataStore) -> Listing:
        """Read the dataset's own lists. An image that is nowhere is listed where it is expected first.

        Raises:
            DataError: A list is missing or damaged; the message names file (and line), cause and cure.
        """

    def files(self) -> tuple[RemoteFile, ...]:
        """Return nothing: none of these data can be downloaded without asking somebody; see :meth:`needs`."""
        return ()

    def open(self, store: DataStore) -> None:
        """Take the number of images from what ``prepare`` counted in the user's copy, if it did."""
        counts = self._counts(store).get(self._choice(), {})
        self.num_train = counts.get(TRAIN, self.num_train)
        self.num_test = counts.get(self.main_test, self.num_test)

    def prepare(self, store: DataStore) -> None:
        """Read, check and hash every listed image that was not looked at before.

        Raises:
            DataError: A list or an image is missing or damaged, a split has not as many images as were published, or
                files differ from those that were checked or registered before.
            StorageError: The inventory cannot be written.
        """
        edition = store.edition(self.name)
        listing = self.listing(store)
        if edition.is_canonical:
            self._check_counts(listing)
        with self._exclusively(store):
            kept, inventory = self._take_stock(store, listing, complete=edition.is_canonical, accept_changed=False)
            if not edition.is_canonical:
                self._check_registered(edition, kept, inventory)
            self._write_counts(store, kept, inventory)
        self.open(store)

    def forget(self, store: DataStore) -> None:
        """Have the next ``prepare`` read every file again and refuse those with another content than the first time.

        Raises:
            StorageError: The inventory cannot be written.
        """
        if not (store.folder(self.name) / INVENTORY_FILE).exists():
            return
        with self._exclusively(store):
            self._inventory(store).aged().write(self._inventory_path(store))

    def load(self, store: DataStore) -> ImageData:
        """Read the lists, and make sure that every image is as it was when the data were prepared."""
        edition = store.edition(self.name)
        inventory = self._inventory(store)
        if not inventory.paths:
            raise DataError(f"{self.name}: not prepared; {self._prepare_first()}")
        listing = self.listing(store)
        if edition.is_canonical:
            self._check_counts(listing)
        paths = listing.all_paths()
        sizes, mtimes = look(listing.root, paths)
        missing = np.flatnonzero(sizes == MISSING)
        if edition.is_canonical:
            self._check_complete([paths[position] for position in missing], paths, listing.root)
        self._check_unchanged(paths, sizes, mtimes, inventory, listing.root)
        kept = self._without_missing(listing, frozenset(paths[position] for position in missing))
        if not edition.is_canonical:
            self._check_registered(edition, kept, inventory)
        return self._image_data(kept, inventory)

    def register(self, store: DataStore, edition: str) -> Edition:
        """Accept the listed images that exist as another edition; the order of the lists stays.

        What is remembered of each split is one SHA-256 over contents and labels in their order, wherever the files lie,
        so that another user's equal copy is the same edition.

        Raises:
            DataError: A list or an image is damaged, or a split has no image at all.
            UsageError: The name is not valid.
            StorageError: The data folder cannot be written to.
        """
        files: dict[str, str] = {}
        with self._exclusively(store):
            for choice in self.list_options:
                dataset = type(self)(self.name, {**self.options.model_dump(), **choice})
                if dataset._choice() != self._choice() and not dataset._has_lists(store):
                    continue
                listing = dataset.listing(store)
                kept, inventory = dataset._take_stock(store, listing, complete=False, accept_changed=True)
                files |= dataset._split_digests(kept, inventory)
                dataset._write_counts(store, kept, inventory)
        registered = Edition(name=edition, files=files)
        store.write_edition(self.name, registered)
        return registered

    def _has_lists(self, store: DataStore) -> bool:
        try:
            self.listing(store)
        except DataError:
            return False
        return True

    def _take_stock(
        self, store: DataStore, listing: Listing, *, complete: bool, accept_changed: bool
    ) -> tuple[Listing, Inventory]:
        """Bring the inventory up to date; returns what exists of the listing."""
        paths = listing.all_paths()
        if complete:
            # Before hours are spent on reading the others.
            sizes, _ = look(listing.root, paths)
            self._check_complete([paths[each] for each in np.flatnonzero(sizes == MISSING)], paths, listing.root)
        target = self._inventory_path(store)
        known = self._inventory(store)
        with store.progress(f"{self.name}: reading image files", len(set(paths))) as advance:
            stock = take_stock(
                listing.root,
                paths,
                known,
                lambda inventory: inventory.write(target),
                advance,
                accept_changed=accept_changed,
                hint=f"restore or delete what is damaged and run {self._command()} again",
            )
        if stock.changed and not accept_changed:
            first = listing.root / stock.changed[0]
            raise DataError(
                f"{self.name}: {len(stock.changed):,} of {len(paths):,} images have another content than when they "
                f"were first checked, first: {first}; restore them, or, if they are meant, delete {target} "
                f"and run {self._command()} again"
            )
        return self._without_missing(listing, frozenset(stock.missing)), stock.inventory

    def _without_missing(self, listing: Listing, missing: frozenset[str]) -> Listing:
        kept = listing.without(missing)
        for name, listed in kept.splits().items():
            if not listed.paths:
                before = listing.splits()[name].paths
                first = f", first: {before[0]}" if before else ""
                raise DataError(
                    f"{self.name}: none of the {len(before):,} images of split {name!r} is in {listing.root}{first}; "
                    "put them there"
                )
        return kept

    def _image_data(self, listing: Listing, inventory: Inventory) -> ImageData:
        def images(listed: Listed) -> ImageFiles:
            digests = inventory.digests[inventory.rows(listed.paths)]
            return ImageFiles(listing.root, listed.paths, digests, self.resize(), self.resident())

        splits = {name: Split(images(each), each.labels) for name, each in listing.tests.items()}
        main = splits.pop(next(iter(splits)))
        validation = None
        if listing.validation is not None:
            validation = Split(images(listing.validation), listing.validation.labels)
        clean = listing.true_labels is None
        return ImageData(
            train_images=images(listing.train),
            train_labels=listing.train.labels if listing.true_labels is None else listing.true_labels,
            test_images=main.images,
            test_labels=main.labels,
            given_labels=None if clean else listing.train.labels,
            correct=listing.correct,
            further_tests=splits,
            validation=validation,
        )

    def _check_counts(self, listing: Listing) -> None:
        for name, listed in listing.splits().items():
            expected = self.expected.get(name, len(listed.paths))
            if len(listed.paths) != expected:
                raise DataError(
                    f"{self.name}: split {name!r} has {len(listed.paths):,} images in {listing.root}, {expected:,} "
                    f"were published; {self._complete_or_register()}"
                )

    def _check_complete(self, missing: list[str], paths: list[str], root: Path) -> None:
        if missing:
            raise DataError(
                f"{self.name}: {len(missing):,} of {len(paths):,} listed images are missing, first: "
                f"{root / missing[0]}; {self._complete_or_register()}"
            )

    def _check_unchanged(
        self,
        paths: list[str],
        sizes: NDArray[np.int64],
        mtimes: NDArray[np.int64],
        inventory: Inventory,
        root: Path,
    ) -> None:
        rows = inventory.rows(paths)
        present = sizes != MISSING
        new = np.flatnonzero(present & (rows < 0))
        if len(new):
            raise DataError(
                f"{self.name}: {len(new):,} images were never checked, first: {root / paths[new[0]]}; "
                f"{self._prepare_first()}"
            )
        differs = (inventory.sizes[rows] != sizes) | (inventory.mtimes[rows] != mtimes)
        changed = np.flatnonzero(present & differs)
        if len(changed):
            raise DataError(
                f"{self.name}: {len(changed):,} images were written to since they were checked, first: "
                f"{root / paths[changed[0]]}; {self._prepare_first()}"
            )

    def _check_registered(self, edition: Edition, listing: Listing, inventory: Inventory) -> None:
        for key, digest in self._split_digests(listing, inventory).items():
            if edition.files.get(key) == digest:
                continue
            what = (
                f"split {key!r} is not as it was when" if key in edition.files else f"split {key!r} was not there when"
            )
            raise DataError(
                f"{self.name}: {what} edition {edition.name!r} was registered; restore the files, or register what is "
                f"there: {self._command('--edition NAME')}"
            )

    def _split_digests(self, listing: Listing, inventory: Inventory) -> dict[str, str]:
        choice = self._choice()
        digests: dict[str, str] = {}
        for name, listed in listing.splits().items():
            columns: list[NDArray[Any]] = [inventory.digests[inventory.rows(listed.paths)], listed.labels.astype("<i8")]
            if name == TRAIN:
                columns += [] if listing.true_labels is None else [listing.true_labels.astype("<i8")]
                columns += [] if listing.correct is None else [listing.correct]
            total = hashlib.sha256(f"{len(listed.paths)} images, {len(columns)} columns\n".encode())
            for column in columns:
                total.update(np.ascontiguousarray(column).data)
            digests[f"{name}({choice})" if choice else name] = total.hexdigest()
        return digests

    def _choice(self) -> str:
        """The options that say which lists are read, as text: ``level=0.2``."""
        names = sorted({name for choice in self.list_options for name in choice})
        return ",".join(f"{name}={getattr(self.options, name)}" for name in names)

    def _counts(self, store: DataStore) -> dict[str, dict[str, int]]:
        path = store.folder(self.name) / COUNTS_FILE
        try:
            return TypeAdapter(dict[str, dict[str, int]]).validate_python(read_json(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read; delete it and run {self._command()}") from error

    def _write_counts(self, store: DataStore, listing: Listing, inventory: Inventory) -> None:
        counts = {name: len(listed.paths) for name, listed in listing.splits().items()}
        counts[LARGEST_SIDE] = int(inventory.sides[inventory.rows(listing.all_paths())].max())
        path = make_folder(store.folder(self.name)) / COUNTS_FILE
        write_json(path, {**self._counts(store), self._choice(): counts})

    def _inventory_path(self, store: DataStore) -> Path:
        return make_folder(store.folder(self.name)) / INVENTORY_FILE

    def _inventory(self, store: DataStore) -> Inventory:
        path = store.folder(self.name) / INVENTORY_FILE
        return read_inventory(path, hint=f"delete it and run {self._command()}, which reads all images again")

    @contextlib.contextmanager
    def _exclusively(self, store: DataStore) -> Iterator[None]:
        path = make_folder(store.folder(self.name)) / ".inventory.lock"
        lock = filelock.FileLock(path)
        with storage_errors(path):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                print(f"lnlbench: waiting for another process that prepares {self.name}", file=sys.stderr, flush=True)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _command(self, options: str = "") -> str:
        return f"`lnlbench prepare {self.name}{' ' if options else ''}{options}`"

    def _prepare_first(self) -> str:
        return f"run {self._command()}, which reads every image once"

    def _complete_or_register(self) -> str:
        return f"complete them, or register what you have as an edition of its own: {self._command('--edition subset')}"


def _positions_outside(listed: Listed, missing: frozenset[str]) -> NDArray[np.int64]:
    return np.flatnonzero([path not in missing for path in listed.paths]).astype(np.int64)


def _take(listed: Listed, positions: NDArray[np.int64]) -> Listed:
    return Listed(tuple(listed.paths[position] for position in positions), listed.labels[positions])
