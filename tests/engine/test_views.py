from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage

from lnlbench.contracts.views import PLAIN, RandomCrop, RandomFlip, ViewRecipe
from lnlbench.engine.views import ImageStore, ViewPlan, largest_padding, plan_view
from lnlbench.errors import UsageError

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WEAK = ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip()))


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
    views = drawn.window(store, index, 0, 5).numpy()
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
    whole = drawn.window(store, index, 0, 20)
    for size in (1, 3, 20):
        parts = [
            drawn.window(store, index[start : start + size], start, min(start + size, 20))
            for start in range(0, 20, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    backwards = index.flip(0)
    again = plan_view(WEAK, store, 42, backwards).window(store, backwards, 0, 20)
    assert torch.equal(again.flip(0), whole)
    other_key = plan_view(WEAK, store, 43, index).window(store, index, 0, 20)
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
    views = plan_view(WEAK, store, 1, index).window(store, index, 0, 4)
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
    with pytest.raises(UsageError, match="each operation once; this one has flip, flip"):
        plan_view(twice, store, 1, torch.arange(2))
    with pytest.raises(UsageError, match="pads 4 pixels, but the image store holds 2"):
        plan_view(WEAK, store, 1, torch.arange(2))


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ({"ops": [{"op": "blur"}]}, "blur"),
        ({"ops": [{"op": "crop", "padding": -1}]}, "padding"),
        ({"ops": [{"op": "flip", "probability": 1.5}]}, "probability"),
        ({"ops": [{"op": "crop", "paddding": 1}]}, "paddding"),
    ],
)
def test_wrong_operations_are_refused(recipe: dict[str, object], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        ViewRecipe.model_validate(recipe)
