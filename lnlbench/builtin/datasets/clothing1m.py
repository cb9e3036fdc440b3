"""Clothing1M: a million images of clothes from online shops, labelled by the text around them (Xiao et al., CVPR 2015).

Key lists say which images a split has; two label files say what they show. The noisy label file also covers part of the
clean splits, so an image may have two labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from lnlbench.api import DataError, DatasetOptions, DataStore, Needed, Resize
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.formats.listings import read_listing
from lnlbench.formats.messages import reason

_PAGE = "https://github.com/Cysu/noisy_label"
_AGAIN = "take the annotation files from the authors' archive again"
_IMAGES = "images/"


class Clothing1MOptions(DatasetOptions):
    """What is trained on."""

    clean_train: bool = Field(
        False,
        description="Whether the 47,570 clean training images are added, with their noisy label where they have one "
        "and their clean label otherwise, as in the released code of Jo-SRC.",
    )


class Clothing1M(FileDataset):
    """Clothing1M: 1,000,000 noisy training, 14,313 clean validation and 10,526 clean test images in 14 classes."""

    Options: ClassVar[type[DatasetOptions]] = Clothing1MOptions
    options: Clothing1MOptions

    name = "clothing1m"
    num_classes = 14
    class_names = (
        "T-Shirt",
        "Shirt",
        "Knitwear",
        "Chiffon",
        "Sweater",
        "Hoodie",
        "Windbreaker",
        "Jacket",
        "Down Coat",
        "Suit",
        "Shawl",
        "Dress",
        "Vest",
        "Underwear",
    )
    num_train = 1_000_000
    num_test = 10_526
    image_size = 224
    # Those of DivideMix and most of its successors; Jo-SRC takes the constants of ImageNet.
    mean = (0.6959, 0.6537, 0.6371)
    std = (0.3113, 0.3192, 0.3214)
    licence = "research only, on the authors' terms"
    source = _PAGE
    list_options = ({"clean_train": False}, {"clean_train": True})

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        if self.options.clean_train:
            self.num_train = 1_047_570
        self.expected = {"train": self.num_train, "validation": 14_313, "test": self.num_test}

    def resize(self) -> Resize:
        """Return 256 pixels on the shorter side, for crops of 224."""
        return Resize(256, square=False)

    def resident(self) -> bool:
        """Return no: a million images do not fit."""
        return False

    def needs(self) -> tuple[Needed, ...]:
        """Return the images and the annotation files."""
        terms = f"{_PAGE}, which says how to ask the authors; research only, after a signed agreement"
        return (
            Needed(
                path="images/",
                what="the folders 0 to 9, unpacked from 0.tar to 9.tar: images/<digit>/<2 digits>/<id>.jpg",
                source=terms,
            ),
            Needed(
                path="noisy_label_kv.txt",
                what="this, clean_label_kv.txt, noisy_train_key_list.txt, clean_train_key_list.txt, "
                "clean_val_key_list.txt and clean_test_key_list.txt; here or in annotations/",
                source=terms,
            ),
        )

    def listing(self, store: DataStore) -> Listing:
        """Read the key lists and look up their labels."""
        folder = store.folder(self.name)
        lists = _annotations(folder)
        noisy = _labels(lists / "noisy_label_kv.txt")
        clean = _labels(lists / "clean_label_kv.txt")
        train = _keys(lists / "noisy_train_key_list.txt", noisy)
        true_labels = [-1] * len(train)
        if self.options.clean_train:
            path = lists / "clean_train_key_list.txt"
            checked = _keys(path, clean)
            if common := train.keys() & checked.keys():
                raise DataError(f"{path}: {reason(repr(min(common)))} is a noisy training image as well; {_AGAIN}")
            train |= {key: noisy.get(key, label) for key, label in checked.items()}
            true_labels += checked.values()
        strip = not (folder / _IMAGES).is_dir() and (folder / "0").is_dir()
        return Listing(
            root=folder,
            train=_listed(train, strip),
            true_labels=np.array(true_labels, dtype=np.int64),
            tests={"test": _listed(_keys(lists / "clean_test_key_list.txt", clean), strip)},
            validation=_listed(_keys(lists / "clean_val_key_list.txt", clean), strip),
        )


def _annotations(folder: Path) -> Path:
    for place in (folder, folder / "annotations"):
        if (place / "noisy_label_kv.txt").exists():
            return place
    raise DataError(
        f"clothing1m: no noisy_label_kv.txt in {folder} nor in annotations/ there; {_AGAIN} (see {_PAGE}) and unpack "
        "them there, and the images into images/"
    )


def _labels(path: Path) -> dict[str, int]:
    """Read a label file: an image's key and its label."""
    listed = read_listing(path, num_labels=Clothing1M.num_classes, hint=_AGAIN)
    assert listed.labels is not None  # noqa: S101 - they were asked for
    return dict(zip(listed.paths, listed.labels.tolist(), strict=True))


def _keys(path: Path, labels: Mapping[str, int]) -> dict[str, int]:
    """Read a key list and return the label of each key, in the order of the list."""
    keys = read_listing(path, hint=_AGAIN).paths
    found: dict[str, int] = {}
    for number, key in enumerate(keys, 1):
        if key not in labels or not key.startswith(_IMAGES):
            what = "has no label" if key not in labels else f"does not start with {_IMAGES!r}"
            raise DataError(f"{path}: line {number:,}: {reason(repr(key))} {what}; {_AGAIN}")
        found[key] = labels[key]
    return found


def _listed(labels: Mapping[str, int], strip: bool) -> Listed:
    """Turn keys into paths; where the dataset's folder is the folder of images itself, ``images/`` is stripped."""
    paths = tuple(key.removeprefix(_IMAGES) for key in labels) if strip else tuple(labels)
    return Listed(paths, np.array(list(labels.values()), dtype=np.int64))
