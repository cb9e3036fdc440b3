"""The user's own images: a folder per class, and noisy labels from a table if there are any."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lnlbench.api import DataError, DatasetOptions, DataStore, Edition, Needed, Resize, UsageError
from lnlbench.builtin.datasets.filebased import LARGEST_SIDE, FileDataset, Listed, Listing
from lnlbench.contracts.suite import NAME_PATTERN
from lnlbench.files import make_folder, read_json, write_json
from lnlbench.formats.images import header_size
from lnlbench.formats.listings import folder_names, image_names, read_lines
from lnlbench.formats.messages import reason
from lnlbench.records import safe_name

PREFIX = "folder:"
EDITION = "own"
SOURCE_FILE = "source.json"
LABELS_FILE = "labels.csv"

_LAYOUT = "expected train/<class>/* and test/<class>/* with JPEG or PNG images, one folder per class"
_COLUMNS = ["file", "given_label", "true_label"]
_SMALL = 64
# Suites made for such data have its name and that of a noise in theirs.
_LONGEST_NAME = 40
_UNKNOWN = -1


class FolderOptions(DatasetOptions):
    """Switches of a folder of images."""

    image_size: int | None = Field(
        None,
        ge=8,
        le=1024,
        description="Side of the squares that networks get, in pixels; if not given, 32 where no image is larger than "
        "64 pixels, else 224.",
    )


class ImageFolder(FileDataset):
    """Images of the user: ``train/<class>/*`` and ``test/<class>/*`` in a folder known as ``folder:NAME``.

    Without a table the folders are the clean labels, and noise is up to the suite. A table ``labels.csv`` beside
    ``train`` says which labels methods are given; its columns are

    * ``file``: path relative to ``train``, e.g. ``cat/001.jpg``; an image that is not in the table is given its folder;
    * ``given_label``: name of a class, or its position among the sorted names;
    * ``true_label`` (this column may be absent, then folders are the true labels): likewise; empty if nobody knows.

    Up to 64 pixels, images are squeezed to squares and live on the device. For larger networks inputs the shorter side
    becomes 256/224 of the image size, and images are decoded as they are needed.
    """

    Options = FolderOptions

    name = PREFIX
    num_classes = 0
    class_names: tuple[str, ...] = ()
    num_train = 0
    num_test = 0
    image_size = 224
    # Those of ImageNet, which backbones with ImageNet weights expect.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    licence = "the user's own"
    source = "a folder of the user"
    labels_are_true = False

    options: FolderOptions

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        self.name = name or PREFIX

    def open(self, store: DataStore) -> None:
        """Read the names of classes and count the images.

        Until they are prepared, their size is found out by looking at headers, up to the first large one.

        Raises:
            DataError: The folder is gone or has another layout.
            UsageError: It has no name, or nothing is known under its name.
        """
        root = named_folder(self.name.removeprefix(PREFIX), store)
        self.class_names, train, test = _lists(root)
        self.num_classes = len(self.class_names)
        self.num_train, self.num_test = len(train.paths), len(test.paths)
        self.image_size = self.options.image_size or self._usual_size(store, root, train.paths + test.paths)

    def needs(self) -> tuple[Needed, ...]:
        """Return the note of where the images lie."""
        return (
            Needed(
                path=SOURCE_FILE,
                what="a note of where your images lie; there, train/<class>/* and test/<class>/*, JPEG or PNG of any "
                "size, and labels.csv with file,given_label[,true_label] if labels are noisy",
                source=f"`lnlbench prepare {PREFIX}PATH`",
            ),
        )

    def prepare(self, store: DataStore) -> None:
        """Read, check and hash every image, and take them as they are.

        Raises:
            DataError: The layout is another one, or an image or the table is damaged.
            StorageError: The inventory cannot be written.
        """
        self.register(store, EDITION)
        self.open(store)

    def register(self, store: DataStore, edition: str) -> Edition:
        """Accept the images as they are; own data have no other edition."""
        if edition != EDITION:
            raise UsageError(f"dataset {self.name!r} has only the edition {EDITION!r}; leave --edition out")
        return super().register(store, edition)

    def resize(self) -> Resize:
        """Return squares for small images, else a shorter side with the usual margin for crops."""
        if self.resident():
            return Resize(self.image_size, square=True)
        return Resize(round(self.image_size * 256 / 224), square=False)

    def resident(self) -> bool:
        """Return whether images are small."""
        return self.image_size <= _SMALL

    def listing(self, store: DataStore) -> Listing:
        """List the two folders, in the order of (class, file name), and read the table."""
        root = named_folder(self.name.removeprefix(PREFIX), store)
        classes, train, test = _lists(root)
        if not (root / LABELS_FILE).exists():
            return Listing(root, train, None, {"test": test})
        given, true = _read_labels(root / LABELS_FILE, train, classes)
        return Listing(root, Listed(train.paths, given), true, {"test": test})

    def _usual_size(self, store: DataStore, root: Path, paths: tuple[str, ...]) -> int:
        largest = self._counts(store).get(self._choice(), {}).get(LARGEST_SIDE)
        if largest is not None:
            small = largest <= _SMALL
        else:
            small = all(max(header_size(root / path)) <= _SMALL for path in paths)
        return 32 if small else 224


def name_folder(asked: str, store: DataStore) -> str:
    """Give a folder of the user the name by which results know it, so that no path gets into them.

    Args:
        asked: What follows ``folder:``, a path or a name given before.
        store: Where names are remembered.

    Returns:
        ``folder:NAME``; NAME is the last part of the path.

    Raises:
        DataError: There is no such folder, or it has another layout.
        UsageError: The name stands for another folder already.
        StorageError: The name cannot be remembered.
    """
    asked = asked.removeprefix(PREFIX)
    if not asked:
        raise UsageError(f"which folder? Write {PREFIX}PATH")
    path = Path(asked).expanduser().absolute()
    known = _source(asked, store) if NAME_PATTERN.fullmatch(asked) else None
    if known is not None and (known == path.resolve() or not path.is_dir()):
        return PREFIX + asked
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {_LAYOUT}")
    name = safe_name(path.name).strip("._+-")[:_LONGEST_NAME].rstrip("._+-")
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(f"{path}: its last part cannot be a name; call the folder something with letters or digits")
    _classes(path)
    known = _source(name, store)
    if known is not None and known != path.resolve():
        raise UsageError(
            f"{PREFIX}{name} stands for {known} already, so {path} cannot have this name; rename one of them, or "
            f"delete {store.folder(PREFIX + name)} to forget the former"
        )
    if known is None:
        write_json(make_folder(store.folder(PREFIX + name)) / SOURCE_FILE, {"path": str(path.resolve())})
    return PREFIX + name


def named_folder(name: str, store: DataStore) -> Path:
    """Return the folder that a name stands for.

    Raises:
        DataError: The folder is gone, or the note of its place is damaged.
        UsageError: Nothing is known under this name.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(f"{PREFIX}{name} is not the name of a folder; `lnlbench prepare {PREFIX}PATH` gives it one")
    path = _source(name, store)
    if path is None:
        raise UsageError(f"{PREFIX}{name} is not known; `lnlbench prepare {PREFIX}PATH` makes a folder known")
    if not path.is_dir():
        note = store.folder(PREFIX + name)
        raise DataError(f"{PREFIX}{name}: {path} is gone; put it back, or delete {note} to forget it")
    return path


def _source(name: str, store: DataStore) -> Path | None:
    path = store.folder(PREFIX + name) / SOURCE_FILE
    try:
        return Path(read_json(path)["path"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path}: damaged: {reason(error)}; delete it and run `lnlbench prepare {PREFIX}PATH`"
        ) from error


def _classes(root: Path) -> list[str]:
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise DataError(f"{root}: there is no folder {part!r} in it; {_LAYOUT}")
    names = folder_names(root / "train", hint=_LAYOUT)
    if len(names) < 2:
        raise DataError(f"{root / 'train'}: at least two folders are needed, one for each class; {_LAYOUT}")
    unknown = sorted(set(folder_names(root / "test", hint=_LAYOUT)) - set(names))
    if unknown:
        raise DataError(f"{root / 'test' / unknown[0]}: train has no such class; {_LAYOUT}")
    return names


def _lists(root: Path) -> tuple[tuple[str, ...], Listed, Listed]:
    """Return the names of the classes, the training images and the test images."""
    classes = tuple(_classes(root))
    return classes, _list(root, "train", classes), _list(root, "test", classes)


def _list(root: Path, part: str, classes: tuple[str, ...]) -> Listed:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / part / name
        if part == "test" and not folder.is_dir():
            continue
        names = image_names(folder, hint=_LAYOUT)
        paths += [f"{part}/{name}/{each}" for each in names]
        labels += [label] * len(names)
    return Listed(tuple(paths), np.array(labels, np.int64))


def _read_labels(path: Path, train: Listed, classes: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return given and true labels."""
    hint = f"correct the table; its columns are {','.join(_COLUMNS[:2])}[,{_COLUMNS[2]}]"
    rows = csv.reader(read_lines(path, hint=hint), strict=True)
    position = {each.removeprefix("train/"): number for number, each in enumerate(train.paths)}
    # Names go before numbers: a class may be called "3".
    ids = {str(label): label for label in range(len(classes))} | {name: label for label, name in enumerate(classes)}
    given, true = train.labels.copy(), train.labels.copy()
    seen: set[int] = set()
    try:
        header = next(rows)
        if header not in (_COLUMNS, _COLUMNS[:2]):
            raise ValueError(f"its first line is {reason(','.join(header))!r}")
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells instead of {len(header)}")
            place = position.get(row[0])
            if place is None:
                raise ValueError(f"there is no image {reason(row[0])!r} in train")
            if place in seen:
                raise ValueError(f"{reason(row[0])!r} is in the table already")
            seen.add(place)
            given[place] = _label(row[1], ids)
            if len(row) > 2:
                true[place] = _label(row[2], ids) if row[2] else _UNKNOWN
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: line {rows.line_num:,}: {reason(error)}; {hint}") from error
    return given, true


def _label(text: str, ids: Mapping[str, int]) -> int:
    label = ids.get(text)
    if label is None:
        raise ValueError(f"{reason(text)!r} is neither a class nor its number")
    return label
