from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage

from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.contracts.views import (
    PLAIN,
    AutoAugment,
    ColourJitter,
    Cutout,
    Greyscale,
    RandAugment,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    ViewRecipe,
)
from lnlbench.engine.augment import _KINDS as KINDS
from lnlbench.engine.stream import open_files, rectangle
from lnlbench.engine.views import ImageStore, ViewPlan, largest_padding, plan_view, rectangles, resized_draws
from lnlbench.errors import UsageError

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WEAK = ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip()))
STRONG = ViewRecipe(ops=(*WEAK.ops, RandAugment(), Cutout()))
REFLECTED = ViewRecipe(ops=(RandomCrop(padding=4, mode="reflect"), RandomFlip()))
CONTRASTIVE = ViewRecipe(ops=(RandomResizedCrop(area=(0.2, 1.0)), RandomFlip(), ColourJitter(), Greyscale()))
PILLOW: dict[str, Callable[[Any, float], Any]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: tv.autocontrast(image),
    "brightness": tv.adjust_brightness,
    "colour": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "equalise": lambda image, _: tv.equalize(image),
    "posterise": lambda image, value: tv.posterize(image, int(value)),
    "rotate": tv.rotate,
    "sharpness": tv.adjust_sharpness,
    "shear-x": lambda image, value: image.transform(image.size, Image.Transform.AFFINE, (1, value, 0, 0, 1, 0)),
    "shear-y": lambda image, value: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, value, 1, 0)),
    "solarise": lambda image, value: tv.solarize(image, min(value, 255)),
    "translate-x": lambda image, value: image.transform(image.size, Image.Transform.AFFINE, (1, 0, -value, 0, 1, 0)),
    "translate-y": lambda image, value: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -value)),
}


def random_images(count: int = 20, height: int = 12, width: int = 10, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def make_store(images: NDArray[np.uint8], padding: int = 4) -> ImageStore:
    channels = images.shape[3]
    return ImageStore(torch.from_numpy(images), MEAN[:channels], STD[:channels], padding, CPU)


def cut_out(image: NDArray[np.uint8], padding: int, top: int, left: int, mirrored: bool) -> NDArray[np.float64]:
    """Pixel by pixel, straight from the definition: pad with black, crop, mirror, normalise."""
    height, width, channels = image.shape
    out = np.zeros((channels, height, width))
    for y in range(height):
        for x in range(width):
            source_y = top + y - padding
            source_x = left + (width - 1 - x if mirrored else x) - padding
            for k in range(channels):
                inside = 0 <= source_y < height and 0 <= source_x < width
                value = image[source_y, source_x, k] / 255.0 if inside else 0.0
                out[k, y, x] = (value - MEAN[k]) / STD[k]
    return out


def window(plan: ViewPlan, store: ImageStore, index: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return store.normalise(plan.pixels(store, index, start, stop))


def part(values: torch.Tensor | None, position: int, default: int) -> int:
    return default if values is None else int(values[position])


@pytest.mark.parametrize(
    ("recipe", "padding"),
    [
        (PLAIN, 4),
        (WEAK, 4),
        (ViewRecipe(ops=(RandomFlip(), RandomCrop(padding=4))), 4),
        (ViewRecipe(ops=(RandomCrop(padding=2),)), 4),
        (ViewRecipe(ops=(RandomFlip(probability=1.0),)), 0),
        (ViewRecipe(ops=(RandomCrop(padding=0),)), 3),
    ],
    ids=["plain", "weak", "flip first", "less padding than the store", "flip only", "no padding"],
)
def test_views_equal_a_plain_loop(recipe: ViewRecipe, padding: int) -> None:
    images = random_images()
    store = make_store(images, padding)
    index = torch.tensor([3, 19, 0, 3, 7])
    drawn = plan_view(recipe, store, 1234, index)
    views = window(drawn, store, index, 0, 5).numpy()
    for position, number in enumerate(index.tolist()):
        top, left = part(drawn.top, position, padding), part(drawn.left, position, padding)
        expected = cut_out(images[number], padding, top, left, bool(part(drawn.mirrored, position, 0)))
        np.testing.assert_allclose(views[position], expected, atol=1e-5)
    assert views.shape == (5, 3, 12, 10)


def test_black_is_the_colour_of_the_padding() -> None:
    store = make_store(np.full((1, 4, 4, 3), 200, dtype=np.uint8))
    corner = store.gather(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), None)[0, :, 0, 0]
    np.testing.assert_allclose(corner.numpy(), [-m / s for m, s in zip(MEAN, STD, strict=True)], rtol=1e-6)


def test_offsets_and_flips_are_uniform() -> None:
    store = make_store(random_images(1))
    index = torch.arange(40_000)
    drawn = plan_view(WEAK, store, 77, index)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    cells = np.bincount((drawn.top * 18 + drawn.left * 2 + drawn.mirrored).numpy(), minlength=9 * 9 * 2)
    # All 162 combinations are equally likely: the three parameters are uniform and independent.
    assert len(cells) == 162
    assert stats.chisquare(cells).pvalue > 1e-4


def test_flips_have_their_probability() -> None:
    store = make_store(random_images(1))
    for probability in (0.0, 0.2, 1.0):
        recipe = ViewRecipe(ops=(RandomFlip(probability=probability),))
        mirrored = plan_view(recipe, store, 5, torch.arange(20_000)).mirrored
        assert mirrored is not None
        assert stats.binomtest(int(mirrored.sum()), 20_000, probability).pvalue > 1e-4


def test_offsets_of_a_small_crop_are_centred_in_a_store_with_more_padding() -> None:
    store = make_store(random_images(1), padding=4)
    drawn = plan_view(ViewRecipe(ops=(RandomCrop(padding=1),)), store, 5, torch.arange(500))
    assert drawn.top is not None
    assert drawn.left is not None
    assert sorted(set(drawn.top.tolist())) == sorted(set(drawn.left.tolist())) == [3, 4, 5]


def test_views_depend_on_neither_batch_size_nor_order() -> None:
    store = make_store(random_images())
    index = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    drawn = plan_view(WEAK, store, 42, index)
    whole = window(drawn, store, index, 0, 20)
    for size in (1, 3, 20):
        parts = [
            window(drawn, store, index[start : start + size], start, min(start + size, 20))
            for start in range(0, 20, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    backwards = index.flip(0)
    again = window(plan_view(WEAK, store, 42, backwards), store, backwards, 0, 20)
    assert torch.equal(again.flip(0), whole)
    other_key = window(plan_view(WEAK, store, 43, index), store, index, 0, 20)
    assert not torch.equal(other_key, whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_torchvision(channels: int) -> None:
    images = np.arange(256, dtype=np.uint8).repeat(channels).reshape(1, 16, 16, channels)
    usual = Compose(
        [ToImage(), ToDtype(torch.float32, scale=True), Normalize(list(MEAN[:channels]), list(STD[:channels]))]
    )
    ours = make_store(images, 0).gather(torch.tensor([0]), None, None, None)[0]
    torch.testing.assert_close(ours, torch.as_tensor(usual(images[0])), atol=1e-6, rtol=0)


def test_views_are_float32_and_channels_last() -> None:
    store = make_store(random_images())
    index = torch.arange(4)
    views = window(plan_view(WEAK, store, 1, index), store, index, 0, 4)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_a_plain_view_has_nothing_random() -> None:
    assert plan_view(PLAIN, make_store(random_images(2)), 1, torch.arange(2)) == ViewPlan(None, None, None)


def test_the_store_pads_as_much_as_the_greediest_recipe() -> None:
    assert largest_padding([]) == 0
    assert largest_padding([PLAIN, WEAK, ViewRecipe(ops=(RandomCrop(padding=6),))]) == 6


def test_wrong_recipes_are_refused() -> None:
    store = make_store(random_images(2), padding=2)
    twice = ViewRecipe(ops=(RandomFlip(), RandomFlip()))
    with pytest.raises(UsageError, match="each operation once, and crop once; this one has flip, flip"):
        plan_view(twice, store, 1, torch.arange(2))
    with pytest.raises(UsageError, match="once, and crop once; this one has crop, resized-crop"):
        plan_view(ViewRecipe(ops=(RandomCrop(), RandomResizedCrop())), store, 1, torch.arange(2))
    with pytest.raises(UsageError, match="pads 4 pixels, but the image store holds 2"):
        plan_view(WEAK, store, 1, torch.arange(2))
    small = make_store(random_images(2, 4, 9), padding=4)
    with pytest.raises(UsageError, match="pads 4 mirrored pixels, but images have 4"):
        plan_view(REFLECTED, small, 1, torch.arange(2))


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ({"ops": [{"op": "blur"}]}, "blur"),
        ({"ops": [{"op": "crop", "padding": -1}]}, "padding"),
        ({"ops": [{"op": "flip", "probability": 1.5}]}, "probability"),
        ({"ops": [{"op": "crop", "paddding": 1}]}, "paddding"),
        ({"ops": [{"op": "cutout"}, {"op": "flip"}]}, "crops and flips come first, but this view is cutout, flip"),
        ({"ops": [{"op": "randaugment", "levels": [3, 2]}]}, "not a range within 0 to top = 10"),
        ({"ops": [{"op": "randaugment", "levels": [9, 11]}]}, "not a range within 0 to top = 10"),
        ({"ops": [{"op": "randaugment", "pool": ["blur"]}]}, "identity"),
        ({"ops": [{"op": "autoaugment"}]}, "policy"),
        ({"ops": [{"op": "autoaugment", "policy": "svhn"}]}, "cifar10"),
        ({"ops": [{"op": "cutout", "fill": 256}]}, "fill"),
        ({"ops": [{"op": "cutout", "share": 0.0}]}, "share"),
        ({"ops": [{"op": "colour-jitter", "hue": 0.6}]}, "hue"),
    ],
)
def test_wrong_operations_are_refused(recipe: dict[str, object], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        ViewRecipe.model_validate(recipe)


def test_recipes_are_the_same_after_json() -> None:
    every = ViewRecipe(ops=(*STRONG.ops, AutoAugment(policy="imagenet", fill=(1, 2, 3)), ColourJitter(), Greyscale()))
    for recipe in (PLAIN, WEAK, STRONG, REFLECTED, CONTRASTIVE, every):
        assert ViewRecipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_crop_in_json_is_as_it_was_before_it_had_modes() -> None:
    assert RandomCrop(padding=2).model_dump(mode="json") == {"op": "crop", "padding": 2}
    assert RandomCrop(padding=2, mode="reflect").model_dump(mode="json")["mode"] == "reflect"


@pytest.mark.parametrize("held", [4, 6])
def test_reflected_padding_is_that_of_numpy(held: int) -> None:
    images = random_images(40)
    store = make_store(images, held)
    index = torch.arange(40)
    drawn = plan_view(REFLECTED, store, 9, index)
    assert drawn.top is not None
    assert drawn.left is not None
    assert drawn.mirrored is not None
    pixels = drawn.pixels(store, index, 0, 40).numpy()
    for number, image in enumerate(images):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
        top, left = int(drawn.top[number]) - (held - 4), int(drawn.left[number]) - (held - 4)
        expected = padded[top : top + 12, left : left + 10]
        np.testing.assert_array_equal(pixels[number], expected[:, ::-1] if drawn.mirrored[number] else expected)


def test_resized_crops_are_torchvisions() -> None:
    images = random_images(60)
    store = make_store(images, 2)
    index = torch.arange(60)
    drawn = plan_view(ViewRecipe(ops=(RandomResizedCrop(), RandomFlip())), store, 9, index)
    assert drawn.boxes is not None
    assert drawn.mirrored is not None
    pixels = drawn.pixels(store, index, 0, 60).numpy().astype(int)
    for number, (image, box) in enumerate(zip(images, drawn.boxes.tolist(), strict=True)):
        part = tv.resized_crop(torch.from_numpy(image).permute(2, 0, 1), *box, [12, 10], antialias=True)
        expected = (part.flip(2) if drawn.mirrored[number] else part).permute(1, 2, 0).numpy()
        assert np.abs(pixels[number] - expected).max() <= 1
    assert len(set(map(tuple, drawn.boxes.tolist()))) > 50


@pytest.mark.parametrize(
    ("op", "height", "width"),
    [
        (RandomResizedCrop(), 32, 32),
        (RandomResizedCrop(area=(0.2, 1.0)), 8, 8),
        (RandomResizedCrop(area=(0.9, 1.0)), 20, 60),
        (RandomResizedCrop(area=(1.0, 1.0), shape=(3.0, 4.0)), 20, 30),
    ],
)
def test_rectangles_are_those_of_images_that_stay_files(op: RandomResizedCrop, height: int, width: int) -> None:
    draws = resized_draws(5, torch.arange(500))
    expected = [list(rectangle(op, height, width, each)) for each in draws.tolist()]
    assert rectangles(op, height, width, draws).tolist() == expected


def test_a_strong_view_is_that_of_a_loop_over_pillow_images() -> None:
    images = random_images(60, 32, 32)
    store = make_store(images)
    index = torch.arange(60)
    drawn = plan_view(STRONG, store, 3, index)
    weak = plan_view(WEAK, store, 3, index).pixels(store, index, 0, 60).numpy()
    strong = drawn.pixels(store, index, 0, 60).numpy()
    for number in range(60):
        image = Image.fromarray(weak[number])
        *operations, square = drawn.steps
        for step in operations:
            kind = KINDS[int(step.kinds[number])]
            image = PILLOW[kind](image, float(step.amounts[number]))
        expected = np.asarray(image).copy()
        row, column = square.places[number].tolist()
        expected[max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8] = 127
        # Autocontrast may differ by one grey level, and the pixels of a row may come from half-way between two.
        assert (np.abs(strong[number].astype(int) - expected) > 1).mean() < 0.05, number


@pytest.mark.parametrize("recipe", [STRONG, CONTRASTIVE], ids=["strong", "contrastive"])
@pytest.mark.parametrize("channels", [1, 3])
def test_changed_views_depend_on_neither_batch_size_nor_order(recipe: ViewRecipe, channels: int) -> None:
    store = make_store(random_images(40, 8, 8, channels))
    index = torch.randperm(40, generator=torch.Generator().manual_seed(1))

    def whole(order: torch.Tensor, size: int, key: int = 42) -> torch.Tensor:
        batches = [*store.batches(order, size, math.ceil(40 / size), (WEAK, recipe), (1, key))]
        assert [len(weak) for weak, _ in batches] == [size] * (40 // size) + [40 % size] * (40 % size > 0)
        return torch.cat([view for _, view in batches])

    expected = whole(index, 40)
    for size in (1, 7, 64):
        assert torch.equal(whole(index, size), expected)
    assert torch.equal(whole(index.flip(0), 7).flip(0), expected)
    assert not torch.equal(whole(index, 40, key=43), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)


def test_what_is_computed_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(random_images(40, 8, 8))
    counts: list[int] = []
    pixels = ViewPlan.pixels

    def counted(plan: ViewPlan, store: ImageStore, index: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        counts.append(len(index))
        return pixels(plan, store, index, start, stop)

    monkeypatch.setattr(ViewPlan, "pixels", counted)
    monkeypatch.setattr("lnlbench.engine.views._PIXELS_AT_ONCE", 15 * 64)
    order = torch.arange(40)
    assert len([*store.batches(order, 6, 7, (STRONG,), (1,))]) == 7
    assert counts == [12, 12, 12, 4]
    counts.clear()
    assert len([*store.batches(order, 6, 2, (STRONG,), (1,))]) == 2
    assert counts == [12]
    counts.clear()
    assert len([*store.batches(order, 6, 2, (WEAK,), (1,))]) == 2
    assert counts == [6, 6]


@pytest.mark.parametrize("recipe", [STRONG, REFLECTED, CONTRASTIVE], ids=["strong", "reflected", "contrastive"])
def test_images_that_stay_files_have_the_same_views(tmp_path: Path, recipe: ViewRecipe) -> None:
    images = random_images(20, 16, 16)
    names, digests = tuple(f"{number:02d}.png" for number in range(20)), []
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
        digests.append(np.frombuffer(hashlib.sha256((tmp_path / name).read_bytes()).digest(), np.uint8))
    files = ImageFiles(tmp_path, names, np.stack(digests), Resize(16, square=True), False)
    source = open_files(files, 16, MEAN, STD, CPU, tmp_path / "decoded", 2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    streamed = torch.cat([views for (views,) in source.batches(order, 8, 3, (recipe,), (7,))])
    kept = torch.cat([views for (views,) in make_store(images).batches(order, 8, 3, (recipe,), (7,))])
    difference = (streamed - kept).abs()
    # The resizing of files rounds fixed-point numbers; a grey level is 1 / 255 / 0.2.
    assert difference.max() <= (0.1 if recipe == CONTRASTIVE else 1e-6)


def test_mirrored_padding_of_files_is_bounded_too(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path, ("a.png",), np.zeros((1, 32), np.uint8), Resize(16, square=True), False)
    source = open_files(files, 16, MEAN, STD, CPU, tmp_path, 1)
    recipe = ViewRecipe(ops=(RandomCrop(padding=16, mode="reflect"),))
    with pytest.raises(UsageError, match="pads 16 mirrored pixels, but images have 16"):
        next(source.batches(torch.arange(1), 1, 1, (recipe,), (1,)))
