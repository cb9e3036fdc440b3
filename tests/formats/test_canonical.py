from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lnlbench.contracts.dataset import ImageData, ImageFiles, Resize, Split
from lnlbench.formats import canonical
from lnlbench.formats.canonical import data_digest, image_data_digest


def arrays(seed=0, train=6, test=4):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (train, 3, 3, 2), dtype=np.uint8),
        rng.integers(0, 5, train, dtype=np.int64),
        rng.integers(0, 256, (test, 3, 3, 2), dtype=np.uint8),
        rng.integers(0, 5, test, dtype=np.int64),
    )


def test_it_is_the_documented_form():
    images, labels, test_images, test_labels = arrays()
    written_out = (
        b"uint8 6x3x3x2\n" + images.tobytes() + b"int64 6\n" + b"".join(int(v).to_bytes(8, "little") for v in labels)
    ) + (
        b"uint8 4x3x3x2\n"
        + test_images.tobytes()
        + b"int64 4\n"
        + b"".join(int(v).to_bytes(8, "little") for v in test_labels)
    )
    assert data_digest(*arrays()) == hashlib.sha256(written_out).hexdigest()


def test_many_images_are_hashed_in_pieces(monkeypatch):
    monkeypatch.setattr(canonical, "PIECE", 40)  # of 108 and 72 bytes
    images, labels, test_images, test_labels = arrays()
    written_out = b""
    for block, numbers in ((images, labels), (test_images, test_labels)):
        content = block.tobytes()
        pieces = [content[:40], content[40:80], content[80:]]
        written_out += b"uint8 %dx3x3x2\n" % len(block)
        written_out += b"".join(hashlib.sha256(piece).digest() for piece in pieces if piece)
        written_out += b"int64 %d\n" % len(numbers) + b"".join(int(v).to_bytes(8, "little") for v in numbers)
    assert data_digest(*arrays()) == hashlib.sha256(written_out).hexdigest()


def files(count, first=0):
    digests = np.arange(first, first + count * 32, dtype=np.uint8).reshape(count, 32)
    return ImageFiles(Path("root"), tuple(f"{number}.jpg" for number in range(count)), digests, Resize(8, True), True)


def labels(*numbers):
    return np.array(numbers, dtype=np.int64)


def everything():
    """Two training files, one test file, two further test sets, the names not in order, and a validation set."""
    return ImageData(
        files(2),
        labels(-1, 3),
        files(1, 64),
        labels(0),
        given_labels=labels(1, 3),
        correct=np.array([-1, 1], np.int8),
        further_tests={
            "web": Split(files(1, 96), labels(2)),
            "clean é": Split(np.array([[[[7]]]], np.uint8), labels(4)),
        },
        validation=Split(files(1, 128), labels(5)),
    )


def test_it_is_the_documented_form_with_everything_a_dataset_can_have():
    number = lambda value: bytes([value, 0, 0, 0, 0, 0, 0, 0])  # noqa: E731
    written_out = b"".join(
        [
            b"files 2\n" + bytes(range(64)) + b"int64 2\n" + b"\xff" * 8 + number(3),
            b"files 1\n" + bytes(range(64, 96)) + b"int64 1\n" + number(0),
            b"given int64 2\n" + number(1) + number(3),
            b"correct int8 2\n\xff\x01",
            b"test clean \xc3\xa9\nuint8 1x1x1x1\n\x07int64 1\n" + number(4),
            b"test web\nfiles 1\n" + bytes(range(96, 128)) + b"int64 1\n" + number(2),
            b"validation\nfiles 1\n" + bytes(range(128, 160)) + b"int64 1\n" + number(5),
        ]
    )
    assert image_data_digest(everything()) == hashlib.sha256(written_out).hexdigest()


def test_four_arrays_have_the_digest_of_the_dataset_they_make():
    assert image_data_digest(ImageData(*arrays())) == data_digest(*arrays())


@pytest.mark.parametrize(
    "change",
    [
        {"train_images": files(2, 1)},
        {"train_labels": labels(2, 3)},
        {"test_images": np.arange(32, dtype=np.uint8).reshape(1, 4, 4, 2)},
        {"test_labels": labels(1)},
        {"given_labels": labels(0, 3)},
        {"given_labels": None},
        {"correct": np.array([0, 1], np.int8)},
        {"correct": None},
        {"further_tests": {}},
        {"further_tests": {name: Split(files(1, 96), labels(2)) for name in ("web", "clean é")}},
        {"further_tests": everything().further_tests | {"third": Split(files(0), labels())}},
        {"validation": None},
        {"validation": Split(files(1, 128), labels(4))},
    ],
    ids=str,
)
def test_every_part_of_a_dataset_counts(change):
    assert image_data_digest(replace(everything(), **change)) != image_data_digest(everything())


def test_place_and_size_of_image_files_and_the_order_of_test_sets_do_not_count():
    whole = everything()
    moved = replace(whole.train_images, root=Path("elsewhere"), paths=("a", "b"), resize=Resize(9, False))
    turned = dict(reversed(whole.further_tests.items()))
    other = replace(whole, train_images=moved, further_tests=turned)
    assert image_data_digest(other) == image_data_digest(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": replace(files(2), digests=np.zeros((2, 20), np.uint8))}, "32 uint8 for each of 2 files"),
        ({"train_images": replace(files(2), paths=("0.jpg",))}, "32 uint8 for each of 1 files"),
        ({"given_labels": np.zeros(2, np.int32)}, "-dimensional int64"),
        ({"correct": np.zeros(2, bool)}, "-dimensional int8"),
        ({"further_tests": {"a\nfiles 0": Split(files(0), labels())}}, "line feed"),
        ({"validation": Split(files(1), labels(1)[None])}, "-dimensional int64"),
    ],
    ids=str,
)
def test_what_is_not_a_dataset_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        image_data_digest(replace(everything(), **change))


def test_memory_layout_does_not_matter():
    images, labels, test_images, test_labels = arrays()
    strided = np.repeat(labels, 2)[::2]
    assert not strided.flags.c_contiguous
    other = data_digest(np.asfortranarray(images), strided, test_images, test_labels.astype(">i8").astype(np.int64))
    assert other == data_digest(images, labels, test_images, test_labels)


@pytest.mark.parametrize("position", range(4))
def test_every_array_counts(position):
    changed = list(arrays())
    changed[position] = changed[position].copy()
    changed[position].flat[-1] ^= 1
    assert data_digest(*changed) != data_digest(*arrays())


def test_the_boundary_between_training_and_test_counts():
    images, labels, test_images, test_labels = arrays()
    moved = (
        np.concatenate([images, test_images[:1]]),
        np.concatenate([labels, test_labels[:1]]),
        test_images[1:],
        test_labels[1:],
    )
    assert data_digest(*moved) != data_digest(images, labels, test_images, test_labels)


def test_empty_arrays_are_allowed():
    assert len(data_digest(*arrays(train=0, test=0))) == 64


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, np.zeros((6, 3, 3, 2), np.float32)),
        (1, np.zeros(6, np.int32)),
        (2, np.zeros((4, 3, 3), np.uint8)),
        (3, np.zeros((4, 1), np.int64)),
    ],
)
def test_other_dtypes_and_dimensions_are_refused(position, wrong):
    given = list(arrays())
    given[position] = wrong
    with pytest.raises(ValueError, match="-dimensional"):
        data_digest(*given)
