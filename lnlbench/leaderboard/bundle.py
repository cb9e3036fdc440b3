"""Bundles: what a leaderboard keeps of a run. An immutable folder that holds enough to recompute its every score.

``<board>/bundles/<suite>/<cell id>/`` holds ``run.json`` (the run's ``result.json``, byte for byte), the run's
``metrics.jsonl``, packed, ``predictions.npz``, and ``manifest.json`` with size and SHA-256 of the other three. There
is no shared mutable store: a bundle appears by one rename, complete, and is never changed afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic_core import from_json

from lnlbench.errors import DataError, StorageError
from lnlbench.files import OS_FS, Fs, make_folder, storage_error, storage_errors
from lnlbench.leaderboard.content import (
    BUNDLE_LIMIT,
    JSON_LIMIT,
    METRICS,
    PREDICTIONS,
    RUN,
    Epoch,
    Predictions,
    check_confusion,
    check_scores,
    damaged,
    parse_metrics,
    parse_predictions,
    parse_record,
)
from lnlbench.records import FORMAT, RunRecord

BUNDLES = "bundles"
"""Folder of a board that holds the bundles, one folder per suite."""

LOCK_SECONDS = 600.0
"""How long a writer waits for the others of the same board."""

_MANIFEST = "manifest.json"
_NAME_IN_RUN = {RUN: "result.json", METRICS: "metrics.jsonl", PREDICTIONS: PREDICTIONS}
_STAGE, _RETIRED = ".stage", ".old"
_CELL = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Added:
    """What became of a run that was offered to a board."""

    folder: Path
    """The bundle."""
    suite: str
    """Suite id."""
    cell: str
    """Cell id."""
    outcome: Literal["added", "kept", "replaced"]
    """'kept': there was a bundle of this cell already, and it stays."""
    agrees: bool | None
    """Whether the earlier bundle has the same test predictions; ``None`` if there was none."""


@dataclass(frozen=True)
class Content:
    """The files of a finished or diverged run, checked against each other."""

    record: RunRecord
    """The result."""
    predictions: Mapping[str, Predictions]
    """Predictions by test set, the main one under the empty name; none at all if the run diverged."""
    files: Mapping[str, bytes]
    """Every file of the bundle but the manifest, by its name there."""


def bundle_folder(board: Path, suite: str, cell: str) -> Path:
    """Return where the bundle of a cell lives."""
    return board / BUNDLES / suite / cell


@contextlib.contextmanager
def locked(board: Path) -> Iterator[None]:
    """Hold the lock of a board, which is created if need be. The lock frees itself when its owner dies.

    Raises:
        StorageError: The board cannot be written, or another process holds the lock for too long.
    """
    make_folder(board)
    lock = FileLock(board / ".lock", timeout=LOCK_SECONDS, poll_interval=0.05)
    try:
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"{board} has been locked by another process for {LOCK_SECONDS:.0f} s; wait for it, then try again"
        ) from error
    except NotImplementedError as error:
        raise StorageError(f"{board} is on a file system without locks; choose a folder on another one") from error
    except OSError as error:
        raise storage_error(error, board) from error
    try:
        yield
    finally:
        lock.release()


def add(run_folder: Path, board: Path, replace: bool = False, fs: Fs = OS_FS) -> Added:
    """Copy a run's result into a board. The CSV is not rewritten; see :mod:`lnlbench.leaderboard.store`.

    Args:
        run_folder: A run folder with ``result.json``.
        board: The board's folder; created if need be.
        replace: Whether a bundle of the same cell is replaced. By default the first one stays.
        fs: The file system; tests hand in one that fails.

    Raises:
        DataError: The run is unfinished, or its record does not fit its metrics and predictions.
        StorageError: The board cannot be written; it is as it was before.
    """
    content = load_run(run_folder)
    with locked(board):
        return place(content, board, replace, fs)


def place(content: Content, board: Path, replace: bool = False, fs: Fs = OS_FS) -> Added:
    """Do what :func:`add` does, for a loaded run and a board whose lock the caller holds."""
    record = content.record
    target = bundle_folder(board, record.spec.suite, record.cell)
    suite_folder = target.parent
    with storage_errors(suite_folder):
        if not suite_folder.is_dir():
            make_folder(suite_folder)
            # New folders are entries of their parents, which have to reach the disk as well.
            fs.fsync_dir(board / BUNDLES)
            fs.fsync_dir(board)
        clean(suite_folder, fs)
        exists = target.exists()
        agrees = _agrees(content, target, replace) if exists else None
        if exists and not replace:
            return Added(target, record.spec.suite, record.cell, "kept", agrees)
        _move_in(content.files, target, exists, fs)
    return Added(target, record.spec.suite, record.cell, "replaced" if exists else "added", agrees)


def clean(suite_folder: Path, fs: Fs = OS_FS) -> None:
    """Remove what dead writers left behind. The caller holds the board's lock, hence every other writer is dead."""
    with storage_errors(suite_folder), os.scandir(suite_folder) as entries:
        leftovers = [Path(entry.path) for entry in entries if entry.name.startswith(".")]
        for leftover in leftovers:
            if leftover.suffix == _RETIRED:
                # A writer died while it replaced a bundle. If it got as far as moving the new one in, the old one is
                # waste; else it is the only one.
                target = suite_folder / leftover.name.split(".")[1]
                if target.exists():
                    shutil.rmtree(leftover)
                else:
                    fs.replace(leftover, target)
            elif leftover.suffix == _STAGE:
                shutil.rmtree(leftover)


def read(folder: Path, confusion: bool = True) -> RunRecord:
    """Read the record of a bundle: its form, its digest and its ids are checked, its scores are not recomputed.

    Args:
        folder: The bundle.
        confusion: Whether the record comes with the confusion matrix of its noise. No table needs it, and with a
            hundred classes it takes most of the time.

    Raises:
        DataError: The bundle is damaged, incomplete, or in the wrong place.
    """
    path = folder / RUN
    data = _read_file(path, JSON_LIMIT)
    expected = _read_manifest(folder).get(RUN)
    if expected != _fingerprint(data):
        raise damaged(path, f"its content is not what {_MANIFEST} says")
    record = parse_record(data, path, confusion)
    _check_place(record, folder)
    return record


def read_metrics(folder: Path) -> list[Epoch]:
    """Read what a bundle says of each epoch. The form is checked, accuracies are not recomputed.

    Raises:
        DataError: The metrics are damaged or missing; a run that diverged in its first epoch has none.
    """
    path = folder / METRICS
    return parse_metrics(_unpack(_read_file(path, BUNDLE_LIMIT), path), path)


def verify(folder: Path) -> None:
    """Recompute everything in a bundle that can be recomputed.

    The digests of all files, the cell id, every score on every test set, the selection scores, and the accuracies per
    epoch as far as predictions are kept. What stays possible is to invent predictions, or accuracies on a validation
    set, of which none are kept; only running the cell again reveals that.

    Raises:
        DataError: Something does not fit.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise DataError(f"{folder}: not a readable bundle ({error.strerror}); name an existing bundle") from error
    listed = _read_manifest(folder)
    if names != {*listed, _MANIFEST}:
        odd = sorted(names ^ {*listed, _MANIFEST})
        raise damaged(folder, f"{_MANIFEST} and the folder disagree about {', '.join(map(repr, odd))}")
    content = _load(folder, {name: folder / name for name in _NAME_IN_RUN})
    for name, data in content.files.items():
        if listed.get(name) != _fingerprint(data):
            raise damaged(folder / name, f"its content is not what {_MANIFEST} says")
    if _read_file(folder / _MANIFEST, JSON_LIMIT) != manifest(content.files):
        raise damaged(folder / _MANIFEST, "it lists other files or is not in the form it is written in")
    _check_place(content.record, folder)


def load_run(run_folder: Path) -> Content:
    """Load a run folder and check its record against its metrics and predictions.

    Raises:
        DataError: The run is unfinished, or its files do not fit together.
    """
    if not (run_folder / _NAME_IN_RUN[RUN]).exists():
        raise DataError(f"{run_folder}: no {_NAME_IN_RUN[RUN]}; finish the run before it is scored")
    return _load(run_folder, {name: run_folder / source for name, source in _NAME_IN_RUN.items()})


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``manifest.json`` for the given files."""
    value = {"format": FORMAT, "files": {name: _fingerprint(data) for name, data in files.items()}}
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _load(folder: Path, paths: Mapping[str, Path]) -> Content:
    """Read and check the files of a run or of a bundle."""
    record = parse_record(data := _read_file(paths[RUN], JSON_LIMIT), paths[RUN])
    files = {RUN: data}
    epochs: list[Epoch] = []
    if record.status == "finished" or paths[METRICS].exists():
        data = _read_file(paths[METRICS], BUNDLE_LIMIT)
        packed = paths[METRICS].name == METRICS
        # No time stamp, so that equal metrics give equal bytes.
        files[METRICS] = data if packed else gzip.compress(data, mtime=0)
        epochs = parse_metrics(_unpack(data, paths[METRICS]) if packed else data, paths[METRICS])
    predictions: dict[str, Predictions] = {}
    if record.status == "finished":
        files[PREDICTIONS] = _read_file(paths[PREDICTIONS], BUNDLE_LIMIT)
        predictions = parse_predictions(files[PREDICTIONS], paths[PREDICTIONS], record.spec.test_sets[1:])
    elif paths[PREDICTIONS].exists():
        raise damaged(paths[PREDICTIONS], "a diverged run has no predictions")
    if sum(map(len, files.values())) > BUNDLE_LIMIT:
        raise damaged(folder, f"more than {BUNDLE_LIMIT // 2**20} MiB")
    check_confusion(record, paths[RUN])
    if record.status == "finished":
        check_scores(record, epochs, predictions, paths)
    return Content(record, predictions, files)


def _unpack(data: bytes, path: Path) -> bytes:
    """Undo gzip, up to the limit of a bundle."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, BUNDLE_LIMIT)
    except zlib.error as error:
        raise damaged(path, f"not gzip: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise damaged(path, f"cut off, longer than it says, or more than {BUNDLE_LIMIT // 2**20} MiB")
    return text


def _check_place(record: RunRecord, folder: Path) -> None:
    place = (record.spec.suite, record.cell)
    # A relative path may be too short to tell, and an absolute one takes a while to make.
    if folder.parts[-2:] != place and folder.absolute().parts[-2:] != place:
        raise damaged(folder, f"holds cell {record.cell} of suite {record.spec.suite}, so it is in the wrong place")


def _agrees(content: Content, target: Path, replace: bool) -> bool:
    """Return whether the bundle that is there already has the predictions of this run."""
    try:
        earlier = _load(target, {name: target / name for name in _NAME_IN_RUN}).predictions
    except DataError:
        if replace:
            return False
        raise
    return earlier.keys() == content.predictions.keys() and all(
        earlier[name].same_as(predictions) for name, predictions in content.predictions.items()
    )


def _move_in(files: Mapping[str, bytes], target: Path, exists: bool, fs: Fs) -> None:
    token = f".{target.name}.{secrets.token_hex(4)}"
    stage, retired = target.with_name(token + _STAGE), target.with_name(token + _RETIRED)
    try:
        stage.mkdir()
        for name, data in {**files, _MANIFEST: manifest(files)}.items():
            with fs.open(stage / name, "xb") as file:
                file.write(data)
                file.flush()
                fs.fsync(file)
        fs.fsync_dir(stage)
        if exists:
            # A folder cannot be renamed over a full one. Whoever dies between these two renames is cleaned up after
            # by the next writer, who moves the old bundle back.
            fs.replace(target, retired)
        try:
            fs.replace(stage, target)
        except BaseException:
            if exists:
                fs.replace(retired, target)
            raise
        fs.fsync_dir(target.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _fingerprint(data: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        value = from_json(_read_file(path, JSON_LIMIT), allow_inf_nan=False)
    except ValueError as error:
        raise damaged(path, f"not JSON: {error}") from error
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict):
        raise damaged(path, "it lists no files")
    return files


def _read_file(path: Path, limit: int) -> bytes:
    """Read a regular file of bounded size; a pipe in a bundle must not make a reader wait for ever."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise damaged(path, "not a regular file")
            if status.st_size > limit:
                raise damaged(path, f"more than {limit // 2**20} MiB")
            # A rebuild reads hundreds of small files; a file object for each would double its time.
            data = os.read(file, status.st_size)
        finally:
            os.close(file)
    except OSError as error:
        what = "the file is missing" if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.strerror or str(error)
        raise damaged(path, what) from error
    if len(data) != status.st_size:
        raise damaged(path, "it changed while it was read")
    return data


def is_cell_id(name: str) -> bool:
    """Return whether a folder name has the form of a cell id."""
    return _CELL.fullmatch(name) is not None
