"""Files of a site, while it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


def write(folder: Path, files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Write files, and yield the path of each one.

    A site is made again in seconds, so nothing here waits for the disk.

    Args:
        folder: Where they belong; folders below it are created.
        files: Paths from there with ``/`` between parts, and texts.
    """
    made = set()
    for path, text in files:
        target = folder / path
        parent, _, _ = path.rpartition("/")
        if parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(parent)
        target.write_bytes(text.encode())
        yield path
