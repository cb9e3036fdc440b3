"""What a method selects before training, and how good that is."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lnlbench.contracts.suite import Suite
from lnlbench.engine.device import set_determinism
from lnlbench.engine.live import LiveRun
from lnlbench.engine.realisation import NoiseRealisation
from lnlbench.engine.runner import open_task, select_before, stage_base
from lnlbench.engine.scoring import PredictionLog, Verdicts, score_verdicts
from lnlbench.engine.stages import StageCache
from lnlbench.engine.tracking import Emit
from lnlbench.files import make_folder, write_bytes
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec, safe_name
from lnlbench.store import LocalDataStore


@dataclass(frozen=True, eq=False)
class Selected:
    """A selection of one task and seed, on the host."""

    cell: CellSpec
    noise: NoiseRealisation
    verdicts: Verdicts

    @property
    def scores(self) -> dict[str, float]:
        """Precision, recall, size and AUC, as far as the truth is known."""
        return score_verdicts([self.verdicts], self.noise.truth)

    def write_csv(self, folder: Path) -> Path:
        """Write ``index,given_label,clean_prob,selected`` for every training sample, atomically; returns the file.

        Raises:
            StorageError: The file cannot be written.
        """
        cell, verdicts = self.cell, self.verdicts
        assert verdicts.clean_probs is not None  # noqa: S101 - made below
        assert verdicts.selected is not None  # noqa: S101
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "given_label", "clean_prob", "selected"])
        columns = (self.noise.given_labels, verdicts.clean_probs, verdicts.selected)
        for index, (label, prob, chosen) in enumerate(zip(*(each.tolist() for each in columns), strict=True)):
            writer.writerow([index, label, f"{prob:.6g}", int(chosen)])
        what = "-".join(safe_name(part) for part in (cell.method.name, cell.suite, cell.task))
        path = make_folder(folder) / f"{what}-seed{cell.seed}-{cell.id}.csv"
        write_bytes(path, text.getvalue().encode())
        return path


def select(
    cell: CellSpec, suite: Suite, store: LocalDataStore, registry: Registry, device: torch.device, emit: Emit
) -> Selected:
    """Have a method select on a task, without training.

    Args:
        cell: The method with its configuration, the task and the seed.
        suite: The suite of the cell.
        store: The data folder.
        registry: What is installed.
        device: Where to compute.
        emit: Where events go.

    Raises:
        DataError: A file is missing or damaged.
        PluginError: The method broke its contract.
    """
    set_determinism(cell.deterministic, cell.compile)
    opened = open_task(cell, suite, store, registry, device, emit)
    stages = StageCache(store.root / "stages", stage_base(cell, opened.data), opened.noise.facts.digest, emit)
    live = LiveRun(
        store.root,
        opened.clock,
        device,
        "",
        opened.noise.truth,
        PredictionLog({}, opened.data.num_classes),
        lambda _modules: {},
        stages,
        emit,
    )
    selection = select_before(cell.method, opened.task, live, registry, emit)
    verdicts = Verdicts(
        name="",
        clean_probs=selection.clean_probs.cpu().numpy().astype(np.float64),
        selected=selection.selected.cpu().numpy(),
        pseudo_labels=None,
        ood=None,
    )
    return Selected(cell, opened.noise, verdicts)
