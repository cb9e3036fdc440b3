"""Writing files so that a crash, a full disk or a power cut leaves the old file or the new one, never a torn one.

All writes of the harness go through an :class:`Fs`, the seam at which tests make any single call fail.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from lnlbench.errors import StorageError


class Fs(Protocol):
    """The file-system calls that decide whether data survive."""

    def open(self, path: Path, mode: str) -> IO[bytes]:
        """Open a file in binary mode."""

    def fsync(self, file: IO[bytes]) -> None:
        """Force a file's content to the disk."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing the target atomically."""

    def fsync_dir(self, path: Path) -> None:
        """Force a folder's entries to the disk."""

    def unlink(self, path: Path) -> None:
        """Delete a file if it is there."""


class OsFs:
    """The real file system."""

    def open(self, path: Path, mode: str) -> IO[bytes]:
        """Open a file in binary mode."""
        return open(path, mode)

    def fsync(self, file: IO[bytes]) -> None:
        """Force a file's content to the disk."""
        os.fsync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing the target atomically."""
        source.replace(target)

    def fsync_dir(self, path: Path) -> None:
        """Force a folder's entries to the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def unlink(self, path: Path) -> None:
        """Delete a file if it is there."""
        path.unlink(missing_ok=True)


OS_FS: Fs = OsFs()


class HashingWriter(io.RawIOBase):
    """A write-only file object that computes SHA-256 and size of what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, data: Any, /) -> int:
        """Pass data on, and into the hash."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        try:
            self._file.write(view)
        except OSError as error:
            # Serialisers written in C (torch.save) lose the cause of a failed write, so it is kept here.
            self.error = error
            raise
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Flush the file below."""
        if not self._file.closed:
            self._file.flush()

    def hexdigest(self) -> str:
        """Return the SHA-256 (hex) of everything written so far."""
        return self._hash.hexdigest()


def write_atomically(path: Path, write: Callable[[HashingWriter], None], fs: Fs = OS_FS) -> tuple[str, int]:
    """Write a file through a temporary sibling, flush it to the disk, then rename it into place.

    Args:
        path: The target; its folder must exist. On any failure a previous file there stays untouched.
        write: Receives a writer and produces the content.
        fs: The file system; tests hand in one that fails.

    Returns:
        The SHA-256 (hex) and the size in bytes of what was written.

    Raises:
        StorageError: The disk is full, the folder is read-only, or the device reports an error.
    """
    # The temporary file is a sibling, since a rename is atomic only within one file system, and its name is random,
    # since a fixed one left behind by a crash would block every later save.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    writer: HashingWriter | None = None
    try:
        with fs.open(temporary, "xb") as file:
            writer = HashingWriter(file)
            write(writer)
            file.flush()
            fs.fsync(file)
        fs.replace(temporary, path)
        fs.fsync_dir(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fs.unlink(temporary)
        lost = writer.error if writer is not None else None
        cause = error if isinstance(error, OSError) else lost
        if cause is not None:
            raise storage_error(cause, path) from error
        raise
    return writer.hexdigest(), writer.size


def write_bytes(path: Path, data: bytes, fs: Fs = OS_FS) -> tuple[str, int]:
    """Write ``data`` to ``path`` atomically; see :func:`write_atomically`."""

    def write(writer: HashingWriter) -> None:
        writer.write(data)

    return write_atomically(path, write, fs)


def write_json(path: Path, value: object, fs: Fs = OS_FS) -> tuple[str, int]:
    """Write ``value`` as indented JSON, atomically. Not-a-number is refused (``ValueError``).

    A list of numbers takes one line, so that a matrix has a line for each row.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    # Line breaks inside strings are escaped, so what spans lines and has no quote is a list of plain numbers.
    text = re.sub(
        r"\[\n[^\[\]{}\"]*\]",
        lambda found: re.sub(r"\s*\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
    return write_bytes(path, text.encode() + b"\n", fs)


def read_json(path: Path) -> Any:
    """Read JSON that may not contain NaN or infinity.

    Raises:
        ValueError: The file is not JSON, or holds NaN or infinity.
        OSError: The file cannot be read.
    """

    def refuse(token: str) -> None:
        raise ValueError(f"{path}: {token} is not allowed in a result file")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        StorageError: The location is read-only, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def sha256_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of dead writers. Call only while holding the lock of ``folder``."""
    for leftover in folder.rglob("*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` raised inside into a one-line :class:`StorageError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> StorageError:
    """Describe a failed write in one line with the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_space(path)
        return StorageError(f"disk full while writing {path} (free: {free}); free some space and run the command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"cannot write {path}: {error.strerror}; choose a folder you may write to")
    return StorageError(f"cannot write {path}: {error.strerror or error}")


def _free_space(path: Path) -> str:
    for folder in (path, *path.parents):
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
    return "unknown"
