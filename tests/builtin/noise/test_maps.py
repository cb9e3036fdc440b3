from __future__ import annotations

import numpy as np
import pytest

from lnlbench.builtin.noise.maps import SUPERCLASS_MEMBERS, class_map
from lnlbench.errors import UsageError

# Target of fine class 0, 1, 2, ...: written out once by hand, independently of the table of members.
SUPERCLASS_TARGETS = """
51 32 11 42 30 20 7 14 13 10 16 35 17 48 18 19 28 37 24 21 25 31 39 33 6 84 45 29 61 44 55 38 67 49 63 46 50 68 15 40
86 69 43 88 78 77 98 52 58 60 65 53 56 57 62 72 59 83 90 96 71 9 70 64 66 74 75 73 76 81 82 23 95 91 80 34 12 79 93 99
36 85 92 0 94 89 87 22 97 41 8 1 54 27 5 4 47 3 2 26
"""


def superclass_of() -> dict[int, int]:
    return {fine: coarse for coarse, members in enumerate(SUPERCLASS_MEMBERS) for fine in members}


def inside_superclass(name: str) -> list[int]:
    coarse = superclass_of()
    return [fine for fine, target in enumerate(class_map(name, 100).tolist()) if coarse[fine] == coarse[target]]


def test_superclass_members_are_a_partition_in_ascending_order() -> None:
    assert [len(members) for members in SUPERCLASS_MEMBERS] == [5] * 20
    assert sorted(superclass_of()) == list(range(100))
    assert all(list(members) == sorted(members) for members in SUPERCLASS_MEMBERS)


def test_superclass_map_is_the_explicit_list() -> None:
    assert class_map("superclass", 100).tolist() == [int(word) for word in SUPERCLASS_TARGETS.split()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("superclass", list(range(100))), ("block5", None), ("next", [6, 9, 39, 42, 63, 86])],
)
def test_how_many_classes_stay_inside_their_superclass(name: str, expected: list[int] | None) -> None:
    inside = inside_superclass(name)
    assert len(inside) == 6 if expected is None else inside == expected


@pytest.mark.parametrize(
    ("name", "num_classes"), [("superclass", 100), ("block5", 100), ("block5", 10), ("next", 100), ("next", 2)]
)
def test_cyclic_maps_are_permutations_without_fixed_points(name: str, num_classes: int) -> None:
    targets = class_map(name, num_classes)
    assert sorted(targets.tolist()) == list(range(num_classes))
    assert (targets != np.arange(num_classes)).all()
    assert targets.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "moved"),
    [("cifar10", {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}), ("mnist", {2: 7, 3: 8, 5: 6, 6: 5, 7: 1})],
)
def test_maps_of_ten_classes(name: str, moved: dict[int, int]) -> None:
    assert class_map(name, 10).tolist() == [moved.get(label, label) for label in range(10)]


def test_block5_stays_inside_its_block() -> None:
    targets = class_map("block5", 100)
    assert (targets // 5 == np.arange(100) // 5).all()
    assert targets[:6].tolist() == [1, 2, 3, 4, 0, 6]


@pytest.mark.parametrize(
    ("name", "num_classes", "needed"),
    [
        ("cifar10", 100, "10 classes"),
        ("mnist", 9, "10 classes"),
        ("superclass", 10, "100 classes"),
        ("block5", 12, "5"),
    ],
)
def test_a_map_made_for_other_classes_is_refused(name: str, num_classes: int, needed: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' needs .*{needed}.*this dataset has {num_classes}"):
        class_map(name, num_classes)
