from __future__ import annotations

import numpy as np
import pytest

from lnlbench.api import DataError, ImageFiles, Resize, UsageError
from lnlbench.builtin.datasets.animal10n import Animal10N
from lnlbench.plugins import Registry


@pytest.fixture
def folder(store, monkeypatch):
    """Where a small copy of 30 + 10 images may be built."""
    monkeypatch.setattr(Animal10N, "expected", {"train": 30, "test": 10})
    return store.folder("animal10n")


def refusal(store):
    with pytest.raises(DataError) as caught:
        Animal10N().prepare(store)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_published_counts():
    assert Animal10N.expected == {"train": Animal10N.num_train, "test": Animal10N.num_test}
    assert (Animal10N.num_train, Animal10N.num_test) == (50_000, 5_000)


def test_the_published_layout(store, folder, trees):
    trees.animal10n(folder)
    Animal10N().prepare(store)
    data = Animal10N().load(store)
    assert isinstance(data.train_images, ImageFiles)
    # By label and then by name, which is not by number.
    assert data.train_images.paths[:4] == tuple(
        f"training/{name}.jpg" for name in ("0_img_0", "0_img_10", "0_img_20", "1_img_1")
    )
    assert data.given_labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert data.train_labels.tolist() == [-1] * 30
    assert data.test_labels.tolist() == list(range(10))
    assert data.correct is None
    assert data.validation is None
    assert data.train_images.resident
    assert data.train_images.resize == Resize(64, square=True)


@pytest.mark.parametrize("place", ["raw_image", "raw_image_ver/raw_image"])
@pytest.mark.parametrize("layout", ["flat", "id", "name"])
def test_all_layouts_are_the_same_data(store, folder, trees, layout, place):
    trees.animal10n(folder / place, layout=layout)
    Animal10N().prepare(store)
    data = Animal10N().load(store)
    assert data.given_labels.tolist() == [label for label in range(10) for _ in range(3)]
    names = [path.rpartition("/")[2] for path in data.train_images.paths]
    assert names == sorted(names)
    contents = [(folder / place / path).read_bytes() for path in data.train_images.paths]
    assert contents == [trees.picture(int(name.split("_")[2].removesuffix(".jpg"))) for name in names]


def test_folders_of_classes_may_have_files_of_any_name(store, folder, trees):
    for part, offset in (("training", 0), ("testing", 100)):
        for number in range(30 if part == "training" else 10):
            name = trees.ANIMALS[number % 10].replace(" ", "_").title()
            trees.put(folder / part / name / f"{number}.jpeg", trees.picture(offset + number))
    Animal10N().prepare(store)
    assert Animal10N().load(store).given_labels.tolist() == [label for label in range(10) for _ in range(3)]


def test_names_of_the_disputed_classes():
    assert Animal10N().class_names[4:6] == ("jaguar", "cheetah")
    assert Animal10N(options={"class_order": "authors"}).class_names[4:6] == ("cheetah", "jaguar")
    rest = [*range(4), *range(6, 10)]
    authors = Animal10N(options={"class_order": "authors"}).class_names
    assert [authors[label] for label in rest] == [Animal10N().class_names[label] for label in rest]
    with pytest.raises(UsageError, match="class_order"):
        Animal10N(options={"class_order": "mine"})


def test_nothing_there(store, folder):
    message = refusal(store)
    assert f"expected the folders training/ and testing/ with <label>_img_<number>.jpg in {folder}" in message
    assert "https://dm.kaist.ac.kr/datasets/animal-10n" in message
    folder.mkdir(parents=True)
    (folder / "raw_image.zip").write_bytes(b"PK")
    assert "there is raw_image.zip, which must be unpacked" in refusal(store)


@pytest.mark.parametrize(
    "name", ["10_img_1.jpg", "x_img_1.jpg", "_img_1.jpg", "cat.jpg", "1_img_1.jpg.jpg", "3-img-1.png"]
)
def test_misnamed_files(store, folder, trees, name):
    trees.animal10n(folder)
    (folder / "training" / "0_img_0.jpg").rename(folder / "training" / name)
    assert f"{folder / 'training' / name}: not named <label>_img_<number>.jpg" in refusal(store)


def test_other_files(store, folder, trees):
    trees.animal10n(folder)
    (folder / "training" / ".DS_Store").write_bytes(b"")
    Animal10N().prepare(store)
    (folder / "training" / "readme.txt").write_bytes(b"")
    assert "'readme.txt' is not called .jpg" in refusal(store)


def test_one_too_few(store, folder, trees):
    trees.animal10n(folder)
    (folder / "training" / "0_img_0.jpg").unlink()
    message = refusal(store)
    assert "split 'train' has 29 images in " in message
    assert "30 were published" in message
    Animal10N().register(store, "subset")
    Animal10N().prepare(store)
    assert len(Animal10N().load(store).given_labels) == 29


@pytest.mark.parametrize(
    ("name", "what"),
    [("11", "'11' is none of the ten classes"), ("Cat", "the folders 'Cat' and 'cat' stand for the same class")],
)
def test_strange_folders(store, folder, trees, name, what):
    trees.animal10n(folder, layout="name")
    trees.put(folder / "training" / name / "a.jpg", trees.picture(1))
    assert what in refusal(store)


def test_a_file_in_the_folder_of_another_class(store, folder, trees):
    trees.animal10n(folder, layout="id")
    (folder / "training/0/0_img_0.jpg").rename(folder / "training/1/0_img_0.jpg")
    assert "0_img_0.jpg: label 0 in the folder of class 1" in refusal(store)


def test_an_empty_folder(store, folder, trees):
    trees.animal10n(folder, test=0)
    (folder / "testing").mkdir()
    assert f"{folder / 'testing'}: there are no images in it" in refusal(store)


def test_needs_say_where_it_can_be_had():
    assert [each.path for each in Animal10N().needs()] == ["training", "testing"]
    assert all("https://dm.kaist.ac.kr" in each.source and not each.download for each in Animal10N().needs())
    assert Animal10N().files() == ()


def test_the_suite(registry: Registry):
    suite = registry.suites.find("animal10n").entry
    assert (suite.dataset, suite.noise.generator, [task.name for task in suite.tasks]) == ("animal10n", "own", ["full"])
    assert suite.tasks[0].rate is None
    assert [op.op for op in suite.views["weak"].ops] == ["crop", "flip"]
    assert registry.datasets.find("animal10n").load() is Animal10N
    assert np.isclose(Animal10N.mean, 0).all()
