"""Maps from each class to the class it is confused with, and the noise that moves labels along such a map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import GeneratedLabels, UsageError
from lnlbench.builtin.noise.draws import Touched

SUPERCLASS_MEMBERS: tuple[tuple[int, ...], ...] = (
    (4, 30, 55, 72, 95),  # aquatic mammals
    (1, 32, 67, 73, 91),  # fish
    (54, 62, 70, 82, 92),  # flowers
    (9, 10, 16, 28, 61),  # food containers
    (0, 51, 53, 57, 83),  # fruit and vegetables
    (22, 39, 40, 86, 87),  # household electrical devices
    (5, 20, 25, 84, 94),  # household furniture
    (6, 7, 14, 18, 24),  # insects
    (3, 42, 43, 88, 97),  # large carnivores
    (12, 17, 37, 68, 76),  # large man-made outdoor things
    (23, 33, 49, 60, 71),  # large natural outdoor scenes
    (15, 19, 21, 31, 38),  # large omnivores and herbivores
    (34, 63, 64, 66, 75),  # medium-sized mammals
    (26, 45, 77, 79, 99),  # non-insect invertebrates
    (2, 11, 35, 46, 98),  # people
    (27, 29, 44, 78, 93),  # reptiles
    (36, 50, 65, 74, 80),  # small mammals
    (47, 52, 56, 59, 96),  # trees
    (8, 13, 48, 58, 90),  # vehicles 1
    (41, 69, 81, 85, 89),  # vehicles 2
)
"""The fine ids in each of the twenty superclasses of CIFAR-100 (Krizhevsky 2009); fine ids are alphabetical."""

_TEN_CLASSES = {
    # Patrini et al. 2017: truck to automobile, bird to airplane, deer to horse, cat and dog into each other.
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    # Patrini et al. 2017: digits that look alike.
    "mnist": {2: 7, 3: 8, 5: 6, 6: 5, 7: 1},
}

_BLOCK = 5


def class_map(name: str, num_classes: int) -> NDArray[np.int64]:
    """Return the target of every class; a class that maps to itself keeps its labels.

    * ``cifar10`` and ``mnist`` move five of the ten classes.
    * ``superclass`` goes to the next class inside the CIFAR-100 superclass and from the last to the first, the noise
      that Patrini et al. 2017 describe in words.
    * ``block5`` does the same inside blocks of five consecutive ids. It is what their code and that of others (Wei et
      al. 2020, JoCoR; Liu et al. 2020, ELR) computes, and reaches the right superclass for only 6 of 100 classes.
    * ``next`` goes to the next id (Han et al. 2018, Co-teaching).

    Args:
        name: One of the names above.
        num_classes: Number of classes C.

    Returns:
        ``(C,)``, int64.

    Raises:
        UsageError: The map does not exist for this number of classes.
    """
    targets = np.arange(num_classes, dtype=np.int64)
    if name == "next":
        return (targets + 1) % num_classes
    if name == "block5":
        _require(num_classes % _BLOCK == 0, name, "a multiple of 5", num_classes)
        return targets - targets % _BLOCK + (targets + 1) % _BLOCK
    if name == "superclass":
        _require(num_classes == 100, name, "100", num_classes)
        members = np.array(SUPERCLASS_MEMBERS)
        targets[members] = np.roll(members, -1, axis=1)
        return targets
    _require(num_classes == 10, name, "10", num_classes)
    for source, target in _TEN_CLASSES[name].items():
        targets[source] = target
    return targets


def move(labels: NDArray[np.int64], targets: NDArray[np.int64], touched: Touched) -> GeneratedLabels:
    """Send the touched labels to the targets of their classes."""
    matrix = np.zeros((len(targets), len(targets)))
    classes = np.arange(len(targets))
    # Added, not assigned: for a class that maps to itself both terms meet in one cell and make 1.
    matrix[classes, classes] += 1.0 - touched.probability
    matrix[classes, targets] += touched.probability
    return GeneratedLabels(np.where(touched.mask, targets[labels], labels), matrix)


def _require(fits: bool, name: str, needed: str, num_classes: int) -> None:
    if not fits:
        raise UsageError(
            f"noise map {name!r} needs {needed} classes, this dataset has {num_classes}; map 'next' fits every dataset"
        )
