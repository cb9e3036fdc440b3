from __future__ import annotations

import hashlib
import io
import itertools
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional

from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.contracts.views import PLAIN, RandomCrop, RandomFlip, RandomResizedCrop, ViewRecipe
from lnlbench.engine.imagecache import build_cache, read_image
from lnlbench.engine.seeding import hash_index, uniform_fractions, uniform_integers
from lnlbench.engine.stream import FileSource, open_files, rectangle
from lnlbench.engine.views import ImageStore
from lnlbench.errors import DataError, UsageError
from lnlbench.store import LocalDataStore

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WEAK = ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip()))
CROP = ViewRecipe(ops=(RandomCrop(padding=0), RandomFlip()))
SCALED = ViewRecipe(ops=(RandomResizedCrop(), RandomFlip()))
BLACK = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])


def put_files(root: Path, pictures: list[NDArray[np.uint8]], resize: Resize, kind: str = "PNG") -> ImageFiles:
    root.mkdir()
    names = tuple(f"{number:03d}.img" for number in range(len(pictures)))
    digests = []
    for name, pixels in zip(names, pictures, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        (root / name).write_bytes(buffer.getvalue())
        digests.append(np.frombuffer(hashlib.sha256(buffer.getvalue()).digest(), np.uint8))
    return ImageFiles(root, names, np.stack(digests), resize, False)


def squares(count: int, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> ImageFiles:
    """Thirty images of several shapes, twenty pixels on the shorter side."""
    sizes = [(40, 30), (30, 41), (64, 20), (25, 25), (33, 50)]
    noise = squares(30, 8)
    pictures = [
        np.asarray(Image.fromarray(noise[number]).resize(sizes[number % 5], Image.Resampling.BICUBIC))
        for number in range(30)
    ]
    return put_files(tmp_path / "photos", pictures, Resize(20, square=False), "JPEG")


def make_source(files: ImageFiles, size: int, workers: int = 2) -> FileSource:
    return FileSource(files, size, MEAN, STD, CPU, None, workers)


def whole_pass(
    source: FileSource | ImageStore, order: Tensor, recipes: tuple[ViewRecipe, ...], size: int = 8, key: int = 77
) -> list[Tensor]:
    """Return each view of a pass, all batches in a row."""
    count = math.ceil(len(order) / size)
    batches = [*source.batches(order, size, count, recipes, tuple(range(key, key + len(recipes))))]
    assert [len(batch[0]) for batch in batches] == [size] * (len(order) // size) + [len(order) % size] * (
        len(order) % size > 0
    )
    return [torch.cat([batch[view] for batch in batches]) for view in range(len(recipes))]


def normalised(pixels: NDArray[np.uint8] | Tensor) -> NDArray[np.float64]:
    """``(H, W, 3)`` to ``(3, H, W)``, from the definition."""
    return np.asarray((np.asarray(pixels, dtype=np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("workers", [1, 4])
def test_files_give_what_memory_gives(tmp_path: Path, workers: int) -> None:
    images = squares(37)
    source = make_source(put_files(tmp_path / "images", [*images], Resize(32, square=True)), 32, workers)
    memory = ImageStore(torch.from_numpy(images), MEAN, STD, 4, CPU)
    recipes = (
        PLAIN,
        WEAK,
        ViewRecipe(ops=(RandomFlip(), RandomCrop(padding=2))),
        ViewRecipe(ops=(RandomFlip(probability=0.9),)),
        ViewRecipe(ops=(RandomCrop(padding=0),)),
    )
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert (source.size, source.channels, source.height, source.width) == (37, 3, 32, 32)
    for ours, theirs in zip(whole_pass(source, order, recipes), whole_pass(memory, order, recipes), strict=True):
        assert ours.dtype == torch.float32
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours, theirs)


def test_large_padding_may_leave_nothing_of_an_image(tmp_path: Path) -> None:
    images = squares(4, 5)
    source = make_source(put_files(tmp_path / "images", [*images], Resize(5, square=True)), 5)
    memory = ImageStore(torch.from_numpy(images), MEAN, STD, 9, CPU)
    recipes = tuple(ViewRecipe(ops=(RandomCrop(padding=9), RandomFlip())) for _ in range(20))
    views = whole_pass(source, torch.arange(4), recipes)
    assert any(torch.equal(image, BLACK[:, None, None].expand(3, 5, 5)) for view in views for image in view)
    for ours, theirs in zip(views, whole_pass(memory, torch.arange(4), recipes), strict=True):
        assert torch.equal(ours, theirs)


def test_views_depend_on_nothing_but_the_sample(photos: ImageFiles, tmp_path: Path) -> None:
    recipes = (SCALED, CROP, PLAIN)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    expected = whole_pass(make_source(photos, 16), order, recipes)
    cache = build_cache(photos, tmp_path / "decoded", LocalDataStore(tmp_path, offline=True), 2)
    others = [
        whole_pass(make_source(photos, 16, workers=1), order, recipes, size=1),
        whole_pass(make_source(photos, 16, workers=4), order, recipes, size=30),
        whole_pass(open_files(photos, 16, MEAN, STD, CPU, tmp_path / "decoded", workers=3), order, recipes, size=11),
        whole_pass(FileSource(photos, 16, MEAN, STD, CPU, cache, 1), order, recipes),
        [view.flip(0) for view in whole_pass(make_source(photos, 16), order.flip(0), recipes)],
    ]
    for views in others:
        for view, same in zip(views, expected, strict=True):
            assert torch.equal(view, same)
    other_key = whole_pass(make_source(photos, 16), order, recipes, key=78)
    assert [torch.equal(*pair) for pair in zip(other_key, expected, strict=True)] == [False, False, True]


def test_decoded_images_are_read_instead_of_files(photos: ImageFiles, tmp_path: Path) -> None:
    expected = whole_pass(make_source(photos, 16), torch.arange(30), (CROP,))
    build_cache(photos, tmp_path / "decoded", LocalDataStore(tmp_path, offline=True))
    for path in photos.root.iterdir():
        path.unlink()
    source = open_files(photos, 16, MEAN, STD, CPU, tmp_path / "decoded")
    assert torch.equal(whole_pass(source, torch.arange(30), (CROP,))[0], expected[0])


def test_views_are_what_torchvision_makes_with_the_same_parameters(photos: ImageFiles) -> None:
    plain, crop, scaled, padded = (
        view.numpy() for view in whole_pass(make_source(photos, 16), torch.arange(30), (PLAIN, CROP, SCALED, WEAK))
    )
    index = torch.arange(30)
    flips = [uniform_fractions(hash_index(key, index, 2)) < 0.5 for key in range(77, 81)]
    draws = uniform_integers(hash_index(79, index[:, None] * 32 + torch.arange(22), 8), 1 << 31).tolist()

    def positions(number: int, key: int, lane: int, count: int) -> int:
        return int(uniform_integers(hash_index(key, index[number : number + 1], lane), count))

    def expect(found: NDArray[np.float32], pixels: Tensor, mirrored: Tensor) -> None:
        pixels = functional.horizontal_flip(pixels) if mirrored else pixels
        np.testing.assert_allclose(found, normalised(pixels.permute(1, 2, 0)), atol=1e-5)

    for number in range(30):
        image = torch.from_numpy(read_image(photos, number)).permute(2, 0, 1)
        height, width = image.shape[1:]
        expect(plain[number], functional.center_crop(image, [16, 16]), torch.tensor(False))
        top, left = positions(number, 78, 0, height - 15), positions(number, 78, 1, width - 15)
        expect(crop[number], functional.crop(image, top, left, 16, 16), flips[1][number])
        box = rectangle(RandomResizedCrop(), height, width, draws[number])
        expect(scaled[number], functional.resized_crop(image, *box, [16, 16], antialias=True), flips[2][number])
        top, left = positions(number, 80, 0, height + 8 - 15), positions(number, 80, 1, width + 8 - 15)
        expect(padded[number], functional.crop(functional.pad(image, [4]), top, left, 16, 16), flips[3][number])


def test_crops_are_uniform_over_a_larger_image(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:8, 0:11].astype(np.uint8)
    files = put_files(tmp_path / "images", [np.stack([rows, columns, 0 * rows], 2)], Resize(8, square=False))
    many = ImageFiles(files.root, files.paths * 4000, files.digests.repeat(4000, 0), files.resize, False)
    (views,) = whole_pass(make_source(many, 6), torch.arange(4000), (CROP,), size=256)
    found = (views * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    top, left, right = (found[:, 0, 0, 0], found[:, 1, 0, 0], found[:, 1, 0, -1])
    assert torch.equal((left - right).abs().round(), torch.full((4000,), 5.0))
    cells = top.round() * 12 + torch.minimum(left, right).round() * 2 + (left > right)
    counts = np.bincount(cells.long().numpy())
    # Three positions down, six across, mirrored or not: all are equally likely and independent.
    assert len(counts) == 36
    assert stats.chisquare(counts).pvalue > 1e-4


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.integers(0, 2**31 - 1), min_size=22, max_size=22),
    st.sampled_from([(0.08, 1.0), (0.2, 1.0), (1.0, 1.0), (0.001, 0.01)]),
    st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.1, 0.2), (5.0, 9.0)]),
)
def test_rectangles_lie_in_the_image(
    height: int, width: int, draws: list[int], area: tuple[float, float], shape: tuple[float, float]
) -> None:
    top, left, part_height, part_width = rectangle(RandomResizedCrop(area=area, shape=shape), height, width, draws)
    assert min(top, left) >= 0
    assert min(part_height, part_width) >= 1
    assert top + part_height <= height
    assert left + part_width <= width


@pytest.mark.parametrize(("height", "width"), [(100, 150), (320, 320), (90, 700)])
def test_rectangles_are_distributed_like_torchvisions(height: int, width: int) -> None:
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array([TorchvisionCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    draws = uniform_integers(hash_index(5, torch.arange(3000 * 22).view(3000, 22)), 1 << 31).tolist()
    ours = np.array([rectangle(RandomResizedCrop(), height, width, each) for each in draws])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(100, 400), (400, 100), (101, 400), (400, 103)])
def test_the_central_rectangle_is_torchvisions(height: int, width: int) -> None:
    # The whole area of so long an image never has an admissible shape.
    op = RandomResizedCrop(area=(1.0, 1.0))
    theirs = TorchvisionCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(op.shape))
    assert rectangle(op, height, width, list(range(22))) == theirs


@pytest.mark.parametrize("workers", [1, 3])
def test_an_abandoned_pass_leaves_no_thread(photos: ImageFiles, workers: int) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("lnlbench-images")]

    for _ in range(3):
        for number, _batch in enumerate(
            make_source(photos, 16, workers).batches(torch.arange(30), 2, 15, (CROP,), (1,))
        ):
            assert ours()
            if number == 1:
                break
    deadline = time.monotonic() + 10
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ours() == []


def test_the_interpreter_may_end_in_the_middle_of_a_pass(photos: ImageFiles) -> None:
    script = f"""
import numpy as np, torch
from pathlib import Path
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.contracts.views import PLAIN
from lnlbench.engine.stream import FileSource
paths = {photos.paths!r} * 100
files = ImageFiles(Path({str(photos.root)!r}), paths, np.zeros((len(paths), 32), np.uint8), Resize(20, False), False)
source = FileSource(files, 16, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"), None, 3)
kept = source.batches(torch.arange(len(paths)), 4, len(paths) // 4, (PLAIN,), (1,))
print(next(kept)[0].shape)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "torch.Size([4, 3, 16, 16])\n"


def test_kept_batches_are_not_overwritten(photos: ImageFiles) -> None:
    source = make_source(photos, 16)
    order = torch.arange(30).repeat(4)
    kept = [*source.batches(order, 4, 30, (CROP,), (1,))]
    copies = [images.clone() for (images,) in source.batches(order, 4, 30, (CROP,), (1,))]
    # Views into a batch, and what autograd saved, hold it as the batch itself does.
    parts = [(images[1:, 0], images.double()[1:, 0]) for (images,) in source.batches(order, 4, 30, (CROP,), (1,))]
    assert all(torch.equal(images, same) for (images,), same in zip(kept, copies, strict=True))
    assert all(torch.equal(part.double(), same) for part, same in parts)


def test_two_passes_may_be_interleaved(photos: ImageFiles) -> None:
    source = make_source(photos, 16)
    order = torch.arange(30)
    (first,), (second,) = whole_pass(source, order, (CROP,)), whole_pass(source, order.flip(0), (SCALED,))
    pairs = zip(
        source.batches(order, 8, 4, (CROP,), (77,)), source.batches(order.flip(0), 8, 4, (SCALED,), (77,)), strict=True
    )
    found = [(one[0].clone(), other[0].clone()) for one, other in pairs]
    assert torch.equal(torch.cat([one for one, _ in found]), first)
    assert torch.equal(torch.cat([other for _, other in found]), second)


def test_a_pass_may_leave_out_the_last_samples(photos: ImageFiles) -> None:
    source = make_source(photos, 16)
    batches = [*source.batches(torch.arange(30), 8, 3, (PLAIN,), (1,))]
    assert torch.equal(torch.cat([images for (images,) in batches]), whole_pass(source, torch.arange(24), (PLAIN,))[0])
    assert [*source.batches(torch.arange(0), 8, 0, (PLAIN,), (1,))] == []


def test_a_damaged_file_is_named(photos: ImageFiles) -> None:
    path = photos.root / photos.paths[29]
    path.write_bytes(path.read_bytes()[:300])
    batches = make_source(photos, 16).batches(torch.arange(30), 1, 30, (PLAIN,), (1,))
    assert len([*itertools.islice(batches, 29)]) == 29
    with pytest.raises(DataError, match=r"029\.img: not a sound JPEG or PNG image") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_damaged_decoded_images_are_noticed_when_they_are_used(photos: ImageFiles, tmp_path: Path) -> None:
    build_cache(photos, tmp_path / "decoded", LocalDataStore(tmp_path, offline=True))
    (pixels,) = (tmp_path / "decoded").glob("*/pixels.bin")
    data = bytearray(pixels.read_bytes())
    data[-1] ^= 1
    pixels.write_bytes(data)
    source = open_files(photos, 16, MEAN, STD, CPU, tmp_path / "decoded")
    assert len(whole_pass(source, torch.arange(29), (PLAIN,))[0]) == 29
    with pytest.raises(DataError, match="the decoded images are damaged: image 29 has another checksum"):
        whole_pass(source, torch.arange(30), (PLAIN,))


@pytest.mark.parametrize(
    "ops",
    [(RandomFlip(), RandomFlip()), (RandomCrop(), RandomResizedCrop()), (RandomCrop(), RandomFlip(), RandomCrop())],
    ids=["two flips", "two kinds of crop", "two crops"],
)
def test_wrong_recipes_are_refused(photos: ImageFiles, ops: tuple[RandomCrop | RandomFlip, ...]) -> None:
    batches = make_source(photos, 16).batches(torch.arange(30), 8, 4, (PLAIN, ViewRecipe(ops=ops)), (1, 2))
    with pytest.raises(UsageError, match="each operation once, and crop once; this one has "):
        next(batches)


def test_views_larger_than_the_images_are_refused(photos: ImageFiles) -> None:
    with pytest.raises(UsageError, match="views of 21 pixels cannot be cut from images of 20"):
        make_source(photos, 21)
