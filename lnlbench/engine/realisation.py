"""Noise realisations: drawn once for a task and a seed, kept as files, verified whenever they are read.

```
<root>/noise/<suite>@<version>/<task>/seed-<noise seed>-<8 hex>/
    labels.npy    the given labels
    noise.json    what they are: specification, rates, counts, matrices, checksums
```

The eight digits are those of the noise specification and the true labels, so that an edited suite or another edition
of the data never meets labels drawn for something else. A generator is a pure function, which makes the files a record
and a guard, not a need: where nothing can be written the labels are computed and used all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lnlbench.builtin.noise.draws import confusion_counts, transition_matrix
from lnlbench.contracts.noise import GeneratedLabels, NoiseGenerator
from lnlbench.errors import DataError, PluginError, StorageError
from lnlbench.files import OS_FS, Fs, make_folder, storage_error, write_bytes, write_json
from lnlbench.records import NoiseFacts, NoiseSpec, digest, safe_name

LABELS = "labels.npy"
FACTS = "noise.json"


@dataclass(frozen=True, eq=False)
class NoiseRealisation:
    """The noisy labels of one task and seed, and what is known about them.

    Shapes: N training samples, C classes.
    """

    noise: NoiseSpec
    """What was asked for."""
    given_labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C)."""
    true_labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C)."""
    class_names: tuple[str, ...]
    """C names."""
    facts: NoiseFacts
    """Digest, realised rate and confusion counts."""
    intended: NDArray[np.float64]
    """``(C, C)``: P(given = column | true = row) by the generator's definition."""
    path: Path | None
    """The folder that holds it; ``None`` where nothing could be stored."""


class _Stored(BaseModel):
    """The content of ``noise.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(description="Suite id.")
    suite_version: int = Field(description="Version of the suite.")
    task: str = Field(description="Level within the suite.")
    dataset: str = Field(description="Dataset id.")
    noise: NoiseSpec = Field(description="Generator, options, nominal rate and seed.")
    variant: str = Field(description="Generator and options in one word.")
    num_samples: int = Field(description="Training samples N.")
    num_classes: int = Field(description="Classes C.")
    class_names: tuple[str, ...] = Field(description="In the order of rows and columns.")
    true_digest: str = Field(description="SHA-256 of the true labels as little-endian int64.")
    file_digest: str = Field(description="SHA-256 of labels.npy.")
    facts: NoiseFacts = Field(description="Digest, realised rate and confusion counts of the given labels.")
    intended: list[list[float]] = Field(description="Intended P(given = column | true = row).")
    transition: list[list[float]] = Field(description="The same as realised; the row of an absent class is zero.")


def realise(
    root: Path,
    suite: str,
    suite_version: int,
    task: str,
    dataset: str,
    noise: NoiseSpec,
    generator: NoiseGenerator,
    true_labels: NDArray[np.int64],
    num_classes: int,
    class_names: Sequence[str],
    fs: Fs = OS_FS,
) -> NoiseRealisation:
    """Return the noisy labels of a task, from the store if they are there, else drawn and stored.

    Any number of processes may ask at once: the folder appears complete, by one rename, and all of them use what the
    first to finish has written.

    Args:
        root: Where ``noise/`` is, or will be. It may be read-only.
        suite: Suite id.
        suite_version: Version of the suite.
        task: Level within the suite.
        dataset: Dataset id.
        noise: Generator, options, rate and seed.
        generator: The function that ``noise.generator`` names.
        true_labels: ``(N,)``, int64 in [0, num_classes).
        num_classes: Number of classes C.
        class_names: C names, in the order of the class ids.
        fs: The file system; tests hand in one that fails.

    Raises:
        DataError: The stored files are damaged; the message names what to delete.
        PluginError: The generator returned something other than labels and a transition matrix.
        UsageError: The generator refuses the rate, an option or the labels.
    """
    names = tuple(class_names)
    key = _key(noise, labels_digest(true_labels), num_classes)
    place = root / "noise" / f"{safe_name(suite)}@{suite_version}" / safe_name(task)
    folder = place / f"seed-{noise.seed}-{key[:8]}"
    if not _is_there(folder):
        generated = _generate(noise, generator, true_labels, num_classes)
        content = _npy(generated.labels, num_classes)
        stored = _Stored(
            suite=suite,
            suite_version=suite_version,
            task=task,
            dataset=dataset,
            noise=noise,
            variant=noise.variant,
            num_samples=len(true_labels),
            num_classes=num_classes,
            class_names=names,
            true_digest=labels_digest(true_labels),
            file_digest=hashlib.sha256(content).hexdigest(),
            facts=_facts(true_labels, generated.labels, num_classes),
            intended=generated.matrix.tolist(),
            transition=transition_matrix(true_labels, generated.labels, num_classes).tolist(),
        )
        try:
            _publish(folder, content, stored, fs)
        except StorageError:
            return NoiseRealisation(noise, generated.labels, true_labels, names, stored.facts, generated.matrix, None)
    # The one who has just written reads it back like everybody else: what is used is what is on the disk.
    return _load(folder, noise, true_labels, num_classes, names)


def labels_digest(labels: NDArray[np.int64]) -> str:
    """Return the SHA-256 (hex) of labels as little-endian int64, the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def export_csv(realisation: NoiseRealisation, path: Path, fs: Fs = OS_FS) -> None:
    """Write ``index,given_label,true_label,changed`` for every training sample, atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    make_folder(path.parent)
    changed = (realisation.given_labels != realisation.true_labels).astype(np.int64)
    columns = (realisation.given_labels.tolist(), realisation.true_labels.tolist(), changed.tolist())
    rows = (f"{index},{given},{true},{flag}" for index, (given, true, flag) in enumerate(zip(*columns, strict=True)))
    write_bytes(path, "\n".join(["index,given_label,true_label,changed", *rows, ""]).encode(), fs)


def _key(noise: NoiseSpec, true_digest: str, num_classes: int) -> str:
    return digest([noise.model_dump(mode="json"), true_digest, num_classes])


def _generate(
    noise: NoiseSpec, generator: NoiseGenerator, true_labels: NDArray[np.int64], num_classes: int
) -> GeneratedLabels:
    generated = generator(true_labels, noise.rate, num_classes=num_classes, seed=noise.seed, **noise.options)
    labels = np.asarray(generated.labels)
    matrix = np.asarray(generated.matrix, dtype=np.float64)
    # Generators come from plugins; one that errs must fail here and not as a strange accuracy.
    if labels.shape != true_labels.shape or labels.dtype.kind not in "iu":
        found = f"labels of shape {labels.shape} and type {labels.dtype}; {len(true_labels)} integers are expected"
    elif labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        found = f"labels from {labels.min()} to {labels.max()}; expected are 0 to {num_classes - 1}"
    elif matrix.shape != (num_classes, num_classes):
        found = f"a matrix of shape {matrix.shape}; {num_classes} x {num_classes} is expected"
    elif not (matrix >= 0.0).all() or not np.allclose(matrix.sum(axis=1), 1.0):
        found = "a matrix whose rows are not probabilities"
    else:
        return GeneratedLabels(labels.astype(np.int64), matrix)
    raise PluginError(f"noise generator {noise.generator!r} broke its contract: it returned {found}")


def _facts(true_labels: NDArray[np.int64], given_labels: NDArray[np.int64], num_classes: int) -> NoiseFacts:
    changed = int(np.count_nonzero(true_labels != given_labels))
    return NoiseFacts(
        digest=labels_digest(given_labels),
        realised_rate=changed / max(len(true_labels), 1),
        num_changed=changed,
        confusion=confusion_counts(true_labels, given_labels, num_classes).tolist(),
    )


def _npy(labels: NDArray[np.int64], num_classes: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, labels.astype("<i2" if num_classes <= 2**15 else "<i4"), allow_pickle=False)
    return buffer.getvalue()


def _publish(folder: Path, content: bytes, stored: _Stored, fs: Fs) -> None:
    make_folder(folder.parent)
    # The draft's name is random and the rename refuses a folder that is not empty: no lock, whose reliability would
    # depend on the file system, and nothing to wait for if a writer dies.
    draft = make_folder(folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.draft"))
    try:
        write_bytes(draft / LABELS, content, fs)
        write_json(draft / FACTS, stored.model_dump(mode="json"), fs)
        try:
            fs.replace(draft, folder)
            fs.fsync_dir(folder.parent)
        except OSError as error:
            if not _is_there(folder):
                raise storage_error(error, folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _load(
    folder: Path, noise: NoiseSpec, true_labels: NDArray[np.int64], num_classes: int, class_names: tuple[str, ...]
) -> NoiseRealisation:
    try:
        stored = _Stored.model_validate_json((folder / FACTS).read_bytes())
        content = (folder / LABELS).read_bytes()
        # Nothing is parsed before its checksum is right.
        if hashlib.sha256(content).hexdigest() != stored.file_digest:
            raise ValueError(f"the checksum of {LABELS} is wrong")
        given_labels = np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64)
        asked = _key(noise, labels_digest(true_labels), num_classes)
        if _key(stored.noise, stored.true_digest, stored.num_classes) != asked:
            raise ValueError("it belongs to other labels or other noise")
        if given_labels.shape != true_labels.shape:
            raise ValueError(f"{LABELS} holds {len(given_labels)} labels instead of {len(true_labels)}")
        if given_labels.size and not 0 <= given_labels.min() <= given_labels.max() < num_classes:
            raise ValueError(f"{LABELS} holds labels that are no class ids")
        if stored.facts != _facts(true_labels, given_labels, num_classes):
            raise ValueError(f"the facts in {FACTS} are not those of {LABELS}")
        intended = np.array(stored.intended, dtype=np.float64)
        if intended.shape != (num_classes, num_classes):
            raise ValueError(f"the matrix in {FACTS} has the wrong shape")
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split("\n", 1)[0].split())
        raise DataError(
            f"the stored noise in {folder} is damaged: {reason}; delete this folder and run again, the same labels "
            "will be drawn"
        ) from error
    return NoiseRealisation(noise, given_labels, true_labels, class_names, stored.facts, intended, folder)


def _is_there(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.is_dir()
    return False
