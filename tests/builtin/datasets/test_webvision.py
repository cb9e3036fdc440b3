from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from timm.data import ImageNetInfo

from lnlbench.builtin.datasets import webvision
from lnlbench.builtin.datasets.webvision import MiniWebVision
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.errors import DataError, UsageError
from lnlbench.suitefiles import read_suite_file

# Loaded by path: tests are not packages here.
spec = importlib.util.spec_from_file_location("trees_web", Path(__file__).parents[2] / "trees_web.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)

SYNSETS = [ImageNetInfo().index_to_label_name(label) for label in range(50)]
LISTS = ("info/train_filelist_google.txt", "info/val_filelist.txt")
BOTH = ["webvision", "ilsvrc12"]


@pytest.fixture
def folder(store):
    return store.folder("mini-webvision")


def small(*test_sets):
    """The dataset with the numbers of images of a small tree."""
    dataset = MiniWebVision("mini-webvision", {"test_sets": test_sets} if test_sets else {})
    dataset.expected = {"webvision": 50, "ilsvrc12": 50}
    return dataset


def refusal(call, *args, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def write_devkit(path, seed=0):
    """A development kit like the published one, with ids in another order than that of the labels.

    Returns:
        The digest of the archive, and the image numbers of each of the 50 classes.
    """
    wnids = [*SYNSETS, *(f"n{number:08}" for number in range(20_000_000, 20_000_020))]
    random.Random(seed).shuffle(wnids)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    table = np.array([[(number, wnid, "a, b", 0)] for number, wnid in enumerate(wnids, 1)], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": table}, do_compression=True)
    ids = [1 + number % len(wnids) for number in range(2 * len(wnids))]
    random.Random(seed + 1).shuffle(ids)
    content = {
        "readme.txt": b"about",
        "data/meta.mat": meta.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{each}\n" for each in ids).encode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = gzip.compress(packed.getvalue(), mtime=0)
    path.write_bytes(data)
    numbers = [[n for n, each in enumerate(ids, 1) if wnids[each - 1] == synset] for synset in SYNSETS]
    return f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}", numbers


def test_the_lines_of_the_first_50_classes_in_their_order(store, folder):
    train, test = trees.webvision(folder)
    listing = small("webvision").listing(store)
    assert listing.train.paths == tuple(path for path, _ in train)
    assert listing.train.labels.tolist() == [label for _, label in train]
    assert (listing.true_labels == -1).all()
    assert len(listing.true_labels) == len(train) == 150
    assert listing.correct is None
    assert listing.tests.keys() == {"webvision"}
    assert listing.tests["webvision"].paths == tuple(path for path, _ in test)
    assert listing.tests["webvision"].labels.tolist() == [label for _, label in test]
    for path in listing.all_paths():
        assert (folder / path).is_file()


def test_loading_with_both_test_sets(store, folder):
    train, test = trees.webvision(folder)
    images = trees.ilsvrc12(folder, SYNSETS)
    dataset = small()
    dataset.prepare(store)
    data = dataset.load(store)
    assert isinstance(data.train_images, ImageFiles)
    assert not data.train_images.resident
    assert data.train_images.resize == Resize(320, square=False)
    assert data.given_labels.tolist() == [label for _, label in train]
    assert (data.train_labels == -1).all()
    assert data.test_images.paths == tuple(path for path, _ in test)
    assert data.further_tests.keys() == {"ilsvrc12"}
    assert data.further_tests["ilsvrc12"].images.paths == tuple(path for path, _ in images)
    assert data.further_tests["ilsvrc12"].labels.tolist() == list(range(50))
    dataset.open(store)
    assert (dataset.num_train, dataset.num_test) == (150, 50)


def test_a_test_set_that_is_not_asked_for_is_not_needed(store, folder):
    trees.webvision(folder)
    only = small("webvision")
    only.prepare(store)
    assert only.load(store).further_tests == {}
    assert "ilsvrc12/val/" in refusal(small().prepare, store)
    trees.ilsvrc12(folder, SYNSETS)
    (folder / "info" / "val_filelist.txt").unlink()
    only = small("ilsvrc12")
    only.prepare(store)
    assert only.load(store).test_labels.tolist() == list(range(50))
    assert refusal(small().prepare, store).startswith(f"{folder / 'info' / 'val_filelist.txt'}: is missing")


@pytest.mark.parametrize("names", ["synset", "label"])
@pytest.mark.parametrize("place", ["ilsvrc12/val", "imagenet/val", "ilsvrc12", "imagenet"])
def test_ilsvrc12_in_one_folder_for_each_class(store, folder, names, place):
    trees.webvision(folder)
    # Others of the 1,000 classes may be there too.
    images = trees.ilsvrc12(folder, [*SYNSETS, "n15075141"], names=names, place=place, per_class=2)[:100]
    listed = small("ilsvrc12").listing(store).tests["ilsvrc12"]
    assert listed.paths == tuple(path for path, _ in images)
    assert listed.labels.tolist() == [label for label in range(50) for _ in range(2)]


def test_ilsvrc12_in_one_folder_with_the_development_kit(store, folder, monkeypatch):
    trees.webvision(folder)
    place = folder / "ilsvrc12" / "val"
    place.mkdir(parents=True)
    digest, numbers = write_devkit(place / "ILSVRC2012_devkit_t12.tar.gz")
    for number in range(1, 141):
        trees.write_image(place / f"ILSVRC2012_val_{number:08}.JPEG", number)
    message = refusal(small("ilsvrc12").listing, store)
    assert message.startswith(f"{place / 'ILSVRC2012_devkit_t12.tar.gz'}: md5 is ")
    assert "fa75699e90414af021442c21a62c3abf" in message
    monkeypatch.setattr(webvision, "_DEVKIT_DIGEST", digest)
    dataset = small("ilsvrc12")
    dataset.expected = {"ilsvrc12": 100}
    expected = [(f"ilsvrc12/val/ILSVRC2012_val_{n:08}.JPEG", label) for label in range(50) for n in numbers[label]]
    dataset.prepare(store)
    data = dataset.load(store)
    assert list(zip(data.test_images.paths, data.test_labels.tolist(), strict=True)) == expected
    # It may also lie beside the folder, and without it there is a way out.
    kit = place / "ILSVRC2012_devkit_t12.tar.gz"
    kit.rename(place.parent / kit.name)
    assert dataset.listing(store).tests["ilsvrc12"].paths == data.test_images.paths
    (place.parent / kit.name).unlink()
    message = refusal(dataset.listing, store)
    assert message.startswith(f"{kit}: is missing")
    assert "one folder for each synset" in message


def test_both_layouts_give_the_same_order(store, folder, monkeypatch):
    trees.webvision(folder)
    place = folder / "imagenet"
    place.mkdir()
    digest, numbers = write_devkit(place / "ILSVRC2012_devkit_t12.tar.gz")
    monkeypatch.setattr(webvision, "_DEVKIT_DIGEST", digest)
    trees.write_image(place / "ILSVRC2012_val_00000001.JPEG", 1)
    flat = small("ilsvrc12").listing(store).tests["ilsvrc12"]
    for label, synset in enumerate(SYNSETS):
        for number in numbers[label]:
            trees.write_image(folder / "ilsvrc12" / "val" / synset / f"ILSVRC2012_val_{number:08}.JPEG", number)
    sorted_ = small("ilsvrc12").listing(store).tests["ilsvrc12"]
    assert [Path(path).name for path in flat.paths] == [Path(path).name for path in sorted_.paths]
    assert flat.labels.tolist() == sorted_.labels.tolist()


@pytest.mark.parametrize("names", ["synset", "label"])
def test_a_missing_class_folder_is_noticed(store, folder, names):
    trees.webvision(folder)
    trees.ilsvrc12(folder, SYNSETS[:-1], names=names)
    message = refusal(small("ilsvrc12").listing, store)
    assert message.startswith(f"{folder / 'ilsvrc12/val'}: 1 of 50 folders are missing, first ")
    assert {"synset": "n01697457", "label": "49"}[names] in message


def test_other_things_among_the_images_of_ilsvrc12_are_refused(store, folder):
    trees.webvision(folder)
    trees.ilsvrc12(folder, SYNSETS)
    place = folder / "ilsvrc12" / "val" / SYNSETS[7]
    (place / "bounding_boxes.xml").write_text("<annotation>")
    assert refusal(small("ilsvrc12").listing, store).startswith(f"{place}: ")
    for path in place.iterdir():
        path.unlink()
    assert refusal(small("ilsvrc12").listing, store).startswith(f"{place}: ")


def test_all_images_of_the_test_sets_are_required(store, folder):
    trees.webvision(folder)
    trees.ilsvrc12(folder, SYNSETS)
    message = refusal(MiniWebVision("mini-webvision").prepare, store)
    assert "50 images" in message
    assert "2,500" in message
    path = next((folder / "val_images_256").iterdir())
    path.unlink()
    message = refusal(small().prepare, store)
    assert "1 of 250" in message
    assert str(path) in message


def test_a_part_may_be_registered(store, folder):
    train, _ = trees.webvision(folder)
    (folder / train[0][0]).unlink()
    small("webvision").register(store, "part")
    data = small("webvision").load(store)
    assert data.given_labels.tolist() == [label for _, label in train[1:]]
    # Once the second test set is there, it has to be registered too.
    trees.ilsvrc12(folder, SYNSETS)
    assert "edition 'part'" in refusal(small().prepare, store)
    small().register(store, "part")
    for test_sets in (["webvision"], ["ilsvrc12"], BOTH):
        dataset = small(*test_sets)
        dataset.prepare(store)
        assert len(dataset.load(store).given_labels) == 149


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("how", [*trees.SPOILED, *trees.SPOILED_LABELS])
def test_spoiled_lists_are_refused(store, folder, name, how):
    trees.webvision(folder)
    path = folder / name
    path.write_bytes((trees.SPOILED | trees.SPOILED_LABELS)[how](path.read_bytes()))
    assert refusal(small("webvision").listing, store).startswith(f"{path}: ")


@pytest.mark.parametrize("how", trees.HARMLESS)
def test_harmless_differences_do_not_matter(store, folder, how):
    train, _ = trees.webvision(folder)
    for name in LISTS:
        (folder / name).write_bytes(trees.HARMLESS[how]((folder / name).read_bytes()))
    assert small("webvision").listing(store).train.paths == tuple(path for path, _ in train)


def test_a_list_of_other_classes_is_refused(store, folder):
    trees.webvision(folder)
    path = folder / LISTS[0]
    trees.write_lines(path, ["google/q1000/x.jpg 999"])
    assert refusal(small("webvision").listing, store).startswith(f"{path}: no line has a label below 50")


def test_an_image_that_was_cut_off_is_noticed(store, folder):
    train, _ = trees.webvision(folder)
    path = folder / train[5][0]
    path.write_bytes(path.read_bytes()[:-40])
    assert refusal(small("webvision").prepare, store).startswith(f"{path}: ")


@pytest.mark.parametrize("test_sets", [[], ["imagenet"], "webvision", [1]])
def test_unknown_test_sets_are_refused(test_sets):
    assert "test_sets" in refusal(MiniWebVision, "mini-webvision", {"test_sets": test_sets}, kind=UsageError)


def test_classes_are_the_first_of_ilsvrc():
    info = ImageNetInfo()
    assert list(webvision._CLASSES) == SYNSETS == sorted(SYNSETS)
    for label, name in enumerate(MiniWebVision.class_names):
        assert name == info.index_to_description(label).split(", ")[0]


def test_needs_follow_the_test_sets():
    assert [each.path for each in small().needs()] == ["google/", "info/", "val_images_256/", "ilsvrc12/val/"]
    assert [each.path for each in small("ilsvrc12").needs()] == ["google/", "info/", "ilsvrc12/val/"]
    assert all("https://" in each.source and not each.download for each in small().needs())


def test_suite():
    (suite,) = read_suite_file(Path(webvision.__file__).parents[1] / "suites" / "mini-webvision.toml")
    (task,) = suite.tasks
    assert (suite.noise.generator, suite.dataset, suite.top5) == ("own", "mini-webvision", True)
    assert MiniWebVision("mini-webvision", {"test_sets": task.test_sets}).main_test == "webvision"
    assert suite.task("ilsvrc12").test_sets == ("ilsvrc12",)
