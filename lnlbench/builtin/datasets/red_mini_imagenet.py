"""Red Mini-ImageNet: web images with wrong labels take the place of a share of Mini-ImageNet (Jiang et al., ICML 2020).

A file name says where an image comes from: ``n0170432300000017.jpg`` is Mini-ImageNet's image 17 of synset n01704323,
``5922767e5677aef4.jpg`` a web image. The resolution is an option, since numbers at different ones cannot be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lnlbench.api import DataError, DatasetOptions, DataStore, Needed, Resize
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.formats.listings import read_listing
from lnlbench.formats.messages import reason
from lnlbench.formats.verify import read_file

_PAGE = "https://google.github.io/controlled-noisy-web-labels"
_ARCHIVE = "https://storage.googleapis.com/cnlw/dataset_no_images.zip"
_ANNOTATIONS = "mini-imagenet-annotations.json"
_AGAIN = f"take the lists from {_ARCHIVE} again"
_LARGEST_ANNOTATIONS = 2**28

# Lines of the published training lists; web images were not always exchanged one for one.
_NUM_TRAIN = {
    "0.0": 50_000,
    "0.05": 50_000,
    "0.1": 50_000,
    "0.15": 50_000,
    "0.2": 50_000,
    "0.3": 49_985,
    "0.4": 50_010,
    "0.5": 49_962,
    "0.6": 50_000,
    "0.8": 50_008,
}

# Folders that the published loaders have images in, relative to the folder with the lists or to the dataset's own.
_TRAIN_PLACES = ("all_images", "noisy_images", "training/{label}", "{label}")
_TEST_PLACES = ("all_validation", "validation/{label}", "{label}")

_MINI_IMAGENET = re.compile(r"(n[0-9]{8})[0-9]{8}\.jpg")
_WEB = re.compile(r"([0-9a-f]{16})\.jpg")

# In the order of the labels, which is not that of ILSVRC.
_CLASSES: dict[str, str] = {
    "n01704323": "triceratops",
    "n04515003": "upright piano",
    "n02101006": "Gordon setter",
    "n03062245": "cocktail shaker",
    "n04509417": "unicycle, monocycle",
    "n03854065": "organ, pipe organ",
    "n02110063": "Alaskan malamute",
    "n03998194": "prayer rug",
    "n02111277": "Newfoundland dog",
    "n04443257": "tobacco shop",
    "n02165456": "ladybug",
    "n03075370": "combination lock",
    "n02747177": "ashcan, trash can",
    "n01558993": "American robin",
    "n04149813": "scoreboard",
    "n03220513": "dome",
    "n03584254": "iPod",
    "n04243546": "one-armed bandit",
    "n03770439": "miniskirt",
    "n02108915": "French bulldog",
    "n02971356": "carton",
    "n02108551": "Tibetan mastiff",
    "n03908618": "pencil box",
    "n01981276": "king crab, Alaska crab",
    "n03535780": "horizontal bar, high bar",
    "n04275548": "spider web",
    "n03272010": "electric guitar",
    "n02138441": "meerkat, mierkat",
    "n03337140": "file cabinet",
    "n07584110": "consomme",
    "n01910747": "jellyfish",
    "n03146219": "cuirass",
    "n02443484": "black-footed ferret",
    "n04146614": "school bus",
    "n02113712": "miniature poodle",
    "n02981792": "catamaran",
    "n04251144": "snorkel",
    "n03838899": "oboe",
    "n04604644": "worm fence, snake fence",
    "n02116738": "African hunting dog",
    "n02099601": "golden retriever",
    "n02966193": "carousel, carrousel",
    "n02687172": "aircraft carrier",
    "n03924679": "photocopier",
    "n02120079": "Arctic fox, white fox",
    "n03476684": "hair slide",
    "n04435653": "tile roof",
    "n02091244": "Ibizan hound, Ibizan Podenco",
    "n01843383": "toucan",
    "n01532829": "house finch",
    "n03980874": "poncho",
    "n07613480": "trifle",
    "n03544143": "hourglass",
    "n03347037": "fire screen, fireguard",
    "n02114548": "white wolf",
    "n06794110": "street sign",
    "n04258138": "solar dish, solar collector",
    "n02606052": "rock beauty",
    "n02105505": "komondor",
    "n02871525": "bookshop",
    "n03127925": "crate",
    "n04418357": "theater curtain",
    "n04389033": "tank, army tank",
    "n02074367": "dugong",
    "n02110341": "dalmatian",
    "n13133613": "ear, fruit",
    "n03773504": "missile",
    "n13054560": "bolete",
    "n07747607": "orange",
    "n04522168": "vase",
    "n02089867": "Walker hound",
    "n02129165": "lion",
    "n02457408": "three-toed sloth",
    "n03676483": "lipstick",
    "n09256479": "coral reef",
    "n04067472": "reel",
    "n02823428": "beer bottle",
    "n01749939": "green mamba",
    "n03400231": "frying pan",
    "n04596742": "wok",
    "n01855672": "goose",
    "n02174001": "rhinoceros beetle",
    "n04612504": "yawl",
    "n03047690": "clog",
    "n02091831": "Saluki Hund",
    "n03017168": "chime, bell, gong",
    "n04296562": "stage",
    "n02108089": "boxer",
    "n09246464": "cliff",
    "n02219486": "ant",
    "n02950826": "cannon",
    "n01770081": "harvestman",
    "n03775546": "mixing bowl",
    "n01930112": "nematode",
    "n03888605": "parallel bars",
    "n03417042": "garbage truck",
    "n03527444": "holster",
    "n02795169": "barrel",
    "n07697537": "hotdog",
    "n03207743": "dishrag",
}
_IDS = {synset: number for number, synset in enumerate(_CLASSES)}


class RedMiniImageNetOptions(DatasetOptions):
    """Which of the published training lists, and how large the images are."""

    level: Literal["0.0", "0.05", "0.1", "0.15", "0.2", "0.3", "0.4", "0.5", "0.6", "0.8"] = Field(
        "0.2", description="Nominal share of web images, as in the name of the list: 'red_noise_nl_<level>'."
    )
    size: Literal[32, 84, 299] = Field(32, description="Side of the images in pixels.")


class RedMiniImageNet(FileDataset):
    """Red Mini-ImageNet: about 50,000 training and 5,000 test images in 100 classes, at 32, 84 or 299 pixels.

    A Mini-ImageNet image has the class of its synset. A web image was chosen for its label being wrong, so it counts
    as wrong and its true class as unknown; where the published annotations are present, only if they mention it.
    """

    Options: ClassVar[type[DatasetOptions]] = RedMiniImageNetOptions
    options: RedMiniImageNetOptions

    name = "red-mini-imagenet"
    num_classes = 100
    class_names = tuple(_CLASSES.values())
    num_test = 5_000
    # No normalisation, as in CLIPCleaner and InstanceGM; FaMUS takes the constants of CIFAR-100.
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    licence = "lists and annotations CC BY 4.0; images belong to their owners, those of ImageNet for research only"
    source = _PAGE
    list_options = tuple({"level": level} for level in _NUM_TRAIN)

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        self.image_size = self.options.size
        self.num_train = _NUM_TRAIN[self.options.level]
        self.expected = {"train": self.num_train, "test": self.num_test}

    def resize(self) -> Resize:
        """Return the square of the asked size; 320 pixels on the shorter side for crops of 299."""
        return Resize(320, square=False) if self.image_size == 299 else Resize(self.image_size, square=True)

    def resident(self) -> bool:
        """Return whether images have 32 pixels; those of 84 would take a gigabyte."""
        return self.image_size == 32

    def needs(self) -> tuple[Needed, ...]:
        """Return the lists, the three kinds of images, and the annotations."""
        imagenet = "https://image-net.org, after registration; research only"
        return (
            Needed(
                path="mini-imagenet/split/",
                what="the lists red_noise_nl_* and clean_validation, unpacked from dataset_no_images.zip",
                source=f"{_ARCHIVE}; CC BY 4.0",
            ),
            Needed(
                path=_ANNOTATIONS,
                what="the addresses of the web images, from the same archive; not needed once these are there",
                source=f"{_ARCHIVE}; CC BY 4.0",
            ),
            Needed(
                path="all_images/",
                what="the web images as <image/id>.jpg; many addresses are dead, so a copy is rarely complete",
                source=f"the addresses in {_ANNOTATIONS}, see {_PAGE}; images belong to their owners",
            ),
            Needed(
                path="all_images/",
                what="the training images of Mini-ImageNet as <synset><8 digits>.jpg, where the digits are the rank "
                "(from 1) among the synset's ILSVRC12 training images sorted by number",
                source=f"{imagenet} (ILSVRC2012_img_train.tar)",
            ),
            Needed(
                path="all_validation/",
                what="5,000 ILSVRC12 validation images named as in the list clean_validation",
                source=f"{imagenet} (ILSVRC2012_img_val.tar)",
            ),
        )

    def listing(self, store: DataStore) -> Listing:
        """Read the lists of the level, find each image's folder, and tell Mini-ImageNet's images from web images."""
        root = store.folder(self.name)
        base = self._base(root)
        # The archive may have been unpacked here or in a folder of its own, and images put beside either.
        starts = tuple(dict.fromkeys(("", base.rpartition("/")[0], base)))
        path = root / base / "split" / f"red_noise_nl_{self.options.level}"
        train = _read(path)
        tables = [root / start / _ANNOTATIONS for start in starts]
        annotated = next((_read_annotations(table) for table in tables if table.exists()), None)
        true_labels, correct = _truth(path, train, annotated)
        test = _read(path.with_name("clean_validation"))
        return Listing(
            root=root,
            train=_located(root, starts, _TRAIN_PLACES, train),
            true_labels=true_labels,
            correct=correct,
            tests={"test": _located(root, starts, _TEST_PLACES, test)},
        )

    def _base(self, root: Path) -> str:
        """Return where the published archive was unpacked."""
        for base in ("", "mini-imagenet", "dataset_no_images/mini-imagenet"):
            if (root / base / "split").is_dir():
                return base
        raise DataError(
            f"{self.name}: no folder split/ with the published lists in {root}, nor in mini-imagenet/ or "
            f"dataset_no_images/mini-imagenet/ there; unpack {_ARCHIVE} in {root}"
        )


def _read(path: Path) -> Listed:
    """Read a list of file names, without the folders they are in."""
    listed = read_listing(path, num_labels=RedMiniImageNet.num_classes, hint=_AGAIN)
    assert listed.labels is not None  # noqa: S101 - they were asked for
    return Listed(listed.paths, listed.labels)


def _truth(path: Path, train: Listed, annotated: set[str] | None) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Return the true labels and whether the given ones are right, -1 where unknown."""
    true_labels = np.full(len(train.labels), -1, dtype=np.int64)
    correct = np.full(len(train.labels), -1, dtype=np.int8)
    for index, name in enumerate(train.paths):
        if (match := _MINI_IMAGENET.fullmatch(name)) and match[1] in _IDS:
            true_labels[index] = _IDS[match[1]]
            correct[index] = true_labels[index] == train.labels[index]
        elif match := _WEB.fullmatch(name):
            correct[index] = 0 if annotated is None or match[1] in annotated else -1
        else:
            raise DataError(
                f"{path}: line {index + 1:,}: {reason(repr(name))} is named neither like an image of Mini-ImageNet "
                f"(synset, 8 digits) nor like a web image (16 hexadecimal digits); {_AGAIN}"
            )
    return true_labels, correct


def _read_annotations(path: Path) -> set[str]:
    """Return the image ids of a list of lists of records, one inner list for each image."""
    data = read_file(path, limit=_LARGEST_ANNOTATIONS, hint=_AGAIN)
    try:
        ids = {str(records[0]["image/id"]) for records in json.loads(data)["data"]}
        if not ids:
            raise ValueError("there are no records")
    # RecursionError for a tower of brackets, the others for JSON that has another structure.
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: not the published annotations: {reason(error)}; {_AGAIN}") from error
    return ids


def _located(root: Path, starts: tuple[str, ...], places: tuple[str, ...], listed: Listed) -> Listed:
    """Put the first folder that has it before each image's name; the first one of all if none has."""
    contents: dict[str, frozenset[str]] = {}

    def find(name: str, label: int) -> str:
        inner = [place.format(label=label) for place in places]
        folders = [f"{start}/{place}" if start else place for start in starts for place in inner]
        for folder in folders:
            if folder not in contents:
                contents[folder] = _names(root / folder)
            if name in contents[folder]:
                return f"{folder}/{name}"
        return f"{folders[0]}/{name}"

    paths = tuple(find(name, label) for name, label in zip(listed.paths, listed.labels.tolist(), strict=True))
    return Listed(paths, listed.labels)


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:
        # No such folder, or one that cannot be read: its images will be reported as missing.
        return frozenset()
