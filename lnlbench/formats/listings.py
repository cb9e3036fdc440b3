"""Lists of image files as datasets publish them: one path per line, with or without a label behind it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason
from lnlbench.formats.verify import read_file

LARGEST_LIST = 2**28
"""Most bytes that a list may have."""

# An empty, "." or ".." part, a backslash, a character that controls a terminal, or the drive letter of Windows.
_UNSAFE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|^[A-Za-z]:")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
_INTEGER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class PathList:
    """The lines of a list."""

    paths: tuple[str, ...]
    """n safe relative paths."""
    labels: NDArray[np.int64]
    """``(n,)``, int64; -1 if the list has no labels."""


def read_lines(path: Path, *, limit: int = LARGEST_LIST, hint: str) -> list[str]:
    """Read a text file of UTF-8 line by line; line ends may be those of Windows, empty lines at its end are dropped.

    Args:
        path: The file.
        limit: More bytes than this are refused before they are read.
        hint: The way out, as the end of a sentence.

    Raises:
        DataError: It is missing, too large, no text, or has no line at all.
    """
    data = read_file(path, limit=limit, hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line:,}: not text in UTF-8; {hint}") from error
    # Not splitlines(), which also splits at characters that a file name may have.
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path}: the list is empty; {hint}")
    return lines


def read_listing(
    path: Path,
    *,
    num_labels: int | None = None,
    separator: str = " ",
    header: bool = False,
    unique: bool = True,
    limit: int = LARGEST_LIST,
    hint: str,
) -> PathList:
    """Read a list of ``path`` or ``path<separator>label`` lines.

    Args:
        path: The list.
        num_labels: Labels must lie in [0, num_labels); ``None`` for a list of paths only.
        separator: What stands between path and label; the last one in the line counts.
        header: Whether a first line without a dot is passed over: some copies begin with the names of the columns.
        unique: Whether a path that occurs twice is refused.
        limit: More bytes than this are refused before they are read.
        hint: The way out, as the end of a sentence.

    Raises:
        DataError: The list is missing or not in this format; the message has the number of the line.
    """
    lines = read_lines(path, limit=limit, hint=hint)
    first = 1
    if header and "." not in lines[0]:
        first = 2
        del lines[0]
    if not lines:
        raise DataError(f"{path}: the list has nothing but a header; {hint}")
    paths: list[str] = []
    labels = [-1] * len(lines) if num_labels is None else []
    for number, line in enumerate(lines, first):
        name = line
        if num_labels is not None:
            name, _, text = line.rpartition(separator)
            if not _INTEGER.fullmatch(text) or int(text) >= num_labels:
                what = f"{reason(text)!r} is not a label in 0..{num_labels - 1}"
                raise DataError(f"{path}: line {number:,}: {what}; {hint}")
            labels.append(int(text))
        if _UNSAFE.search(name):
            raise DataError(f"{path}: line {number:,}: {unsafe_path(name)}; {hint}")
        paths.append(name)
    if unique and len(set(paths)) < len(paths):
        raise _doubled(path, paths, first, hint)
    return PathList(tuple(paths), np.array(labels, dtype=np.int64))


def image_names(folder: Path, *, hint: str) -> list[str]:
    """Return the names of the image files in a folder, sorted, so that their order is the same on every machine.

    Hidden files and what file managers leave behind are passed over; nothing else may be there.

    Args:
        folder: The folder.
        hint: The way out, as the end of a sentence.

    Raises:
        DataError: The folder cannot be read, is empty, or has something that is not called JPEG or PNG.
    """
    names = _names(folder, hint)
    for name in names:
        if not name.lower().endswith(_IMAGE_SUFFIXES):
            raise DataError(f"{folder}: {reason(name)!r} is not called {', '.join(_IMAGE_SUFFIXES)}; {hint}")
    if not names:
        raise DataError(f"{folder}: there are no images in it; {hint}")
    return names


def folder_names(folder: Path, *, hint: str) -> list[str]:
    """Return the names of the folders in a folder, sorted; hidden ones are passed over.

    Raises:
        DataError: The folder cannot be read.
    """
    return [name for name in _names(folder, hint) if (folder / name).is_dir()]


def unsafe_path(path: str) -> str:
    """Return what is wrong with a path that a list or a table names, as a part of a message; empty if nothing is.

    >>> unsafe_path("images/0/1.jpg")
    ''
    >>> unsafe_path("images/../../secret")
    "'images/../../secret' is not a plain relative path"
    """
    return f"{reason(path)!r} is not a plain relative path" if _UNSAFE.search(path) else ""


def _names(folder: Path, hint: str) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a path object for each of 50,000 files is not needed
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error.strerror or error)}; {hint}") from error
    names = sorted(name for name in names if not name.startswith(".") and name.lower() not in _LITTER)
    for name in names:
        wrong = unsafe_path(name)
        if wrong or not name.isprintable():
            raise DataError(f"{folder}: the file name {reason(name)!r} has characters that are not allowed; {hint}")
    return names


def _doubled(path: Path, paths: list[str], first: int, hint: str) -> DataError:
    seen: dict[str, int] = {}
    for number, name in enumerate(paths, first):
        if name in seen:
            what = f"{reason(name)!r} stands in line {seen[name]:,} already"
            return DataError(f"{path}: line {number:,}: {what}; {hint}")
        seen[name] = number
    raise AssertionError("no path is doubled")  # pragma: no cover - called only if one is
