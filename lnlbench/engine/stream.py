"""Training views of images that stay on the disk: decoded in threads, a few batches ahead of their use.

Legend: n samples of a pass, B batch, H height, W width, K channels.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnlbench.contracts.dataset import ImageFiles
from lnlbench.contracts.views import RandomCrop, RandomFlip, RandomResizedCrop, ViewRecipe
from lnlbench.engine.augment import Step, apply_steps, draw_steps
from lnlbench.engine.imagecache import CHUNK, ImageCache, default_workers, find_cache, read_image, run_ahead, scaled
from lnlbench.engine.seeding import hash_index, uniform_fractions, uniform_integers
from lnlbench.engine.views import DRAW_BITS, RESIZED_TRIES, check_cuts, check_reflection, resized_draws
from lnlbench.errors import UsageError

# What is decoded ahead, and so the memory it takes: this many chunks per thread, or batches if that is more.
_CHUNKS_AHEAD = 3
_BATCHES_AHEAD = 2
_MOST_KEPT = 16


def open_files(
    files: ImageFiles,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    folder: Path,
    workers: int | None = None,
) -> FileSource:
    """Return a source for image files, which reads decoded images instead if they are there.

    Args:
        files: The set.
        image_size: Side of the views in pixels.
        mean: Per channel, on the 0-1 scale.
        std: Per channel, on the 0-1 scale.
        device: Where views are wanted.
        folder: Where the dataset's decoded images are, if anywhere.
        workers: Number of threads; as many as PyTorch computes with if ``None``.

    Raises:
        UsageError: The images are resized to less than a view needs.
        DataError: The decoded images are damaged.
    """
    return FileSource(files, image_size, mean, std, device, find_cache(files, folder), workers or default_workers())


class FileSource:
    """Images that are decoded as they are needed; implements :class:`lnlbench.engine.views.PixelSource`.

    A view is a function of the file and of its own parameters: number of threads, batch size, order and cache change
    speed only. Crops and flips equal those of :class:`lnlbench.engine.views.ImageStore`.
    """

    channels = 3

    def __init__(
        self,
        files: ImageFiles,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        cache: ImageCache | None,
        workers: int,
    ) -> None:
        """Decode nothing yet; see :func:`open_files` for the arguments."""
        if files.resize.side < image_size:
            raise UsageError(f"views of {image_size} pixels cannot be cut from images of {files.resize.side}")
        self.size = len(files)
        self.height = self.width = image_size
        self._files = files
        self._cache = cache
        self._device = device
        self._workers = workers
        # As in ImageStore, but for a whole row of pixels: long runs are what a CPU is quick with.
        scale = [1.0 / (255.0 * each) for each in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._scale = torch.tensor(scale, device=device).repeat(image_size)
        self._shift = torch.tensor(shift, device=device).repeat(image_size)

    def batches(
        self, order: Tensor, batch_size: int, count: int, recipes: tuple[ViewRecipe, ...], keys: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, ...]]:
        """See :class:`lnlbench.engine.views.PixelSource`. Each image is decoded once for all of its views."""
        for recipe in recipes:
            check_cuts(recipe)
            for op in recipe.cuts:
                if isinstance(op, RandomCrop) and op.mode == "reflect":
                    check_reflection(op, self._files.resize.side, self._files.resize.side)
        samples = order.cpu()
        memory = _Memory()

        def jobs() -> Iterator[_Job]:
            for number in range(count):
                index = samples[number * batch_size : (number + 1) * batch_size]
                views = tuple(self._draw(recipe, key, index, memory) for recipe, key in zip(recipes, keys, strict=True))
                for start in range(0, len(index), CHUNK):
                    yield _Job(index[start : start + CHUNK].tolist(), start, views, start + CHUNK >= len(index))

        ahead = max(_CHUNKS_AHEAD * self._workers, _BATCHES_AHEAD * math.ceil(batch_size / CHUNK))
        for job in run_ahead(self._fill, jobs(), self._workers, ahead):
            if job.is_last:
                yield tuple(self._normalised(view, memory) for view in job.views)

    def _draw(self, recipe: ViewRecipe, key: int, index: Tensor, memory: _Memory) -> _View:
        shape = (len(index), self.height, self.width, self.channels)
        pinned = self._device.type == "cuda"
        view = _View(
            torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pinned else memory.tensor(shape, np.uint8)
        )
        for op in recipe.cuts:
            if isinstance(op, RandomFlip):
                view.mirrored = uniform_fractions(hash_index(key, index, 2)) < op.probability
            elif isinstance(op, RandomCrop):
                view.window = op
                view.draws = torch.stack([_bits(key, index, 0), _bits(key, index, 1)], 1).tolist()
            else:
                view.window = op
                view.draws = resized_draws(key, index).tolist()
        view.steps = draw_steps(recipe.pixel_ops, key, index, self.height, self.width, self.channels)
        return view

    def _fill(self, job: _Job) -> _Job:
        for row, index in enumerate(job.index, job.start):
            image = read_image(self._files, index) if self._cache is None else self._cache.image(index)
            for view in job.views:
                view.cut(image, row)
        return job

    def _normalised(self, view: _View, memory: _Memory) -> Tensor:
        shape = (len(view.pixels), self.height, self.width * self.channels)
        if self._device.type == "cpu":
            source, mirrored = view.pixels, view.mirrored
            if view.steps:
                # Operations do not commute with mirroring.
                if mirrored is not None:
                    source[mirrored] = source[mirrored].flip(2)
                source, mirrored = apply_steps(source, view.steps), None
            # Image by image, since the steps of one stay in the processor's cache.
            images = memory.tensor(shape, np.float32)
            for row, pixels in enumerate(source):
                turned = pixels.flip(1) if mirrored is not None and mirrored[row] else pixels
                torch.addcmul(self._shift, turned.view(shape[1:]).to(torch.float32), self._scale, out=images[row])
        else:
            pixels = view.pixels.to(self._device, non_blocking=True)
            if view.mirrored is not None:
                mirrored = view.mirrored.to(self._device, non_blocking=True)
                pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
            pixels = apply_steps(pixels, tuple(step.to(self._device) for step in view.steps))
            images = torch.addcmul(self._shift, pixels.view(shape).to(torch.float32), self._scale)
        return images.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)


class _Memory:
    """Memory for the batches of a pass, used again once nobody holds it: the system takes long to clear new memory."""

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.generic], weakref.ref[NDArray[np.generic]]]] = []

    def tensor(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
        """Return a tensor with any content."""
        free = (
            (place, memory)
            for place, (memory, holder) in enumerate(self._kept)
            if holder() is None and memory.shape == shape and memory.dtype == dtype
        )
        place, memory = next(free, None) or (len(self._kept), np.empty(shape, dtype))
        # A tensor keeps the array that it was made from, for as long as anything uses its storage.
        lent = memory.view()
        if place < _MOST_KEPT:
            self._kept[place : place + 1] = [(memory, weakref.ref(lent))]
        return torch.from_numpy(lent)


class _View:
    """One view of a batch: what was drawn for each of its samples, and room for the pixels that threads cut out."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.window: RandomCrop | RandomResizedCrop | None = None
        self.draws: list[list[int]] = []
        self.mirrored: Tensor | None = None
        self.steps: tuple[Step, ...] = ()
        self._rows = pixels.numpy()

    def cut(self, image: NDArray[np.uint8], row: int) -> None:
        """Cut the window of sample ``row`` out of its image; mirroring is left for later."""
        out = self._rows[row]
        side = len(out)
        height, width = image.shape[:2]
        if isinstance(self.window, RandomResizedCrop):
            top, left, height, width = rectangle(self.window, height, width, self.draws[row])
            out[...] = scaled(image[top : top + height, left : left + width].copy(), side, side)
        elif isinstance(self.window, RandomCrop):
            padding = self.window.padding
            top = _below(height + 2 * padding - side + 1, self.draws[row][0]) - padding
            left = _below(width + 2 * padding - side + 1, self.draws[row][1]) - padding
            if self.window.mode == "reflect":
                out[...] = image[_reflected(top, side, height)[:, None], _reflected(left, side, width)]
            else:
                _paste(image, top, left, out)
        else:
            _paste(image, round((height - side) / 2), round((width - side) / 2), out)


@dataclass(frozen=True)
class _Job:
    """Some samples of a batch."""

    index: list[int]
    start: int
    views: tuple[_View, ...]
    is_last: bool


def rectangle(op: RandomResizedCrop, height: int, width: int, draws: list[int]) -> tuple[int, int, int, int]:
    """Choose the part of an image that a view shows, as torchvision's ``RandomResizedCrop`` does.

    Args:
        op: Which areas and shapes are admissible.
        height: Of the image.
        width: Of the image.
        draws: 22 uniform integers of 31 bits: area and shape of ten tries, then the position.

    Returns:
        Top, left, height and width.
    """
    least, most = (math.log(shape) for shape in op.shape)
    for area_draw, shape_draw in zip(draws[0 : 2 * RESIZED_TRIES : 2], draws[1 : 2 * RESIZED_TRIES : 2], strict=True):
        area = height * width * (op.area[0] + (op.area[1] - op.area[0]) * area_draw / (1 << DRAW_BITS))
        shape = math.exp(least + (most - least) * shape_draw / (1 << DRAW_BITS))
        part_height, part_width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < part_height <= height and 0 < part_width <= width:
            top, left = _below(height - part_height + 1, draws[-2]), _below(width - part_width + 1, draws[-1])
            return top, left, part_height, part_width
    part_height = min(height, max(1, round(width / op.shape[0])))
    part_width = min(width, max(1, round(height * op.shape[1])))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def _bits(key: int, index: Tensor, lane: int) -> Tensor:
    return uniform_integers(hash_index(key, index, lane), 1 << DRAW_BITS)


def _below(count: int, draw: int) -> int:
    """Map a draw to an integer in [0, count), as :func:`lnlbench.engine.seeding.uniform_integers` does."""
    return (draw * count) >> DRAW_BITS


def _paste(image: NDArray[np.uint8], top: int, left: int, out: NDArray[np.uint8]) -> None:
    """Fill ``out`` with the window that starts at (top, left), which may be outside; outside is black."""
    side = len(out)
    height, width = image.shape[:2]
    first_row, first_column = max(top, 0), max(left, 0)
    last_row, last_column = max(min(top + side, height), first_row), max(min(left + side, width), first_column)
    if (last_row - first_row, last_column - first_column) != (side, side):
        out[...] = 0
    rows, columns = slice(first_row - top, last_row - top), slice(first_column - left, last_column - left)
    out[rows, columns] = image[first_row:last_row, first_column:last_column]


def _reflected(start: int, count: int, side: int) -> NDArray[np.int64]:
    """Return ``count`` places from ``start`` on, those outside an image mirrored at its border pixels."""
    from_border: NDArray[np.int64] = side - 1 - np.abs(np.arange(start, start + count))
    return side - 1 - np.abs(from_border)
