"""What is written down: the specification of a cell before it runs, and the record of it afterwards. Plain JSON."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
"""Layout of specification, result and bundle files; raised when an older reader would misread a newer file."""

NUMERICS = 1
"""Raised whenever the core changes in a way that can change a result, so that old and new results never share a row."""


class _Record(BaseModel):
    # JSON has no place for NaN and infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodSpec(_Record):
    """A method with its complete configuration."""

    name: str = Field(description="Method id.")
    version: str = Field(description="Version of the distribution that provides it.")
    distribution: str = Field(description="Name of that distribution.")
    config: dict[str, Any] = Field(description="Every option, resolved.")
    changed: dict[str, Any] = Field(description="The options that differ from the preset.")
    supervision: tuple[str, ...] = Field(description="What is used beyond the noisy training set.")
    networks: int = Field(description="Networks that vote on a test image.")
    asked: tuple[str, ...] = Field(description="What the preset asked for: 'noise rate', 'noise type'.")


class NoiseSpec(_Record):
    """Where the noisy labels of a cell come from: a generator before it draws, or labels that exist already."""

    generator: str = Field(description="Noise id; 'own' for labels that the dataset itself comes with.")
    options: dict[str, Any] = Field(description="Every switch of the noise, resolved.")
    rate: float | None = Field(description="Nominal rate in [0, 1]; none if nothing is drawn.")
    seed: int | None = Field(description="Noise seed; none if nothing is drawn.")

    @property
    def variant(self) -> str:
        """The generator and its switches in one word, e.g. ``symmetric(count=exact,replacement=exclusive)``."""
        inner = ",".join(f"{key}={self.options[key]}" for key in sorted(self.options))
        return f"{self.generator}({inner})" if inner else self.generator


_SPECIAL = {"selector", "data_options", "known_classes", "test_sets"}


class CellSpec(_Record):
    """One cell: a method on a task with a seed. Its id is the digest of everything that can change its result."""

    format: int = Field(FORMAT, description="Layout of this record.")
    numerics: int = Field(NUMERICS, description="Numerical generation of the core.")
    method: MethodSpec = Field(description="The method.")
    selector: MethodSpec | None = Field(None, description="The method whose selection it starts from, if any.")
    suite: str = Field(description="Suite id.")
    suite_version: int = Field(description="Version of the suite.")
    task: str = Field(description="Level within the suite.")
    dataset: str = Field(description="Dataset id.")
    data_options: dict[str, Any] = Field(default_factory=dict, description="Options of the dataset, resolved.")
    known_classes: int | None = Field(
        None, description="Classes from this one on are out of distribution; none: all known."
    )
    test_sets: tuple[str, ...] = Field(
        (), description="Test sets evaluated, the main one first; empty if there is one."
    )
    edition: str = Field(description="'canonical', or the name of the registered edition.")
    edition_digest: str = Field("", description="Digest of the registered file list; empty if canonical.")
    limit_train: int | None = Field(None, description="Training images used, if not all.")
    noise: NoiseSpec = Field(description="The noise.")
    views: dict[str, Any] = Field(description="Augmentation recipes by name.")
    seed: int = Field(description="Training seed.")
    precision: Literal["float32", "bf16"] = Field(description="Precision of forward passes.")
    compile: bool = Field(False, description="Whether networks are compiled.")
    deterministic: bool = Field(True, description="Whether only deterministic kernels are used.")
    reduced: tuple[str, ...] = Field((), description="Why this is not a full run; empty for a full one.")

    @property
    def id(self) -> str:
        """See :func:`lnlbench.records.cell_id`."""
        return cell_id(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """For people: ``dividemix digits-sym@0.40 seed 1``."""
        name = self.method.name if self.selector is None else f"{self.selector.name}+{self.method.name}"
        return f"{name} {self.suite}@{self.task} seed {self.seed}"


class DataFacts(_Record):
    """Which data a cell really used."""

    edition: str = Field(description="'canonical' or the registered edition.")
    digest: str = Field(description="SHA-256 over training and test images and true labels in canonical form.")
    num_train: int = Field(description="Training images used.")
    num_test: int = Field(description="Test images evaluated: always all of them. Of the main test set.")
    num_further_test: dict[str, int] = Field(default_factory=dict, description="Images of each further test set.")
    num_validation: int = Field(0, description="Images of the dataset's clean validation set, which is evaluated too.")
    num_classes: int = Field(description="Classes of the task, which is also the number of outputs.")
    image_size: int = Field(description="Side of the images in pixels.")


class NoiseFacts(_Record):
    """Which noisy labels a cell really used."""

    digest: str = Field(description="SHA-256 of the given labels as little-endian int64.")
    num_known: int = Field(description="Training samples of which it is known whether their given label is right.")
    num_changed: int = Field(description="Of these, the samples whose given label is wrong.")
    num_ood: int = Field(0, description="Of these in turn, the samples that belong to none of the task's classes.")
    realised_rate: float | None = Field(description="Wrong labels as a share of the known ones; none if none is known.")
    confusion: list[list[int]] | None = Field(
        description="Counts, row = true class, column = given class, over the samples whose true class is known; rows "
        "after the last column are classes outside the task. None if no true class is known."
    )


class Scores(_Record):
    """Test accuracies as fractions, on one test set. Every one of them can be recomputed from stored predictions."""

    last10: float = Field(description="Mean over the final ten epochs (fewer if there were fewer): the headline.")
    last: float = Field(description="After the final epoch.")
    best: float = Field(description="Maximum over all epochs, chosen on the test set: optimistic by construction.")
    best_epoch: int = Field(description="Epoch of the maximum, counted from 0; the first one if tied.")
    best_val: float | None = Field(None, description="At the epoch that is best on the clean validation set, if any.")
    top5_last10: float | None = Field(None, description="As last10, for the share with the class among the first five.")
    top5_last: float | None = Field(None, description="Likewise after the final epoch.")
    top5_best: float | None = Field(None, description="Likewise at best_epoch.")


class Timing(_Record):
    """Seconds by a monotonic clock, summed over all attempts; repeated work after an interruption is not counted."""

    train_seconds: float = Field(description="Inside the method, training epochs.")
    evaluate_seconds: float = Field(description="Evaluating on the test set.")
    harness_seconds: float = Field(description="Scoring, logging, checkpointing.")
    stage_seconds: dict[str, float] = Field(description="Each named stage; what it cost when it was computed.")


class Environment(_Record):
    """Where a cell ran."""

    lnlbench: str = Field(description="Version of the core.")
    python: str = Field(description="Python version.")
    versions: dict[str, str] = Field(description="Versions of the libraries that compute.")
    commit: str = Field(description="Commit of the working copy, with '+' if modified; empty if there is none.")
    platform: str = Field(description="Operating system and machine type.")
    device: str = Field(description="Device model, e.g. 'NVIDIA H100 80GB HBM3' or the CPU's name.")
    device_type: str = Field(description="'cpu', 'cuda', ...")
    threads: int = Field(description="CPU threads.")
    cpu_capability: str = Field(description="Instruction set in use by PyTorch.")

    @property
    def fingerprint(self) -> str:
        """Digest of what bit-exactness depends on."""
        parts = [self.versions.get("torch", ""), self.device, self.device_type, self.threads, self.cpu_capability]
        return digest(parts)[:16]


class RunRecord(_Record):
    """The result of a cell: ``result.json``, written last and never changed afterwards."""

    format: int = Field(FORMAT, description="Layout of this record.")
    cell: str = Field(description="Cell id.")
    status: Literal["finished", "diverged"] = Field(description="A diverged run has no scores, and is counted.")
    message: str = Field("", description="For a diverged run: what stopped being finite, with epoch and step.")
    spec: CellSpec = Field(description="The cell's specification.")
    environment: Environment = Field(description="Where it ran.")
    data: DataFacts = Field(description="Data used.")
    noise: NoiseFacts = Field(description="Labels used.")
    scores: Scores | None = Field(description="Accuracies on the main test set; absent if diverged.")
    further_scores: dict[str, Scores] = Field(default_factory=dict, description="Those on each further test set.")
    best_val_epoch: int | None = Field(None, description="The epoch that is best on the clean validation set, if any.")
    selection: dict[str, float] = Field(
        default_factory=dict, description="Selection scores, mean over the final ten epochs in which they exist."
    )
    asked: tuple[str, ...] = Field(description="What preset and method asked for.")
    encoders: dict[str, str] = Field(
        default_factory=dict, description="Vision-language encoders used: SHA-256 of the weights, by name."
    )
    timing: Timing = Field(description="Seconds.")
    peak_memory_bytes: int = Field(description="Peak memory of the device (GPU) or of the process (CPU).")
    parameters: int = Field(description="Trainable parameters of all tracked networks.")
    resumed: int = Field(description="How often the run was resumed.")
    resume: Literal["exact", "inexact"] = Field(
        description="'inexact' if it was resumed under another fingerprint (device, threads, PyTorch version)."
    )
    finished: str = Field(description="When it ended, UTC, ISO 8601.")


def cell_id(values: dict[str, Any]) -> str:
    """Return the id of a specification given as JSON: 16 hexadecimal digits of the SHA-256 of its canonical form.

    Fields that few cells have are left out where they say nothing, so that adding one leaves other ids as they were.
    """
    return digest({name: value for name, value in values.items() if value or name not in _SPECIAL})[:16]


def canonical_json(value: object) -> str:
    """Serialise so that equal values give equal text: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def safe_name(text: str) -> str:
    """Return ``text`` as one path component: letters, digits, '.', '_', '+', '-'; everything else becomes '_'."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text)
