from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from lnlbench.builtin.datasets import clothing1m
from lnlbench.builtin.datasets.clothing1m import Clothing1M
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.errors import DataError, UsageError
from lnlbench.suitefiles import read_suite_file

# Loaded by path: tests are not packages here.
spec = importlib.util.spec_from_file_location("trees_web", Path(__file__).parents[2] / "trees_web.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)

LABELS = ("noisy_label_kv.txt", "clean_label_kv.txt")
KEYS = ("noisy_train_key_list.txt", "clean_train_key_list.txt", "clean_val_key_list.txt", "clean_test_key_list.txt")


@pytest.fixture
def folder(store):
    return store.folder("clothing1m")


def small(**options):
    """The dataset with the numbers of images of a small tree."""
    dataset = Clothing1M("clothing1m", options)
    dataset.expected = {"train": 36 if options.get("clean_train") else 30, "validation": 5, "test": 5}
    return dataset


def refusal(call, *args, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("lists", ["", "annotations"])
@pytest.mark.parametrize("strip", [False, True])
def test_every_split_in_the_order_of_its_list(store, folder, lists, strip):
    keys = trees.clothing1m(folder, lists=lists, strip=strip)
    listing = small().listing(store)
    start = 7 if strip else 0
    assert listing.train.paths == tuple(key[start:] for key in keys["noisy_train"])
    assert listing.train.labels.tolist() == [trees.clothing_label(key, noisy=True) for key in keys["noisy_train"]]
    assert (listing.true_labels == -1).all()
    assert len(listing.true_labels) == 30
    assert listing.correct is None
    for listed, split in ((listing.validation, "clean_val"), (listing.tests["test"], "clean_test")):
        assert listed.paths == tuple(key[start:] for key in keys[split])
        assert listed.labels.tolist() == [trees.clothing_label(key) for key in keys[split]]
    for path in listing.all_paths():
        assert (folder / path).is_file()


def test_loading(store, folder):
    keys = trees.clothing1m(folder)
    dataset = small()
    dataset.prepare(store)
    data = dataset.load(store)
    assert isinstance(data.train_images, ImageFiles)
    assert not data.train_images.resident
    assert data.train_images.resize == Resize(256, square=False)
    assert data.train_images.paths == tuple(keys["noisy_train"])
    assert data.given_labels.tolist() == [trees.clothing_label(key, noisy=True) for key in keys["noisy_train"]]
    assert (data.train_labels == -1).all()
    assert data.validation.images.paths == tuple(keys["clean_val"])
    assert data.validation.labels.tolist() == [trees.clothing_label(key) for key in keys["clean_val"]]
    assert data.test_images.paths == tuple(keys["clean_test"])
    assert data.further_tests == {}
    assert data.given_labels.dtype == data.train_labels.dtype == data.validation.labels.dtype == np.int64


def test_the_clean_training_images_are_an_option(store, folder):
    keys = trees.clothing1m(folder)
    dataset = small(clean_train=True)
    dataset.prepare(store)
    data = dataset.load(store)
    assert data.train_images.paths == tuple(keys["noisy_train"] + keys["clean_train"])
    # Every second one of them has a noisy label too, and then that one is given.
    clean = [trees.clothing_label(key) for key in keys["clean_train"]]
    noisy = [trees.clothing_label(key, noisy=True) for key in keys["clean_train"]]
    assert data.given_labels[30:].tolist() == [noisy[0], clean[1], noisy[2], clean[3], noisy[4], clean[5]]
    assert data.train_labels[:30].tolist() == [-1] * 30
    assert data.train_labels[30:].tolist() == clean
    # Without the option they are not even needed.
    for key in keys["clean_train"]:
        (folder / key).unlink()
    small().prepare(store)
    assert "6 of 46" in refusal(small(clean_train=True).prepare, store)


def test_the_published_numbers_are_required(store, folder):
    assert Clothing1M("clothing1m").expected == {"train": 1_000_000, "validation": 14_313, "test": 10_526}
    both = Clothing1M("clothing1m", {"clean_train": True})
    assert both.expected["train"] == both.num_train == 1_000_000 + 47_570
    trees.clothing1m(folder)
    message = refusal(Clothing1M("clothing1m").prepare, store)
    assert "30 images" in message
    assert "1,000,000" in message


def test_absent_annotations_are_named_with_the_way_to_get_them(store, folder):
    message = refusal(small().listing, store)
    for part in (str(folder), "noisy_label_kv.txt", "annotations/", "https://"):
        assert part in message


@pytest.mark.parametrize("name", [*LABELS, *KEYS])
def test_each_list_is_required_where_it_is_used(store, folder, name):
    trees.clothing1m(folder, lists="annotations")
    (folder / "annotations" / name).unlink()
    dataset = small(clean_train=True)
    assert name in refusal(dataset.listing, store)
    if name == "clean_train_key_list.txt":
        assert len(small().listing(store).train.paths) == 30


@pytest.mark.parametrize("name", KEYS)
def test_a_key_without_label_is_refused(store, folder, name):
    trees.clothing1m(folder)
    path = folder / name
    path.write_text(path.read_text() + "images/0/00/stranger.jpg\n")
    line = len(path.read_text().splitlines())
    message = refusal(small(clean_train=True).listing, store)
    assert message.startswith(f"{path}: line {line}: 'images/0/00/stranger.jpg' has no label")


def test_a_key_outside_the_images_is_refused(store, folder):
    trees.clothing1m(folder)
    for name in ("noisy_label_kv.txt", "noisy_train_key_list.txt"):
        path = folder / name
        path.write_text(path.read_text().replace("images/1/", "pictures/1/"))
    message = refusal(small().listing, store)
    assert message.startswith(f"{folder / 'noisy_train_key_list.txt'}: line 2: 'pictures/1/")
    assert "does not start with 'images/'" in message


def test_an_image_in_both_training_lists_is_refused(store, folder):
    keys = trees.clothing1m(folder)
    for name in ("clean_train_key_list.txt", "clean_label_kv.txt"):
        path = folder / name
        label = "" if name == "clean_train_key_list.txt" else " 3"
        path.write_text(path.read_text() + f"{keys['noisy_train'][4]}{label}\n")
    message = refusal(small(clean_train=True).listing, store)
    assert message.startswith(f"{folder / 'clean_train_key_list.txt'}: '{keys['noisy_train'][4]}'")


@pytest.mark.parametrize("name", [*LABELS, *KEYS])
@pytest.mark.parametrize("how", trees.SPOILED)
def test_spoiled_lists_are_refused(store, folder, name, how):
    trees.clothing1m(folder)
    path = folder / name
    path.write_bytes(trees.SPOILED[how](path.read_bytes()))
    assert refusal(small(clean_train=True).listing, store).startswith(f"{path}: ")


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("how", trees.SPOILED_LABELS)
def test_spoiled_labels_are_refused(store, folder, name, how):
    trees.clothing1m(folder)
    path = folder / name
    path.write_bytes(trees.SPOILED_LABELS[how](path.read_bytes()))
    assert refusal(small().listing, store).startswith(f"{path}: ")


@pytest.mark.parametrize("how", trees.HARMLESS)
def test_harmless_differences_do_not_matter(store, folder, how):
    keys = trees.clothing1m(folder)
    for name in (*LABELS, *KEYS):
        (folder / name).write_bytes(trees.HARMLESS[how]((folder / name).read_bytes()))
    listing = small(clean_train=True).listing(store)
    assert listing.train.paths == tuple(keys["noisy_train"] + keys["clean_train"])


def test_a_list_that_was_cut_off_is_noticed(store, folder):
    trees.clothing1m(folder)
    path = folder / "noisy_train_key_list.txt"
    path.write_bytes(path.read_bytes()[:-9])
    assert refusal(small().listing, store).startswith(f"{path}: line 30: ")
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0])
    assert "29 images" in refusal(small().prepare, store)


def test_what_is_no_image_is_refused(store, folder):
    keys = trees.clothing1m(folder)
    path = folder / keys["noisy_train"][3]
    path.write_text("<html>not found</html>")
    assert refusal(small().prepare, store).startswith(f"{path}: ")
    path.unlink()
    os.mkfifo(path)
    assert refusal(small().prepare, store).startswith(f"{path}: ")


def test_links_in_the_folder_are_followed_and_deeper_ones_out_of_it_are_not(store, folder, tmp_path):
    keys = trees.clothing1m(folder)
    (folder / "images").rename(tmp_path / "disk")
    (folder / "images").symlink_to(tmp_path / "disk")
    small().prepare(store)
    path = tmp_path / "disk" / keys["noisy_train"][0].removeprefix("images/")
    path.rename(tmp_path / "outside.jpg")
    path.symlink_to(tmp_path / "outside.jpg")
    assert "link" in refusal(small().load, store)


def test_a_part_may_be_registered(store, folder):
    keys = trees.clothing1m(folder)
    for key in keys["noisy_train"][::2]:
        (folder / key).unlink()
    small().register(store, "half")
    for options, number in (({}, 15), ({"clean_train": True}, 21)):
        dataset = small(**options)
        dataset.prepare(store)
        assert len(dataset.load(store).given_labels) == number
        dataset.open(store)
        assert dataset.num_train == number


def test_facts():
    assert len(set(Clothing1M.class_names)) == Clothing1M.num_classes == 14
    assert Clothing1M.image_size == 224
    assert [each.path for each in Clothing1M().needs()] == ["images/", "noisy_label_kv.txt"]
    assert all("https://" in each.source and not each.download for each in Clothing1M().needs())
    assert "clean_train" in refusal(Clothing1M, "clothing1m", {"clean_train": "perhaps"}, kind=UsageError)


@pytest.mark.parametrize(("name", "clean_train"), [("clothing1m", False), ("clothing1m+clean-train", True)])
def test_suites(name, clean_train):
    (suite,) = read_suite_file(Path(clothing1m.__file__).parents[1] / "suites" / f"{name}.toml")
    assert (suite.name, suite.noise.generator, suite.dataset) == (name, "own", "clothing1m")
    assert Clothing1M("clothing1m", suite.data).options.clean_train is clean_train
    assert [task.name for task in suite.tasks] == ["noisy"]
