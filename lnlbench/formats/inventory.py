"""The inventory of a dataset of many image files: size, time of change and SHA-256 of each, found out once.

Reading a million files takes hours, looking at their sizes and times of change takes seconds. So every file is read and
hashed when a dataset is prepared, and later uses only make sure that none was exchanged since.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lnlbench.errors import DataError
from lnlbench.files import write_bytes
from lnlbench.formats.images import MOST_BYTES, check_image
from lnlbench.formats.messages import reason
from lnlbench.formats.verify import read_file

MISSING = -1
"""Size of a file that is not there."""
NEVER = -1
"""Time of change of a file that is to be read again."""

# Reading waits for the disk, hashing lets go of the interpreter lock: more threads than cores pay.
_THREADS = min(32, 4 * (os.cpu_count() or 1))
_BLOCK = 512
_LARGEST = 2**31
# What was found is saved this often, and never so often that saving costs more than a few per cent of the time.
_SAVE_EVERY_S = 20.0
_SAVE_SHARE = 30.0


@dataclass(frozen=True, eq=False)
class Inventory:
    """What is known of n files."""

    paths: tuple[str, ...] = ()
    """Relative to the folder of the images; no path occurs twice."""
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """``(n,)``: bytes."""
    mtimes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """``(n,)``: times of change in nanoseconds since the epoch; :data:`NEVER` if the file is to be read again."""
    digests: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    """``(n, 32)``: SHA-256."""
    sides: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """``(n, 2)``: width and height in pixels."""

    @cached_property
    def _row(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self.paths)}

    def rows(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Return the position of each path; -1 if it is not in the inventory."""
        known = self._row
        return np.fromiter((known.get(path, -1) for path in paths), np.int64, len(paths))

    def take(self, rows: NDArray[np.int64]) -> Inventory:
        """Return a part."""
        paths = tuple(self.paths[row] for row in rows)
        return Inventory(paths, self.sizes[rows], self.mtimes[rows], self.digests[rows], self.sides[rows])

    def join(self, other: Inventory) -> Inventory:
        """Return both together; what the other one says goes first."""
        if not other.paths:
            return self
        kept = self.take(np.flatnonzero(other.rows(self.paths) < 0))
        return Inventory(
            other.paths + kept.paths,
            np.concatenate([other.sizes, kept.sizes]),
            np.concatenate([other.mtimes, kept.mtimes]),
            np.concatenate([other.digests, kept.digests]),
            np.concatenate([other.sides, kept.sides]),
        )

    def aged(self) -> Inventory:
        """Return the same with no time of change known, so that every file will be read again."""
        return Inventory(self.paths, self.sizes, np.full_like(self.mtimes, NEVER), self.digests, self.sides)

    def write(self, path: Path) -> None:
        """Write it atomically, with a checksum of its own.

        Raises:
            StorageError: The disk is full or the folder read-only.
        """
        buffer = io.BytesIO()
        arrays = {"paths": _pack(self.paths), "sizes": self.sizes, "mtimes": self.mtimes, "digests": self.digests}
        arrays["sides"] = self.sides
        np.savez(buffer, checksum=_checksum(arrays), **arrays)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())


def read_inventory(path: Path, *, hint: str) -> Inventory:
    """Read an inventory; an empty one if there is no such file.

    Args:
        path: The file.
        hint: The way out if it is damaged, as the end of a sentence.

    Raises:
        DataError: It is damaged.
    """
    if not path.exists():
        return Inventory()
    data = read_file(path, limit=_LARGEST, hint=hint)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as content:
            arrays = {name: content[name] for name in ("paths", "sizes", "mtimes", "digests", "sides")}
            sound = np.array_equal(content["checksum"], _checksum(arrays))
        if not sound:
            raise ValueError("its checksum is wrong")
        paths = _unpack(arrays.pop("paths"))
        if any(len(array) != len(paths) for array in arrays.values()):
            raise ValueError("its columns differ in length")
    # A damaged zip archive makes these modules raise nearly anything.
    except Exception as error:
        raise DataError(f"{path}: damaged: {reason(error)}; {hint}") from error
    return Inventory(paths, **arrays)


def look(root: Path, paths: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Look up size and time of change of files.

    Symbolic links must lead to places below ``root``, or below what the links that lie in ``root`` itself lead to.

    Args:
        root: Folder that the paths start from.
        paths: n safe relative paths.

    Returns:
        Sizes in bytes, :data:`MISSING` where there is no file, and times of change in nanoseconds, both ``(n,)`` int64.

    Raises:
        DataError: Something is no regular file, a link leads elsewhere, or a folder cannot be looked into.
    """
    allowed = _allowed(root)
    _check_folders(root, paths, allowed)
    found = np.empty((len(paths), 2), np.int64)
    prefix = f"{root}{os.sep}"

    def part(start: int) -> None:
        for position in range(start, min(start + _BLOCK, len(paths))):
            found[position] = _state(prefix + paths[position], root, allowed)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(part, range(0, len(paths), _BLOCK)):
            pass
    return found[:, 0].copy(), found[:, 1].copy()


@dataclass(frozen=True, eq=False)
class Stock:
    """What taking stock of a list of files came to."""

    inventory: Inventory
    """All that is known now."""
    missing: tuple[str, ...]
    """Paths where there is no file, in the order of the list."""
    changed: tuple[str, ...]
    """Paths whose content is not what was found there the first time, likewise."""


def take_stock(
    root: Path,
    paths: Sequence[str],
    known: Inventory,
    save: Callable[[Inventory], None],
    progress: Callable[[int], None],
    *,
    accept_changed: bool,
    hint: str,
) -> Stock:
    """Read, check and hash files, apart from those that are known and have not changed in size and time since.

    Args:
        root: Folder that the paths start from.
        paths: Safe relative paths; one may occur several times.
        known: What was found before.
        save: Called now and then, at the end, and on the way out of an interruption, with all that is known.
        progress: Called with the number of files just done.
        accept_changed: Whether files may have another content than before; if not, what was known of them is kept.
        hint: The way out if images are damaged, as the end of a sentence.

    Raises:
        DataError: Files are damaged or are no images. All others have been looked at before.
    """
    paths = tuple(dict.fromkeys(paths))
    sizes, mtimes = look(root, paths)
    rows = known.rows(paths)
    same = rows >= 0
    same[same] = (known.sizes[rows[same]] == sizes[same]) & (known.mtimes[rows[same]] == mtimes[same])
    present = sizes != MISSING
    todo = [paths[position] for position in np.flatnonzero(present & ~same)]
    progress(len(paths) - len(todo))

    def merged(fresh: Inventory) -> Inventory:
        return known.join(fresh if accept_changed else fresh.take(np.flatnonzero(~_differs(known, fresh))))

    fresh, bad = _read_all(root, todo, lambda part: save(merged(part)), progress)
    if bad:
        count = f"{len(bad):,} of {len(paths):,} image files are damaged, first: " if len(bad) > 1 else ""
        raise DataError(f"{count}{bad[0]}; {hint}")
    return Stock(
        merged(fresh),
        missing=tuple(paths[position] for position in np.flatnonzero(~present)),
        changed=tuple(fresh.paths[row] for row in np.flatnonzero(_differs(known, fresh))),
    )


def _differs(known: Inventory, fresh: Inventory) -> NDArray[np.bool_]:
    """Return, for each file, whether it was known with another content."""
    rows = known.rows(fresh.paths)
    differs = rows >= 0
    differs[differs] = (known.digests[rows[differs]] != fresh.digests[differs]).any(axis=1)
    return differs


def _read_all(
    root: Path, paths: Sequence[str], save: Callable[[Inventory], None], progress: Callable[[int], None]
) -> tuple[Inventory, list[str]]:
    """Return what was found, and what is wrong with the files that were not accepted."""
    done: list[_Facts] = []
    bad: list[str] = []
    saved, next_save = 0, time.monotonic() + _SAVE_EVERY_S
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            for block in _blocks(paths):
                for facts in pool.map(lambda path: _read_one(root, path), block):
                    bad.append(facts) if isinstance(facts, str) else done.append(facts)
                progress(len(block))
                if time.monotonic() > next_save:
                    started = time.monotonic()
                    save(_collected(done))
                    saved, now = len(done), time.monotonic()
                    next_save = now + max(_SAVE_EVERY_S, _SAVE_SHARE * (now - started))
    finally:
        # Also when interrupted: the next attempt goes on from here.
        if len(done) > saved:
            save(_collected(done))
    return _collected(done), bad


@dataclass(frozen=True)
class _Facts:
    path: str
    size: int
    mtime: int
    digest: bytes
    sides: tuple[int, int]


def _read_one(root: Path, path: str) -> _Facts | str:
    source = root / path
    try:
        with source.open("rb") as file:
            state = os.fstat(file.fileno())
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            return f"{source}: more than {MOST_BYTES:,} bytes"
        return _Facts(path, len(data), state.st_mtime_ns, hashlib.sha256(data).digest(), check_image(data, str(source)))
    except OSError as error:
        return f"{source}: cannot be read: {reason(error.strerror or error)}"
    except DataError as error:
        return str(error)


def _collected(done: Sequence[_Facts]) -> Inventory:
    return Inventory(
        tuple(facts.path for facts in done),
        np.array([facts.size for facts in done], np.int64),
        np.array([facts.mtime for facts in done], np.int64),
        np.frombuffer(b"".join(facts.digest for facts in done), np.uint8).reshape(-1, 32),
        np.array([facts.sides for facts in done], np.int32).reshape(-1, 2),
    )


def _blocks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK))


def _check_folders(root: Path, paths: Sequence[str], allowed: Sequence[str]) -> None:
    """Make sure that no folder on the way to a file is a link to somewhere else."""
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        place = root / folder
        if not _is_below(os.path.realpath(place), allowed):
            raise _leads_away(place, root)


def _allowed(root: Path) -> tuple[str, ...]:
    # Links in the folder itself are the user's own, who thus says where data lie; deeper ones come with the data.
    own = [entry.path for entry in os.scandir(root) if entry.is_symlink() and entry.is_dir()] if root.is_dir() else []
    return tuple(os.path.realpath(place) for place in (str(root), *own))


def _is_below(place: str, allowed: Sequence[str]) -> bool:
    return any(place == each or place.startswith(each.rstrip(os.sep) + os.sep) for each in allowed)


def _state(path: str, root: Path, allowed: Sequence[str]) -> tuple[int, int]:
    try:
        state = os.lstat(path)
        if stat.S_ISLNK(state.st_mode):
            if not _is_below(os.path.realpath(path), allowed):
                raise _leads_away(Path(path), root)
            state = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return MISSING, NEVER
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {reason(error.strerror or error)}; make it readable") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{path}: not a regular file; put the image in its place")
    return state.st_size, state.st_mtime_ns


def _leads_away(path: Path, root: Path) -> DataError:
    return DataError(f"{path}: a symbolic link out of {root}; put the images themselves there, or link {root} itself")


def _pack(paths: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(paths).encode(), np.uint8)


def _unpack(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    text = packed.tobytes().decode()
    return tuple(text.split("\n")) if text else ()


def _checksum(arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.uint8]:
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return np.frombuffer(total.digest(), np.uint8)
