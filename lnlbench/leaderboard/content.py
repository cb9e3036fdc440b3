"""What the files of a bundle say, and whether they fit together: scores are recomputed from metrics and predictions.

Of every test set, ``predictions.npz`` has the test labels and the classes predicted after the epochs that matter: the
final ten, the best one of each test set, and the best one of the clean validation set if there is one. On the
validation set itself no predictions are kept; its accuracies are in the metrics.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from lnlbench.errors import DataError
from lnlbench.records import FORMAT, RunRecord, Scores, cell_id, safe_name

JSON_LIMIT = 2**20
"""Bytes a JSON document of a bundle may have: ``run.json``, ``manifest.json``, or one line of ``metrics.jsonl``."""

BUNDLE_LIMIT = 50 * 2**20
"""Bytes a bundle may have, its predictions counted unpacked."""

TOLERANCE = 1e-6
"""Allowed difference between a stored score and the recomputed one: room for float32 means, but for no test image."""

FINAL_EPOCHS = 10
"""Epochs that ``last10`` and the selection scores are averaged over."""

RUN, METRICS, PREDICTIONS = "run.json", "metrics.jsonl.gz", "predictions.npz"
"""Files of a bundle, by their names there."""

MAIN = ""
"""Stands for the main test set, whose arrays and accuracies are filed without a prefix."""

_VALIDATION = "validation"
_NUMBERS = (int, float)
_MESSAGE_LIMIT = 500


@dataclass(frozen=True)
class Predictions:
    """What was predicted on the M images of one test set after each of K epochs."""

    labels: NDArray[np.integer[Any]]
    """True labels, shape (M,)."""
    epochs: NDArray[np.integer[Any]]
    """Epochs whose predictions are kept, ascending, shape (K,)."""
    classes: NDArray[np.integer[Any]]
    """Predicted classes, shape (K, M)."""
    top5: NDArray[np.bool_] | None
    """Whether the true class was among the first five, shape (K, M); ``None`` if that was not looked at."""

    def same_as(self, other: Predictions) -> bool:
        """Return whether everything is equal."""
        if self.top5 is None or other.top5 is None:
            same_top5 = self.top5 is other.top5
        else:
            same_top5 = np.array_equal(self.top5, other.top5)
        return (
            same_top5
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.epochs, other.epochs)
            and np.array_equal(self.classes, other.classes)
        )

    def accuracies(self) -> dict[int, float]:
        """Return the accuracy of each kept epoch."""
        return self._shares(self.classes == self.labels)

    def top5_accuracies(self) -> dict[int, float] | None:
        """Return the share of images with the true class among the first five, for each kept epoch."""
        return None if self.top5 is None else self._shares(self.top5)

    def _shares(self, hits_KM: NDArray[np.bool_]) -> dict[int, float]:
        count = len(self.labels)
        return {int(epoch): int(hits) / count for epoch, hits in zip(self.epochs, hits_KM.sum(axis=1), strict=True)}


@dataclass(frozen=True)
class Epoch:
    """What one line of ``metrics.jsonl`` says."""

    accuracies: dict[str, float]
    """By name: :data:`MAIN`, further test sets, either with ``top5``, and ``validation``."""
    selection: dict[str, float]
    """Selection scores that exist in this epoch."""
    logged: dict[str, float]
    """What the method logged, as far as it is a finite number."""


def parse_record(data: bytes, path: Path, confusion: bool = True) -> RunRecord:
    """Read a record from JSON.

    Args:
        data: The text.
        path: Where it comes from, for messages.
        confusion: Whether the record comes with the confusion matrix of its noise.

    Raises:
        DataError: It is not a record this version can read, holds NaN or infinity, contradicts itself, or its cell id
            is not the digest of its specification.
    """
    try:
        # This parser is the fastest at hand; it refuses NaN, but not 1e999.
        raw = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise damaged(path, f"not JSON without NaN: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        raise DataError(
            f"{path}: format {raw['format']} is newer than {FORMAT}, the newest this version reads; upgrade lnlbench"
        )
    _adapt(raw, confusion)
    try:
        record = RunRecord.model_validate(raw)
        # The id is taken from the text, since a later version may give the parsed specification additional fields. An
        # infinite number in an option has no digest.
        cell = cell_id(raw["spec"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise damaged(path, f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"holds a value that JSON has no place for ({type(error).__name__})") from error
    if record.cell != cell:
        raise damaged(path, f"cell is {record.cell!r}, but the specification has the id {cell!r}")
    if safe_name(record.spec.suite) != record.spec.suite or record.spec.suite.startswith(".") or not record.spec.suite:
        raise damaged(path, f"spec.suite: {record.spec.suite!r} cannot be the name of a folder")
    _check_parts(record, path)
    return record


def _adapt(raw: Any, confusion: bool) -> None:
    """Leave out the confusion matrix if nobody needs it, and add what older records did not have to say."""
    if not isinstance(raw, dict) or not isinstance(raw.get("noise"), dict):
        return
    if not confusion and isinstance(raw["noise"].get("confusion"), list):
        raw["noise"]["confusion"] = []
    if isinstance(raw.get("data"), dict):
        # Before there were labels of unknown truth, all of them were known.
        raw["noise"].setdefault("num_known", raw["data"].get("num_train"))


def _check_parts(record: RunRecord, path: Path) -> None:
    """Check that the record has the scores its status and its test sets ask for, and counts that can be."""
    finished = record.status == "finished"
    if (record.scores is not None) != finished:
        raise damaged(path, f"a {record.status} run {'without' if record.scores is None else 'with'} scores")
    names = record.spec.test_sets
    odd = [name for name in names if not name or safe_name(name) != name]
    if odd:
        raise damaged(path, f"spec.test_sets: {odd[0]!r} cannot be the name of a test set")
    further = names[1:]
    keys = [*names[:1], _top5(MAIN), _VALIDATION, *further, *map(_top5, further)]
    if len(set(keys)) != len(keys):
        raise damaged(path, f"spec.test_sets: {', '.join(names)} cannot be told apart")
    for field, held, wanted in (
        ("further_scores", record.further_scores, further if finished else ()),
        ("data.num_further_test", record.data.num_further_test, further),
    ):
        if set(held) != set(wanted):
            raise damaged(path, f"{field} is about {_listed(held)}, not {_listed(wanted)}")
    noise = record.noise
    counts = [0, noise.num_ood, noise.num_changed, noise.num_known, record.data.num_train]
    if counts != sorted(counts) or record.data.num_train == 0:
        raise damaged(
            path,
            f"noise: of {record.data.num_train} training samples {noise.num_known} known, of these {noise.num_changed} "
            f"changed, of these {noise.num_ood} out of distribution cannot be",
        )
    rate = noise.num_changed / noise.num_known if noise.num_known else None
    _check_number(path, "noise.realised_rate", noise.realised_rate, rate)


def parse_metrics(data: bytes, path: Path) -> list[Epoch]:
    """Read ``metrics.jsonl``, unpacked.

    Raises:
        DataError: A line is not what it should be.
    """
    lines = data.split(b"\n")
    if lines.pop() != b"":
        raise damaged(path, "its last line is cut off")
    return [_parse_epoch(line, number, path) for number, line in enumerate(lines)]


def _parse_epoch(line: bytes, number: int, path: Path) -> Epoch:
    where = f"line {number + 1}"
    if len(line) > JSON_LIMIT:
        raise damaged(path, f"{where} has more than {JSON_LIMIT // 2**20} MiB")
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise damaged(path, f"{where} is not JSON without NaN: {error}") from error
    if not isinstance(value, dict) or value.get("epoch") != number:
        raise damaged(path, f"{where} is not about epoch {number}")
    accuracies, selection = value.get("accuracies") or {}, value.get("selection") or {}
    for name, part in (("accuracies", accuracies), ("selection", selection)):
        if not isinstance(part, dict):
            raise damaged(path, f"{where}: {name} is not an object")
    for name, accuracy in (("test_accuracy", value.get("test_accuracy")), *accuracies.items()):
        if not _is_finite(accuracy) or not 0 <= accuracy <= 1:
            raise damaged(path, f"{where}: {name} is {accuracy!r}, not a fraction")
    # A score that does not exist in an epoch is left out or null.
    present = {name: score for name, score in selection.items() if score is not None}
    if not all(map(_is_finite, present.values())):
        raise damaged(path, f"{where}: a selection score is not a finite number")
    logged = value.get("logged")
    numbers = logged.items() if isinstance(logged, dict) else ()
    finite = {name: float(number) for name, number in numbers if _is_finite(number)}
    return Epoch({MAIN: value["test_accuracy"], **accuracies}, present, finite)


def parse_predictions(data: bytes, path: Path, further: Sequence[str] = ()) -> dict[str, Predictions]:
    """Read ``predictions.npz``.

    Args:
        data: The archive.
        path: Where it comes from, for messages.
        further: Names of the test sets beside the main one.

    Returns:
        Predictions by test set: :data:`MAIN` and the further ones.

    Raises:
        DataError: It is not an archive of these arrays in their shapes, or too large.
    """
    arrays = _unpack_arrays(data, path, (MAIN, *further))
    epochs_K = arrays["epochs"]
    _check_array(path, "epochs", epochs_K, 1, "ui")
    predictions = {}
    for test_set in (MAIN, *further):
        names = [_key(test_set, what) for what in ("test_labels", "predictions", "top5")]
        labels_M, classes_KM, top5_KM = arrays[names[0]], arrays[names[1]], arrays.get(names[2])
        _check_array(path, names[0], labels_M, 1, "ui")
        _check_array(path, names[1], classes_KM, 2, "ui")
        shape = (len(epochs_K), len(labels_M))
        if len(labels_M) == 0 or classes_KM.shape != shape:
            raise damaged(
                path, f"{names[1]} has shape {classes_KM.shape} for {shape[0]} epochs, {shape[1]} test labels"
            )
        if top5_KM is not None:
            _check_array(path, names[2], top5_KM, 2, "b")
            if top5_KM.shape != shape:
                raise damaged(path, f"{names[2]} has shape {top5_KM.shape}, {names[1]} {shape}")
        predictions[test_set] = Predictions(labels_M, epochs_K, classes_KM, top5_KM)
    return predictions


def _unpack_arrays(data: bytes, path: Path, test_sets: Sequence[str]) -> dict[str, NDArray[Any]]:
    needed = {"epochs", *(_key(name, what) for name in test_sets for what in ("test_labels", "predictions"))}
    allowed = needed | {_top5(name) for name in test_sets}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
        held = {name for name, info in members if info.filename.endswith(".npy")}
        if not needed <= held <= allowed or len(members) != len(held):
            raise damaged(path, f"holds {sorted(info.filename for _, info in members)}, not {_listed(needed)}")
        if sum(info.file_size for _, info in members) > BUNDLE_LIMIT:
            raise damaged(path, f"more than {BUNDLE_LIMIT // 2**20} MiB unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in held}
    except DataError:
        raise
    # A hostile archive can make zipfile, zlib, NumPy or the parser of array headers raise nearly anything.
    except Exception as error:
        raise damaged(path, f"not a readable archive of arrays ({type(error).__name__})") from error


def _check_array(path: Path, name: str, array: NDArray[Any], dimensions: int, kinds: str) -> None:
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        wanted = "booleans" if kinds == "b" else "integers"
        raise damaged(path, f"{name} is {array.dtype} {array.shape}, not {dimensions}-dimensional {wanted}")


def check_confusion(record: RunRecord, path: Path) -> None:
    """Check the counts of a record's noise against its confusion matrix, as far as true classes are known.

    A sample whose true class is known counts as known, and as changed if its given label is another one.

    Raises:
        DataError: They contradict each other.
    """
    noise, classes = record.noise, record.data.num_classes
    if noise.confusion is None:
        return
    if len(noise.confusion) < classes or any(len(row) != classes or min(row, default=0) < 0 for row in noise.confusion):
        raise damaged(
            path, f"noise.confusion is not a table of counts with {classes} columns and at least as many rows"
        )
    total = sum(map(sum, noise.confusion))
    changed = total - sum(noise.confusion[each][each] for each in range(classes))
    ood = sum(map(sum, noise.confusion[classes:]))
    # What the matrix does not show are samples known to be right or wrong, though not what they truly are.
    unseen = (noise.num_ood - ood, noise.num_changed - changed, noise.num_known - total)
    if not 0 <= unseen[0] <= unseen[1] <= unseen[2]:
        raise damaged(
            path,
            f"noise: {noise.num_ood} out of distribution, {noise.num_changed} changed, {noise.num_known} known do not "
            f"fit the {ood}, {changed}, {total} of its confusion matrix",
        )


def check_scores(
    record: RunRecord, epochs: Sequence[Epoch], predictions: Mapping[str, Predictions], paths: Mapping[str, Path]
) -> None:
    """Recompute the scores of a finished run and compare.

    Args:
        record: The record.
        epochs: Its metrics.
        predictions: Its predictions by test set.
        paths: Where :data:`RUN`, :data:`METRICS` and :data:`PREDICTIONS` were read, for messages.

    Raises:
        DataError: Something differs.
    """
    if not epochs:
        raise damaged(paths[METRICS], "a finished run without an epoch")
    _check_accuracy_names(record, epochs, predictions, paths[METRICS])
    best = {name: _best_epoch(epochs, name) for name in predictions}
    best_val = _best_epoch(epochs, _VALIDATION) if record.data.num_validation else None
    if record.best_val_epoch != best_val:
        raise damaged(paths[RUN], f"best_val_epoch is {record.best_val_epoch}, the metrics say {best_val}")
    final = range(max(0, len(epochs) - FINAL_EPOCHS), len(epochs))
    held = predictions[MAIN].epochs.tolist()
    wanted = sorted({*final, *best.values()} | ({best_val} if best_val is not None else set()))
    if held != wanted:
        raise damaged(paths[PREDICTIONS], f"holds epochs {held}, the metrics ask for {wanted}")
    for name, each in predictions.items():
        _check_images(record, name, each, paths[PREDICTIONS])
        _check_epochs(epochs, name, each, paths[METRICS])
        recorded = record.further_scores[name] if name else record.scores
        for score, value in _recompute(each, final, best[name], best_val).model_dump().items():
            where = f"further_scores.{name}.{score}" if name else f"scores.{score}"
            _check_number(paths[RUN], where, getattr(recorded, score), value)
    _check_selection(record, epochs, paths[RUN])


def _check_accuracy_names(
    record: RunRecord, epochs: Sequence[Epoch], predictions: Mapping[str, Predictions], path: Path
) -> None:
    """Check that every epoch has the accuracies that belong to the predictions, and no other."""
    wanted = {*predictions, *(_top5(name) for name, each in predictions.items() if each.top5 is not None)}
    if record.data.num_validation:
        wanted.add(_VALIDATION)
    for number, epoch in enumerate(epochs, start=1):
        if epoch.accuracies.keys() != wanted:
            odd = epoch.accuracies.keys() ^ wanted
            raise damaged(path, f"line {number}: accuracies and predictions disagree about {_listed(odd)}")


def _check_images(record: RunRecord, test_set: str, predictions: Predictions, path: Path) -> None:
    """Check count and classes of a test set."""
    labels, classes = _key(test_set, "test_labels"), _key(test_set, "predictions")
    count = record.data.num_further_test[test_set] if test_set else record.data.num_test
    if len(predictions.labels) != count:
        raise damaged(path, f"{labels}: {len(predictions.labels)} of them, the record says {count}")
    for name, array in ((labels, predictions.labels), (classes, predictions.classes)):
        if int(array.min()) < 0 or int(array.max()) >= record.data.num_classes:
            raise damaged(path, f"{name} has a class outside 0..{record.data.num_classes - 1}")


def _check_epochs(epochs: Sequence[Epoch], test_set: str, predictions: Predictions, path: Path) -> None:
    """Check the accuracies of the metrics, as far as predictions are kept."""
    for name, accuracies in (
        (test_set, predictions.accuracies()),
        (_top5(test_set), predictions.top5_accuracies() or {}),
    ):
        for epoch, accuracy in accuracies.items():
            _check_number(path, f"{name or 'test_accuracy'} of epoch {epoch}", epochs[epoch].accuracies[name], accuracy)


def _recompute(predictions: Predictions, final: Sequence[int], best_epoch: int, best_val_epoch: int | None) -> Scores:
    """Compute the scores on one test set."""
    accuracies, top5 = predictions.accuracies(), predictions.top5_accuracies()
    return Scores(
        last10=_mean(accuracies[epoch] for epoch in final),
        last=accuracies[final[-1]],
        best=accuracies[best_epoch],
        best_epoch=best_epoch,
        best_val=None if best_val_epoch is None else accuracies[best_val_epoch],
        top5_last10=None if top5 is None else _mean(top5[epoch] for epoch in final),
        top5_last=None if top5 is None else top5[final[-1]],
        top5_best=None if top5 is None else top5[best_epoch],
    )


def _check_selection(record: RunRecord, epochs: Sequence[Epoch], path: Path) -> None:
    """Check the averages of selection scores over those of the final ten epochs in which they exist."""
    values: dict[str, list[float]] = {}
    for epoch in epochs[-FINAL_EPOCHS:]:
        for name, score in epoch.selection.items():
            values.setdefault(name, []).append(score)
    if values.keys() != record.selection.keys():
        raise damaged(
            path, f"selection: record and metrics disagree about {_listed(values.keys() ^ record.selection.keys())}"
        )
    for name, each in values.items():
        _check_number(path, f"selection.{name}", record.selection[name], _mean(each))


def _best_epoch(epochs: Sequence[Epoch], name: str) -> int:
    """Return the epoch of highest accuracy, the first one if tied."""
    accuracies = [epoch.accuracies[name] for epoch in epochs]
    return accuracies.index(max(accuracies))


def _check_number(path: Path, name: str, stored: float | None, recomputed: float | None) -> None:
    if stored is None or recomputed is None:
        fits = stored is recomputed
    else:
        fits = abs(stored - recomputed) <= TOLERANCE * max(1.0, abs(recomputed))
    if not fits:
        raise damaged(path, f"{name} is {_shown(stored)}, recomputed it is {_shown(recomputed)}")


def damaged(path: Path, what: str) -> DataError:
    """Return the error for a file that is not as it was written: one line, with what to do."""
    # Parsers, file names and foreign records may bring line breaks or worse; the message stays one printable line.
    text = " ".join(f"{path}: {what if len(what) <= _MESSAGE_LIMIT else f'{what[:_MESSAGE_LIMIT]}...'}".split())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return DataError(f"{text}; restore the original files or run the cell again")


def _key(test_set: str, what: str) -> str:
    return f"{test_set}.{what}" if test_set else what


def _top5(test_set: str) -> str:
    return _key(test_set, "top5")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _shown(value: float | None) -> str:
    if value is None:
        return "missing"
    # An integer may be too large for a float.
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _is_finite(value: object) -> TypeGuard[float]:
    # By comparison, which unlike math.isfinite copes with integers too large for a float. JSON has no other numbers.
    return type(value) in _NUMBERS and -1e300 <= value <= 1e300  # type: ignore[operator]
