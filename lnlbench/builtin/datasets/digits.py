"""The handwritten digits that ship inside scikit-learn: the smallest data a method can be tried on.

Neither UCI nor scikit-learn splits these 1,797 images. The split used here was drawn once, stratified by class, with
``train_test_split(range(1797), test_size=0.2, random_state=0, stratify=labels)`` of scikit-learn 1.9, and its 360 test
positions are stored beside this file in ascending order, so that no library version can move it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from lnlbench.api import DataError, Dataset, DataStore, ImageData, RemoteFile

_TEST_INDEX = Path(__file__).with_name("digits_test_index.json")
# Of the images as bytes 0..16 in C order, followed by the labels as little-endian int64.
_SHA256 = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"


class Digits(Dataset):
    """Handwritten digits, 8x8 grey: 1,437 training and 360 test images."""

    name = "digits"
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    num_train = 1_437
    num_test = 360
    image_size = 8
    channels = 1
    # Over all pixels of the training part.
    mean = (0.3054,)
    std = (0.3760,)
    licence = "CC BY 4.0 (UCI Machine Learning Repository)"
    source = "scikit-learn's load_digits, the test part of UCI's Optical Recognition of Handwritten Digits"

    def files(self) -> tuple[RemoteFile, ...]:
        """Return nothing: the data are part of an installed library."""
        return ()

    def prepare(self, store: DataStore) -> None:
        """Check that the installed library still has the known data."""
        self.load(store)

    def load(self, store: DataStore) -> ImageData:
        """Read the images from scikit-learn, check them and split them."""
        # Imported here, for listing datasets needs no scikit-learn.
        import sklearn
        from sklearn.datasets import load_digits

        bunch = load_digits()
        levels = np.ascontiguousarray(bunch.images, dtype=np.uint8)
        labels = np.ascontiguousarray(bunch.target, dtype=np.int64)
        found = hashlib.sha256(levels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        if found != _SHA256 or not np.array_equal(levels, bunch.images):
            raise DataError(
                f"digits: the data in scikit-learn {sklearn.__version__} have sha256 {found}, expected {_SHA256}; "
                "install another version of scikit-learn"
            )
        # Grey levels 0..16 become 0..255, rounded to the nearest; distinct levels stay distinct, so nothing is lost.
        images = ((levels.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
        in_test = np.zeros(len(images), dtype=bool)
        in_test[json.loads(_TEST_INDEX.read_text(encoding="ascii"))] = True
        return ImageData(images[~in_test], labels[~in_test], images[in_test], labels[in_test])
