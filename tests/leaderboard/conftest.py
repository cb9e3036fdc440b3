"""Fabricates run folders as the engine leaves them, consistent in themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
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
    noise = NoiseSpec(
        generator="symmetric", options={"count": "exact"}, rate=float(task), seed=changes.pop("noise_seed", seed)
    )
    fields: dict[str, Any] = {
        "suite": "digits-sym",
        "suite_version": 1,
        "dataset": "digits",
        "edition": "canonical",
        "views": {"weak": {"crop": 1, "flip": False}},
        "precision": "float32",
        "limit_train": None,
    }
    defaults = {"epochs": 12, "batch_size": 64, "backbone": "mlp", "lr": 0.1}
    return CellSpec(
        method=MethodSpec(name=method, config=defaults | (config or {}), asked=(), **options),
        task=task,
        seed=seed,
        noise=noise,
        **(fields | changes),
    )


def make_record(spec: CellSpec, scores: Scores | None = None, **changes: Any) -> RunRecord:
    """A record with made-up scores, for aggregation."""
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
            edition=spec.edition, digest="d" * 64, num_train=40, num_test=50, num_classes=CLASSES, image_size=8
        ),
        "noise": NoiseFacts(
            digest=digest(spec.noise.seed),
            realised_rate=(total - kept) / total,
            num_changed=total - kept,
            confusion=confusion,
        ),
        "scores": scores,
        "asked": (),
        "timing": Timing(train_seconds=12.5, evaluate_seconds=1.0, harness_seconds=0.5, stage_seconds={"warm": 2.0}),
        "peak_memory_bytes": 256 * 2**20,
        "parameters": 12345,
        "resumed": 0,
        "resume": "exact",
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord(**(fields | changes))


def npz(labels: Any, epochs: Any, predictions: Any) -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, test_labels=labels, epochs=epochs, predictions=predictions)
    return target.getvalue()


def make_run(root: Path, spec: CellSpec | None = None, diverged: bool = False, salt: int = 0, **changes: Any) -> Path:
    """Write the folder of one run below ``root`` and return it."""
    spec = spec or make_spec()
    rng = np.random.default_rng([spec.seed, spec.noise.seed, salt])
    folder = root / spec.suite / spec.task / spec.method.name / f"seed{spec.seed}-{spec.id}"
    folder.mkdir(parents=True)
    epochs, images = spec.method.config["epochs"], 50
    labels = rng.integers(0, CLASSES, images, dtype=np.uint8)
    wrong = rng.random((epochs, images)) < np.linspace(0.7, 0.2, epochs)[:, None]
    # An early best epoch, so that it is not among the final ten.
    wrong[0] = rng.random(images) < 0.05
    predictions = np.where(wrong, (labels + 1) % CLASSES, labels).astype(np.uint8)
    accuracies = [int((each == labels).sum()) / images for each in predictions]
    names = ("clean_precision", "clean_recall", "clean_auc", "clean_size")
    selections = [{name: float(rng.random()) for name in names} for _ in range(epochs)]
    lines = [
        json.dumps(
            {
                "epoch": epoch,
                "test_accuracy": accuracies[epoch],
                "logged": {"loss": 1.0 / (epoch + 1)},
                "selection": selections[epoch] if epoch else {},
                "seconds": {"train": 1.0, "evaluate": 0.1, "harness": 0.05},
            }
        )
        for epoch in range(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    scores = None
    if not diverged:
        best = accuracies.index(max(accuracies))
        final = accuracies[-10:]
        kept = sorted({best, *range(epochs)[-10:]})
        scores = Scores(last10=sum(final) / len(final), last=final[-1], best=max(accuracies), best_epoch=best)
        (folder / "predictions.npz").write_bytes(npz(labels, np.array(kept, dtype=np.int32), predictions[kept]))
        used = selections[1:][-10:]
        changes.setdefault(
            "selection", {name: sum(each[name] for each in used) / len(used) for name in names} if used else {}
        )
    record = make_record(spec, scores, **changes)
    # Many runs are fabricated, so they are written without the care that real ones get.
    for name, value in (("spec.json", spec), ("result.json", record)):
        text = json.dumps(value.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """``run(spec, ...)`` writes the folder of a run below ``runs``."""
    return lambda *args, **options: make_run(tmp_path / "runs", *args, **options)


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
    """``archive(labels, epochs, predictions)`` makes the bytes of a ``predictions.npz``."""
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
