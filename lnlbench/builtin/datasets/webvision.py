"""mini-WebVision: the Google images of the first 50 classes of WebVision 1.0 (Li et al., 2017).

There are two test sets: WebVision's own validation images of these classes, and those of ILSVRC12, where the 50 classes
are the first 50 synsets too. A run that asks for one of them does without the other.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from lnlbench.api import DataError, DatasetOptions, DataStore, Needed, Resize
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.formats.archives import read_members
from lnlbench.formats.listings import folder_names, image_names, read_listing
from lnlbench.formats.verify import read_verified

_PAGE = "https://data.vision.ee.ethz.ch/cvl/webvision/download.html"
_AGAIN = f"take the training and validation labels again from {_PAGE}"
_ALL_CLASSES = 1_000
_TestSet = Literal["webvision", "ilsvrc12"]
_TEST_SETS: tuple[_TestSet, ...] = ("webvision", "ilsvrc12")

# In the order of the labels of WebVision, which is that of ILSVRC.
_CLASSES: dict[str, str] = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "cock",
    "n01514859": "hen",
    "n01518878": "ostrich",
    "n01530575": "brambling",
    "n01531178": "goldfinch",
    "n01532829": "house finch",
    "n01534433": "junco",
    "n01537544": "indigo bunting",
    "n01558993": "robin",
    "n01560419": "bulbul",
    "n01580077": "jay",
    "n01582220": "magpie",
    "n01592084": "chickadee",
    "n01601694": "water ouzel",
    "n01608432": "kite",
    "n01614925": "bald eagle",
    "n01616318": "vulture",
    "n01622779": "great grey owl",
    "n01629819": "European fire salamander",
    "n01630670": "common newt",
    "n01631663": "eft",
    "n01632458": "spotted salamander",
    "n01632777": "axolotl",
    "n01641577": "bullfrog",
    "n01644373": "tree frog",
    "n01644900": "tailed frog",
    "n01664065": "loggerhead",
    "n01665541": "leatherback turtle",
    "n01667114": "mud turtle",
    "n01667778": "terrapin",
    "n01669191": "box turtle",
    "n01675722": "banded gecko",
    "n01677366": "common iguana",
    "n01682714": "American chameleon",
    "n01685808": "whiptail",
    "n01687978": "agama",
    "n01688243": "frilled lizard",
    "n01689811": "alligator lizard",
    "n01692333": "Gila monster",
    "n01693334": "green lizard",
    "n01694178": "African chameleon",
    "n01695060": "Komodo dragon",
    "n01697457": "African crocodile",
}

# Where the validation images of ILSVRC12 may lie, in the dataset's folder.
_ILSVRC12_PLACES = ("ilsvrc12/val", "imagenet/val", "ilsvrc12", "imagenet")
_ILSVRC12_AGAIN = "unpack ILSVRC2012_img_val.tar again and sort the images into one folder for each synset"
_DEVKIT = "ILSVRC2012_devkit_t12"
_DEVKIT_DIGEST = "md5:fa75699e90414af021442c21a62c3abf"
_DEVKIT_LIMIT = 2**24
_DEVKIT_META = f"{_DEVKIT}/data/meta.mat"
_DEVKIT_TRUTH = f"{_DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_MEMBERS = {_DEVKIT_META: 2**24, _DEVKIT_TRUTH: 2**20}
_DEVKIT_AGAIN = "get it from https://image-net.org, or sort the images into one folder for each synset"


class MiniWebVisionOptions(DatasetOptions):
    """What is tested on."""

    test_sets: tuple[_TestSet, ...] = Field(_TEST_SETS, min_length=1, description="The test sets, the main one first.")


class MiniWebVision(FileDataset):
    """mini-WebVision: about 66,000 training images in 50 classes, and two test sets of 2,500 images."""

    Options: ClassVar[type[DatasetOptions]] = MiniWebVisionOptions
    options: MiniWebVisionOptions

    name = "mini-webvision"
    num_classes = 50
    class_names = tuple(_CLASSES.values())
    # As counted by users of the lists; the publication has no number for the first 50 classes.
    num_train = 65_944
    num_test = 2_500
    image_size = 299
    # Those of ImageNet.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    licence = "research only; images belong to their owners"
    source = _PAGE
    expected: Mapping[str, int] = {"webvision": num_test, "ilsvrc12": num_test}
    list_options = tuple({"test_sets": sets} for number in (2, 1) for sets in permutations(_TEST_SETS, number))

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        self.main_test = self.options.test_sets[0]

    def resize(self) -> Resize:
        """Return 320 pixels on the shorter side, for crops of 299."""
        return Resize(320, square=False)

    def resident(self) -> bool:
        """Return no: they do not fit."""
        return False

    def needs(self) -> tuple[Needed, ...]:
        """Return the training images, the lists, and the test sets that were asked for."""
        terms = f"{_PAGE}; research only, images belong to their owners"
        tests = {
            "webvision": Needed(
                path="val_images_256/",
                what="the validation images, val_images_256/val*.jpg, 'Resized Images (small)', 834 MB",
                source=terms,
            ),
            "ilsvrc12": Needed(
                path="ilsvrc12/val/",
                what="the ILSVRC12 validation images in one folder for each synset (n01440764, ...) or for each label "
                "(0 to 49), or all in this folder with ILSVRC2012_devkit_t12.tar.gz beside them; or in imagenet/val/",
                source="https://image-net.org, ILSVRC2012_img_val.tar (md5 29b22e2961454d5413ddabcf34fc5622), after "
                "registration; research only",
            ),
        }
        return (
            Needed(
                path="google/",
                what="the Google images, google/q0001/*.jpg and so on, 'Resized Images (small)', 16 GB; those of the "
                "first 50 classes are enough",
                source=terms,
            ),
            Needed(path="info/", what="train_filelist_google.txt and val_filelist.txt", source=terms),
            *(tests[name] for name in dict.fromkeys(self.options.test_sets)),
        )

    def listing(self, store: DataStore) -> Listing:
        """Read the lists, as far as they are about the first 50 classes."""
        root = store.folder(self.name)
        train = _first_classes(root / "info" / "train_filelist_google.txt", "")
        readers = {"webvision": _webvision_test, "ilsvrc12": _ilsvrc12_test}
        return Listing(
            root=root,
            train=train,
            true_labels=np.full(len(train.labels), -1, dtype=np.int64),
            tests={name: readers[name](root) for name in self.options.test_sets},
        )


def _first_classes(path: Path, folder: str) -> Listed:
    """Read the lines of a list that are about the first 50 of the 1,000 classes."""
    listed = read_listing(path, num_labels=_ALL_CLASSES, hint=_AGAIN)
    assert listed.labels is not None  # noqa: S101 - they were asked for
    index = np.flatnonzero(listed.labels < MiniWebVision.num_classes)
    if not len(index):
        raise DataError(f"{path}: no line has a label below {MiniWebVision.num_classes}; {_AGAIN}")
    return Listed(tuple(folder + listed.paths[i] for i in index), listed.labels[index])


def _webvision_test(root: Path) -> Listed:
    return _first_classes(root / "info" / "val_filelist.txt", "val_images_256/")


def _ilsvrc12_test(root: Path) -> Listed:
    """List the ILSVRC12 images of the 50 synsets, in whichever of the usual layouts they are."""
    for place in _ILSVRC12_PLACES:
        folder = root / place
        if not folder.is_dir():
            continue
        names = set(folder_names(folder, hint=_ILSVRC12_AGAIN))
        for kind in (list(_CLASSES), [str(label) for label in range(len(_CLASSES))]):
            if not names.isdisjoint(kind):
                return _by_folder(folder, place, kind)
        if next(folder.glob("ILSVRC2012_val_*.JPEG"), None):
            return _flat(folder, place)
    places = ", ".join(f"{place}/" for place in _ILSVRC12_PLACES)
    raise DataError(
        f"{root}: no validation images of ILSVRC12 in any of {places}; expected one folder for each synset "
        "(n01440764, ...) or for each label (0 to 49), or all images in one folder"
    )


def _by_folder(folder: Path, place: str, kind: list[str]) -> Listed:
    """List images that lie in one folder for each class; the order is by class, then by name."""
    if missing := [name for name in kind if not (folder / name).is_dir()]:
        raise DataError(
            f"{folder}: {len(missing)} of {len(kind)} folders are missing, first {missing[0]}; {_ILSVRC12_AGAIN}"
        )
    return _listed(
        (label, f"{place}/{name}/{image}")
        for label, name in enumerate(kind)
        for image in image_names(folder / name, hint=_ILSVRC12_AGAIN)
    )


def _flat(folder: Path, place: str) -> Listed:
    """List images that lie all in one folder; the development kit says which classes they are of."""
    kits = [each / f"{_DEVKIT}.tar.gz" for each in (folder, folder.parent)]
    kit = next((path for path in kits if path.exists()), kits[0])
    # Verified before anything is parsed: the reader of its table is not made for foreign bytes.
    data = read_verified(kit, _DEVKIT_DIGEST, limit=_DEVKIT_LIMIT, hint=_DEVKIT_AGAIN)
    members = read_members(data, _DEVKIT_MEMBERS, str(kit))
    labels = _labels_by_id(members[_DEVKIT_META])
    ids = enumerate(members[_DEVKIT_TRUTH].split(), 1)
    return _listed(
        sorted(
            (labels[int(each)], f"{place}/ILSVRC2012_val_{number:08}.JPEG")
            for number, each in ids
            if int(each) in labels
        )
    )


def _labels_by_id(table: bytes) -> dict[int, int]:
    """Return the label of each of the 50 synsets by the id that the development kit gives it."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
    labels = {synset: label for label, synset in enumerate(_CLASSES)}
    return {int(each["ILSVRC2012_ID"]): labels[each["WNID"]] for each in synsets if each["WNID"] in labels}


def _listed(found: Iterable[tuple[int, str]]) -> Listed:
    labels, paths = zip(*found, strict=True)
    return Listed(paths, np.array(labels, dtype=np.int64))
