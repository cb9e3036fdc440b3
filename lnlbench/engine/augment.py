"""Random operations on the pixels of views: a whole batch at a time, each sample with its own operations.

What happens to the samples of a pass is drawn at its start, as a list of *steps*: a step has one operation and one
amount for each sample. On a CPU a step treats the samples of one operation together. On a GPU every operation is
computed for all samples and kept where it was drawn, so that nothing waits for the device. Both give the same pixels.

Operations are those of torchvision on Pillow images, down to their rounding, but for the hue and for autocontrast,
where a grey level may differ by one.

Legend: n samples of a pass, B batch, H height, W width, K channels, all images uint8 in NHWC order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lnlbench.contracts.views import AutoAugment, ColourJitter, Fill, Greyscale, PixelOp, RandAugment
from lnlbench.engine.policies import POLICIES
from lnlbench.engine.seeding import hash_index, uniform_fractions, uniform_integers

# Lanes of the hash: those of crops and flips come before, then each operation of a recipe, then each of its steps.
_LANES_PER_OP = 64
_LANES_PER_STEP = 8

_WARPS = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
_COLOURS = frozenset({"colour", "hue"})
_KINDS = (
    "identity",
    "autocontrast",
    "brightness",
    "colour",
    "contrast",
    "cutout",
    "equalise",
    "hue",
    "invert",
    "posterise",
    "sharpness",
    "solarise",
    *_WARPS,
)
_NUMBER = {name: number for number, name in enumerate(_KINDS)}
# Red, green and blue in the luminance of ITU-R BT.601: 0.299, 0.587 and 0.114, in parts of 2**16 as Pillow has it.
_LUMINANCE = (19595, 38470, 7471)
_AUTOAUGMENT_TOP = 9


@dataclass(frozen=True)
class Step:
    """One operation for each of some samples."""

    names: frozenset[str]
    """The operations that may occur."""
    kinds: Tensor
    """``kinds_n``, uint8: number of the operation."""
    amounts: Tensor
    """``amounts_n``, float32: factor, angle in degrees, shift in pixels, bits, ... whatever the operation takes."""
    places: Tensor
    """``places_n2``, int64: row and column of the pixel a square is put around; empty where there are no squares."""
    fill: Tensor
    """``fill_K``, uint8: colour of squares and of what comes in from outside the image."""

    def rows(self, rows: Tensor | slice) -> Step:
        """Return the step for some of the samples."""
        places = self.places[rows] if "cutout" in self.names else self.places
        return Step(self.names, self.kinds[rows], self.amounts[rows], places, self.fill)

    def to(self, device: torch.device) -> Step:
        """Return the step on another device."""
        moved = (each.to(device, non_blocking=True) for each in (self.kinds, self.amounts, self.places, self.fill))
        return Step(self.names, *moved)


Change = Callable[[Tensor, Step], Tensor]


def draw_steps(
    ops: tuple[PixelOp, ...], key: int, index: Tensor, height: int, width: int, channels: int
) -> tuple[Step, ...]:
    """Draw what happens to the pixels of each sample.

    Args:
        ops: What to do, in order.
        key: 64 bits that identify (seed, loader, epoch, pass, view number).
        index: ``index_n``, int64: the samples.
        height: Of a view.
        width: Of a view.
        channels: Of a view; 1 or 3.

    Returns:
        Steps for all samples, on the device of ``index``.
    """
    steps: list[Step] = []
    for number, op in enumerate(ops, 1):
        draw = _Draw(key, index, number * _LANES_PER_OP, height, width, channels)
        if isinstance(op, RandAugment):
            steps += _rand_augment(op, draw)
        elif isinstance(op, AutoAugment):
            steps += _auto_augment(op, draw)
        elif isinstance(op, ColourJitter):
            steps += _colour_jitter(op, draw)
        elif isinstance(op, Greyscale):
            steps.append(draw.step(("colour",), draw.constant(0), draw.constant(0.0), op.probability))
        else:
            side = float(op.pixels or max(1, round(op.share * min(height, width))))
            steps.append(draw.step(("cutout",), draw.constant(0), draw.constant(side), fill=op.fill))
    return tuple(steps)


def apply_steps(images: Tensor, steps: tuple[Step, ...], grouped: bool | None = None) -> Tensor:
    """Do to each image what was drawn for it.

    Args:
        images: ``images_BHWK``, uint8, contiguous; may be overwritten.
        steps: For these B samples.
        grouped: Whether to treat the samples of one operation together, which has the host wait for the device; as
            the device has it if ``None``.

    Returns:
        ``images_BHWK``, uint8.
    """
    if grouped is None:
        grouped = images.device.type == "cpu"
    for step in steps:
        for names, change in _CHANGES:
            # Colours of grey images are left alone.
            if step.names & names and not (images.shape[3] == 1 and names <= _COLOURS):
                images = _change_some(images, step, names, change, grouped)
    return images


def _change_some(images: Tensor, step: Step, names: frozenset[str], change: Change, grouped: bool) -> Tensor:
    chosen = reduce(torch.logical_or, (step.kinds == _NUMBER[name] for name in sorted(step.names & names)))
    if not grouped:
        return torch.where(chosen[:, None, None, None], change(images, step), images)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == len(images):
        return change(images, step)
    if len(rows):
        images.index_copy_(0, rows, change(images.index_select(0, rows), step.rows(rows)))
    return images


class _Draw:
    """Draws for one operation of a recipe."""

    def __init__(self, key: int, index: Tensor, lane: int, height: int, width: int, channels: int) -> None:
        self._key, self._index, self._lane = key, index, lane
        self.height, self.width, self._channels = height, width, channels
        self.device = index.device

    def bits(self, lane: int) -> Tensor:
        return hash_index(self._key, self._index, self._lane + lane)

    def integers(self, lane: int, count: int) -> Tensor:
        return uniform_integers(self.bits(lane), count)

    def fractions(self, lane: int) -> Tensor:
        return uniform_fractions(self.bits(lane))

    def constant(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.device).expand(len(self._index))

    def table(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def step(
        self,
        pool: tuple[str, ...],
        choice: Tensor,
        amounts: Tensor,
        probability: float | Tensor = 1.0,
        fill: Fill = 0,
        lane: int = 0,
    ) -> Step:
        """Assemble a step; lanes 0 to 2 of those from ``lane`` on are its own."""
        numbers = torch.tensor([_NUMBER[name] for name in pool], dtype=torch.uint8, device=self.device)
        kinds = numbers[choice.long()]
        if isinstance(probability, Tensor) or probability < 1.0:
            kinds = kinds * (self.fractions(lane) < probability)
        places = torch.empty((0, 2), dtype=torch.int64, device=self.device)
        if "cutout" in pool:
            places = torch.stack([self.integers(lane + 1, self.height), self.integers(lane + 2, self.width)], 1)
        colour = torch.tensor(_colour(fill, self._channels), dtype=torch.uint8, device=self.device)
        return Step(frozenset(pool), kinds, amounts, places, colour)


def _rand_augment(op: RandAugment, draw: _Draw) -> list[Step]:
    least, most = op.levels
    amounts = draw.table(
        [
            [
                [amount(name, op.law, level, op.top, sign, draw.height, draw.width) for level in range(least, most + 1)]
                for name in op.pool
            ]
            for sign in (-1, 1)
        ]
    )
    steps = []
    for lane in range(0, op.num_ops * _LANES_PER_STEP, _LANES_PER_STEP):
        choice = draw.integers(lane + 3, len(op.pool))
        level = draw.integers(lane + 4, most - least + 1)
        sign = draw.integers(lane + 5, 2)
        steps.append(draw.step(op.pool, choice, amounts[sign, choice, level], op.probability, op.fill, lane))
    return steps


def _auto_augment(op: AutoAugment, draw: _Draw) -> list[Step]:
    pairs = POLICIES[op.policy]
    choice = draw.integers(3, len(pairs))
    steps = []
    for turn in (0, 1):
        lane = turn * _LANES_PER_STEP
        moves = [pair[turn] for pair in pairs]
        amounts = draw.table(
            [
                [
                    amount(name, "autoaugment", level, _AUTOAUGMENT_TOP, sign, draw.height, draw.width)
                    for name, _, level in moves
                ]
                for sign in (-1, 1)
            ]
        )
        probability = draw.table([each for _, each, _ in moves])[choice]
        sign = draw.integers(lane + 5, 2)
        names = tuple(name for name, _, _ in moves)
        steps.append(draw.step(names, choice, amounts[sign, choice], probability, op.fill, lane))
    return steps


def _colour_jitter(op: ColourJitter, draw: _Draw) -> list[Step]:
    strengths = {"brightness": op.brightness, "contrast": op.contrast, "colour": op.saturation, "hue": op.hue}
    pool = tuple(name for name, strength in strengths.items() if strength)
    if not pool:
        return []
    amounts = []
    for number, name in enumerate(pool):
        strength = strengths[name]
        least, most = (-strength, strength) if name == "hue" else (max(0.0, 1.0 - strength), 1.0 + strength)
        amounts.append(least + (most - least) * draw.fractions(number * _LANES_PER_STEP + 3))
    orders = torch.tensor([*itertools.permutations(range(len(pool)))], device=draw.device)
    choices = orders[draw.integers(4, len(orders))]
    # One draw, which all steps of an image share, decides whether it is changed.
    return [
        draw.step(pool, choice, torch.stack(amounts).gather(0, choice[None])[0], op.probability)
        for choice in choices.unbind(1)
    ]


def amount(name: str, law: str, level: int, top: int, sign: int, height: int, width: int) -> float:
    """Return what a level means for an operation; see :class:`lnlbench.contracts.views.RandAugment` for the laws.

    Args:
        name: The operation.
        law: ``fixmatch`` or ``autoaugment``.
        level: From 0 to ``top``.
        top: The level of full strength.
        sign: 1 or -1, for operations that go either way.
        height: Of the image.
        width: Of the image.
    """
    share = level / top
    fixmatch = law == "fixmatch"
    if name == "rotate":
        return sign * 30.0 * share
    if name.startswith("shear"):
        return sign * 0.3 * share
    if name.startswith("translate"):
        side = width if name == "translate-x" else height
        # A hair more, or 0.3 * 0.1 * 100 pixels may come out as 2.
        return float(sign * int((0.3 if fixmatch else 150.0 / 331.0) * share * side + 1e-9))
    if name in ("brightness", "colour", "contrast", "sharpness"):
        return 0.05 + 0.9 * share if fixmatch else 1.0 + sign * 0.9 * share
    if name == "posterise":
        return float(4 + 4 * level // top if fixmatch else 8 - round(4 * level / top))
    if name == "solarise":
        return (256.0 if fixmatch else 255.0) * (1.0 - share)
    if name == "cutout":
        return float(int(20 * level / top))
    return 0.0


def _colour(fill: Fill, channels: int) -> list[int]:
    if isinstance(fill, int):
        return [fill] * channels
    if channels == 1:
        return [(sum(weight * value for weight, value in zip(_LUMINANCE, fill, strict=True)) + 2**15) >> 16]
    return list(fill)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _rows(images: Tensor) -> Tensor:
    """View ``images_BHWK`` as rows of numbers: long runs are what a CPU is quick with."""
    return images.view(len(images), images.shape[1], -1)


def _levels(values: Tensor) -> Tensor:
    """Cut off what is above white or below black, then drop fractions."""
    # By way of int16, since PyTorch on CPUs has a quick way from float32 to that, and a slow one to uint8.
    return values.clamp_(0.0, 255.0).to(torch.int16).to(torch.uint8)


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Mix images with others; a factor above 1 moves away from the others."""
    # As Pillow computes it: where both are equal, the result is exact.
    return _levels((images.to(torch.float32) - others).mul_(_per_image(factors)).add_(others))


def _grey(images: Tensor) -> Tensor:
    """Return ``grey_BHW1``, uint8."""
    if images.shape[3] == 1:
        return images
    red, green, blue = (images[..., k].to(torch.int32).mul_(weight) for k, weight in enumerate(_LUMINANCE))
    return red.add_(green).add_(blue).add_(2**15).bitwise_right_shift_(16).to(torch.uint8)[..., None]


def _autocontrast(images: Tensor, _: Step) -> Tensor:
    """Stretch each channel over all grey levels."""
    count, width, channels = len(images), *images.shape[2:]
    rows = _rows(images)
    least = rows.amin(1).view(count, width, channels).amin(1)
    most = rows.amax(1).view(count, width, channels).amax(1)
    flat = least == most
    scale = torch.where(flat, 1.0, 255.0 / (most - least))
    least = least.masked_fill(flat, 0)
    return _levels((rows - least.repeat(1, width)[:, None]) * scale.repeat(1, width)[:, None]).view(images.shape)


def _brightness(images: Tensor, step: Step) -> Tensor:
    return _levels(images * _per_image(step.amounts))


def _saturation(images: Tensor, step: Step) -> Tensor:
    grey = _grey(images)
    return _blended(images, torch.cat([grey, grey, grey], 3), step.amounts)


def _contrast(images: Tensor, step: Step) -> Tensor:
    # A sum of integers is exact, whatever the order of its terms; the mean is rounded to an integer.
    count = images.shape[1] * images.shape[2]
    means = (2 * _grey(images).sum((1, 2, 3)) + count) // (2 * count)
    return _blended(images, _per_image(means.to(torch.float32)), step.amounts)


def _cutout(images: Tensor, step: Step) -> Tensor:
    # Masks of bytes, since PyTorch on CPUs is slow to choose between two bytes.
    covered = []
    for side, axis in ((images.shape[1], 0), (images.shape[2], 1)):
        size = step.amounts.long()
        first = (step.places[:, axis] - size // 2)[:, None]
        places = torch.arange(side, device=images.device)
        covered.append(_bytes((places >= first) & (places < first + size[:, None])))
    down, right = covered[0][:, :, None], covered[1].repeat_interleave(images.shape[3], 1)[:, None, :]
    mask = down & right
    return ((_rows(images) & ~mask) | (step.fill.repeat(images.shape[2]) & mask)).view(images.shape)


def _bytes(mask: Tensor) -> Tensor:
    """Return 255 where the mask is true, else 0."""
    return mask.view(torch.uint8).neg()


def _equalise(images: Tensor, _: Step) -> Tensor:
    """Make all grey levels of a channel about equally frequent."""
    count, width, channels = len(images), *images.shape[2:]
    start = torch.arange(0, count * channels * 256, 256, device=images.device).view(count, 1, channels)
    levels = (_rows(images) + start.repeat(1, 1, width)).view(-1)
    histogram = torch.zeros(count * channels * 256, dtype=torch.int64, device=images.device)
    histogram = histogram.scatter_add_(0, levels, torch.ones_like(levels)).view(-1, 256).to(torch.int32)
    below = histogram.cumsum(1, dtype=torch.int32) - histogram
    # All pixels but those of the brightest level that occurs, over 255.
    stride = (below * histogram.clamp(max=1)).amax(1, keepdim=True) // 255
    table = ((below + stride // 2) // stride.clamp(min=1)).clamp_(max=255)
    table = torch.where(stride > 0, table, torch.arange(256, dtype=torch.int32, device=images.device))
    return table.to(torch.uint8).view(-1).index_select(0, levels).view(images.shape)


def _hue(images: Tensor, step: Step) -> Tensor:
    """Turn the colour circle; the amount is a share of a full turn."""
    # Channel by channel, since nearly everything is about one channel or the same for all.
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255.0
    red, green, blue = pixels.unbind(1)
    most, least = pixels.amax(1), pixels.amin(1)
    spread = most - least
    unit = torch.where(spread > 0, spread, 1.0)
    # The circle has six parts: 0 is red, 2 green, 4 blue.
    circle = torch.where(most == green, 2.0 + (blue - red) / unit, 4.0 + (red - green) / unit)
    circle = torch.where(most == red, (green - blue) / unit, circle)
    circle += 6.0 * step.amounts[:, None, None]
    distance = circle[:, None] + torch.arange(5.0, 0.0, -2.0, device=images.device)[:, None, None]
    distance -= 6.0 * torch.floor(distance / 6.0)
    part = torch.minimum(distance, 4.0 - distance).clamp_(0.0, 1.0)
    turned = most[:, None] - spread[:, None] * part
    return _levels(turned.mul_(255.999)).permute(0, 2, 3, 1).contiguous()


def _invert(images: Tensor, _: Step) -> Tensor:
    return 255 - images


def _posterise(images: Tensor, step: Step) -> Tensor:
    """Keep only the highest bits."""
    dropped = torch.bitwise_left_shift(torch.ones_like(step.kinds), 8 - step.amounts.to(torch.uint8)) - 1
    return images & _per_image(~dropped)


def _sharpness(images: Tensor, step: Step) -> Tensor:
    """Blend with an image that is smoothed everywhere but at its border."""
    pixels = images.to(torch.float32)
    rows = pixels[:, 2:] + pixels[:, 1:-1] + pixels[:, :-2]
    total = rows[:, :, 2:] + rows[:, :, 1:-1] + rows[:, :, :-2]
    smooth = pixels.clone()
    smooth[:, 1:-1, 1:-1] = ((total + 4.0 * pixels[:, 1:-1, 1:-1]) / 13.0).round_()
    return _blended(pixels, smooth, step.amounts)


def _solarise(images: Tensor, step: Step) -> Tensor:
    """Invert what is at least as bright as the threshold."""
    return images ^ _bytes(images >= _per_image(step.amounts))


def _warp(images: Tensor, step: Step) -> Tensor:
    """Rotate, shear or shift: each pixel is the nearest one of the place it comes from."""
    count, height, width, channels = images.shape
    kinds, amounts = step.kinds, step.amounts

    def only(name: str) -> Tensor:
        return torch.where(kinds == _NUMBER[name], amounts, 0.0)[:, None]

    # In double precision, vectorised or not, the same angle has the same sine.
    angles = only("rotate").double().deg2rad()
    cosines, sines = angles.cos().float(), angles.sin().float()
    right, down = (torch.arange(side, device=images.device) + 0.5 for side in (width, height))
    from_centre_right, from_centre_down = right - width / 2, down - height / 2
    # The source of column x and row y is (x1 + x2, y1 + y2), where x1 and y1 depend on x alone, x2 and y2 on y.
    x1 = cosines * from_centre_right - only("translate-x")
    x2 = only("shear-x") * down - sines * from_centre_down + width / 2
    y1 = only("shear-y") * right + sines * from_centre_right
    y2 = cosines * from_centre_down - only("translate-y") + height / 2
    column = (x1[:, None, :] + x2[:, :, None]).floor_()
    row = (y1[:, None, :] + y2[:, :, None]).floor_()
    inside = (column.clamp(0, width - 1) == column) & (row.clamp(0, height - 1) == row)
    start = torch.arange(0, count * height * width, height * width, device=images.device)
    source = torch.where(inside, row.mul_(width).add_(column).long() + start[:, None, None], count * height * width)
    pixels = torch.cat([images.view(-1, channels), step.fill[None]])
    return pixels.index_select(0, source.view(-1)).view(images.shape)


_CHANGES: tuple[tuple[frozenset[str], Change], ...] = (
    (frozenset({"autocontrast"}), _autocontrast),
    (frozenset({"brightness"}), _brightness),
    (frozenset({"colour"}), _saturation),
    (frozenset({"contrast"}), _contrast),
    (frozenset({"cutout"}), _cutout),
    (frozenset({"equalise"}), _equalise),
    (frozenset({"hue"}), _hue),
    (frozenset({"invert"}), _invert),
    (frozenset({"posterise"}), _posterise),
    (frozenset({"sharpness"}), _sharpness),
    (frozenset({"solarise"}), _solarise),
    (frozenset(_WARPS), _warp),
)
