"""Fabricates run folders as the engine leaves them, consistent in themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lnlbench.records import (
    CellSpec,
    DataFacts,
    Environment,
    MethodSpec,
    NoiseFacts,
    NoiseSpec,
    RunRecord,
    Scores,
    Timing,
    digest,
)

CLASSES = 4
METHOD_KEYS = ("version", "distribution", "supervision", "networks", "changed")


def make_spec(
    method: str = "ce", task: str = "0.40", seed: int = 1, config: dict[str, Any] | None = None, **changes: Any
) -> CellSpec:
    options: dict[str, Any] = {
        "version": "0.1.0",
        "distribution": f"lnlbench-{method}",
        "changed": {},
        "supervision": ("scratch",),
        "networks": 1,
    }
    options |= {key: changes.pop(key) for key in METHOD_KEYS if key in changes}
    drawn = NoiseSpec(
        generator="symmetric",
        options={"count": "exact"},
        rate=None if "noise" in changes else float(task),
        seed=changes.pop("noise_seed", seed),
    )
    fields: dict[str, Any] = {
        "suite": "digits-sym",
        "suite_version": 1,
        "dataset": "digits",
        "edition": "canonical",
        "views": {"weak": {"crop": 1, "flip": False}},
        "precision": "float32",
        "limit_train": None,
        "noise": drawn,
    }
    defaults = {"epochs": 12, "batch_size": 64, "backbone": "mlp", "lr": 0.1}
    return CellSpec(
        method=MethodSpec(name=method, config=defaults | (config or {}), asked=(), **options),
        task=task,
        seed=seed,
        **(fields | changes),
    )


def make_record(spec: CellSpec, scores: Scores | None = None, **changes: Any) -> RunRecord:
    """A record with made-up scores, for aggregation; those on further test sets are the same."""
    confusion = [[8, 1, 1, 0]] * CLASSES
    total, kept = sum(map(sum, confusion)), sum(confusion[each][each] for each in range(CLASSES))
    fields: dict[str, Any] = {
        "cell": spec.id,
        "status": "finished" if scores else "diverged",
        "message": "" if scores else "loss became NaN in epoch 3, step 7",
        "spec": spec,
        "environment": Environment(
            lnlbench="0.1.0",
            python="3.11.7",
            versions={"torch": "2.13.0+cpu"},
            commit="",
            platform="Linux-x86_64",
            device="Some CPU",
            device_type="cpu",
            threads=2,
            cpu_capability="AVX2",
        ),
        "data": DataFacts(
            edition=spec.edition,
            digest="d" * 64,
            num_train=40,
            num_test=50,
            num_further_test=dict.fromkeys(spec.test_sets[1:], 30),
            num_classes=CLASSES,
            image_size=8,
        ),
        "noise": NoiseFacts(
            digest=digest(spec.noise.seed),
            num_known=total,
            realised_rate=(total - kept) / total,
            num_changed=total - kept,
            confusion=confusion,
        ),
        "scores": scores,
        "further_scores": dict.fromkeys(spec.test_sets[1:], scores) if scores else {},
        "asked": (),
        "timing": Timing(train_seconds=12.5, evaluate_seconds=1.0, harness_seconds=0.5, stage_seconds={"warm": 2.0}),
        "peak_memory_bytes": 256 * 2**20,
        "parameters": 12345,
        "resumed": 0,
        "resume": "exact",
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord(**(fields | changes))


def npz(labels: Any, epochs: Any, predictions: Any, **further: Any) -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, test_labels=labels, epochs=epochs, predictions=predictions, **further)
    return target.getvalue()


@dataclass(frozen=True)
class Answers:
    """What a made-up method answers to a test set after each epoch, and what that is worth."""

    labels: Any
    classes: Any
    top5: Any
    accuracies: list[float]
    top5_accuracies: list[float]

    @property
    def best(self) -> int:
        return self.accuracies.index(max(self.accuracies))

    def scores(self, best_val: int | None, top5: bool) -> Scores:
        final, final5 = self.accuracies[-10:], self.top5_accuracies[-10:]
        return Scores(
            last10=sum(final) / len(final),
            last=final[-1],
            best=max(self.accuracies),
            best_epoch=self.best,
            best_val=None if best_val is None else self.accuracies[best_val],
            top5_last10=sum(final5) / len(final5) if top5 else None,
            top5_last=final5[-1] if top5 else None,
            top5_best=self.top5_accuracies[self.best] if top5 else None,
        )


def make_answers(rng: np.random.Generator, epochs: int, images: int, peak: int) -> Answers:
    """Improve from epoch to epoch, with the best epoch early, so that it is not among the final ten."""
    labels = rng.integers(0, CLASSES, images, dtype=np.uint8)
    wrong = rng.random((epochs, images)) < np.linspace(0.7, 0.2, epochs)[:, None]
    wrong[min(peak, epochs - 1)] = rng.random(images) < 0.05
    classes = np.where(wrong, (labels + 1) % CLASSES, labels).astype(np.uint8)
    top5 = ~wrong | (rng.random((epochs, images)) < 0.5)
    accuracies = [int((each == labels).sum()) / images for each in classes]
    return Answers(labels, classes, top5, accuracies, [int(each.sum()) / images for each in top5])


def make_run(
    root: Path,
    spec: CellSpec | None = None,
    diverged: bool = False,
    salt: int = 0,
    top5: bool = False,
    validation: bool = False,
    **changes: Any,
) -> Path:
    """Write the folder of one run below ``root`` and return it."""
    spec = spec or make_spec()
    rng = np.random.default_rng([spec.seed, spec.noise.seed or 0, salt])
    folder = root / spec.suite / spec.task / spec.method.name / f"seed{spec.seed}-{spec.id}"
    folder.mkdir(parents=True)
    epochs = spec.method.config["epochs"]
    answers = {"": make_answers(rng, epochs, 50, peak=0)}
    names = ("clean_precision", "clean_recall", "clean_auc", "clean_size")
    selections = [{name: float(rng.random()) for name in names} for _ in range(epochs)]
    answers |= {name: make_answers(rng, epochs, 30, peak) for peak, name in enumerate(spec.test_sets[1:], start=1)}
    on_validation = make_answers(rng, epochs, 20, peak=3).accuracies
    lines = []
    for epoch in range(epochs):
        accuracies = {name: each.accuracies[epoch] for name, each in answers.items() if name}
        if top5:
            accuracies |= {member(name, "top5"): each.top5_accuracies[epoch] for name, each in answers.items()}
        if validation:
            accuracies["validation"] = on_validation[epoch]
        line: dict[str, Any] = {
            "epoch": epoch,
            "test_accuracy": answers[""].accuracies[epoch],
            "logged": {"loss": 1.0 / (epoch + 1)},
            "selection": selections[epoch] if epoch else {},
            "seconds": {"train": 1.0, "evaluate": 0.1, "harness": 0.05},
        }
        lines.append(json.dumps(line | {"accuracies": accuracies} if accuracies else line))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    best_val = on_validation.index(max(on_validation)) if validation else None
    scores = {}
    if not diverged:
        kept = sorted({*range(epochs)[-10:], *(each.best for each in answers.values())} | {best_val} - {None})
        arrays: dict[str, Any] = {"epochs": np.array(kept, dtype=np.int32)}
        for name, each in answers.items():
            scores[name] = each.scores(best_val, top5)
            arrays |= {member(name, "test_labels"): each.labels, member(name, "predictions"): each.classes[kept]}
            if top5:
                arrays[member(name, "top5")] = each.top5[kept]
        (folder / "predictions.npz").write_bytes(
            npz(arrays.pop("test_labels"), arrays.pop("epochs"), arrays.pop("predictions"), **arrays)
        )
        used = selections[1:][-10:]
        usual = {
            "selection": {name: sum(each[name] for each in used) / len(used) for name in names} if used else {},
            "further_scores": {name: each for name, each in scores.items() if name},
            "best_val_epoch": best_val,
        }
        changes = usual | changes
    record = make_record(spec, scores.get(""), **changes)
    if validation:
        record = record.model_copy(update={"data": record.data.model_copy(update={"num_validation": 20})})
    # Many runs are fabricated, so they are written without the care that real ones get.
    for name, value in (("spec.json", spec), ("result.json", record)):
        text = json.dumps(value.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False)
        (folder / name).write_text(f"{text}\n")
    return folder


def member(test_set: str, what: str) -> str:
    return f"{test_set}.{what}" if test_set else what


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """``run(spec, ...)`` writes the folder of a run below ``runs``."""
    return lambda *args, **options: make_run(tmp_path / "runs", *args, **options)


@pytest.fixture
def run_at() -> Callable[..., Path]:
    """``run_at(folder, spec, ...)`` writes the folder of a run below a folder of choice."""
    return make_run


@pytest.fixture
def spec() -> Callable[..., CellSpec]:
    """``spec(method, task, seed, ...)`` makes a specification."""
    return make_spec


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    """``record(spec, scores, ...)`` makes a record with given scores."""
    return make_record


@pytest.fixture
def archive() -> Callable[..., bytes]:
    """``archive(labels, epochs, predictions, ...)`` makes the bytes of a ``predictions.npz``."""
    return npz


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """The run folders of four methods with 250 seeds each."""
    root = tmp_path_factory.mktemp("thousand")
    return [
        [make_run(root, make_spec(method, seed=seed, config={"epochs": 3})) for seed in range(250)]
        for method in ("alpha", "beta", "gamma", "delta")
    ]
