"""Small trees in the official layouts of the web datasets: tiny JPEGs, made-up lists, the same bytes every time.

Every builder takes the dataset's own folder and writes what a user would have unpacked there.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n01484850")
"""The first three classes of ILSVRC."""

RED_SYNSETS = ("n01704323", "n04515003", "n02101006")
"""The first three classes of Red Mini-ImageNet."""

FOOD = ("apple_pie", "cheese_plate", "cheesecake")
"""Three classes of Food-101, with ids 0, 16 and 17."""
FOOD_IDS = (0, 16, 17)


def write_image(path: Path, number: int, size: tuple[int, int] = (12, 9)) -> None:
    """Write a JPEG whose bytes depend on ``number`` (taken modulo 4,096) and size alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number % 4096, size))


@functools.cache
def jpeg(number: int, size: tuple[int, int] = (12, 9)) -> bytes:
    """Return a JPEG of noise."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a list as Unix tools do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def red_mini_imagenet(
    folder: Path,
    *,
    level: str = "0.2",
    layout: str = "flat",
    base: str = "mini-imagenet",
    clean: int = 4,
    web: int = 2,
    validation: int = 2,
    annotations: bool = True,
) -> list[tuple[str, int, int]]:
    """Red Mini-ImageNet with three classes.

    Args:
        folder: The dataset's folder.
        level: Which training list.
        layout: Where images lie: ``flat`` (all_images, all_validation), ``validation`` (all_images, one validation
            folder for each label) or ``labels`` (one folder for each label, for both).
        base: Where the lists lie.
        clean: Images of Mini-ImageNet for each class.
        web: Web images for each class.
        validation: Test images for each class.
        annotations: Whether the table of web images is there.

    Returns:
        The training images: path, given label, true label (-1 for web images).
    """
    train: list[tuple[str, int, int]] = []
    for label, synset in enumerate(RED_SYNSETS):
        train += [(f"{synset}{number:08}.jpg", label, label) for number in range(1, clean + 1)]
        train += [(f"{label:08x}{number:08x}.jpg", label, -1) for number in range(web)]
    test = [(f"ILSVRC2012_val_{number:08}.jpg", number % 3) for number in range(1, 3 * validation + 1)]
    split = folder / base / "split"
    write_lines(split / f"red_noise_nl_{level}", (f"{name} {label}" for name, label, _ in train))
    write_lines(split / "clean_validation", (f"{name} {label}" for name, label in test))
    train_place = "{label}" if layout == "labels" else "all_images"
    test_place = {"flat": "all_validation", "validation": "validation/{label}", "labels": "{label}"}[layout]
    train = [(f"{train_place.format(label=label)}/{name}", label, true) for name, label, true in train]
    for number, (path, _, _) in enumerate(train):
        write_image(folder / path, number)
    for number, (name, label) in enumerate(test, len(train)):
        write_image(folder / test_place.format(label=label) / name, number)
    if annotations:
        # The first one is of another list.
        images = [("ffffffffffffffff", 7), *((Path(path).stem, label) for path, label, true in train if true < 0)]
        records = [
            [{"image/id": name, "image/uri": "https://example.org/1", "image/class/label": label}]
            for name, label in images
        ]
        (folder / "mini-imagenet-annotations.json").write_text(json.dumps({"name": "web", "data": records}))
    return train


def webvision(
    folder: Path, *, per_class: int = 3, others: int = 2, test_per_class: int = 1
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """WebVision's Google part: images of all 50 classes, and lines about other classes without images.

    Returns:
        Path and label of each training image and of each validation image of the first 50 classes.
    """
    labels = [(7 * number) % 50 for number in range(50 * per_class)]
    train = [(f"google/q{label + 1:04}/{number:03}.jpg", label) for number, label in enumerate(labels)]
    test = [(f"val{number:06}.jpg", (7 * number) % 50) for number in range(50 * test_per_class)]
    more = [(f"google/q{label:04}/x.jpg", label) for label in range(998, 998 + others)]
    lines = [*more[:1], *train, *more[1:]]
    write_lines(folder / "info" / "train_filelist_google.txt", (f"{path} {label}" for path, label in lines))
    write_lines(
        folder / "info" / "val_filelist.txt", (f"{name} {label}" for name, label in [*test, ("val999999.jpg", 50)])
    )
    test = [(f"val_images_256/{name}", label) for name, label in test]
    for number, (path, _) in enumerate([*train, *test]):
        write_image(folder / path, number)
    return train, test


def ilsvrc12(
    folder: Path, synsets: Sequence[str], *, names: str = "synset", place: str = "ilsvrc12/val", per_class: int = 1
) -> list[tuple[str, int]]:
    """Validation images of ILSVRC12 in one folder for each class.

    Args:
        folder: The dataset's folder.
        synsets: The classes, in the order of their labels.
        names: What folders are called: ``synset`` or ``label``.
        place: Where they lie.
        per_class: Images for each class.

    Returns:
        Path and label of each image, ordered by label and name.
    """
    images: list[tuple[str, int]] = []
    for label, synset in enumerate(synsets):
        inner = synset if names == "synset" else str(label)
        for number in range(per_class):
            name = f"ILSVRC2012_val_{1 + label + number * len(synsets):08}.JPEG"
            images.append((f"{place}/{inner}/{name}", label))
            write_image(folder / images[-1][0], 2000 + len(images))
    return images


def clothing1m(
    folder: Path, *, lists: str = "", strip: bool = False, train: int = 30, clean_train: int = 6, held_out: int = 5
) -> dict[str, list[str]]:
    """Clothing1M with all its lists.

    Of the clean images every second one has a noisy label too, which is wrong: the next class.

    Args:
        folder: The dataset's folder.
        lists: Where the annotation files lie: the folder itself or ``annotations``.
        strip: Whether the folder is that of the images, so that ``images/`` is missing from every path.
        train: Noisy training images.
        clean_train: Clean training images.
        held_out: Clean images for validation, and likewise for testing.

    Returns:
        The keys of each of the four key lists.
    """
    total = train + clean_train + 2 * held_out
    keys = [f"images/{number % 10}/{number % 7:02}/{number:04},{7 * number:04}.jpg" for number in range(total)]
    ends = np.cumsum([0, train, clean_train, held_out, held_out]).tolist()
    parts = ("noisy_train", "clean_train", "clean_val", "clean_test")
    splits = {part: keys[start:end] for part, start, end in zip(parts, ends, ends[1:], strict=False)}
    place = folder / lists
    noisy = [*splits["noisy_train"], *keys[train::2]]
    write_lines(place / "noisy_label_kv.txt", (f"{key} {clothing_label(key, noisy=True)}" for key in reversed(noisy)))
    write_lines(place / "clean_label_kv.txt", (f"{key} {clothing_label(key)}" for key in keys[train:]))
    for part, members in splits.items():
        write_lines(place / f"{part}_key_list.txt", members)
    for number, key in enumerate(keys):
        write_image(folder / (key.removeprefix("images/") if strip else key), number)
    return splits


def clothing_label(key: str, noisy: bool = False) -> int:
    """Return the made-up label of an image of :func:`clothing1m`."""
    number = int(Path(key).name[:4])
    return (number + noisy) % 14


def food101n(folder: Path, *, base: str = "", header: bool = True, per_class: int = 4, test_per_class: int = 2) -> None:
    """Food-101N and Food-101 with three classes.

    Of each class, image 0 was found right, image 1 wrong, and nobody looked at the others.

    Args:
        folder: The dataset's folder.
        base: Where Food-101N was unpacked: the folder itself or ``Food-101N_release``.
        header: Whether lists begin with the names of their columns.
        per_class: Training images for each class.
        test_per_class: Test images for each class.
    """
    keys = [f"{name}/{number:032x}.jpg" for number in range(per_class) for name in FOOD]
    top = ["class_name/key"] if header else []
    meta = folder / base / "meta"
    write_lines(meta / "imagelist.tsv", [*top, *keys])
    verified = [f"{name}/{number:032x}.jpg\t{1 - number}" for name in FOOD for number in (0, 1)]
    verified += ["hot_and_sour_soup/a49e6fb26e356c6c41a37b5c18176355.jpg\t1"]
    write_lines(meta / "verified_train.tsv", [*(f"{each}\tverification_label" for each in top), *verified])
    write_lines(meta / "classes.txt", [*(["class_name"] if header else []), *FOOD])
    tests = [f"{name}/{1000 + number}" for name in reversed(FOOD) for number in range(test_per_class)]
    write_lines(folder / "food-101" / "meta" / "test.txt", tests)
    for number, key in enumerate(keys):
        write_image(folder / base / "images" / key, number)
    for number, key in enumerate(tests, len(keys)):
        write_image(folder / "food-101" / "images" / f"{key}.jpg", number)


# What a list may not be: the changed bytes of a sound list. Every loader must refuse these in one line.
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: data[:0],
    "binary": lambda data: bytes(range(128, 256)) + data,
    "zeros": lambda data: b"\0" * len(data),
    "traversal": lambda data: data + b"../" + _last(data),
    "inner traversal": lambda data: data + b"images/../../" + _last(data),
    "absolute": lambda data: data + b"/" + _last(data),
    "backslash": lambda data: data + b"images\\" + _last(data),
    "control": lambda data: data + b"\x1b[2J" + _last(data),
    "twice": lambda data: data + _last(data),
    "blank line": lambda data: data + b"\n" + data,
}

# The same for lists with a label in each line.
SPOILED_LABELS: dict[str, Callable[[bytes], bytes]] = {
    "no label": lambda data: data + b"google/q0001/new.jpg\n",
    "label of another kind": lambda data: data + b"google/q0001/new.jpg cat\n",
    "label too large": lambda data: data + b"google/q0001/new.jpg 1000\n",
    "label negative": lambda data: data + b"google/q0001/new.jpg -1\n",
    "label not whole": lambda data: data + b"google/q0001/new.jpg 0.0\n",
    "label enormous": lambda data: data + b"google/q0001/new.jpg " + b"9" * 5000 + b"\n",
}

# What a list may be like all the same.
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "line ends of Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "no line end at the end": lambda data: data.rstrip(b"\n"),
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
}


def _last(data: bytes) -> bytes:
    return data.splitlines(keepends=True)[-1]
