"""How far the runs on a board have been checked, beyond what every bundle has to pass to be there.

``<board>/trust/<suite>.json`` names the cells that are more than claimed. An entry holds for one bundle: it carries
the SHA-256 of the bundle's manifest, so that a bundle that is replaced starts as claimed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lnlbench.errors import DataError
from lnlbench.files import OS_FS, Fs, make_folder, write_json
from lnlbench.leaderboard.aggregate import CLAIMED, TIERS
from lnlbench.leaderboard.bundle import bundle_folder, locked
from lnlbench.records import FORMAT

TRUST = "trust"
"""Folder of a board with a file for each suite."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tier: Literal["validated", "re-run"] = Field(description="How far it was checked.")
    manifest: str = Field(description="SHA-256 of the manifest of the bundle that was checked.")


class _Trust(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(FORMAT, description="Layout of this file.")
    cells: dict[str, _Entry] = Field(description="Entries by cell id.")


def read_trust(board: Path, suite: str) -> dict[str, str]:
    """Return the tiers of the runs of a suite by cell id; those that are not in it are claimed.

    Raises:
        DataError: The file is damaged.
    """
    entries = _read(board, suite)
    return {cell: each.tier for cell, each in entries.items() if each.manifest == _manifest(board, suite, cell)}


def raise_trust(board: Path, suite: str, cells: Iterable[str], tier: str, fs: Fs = OS_FS) -> None:
    """Record that bundles of a board were checked. No tier is ever lowered. The CSV is not rewritten.

    Args:
        board: The board's folder.
        suite: Suite id.
        cells: Cells that have a bundle there.
        tier: One of :data:`TIERS` above claimed.
        fs: The file system; tests hand in one that fails.

    Raises:
        DataError: The file is damaged.
        StorageError: It cannot be written; it is as it was.
    """
    with locked(board):
        held = read_trust(board, suite)
        cells = [cell for cell in cells if TIERS.index(held.get(cell, CLAIMED)) < TIERS.index(tier)]
        if not cells:
            return
        # Entries of bundles that are gone or were replaced say nothing any more.
        entries = {cell: {"tier": each, "manifest": _manifest(board, suite, cell)} for cell, each in held.items()}
        entries |= {cell: {"tier": tier, "manifest": _manifest(board, suite, cell)} for cell in cells}
        content = _Trust.model_validate({"cells": entries})
        write_json(make_folder(board / TRUST) / f"{suite}.json", content.model_dump(mode="json"), fs)


def _read(board: Path, suite: str) -> dict[str, _Entry]:
    path = board / TRUST / f"{suite}.json"
    try:
        return _Trust.model_validate_json(path.read_bytes()).cells
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: {where!r}: {first['msg']}; restore it, or delete it and validate again") from error


def _manifest(board: Path, suite: str, cell: str) -> str:
    try:
        return hashlib.sha256((bundle_folder(board, suite, cell) / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return ""
