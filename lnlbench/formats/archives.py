"""Reading archives: members are read into memory by name, and nothing is ever extracted to the disk.

Extraction has a long record of escapes (links, absolute names, ``..``), and the ``filter`` arguments that were added
against them had holes of their own; a reader that only returns bytes has no target to escape from.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from typing import Protocol

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason

# What headers and unlisted small files (a readme) may take up beyond the listed members.
_SLACK = 4 * 2**20
_MOST_MEMBERS = 1_000
_CHUNK = 2**20


class _RefusedError(Exception):
    """Internal: the archive is not what is expected."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Budget:
    """A reader that stops a decompression bomb: it hands out a limited number of bytes."""

    def __init__(self, file: _Readable, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._left = limit

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _RefusedError(f"it unpacks to more than {self._limit:,} bytes")
        return data


def read_members(data: bytes, limits: Mapping[str, int], source: str) -> dict[str, bytes]:
    """Read named regular files from a ``.tar.gz`` archive in memory.

    Other regular files and folders in the archive are passed over; any other kind of member (link, device, pipe) makes
    the whole archive unacceptable. The archive is read to its end, so that the checksum of its gzip layer, which
    :mod:`tarfile` never looks at, is verified.

    Args:
        data: The complete archive.
        limits: The exact names of the wanted members, each with the most bytes it may have.
        source: How error messages name the archive.

    Returns:
        The content of every wanted member, in the order of ``limits``.

    Raises:
        DataError: A member is missing, doubled, too large or not a regular file, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            budget = _Budget(unpacked, sum(limits.values()) + _SLACK)
            # "r|": a stream without seeking, uncompressed since gzip is undone above.
            with tarfile.open(fileobj=budget, mode="r|") as archive:  # type: ignore[call-overload]
                for number, member in enumerate(archive):
                    if number >= _MOST_MEMBERS:
                        raise _RefusedError(f"more than {_MOST_MEMBERS:,} members")
                    _take(archive, member, limits, found)
            while budget.read(_CHUNK):
                pass
        missing = [name for name in limits if name not in found]
        if missing:
            raise _RefusedError(f"no member {missing[0]!r}")
    # Damaged input makes these modules raise nearly anything: TarError, zlib.error, EOFError, ValueError, ...
    except Exception as error:
        raise DataError(f"{source}: not the expected archive: {reason(error)}; fetch it again") from error
    return {name: found[name] for name in limits}


def gunzip(data: bytes, limit: int, source: str) -> bytes:
    """Unpack a ``.gz`` file in memory.

    Args:
        data: The complete file.
        limit: The most bytes it may unpack to.
        source: How error messages name the file.

    Raises:
        DataError: It is damaged, or unpacks to more.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            # Asking for one byte more than allowed also takes the reader to the end, where the checksum is verified.
            content = unpacked.read(limit + 1)
        if not data:
            raise _RefusedError("it is empty")
    except Exception as error:
        raise DataError(f"{source}: not a sound gzip file: {reason(error)}; fetch it again") from error
    if len(content) > limit:
        raise DataError(f"{source}: unpacks to more than {limit:,} bytes; fetch it again")
    return content


def _take(
    archive: tarfile.TarFile, member: tarfile.TarInfo, limits: Mapping[str, int], found: dict[str, bytes]
) -> None:
    name = member.name
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not plain and not (member.isdir() and name not in limits):
        raise _RefusedError(f"member {name!r} is neither a regular file nor a folder")
    if name not in limits:
        return
    if name in found:
        raise _RefusedError(f"member {name!r} occurs twice")
    if not 0 <= member.size <= limits[name]:
        raise _RefusedError(f"member {name!r} has {member.size:,} bytes, expected at most {limits[name]:,}")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise _RefusedError(f"member {name!r} is cut off")
    found[name] = content
