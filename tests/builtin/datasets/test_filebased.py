"""What all datasets of image files have in common, on a made-up one whose lists say ``path label``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lnlbench.api import DataError, DatasetOptions, ImageFiles, Resize, UsageError
from lnlbench.builtin.datasets.filebased import FileDataset, Listed, Listing
from lnlbench.files import read_json
from lnlbench.formats import inventory as inventories
from lnlbench.formats.listings import read_listing
from lnlbench.store import LocalDataStore


class LevelOptions(DatasetOptions):
    level: str = "low"


class Tiny(FileDataset):
    """Twelve training images in three classes, two test sets of three, two for validation."""

    Options = LevelOptions
    name = "tiny"
    num_classes = 3
    class_names = ("a", "b", "c")
    num_train = 12
    num_test = 3
    image_size = 16
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    licence = "none"
    source = "nowhere"
    main_test = "near"
    expected = {"train": 12, "near": 3, "far": 3, "validation": 2}  # noqa: RUF012 - nobody writes to it
    list_options = ({"level": "low"}, {"level": "high"})
    options: LevelOptions

    def resize(self):
        return Resize(16, square=True)

    def resident(self):
        return True

    def listing(self, store):
        root = store.folder(self.name)

        def read(name):
            found = read_listing(root / f"{name}.txt", num_labels=3, hint="fetch it again")
            return Listed(found.paths, found.labels)

        train = read(f"train-{self.options.level}")
        true = np.where(np.arange(len(train.labels)) % 2, -1, train.labels)
        return Listing(
            root,
            train,
            true,
            {"near": read("near"), "far": read("far")},
            correct=np.where(true < 0, -1, 1).astype(np.int8),
            validation=read("validation"),
        )


SPLITS = {"train-low": 12, "train-high": 12, "near": 3, "far": 3, "validation": 2}


@pytest.fixture
def tiny(store, trees):
    build(store.folder("tiny"), trees)
    return store


def build(root, trees):
    for offset, (name, count) in enumerate(SPLITS.items()):
        paths = [f"images/{number % 3}/{name}{number}.jpg" for number in range(count)]
        for number, path in enumerate(paths):
            trees.put(root / path, trees.picture(100 * offset + number, 20, 24))
        trees.put(root / f"{name}.txt", "".join(f"{path} {n % 3}\n" for n, path in enumerate(paths)).encode())


def refusal(action, *arguments):
    with pytest.raises(DataError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message  # the way out
    return message


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepared_data_are_loaded_in_the_order_of_the_lists(tiny):
    Tiny().prepare(tiny)
    data = Tiny().load(tiny)
    root = tiny.folder("tiny")
    assert isinstance(data.train_images, ImageFiles)
    assert data.train_images.root == root
    assert data.train_images.paths == tuple(f"images/{n % 3}/train-low{n}.jpg" for n in range(12))
    assert data.given_labels.tolist() == [0, 1, 2] * 4
    assert data.train_labels.tolist() == [0, -1, 2, -1, 1, -1] * 2
    assert data.correct.tolist() == [1, -1] * 6
    assert data.test_images.paths == tuple(f"images/{n}/near{n}.jpg" for n in range(3))
    assert list(data.further_tests) == ["far"]
    assert data.further_tests["far"].images.paths == tuple(f"images/{n}/far{n}.jpg" for n in range(3))
    assert data.validation.labels.tolist() == [0, 1]
    assert (data.train_images.resize, data.train_images.resident) == (Resize(16, square=True), True)
    for images in (data.train_images, data.test_images, data.validation.images):
        for path, digest in zip(images.paths, images.digests, strict=True):
            assert hashlib.sha256((root / path).read_bytes()).digest() == digest.tobytes()


def test_loading_reads_no_image(tiny, monkeypatch):
    Tiny().prepare(tiny)
    opened = []
    genuine = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **kw: (opened.append(self.name), genuine(self, *args, **kw))[1]
    )
    Tiny().load(tiny)
    assert opened
    assert not [name for name in opened if name.endswith(".jpg")]


def test_preparing_twice_reads_each_image_once(tiny, monkeypatch):
    read = []
    genuine = inventories._read_one
    monkeypatch.setattr(inventories, "_read_one", lambda root, path: (read.append(path), genuine(root, path))[1])
    Tiny().prepare(tiny)
    assert len(read) == len(set(read)) == 20
    Tiny().prepare(tiny)
    assert len(read) == 20
    Tiny(options={"level": "high"}).prepare(tiny)  # shares all but its training images
    assert len(read) == 32
    Tiny().load(tiny)
    Tiny(options={"level": "high"}).load(tiny)


def test_loading_asks_for_preparation(tiny):
    message = refusal(Tiny().load, tiny)
    assert message == "tiny: not prepared; run `lnlbench prepare tiny`, which reads every image once"


def test_options_that_were_not_prepared_are_named(tiny):
    Tiny().prepare(tiny)
    message = refusal(Tiny(options={"level": "high"}).load, tiny)
    assert "12 images were never checked, first: " in message
    assert "train-high0.jpg; run `lnlbench prepare tiny`" in message


@pytest.mark.parametrize("when", ["before", "after"])
def test_missing_images_are_counted(tiny, when):
    if when == "after":
        Tiny().prepare(tiny)
    root = tiny.folder("tiny")
    for name in ("images/0/train-low3.jpg", "images/1/far1.jpg"):
        (root / name).unlink()
    message = refusal(Tiny().prepare if when == "before" else Tiny().load, tiny)
    assert message == (
        f"tiny: 2 of 20 listed images are missing, first: {root}/images/0/train-low3.jpg; complete them, or register "
        "what you have as an edition of its own: `lnlbench prepare tiny --edition subset`"
    )
    assert when == "after" or not (root / "inventory.npz").exists()


def test_lists_of_another_length_are_refused(tiny):
    path = tiny.folder("tiny") / "near.txt"
    path.write_text(path.read_text() + "images/0/near3.jpg 0\n")
    message = refusal(Tiny().prepare, tiny)
    assert "split 'near' has 4 images in " in message
    assert "3 were published; complete them, or register" in message


@pytest.mark.parametrize("change", ["content", "size", "touch"])
def test_images_written_to_after_preparation_are_refused(tiny, trees, change):
    Tiny().prepare(tiny)
    path = tiny.folder("tiny") / "images/0/near0.jpg"
    if change == "touch":
        os.utime(path, ns=(5, 5))
    else:
        path.write_bytes(trees.picture(999, *((20, 24) if change == "content" else (40, 40))))
    message = refusal(Tiny().load, tiny)
    assert f"1 images were written to since they were checked, first: {path}; run `lnlbench prepare tiny`" in message
    if change == "touch":
        Tiny().prepare(tiny)
        Tiny().load(tiny)
        return
    for _ in range(2):  # it does not go away by asking again
        message = refusal(Tiny().prepare, tiny)
        assert f"1 of 20 images have another content than when they were first checked, first: {path}; " in message
        assert refusal(Tiny().load, tiny)
    (tiny.folder("tiny") / "inventory.npz").unlink()
    Tiny().prepare(tiny)
    Tiny().load(tiny)


def test_after_forgetting_decay_is_found(tiny):
    before = contents(tiny.root)
    Tiny().forget(tiny)  # there is nothing yet
    assert contents(tiny.root) == before
    Tiny().prepare(tiny)
    path = tiny.folder("tiny") / "images/0/near0.jpg"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-30] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    Tiny().prepare(tiny)  # same size, same time
    Tiny().forget(tiny)
    assert f"first: {path}; restore them" in refusal(Tiny().prepare, tiny)
    data[-30] ^= 4
    path.write_bytes(data)
    Tiny().prepare(tiny)
    Tiny().load(tiny)


def test_damaged_images_are_refused_and_the_others_remembered(tiny, trees):
    path = tiny.folder("tiny") / "images/1/train-low1.jpg"
    path.write_bytes(trees.picture(1)[:-200])
    message = refusal(Tiny().prepare, tiny)
    assert message.startswith(f"{path}: not a sound JPEG or PNG image: ")
    assert message.endswith("restore or delete what is damaged and run `lnlbench prepare tiny` again")
    known = inventories.read_inventory(tiny.folder("tiny") / "inventory.npz", hint="")
    assert len(known.paths) == 19


@pytest.mark.parametrize("line", ["../secret.jpg 0", "/etc/passwd 0", "images\\0.jpg 0", "images/0/x.jpg 3"])
def test_hostile_lists_are_refused(tiny, line):
    path = tiny.folder("tiny") / "far.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    assert f"{path}: line 4: " in refusal(Tiny().prepare, tiny)


def test_links_out_of_the_folder_are_refused(tiny, tmp_path):
    path = tiny.folder("tiny") / "images/0/near0.jpg"
    shutil.move(path, tmp_path / "outside.jpg")
    path.symlink_to(tmp_path / "outside.jpg")
    assert f"{path}: a symbolic link out of " in refusal(Tiny().prepare, tiny)


def test_a_damaged_inventory_is_named(tiny):
    Tiny().prepare(tiny)
    path = tiny.folder("tiny") / "inventory.npz"
    path.write_bytes(path.read_bytes()[:-50])
    for action in (Tiny().load, Tiny().prepare):
        assert re.match(rf"{path}: damaged: .*; delete it and run `lnlbench prepare tiny`", refusal(action, tiny))
    path.unlink()
    Tiny().prepare(tiny)


def test_a_damaged_count_is_named(tiny):
    Tiny().prepare(tiny)
    path = tiny.folder("tiny") / "counts.json"
    for content in ("{", "[]", '{"level=low": {"train": "x"}}'):
        path.write_text(content)
        assert refusal(Tiny().open, tiny) == f"{path}: cannot be read; delete it and run `lnlbench prepare tiny`"


def remove_some(root):
    for name in ("images/0/train-low3.jpg", "images/1/train-high1.jpg", "images/1/far1.jpg"):
        (root / name).unlink()


def test_what_there_is_can_be_registered(tiny):
    remove_some(tiny.folder("tiny"))
    edition = Tiny().register(tiny, "subset")
    assert tiny.edition("tiny") == edition
    assert set(edition.files) == {
        f"{split}(level={level})" for split in ("train", "near", "far", "validation") for level in ("low", "high")
    }
    Tiny().prepare(tiny)
    dataset = Tiny()
    dataset.open(tiny)
    assert (dataset.num_train, dataset.num_test) == (11, 3)
    data = dataset.load(tiny)
    kept = [number for number in range(12) if number != 3]
    assert data.train_images.paths == tuple(f"images/{n % 3}/train-low{n}.jpg" for n in kept)
    assert data.given_labels.tolist() == [n % 3 for n in kept]
    assert data.train_labels.tolist() == [-1 if n % 2 else n % 3 for n in kept]
    assert data.correct.tolist() == [-1 if n % 2 else 1 for n in kept]
    assert data.further_tests["far"].labels.tolist() == [0, 2]
    assert len(Tiny(options={"level": "high"}).load(tiny).train_labels) == 11


def test_an_equal_copy_is_the_same_edition(tiny, trees, tmp_path):
    remove_some(tiny.folder("tiny"))
    other = LocalDataStore(tmp_path / "elsewhere", offline=True)
    build(other.folder("tiny"), trees)
    remove_some(other.folder("tiny"))
    first, second = Tiny().register(tiny, "subset"), Tiny().register(other, "subset")
    assert first == second
    (other.folder("tiny") / "images/0/train-low6.jpg").write_bytes(trees.picture(6_000))
    third = Tiny().register(other, "subset")
    assert {key for key in first.files if first.files[key] != third.files[key]} == {"train(level=low)"}


def test_labels_are_part_of_an_edition(tiny):
    first = Tiny().register(tiny, "mine")
    path = tiny.folder("tiny") / "near.txt"
    path.write_text(path.read_text().replace("near0.jpg 0", "near0.jpg 1"))
    second = Tiny().register(tiny, "mine")
    assert {key for key in first.files if first.files[key] != second.files[key]} == {
        "near(level=low)",
        "near(level=high)",
    }


@pytest.mark.parametrize("change", ["one more gone", "one is back", "another content"])
def test_a_registered_edition_must_stay_as_it_is(tiny, trees, change):
    root = tiny.folder("tiny")
    remove_some(root)
    Tiny().register(tiny, "subset")
    path = root / "images/0/train-low3.jpg"
    if change == "one more gone":
        (root / "images/0/train-low6.jpg").unlink()
    elif change == "one is back":
        path.write_bytes(trees.picture(3))
    else:
        (root / "images/0/train-low6.jpg").write_bytes(trees.picture(6_000))
    message = refusal(Tiny().prepare, tiny)
    assert (
        "another content" in message
        if change == "another content"
        else "split 'train(level=low)' is not as it was when edition 'subset' was registered; restore" in message
    )
    assert refusal(Tiny().load, tiny)
    Tiny().register(tiny, "subset")
    Tiny().prepare(tiny)
    Tiny().load(tiny)


def test_lists_that_were_not_there_when_registering_are_refused(tiny):
    path = tiny.folder("tiny") / "train-high.txt"
    lines = path.read_text()
    path.unlink()
    Tiny().register(tiny, "subset")
    path.write_text(lines)
    message = refusal(Tiny(options={"level": "high"}).prepare, tiny)
    assert "split 'train(level=high)' was not there when edition 'subset' was registered" in message
    assert "`lnlbench prepare tiny --edition NAME`" in message


def test_a_split_without_images_is_refused(tiny):
    for path in tiny.folder("tiny").glob("images/*/far*"):
        path.unlink()
    message = refusal(Tiny().register, tiny, "subset")
    assert "none of the 3 images of split 'far' is in " in message
    assert tiny.edition("tiny").is_canonical


def test_bad_names_of_editions(tiny):
    for name in ("canonical", "../x", ""):
        with pytest.raises(UsageError):
            Tiny().register(tiny, name)
    assert tiny.edition("tiny").is_canonical


def test_what_prepare_counted_is_known_when_opened(tiny):
    dataset = Tiny()
    dataset.open(tiny)
    assert (dataset.num_train, dataset.num_test) == (12, 3)
    counts = {"train": 12, "near": 3, "far": 3, "validation": 2, "largest side": 24}
    dataset.prepare(tiny)
    assert read_json(tiny.folder("tiny") / "counts.json") == {"level=low": counts}


SCRIPT = textwrap.dedent(
    """
    import importlib.util, sys, time
    from pathlib import Path
    from lnlbench.formats import inventory
    from lnlbench.store import LocalDataStore

    spec = importlib.util.spec_from_file_location("made_up", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    genuine = inventory._read_one
    wait = Path(sys.argv[3]) if sys.argv[3] else None

    def slowly(root, path):
        print(path + "\\n", end="", flush=True)  # in one piece: several threads write
        time.sleep(0.03)
        while wait and not wait.exists():
            time.sleep(0.01)
        return genuine(root, path)

    inventory._read_one = slowly
    inventory._BLOCK = 2
    inventory._SAVE_EVERY_S = 0.0
    inventory._SAVE_SHARE = 0.0
    module.Tiny().prepare(LocalDataStore(Path(sys.argv[2])))
    """
)


def preparing(store, wait=""):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, __file__, str(store.root), str(wait)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_goes_on_where_it_stopped(tiny, blow):
    process = preparing(tiny)
    first = [process.stdout.readline().strip() for _ in range(9)]
    process.send_signal(blow)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    path = tiny.folder("tiny") / "inventory.npz"
    known = set(inventories.read_inventory(path, hint="").paths)
    assert 6 <= len(known) < 20
    assert known <= {*first, *rest.split()}
    process = preparing(tiny)
    again, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert not known & set(again.split())
    assert known | set(again.split()) == set(inventories.read_inventory(path, hint="").paths)
    Tiny().load(tiny)


def test_of_two_processes_one_waits(tiny, tmp_path):
    first = preparing(tiny, wait=tmp_path / "go")
    assert first.stdout.readline()
    second = preparing(tiny)
    assert second.stderr.readline() == "lnlbench: waiting for another process that prepares tiny\n"
    (tmp_path / "go").touch()
    assert second.communicate(timeout=60) == ("", "")  # it read nothing again
    assert second.returncode == 0
    first.communicate(timeout=60)
    assert first.returncode == 0
    Tiny().load(tiny)
