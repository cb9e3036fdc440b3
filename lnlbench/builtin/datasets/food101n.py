"""Food-101N: dishes found on the web under the class names of Food-101 (Lee et al., CVPR 2018), tested on Food-101.

People checked the label of every sixth training image. What they found is for the harness only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError, DataStore, Needed, Resize
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.formats.listings import read_listing
from lnlbench.formats.messages import reason

_PAGE = "https://kuanghuei.github.io/Food-101N"
_FOOD101_PAGE = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"
_AGAIN = f"take the meta files from the published archive again, see {_PAGE}"
_FOOD101_AGAIN = f"unpack food-101.tar.gz again, see {_FOOD101_PAGE}"

# The published list of checked images has this one in another class than the list of images.
_MISFILED = "hot_and_sour_soup/a49e6fb26e356c6c41a37b5c18176355.jpg"

_CLASSES = tuple(
    """
    apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
    breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
    chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
    crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots
    falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
    frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
    hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
    macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes
    panna_cotta peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake
    risotto samosa sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls
    steak strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles
    """.split()  # noqa: SIM905 - a list literal of a hundred strings is harder to read
)
# Ids follow the sorted names; the lists of Food-101 have cheesecake before cheese_plate.
_IDS = {name: number for number, name in enumerate(_CLASSES)}


class Food101N(FileDataset):
    """Food-101N: 310,009 training images in 101 classes, and the 25,250 test images of Food-101."""

    name = "food101n"
    num_classes = 101
    class_names = tuple(name.replace("_", " ") for name in _CLASSES)
    num_train = 310_009
    num_test = 25_250
    image_size = 224
    # Those of ImageNet, whose weights the usual network starts from.
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    licence = "research only; images belong to their owners"
    source = _PAGE
    expected: Mapping[str, int] = {"train": num_train, "test": num_test}

    def resize(self) -> Resize:
        """Return 256 pixels on the shorter side, for crops of 224."""
        return Resize(256, square=False)

    def resident(self) -> bool:
        """Return no: 310,009 images do not fit."""
        return False

    def needs(self) -> tuple[Needed, ...]:
        """Return Food-101N and Food-101, both unpacked."""
        return (
            Needed(
                path="meta/",
                what="imagelist.tsv and verified_train.tsv; this folder and the next may lie in Food-101N_release/",
                source=f"{_PAGE}; research only",
            ),
            Needed(
                path="images/",
                what="310,009 images, images/<class>/<id>.jpg",
                source=f"{_PAGE}; images belong to their owners",
            ),
            Needed(
                path="food-101/",
                what="food-101.tar.gz (md5 85eeb15f3717b99a5da872d97d918f87) unpacked: meta/test.txt and images/, of "
                "which 25,250 are needed",
                source=f"{_FOOD101_PAGE}; images belong to their owners",
            ),
        )

    def listing(self, store: DataStore) -> Listing:
        """Read the list of images, what is known of their labels, and the test list of Food-101."""
        root = store.folder(self.name)
        base = "Food-101N_release/" if (root / "Food-101N_release").is_dir() else ""
        image_list = root / base / "meta" / "imagelist.tsv"
        keys = read_listing(image_list, header=True, hint=_AGAIN).paths
        labels = _class_ids(image_list, keys, _AGAIN)
        correct = _correct(root / base / "meta" / "verified_train.tsv", keys)
        test_list = root / "food-101" / "meta" / "test.txt"
        test_keys = read_listing(test_list, hint=_FOOD101_AGAIN).paths
        return Listing(
            root=root,
            train=Listed(tuple(f"{base}images/{key}" for key in keys), labels),
            true_labels=np.where(correct == 1, labels, -1),
            correct=correct,
            tests={
                "test": Listed(
                    tuple(f"food-101/images/{key}.jpg" for key in test_keys),
                    _class_ids(test_list, test_keys, _FOOD101_AGAIN),
                )
            },
        )


def _class_ids(path: Path, keys: tuple[str, ...], hint: str) -> NDArray[np.int64]:
    """Return the class each key ``class/image`` begins with."""
    names = [key.partition("/")[0] for key in keys]
    if unknown := set(names) - _IDS.keys():
        key = next(key for key, name in zip(keys, names, strict=True) if name in unknown)
        raise DataError(f"{path}: {reason(repr(key))} is in none of the 101 classes; {hint}")
    return np.array([_IDS[name] for name in names], dtype=np.int64)


def _correct(path: Path, keys: tuple[str, ...]) -> NDArray[np.int8]:
    """Return whether the label of each image was found right (1) or wrong (0), -1 if nobody looked at it."""
    verified = read_listing(path, num_labels=2, separator="\t", header=True, hint=_AGAIN)
    assert verified.labels is not None  # noqa: S101 - they were asked for
    found = dict(zip(verified.paths, verified.labels.tolist(), strict=True))
    if strangers := found.keys() - set(keys) - {_MISFILED}:
        raise DataError(f"{path}: {reason(repr(min(strangers)))} is not in imagelist.tsv; {_AGAIN}")
    return np.array([found.get(key, -1) for key in keys], dtype=np.int8)
