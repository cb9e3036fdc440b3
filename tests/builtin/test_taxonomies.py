"""Trees of classes: the two that come along, and what is said of a file that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lnlbench.blocks.semantics import lca_distances
from lnlbench.builtin.datasets.cifar import Cifar10, Cifar100
from lnlbench.builtin.noise.maps import SUPERCLASS_MEMBERS
from lnlbench.builtin.taxonomies import read_taxonomy, taxonomy_of
from lnlbench.errors import UsageError


@pytest.mark.parametrize("dataset", [Cifar10, Cifar100])
def test_the_classes_are_the_leaves_and_equally_deep(dataset: type[Cifar10] | type[Cifar100]) -> None:
    taxonomy = taxonomy_of(dataset.name)
    assert taxonomy is not None
    assert taxonomy.name == dataset.name
    lines = taxonomy.lines(dataset.class_names)
    assert set(taxonomy.parents) - set(taxonomy.parents.values()) == set(dataset.class_names)
    assert {len(line) for line in lines} == {4 if dataset is Cifar10 else 3}
    assert {line[-1] for line in lines} == {"thing"}


def test_cifar100_has_its_superclasses() -> None:
    taxonomy = taxonomy_of("cifar100")
    assert taxonomy is not None
    distances = lca_distances(taxonomy.lines(Cifar100.class_names)).numpy()
    expected = np.full((100, 100), 2.0)
    for members in SUPERCLASS_MEMBERS:
        expected[np.ix_(members, members)] = 1.0
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_array_equal(distances, expected)
    groups = {taxonomy.lines([Cifar100.class_names[members[0]]])[0][1] for members in SUPERCLASS_MEMBERS}
    assert len(groups) == 20
    assert taxonomy.parents["maple_tree"] == "trees"
    assert taxonomy.parents["bicycle"] == "vehicles 1"


def test_cifar10_tells_animals_from_vehicles() -> None:
    taxonomy = taxonomy_of("cifar10")
    assert taxonomy is not None
    place = {name: number for number, name in enumerate(Cifar10.class_names)}
    distances = lca_distances(taxonomy.lines(Cifar10.class_names)).numpy()
    for one, other, distance in (
        ("cat", "dog", 1),
        ("automobile", "truck", 1),
        ("airplane", "ship", 2),
        ("bird", "cat", 2),
        ("airplane", "bird", 3),
    ):
        assert distances[place[one], place[other]] == distance


def test_other_datasets_have_none() -> None:
    assert taxonomy_of("digits") is None
    assert taxonomy_of("folder:cifar10") is None


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "pets.toml"
    path.write_text('cat = "pet"\n"guinea pig" = "rodent"\nrodent = "pet"\n', encoding="utf-8")
    taxonomy = read_taxonomy(path)
    assert taxonomy.name == str(path)
    assert taxonomy.lines(["guinea pig", "cat"]) == [("guinea pig", "rodent", "pet"), ("cat", "pet")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'cat = "pet"\ncat = "pet"', "is not valid TOML: Cannot overwrite a value"),
        (b"just words", "is not valid TOML"),
        (b"cat = 'p\xe9t'", "is not valid TOML: 'utf-8' codec can't decode"),
        (b"x = " + b"[" * 5000, "is not valid TOML"),
        (b"cat = 1", "'cat': expected the name of its parent in quotes"),
        (b"[groups]\ncat = 'pet'", "'groups': expected the name of its parent in quotes"),
        (b"cat = 'pet'\ntruck = 'vehicle'", "has 2 roots, 'pet', 'vehicle'; give them one parent"),
        (b"a = 'b'\nb = 'c'\nc = 'b'", "the parents of 'a' go in a circle: a -> b -> c -> b"),
        (b"a = 'a'", "the parents of 'a' go in a circle: a -> a"),
    ],
)
def test_what_is_no_tree_is_refused_in_one_line(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.toml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as raised:
        read_taxonomy(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read taxonomy .*none\.toml: No such file"):
        read_taxonomy(tmp_path / "none.toml")
    with pytest.raises(UsageError, match=r"cannot read taxonomy .*: Is a directory"):
        read_taxonomy(tmp_path)


def test_classes_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tree.toml"
    path.write_text('cat = "pet"')
    taxonomy = read_taxonomy(path)
    with pytest.raises(UsageError, match=r"class 'dog' has no parent; name one$"):
        taxonomy.lines(["cat", "dog"])
    # The root of the tree is no class of it.
    with pytest.raises(UsageError, match=r"class 'pet' \(and 1 more\) has no parent"):
        taxonomy.lines(["pet", "cat", "dog"])
