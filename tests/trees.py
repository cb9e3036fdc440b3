"""Small folders of made-up images, in the layouts in which datasets are published."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ANIMALS = (
    "cat",
    "lynx",
    "wolf",
    "coyote",
    "cheetah",
    "jaguar",
    "chimpanzee",
    "orangutan",
    "hamster",
    "guinea pig",
)


def picture(seed: int, width: int = 64, height: int = 64, kind: str = "JPEG") -> bytes:
    """Return an image file whose content depends on the seed: smooth colours, so that JPEG keeps them roughly."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def animal10n(folder: Path, train: int = 30, test: int = 10, layout: str = "flat", side: int = 64) -> None:
    """Build Animal-10N, class by class in turn: ``flat`` as published, or a folder per class by ``id`` or ``name``."""
    for part, count, offset in (("training", train, 0), ("testing", test, 10_000)):
        for number in range(count):
            label = number % 10
            inner = {"flat": ".", "id": str(label), "name": ANIMALS[label]}[layout]
            put(folder / part / inner / f"{label}_img_{number}.jpg", picture(offset + number, side, side))


def own_images(
    folder: Path,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    train: int = 4,
    test: int = 2,
    size: tuple[int, int] = (40, 30),
) -> None:
    """Build ``train/<class>/*`` and ``test/<class>/*`` with so many images per class, JPEG and PNG in turn."""
    for part, count, offset in (("train", train, 0), ("test", test, 10_000)):
        for label, name in enumerate(classes):
            for number in range(count):
                kind, suffix = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
                data = picture(offset + 100 * label + number, *size, kind)
                put(folder / part / name / f"{number:03}.{suffix}", data)
