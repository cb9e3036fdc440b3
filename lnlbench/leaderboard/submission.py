"""Submissions: bundles in a folder that a pull request can carry, and what keeps out everything that is none.

A submission is laid out as a board, with ``bundles/<suite>/<cell id>/`` and a list of them, ``submission.json``.
Whoever reads one trusts nothing in it: no links, no other files, bounded sizes, every score recomputed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import lnlbench
from lnlbench.errors import DataError, UsageError
from lnlbench.files import make_folder, storage_error, storage_errors, write_json
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.bundle import BUNDLES, Content, bundle_folder, is_cell_id
from lnlbench.leaderboard.content import METRICS, PREDICTIONS, RUN
from lnlbench.leaderboard.reproduce import load
from lnlbench.records import FORMAT

LIST = "submission.json"
"""Name of the list of a submission's bundles."""

LIST_LIMIT = 8 * 2**20
"""Bytes the list may have."""

MOST = 10_000
"""Bundles a submission or board may have."""

_MANIFEST = "manifest.json"
_FILES = {RUN, METRICS, PREDICTIONS, _MANIFEST}


class _Listed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(description="Suite id.")
    cell: str = Field(description="Cell id.")
    label: str = Field(description="For people.")
    manifest: str = Field(description="SHA-256 of the bundle's manifest, which has that of every other file.")


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(FORMAT, description="Layout of this file.")
    lnlbench: str = Field(lnlbench.__version__, description="Version that wrote it.")
    bundles: tuple[_Listed, ...] = Field(description="By suite and cell.")


@dataclass(frozen=True)
class Refused:
    """Something that cannot be submitted, or does not belong where it lies."""

    path: Path
    """Where."""
    reason: str
    """Why, in one printable line that names the place."""


@dataclass(frozen=True)
class Inspected:
    """What a submission or a board was found to hold."""

    bundles: tuple[Path, ...]
    """The bundles whose every score could be recomputed, by suite and cell id."""
    refused: tuple[Refused, ...]
    """Everything else."""


def submit(sources: Sequence[Path], out: Path) -> list[Refused]:
    """Bundle runs into a new folder.

    Args:
        sources: Bundles and run folders.
        out: The folder, which must not exist or be empty.

    Returns:
        The runs that cannot be submitted, with reasons. If there are any, nothing is written.

    Raises:
        UsageError: The folder holds something, or two sources are runs of one cell with different content.
        StorageError: It cannot be written; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already, and a submission overwrites nothing; name a new folder")
    contents: dict[str, Content] = {}
    refused = []
    for source in sources:
        try:
            content = load(source)
        except DataError as error:
            refused.append(Refused(source, str(error)))
            continue
        earlier = contents.setdefault(content.record.cell, content)
        if earlier.files != content.files:
            raise UsageError(f"{source}: another run of cell {content.record.cell} is to be submitted too; choose one")
    if not refused:
        _write(list(contents.values()), out)
    return refused


def inspect(folder: Path) -> Inspected:
    """Look through a submission or a board for bundles, and recompute their scores.

    Raises:
        UsageError: The folder is neither, or holds too many bundles.
    """
    root = folder / BUNDLES
    if not _is_folder(root):
        raise UsageError(f"{folder}: no folder {BUNDLES!r} in it; name a submission or a board")
    refused: list[Refused] = []
    candidates: list[Path] = []
    for suite in _entries(root):
        if not _is_folder(suite):
            refused.append(_refuse(suite, "not the folder of a suite"))
            continue
        for entry in _entries(suite):
            if is_cell_id(entry.name) and _is_folder(entry):
                candidates.append(entry)
            else:
                refused.append(_refuse(entry, "not a bundle"))
    if len(candidates) > MOST:
        raise UsageError(f"{folder}: {len(candidates)} bundles, more than {MOST}; divide it")
    sound = []
    for candidate in candidates:
        try:
            _check_files(candidate)
            bundle.verify(candidate)
        except DataError as error:
            refused.append(Refused(candidate, str(error)))
        else:
            sound.append(candidate)
    if os.path.lexists(folder / LIST):
        refused += _check_list(folder, candidates)
    return Inspected(tuple(sound), tuple(refused))


def printable(text: str) -> str:
    """Show control characters as escapes, so that a name in somebody's submission cannot steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _write(contents: Iterable[Content], out: Path) -> None:
    # Complete at once, by one rename.
    stage = out.with_name(f".{out.name}.{secrets.token_hex(4)}.stage")
    listed = []
    try:
        make_folder(stage)
        for content in contents:
            record = content.record
            bundle.place(content, stage)
            listed.append(
                _Listed(
                    suite=record.spec.suite,
                    cell=record.cell,
                    label=record.spec.label,
                    manifest=_manifest(bundle_folder(stage, record.spec.suite, record.cell)),
                )
            )
        ordered = sorted(listed, key=lambda each: (each.suite, each.cell))
        write_json(stage / LIST, _List(bundles=tuple(ordered)).model_dump(mode="json"))
        with storage_errors(out):
            if out.exists():
                out.rmdir()
            stage.replace(out)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(error, out) from error
        raise


def _check_files(folder: Path) -> None:
    """Refuse everything but regular files of the known names, before any is opened.

    Raises:
        DataError: There is something else.
    """
    for entry in _entries(folder):
        if entry.name not in _FILES:
            raise DataError(_refuse(entry, "no file of a bundle").reason)
        if not stat.S_ISREG(entry.lstat().st_mode):
            raise DataError(_refuse(entry, "a link or another special file").reason)


def _check_list(folder: Path, candidates: Sequence[Path]) -> list[Refused]:
    """Compare the list of a submission with what lies there."""
    path = folder / LIST
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LIST_LIMIT:
        return [_refuse(path, f"not a regular file of up to {LIST_LIMIT // 2**20} MiB")]
    try:
        listed = _List.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError):
        return [_refuse(path, "not the list of a submission")]
    wanted = {(each.suite, each.cell): each.manifest for each in listed.bundles}
    there = {(each.parent.name, each.name): each for each in candidates}
    problems = [_refuse(there[key], f"not listed in {LIST}") for key in sorted(there.keys() - wanted.keys())]
    problems += [_refuse(path, f"lists {'/'.join(key)}, which is not there") for key in sorted(wanted.keys() - there)]
    problems += [
        _refuse(there[key], f"not the bundle that {LIST} lists")
        for key in sorted(there.keys() & wanted)
        if _manifest(there[key]) != wanted[key]
    ]
    foreign = [entry for entry in _entries(folder) if entry.name not in (BUNDLES, LIST)]
    return problems + [_refuse(entry, "no part of a submission") for entry in foreign]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; make it readable") from error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _manifest(folder: Path) -> str:
    path = folder / _MANIFEST
    # A link or a giant was refused before; its content is of no interest.
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LIST_LIMIT:
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refuse(path: Path, what: str) -> Refused:
    return Refused(path, printable(f"{path}: {what}; remove it, or submit anew with `lnlbench submit`"))
