"""Training views computed on the device, a whole batch at a time.

Legend: n samples of a pass, B batch, H height, W width, K channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lnlbench.contracts.views import RandomCrop, RandomFlip, RandomResizedCrop, ViewRecipe
from lnlbench.engine.augment import Step, apply_steps, draw_steps
from lnlbench.engine.seeding import hash_index, uniform_fractions, uniform_integers
from lnlbench.errors import UsageError

RESIZED_TRIES = 10
"""Rectangles that a random-resized crop tries."""
DRAW_BITS = 31
"""Of each draw for a random-resized crop."""


# Of a view: what an operation has in common with others of a batch takes longer than a few small images.
_PIXELS_AT_ONCE = 2**19


class PixelSource(Protocol):
    """Where the images of a training or test set come from: memory of the device, or files that are decoded anew."""

    size: int
    """Number of images."""
    height: int
    width: int
    """Pixels of a view; the dataset's image size."""
    channels: int

    def batches(
        self, order: Tensor, batch_size: int, count: int, recipes: tuple[ViewRecipe, ...], keys: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Compute the views of a pass, batch by batch.

        Args:
            order: ``order_n``, int64, on the device: the samples of the pass.
            batch_size: Samples per batch; the last one may have fewer.
            count: Batches to make.
            recipes: One per view.
            keys: 64 bits per view that identify (seed, loader, moment, pass, view number).

        Yields:
            For each batch one ``images_BKHW`` per view: float32, normalised, channels-last, on the device.

        Raises:
            UsageError: A recipe asks for what this source cannot do.
            DataError: A file turned out to be damaged.
        """


class ImageStore:
    """Images as uint8 on the device, zero-padded once, in NHWC order.

    NHWC makes the pixels of a position neighbours in memory, so that a crop with mirroring is one gather of whole
    pixels, and its result is channels-last without a copy.
    """

    def __init__(
        self, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], padding: int, device: torch.device
    ) -> None:
        """Put ``images_NHWK`` (uint8, any device) on the device.

        Args:
            images: The images.
            mean: Per channel, on the 0-1 scale.
            std: Per channel, on the 0-1 scale.
            padding: The largest padding any recipe will ask for.
            device: Where to keep them.
        """
        self.size, self.height, self.width, self.channels = images.shape
        self.padding = padding
        self.device = device
        # NumPy has the system provide its memory in huge pages; providing it is most of the work here.
        shape = (self.size, self.height + 2 * padding, self.width + 2 * padding, self.channels)
        padded = torch.from_numpy(np.zeros(shape, dtype=np.uint8))
        padded[:, padding : padding + self.height, padding : padding + self.width] = images
        padded = padded.to(device)
        self._row_stride = padded.shape[2]
        self._image_stride = padded.shape[1] * padded.shape[2]
        self._pixels = padded.view(-1, self.channels)
        self._rows = torch.arange(self.height, device=device)
        self._columns = torch.arange(self.width, device=device)
        # (x / 255 - mean) / std as one multiplication and one addition.
        scale = [1.0 / (255.0 * each) for each in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        # For a whole row of pixels: long runs are what a CPU is quick with.
        self._scale = torch.tensor(scale, device=device).repeat(self.width)
        self._shift = torch.tensor(shift, device=device).repeat(self.width)

    def batches(
        self, order: Tensor, batch_size: int, count: int, recipes: tuple[ViewRecipe, ...], keys: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, ...]]:
        """See :class:`PixelSource`. Parameters of a whole pass are drawn at its start, so a batch is one gather.

        Where pixels are changed afterwards, several small batches are computed at once.
        """
        plans = [plan_view(recipe, self, key, order) for recipe, key in zip(recipes, keys, strict=True)]
        at_once = batch_size
        if any(plan.steps for plan in plans):
            at_once *= max(1, _PIXELS_AT_ONCE // (batch_size * self.height * self.width))
        end = min(count * batch_size, len(order))
        for start in range(0, end, at_once):
            stop = min(start + at_once, end)
            views = [plan.pixels(self, order[start:stop], start, stop) for plan in plans]
            for first in range(0, stop - start, batch_size):
                yield tuple(self.normalise(pixels[first : first + batch_size]) for pixels in views)

    def gather(self, index: Tensor, top: Tensor | None, left: Tensor | None, mirrored: Tensor | None) -> Tensor:
        """Cut one window out of each image.

        Args:
            index: ``index_B``, int64.
            top: ``top_B``, int64: first row of the window in the padded image; the centre if ``None``.
            left: ``left_B``, likewise for columns.
            mirrored: ``mirrored_B``, bool: read columns right to left.

        Returns:
            ``images_BKHW``, float32, normalised, channels-last.
        """
        return self.normalise(self.cut(index, top, left, mirrored))

    def cut(
        self,
        index: Tensor,
        top: Tensor | None,
        left: Tensor | None,
        mirrored: Tensor | None,
        reflect: bool = False,
    ) -> Tensor:
        """Cut one window out of each image; see :meth:`gather`.

        Args:
            index: ``index_B``, int64.
            top: ``top_B``, int64.
            left: ``left_B``, int64.
            mirrored: ``mirrored_B``, bool.
            reflect: Have the image mirrored at its border pixels, instead of black, in the padding.

        Returns:
            ``pixels_BHWK``, uint8.
        """
        rows = self._rows + (self.padding if top is None else top[:, None])
        columns = self._column_numbers(len(index), mirrored) + (self.padding if left is None else left[:, None])
        if reflect:
            rows, columns = self._reflected(rows, self.height), self._reflected(columns, self.width)
        return self._pixels_at(index, rows, columns)

    def resized(self, index: Tensor, boxes: Tensor, mirrored: Tensor | None) -> Tensor:
        """Cut a rectangle out of each image and enlarge it to the image size, bilinearly.

        Args:
            index: ``index_B``, int64.
            boxes: ``boxes_B4``, int64: top, left, height and width, in the image without padding.
            mirrored: ``mirrored_B``, bool.

        Returns:
            ``pixels_BHWK``, uint8.
        """
        top, left, height, width = boxes[:, :, None].unbind(1)
        rows, next_rows, down = _neighbours(self._rows, top, height, self.height)
        columns, next_columns, right = _neighbours(self._column_numbers(len(index), mirrored), left, width, self.width)

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            pixels = self._pixels_at(index, rows + self.padding, columns + self.padding)
            return pixels.view(len(index), self.height, -1).to(torch.float32)

        right, down = right.repeat_interleave(self.channels, 1)[:, None, :], down[:, :, None]
        above = at(rows, columns).lerp_(at(rows, next_columns), right)
        below = at(next_rows, columns).lerp_(at(next_rows, next_columns), right)
        pixels = above.lerp_(below, down).add_(0.5).to(torch.int16).to(torch.uint8)
        return pixels.view(len(index), self.height, self.width, self.channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn ``pixels_BHWK`` (uint8) into ``images_BKHW`` (float32, normalised, channels-last)."""
        rows = pixels.view(len(pixels), self.height, -1).to(torch.float32)
        return torch.addcmul(self._shift, rows, self._scale, out=rows).view(pixels.shape).permute(0, 3, 1, 2)

    def _column_numbers(self, count: int, mirrored: Tensor | None) -> Tensor:
        columns = self._columns.expand(count, -1)
        return columns if mirrored is None else torch.where(mirrored[:, None], self.width - 1 - columns, columns)

    def _reflected(self, places: Tensor, side: int) -> Tensor:
        """Map places in the padding to those that they mirror."""
        places = (places - self.padding).abs()
        return self.padding + side - 1 - (side - 1 - places).abs()

    def _pixels_at(self, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        starts = index[:, None] * self._image_stride + rows * self._row_stride
        positions = starts[:, :, None] + columns[:, None, :]
        pixels = self._pixels.index_select(0, positions.view(-1))
        return pixels.view(len(index), self.height, self.width, self.channels)


def _neighbours(places: Tensor, start: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two places of the source next to each place of the result, and the weight of the second."""
    scale = length.to(torch.float32) / side
    exact = ((places + 0.5) * scale - 0.5).clamp_(min=0.0)
    first = exact.long()
    return start + first, start + torch.minimum(first + 1, length - 1), exact - first


@dataclass(frozen=True)
class ViewPlan:
    """The parameters of one view for all samples of a pass, in pass order; ``None`` where nothing is random."""

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None
    reflect: bool = False
    boxes: Tensor | None = None
    """``boxes_n4``: what a random-resized crop shows."""
    steps: tuple[Step, ...] = ()
    """What happens to the pixels afterwards."""

    def pixels(self, store: ImageStore, index: Tensor, start: int, stop: int) -> Tensor:
        """Compute the view of samples ``start`` to ``stop`` of the pass, whose indices are ``index``.

        Returns:
            ``pixels_BHWK``, uint8.
        """

        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[start:stop]

        if self.boxes is None:
            pixels = store.cut(index, part(self.top), part(self.left), part(self.mirrored), self.reflect)
        else:
            pixels = store.resized(index, self.boxes[start:stop], part(self.mirrored))
        steps = tuple(step.rows(slice(start, stop)) for step in self.steps)
        return apply_steps(pixels, steps)


def largest_padding(recipes: list[ViewRecipe]) -> int:
    """Return the padding an :class:`ImageStore` needs to serve all recipes."""
    return max((op.padding for recipe in recipes for op in recipe.ops if isinstance(op, RandomCrop)), default=0)


def plan_view(recipe: ViewRecipe, store: ImageStore, key: int, index: Tensor) -> ViewPlan:
    """Draw the parameters of a view for every sample of a pass.

    Args:
        recipe: What to do.
        store: The images.
        key: 64 bits that identify (seed, loader, epoch, pass, view number).
        index: ``index_n``, int64, in pass order.

    Raises:
        UsageError: The recipe crops or flips more than once, or needs more padding than there is.
    """
    top = left = mirrored = boxes = None
    reflect = False
    check_cuts(recipe)
    for op in recipe.cuts:
        if isinstance(op, RandomCrop):
            reflect = op.mode == "reflect"
            if reflect:
                check_reflection(op, store.height, store.width)
            slack = store.padding - op.padding
            if slack < 0:
                raise UsageError(f"a view pads {op.padding} pixels, but the image store holds {store.padding}")
            positions = 2 * op.padding + 1
            top = uniform_integers(hash_index(key, index, 0), positions) + slack
            left = uniform_integers(hash_index(key, index, 1), positions) + slack
        elif isinstance(op, RandomFlip):
            # Mirroring the window equals mirroring the padded image: the crop position is symmetric in distribution.
            mirrored = uniform_fractions(hash_index(key, index, 2)) < op.probability
        else:
            boxes = rectangles(op, store.height, store.width, resized_draws(key, index))
    steps = draw_steps(recipe.pixel_ops, key, index, store.height, store.width, store.channels)
    return ViewPlan(top, left, mirrored, reflect, boxes, steps)


def check_cuts(recipe: ViewRecipe) -> None:
    """Refuse a recipe that crops or flips more than once."""
    kinds = [op.op for op in recipe.cuts]
    if len(set(kinds)) != len(kinds) or {"crop", "resized-crop"} <= set(kinds):
        raise UsageError(
            f"of crops and flips a view may have each operation once, and crop once; this one has {', '.join(kinds)}"
        )


def check_reflection(op: RandomCrop, height: int, width: int) -> None:
    """Refuse padding that an image of this size, mirrored once, does not fill."""
    if op.padding >= min(height, width):
        raise UsageError(f"a view pads {op.padding} mirrored pixels, but images have {min(height, width)}")


def resized_draws(key: int, index: Tensor) -> Tensor:
    """Draw ``draws_n22`` (integers of 31 bits) for a random-resized crop: area and shape of ten tries, then places."""
    lanes = torch.arange(2 * RESIZED_TRIES + 2, device=index.device)
    return uniform_integers(hash_index(key, index[:, None] * 32 + lanes, 8), 1 << DRAW_BITS)


def rectangles(op: RandomResizedCrop, height: int, width: int, draws: Tensor) -> Tensor:
    """Choose the part of each image that its view shows, as torchvision's ``RandomResizedCrop`` does.

    Args:
        op: Which areas and shapes are admissible.
        height: Of the images.
        width: Of the images.
        draws: ``draws_n22``, from :func:`resized_draws`.

    Returns:
        ``boxes_n4``, int64: top, left, height and width.
    """
    least, most = (math.log(shape) for shape in op.shape)
    tries = draws[:, : 2 * RESIZED_TRIES].double() / (1 << DRAW_BITS)
    areas = height * width * (op.area[0] + (op.area[1] - op.area[0]) * tries[:, 0::2])
    shapes = torch.exp(least + (most - least) * tries[:, 1::2])
    heights, widths = (areas / shapes).sqrt().round().long(), (areas * shapes).sqrt().round().long()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    # The first try that fits; the position of one that does not is never read.
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    heights, widths = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    tops = (draws[:, -2] * (height - heights + 1)) >> DRAW_BITS
    lefts = (draws[:, -1] * (width - widths + 1)) >> DRAW_BITS
    drawn = torch.stack([tops, lefts, heights, widths], 1)
    high = min(height, max(1, round(width / op.shape[0])))
    wide = min(width, max(1, round(height * op.shape[1])))
    central = ((height - high) // 2, (width - wide) // 2, high, wide)
    sides = [torch.where(fits.any(1), drawn[:, place], central[place]) for place in range(4)]
    return torch.stack(sides, 1)
