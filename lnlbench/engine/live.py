"""The harness while a method trains: implements :class:`lnlbench.contracts.run.Run`."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lnlbench.contracts.run import Stage
from lnlbench.engine.checkpoint import Checkpoints, collect_state, restore_state
from lnlbench.engine.scoring import TRAINING, Answers, PredictionLog, Truth, Verdicts, memorised_noise, score_verdicts
from lnlbench.engine.seeding import SETUP, Clock
from lnlbench.engine.stages import StageCache
from lnlbench.engine.tracking import Emit, Tracker
from lnlbench.errors import DivergedError, PluginError
from lnlbench.files import storage_errors, write_bytes


@dataclass
class Clockwork:
    """What a live run measures and how often it was interrupted; part of every checkpoint."""

    train: float = 0.0
    evaluate: float = 0.0
    harness: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    resumed: int = 0
    fingerprints: list[str] = field(default_factory=list)


class LiveRun(Tracker):
    """One cell's run."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        device: torch.device,
        fingerprint: str,
        truth: Truth,
        predictions: PredictionLog,
        predict: Callable[[list[nn.Module]], dict[str, Answers]],
        stages: StageCache,
        emit: Emit,
        sample: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(clock, device)
        self._sample = sample
        """Positions of the training images that ``predict`` answers to, if it does."""
        self._folder = folder
        self._truth = truth
        self.predictions = predictions
        self._predict = predict
        self._stages = stages
        self._emit = emit
        self._checkpoints = Checkpoints(folder / "checkpoints", self._warn)
        self._verdicts: list[Verdicts] = []
        self.last_verdicts: list[Verdicts] = []
        self.rows: list[dict[str, Any]] = []
        self.seconds = Clockwork(fingerprints=[fingerprint])
        self._fingerprint = fingerprint
        self.epoch: int | None = None
        """The epoch in progress."""
        self._total = 0
        self._began = 0.0
        self._metrics = folder / "metrics.jsonl"

    def epochs(self, total: int) -> Iterator[int]:
        """See :meth:`lnlbench.contracts.run.Run.epochs`."""
        if self._started:
            raise PluginError("epochs() was called twice; a method has one outer loop")
        self._started = True
        self._total = total
        start = self._restore()
        for epoch in range(start, total):
            self.epoch = epoch
            self._clock.move_to(f"epoch {epoch}")
            self._began = time.monotonic()
            yield epoch
            self.end_epoch()

    def end_epoch(self) -> None:
        """Evaluate, score, log and checkpoint the epoch in progress."""
        if self.epoch is None:
            return
        epoch = self.epoch
        logged = self._steps.finish(epoch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        trained = time.monotonic()
        answers = self._predict(self.modules())
        sampled = answers.pop(TRAINING, None)
        accuracies = self.predictions.add(epoch, answers)
        accuracy = accuracies.pop("")
        evaluated = time.monotonic()
        selection = score_verdicts(self._verdicts, self._truth)
        if sampled is not None and self._sample is not None:
            selection |= memorised_noise(sampled.classes, self._sample, self._truth)
        self.last_verdicts, self._verdicts = self._verdicts, []
        seconds = {"train": trained - self._began, "evaluate": evaluated - trained, "harness": 0.0}
        seconds["harness"] = time.monotonic() - evaluated
        row = {
            "epoch": epoch,
            "test_accuracy": accuracy,
            "logged": _rounded(logged),
            "selection": _rounded(selection),
            "seconds": _rounded(seconds),
        }
        if accuracies:
            row["accuracies"] = accuracies
        if answers[""].networks:
            row["networks"] = _rounded(answers[""].networks)
        self.rows.append(row)
        self._append(row)
        self.seconds.train += seconds["train"]
        self.seconds.evaluate += seconds["evaluate"]
        self.epoch = None
        self._emit({"event": "epoch", "epoch": epoch, "epochs": self._total, "accuracy": accuracy})
        if epoch + 1 == self._total or self._checkpoints.due():
            self._emit({"event": "saving", "epoch": epoch})
            self._checkpoints.save(epoch, self._payload())
        self.seconds.harness += time.monotonic() - evaluated

    def report(
        self,
        name: str = "",
        *,
        clean_probs: Tensor | None = None,
        selected: Tensor | None = None,
        pseudo_labels: Tensor | None = None,
        ood: Tensor | None = None,
    ) -> None:
        """See :meth:`lnlbench.contracts.run.Run.report`."""
        count = len(self._truth.given_labels)

        def host(what: str, values: Tensor | None, kind: str) -> NDArray[Any] | None:
            if values is None:
                return None
            fits = {
                "float": values.is_floating_point(),
                "bool": values.dtype == torch.bool,
                "int64": values.dtype == torch.int64,
            }[kind]
            if tuple(values.shape) != (count,) or not fits:
                raise PluginError(
                    f"report({what}=...) got {values.dtype} of shape {tuple(values.shape)}; "
                    f"expected {kind} of ({count},)"
                )
            array: NDArray[Any] = values.detach().cpu().numpy()
            return array

        probs = host("clean_probs", clean_probs, "float")
        if probs is not None and not np.isfinite(probs).all():
            raise DivergedError("a reported clean probability is not finite")
        self._verdicts.append(
            Verdicts(
                name=name,
                clean_probs=None if probs is None else probs.astype(np.float64),
                selected=host("selected", selected, "bool"),
                pseudo_labels=host("pseudo_labels", pseudo_labels, "int64"),
                ood=host("ood", ood, "bool"),
            )
        )

    def stage(
        self,
        name: str,
        compute: Callable[[Stage], Mapping[str, Tensor]],
        *,
        inputs: Mapping[str, Any],
        uses_labels: bool,
    ) -> dict[str, Tensor]:
        """See :meth:`lnlbench.contracts.run.Run.stage`."""
        if self._started:
            raise PluginError(f"stage({name!r}) came after epochs(); stages come before training")
        try:
            tensors, seconds = self._stages.get(name, compute, dict(inputs), uses_labels, self._clock, self.device)
        finally:
            self._clock.move_to(SETUP)
        self.seconds.stages[name] = seconds
        return tensors

    def save_samples(self) -> None:
        """Write the last epoch's verdicts on every training sample."""
        arrays: dict[str, NDArray[Any]] = {"given_labels": self._truth.given_labels.astype(np.int32)}
        for verdict in self.last_verdicts:
            suffix = f".{verdict.name}" if verdict.name else ""
            if verdict.clean_probs is not None:
                arrays[f"clean_probs{suffix}"] = verdict.clean_probs.astype(np.float32)
            if verdict.selected is not None:
                arrays[f"selected{suffix}"] = verdict.selected
            if verdict.pseudo_labels is not None:
                arrays[f"pseudo_labels{suffix}"] = verdict.pseudo_labels.astype(np.int32)
            if verdict.ood is not None:
                arrays[f"ood{suffix}"] = verdict.ood
        write_arrays(self._folder / "samples.npz", arrays)

    def _restore(self) -> int:
        payload = self._checkpoints.load(self.device)
        if payload is None:
            self.rows = []
            self._rewrite_metrics()
            return 0
        restore_state(self.tracked, payload["state"])
        book = json.loads(payload["book"])
        self.rows = book["rows"]
        self.last_verdicts = _load_verdicts(payload["verdicts"])
        self.predictions.restore(payload["predictions"])
        stages = self.seconds.stages
        self.seconds = Clockwork(**book["seconds"])
        # A stage is asked for again on resume; its own record says what it cost.
        self.seconds.stages = stages
        self.seconds.resumed += 1
        if self._fingerprint not in self.seconds.fingerprints:
            self.seconds.fingerprints.append(self._fingerprint)
            self._warn("the device, thread count or PyTorch version changed; the resumed run is marked as inexact")
        self._rewrite_metrics()
        self._emit({"event": "resumed", "epoch": payload["epoch"] + 1, "epochs": self._total})
        return int(payload["epoch"]) + 1

    def _payload(self) -> dict[str, Any]:
        book = {"rows": self.rows, "seconds": self.seconds.__dict__}
        return {
            "state": collect_state(self.tracked),
            "book": json.dumps(book, allow_nan=False),
            "verdicts": _dump_verdicts(self.last_verdicts),
            "predictions": self.predictions.state(),
        }

    def _append(self, row: dict[str, Any]) -> None:
        line = _line(row).encode()
        with storage_errors(self._metrics):
            handle = os.open(self._metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # The kernel may take a part of the line only, when the disk is about to be full.
                while line:
                    line = line[os.write(handle, line) :]
            finally:
                os.close(handle)

    def _rewrite_metrics(self) -> None:
        # The checkpoint is the truth: lines written after it belong to epochs that are about to be repeated.
        write_bytes(self._metrics, "".join(_line(row) for row in self.rows).encode())

    def _warn(self, message: str) -> None:
        self._emit({"event": "warning", "message": message})


class RunDoor:
    """The run as its method gets it: the contract's members, and none of the truth the harness keeps beside them."""

    def __init__(self, live: LiveRun) -> None:
        self.device = live.device
        self.epochs = live.epochs
        self.track = live.track
        self.rng = live.rng
        self.log = live.log
        self.report = live.report
        self.stage = live.stage


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, sort_keys=True, separators=(",", ":")) + "\n"


def _rounded(values: dict[str, float]) -> dict[str, float]:
    # The log stays with every published row; more digits would only make it longer.
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def _dump_verdicts(verdicts: list[Verdicts]) -> list[dict[str, Any]]:
    def tensor(values: NDArray[Any] | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values)

    return [
        {
            "name": verdict.name,
            "clean_probs": tensor(verdict.clean_probs),
            "selected": tensor(verdict.selected),
            "pseudo_labels": tensor(verdict.pseudo_labels),
            "ood": tensor(verdict.ood),
        }
        for verdict in verdicts
    ]


def _load_verdicts(items: list[dict[str, Any]]) -> list[Verdicts]:
    def array(value: Any) -> Any:
        return value.numpy() if isinstance(value, Tensor) else value

    return [Verdicts(**{key: array(value) for key, value in item.items()}) for item in items]
