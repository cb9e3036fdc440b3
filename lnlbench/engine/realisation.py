"""Noise realisations: drawn once for a task and a seed, kept as files, verified whenever they are read.

Labels that are not drawn but released as files, or that a dataset itself comes with, are taken from where they are and
described in the same terms.

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

from lnlbench.contracts.dataset import DataStore, ImageFiles
from lnlbench.contracts.noise import GeneratedLabels, NoiseGenerator, ReleasedLabels
from lnlbench.engine.data import LoadedData
from lnlbench.engine.scoring import Truth
from lnlbench.errors import DataError, PluginError, StorageError, UsageError
from lnlbench.files import OS_FS, Fs, make_folder, storage_error, write_bytes, write_json
from lnlbench.plugins import Registry
from lnlbench.records import NoiseFacts, NoiseSpec, digest, safe_name

LABELS = "labels.npy"
FACTS = "noise.json"


@dataclass(frozen=True, eq=False)
class NoiseRealisation:
    """The noisy labels of one task and seed, and what is known about them.

    Shapes: C classes of the task, R true classes: C of the task, then those outside it.
    """

    noise: NoiseSpec
    """What was asked for."""
    truth: Truth
    """Given labels, and what is known of the true ones."""
    class_names: tuple[str, ...]
    """R names."""
    facts: NoiseFacts
    """Digest, realised rate and confusion counts."""
    intended: NDArray[np.float64] | None
    """``(R, C)``: P(given = column | true = row) by the generator's definition, without the last classes outside the
    task if no sample belongs to them; ``None`` if nothing was drawn."""
    path: Path | None
    """The folder that holds it; ``None`` where nothing was or could be stored."""

    @property
    def given_labels(self) -> NDArray[np.int64]:
        """``(N,)``, int64 in [0, C)."""
        return self.truth.given_labels

    @property
    def true_labels(self) -> NDArray[np.int64]:
        """``(N,)``, int64: -1 where nobody knows; C or more for classes outside the task."""
        return self.truth.true_labels


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
    class_names: tuple[str, ...] = Field(description="In the order of rows; columns are the first ones.")
    true_digest: str = Field(description="SHA-256 of the true labels as little-endian int64.")
    images_digest: str = Field("", description="SHA-256 of the training images, if the generator looked at them.")
    file_digest: str = Field(description="SHA-256 of labels.npy.")
    facts: NoiseFacts = Field(description="Digest, realised rate and confusion counts of the given labels.")
    intended: list[list[float]] = Field(description="Intended P(given = column | true = row).")
    transition: list[list[float]] = Field(description="The same as realised; the row of an absent class is zero.")


def noisy_labels(
    registry: Registry,
    store: DataStore,
    suite: str,
    suite_version: int,
    task: str,
    noise: NoiseSpec,
    data: LoadedData,
) -> NoiseRealisation:
    """Return the noisy labels of a task: drawn, released, or the dataset's own.

    Args:
        registry: What is installed.
        store: The data folder.
        suite: Suite id.
        suite_version: Version of the suite.
        task: Level within the suite.
        noise: What is asked for.
        data: The data of the task.

    Raises:
        UsageError: Dataset and noise do not go together.
        DataError: A file is missing or damaged.
        PluginError: A generator or a set of released labels broke its contract.
    """
    registered = registry.noise.find(noise.generator)
    entry, images = registered.entry, data.images
    own = images.given_labels
    if entry.kind == "own":
        return _adopt(noise, own, data)
    if own is not None:
        raise UsageError(
            f"the labels of dataset {data.dataset.name!r} are noisy already, so {noise.generator!r} noise cannot be "
            "added; use noise 'own'"
        )
    if entry.kind == "released":
        released: ReleasedLabels = registered.load()()
        labels = released.load(store, data.all_true_labels, num_classes=data.num_classes, options=noise.options)
        return _adopt(noise, labels if data.kept is None else labels[data.kept], data)
    pixels = None
    if entry.uses_images:
        if isinstance(images.train_images, ImageFiles):
            raise UsageError(
                f"{noise.generator!r} noise looks at all images at once; those of {data.dataset.name!r} are too large"
            )
        pixels = images.train_images
    return realise(
        store.root,
        suite,
        suite_version,
        task,
        data.dataset.name,
        noise,
        registered.load(),
        images.train_labels,
        data.num_classes,
        data.class_names,
        images=pixels,
    )


def _adopt(noise: NoiseSpec, given_labels: NDArray[np.int64] | None, data: LoadedData) -> NoiseRealisation:
    true_labels = data.images.train_labels
    if given_labels is None:
        given_labels = true_labels
        if not data.dataset.labels_are_true:
            true_labels = np.full_like(true_labels, -1)
    if given_labels.size and given_labels.max() >= data.num_classes:
        raise UsageError(
            f"{noise.generator!r} labels of {data.dataset.name!r} reach {given_labels.max()}, but the task has "
            f"{data.num_classes} classes"
        )
    truth = Truth.of(true_labels, given_labels, data.num_classes, data.images.correct)
    facts = _facts(truth, data.num_classes, len(data.class_names))
    return NoiseRealisation(noise, truth, data.class_names, facts, None, None)


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
    *,
    images: NDArray[np.uint8] | None = None,
    fs: Fs = OS_FS,
) -> NoiseRealisation:
    """Return labels drawn by a generator, from the store if they are there, else drawn and stored.

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
        true_labels: ``(N,)``, int64; those from ``num_classes`` on are outside the task.
        num_classes: Number of classes C of the task.
        class_names: R names, in the order of the class ids; those after the first C are outside the task.
        images: ``(N, H, W, K)``, uint8, for a generator that looks at them.
        fs: The file system; tests hand in one that fails.

    Raises:
        DataError: The stored files are damaged; the message names what to delete.
        PluginError: The generator returned something other than labels and a transition matrix.
        UsageError: The generator refuses the rate, an option or the labels.
    """
    names = tuple(class_names)
    true_digest, images_digest = labels_digest(true_labels), _images_digest(images)
    key = _key(noise, true_digest, images_digest, num_classes)
    place = root / "noise" / f"{safe_name(suite)}@{suite_version}" / safe_name(task)
    folder = place / f"seed-{noise.seed}-{key[:8]}"
    if not _is_there(folder):
        generated = _generate(noise, generator, true_labels, images, num_classes, len(names))
        truth = Truth.of(true_labels, generated.labels, num_classes)
        facts = _facts(truth, num_classes, len(names))
        content = _npy(generated.labels, num_classes)
        counts = np.array(facts.confusion, dtype=np.float64)
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
            true_digest=true_digest,
            images_digest=images_digest,
            file_digest=hashlib.sha256(content).hexdigest(),
            facts=facts,
            intended=generated.matrix.tolist(),
            transition=(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)).tolist(),
        )
        try:
            _publish(folder, content, stored, fs)
        except StorageError:
            return NoiseRealisation(noise, truth, names, facts, generated.matrix, None)
    # The one who has just written reads it back like everybody else: what is used is what is on the disk.
    return _load(folder, key, noise, true_labels, num_classes, names)


def labels_digest(labels: NDArray[np.int64]) -> str:
    """Return the SHA-256 (hex) of labels as little-endian int64, the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def export_csv(realisation: NoiseRealisation, path: Path, fs: Fs = OS_FS) -> None:
    """Write ``index,given_label,true_label,changed,ood`` for every training sample, atomically; blank if unknown.

    Raises:
        StorageError: The file cannot be written.
    """
    make_folder(path.parent)
    truth = realisation.truth
    columns = (
        truth.given_labels.tolist(),
        ["" if label < 0 else label for label in truth.true_labels.tolist()],
        ["" if flag < 0 else 1 - flag for flag in truth.correct.tolist()],
        truth.ood.astype(np.int64).tolist(),
    )
    rows = (",".join(map(str, (index, *each))) for index, each in enumerate(zip(*columns, strict=True)))
    write_bytes(path, "\n".join(["index,given_label,true_label,changed,ood", *rows, ""]).encode(), fs)


def _key(noise: NoiseSpec, true_digest: str, images_digest: str, num_classes: int) -> str:
    return digest([noise.model_dump(mode="json"), true_digest, images_digest, num_classes])


def _images_digest(images: NDArray[np.uint8] | None) -> str:
    return "" if images is None else hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _generate(
    noise: NoiseSpec,
    generator: NoiseGenerator,
    true_labels: NDArray[np.int64],
    images: NDArray[np.uint8] | None,
    num_classes: int,
    num_true_classes: int,
) -> GeneratedLabels:
    if noise.rate is None or noise.seed is None:
        raise UsageError(f"{noise.generator!r} noise is drawn, so this task needs a rate; add it to the suite")
    options = noise.options if images is None else {**noise.options, "images": images}
    generated = generator(true_labels, noise.rate, num_classes=num_classes, seed=noise.seed, **options)
    labels = np.asarray(generated.labels)
    matrix = np.asarray(generated.matrix, dtype=np.float64)
    # Generators come from plugins; one that errs must fail here and not as a strange accuracy.
    if labels.shape != true_labels.shape or labels.dtype.kind not in "iu":
        found = f"labels of shape {labels.shape} and type {labels.dtype}; {len(true_labels)} integers are expected"
    elif labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        found = f"labels from {labels.min()} to {labels.max()}; expected are 0 to {num_classes - 1}"
    elif not _fits(matrix, num_classes, num_true_classes):
        found = f"a matrix of shape {matrix.shape}; {num_true_classes} x {num_classes} is expected"
    elif not (matrix >= 0.0).all() or not np.allclose(matrix.sum(axis=1), 1.0):
        found = "a matrix whose rows are not probabilities"
    else:
        return GeneratedLabels(labels.astype(np.int64), matrix)
    raise PluginError(f"noise generator {noise.generator!r} broke its contract: it returned {found}")


def _fits(matrix: NDArray[np.float64], num_classes: int, num_true_classes: int) -> bool:
    # A generator cannot know of classes outside the task that no training sample belongs to.
    rows, *columns = matrix.shape
    return columns == [num_classes] and num_classes <= rows <= num_true_classes


def _facts(truth: Truth, num_classes: int, num_true_classes: int) -> NoiseFacts:
    known = int(np.count_nonzero(truth.correct >= 0))
    changed = int(np.count_nonzero(truth.correct == 0))
    sure = truth.true_labels >= 0
    cells = truth.true_labels[sure] * num_classes + truth.given_labels[sure]
    counts = np.bincount(cells, minlength=num_true_classes * num_classes).reshape(num_true_classes, num_classes)
    return NoiseFacts(
        digest=labels_digest(truth.given_labels),
        num_known=known,
        num_changed=changed,
        num_ood=int(np.count_nonzero(truth.ood)),
        realised_rate=changed / known if known else None,
        confusion=counts.tolist() if sure.any() else None,
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
    folder: Path,
    key: str,
    noise: NoiseSpec,
    true_labels: NDArray[np.int64],
    num_classes: int,
    class_names: tuple[str, ...],
) -> NoiseRealisation:
    try:
        stored = _Stored.model_validate_json((folder / FACTS).read_bytes())
        content = (folder / LABELS).read_bytes()
        # Nothing is parsed before its checksum is right.
        if hashlib.sha256(content).hexdigest() != stored.file_digest:
            raise ValueError(f"the checksum of {LABELS} is wrong")
        given_labels = np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64)
        if _key(stored.noise, stored.true_digest, stored.images_digest, stored.num_classes) != key:
            raise ValueError("it belongs to other labels or other noise")
        if given_labels.shape != true_labels.shape:
            raise ValueError(f"{LABELS} holds {len(given_labels)} labels instead of {len(true_labels)}")
        if given_labels.size and not 0 <= given_labels.min() <= given_labels.max() < num_classes:
            raise ValueError(f"{LABELS} holds labels that are no class ids")
        truth = Truth.of(true_labels, given_labels, num_classes)
        if stored.facts != _facts(truth, num_classes, len(class_names)):
            raise ValueError(f"the facts in {FACTS} are not those of {LABELS}")
        intended = np.array(stored.intended, dtype=np.float64)
        if not _fits(intended, num_classes, len(class_names)):
            raise ValueError(f"the matrix in {FACTS} has the wrong shape")
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split("\n", 1)[0].split())
        raise DataError(
            f"the stored noise in {folder} is damaged: {reason}; delete this folder and run again, the same labels "
            "will be drawn"
        ) from error
    return NoiseRealisation(noise, truth, class_names, stored.facts, intended, folder)


def _is_there(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.is_dir()
    return False
