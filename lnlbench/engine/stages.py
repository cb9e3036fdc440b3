"""Named stages before training, cached by content: implements :class:`lnlbench.contracts.run.Stage`."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from lnlbench.contracts.run import Stage
from lnlbench.engine.checkpoint import Checkpoints, collect_state, restore_state
from lnlbench.engine.seeding import SETUP, Clock
from lnlbench.engine.tracking import Emit, Tracker
from lnlbench.errors import DataError, PluginError
from lnlbench.files import HashingWriter, make_folder, read_json, remove_leftovers, write_atomically, write_json
from lnlbench.records import digest


class StageCache:
    """Results of stages, by content, shared between the runs of one data folder."""

    def __init__(self, root: Path, base: dict[str, Any], labels_digest: str, emit: Emit) -> None:
        """Use ``root``.

        Args:
            root: Folder of all stage results.
            base: What every stage of this run depends on: method and version, data digest, precision, seed.
            labels_digest: Digest of the given labels; part of the key of stages that use them.
            emit: Where events go.
        """
        self._root = root
        self._base = base
        self._labels_digest = labels_digest
        self._emit = emit

    def get(
        self,
        name: str,
        compute: Callable[[Stage], Mapping[str, Tensor]],
        inputs: dict[str, Any],
        uses_labels: bool,
        clock: Clock,
        device: torch.device,
    ) -> tuple[dict[str, Tensor], float]:
        """Return the stage's tensors and what computing them cost in seconds."""
        key = digest(
            {**self._base, "stage": name, "inputs": inputs, "labels": self._labels_digest if uses_labels else ""}
        )
        folder = make_folder(self._root / f"{name.replace(' ', '-')}-{key[:16]}")
        self._emit({"event": "stage", "stage": name})
        # Runs that need the same stage wait here for the first of them.
        with filelock.FileLock(folder / ".lock"):
            remove_leftovers(folder)
            stored = _read_stage(folder, device)
            if stored is not None:
                self._emit({"event": "stage done", "stage": name, "cached": True})
                return stored
            live = LiveStage(name, folder, clock, device, self._emit)
            tensors = {key: value.detach() for key, value in compute(live).items()}
            seconds = live.seconds

            def write(writer: HashingWriter) -> None:
                torch.save({key: value.cpu() for key, value in tensors.items()}, writer)  # type: ignore[arg-type]

            sha256, size = write_atomically(folder / "result.pt", write)
            write_json(folder / "result.json", {"sha256": sha256, "size": size, "seconds": seconds, "inputs": inputs})
            live.checkpoints.discard()
        self._emit({"event": "stage done", "stage": name, "cached": False})
        return tensors, seconds


def _read_stage(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], float] | None:
    if not (folder / "result.json").exists():
        return None
    try:
        record = read_json(folder / "result.json")
        content = (folder / "result.pt").read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ValueError("its content does not match its checksum")
        tensors = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
        return tensors, float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the stored stage {folder} is damaged ({error}); delete it to compute it again") from error


class LiveStage(Tracker):
    """A stage in progress; implements :class:`lnlbench.contracts.run.Stage`."""

    def __init__(self, name: str, folder: Path, clock: Clock, device: torch.device, emit: Emit) -> None:
        super().__init__(clock, device)
        self._name = name
        self._emit = emit
        self.checkpoints = Checkpoints(
            folder / "checkpoints", lambda message: emit({"event": "warning", "message": message})
        )
        self._earlier = 0.0
        self._began = time.monotonic()
        self._clock.move_to(f"{name} {SETUP}")

    @property
    def seconds(self) -> float:
        """Seconds of work so far, earlier attempts up to their last checkpoint included."""
        return self._earlier + time.monotonic() - self._began

    def epochs(self, total: int) -> Iterator[int]:
        """See :meth:`lnlbench.contracts.run.Stage.epochs`."""
        if self._started:
            raise PluginError(f"epochs() was called twice in stage {self._name!r}")
        self._started = True
        payload = self.checkpoints.load(self.device)
        start = 0
        if payload is not None:
            restore_state(self.tracked, payload["state"])
            self._earlier = float(payload["seconds"])
            start = int(payload["epoch"]) + 1
        for epoch in range(start, total):
            self._clock.move_to(f"{self._name} epoch {epoch}")
            yield epoch
            self._steps.finish(epoch)
            self._emit({"event": "stage epoch", "stage": self._name, "epoch": epoch, "epochs": total})
            if epoch + 1 < total and self.checkpoints.due():
                self.checkpoints.save(epoch, {"state": collect_state(self.tracked), "seconds": self.seconds})
