"""CIFAR-10 and CIFAR-100, read from the "Python version" that their author publishes.

The order of that version is the index order of every label file in the literature; the binary version has another one,
so it is no substitute, although it would spare us the pickles.

The files are looked for, unpacked or as the published archive, in the dataset's folder and then in the data folder
itself, where users of other libraries often have them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError, Dataset, DataStore, Edition, ImageData, RemoteFile
from lnlbench.formats.archives import read_members
from lnlbench.formats.pickles import load_plain_pickle
from lnlbench.formats.verify import check_digest, read_file, sha256

_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
_SIDE = 32
_CHANNELS = 3
_PIXELS = _SIDE * _SIDE
# Labels and file names take up to 40 bytes per image beside the pixels; the rest is headroom for other picklers.
_BYTES_PER_IMAGE = _CHANNELS * _PIXELS + 256
_LARGEST_META = 2**16
_LARGEST_ARCHIVE = 2**28
# Images that are transposed in one go: so few stay in the processor's cache.
_CHUNK = 64

_Content = tuple[str, str, memoryview]
"""Name, description for messages, and bytes of a file."""

_Check = Callable[[Path, memoryview], None]
"""Receives each file that was read from the disk, before it is parsed; raises :class:`DataError` to refuse it."""


class _Cifar(Dataset):
    """What the two have in common."""

    num_train = 50_000
    num_test = 10_000
    image_size = _SIDE
    channels = _CHANNELS
    licence = "none stated; cite Krizhevsky (2009)"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"

    _archive: ClassVar[RemoteFile]
    _inner: ClassVar[str]
    """The folder that the archive unpacks to."""
    _md5: ClassVar[dict[str, str]]
    """Every file of that folder, first the one with the class names, then training, then test."""
    _label_key: ClassVar[str]
    _names_key: ClassVar[str]

    def files(self) -> tuple[RemoteFile, ...]:
        """Return the published archive."""
        return (self._archive,)

    def prepare(self, store: DataStore) -> None:
        """Verify the files, downloading the archive if there is nothing."""
        for _ in self._contents(*self._verified(store)):
            pass

    def load(self, store: DataStore) -> ImageData:
        """Verify and read the files."""
        return self._parse(_one_ahead(self._contents(*self._verified(store))))

    def register(self, store: DataStore, edition: str) -> Edition:
        """Accept the files that are in place as another edition, and have the data store remember their checksums.

        Raises:
            DataError: There are none, or they are not in the format of this dataset.
            UsageError: The name is not valid.
            StorageError: The data folder cannot be written to.
        """
        place = self._locate(store)
        if place is None:
            raise DataError(f"{self.name}: there is nothing to register; put {self._inner}/ into {self._folder(store)}")
        files: dict[str, str] = {}

        def note(path: Path, data: memoryview) -> None:
            files[self._relative(store, path)] = sha256(data)

        self._parse(self._contents(place, note))
        registered = Edition(name=edition, files=files)
        store.write_edition(self.name, registered)
        return registered

    def _verified(self, store: DataStore) -> tuple[Path, _Check]:
        """Return where the files are, and what to compare them with."""
        edition = store.edition(self.name)
        place = self._locate(store)
        if edition.is_canonical:
            return place or store.fetch(self.name, self._archive), self._check_published
        if place is None:
            raise DataError(
                f"{self.name}: the files of its registered edition {edition.name!r} are missing; put {self._inner}/ "
                f"back into {self._folder(store)}, or delete edition.json there to use the published files"
            )

        def check(path: Path, data: memoryview) -> None:
            expected = edition.files.get(self._relative(store, path))
            hint = (
                f"restore the files of edition {edition.name!r}, or register what is there: "
                f"`lnlbench prepare {self.name} --edition NAME`"
            )
            if expected is None:
                raise DataError(f"{path}: not part of the registered edition; {hint}")
            check_digest(data, f"sha256:{expected}", str(path), hint=hint)

        return place, check

    def _check_published(self, path: Path, data: memoryview) -> None:
        # The archive's own checksum settles what its members are.
        digest = self._archive.digest if path.name == self._archive.name else f"md5:{self._md5[path.name]}"
        check_digest(
            data,
            digest,
            str(path),
            hint="these are not the published bytes: delete them to download those, or, if other bytes are meant, "
            f"run `lnlbench prepare {self.name} --edition NAME`",
        )

    def _folder(self, store: DataStore) -> Path:
        return store.folder(self.name)

    def _relative(self, store: DataStore, path: Path) -> str:
        return Path(os.path.relpath(path, self._folder(store))).as_posix()

    def _locate(self, store: DataStore) -> Path | None:
        """Return the unpacked folder or the archive, whichever is found first."""
        for folder in (self._folder(store), store.root):
            if (folder / self._inner).is_dir():
                return folder / self._inner
            if (folder / self._archive.name).exists():
                return folder / self._archive.name
        return None

    def _limits(self) -> dict[str, int]:
        """The most bytes each file may have, by name."""
        meta, *train, test = self._md5
        per_file = self.num_train // len(train)
        return {
            meta: _LARGEST_META,
            **dict.fromkeys(train, per_file * _BYTES_PER_IMAGE),
            test: self.num_test * _BYTES_PER_IMAGE,
        }

    def _contents(self, place: Path, check: _Check) -> Iterator[_Content]:
        """Yield each file, checked, in the order of ``_md5``.

        Every file is read once: what is parsed is what was checked.
        """
        hint = f"complete the folder, or delete it and run `lnlbench prepare {self.name}`"
        if place.is_dir():
            for name, limit in self._limits().items():
                data = _read(place / name, limit, hint)
                check(place / name, data)
                yield name, str(place / name), data
            return
        packed = read_file(place, limit=_LARGEST_ARCHIVE, hint=f"delete it and run `lnlbench prepare {self.name}`")
        check(place, memoryview(packed))
        members = read_members(
            packed, {f"{self._inner}/{name}": limit for name, limit in self._limits().items()}, str(place)
        )
        # Let go of what is no longer needed: packed, unpacked and parsed data together would be half a gigabyte.
        del packed
        for name in self._md5:
            yield name, f"{place}:{name}", memoryview(members.pop(f"{self._inner}/{name}"))

    def _parse(self, contents: Iterator[_Content]) -> ImageData:
        train_images = _new_images(self.num_train)
        train_labels = np.empty(self.num_train, dtype=np.int64)
        test_images = _new_images(self.num_test)
        test_labels = np.empty(self.num_test, dtype=np.int64)
        meta, *train, _ = self._md5
        per_file = self.num_train // len(train)
        for name, source, data in contents:
            content = load_plain_pickle(data, source)
            if not isinstance(content, dict):
                raise self._strange(source, f"a {type(content).__name__} instead of a dictionary")
            if name == meta:
                self._check_class_names(content, source)
            elif name in train:
                start = per_file * train.index(name)
                part = slice(start, start + per_file)
                self._parse_batch(content, source, train_images[part], train_labels[part])
            else:
                self._parse_batch(content, source, test_images, test_labels)
        return ImageData(train_images, train_labels, test_images, test_labels)

    def _parse_batch(
        self, content: dict[str, object], source: str, images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> None:
        """Fill ``images`` and ``labels``, whose lengths say how many there must be."""
        numbers = content.get(self._label_key)
        if not isinstance(numbers, list) or len(numbers) != len(labels) or set(map(type, numbers)) != {int}:
            raise self._strange(source, f"{self._label_key!r} is not a list of {len(labels):,} integers")
        if min(numbers) < 0 or max(numbers) >= self.num_classes:
            raise self._strange(source, f"{self._label_key!r} has numbers outside 0..{self.num_classes - 1}")
        rows = content.get("data")
        shape = (len(images), _CHANNELS * _PIXELS)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != shape:
            raise self._strange(source, f"'data' is not a uint8 array of shape {shape}")
        labels[:] = numbers
        # A row is the red plane, the green plane, the blue plane. Plane by plane is faster than one transposition.
        planes = rows.reshape(len(images), _CHANNELS, _SIDE, _SIDE)
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            for channel in range(_CHANNELS):
                images[part, ..., channel] = planes[part, channel]

    def _check_class_names(self, content: dict[str, object], source: str) -> None:
        names = content.get(self._names_key)
        items = names if isinstance(names, list) else []
        decoded = [each.decode("latin-1") if isinstance(each, bytes) else each for each in items]
        if decoded != list(self.class_names):
            raise self._strange(source, f"{self._names_key!r} is not the list of the {self.num_classes} class names")

    def _strange(self, source: str, what: str) -> DataError:
        return DataError(f"{source}: not in the format of {self.name}: {what}; use the published Python version")


def _read(path: Path, limit: int, hint: str) -> memoryview:
    """Do as :func:`read_file` does, into memory that NumPy asks the system to provide in huge pages.

    With pages of the usual size, providing them takes longer than reading.
    """
    with suppress(OSError):
        size = path.stat().st_size
        if path.is_file() and size <= limit:
            # One byte more than there is, so that a file that grows meanwhile is noticed.
            buffer = np.empty(size + 1, dtype=np.uint8)
            with path.open("rb") as file:
                if file.readinto(buffer.data) == size:
                    return buffer[:size].data
    # Whatever is the matter, this says it.
    return memoryview(read_file(path, limit=limit, hint=hint))


def _one_ahead(contents: Iterator[_Content]) -> Iterator[_Content]:
    """Read and check the next file in a thread while the caller parses this one; so there are two in memory."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, contents, None)
        while (current := following.result()) is not None:
            following = thread.submit(next, contents, None)
            yield current


def _new_images(count: int) -> NDArray[np.uint8]:
    return np.empty((count, _SIDE, _SIDE, _CHANNELS), dtype=np.uint8)


class Cifar10(_Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour, 10 classes."""

    name = "cifar10"
    num_classes = 10
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    # The standard deviations are averages of those of single images. Those over all pixels would be 0.247, 0.243 and
    # 0.262, but the published results on noisy labels (DivideMix, CIFAR-N and others) were obtained with these.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)

    _archive: ClassVar[RemoteFile] = RemoteFile(
        name="cifar-10-python.tar.gz",
        url=_ADDRESS + "cifar-10-python.tar.gz",
        size=170_498_071,
        digest="sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    )
    _inner: ClassVar[str] = "cifar-10-batches-py"
    _md5: ClassVar[dict[str, str]] = {
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }
    _label_key: ClassVar[str] = "labels"
    _names_key: ClassVar[str] = "label_names"


class Cifar100(_Cifar):
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32 colour, with their 100 fine labels."""

    name = "cifar100"
    num_classes = 100
    # In the order of their ids, which is alphabetical and not by superclass.
    class_names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
        bowl boy bridge bus butterfly camel can castle caterpillar cattle
        chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
        lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket
        rose sea seal shark shrew skunk skyscraper snail snake spider
        squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
        train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905 - a list literal of a hundred strings is harder to read
    )
    # Rounded to three digits as in DivideMix and its successors; over all pixels of the training set.
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)

    _archive: ClassVar[RemoteFile] = RemoteFile(
        name="cifar-100-python.tar.gz",
        url=_ADDRESS + "cifar-100-python.tar.gz",
        size=169_001_437,
        digest="sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    )
    _inner: ClassVar[str] = "cifar-100-python"
    _md5: ClassVar[dict[str, str]] = {
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    }
    _label_key: ClassVar[str] = "fine_labels"
    _names_key: ClassVar[str] = "fine_label_names"
