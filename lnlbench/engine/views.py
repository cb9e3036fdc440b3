"""Training views computed on the device, a whole batch at a time.

Legend: n samples of a pass, B batch, H height, W width, K channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lnlbench.contracts.views import RandomCrop, RandomFlip, ViewRecipe
from lnlbench.engine.seeding import hash_index, uniform_fractions, uniform_integers
from lnlbench.errors import UsageError


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
        self._scale = torch.tensor(scale, device=device)
        self._shift = torch.tensor(shift, device=device)

    def batches(
        self, order: Tensor, batch_size: int, count: int, recipes: tuple[ViewRecipe, ...], keys: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, ...]]:
        """See :class:`PixelSource`. Parameters of a whole pass are drawn at its start, so a batch is one gather."""
        plans = [plan_view(recipe, self, key, order) for recipe, key in zip(recipes, keys, strict=True)]
        for batch in range(count):
            start = batch * batch_size
            stop = min(start + batch_size, len(order))
            yield tuple(plan.window(self, order[start:stop], start, stop) for plan in plans)

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
        rows = self._rows + (self.padding if top is None else top[:, None])
        columns = self._columns.expand(len(index), -1)
        if mirrored is not None:
            columns = torch.where(mirrored[:, None], self.width - 1 - columns, columns)
        columns = columns + (self.padding if left is None else left[:, None])
        starts = index[:, None] * self._image_stride + rows * self._row_stride
        positions = starts[:, :, None] + columns[:, None, :]
        pixels = self._pixels.index_select(0, positions.view(-1))
        images = torch.addcmul(self._shift, pixels.to(torch.float32), self._scale)
        return images.view(len(index), self.height, self.width, self.channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ViewPlan:
    """The parameters of one view for all samples of a pass, in pass order; ``None`` where nothing is random."""

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None

    def window(self, store: ImageStore, index: Tensor, start: int, stop: int) -> Tensor:
        """Compute the view of samples ``start`` to ``stop`` of the pass, whose indices are ``index``."""

        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[start:stop]

        return store.gather(index, part(self.top), part(self.left), part(self.mirrored))


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
        UsageError: The recipe has an operation more than once, needs more padding than the store has, or scales.
    """
    top = left = mirrored = None
    kinds = [op.op for op in recipe.ops]
    if len(set(kinds)) != len(kinds):
        raise UsageError(f"a view may have each operation once; this one has {', '.join(kinds)}")
    for op in recipe.ops:
        if isinstance(op, RandomCrop):
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
            raise UsageError(f"view operation {op.op!r} is for images that are read from files as they are needed")
    return ViewPlan(top, left, mirrored)
