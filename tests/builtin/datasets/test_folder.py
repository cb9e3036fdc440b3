from __future__ import annotations

import json
import shutil

import pytest

from lnlbench.api import DataError, Resize, UsageError
from lnlbench.builtin.datasets.folder import ImageFolder, name_folder
from lnlbench.store import LocalDataStore

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def photos(tmp_path, trees):
    trees.own_images(tmp_path / "photos", CLASSES)
    return tmp_path / "photos"


def opened(photos, store, **options):
    dataset = ImageFolder(name_folder(str(photos), store), options)
    dataset.open(store)
    return dataset


def loaded(photos, store, **options):
    dataset = opened(photos, store, **options)
    dataset.prepare(store)
    return dataset.load(store)


def refusal(kind, action, *arguments):
    with pytest.raises(kind) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message
    return message


def test_folders_are_clean_labels(photos, store):
    data = loaded(photos, store)
    assert data.train_images.root == photos
    assert data.train_images.paths == tuple(
        f"train/{name}/{file}" for name in CLASSES for file in ("000.jpg", "001.png", "002.jpg", "003.png")
    )
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.given_labels is None
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_facts_are_those_of_the_folder(photos, store):
    dataset = opened(photos, store)
    assert dataset.name == "folder:photos"
    assert (dataset.class_names, dataset.num_classes) == (CLASSES, 3)
    assert (dataset.num_train, dataset.num_test) == (12, 6)
    assert not dataset.labels_are_true
    assert ImageFolder.class_names == ()


def test_results_know_it_by_name_and_as_own_data(photos, store):
    dataset = opened(photos, store)
    dataset.prepare(store)
    edition = store.edition(dataset.name)
    assert edition.name == "own"
    assert set(edition.files) == {"train", "test"}
    assert str(photos) not in edition.model_dump_json()
    assert json.loads((store.folder(dataset.name) / "source.json").read_text()) == {"path": str(photos)}
    assert "has only the edition 'own'" in refusal(UsageError, dataset.register, store, "subset")


@pytest.mark.parametrize(
    ("size", "option", "expected", "resize", "resident"),
    [
        ((40, 64), None, 32, Resize(32, square=True), True),
        ((40, 65), None, 224, Resize(256, square=False), False),
        ((40, 65), 48, 48, Resize(48, square=True), True),
        ((20, 20), 112, 112, Resize(128, square=False), False),
    ],
)
def test_image_size(tmp_path, store, trees, size, option, expected, resize, resident):
    trees.own_images(tmp_path / "photos", CLASSES, 2, 1, size)
    for _ in ("not prepared", "prepared"):
        dataset = opened(tmp_path / "photos", store, image_size=option)
        assert (dataset.image_size, dataset.resize(), dataset.resident()) == (expected, resize, resident)
        dataset.prepare(store)


def test_one_large_test_image_is_enough(photos, store, trees):
    trees.put(photos / "test" / "owl" / "big.jpg", trees.picture(1, 65, 10))
    assert opened(photos, store).image_size == 224
    loaded(photos, store)
    assert opened(photos, store).image_size == 224


def table(photos, text):
    (photos / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_table_gives_labels_and_folders_are_true(photos, store):
    table(photos, 'file,given_label\ncat/000.jpg,dog\n"owl/003.png",0\r\n')
    data = loaded(photos, store)
    assert data.given_labels.tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0]
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_table_may_say_what_is_true_or_that_nobody_knows(photos, store):
    table(photos, "\ufefffile,given_label,true_label\ncat/000.jpg,dog,owl\ncat/001.png,cat,\ndog/000.jpg,2,1\n")
    data = loaded(photos, store)
    assert data.given_labels.tolist() == [1, 0, 0, 0, 2, 1, 1, 1, 2, 2, 2, 2]
    assert data.train_labels.tolist() == [2, -1, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_a_class_may_be_called_like_a_number(tmp_path, store, trees):
    trees.own_images(tmp_path / "digits", ("1", "2", "0x"), 1, 1)  # sorted: 0x, 1, 2
    table(tmp_path / "digits", "file,given_label\n1/000.jpg,2\n2/000.jpg,0\n")
    assert loaded(tmp_path / "digits", store).given_labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the list is empty"),
        ("file,label\ncat/000.jpg,dog\n", "line 1: its first line is 'file,label'"),
        ("cat/000.jpg,dog\n", "line 1: its first line"),
        ("file,given_label\ncat/000.jpg,bird\n", "line 2: 'bird' is neither a class nor its number"),
        ("file,given_label\ncat/000.jpg,3\n", "line 2: '3' is neither"),
        ("file,given_label\ncat/000.jpg,-1\n", "line 2: '-1' is neither"),
        ("file,given_label\ncat/000.jpg,\n", "line 2: "),
        ("file,given_label\ncat/000.jpg\n", "line 2: 1 cells instead of 2"),
        ("file,given_label\n\ncat/000.jpg,1\n", "line 2: 0 cells"),
        ("file,given_label\ncat/009.jpg,dog\n", "line 2: there is no image 'cat/009.jpg' in train"),
        ("file,given_label\n../test/cat/000.jpg,dog\n", "line 2: there is no image '../test/cat/000.jpg'"),
        ("file,given_label\ncat/000.jpg,0\ncat/000.jpg,1\n", "line 3: 'cat/000.jpg' is in the table already"),
        ('file,given_label\n"cat/000.jpg"x,0\n', "line 2: "),
        ("file,given_label\n\x1b[2J,0\n", "line 2: there is no image"),
        (b"file,given_label\ncat\xff,0\n", "line 2: not text"),
        (b"PK\x03\x04\x00\x00", "line 1: "),
    ],
)
def test_damaged_tables(photos, store, text, what):
    table(photos, text)
    message = refusal(DataError, loaded, photos, store)
    assert message.startswith(f"{photos / 'labels.csv'}: {what}")
    assert message.endswith("; correct the table; its columns are file,given_label[,true_label]")


@pytest.mark.parametrize("part", ["train", "test"])
def test_both_folders_are_needed(photos, store, part):
    shutil.rmtree(photos / part)
    message = refusal(DataError, name_folder, str(photos), store)
    assert message == (
        f"{photos}: there is no folder '{part}' in it; expected train/<class>/* and test/<class>/* with JPEG or PNG "
        "images, one folder per class"
    )
    assert not store.root.exists()


def test_other_layouts_are_refused(photos, store, trees):
    (photos / "test" / "bird").mkdir()
    assert "bird: train has no such class" in refusal(DataError, name_folder, str(photos), store)
    (photos / "test" / "bird").rmdir()
    (photos / "train" / "cat" / "more").mkdir()
    assert "'more' is not called .jpg, .jpeg, .png" in refusal(DataError, loaded, photos, store)
    (photos / "train" / "cat" / "more").rmdir()
    for name in ("dog", "owl"):
        shutil.rmtree(photos / "train" / name)
        shutil.rmtree(photos / "test" / name)
    assert "at least two folders are needed" in refusal(DataError, loaded, photos, store)
    assert "no such folder" in refusal(DataError, name_folder, str(photos / "absent"), store)


def test_a_class_without_test_images_is_fine(photos, store):
    shutil.rmtree(photos / "test" / "dog")
    assert loaded(photos, store).test_labels.tolist() == [0, 0, 2, 2]


def test_damaged_images_are_named(photos, store):
    (photos / "train/dog/000.jpg").write_bytes(b"GIF89a")
    path = photos / "train/dog/000.jpg"
    assert str(path) in refusal(DataError, opened, photos, store)
    assert str(path) in refusal(DataError, ImageFolder("folder:photos").prepare, store)


def test_changed_images_must_be_prepared_again(photos, store, trees):
    first = loaded(photos, store)
    edition = store.edition("folder:photos")
    (photos / "train/cat/000.jpg").write_bytes(trees.picture(77, 40, 30))
    trees.put(photos / "train/owl/004.jpg", trees.picture(78, 40, 30))
    assert "lnlbench prepare folder:photos" in refusal(DataError, opened(photos, store).load, store)
    second = loaded(photos, store)
    assert len(second.train_labels) == len(first.train_labels) + 1
    assert store.edition("folder:photos") != edition
    (photos / "train/owl/004.jpg").unlink()
    assert "is not as it was when edition 'own' was registered" in refusal(DataError, opened(photos, store).load, store)
    assert len(loaded(photos, store).train_labels) == 12


def test_unprepared(photos, store):
    message = refusal(DataError, opened(photos, store).load, store)
    assert message.startswith("folder:photos: not prepared; run `lnlbench prepare folder:photos`")


def test_equal_folders_are_equal_editions(photos, store, tmp_path, trees):
    loaded(photos, store)
    trees.own_images(tmp_path / "b" / "pictures", CLASSES)
    loaded(tmp_path / "b" / "pictures", store)
    assert store.edition("folder:photos") == store.edition("folder:pictures")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("my photos (2024)", "folder:my_photos__2024"),
        (".hidden", "folder:hidden"),
        ("é" + "x" * 80, "folder:" + "x" * 40),
    ],
)
def test_names_are_made_safe(tmp_path, store, trees, folder, name):
    trees.own_images(tmp_path / folder, CLASSES, 1, 1)
    assert name_folder(str(tmp_path / folder), store) == name
    assert len(loaded(tmp_path / folder, store).train_labels) == 3


def test_a_folder_without_a_usable_name(tmp_path, store, trees):
    trees.own_images(tmp_path / "äö", CLASSES, 1, 1)
    assert "cannot be a name" in refusal(UsageError, name_folder, str(tmp_path / "äö"), store)
    with pytest.raises(UsageError, match="which folder"):
        name_folder("folder:", store)


def test_names_and_paths_both_lead_there(photos, store, monkeypatch):
    monkeypatch.chdir(photos.parent)
    for asked in (str(photos), f"folder:{photos}", "photos", "folder:photos", "./photos", f"{photos}/"):
        assert name_folder(asked, store) == "folder:photos"
    monkeypatch.chdir(store.root)
    assert name_folder("photos", store) == "folder:photos"
    link = photos.parent / "elsewhere" / "photos"
    link.parent.mkdir()
    link.symlink_to(photos)
    assert name_folder(str(link), store) == "folder:photos"


def test_a_name_stands_for_one_folder(photos, store, tmp_path, trees, monkeypatch):
    name_folder(str(photos), store)
    trees.own_images(tmp_path / "b" / "photos", CLASSES, 1, 1)
    message = refusal(UsageError, name_folder, str(tmp_path / "b" / "photos"), store)
    assert f"folder:photos stands for {photos} already, so {tmp_path / 'b' / 'photos'} cannot have this name" in message
    monkeypatch.chdir(tmp_path / "b")
    assert refusal(UsageError, name_folder, "photos", store) == message  # never the other one silently
    shutil.rmtree(store.folder("folder:photos"))
    assert name_folder("photos", store) == "folder:photos"


def test_what_is_not_known_or_gone(photos, store):
    for name in ("folder:birds", "folder:../birds", "folder:"):
        assert "lnlbench prepare folder:PATH" in refusal(UsageError, ImageFolder(name).open, store)
    name_folder(str(photos), store)
    photos.rename(photos.with_name("moved"))
    assert f"{photos} is gone; put it back" in refusal(DataError, ImageFolder("folder:photos").open, store)
    for content in ("{", "[]", '{"path": 3}', "{}"):
        (store.folder("folder:photos") / "source.json").write_text(content)
        assert "damaged" in refusal(DataError, ImageFolder("folder:photos").open, store)


def test_links_may_lead_where_the_user_says(photos, store, tmp_path):
    shutil.move(photos / "train", tmp_path / "big disk")
    (photos / "train").symlink_to(tmp_path / "big disk")
    assert len(loaded(photos, store).train_labels) == 12
    shutil.move(tmp_path / "big disk/cat/000.jpg", tmp_path / "outside.jpg")
    (tmp_path / "big disk/cat/000.jpg").symlink_to(tmp_path / "outside.jpg")
    assert "a symbolic link out of" in refusal(DataError, loaded, photos, store)


def test_two_data_folders_do_not_mix(photos, store, tmp_path):
    other = LocalDataStore(tmp_path / "other", offline=True)
    name_folder(str(photos), store)
    with pytest.raises(UsageError, match="not known"):
        ImageFolder("folder:photos").open(other)
