"""Files and their checksums: nothing is parsed before its checksum was found right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason

DEFAULT_LIMIT = 2**30
"""Largest file read into memory unless told otherwise, in bytes."""

_ALGORITHMS = ("md5", "sha256")


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 (hex) of ``data``."""
    return hashlib.sha256(data).hexdigest()


def check_digest(data: bytes | memoryview, digest: str, source: str, *, hint: str) -> None:
    """Compare the checksum of bytes in memory with the expected one.

    Args:
        data: The complete content.
        digest: ``md5:<hex>`` or ``sha256:<hex>``.
        source: How the error message names the content.
        hint: The way out, as the end of a sentence: ``"download it again"``.

    Raises:
        DataError: It differs.
    """
    algorithm, expected = _split(digest)
    running = _hash(algorithm)
    running.update(data)
    _compare(algorithm, running.hexdigest(), expected, source, hint)


def read_file(path: Path, *, limit: int = DEFAULT_LIMIT, hint: str) -> bytes:
    """Read a regular file in one go.

    Args:
        path: The file.
        limit: More bytes than this are refused before they are read.
        hint: The way out, as the end of a sentence.

    Raises:
        DataError: It is missing, unreadable, too large, or not a regular file.
    """
    _require_file(path, hint)
    try:
        # One byte more than allowed is asked for, so that a file that grows meanwhile is noticed as well.
        with path.open("rb") as file:
            size = path.stat().st_size
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error.strerror or error)}; {hint}") from error
    if size > limit or len(data) > limit:
        raise DataError(f"{path}: {max(size, len(data)):,} bytes, expected at most {limit:,}; {hint}")
    return data


def read_verified(
    path: Path, digest: str, *, size: int | None = None, limit: int = DEFAULT_LIMIT, hint: str = "download it again"
) -> bytes:
    """Read a file once and hand out its bytes only if size and checksum are right.

    Args:
        path: The file.
        digest: ``md5:<hex>`` or ``sha256:<hex>``.
        size: Exact number of bytes, if known.
        limit: Most bytes to read where ``size`` is not known.
        hint: The way out, as the end of a sentence.

    Raises:
        DataError: It is missing, unreadable, or not the expected file; the message has what was found and expected.
    """
    data = read_file(path, limit=limit if size is None else max(size, limit), hint=hint)
    _check_size(path, len(data), size, hint)
    check_digest(data, digest, str(path), hint=hint)
    return data


def verify_file(path: Path, digest: str, *, size: int | None = None, hint: str = "download it again") -> None:
    """Check a file in place, reading it in pieces; for a file that is not needed in memory.

    Raises:
        DataError: As :func:`read_verified`.
    """
    _require_file(path, hint)
    algorithm, expected = _split(digest)
    try:
        _check_size(path, path.stat().st_size, size, hint)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: _hash(algorithm)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error.strerror or error)}; {hint}") from error
    _compare(algorithm, found, expected, str(path), hint)


def _require_file(path: Path, hint: str) -> None:
    # Looked at before opening: opening a named pipe would wait for ever.
    if path.is_file():
        return
    what = "not a regular file" if path.exists() or path.is_symlink() else "is missing"
    raise DataError(f"{path}: {what}; {hint}")


def _check_size(path: Path, found: int, expected: int | None, hint: str) -> None:
    if expected is not None and found != expected:
        raise DataError(f"{path}: {found:,} bytes, expected {expected:,}; {hint}")


def _split(digest: str) -> tuple[str, str]:
    algorithm, _, expected = digest.partition(":")
    if algorithm not in _ALGORITHMS or not expected:
        raise ValueError(f"digest {digest!r} is not 'md5:<hex>' or 'sha256:<hex>'")
    return algorithm, expected.lower()


def _hash(algorithm: str) -> Any:
    # MD5 is what publishers offer; it finds damage, and no hardened Python may refuse it for that.
    return hashlib.new(algorithm, usedforsecurity=False)


def _compare(algorithm: str, found: str, expected: str, source: str, hint: str) -> None:
    if found != expected:
        raise DataError(f"{source}: {algorithm} is {found}, expected {expected}; {hint}")
