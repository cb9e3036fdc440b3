"""Animal-10N: five pairs of animals that people mix up, labelled by people (Song, Kim, Lee, ICML 2019)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lnlbench.api import DataError, DatasetOptions, DataStore, Needed, Resize
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.formats.listings import folder_names, image_names
from lnlbench.formats.messages import reason

_SIDE = 64
_PARTS = ("training", "testing")
# Where the two folders may lie: the archives unpack to one folder inside another, or to none, depending on the tool.
_PLACES = (".", "raw_image", "raw_image_ver", "raw_image_ver/raw_image", "Animal-10N", "animal10n")
_FILE_NAME = re.compile(r"([0-9])_img_[0-9]+\.(?:jpg|jpeg|png)", re.IGNORECASE)
_HINT = "unpack raw_image.zip anew"
_AUTHORS = ("cat", "lynx", "wolf", "coyote", "cheetah", "jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig")
_CORRECTED = (*_AUTHORS[:4], "jaguar", "cheetah", *_AUTHORS[6:])


class Animal10NOptions(DatasetOptions):
    """Switches of Animal-10N."""

    class_order: Literal["corrected", "authors"] = Field(
        "corrected",
        description="Names of classes 4 and 5. The authors print cheetah, jaguar; by inspection class 4 holds the "
        "jaguars (Feng et al. 2024, CLIPCleaner). Matters to methods that use class names only.",
    )


class Animal10N(FileDataset):
    """Animal-10N: 50,000 training images with about 8 % wrong labels, 5,000 test images, 64x64 colour, 10 classes.

    Nobody knows which labels are wrong. The folders ``training`` and ``testing`` hold either the published files,
    ``<label>_img_<number>.jpg``, or one folder per class, named by its number or by the name the authors print for it.
    Either way images are in the order of (label, file name).
    """

    Options = Animal10NOptions

    name = "animal10n"
    num_classes = 10
    class_names = _CORRECTED
    num_train = 50_000
    num_test = 5_000
    image_size = _SIDE
    # Images stay on the 0-1 scale, as in CLIPCleaner (Feng et al. 2024); no constants of these images are published.
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    licence = "for research; on the authors' terms"
    source = "https://dm.kaist.ac.kr/datasets/animal-10n"

    options: Animal10NOptions
    expected = MappingProxyType({"train": 50_000, "test": 5_000})

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        self.class_names = _CORRECTED if self.options.class_order == "corrected" else _AUTHORS

    def needs(self) -> tuple[Needed, ...]:
        """Return the two folders that the image edition unpacks to."""
        terms = f"{self.source}: fill in the form, the authors mail a link to raw_image_ver.zip; unpack raw_image.zip"
        return (
            Needed(path="training", what="50,000 images of 64 x 64 pixels, <label>_img_<number>.jpg", source=terms),
            Needed(path="testing", what="5,000 images of 64 x 64 pixels, <label>_img_<number>.jpg", source=terms),
        )

    def resize(self) -> Resize:
        """Return the published size, which changes nothing."""
        return Resize(_SIDE, square=True)

    def resident(self) -> bool:
        """Return true: all images take up 0.7 GB."""
        return True

    def listing(self, store: DataStore) -> Listing:
        """List the files of the two folders."""
        root = self._locate(store.folder(self.name))
        train, test = (_list(root, part) for part in _PARTS)
        return Listing(root, train, np.full(len(train.labels), -1, np.int64), {"test": test})

    def _locate(self, folder: Path) -> Path:
        for place in _PLACES:
            if all((folder / place / part).is_dir() for part in _PARTS):
                return folder / place
        archive = next((each for each in ("raw_image.zip", "raw_image_ver.zip") if (folder / each).exists()), None)
        found = f"there is {archive}, which must be unpacked" if archive else "there is neither"
        raise DataError(
            f"{self.name}: expected the folders training/ and testing/ with <label>_img_<number>.jpg in {folder}, but "
            f"{found}; they can be had from {self.source}"
        )


def _list(root: Path, part: str) -> Listed:
    folders = folder_names(root / part, hint=_HINT)
    found = sorted(_in_class_folders(root / part, folders) if folders else _in_one_folder(root / part))
    labels = np.array([label for label, _, _ in found], np.int64)
    return Listed(tuple(f"{part}/{inner}{name}" for _, name, inner in found), labels)


def _in_one_folder(folder: Path) -> list[tuple[int, str, str]]:
    """Return (label, file name, folder inside with a slash) of every image."""
    found = []
    for name in image_names(folder, hint=_HINT):
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{folder / name}: not named <label>_img_<number>.jpg with a label in 0..9; {_HINT}")
        found.append((int(match[1]), name, ""))
    return found


def _in_class_folders(folder: Path, inner: list[str]) -> list[tuple[int, str, str]]:
    """Likewise, for one folder per class."""
    found = []
    labels: dict[int, str] = {}
    for each in inner:
        label = _label(folder, each)
        if label in labels:
            raise DataError(f"{folder}: the folders {labels[label]!r} and {each!r} stand for the same class; {_HINT}")
        labels[label] = each
        for name in image_names(folder / each, hint=_HINT):
            match = _FILE_NAME.fullmatch(name)
            if match is not None and int(match[1]) != label:
                raise DataError(f"{folder / each / name}: label {match[1]} in the folder of class {label}; {_HINT}")
            found.append((label, name, f"{each}/"))
    return found


def _label(folder: Path, name: str) -> int:
    plain = name.lower().replace("_", " ").replace("-", " ")
    known = {**{each: label for label, each in enumerate(_AUTHORS)}, **{str(label): label for label in range(10)}}
    if plain not in known:
        raise DataError(f"{folder}: the folder {reason(name)!r} is none of the ten classes, by number or name; {_HINT}")
    return known[plain]
