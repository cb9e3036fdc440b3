"""Writing the pages: all of them into a folder beside the old one, which then takes its place."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from lnlbench.errors import DataError, UsageError
from lnlbench.files import make_folder, storage_errors
from lnlbench.leaderboard.statistics import memory_set_aside
from lnlbench.site import datasets, methods, overview, runs, suite
from lnlbench.site.boards import boards_of
from lnlbench.site.model import Site
from lnlbench.site.output import write
from lnlbench.site.render import FOLDER

MARKER = "site.json"
"""File that says that a folder is a built site, and which files belong to it."""


def build(site: Site, out: Path) -> int:
    """Write all pages.

    Args:
        site: What they tell.
        out: The folder: a new one, an empty one, or an earlier site, which stays until the new one is complete.

    Returns:
        How many HTML pages there are.

    Raises:
        UsageError: The folder holds something else.
        DataError: Two pages would have the same address.
        StorageError: It cannot be written.
    """
    out = out.resolve()
    _check_folder(out)
    make_folder(out.parent)
    stage = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(out), memory_set_aside():
        try:
            stage.mkdir()
            written = _write(stage, site)
            _swap(stage, out)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    return sum(path.endswith(".html") for path in written)


def _files(site: Site) -> Iterator[tuple[str, str]]:
    for path in sorted((FOLDER / "static").iterdir()):
        if path.is_file():
            yield f"static/{path.name}", path.read_text(encoding="utf-8")
    boards = {name: boards_of(site, name) for name in site.suites}
    yield from overview.pages(site, boards)
    yield from suite.pages(site, boards)
    yield from methods.pages(site)
    yield from datasets.pages(site)


def _write(folder: Path, site: Site) -> list[str]:
    # Other processes may write the pages of runs meanwhile.
    with runs.writing(site, folder) as of_runs:
        paths = [*write(folder, _files(site)), *of_runs]
    written: set[str] = set()
    for path in paths:
        # Some file systems make no difference between upper and lower case.
        if path.lower() in written:
            raise DataError(f"two pages would be {path}; rename one of the methods, tasks or suites concerned")
        written.add(path.lower())
    listed = sorted(paths)
    marker = {"generator": "lnlbench site", "files": listed}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    return listed


def _check_folder(out: Path) -> None:
    """Refuse a folder with anything in it that a site does not have, since it would be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder for the site")
    try:
        listed = set(json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]) | {MARKER}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{out} is neither empty nor a site that was built here; name another folder") from None
    for path, _, names in os.walk(out):
        for name in sorted(names):
            found = (Path(path) / name).relative_to(out).as_posix()
            if found not in listed:
                raise UsageError(f"{out} holds {found}, which is not of the site and would be lost; move it away")


def _swap(stage: Path, out: Path) -> None:
    """Put the new folder in the place of the old one. The old one comes back if that fails."""
    retired = stage.with_suffix(".old")
    exists = out.exists()
    if exists:
        out.replace(retired)
    try:
        stage.replace(out)
    except BaseException:
        if exists:
            retired.replace(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)
