from __future__ import annotations

import hashlib

import numpy as np
import pytest

from lnlbench.formats.canonical import data_digest


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
