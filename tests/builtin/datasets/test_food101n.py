from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lnlbench.builtin.datasets import food101n
from lnlbench.builtin.datasets.food101n import Food101N
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.errors import DataError
from lnlbench.suitefiles import read_suite_file

# Loaded by path: tests are not packages here.
spec = importlib.util.spec_from_file_location("trees_web", Path(__file__).parents[2] / "trees_web.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)

IMAGES = "meta/imagelist.tsv"
VERIFIED = "meta/verified_train.tsv"
TEST = "food-101/meta/test.txt"
LISTS = (IMAGES, VERIFIED, TEST)


@pytest.fixture
def folder(store):
    return store.folder("food101n")


def small():
    """The dataset with the numbers of images of a small tree."""
    dataset = Food101N("food101n")
    dataset.expected = {"train": 12, "test": 6}
    return dataset


def refusal(call, *args, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("base", ["", "Food-101N_release"])
@pytest.mark.parametrize("header", [True, False])
def test_what_the_lists_say(store, folder, base, header):
    trees.food101n(folder, base=base, header=header)
    listing = small().listing(store)
    start = f"{base}/images" if base else "images"
    assert listing.train.paths[:4] == (
        f"{start}/apple_pie/{0:032x}.jpg",
        f"{start}/cheese_plate/{0:032x}.jpg",
        f"{start}/cheesecake/{0:032x}.jpg",
        f"{start}/apple_pie/{1:032x}.jpg",
    )
    assert listing.train.labels.tolist() == [0, 16, 17] * 4
    assert listing.correct.tolist() == [1, 1, 1, 0, 0, 0, *[-1] * 6]
    assert listing.true_labels.tolist() == [0, 16, 17, *[-1] * 9]
    assert listing.tests["test"].paths[:2] == (
        "food-101/images/cheesecake/1000.jpg",
        "food-101/images/cheesecake/1001.jpg",
    )
    assert listing.tests["test"].labels.tolist() == [17, 17, 16, 16, 0, 0]
    for path in listing.all_paths():
        assert (folder / path).is_file()


def test_loading(store, folder):
    trees.food101n(folder)
    dataset = small()
    dataset.prepare(store)
    data = dataset.load(store)
    assert isinstance(data.train_images, ImageFiles)
    assert not data.train_images.resident
    assert data.train_images.resize == Resize(256, square=False)
    assert data.given_labels.tolist() == [0, 16, 17] * 4
    assert data.train_labels.tolist() == [0, 16, 17, *[-1] * 9]
    assert data.correct.tolist() == [1, 1, 1, 0, 0, 0, *[-1] * 6]
    assert data.test_labels.tolist() == [17, 17, 16, 16, 0, 0]
    assert data.given_labels.dtype == data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.correct.dtype == np.int8


def test_food101_may_be_a_link(store, folder, tmp_path):
    trees.food101n(folder)
    (folder / "food-101").rename(tmp_path / "food-101")
    (folder / "food-101").symlink_to(tmp_path / "food-101")
    small().prepare(store)
    assert len(small().load(store).test_labels) == 6


def test_the_published_numbers_are_required(store, folder):
    assert Food101N().expected == {"train": 310_009, "test": 25_250}
    trees.food101n(folder)
    message = refusal(Food101N("food101n").prepare, store)
    assert "12 images" in message
    assert "310,009" in message


@pytest.mark.parametrize("name", LISTS)
def test_each_list_is_required(store, folder, name):
    trees.food101n(folder)
    (folder / name).unlink()
    message = refusal(small().listing, store)
    assert message.startswith(f"{folder / name}: is missing")
    assert "https://" in message


def test_a_checked_image_that_is_not_listed_is_refused(store, folder):
    trees.food101n(folder)
    path = folder / VERIFIED
    path.write_text(path.read_text() + "cheesecake/unheard-of.jpg\t1\n")
    message = refusal(small().listing, store)
    assert message.startswith(f"{path}: 'cheesecake/unheard-of.jpg' is not in imagelist.tsv")


@pytest.mark.parametrize(("name", "line"), [(IMAGES, "cake/1.jpg"), (TEST, "cake/1"), (IMAGES, "1.jpg"), (TEST, "1")])
def test_an_unknown_class_is_refused(store, folder, name, line):
    trees.food101n(folder)
    path = folder / name
    path.write_text(path.read_text() + f"{line}\n")
    message = refusal(small().listing, store)
    assert message.startswith(f"{path}: '{line}' is in none of the 101 classes")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("how", trees.SPOILED)
def test_spoiled_lists_are_refused(store, folder, name, how):
    trees.food101n(folder)
    path = folder / name
    path.write_bytes(trees.SPOILED[how](path.read_bytes()))
    assert refusal(small().listing, store).startswith(f"{path}: ")


@pytest.mark.parametrize("line", ["", "\t2", "\t-1", "\tyes", "\t0.5", " 1", "\t"])
def test_a_verdict_other_than_0_and_1_is_refused(store, folder, line):
    trees.food101n(folder)
    path = folder / VERIFIED
    path.write_text(path.read_text() + f"apple_pie/{3:032x}.jpg{line}\n")
    message = refusal(small().listing, store)
    assert message.startswith(f"{path}: line 9: ")


@pytest.mark.parametrize("how", trees.HARMLESS)
def test_harmless_differences_do_not_matter(store, folder, how):
    trees.food101n(folder)
    before = small().listing(store)
    for name in LISTS:
        (folder / name).write_bytes(trees.HARMLESS[how]((folder / name).read_bytes()))
    after = small().listing(store)
    assert after.all_paths() == before.all_paths()
    assert after.correct.tolist() == before.correct.tolist()


def test_missing_and_damaged_images_are_named(store, folder):
    trees.food101n(folder)
    path = folder / "food-101/images/cheesecake/1001.jpg"
    data = path.read_bytes()
    path.unlink()
    message = refusal(small().prepare, store)
    assert "1 of 18" in message
    assert str(path) in message
    path.write_bytes(data[: len(data) // 2])
    assert refusal(small().prepare, store).startswith(f"{path}: ")


def test_classes_are_in_alphabetical_order():
    assert list(food101n._CLASSES) == sorted(set(food101n._CLASSES))
    assert len(food101n._CLASSES) == len(Food101N.class_names) == Food101N.num_classes == 101
    assert tuple(food101n._CLASSES.index(name) for name in trees.FOOD) == trees.FOOD_IDS
    assert Food101N.class_names[54] == "hot and sour soup"


def test_needs_name_both_datasets():
    needs = Food101N().needs()
    assert [each.path for each in needs] == ["meta/", "images/", "food-101/"]
    assert all("https://" in each.source and not each.download for each in needs)


def test_suite():
    (suite,) = read_suite_file(Path(food101n.__file__).parents[1] / "suites" / "food101n.toml")
    assert (suite.noise.generator, suite.dataset, suite.data) == ("own", "food101n", {})
    assert [task.name for task in suite.tasks] == ["full"]
