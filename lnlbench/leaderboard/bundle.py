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
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from lnlbench.errors import DataError, StorageError
from lnlbench.files import OS_FS, Fs, make_folder, storage_error, storage_errors
from lnlbench.records import FORMAT, RunRecord, Scores, canonical_json, digest, safe_name

BUNDLES = "bundles"
"""Folder of a board that holds the bundles, one folder per suite."""

JSON_LIMIT = 2**20
"""Bytes a JSON document of a bundle may have: ``run.json``, ``manifest.json``, or one line of ``metrics.jsonl``."""

BUNDLE_LIMIT = 50 * 2**20
"""Bytes a bundle may have, its predictions counted unpacked."""

LOCK_SECONDS = 600.0
"""How long a writer waits for the others of the same board."""

TOLERANCE = 1e-6
"""Allowed difference between a stored score and the recomputed one: room for float32 means, but for no test image."""

FINAL_EPOCHS = 10
"""Epochs that ``last10`` and the selection scores are averaged over."""

_RUN, _METRICS, _PREDICTIONS, _MANIFEST = "run.json", "metrics.jsonl.gz", "predictions.npz", "manifest.json"
_NAME_IN_RUN = {_RUN: "result.json", _METRICS: "metrics.jsonl", _PREDICTIONS: _PREDICTIONS}
_ARRAYS = ("test_labels", "epochs", "predictions")
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
class Predictions:
    """Contents of ``predictions.npz``: K epochs, M test images."""

    labels: NDArray[np.integer[Any]]
    """True labels of the test images, shape (M,)."""
    epochs: NDArray[np.integer[Any]]
    """Epochs whose predictions are kept, ascending, shape (K,)."""
    classes: NDArray[np.integer[Any]]
    """Predicted classes, shape (K, M)."""

    def same_as(self, other: Predictions) -> bool:
        """Return whether labels, epochs and predicted classes are all equal."""
        return (
            np.array_equal(self.labels, other.labels)
            and np.array_equal(self.epochs, other.epochs)
            and np.array_equal(self.classes, other.classes)
        )

    def accuracies(self) -> dict[int, float]:
        """Return the test accuracy of each kept epoch."""
        correct_K = (self.classes == self.labels).sum(axis=1)
        count = len(self.labels)
        return {int(epoch): int(correct) / count for epoch, correct in zip(self.epochs, correct_K, strict=True)}


@dataclass(frozen=True)
class Content:
    """The files of a finished or diverged run, checked against each other."""

    record: RunRecord
    """The result."""
    predictions: Predictions | None
    """Test predictions; ``None`` if the run diverged."""
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
    lock = FileLock(board / ".lock", timeout=LOCK_SECONDS, poll_interval=0.005)
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
    path = folder / _RUN
    data = _read_file(path, JSON_LIMIT)
    expected = _read_manifest(folder).get(_RUN)
    if expected != _fingerprint(data):
        raise _damaged(path, f"its content is not what {_MANIFEST} says")
    record = parse_record(data, path, confusion)
    _check_place(record, folder)
    return record


def verify(folder: Path) -> None:
    """Recompute everything in a bundle that can be recomputed.

    The digests of all files, the cell id, all four scores, the selection scores, and the accuracies per epoch as far
    as predictions are kept. What stays possible is to invent predictions; only running the cell again reveals that.

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
        raise _damaged(folder, f"{_MANIFEST} and the folder disagree about {', '.join(map(repr, odd))}")
    content = _load(folder, {name: folder / name for name in _NAME_IN_RUN})
    for name, data in content.files.items():
        if listed.get(name) != _fingerprint(data):
            raise _damaged(folder / name, f"its content is not what {_MANIFEST} says")
    if _read_file(folder / _MANIFEST, JSON_LIMIT) != manifest(content.files):
        raise _damaged(folder / _MANIFEST, "it lists other files or is not in the form it is written in")
    _check_place(content.record, folder)


def load_run(run_folder: Path) -> Content:
    """Load a run folder and check its record against its metrics and predictions.

    Raises:
        DataError: The run is unfinished, or its files do not fit together.
    """
    if not (run_folder / _NAME_IN_RUN[_RUN]).exists():
        raise DataError(f"{run_folder}: no {_NAME_IN_RUN[_RUN]}; finish the run before it is scored")
    return _load(run_folder, {name: run_folder / source for name, source in _NAME_IN_RUN.items()})


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``manifest.json`` for the given files."""
    value = {"format": FORMAT, "files": {name: _fingerprint(data) for name, data in files.items()}}
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def parse_record(data: bytes, path: Path, confusion: bool = True) -> RunRecord:
    """Read a record from JSON; ``path`` is for the messages, ``confusion`` as for :func:`read`.

    Raises:
        DataError: It is not a record this version can read, holds NaN or infinity, or its cell id is not the digest
            of its specification.
    """
    try:
        # This parser is the fastest at hand; it refuses NaN, but not 1e999.
        raw = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise _damaged(path, f"not JSON without NaN: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        raise DataError(
            f"{path}: format {raw['format']} is newer than {FORMAT}, the newest this version reads; upgrade lnlbench"
        )
    if not confusion and isinstance(raw, dict) and isinstance(raw.get("noise"), dict):
        raw["noise"]["confusion"] = []
    try:
        record = RunRecord.model_validate(raw)
        # The id is taken from the text, since a later version may give the parsed specification additional fields.
        cell = digest(raw["spec"])[:16]
        # The remaining places that may hold an infinite number; the digest has just refused one in the specification.
        canonical_json([record.noise.realised_rate, raw["scores"], raw.get("selection"), raw["timing"]])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise _damaged(path, f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"holds a value that JSON has no place for ({type(error).__name__})") from error
    if record.cell != cell:
        raise _damaged(path, f"cell is {record.cell!r}, but the specification has the id {cell!r}")
    if safe_name(record.spec.suite) != record.spec.suite or record.spec.suite.startswith(".") or not record.spec.suite:
        raise _damaged(path, f"spec.suite: {record.spec.suite!r} cannot be the name of a folder")
    if (record.scores is not None) != (record.status == "finished"):
        raise _damaged(path, f"a {record.status} run {'without' if record.scores is None else 'with'} scores")
    return record


def _load(folder: Path, paths: Mapping[str, Path]) -> Content:
    """Read and check the files of a run or of a bundle."""
    record = parse_record(data := _read_file(paths[_RUN], JSON_LIMIT), paths[_RUN])
    files = {_RUN: data}
    epochs: list[_Epoch] = []
    if record.status == "finished" or paths[_METRICS].exists():
        data = _read_file(paths[_METRICS], BUNDLE_LIMIT)
        packed = paths[_METRICS].name == _METRICS
        # No time stamp, so that equal metrics give equal bytes.
        files[_METRICS] = data if packed else gzip.compress(data, mtime=0)
        epochs = _parse_metrics(_unpack(data, paths[_METRICS]) if packed else data, paths[_METRICS])
    predictions = None
    if record.status == "finished":
        files[_PREDICTIONS] = _read_file(paths[_PREDICTIONS], BUNDLE_LIMIT)
        predictions = _parse_predictions(files[_PREDICTIONS], paths[_PREDICTIONS])
    elif paths[_PREDICTIONS].exists():
        raise _damaged(paths[_PREDICTIONS], "a diverged run has no predictions")
    if sum(map(len, files.values())) > BUNDLE_LIMIT:
        raise _damaged(folder, f"more than {BUNDLE_LIMIT // 2**20} MiB")
    _check_noise(record, paths[_RUN])
    if predictions is not None:
        _check_scores(record, epochs, predictions, paths)
    return Content(record, predictions, files)


@dataclass(frozen=True)
class _Epoch:
    """What one line of ``metrics.jsonl`` says about scores."""

    test_accuracy: float
    selection: dict[str, float]


def _unpack(data: bytes, path: Path) -> bytes:
    """Undo gzip, up to the limit of a bundle."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, BUNDLE_LIMIT)
    except zlib.error as error:
        raise _damaged(path, f"not gzip: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise _damaged(path, f"cut off, longer than it says, or more than {BUNDLE_LIMIT // 2**20} MiB")
    return text


def _parse_metrics(data: bytes, path: Path) -> list[_Epoch]:
    lines = data.split(b"\n")
    if lines.pop() != b"":
        raise _damaged(path, "its last line is cut off")
    epochs = []
    for number, line in enumerate(lines):
        where = f"line {number + 1}"
        if len(line) > JSON_LIMIT:
            raise _damaged(path, f"{where} has more than {JSON_LIMIT // 2**20} MiB")
        try:
            value = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            raise _damaged(path, f"{where} is not JSON without NaN: {error}") from error
        if not isinstance(value, dict) or value.get("epoch") != number:
            raise _damaged(path, f"{where} is not about epoch {number}")
        accuracy, selection = value.get("test_accuracy"), value.get("selection") or {}
        if not _is_finite(accuracy) or not 0 <= accuracy <= 1:
            raise _damaged(path, f"{where}: test_accuracy is {accuracy!r}, not a fraction")
        if not isinstance(selection, dict):
            raise _damaged(path, f"{where}: selection is not an object")
        # A score that does not exist in an epoch is left out or null.
        present = {name: score for name, score in selection.items() if score is not None}
        if not all(map(_is_finite, present.values())):
            raise _damaged(path, f"{where}: a selection score is not a finite number")
        epochs.append(_Epoch(float(accuracy), present))
    return epochs


def _parse_predictions(data: bytes, path: Path) -> Predictions:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
        if set(members) != {f"{name}.npy" for name in _ARRAYS} or len(archive.infolist()) != len(_ARRAYS):
            raise _damaged(path, f"holds {sorted(members)}, not {', '.join(_ARRAYS)}")
        if sum(members.values()) > BUNDLE_LIMIT:
            raise _damaged(path, f"more than {BUNDLE_LIMIT // 2**20} MiB unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            labels_M, epochs_K, predictions_KM = (arrays[name] for name in _ARRAYS)
    except DataError:
        raise
    # A hostile archive can make zipfile, zlib, NumPy or the parser of array headers raise nearly anything.
    except Exception as error:
        raise _damaged(path, f"not a readable archive of arrays ({type(error).__name__})") from error
    for name, array, dimensions in (
        ("test_labels", labels_M, 1),
        ("epochs", epochs_K, 1),
        ("predictions", predictions_KM, 2),
    ):
        if array.ndim != dimensions or array.dtype.kind not in "ui":
            raise _damaged(path, f"{name} is {array.dtype} {array.shape}, not {dimensions}-dimensional integers")
    if len(labels_M) == 0 or predictions_KM.shape != (len(epochs_K), len(labels_M)):
        raise _damaged(
            path, f"predictions are {predictions_KM.shape} for {len(epochs_K)} epochs and {len(labels_M)} test labels"
        )
    return Predictions(labels_M, epochs_K, predictions_KM)


def _check_noise(record: RunRecord, path: Path) -> None:
    """Check the realised noise against the confusion matrix, where the true labels are known."""
    confusion = record.noise.confusion
    total = sum(map(sum, confusion))
    if total == 0:
        return
    changed = total - sum(row[true] for true, row in enumerate(confusion) if true < len(row))
    if record.noise.num_changed != changed:
        raise _damaged(path, f"noise.num_changed is {record.noise.num_changed}, its confusion matrix says {changed}")
    _check_number(path, "noise.realised_rate", record.noise.realised_rate, changed / total)


def _check_scores(record: RunRecord, epochs: list[_Epoch], predictions: Predictions, paths: Mapping[str, Path]) -> None:
    """Recompute the scores of a finished run and compare."""
    path = paths[_PREDICTIONS]
    if not epochs:
        raise _damaged(paths[_METRICS], "a finished run without an epoch")
    if len(predictions.labels) != record.data.num_test:
        raise _damaged(path, f"{len(predictions.labels)} test labels, the record says {record.data.num_test}")
    for name, array in (("test_labels", predictions.labels), ("predictions", predictions.classes)):
        if int(array.min()) < 0 or int(array.max()) >= record.data.num_classes:
            raise _damaged(path, f"{name} has a class outside 0..{record.data.num_classes - 1}")
    recorded = [epoch.test_accuracy for epoch in epochs]
    best_epoch = recorded.index(max(recorded))
    final = range(max(0, len(epochs) - FINAL_EPOCHS), len(epochs))
    expected = sorted({*final, best_epoch})
    if predictions.epochs.tolist() != expected:
        raise _damaged(path, f"holds epochs {predictions.epochs.tolist()}, the metrics ask for {expected}")
    accuracies = predictions.accuracies()
    for epoch, accuracy in accuracies.items():
        _check_number(paths[_METRICS], f"test_accuracy of epoch {epoch}", recorded[epoch], accuracy)
    scores = Scores(
        last10=math.fsum(accuracies[epoch] for epoch in final) / len(final),
        last=accuracies[final[-1]],
        best=accuracies[best_epoch],
        best_epoch=best_epoch,
    )
    for name, value in scores.model_dump().items():
        _check_number(paths[_RUN], f"scores.{name}", getattr(record.scores, name), value)
    selection = _final_selection(epochs)
    if set(selection) != set(record.selection):
        odd = sorted(set(selection) ^ set(record.selection))
        raise _damaged(paths[_RUN], f"selection: record and metrics disagree about {', '.join(odd)}")
    for name, value in selection.items():
        _check_number(paths[_RUN], f"selection.{name}", record.selection[name], value)


def _final_selection(epochs: list[_Epoch]) -> dict[str, float]:
    """Average each selection score over those of the final ten epochs in which it exists."""
    values: dict[str, list[float]] = {}
    for epoch in epochs[-FINAL_EPOCHS:]:
        for name, score in epoch.selection.items():
            values.setdefault(name, []).append(score)
    return {name: math.fsum(each) / len(each) for name, each in values.items()}


def _check_number(path: Path, name: str, stored: float, recomputed: float) -> None:
    if abs(stored - recomputed) > TOLERANCE * max(1.0, abs(recomputed)):
        raise _damaged(path, f"{name} is {stored:.6g}, recomputed it is {recomputed:.6g}")


def _check_place(record: RunRecord, folder: Path) -> None:
    folder = folder.absolute()
    if (folder.parent.name, folder.name) != (record.spec.suite, record.cell):
        raise _damaged(folder, f"holds cell {record.cell} of suite {record.spec.suite}, so it is in the wrong place")


def _agrees(content: Content, target: Path, replace: bool) -> bool:
    """Return whether the bundle that is there already has the predictions of this run."""
    try:
        earlier = _load(target, {name: target / name for name in _NAME_IN_RUN}).predictions
    except DataError:
        if replace:
            return False
        raise
    if earlier is None or content.predictions is None:
        return earlier is content.predictions
    return earlier.same_as(content.predictions)


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
        raise _damaged(path, f"not JSON: {error}") from error
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict):
        raise _damaged(path, "it lists no files")
    return files


def _read_file(path: Path, limit: int) -> bytes:
    """Read a regular file of bounded size; a pipe in a bundle must not make a reader wait for ever."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path, "not a regular file")
            if status.st_size > limit:
                raise _damaged(path, f"more than {limit // 2**20} MiB")
            # A rebuild reads hundreds of small files; a file object for each would double its time.
            data = os.read(file, status.st_size)
        finally:
            os.close(file)
    except OSError as error:
        what = "the file is missing" if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.strerror or str(error)
        raise _damaged(path, what) from error
    if len(data) != status.st_size:
        raise _damaged(path, "it changed while it was read")
    return data


def _is_finite(value: object) -> TypeGuard[float]:
    # By comparison, which unlike math.isfinite copes with integers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 <= value <= 1e300


def _damaged(path: Path, what: str) -> DataError:
    # Parsers and file names may bring line breaks; the message stays one line.
    text = " ".join(f"{path}: {what}".split())
    return DataError(f"{text}; restore the original files or run the cell again")


def is_cell_id(name: str) -> bool:
    """Return whether a folder name has the form of a cell id."""
    return _CELL.fullmatch(name) is not None
