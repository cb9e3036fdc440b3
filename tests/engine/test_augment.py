"""Operations against torchvision's on the same parameters, and draws against their definition."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.transforms import functional as tv
from torchvision.transforms.autoaugment import _apply_op

from lnlbench.contracts.views import AutoAugment, ColourJitter, Cutout, Greyscale, OpName, PixelOp, RandAugment
from lnlbench.engine.augment import _KINDS as KINDS
from lnlbench.engine.augment import Step, amount, apply_steps, draw_steps
from lnlbench.engine.policies import POLICIES

# Our name: torchvision's.
THEIRS = {
    "identity": "Identity",
    "autocontrast": "AutoContrast",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "equalise": "Equalize",
    "invert": "Invert",
    "posterise": "Posterize",
    "rotate": "Rotate",
    "sharpness": "Sharpness",
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "solarise": "Solarize",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
}
FACTORS = ("brightness", "colour", "contrast", "sharpness")
WARPS = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
AMOUNTS: dict[str, tuple[float, ...]] = {
    "identity": (0.0,),
    "autocontrast": (0.0,),
    "equalise": (0.0,),
    "invert": (0.0,),
    **dict.fromkeys(FACTORS, (0.0, 0.14, 0.55, 1.0, 1.27, 1.9)),
    "posterise": (1.0, 4.0, 5.0, 7.0, 8.0),
    "rotate": (-30.0, -7.3, 0.0, 3.0, 13.0, 27.0),
    **dict.fromkeys(("shear-x", "shear-y"), (-0.3, -0.13, 0.0, 0.03, 0.22, 0.27)),
    "solarise": (0.0, 25.5, 100.0, 102.4, 255.0),
    **dict.fromkeys(("translate-x", "translate-y"), (-9.0, -2.0, 0.0, 1.0, 6.0)),
}
SHAPES = [(32, 32, 3), (9, 14, 3), (8, 8, 1)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pictures(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Noise, a smooth picture, one of low contrast, one of few levels, a flat one, one with a flat channel."""
    height, width, channels = shape
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, shape)
    waves = [
        127 + 120 * np.sin(np.add.outer(np.arange(height) / (3 + k), np.arange(width) / (5 - k)))
        for k in range(channels)
    ]
    smooth = np.stack(waves, 2)
    flat = np.full(shape, 77)
    half_flat = noise.copy()
    half_flat[..., 0] = 200
    images = [noise, smooth, 100 + smooth // 8, noise // 64 * 60, flat, half_flat]
    return np.stack(images).astype(np.uint8)


def step_of(name: str, amounts: Tensor | list[float], channels: int, fill: int = 0) -> Step:
    amounts = torch.as_tensor(amounts, dtype=torch.float32)
    kinds = torch.full((len(amounts),), KINDS.index(name), dtype=torch.uint8)
    places = torch.zeros((len(amounts), 2), dtype=torch.int64)
    return Step(frozenset({name}), kinds, amounts, places, torch.full((channels,), fill, dtype=torch.uint8))


def theirs(image: Any, name: str, value: float, fill: list[float] | None = None) -> Any:
    """Let torchvision apply an operation; ``value`` is our amount."""
    value = value - 1.0 if name in FACTORS else value
    return _apply_op(image, THEIRS[name], value, transforms.InterpolationMode.NEAREST, fill)


def planar(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@each_shape
@pytest.mark.parametrize("name", THEIRS)
def test_operations_on_tensors_are_torchvisions(name: str, shape: tuple[int, int, int]) -> None:
    images = pictures(shape)
    for value in AMOUNTS[name]:
        ours = apply_steps(torch.from_numpy(images.copy()), (step_of(name, [value] * 6, shape[2], 99),)).numpy()
        for picture, result in zip(images, ours, strict=True):
            expected = theirs(planar(picture), name, value, [99.0] * shape[2]).permute(1, 2, 0).numpy()
            difference = np.abs(result.astype(int) - expected)
            if name in WARPS:
                # Where a place is half-way between two pixels, rounding decides.
                assert (difference.max(2) > 0).mean() <= 0.01, value
            else:
                # Pillow rounds luminances and their mean to integers, as we do; on tensors, torchvision does not.
                assert difference.max() <= (2 if name in ("colour", "contrast") else 1), value


@pytest.mark.parametrize("name", THEIRS)
def test_operations_on_pillow_images_are_the_same(name: str) -> None:
    images = pictures((32, 32, 3))
    for value in AMOUNTS[name]:
        ours = apply_steps(torch.from_numpy(images.copy()), (step_of(name, [value] * 6, 3),)).numpy()
        for picture, result in zip(images, ours, strict=True):
            expected = np.asarray(theirs(Image.fromarray(picture), name, value))
            np.testing.assert_allclose(result, expected, rtol=0, atol=name == "autocontrast", err_msg=f"{value}")


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.37])
def test_hue_equals_torchvisions(shift: float) -> None:
    images = pictures((32, 32, 3))
    ours = apply_steps(torch.from_numpy(images.copy()), (step_of("hue", [shift] * 6, 3),)).numpy()
    for picture, result in zip(images, ours, strict=True):
        expected = tv.adjust_hue(planar(picture), shift).permute(1, 2, 0).numpy()
        difference = np.abs(result.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.1


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    st.sampled_from(["autocontrast", "equalise", "sharpness", "contrast", "colour"]),
    st.sampled_from([0.0, 0.41, 1.6]),
)
def test_statistics_of_any_small_image_are_torchvisions(image: NDArray[np.uint8], name: str, factor: float) -> None:
    ours = apply_steps(torch.from_numpy(image[None].copy()), (step_of(name, [factor], image.shape[2]),))[0].numpy()
    expected = theirs(planar(image), name, factor).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - expected).max() <= (2 if name in ("colour", "contrast") else 1)


@pytest.mark.parametrize("name", ["colour", "hue"])
def test_grey_images_keep_their_levels_where_colours_change(name: str) -> None:
    images = torch.from_numpy(pictures((8, 8, 1)))
    assert torch.equal(apply_steps(images.clone(), (step_of(name, [0.3] * 6, 1),)), images)


def test_squares_are_clipped_at_the_border() -> None:
    images = torch.from_numpy(np.repeat(pictures((9, 14, 3))[:1], 40, 0))
    (step,) = draw_steps((Cutout(pixels=5, fill=(1, 2, 3)),), 7, torch.arange(40), 9, 14, 3)
    results = apply_steps(images.clone(), (step,)).numpy()
    for image, result, (row, column) in zip(images.numpy(), results, step.places.tolist(), strict=True):
        expected = image.copy()
        for y, x in itertools.product(range(row - 2, row + 3), range(column - 2, column + 3)):
            if 0 <= y < 9 and 0 <= x < 14:
                expected[y, x] = (1, 2, 3)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("op", "height", "width", "side"),
    [
        (Cutout(), 32, 32, 16),
        (Cutout(), 28, 40, 14),
        (Cutout(share=0.25), 8, 8, 2),
        (Cutout(pixels=3), 8, 8, 3),
        (Cutout(share=0.01), 8, 8, 1),
    ],
)
def test_squares_have_their_side_anywhere(op: Cutout, height: int, width: int, side: int) -> None:
    (step,) = draw_steps((op,), 1, torch.arange(20_000), height, width, 1)
    assert set(step.amounts.tolist()) == {side}
    cells = np.bincount((step.places[:, 0] * width + step.places[:, 1]).numpy(), minlength=height * width)
    assert len(cells) == height * width
    assert stats.chisquare(cells).pvalue > 1e-4


def test_a_colour_counts_as_its_luminance_on_grey_images() -> None:
    (grey,) = draw_steps((Cutout(fill=(125, 122, 113)),), 1, torch.arange(1), 8, 8, 1)
    (same,) = draw_steps((Cutout(fill=127),), 1, torch.arange(1), 8, 8, 3)
    assert grey.fill.tolist() == [round(0.299 * 125 + 0.587 * 122 + 0.114 * 113)]
    assert same.fill.tolist() == [127, 127, 127]


def factor(m: int) -> list[float]:
    return [0.05 + 0.09 * m]


def either_way(per_level: float, whole: bool = False) -> Callable[[int], list[float]]:
    def values(m: int) -> list[float]:
        value = float(int(per_level * m)) if whole else per_level * m
        return [value, -value]

    return values


FIXMATCH: dict[str, Callable[[int], list[float]] | None] = {
    "autocontrast": None,
    "brightness": factor,
    "colour": factor,
    "contrast": factor,
    "equalise": None,
    "identity": None,
    "posterise": lambda m: [4.0 + math.floor(0.4 * m)],
    "rotate": either_way(3.0),
    "sharpness": factor,
    "shear-x": either_way(0.03),
    "shear-y": either_way(0.03),
    "solarise": lambda m: [256.0 - 25.6 * m],
    "translate-x": either_way(0.03 * 40, whole=True),
    "translate-y": either_way(0.03 * 32, whole=True),
}
"""Sohn et al. (NeurIPS 2020): the amounts of each operation at level m; images of 32 rows and 40 columns."""


def test_fixmatch_draws_operations_levels_and_signs_as_defined() -> None:
    count = 200_000
    steps = draw_steps((RandAugment(),), 11, torch.arange(count), 32, 40, 3)
    assert len(steps) == 2
    for step in steps:
        kinds, amounts = step.kinds.numpy(), step.amounts.numpy().astype(np.float64)
        # Half the draws are applied, and of 14 operations one is the identity.
        expected = dict.fromkeys(FIXMATCH, count * 0.5 / 14)
        expected["identity"] += count * 0.5
        found = [int((kinds == KINDS.index(name)).sum()) for name in FIXMATCH]
        assert stats.chisquare(found, list(expected.values())).pvalue > 1e-4
        for name, law in FIXMATCH.items():
            if law:
                # Each level is as likely as any other, and so is each sign; levels may share an amount.
                drawn = np.round(amounts[kinds == KINDS.index(name)], 3)
                share: Counter[float] = Counter()
                for values in map(law, range(1, 10)):
                    for value in values:
                        share[round(value, 3)] += 1 / 9 / len(values)
                counts = [int((drawn == value).sum()) for value in share]
                assert sum(counts) == len(drawn), name
                assert stats.chisquare(counts, [len(drawn) * each for each in share.values()]).pvalue > 1e-4, name
    both = np.bincount((steps[0].kinds.long() * len(KINDS) + steps[1].kinds).numpy())
    assert stats.chi2_contingency(both[both > 0].reshape(14, 14)).pvalue > 1e-4, "the draws are independent"


def test_the_law_of_torchvisions_randaugment() -> None:
    space = transforms.RandAugment()._augmentation_space(31, (32, 40))
    op = RandAugment(probability=1.0, law="autoaugment", levels=(9, 9), top=30)
    assert {THEIRS[name] for name in op.pool} == space.keys()
    (step, _) = draw_steps((op,), 3, torch.arange(30_000), 32, 40, 3)
    for name in op.pool:
        magnitudes, signed = space[THEIRS[name]]
        magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
        if name.startswith("translate"):
            magnitude = float(int(magnitude))
        centre = 1.0 if name in FACTORS else 0.0
        expected = sorted({centre + magnitude, centre + (-magnitude if signed else magnitude)})
        values, counts = step.amounts[step.kinds == KINDS.index(name)].unique(return_counts=True)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-4
    assert stats.chisquare(np.bincount(step.kinds)[[KINDS.index(name) for name in op.pool]]).pvalue > 1e-4


def test_levels_mean_what_they_do_in_autoaugment() -> None:
    space = transforms.AutoAugment()._augmentation_space(10, (32, 331))
    for name in THEIRS:
        if name == "identity":
            continue
        magnitudes, signed = space[THEIRS[name]]
        for level, sign in itertools.product(range(10), (-1, 1)):
            expected = float(magnitudes[level]) * (sign if signed else 1) if magnitudes.ndim else 0.0
            if name.startswith("translate"):
                expected = int(expected + sign * 1e-4)
            found = amount(name, "autoaugment", level, 9, sign, 32, 331)
            assert found == pytest.approx(expected + (name in FACTORS), abs=1e-4), (name, level)


def test_translations_are_whole_pixels_whatever_the_rounding() -> None:
    assert amount("translate-x", "fixmatch", 1, 10, -1, 8, 100) == -3.0
    assert [amount("translate-y", "autoaugment", level, 10, 1, 8, 8) for level in range(6)] == [0, 0, 0, 1, 1, 1]


def test_squares_among_the_drawn_operations_have_a_place_and_grow_with_the_level() -> None:
    pool: tuple[OpName, ...] = ("cutout", "invert")
    (step,) = draw_steps(
        (RandAugment(num_ops=1, pool=pool, law="autoaugment", levels=(1, 9), top=9),), 5, torch.arange(900), 64, 64, 1
    )
    sides = set(step.amounts[step.kinds == KINDS.index("cutout")].tolist())
    assert sides == {float(20 * level // 9) for level in range(1, 10)}
    assert step.places.shape == (900, 2)
    images = torch.full((900, 64, 64, 1), 10, dtype=torch.uint8)
    covered = (apply_steps(images, (step,)) == 0).sum((1, 2, 3))
    assert covered[step.kinds == KINDS.index("cutout")].min() >= 1
    assert covered.max() == 400


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_autoaugment_has_the_published_pairs(policy: str) -> None:
    published = transforms.AutoAugment()._get_policies(transforms.AutoAugmentPolicy(policy))
    ours = [tuple((THEIRS[name], share, level) for name, share, level in pair) for pair in POLICIES[policy]]
    assert ours == [tuple((name, share, level or 0) for name, share, level in pair) for pair in published]


def test_autoaugment_draws_pairs_uniformly_and_applies_each_with_its_probability() -> None:
    count = 250_000
    steps = draw_steps((AutoAugment(policy="cifar10"),), 21, torch.arange(count), 32, 32, 3)
    cells = np.bincount((steps[0].kinds.long() * len(KINDS) + steps[1].kinds).numpy(), minlength=len(KINDS) ** 2)
    expected = np.zeros(len(KINDS) ** 2)
    for (first, p, _), (second, q, _) in POLICIES["cifar10"]:
        for one, two in itertools.product((True, False), repeat=2):
            kinds = (KINDS.index(first) if one else 0, KINDS.index(second) if two else 0)
            expected[kinds[0] * len(KINDS) + kinds[1]] += count / 25 * (p if one else 1 - p) * (q if two else 1 - q)
    assert cells[expected < 1e-9].sum() == 0
    assert stats.chisquare(cells[expected > 1e-9], expected[expected > 1e-9]).pvalue > 1e-4
    # Sign and amount: the only rotation is of level 2, so by 6 2/3 degrees.
    angles, counts = steps[0].amounts[steps[0].kinds == KINDS.index("rotate")].unique(return_counts=True)
    np.testing.assert_allclose(angles, [-20 / 3, 20 / 3], rtol=1e-6)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_colour_jitter_draws_factors_and_orders_uniformly() -> None:
    op = ColourJitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, probability=0.8)
    steps = draw_steps((op,), 9, torch.arange(60_000), 32, 32, 3)
    kinds = torch.stack([step.kinds for step in steps], 1).numpy()
    amounts = torch.stack([step.amounts for step in steps], 1).numpy()
    touched = (kinds > 0).all(1)
    assert (touched == (kinds > 0).any(1)).all(), "all four or none"
    assert stats.binomtest(int(touched.sum()), 60_000, 0.8).pvalue > 1e-4
    orders = np.unique(kinds[touched], axis=0, return_counts=True)
    assert len(orders[0]) == 24
    assert stats.chisquare(orders[1]).pvalue > 1e-4
    for name, least, most in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("colour", 0.0, 2.5),
        ("hue", -0.1, 0.1),
    ):
        drawn = amounts[kinds == KINDS.index(name)]
        assert stats.kstest(drawn, stats.uniform(least, most - least).cdf).pvalue > 1e-4, name


def test_colour_jitter_equals_torchvisions_in_the_order_drawn() -> None:
    changes = {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "colour": tv.adjust_saturation,
        "hue": tv.adjust_hue,
    }
    images = np.repeat(pictures((32, 32, 3))[1:3], 10, 0)
    steps = draw_steps((ColourJitter(),), 9, torch.arange(20), 32, 32, 3)
    results = apply_steps(torch.from_numpy(images.copy()), steps).numpy()
    for number, (picture, result) in enumerate(zip(images, results, strict=True)):
        expected = planar(picture)
        for step in steps:
            name = KINDS[int(step.kinds[number])]
            expected = changes[name](expected, float(step.amounts[number])) if name != "identity" else expected
        difference = np.abs(result.astype(int) - expected.permute(1, 2, 0).numpy())
        # A grey level lost on the way may be amplified by a later step.
        assert difference.max() <= 4
        assert difference.mean() < 0.5


def test_colour_jitter_without_strength_does_nothing() -> None:
    still = ColourJitter(brightness=0, contrast=0, saturation=0, hue=0)
    assert draw_steps((still,), 1, torch.arange(3), 8, 8, 3) == ()
    (only,) = draw_steps((ColourJitter(brightness=0.4, contrast=0, saturation=0, hue=0),), 1, torch.arange(3), 8, 8, 3)
    assert only.names == {"brightness"}


def test_greyscale_is_the_luminance_of_some_images() -> None:
    images = np.repeat(pictures((9, 14, 3))[:1], 4000, 0)
    steps = draw_steps((Greyscale(probability=0.2),), 2, torch.arange(4000), 9, 14, 3)
    results = apply_steps(torch.from_numpy(images.copy()), steps).numpy()
    grey = (results == results[..., :1]).all((1, 2, 3))
    assert stats.binomtest(int(grey.sum()), 4000, 0.2).pvalue > 1e-4
    luminance = np.asarray(tv.rgb_to_grayscale(Image.fromarray(images[0])))[..., None]
    assert (results[grey] == luminance).all()
    np.testing.assert_array_equal(results[~grey], images[~grey])


ALL_OPS: tuple[PixelOp, ...] = (
    RandAugment(num_ops=3, probability=0.8, fill=(9, 50, 200)),
    AutoAugment(policy="imagenet"),
    RandAugment(pool=("invert", "cutout"), law="autoaugment", levels=(1, 9), top=9),
    ColourJitter(),
    Greyscale(),
    Cutout(),
)


@each_shape
def test_images_treated_together_or_one_by_one_come_out_the_same(shape: tuple[int, int, int]) -> None:
    images = torch.from_numpy(np.repeat(pictures(shape), 12, 0))
    steps = draw_steps(ALL_OPS, 77, torch.arange(72), *shape)
    together = apply_steps(images.clone(), steps)
    assert torch.equal(apply_steps(images.clone(), steps, grouped=False), together)
    single = [
        apply_steps(images[n : n + 1].clone(), tuple(step.rows(slice(n, n + 1)) for step in steps)) for n in range(72)
    ]
    assert torch.equal(torch.cat(single), together)
    assert not torch.equal(together, images)


def test_an_operation_that_stands_there_twice_draws_anew() -> None:
    first, second = draw_steps((Cutout(), Cutout()), 1, torch.arange(50), 32, 32, 1)
    assert not torch.equal(first.places, second.places)


class Waits(TorchDispatchMode):
    """Counts what has the host wait for a GPU: values read back, and results whose size depends on values."""

    SLOW: ClassVar = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.bincount.default,
        torch.ops.aten.repeat_interleave.Tensor,
        torch.ops.aten.lift_fresh.default,
        torch.ops.aten._to_copy.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        moves = func is torch.ops.aten._to_copy.default and not (kwargs or {}).get("device")
        if func in self.SLOW and not moves:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_unless_images_are_grouped() -> None:
    images = torch.from_numpy(pictures((32, 32, 3)))
    steps = draw_steps(ALL_OPS, 77, torch.arange(6), 32, 32, 3)
    with Waits() as waits:
        apply_steps(images.clone(), steps, grouped=False)
    assert waits.found == []
    with Waits() as waits:
        apply_steps(images.clone(), steps, grouped=True)
    assert waits.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_shape
def test_a_gpu_makes_the_same_pixels(shape: tuple[int, int, int]) -> None:
    images, index = torch.from_numpy(np.repeat(pictures(shape), 40, 0)), torch.arange(240)
    expected = apply_steps(images.clone(), draw_steps(ALL_OPS, 77, index, *shape))
    found = apply_steps(images.cuda(), draw_steps(ALL_OPS, 77, index.cuda(), *shape)).cpu()
    # Fractions near an integer, and places near the middle of two pixels, may be rounded otherwise.
    assert (found != expected).float().mean() < 0.01
