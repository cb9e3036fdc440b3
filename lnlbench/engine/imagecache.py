"""Images from files: decoding them, many at a time, and keeping what was decoded on the disk.

Legend: N images of a set, S side of square images, H height, W width.

A cache is a folder of three files. ``pixels.bin`` holds the images one after the other, ``journal.bin`` the height,
width and CRC-32 of each, and ``manifest.json``, written last, says that the other two are complete. Images are written
in blocks; a block counts once the journal has it, which is after its pixels have reached the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import filelock
import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from lnlbench.contracts.dataset import DataStore, ImageFiles, Resize
from lnlbench.errors import DataError, StorageError
from lnlbench.files import OS_FS, make_folder, read_json, storage_errors, write_json
from lnlbench.formats.images import MOST_BYTES, check_image, decode_image, resized_size
from lnlbench.formats.messages import reason

Job = TypeVar("Job")
Result = TypeVar("Result")

CHUNK = 8
"""Images that a thread takes at a time."""

BLOCK = 1000
"""Images that a cache gains at a time, and at most loses when its builder is killed."""

_FORMAT = 1
_ENTRY = np.dtype([("height", "<u4"), ("width", "<u4"), ("crc", "<u4")])
_SAMPLE = 64


def run_ahead(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, ahead: int) -> Iterator[Result]:
    """Run jobs in threads and yield their results in order.

    Args:
        function: What to do with a job; what it raises is raised here.
        jobs: Taken one by one, as room for them comes up.
        workers: Number of threads.
        ahead: How many jobs are taken before the result of the first is asked for.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lnlbench-images")
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Not waiting: an abandoned iterator may be closed by the garbage collector, in any thread, even in one of
        # these. They end by themselves after the job at hand.
        pool.shutdown(wait=False, cancel_futures=True)


def default_workers() -> int:
    """Return how many threads decode: as many as PyTorch may use for computing."""
    return torch.get_num_threads()


def read_image(files: ImageFiles, index: int) -> NDArray[np.uint8]:
    """Return the image that views are cut from: the file decoded to RGB, then resized.

    Args:
        files: The set.
        index: Position in it.

    Returns:
        ``(H, W, 3)``, uint8, contiguous.

    Raises:
        DataError: The file cannot be read, or is not a sound image.
    """
    path = _path(files, index)
    return _pixels(_bytes(path), path, files.resize)


def scaled(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale an image: bilinear, antialiased, rounded to uint8.

    This is torchvision's ``resize`` of a uint8 tensor. It computes in integers, so the result does not depend on the
    instruction set. It takes a quarter of the time of Pillow's, from which it differs by at most one level.

    Args:
        pixels: ``(h, w, 3)``, uint8, contiguous.
        height: New height.
        width: New width.

    Returns:
        ``(height, width, 3)``, uint8, contiguous.
    """
    # As a channels-last tensor without gaps it is neither copied nor shared out among threads on the way.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(image.permute(0, 2, 3, 1)[0].numpy())


def decode_all(files: ImageFiles, folder: Path, store: DataStore, workers: int | None = None) -> NDArray[np.uint8]:
    """Return all images of a set that are squares of one size, through a cache if it can be written.

    Args:
        files: The set; its resizing makes squares.
        folder: Where the dataset's caches are.
        store: Shows progress.
        workers: Number of threads; :func:`default_workers` if ``None``.

    Returns:
        ``(N, S, S, 3)``, uint8.

    Raises:
        DataError: A file or the cache is damaged.
    """
    try:
        cache = build_cache(files, folder, store, workers)
    except StorageError as error:
        print(f"lnlbench: decoded images are not kept: {error}", file=sys.stderr, flush=True)
    else:
        return np.stack([cache.image(index) for index in range(len(files))])
    images: list[NDArray[np.uint8]] = []
    with store.progress("decoding images", len(files)) as progress:
        for chunk in _verified_images(files, 0, workers):
            images += chunk
            progress(len(chunk))
    return np.stack(images)


def build_cache(files: ImageFiles, folder: Path, store: DataStore, workers: int | None = None) -> ImageCache:
    """Decode a whole set into a cache and open it; go on where an interrupted attempt stopped.

    Of two processes that want the same cache, one builds it and the other waits.

    Args:
        files: The set.
        folder: Where the dataset's caches are; need not exist.
        store: Shows progress.
        workers: Number of threads; :func:`default_workers` if ``None``.

    Raises:
        DataError: A file is damaged or not the one that was prepared, or the existing cache is damaged.
        StorageError: The folder cannot be written to, or the disk has no room.
    """
    place = _place(files, folder)
    found = find_cache(files, folder)
    if found is not None:
        return found
    make_folder(place)
    with storage_errors(place):
        lock = filelock.FileLock(place.with_name(f"{place.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"lnlbench: waiting for another process that decodes images to {place}", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            if not (place / "manifest.json").exists():
                _build(files, place, store, workers)
        finally:
            lock.release()
    return ImageCache(files, place)


def find_cache(files: ImageFiles, folder: Path) -> ImageCache | None:
    """Open the cache of a set; ``None`` if there is no complete one.

    Args:
        files: The set.
        folder: Where the dataset's caches are; need not exist.

    Raises:
        DataError: It is damaged.
    """
    place = _place(files, folder)
    return ImageCache(files, place) if (place / "manifest.json").exists() else None


class ImageCache:
    """The decoded images of a set, mapped into memory. Each is verified when it is read for the first time.

    Args:
        files: The set.
        place: The folder of the cache.

    Raises:
        DataError: The cache is damaged or cut off.
    """

    def __init__(self, files: ImageFiles, place: Path) -> None:
        self._place = place
        try:
            manifest = read_json(place / "manifest.json")
            entries = _whole_blocks((place / "journal.bin").read_bytes(), len(files))
            sizes = _sizes(entries)
            self._pixels = np.asarray(np.memmap(place / "pixels.bin", np.uint8, "r"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(reason(error)) from error
        if manifest != _manifest(files, int(sizes.sum())) or len(entries) != len(files):
            raise self._damaged("its parts do not fit together")
        if len(self._pixels) != sizes.sum():
            raise self._damaged(f"pixels.bin has {len(self._pixels):,} bytes, expected {sizes.sum():,}")
        self._heights, self._widths, self._crcs = entries["height"], entries["width"], entries["crc"]
        self._starts = np.cumsum(sizes) - sizes
        self._verified = bytearray(len(files))

    def __len__(self) -> int:
        return len(self._crcs)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image, as :func:`read_image` does, but read-only.

        Raises:
            DataError: It is damaged.
        """
        height, width, start = int(self._heights[index]), int(self._widths[index]), int(self._starts[index])
        pixels = self._pixels[start : start + 3 * height * width]
        if not self._verified[index]:
            if zlib.crc32(pixels.data) != self._crcs[index]:
                raise self._damaged(f"image {index} has another checksum")
            self._verified[index] = 1
        return pixels.reshape(height, width, 3)

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self._place}: the decoded images are damaged: {what}; delete this folder, and decode again")


def _path(files: ImageFiles, index: int) -> str:
    return f"{files.root}/{files.paths[index]}"


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise DataError(f"{path}: has {size:,} bytes, expected an image of at most {MOST_BYTES:,}")
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or reason(error)}; put the image back") from error


def _pixels(data: bytes, path: str, resize: Resize) -> NDArray[np.uint8]:
    # A copy, since PyTorch accepts no read-only memory.
    pixels: NDArray[np.uint8] = np.array(decode_image(data, path))
    height, width = pixels.shape[:2]
    new_width, new_height = resized_size(width, height, resize)
    return pixels if (new_height, new_width) == (height, width) else scaled(pixels, new_height, new_width)


def _verified_images(files: ImageFiles, first: int, workers: int | None) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield the images from ``first`` on, some at a time, of files whose checksums are those of their preparation."""

    def decode(start: int) -> list[NDArray[np.uint8]]:
        return [_verified_image(files, index) for index in range(start, min(start + CHUNK, len(files)))]

    workers = workers or default_workers()
    return run_ahead(decode, range(first, len(files), CHUNK), workers, 2 * workers)


def _verified_image(files: ImageFiles, index: int) -> NDArray[np.uint8]:
    path = _path(files, index)
    data = _bytes(path)
    if hashlib.sha256(data).digest() != files.digests[index].tobytes():
        raise DataError(f"{path}: is not the file that was prepared; put that one back, or prepare the dataset again")
    return _pixels(data, path, files.resize)


def _build(files: ImageFiles, place: Path, store: DataStore, workers: int | None) -> None:
    """Decode what the journal does not have yet. Call only while holding the lock."""
    with OS_FS.open(place / "journal.bin", "a+b") as journal, OS_FS.open(place / "pixels.bin", "a+b") as pixels:
        journal.seek(0)
        entries = _whole_blocks(journal.read(), len(files))
        if pixels.seek(0, os.SEEK_END) < _sizes(entries).sum():
            entries = entries[:0]
        written = int(_sizes(entries).sum())
        _make_sure_of_room(files, place, len(entries))
        # What a killed builder left of its last block goes.
        journal.truncate(entries.nbytes + _ENTRY.itemsize * -(-len(entries) // BLOCK))
        pixels.truncate(written)
        with store.progress("decoding images", len(files)) as progress:
            progress(len(entries))
            block: list[tuple[int, int, int]] = []
            done = len(entries)
            for chunk in _verified_images(files, done, workers):
                for image in chunk:
                    pixels.write(image.data)
                    block.append((*image.shape[:2], zlib.crc32(image.data)))
                done += len(chunk)
                progress(len(chunk))
                if len(block) == BLOCK or done == len(files):
                    _flush(pixels)
                    journal.write(_sealed(block))
                    _flush(journal)
                    written += 3 * sum(height * width for height, width, _ in block)
                    block.clear()
    write_json(place / "manifest.json", _manifest(files, written))


def _flush(file: IO[bytes]) -> None:
    file.flush()
    OS_FS.fsync(file)


def _sealed(block: list[tuple[int, int, int]]) -> bytes:
    """Return the journal's lines for a block: one per image, then the number of images and the CRC-32 of all these."""
    lines = np.array(block, _ENTRY).tobytes()
    return lines + np.array((len(block), 0, zlib.crc32(lines)), _ENTRY).tobytes()


def _whole_blocks(journal: bytes, images: int) -> NDArray[np.void]:
    """Return the entries of the leading blocks that are complete and undamaged."""
    lines = np.frombuffer(journal, _ENTRY, count=len(journal) // _ENTRY.itemsize)
    blocks = [lines[:0]]
    for first in range(0, images, BLOCK):
        start, count = first + first // BLOCK, min(BLOCK, images - first)
        block = lines[start : start + count]
        if lines[start : start + count + 1].tobytes() != _sealed(block.tolist()):
            break
        blocks.append(block)
    return np.concatenate(blocks)


def _sizes(entries: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the bytes of each image."""
    return 3 * entries["height"].astype(np.int64) * entries["width"].astype(np.int64)


def _make_sure_of_room(files: ImageFiles, place: Path, done: int) -> None:
    """Compare what is still to be written, estimated from some of the images left, to what the disk has."""
    left = len(files) - done
    sample = np.linspace(done, len(files) - 1, min(_SAMPLE, left)).astype(np.int64)
    pixels = 0
    for path in (_path(files, index) for index in sample):
        width, height = resized_size(*check_image(_bytes(path), path), files.resize)
        pixels += width * height
    needed = 3 * pixels * left / max(len(sample), 1)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{place}: decoded images need {needed / 1e9:.1f} GB more, but the disk has {free / 1e9:.1f} GB left; "
            "free some space, or go without decoding beforehand"
        )


def _manifest(files: ImageFiles, size: int) -> dict[str, object]:
    return {"key": _key(files), "images": len(files), "bytes": size}


def _place(files: ImageFiles, folder: Path) -> Path:
    return folder / _key(files)[:8]


def _key(files: ImageFiles) -> str:
    """Return a digest of what the pixels depend on: the files, how they are resized, and the libraries that do it."""
    libraries = (PIL.__version__, torch.__version__)
    recipe = (_FORMAT, files.resize.side, files.resize.square, *libraries)
    return hashlib.sha256(repr(recipe).encode() + np.ascontiguousarray(files.digests).tobytes()).hexdigest()
