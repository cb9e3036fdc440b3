"""Scores a run against the truth that its method never sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.records import Scores

FINAL_EPOCHS = 10


@dataclass(frozen=True)
class Verdicts:
    """What a method said about the training samples in one epoch, on the host."""

    name: str
    clean_probs: NDArray[np.float64] | None
    selected: NDArray[np.bool_] | None
    pseudo_labels: NDArray[np.int64] | None
    ood: NDArray[np.bool_] | None


def score_verdicts(
    verdicts: list[Verdicts], true_labels: NDArray[np.int64], given_labels: NDArray[np.int64]
) -> dict[str, float]:
    """Score one epoch's verdicts; a score that is undefined (nothing selected, one class only) is left out.

    Returns:
        ``clean_auc``, ``clean_precision``, ``clean_recall``, ``clean_size`` (share of the training set),
        ``pseudo_label_accuracy``, ``pseudo_label_size``: each the mean over the reports of the epoch, and for named
        reports also each on its own, as ``clean_auc.net1``.
    """
    scores: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    is_clean = true_labels == given_labels
    for verdict in verdicts:
        for key, value in _score_one(verdict, is_clean, true_labels).items():
            sums.setdefault(key, []).append(value)
            if verdict.name:
                scores[f"{key}.{verdict.name}"] = value
    scores.update({key: float(np.mean(values)) for key, values in sums.items()})
    return scores


def _score_one(verdict: Verdicts, is_clean: NDArray[np.bool_], true_labels: NDArray[np.int64]) -> dict[str, float]:
    scores: dict[str, float] = {}
    if verdict.clean_probs is not None and 0 < is_clean.sum() < len(is_clean):
        from sklearn.metrics import roc_auc_score

        scores["clean_auc"] = float(roc_auc_score(is_clean, verdict.clean_probs))
    if verdict.selected is not None:
        selected = int(verdict.selected.sum())
        hits = int((verdict.selected & is_clean).sum())
        scores["clean_size"] = selected / len(is_clean)
        if selected:
            scores["clean_precision"] = hits / selected
        if is_clean.any():
            scores["clean_recall"] = hits / int(is_clean.sum())
    if verdict.pseudo_labels is not None:
        labelled = verdict.pseudo_labels >= 0
        scores["pseudo_label_size"] = int(labelled.sum()) / len(is_clean)
        if labelled.any():
            scores["pseudo_label_accuracy"] = float((verdict.pseudo_labels[labelled] == true_labels[labelled]).mean())
    return scores


def score_run(accuracies: list[float]) -> Scores:
    """Turn the test accuracy after each epoch into the scores of a run.

    >>> score_run([0.5, 0.9, 0.7]).last10
    0.7
    """
    final = accuracies[-FINAL_EPOCHS:]
    best_epoch = int(np.argmax(accuracies))
    return Scores(last10=float(np.mean(final)), last=accuracies[-1], best=accuracies[best_epoch], best_epoch=best_epoch)


def mean_selection(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average each selection score over the final ten epochs, where it exists."""
    values: dict[str, list[float]] = {}
    for row in rows[-FINAL_EPOCHS:]:
        for key, value in row["selection"].items():
            values.setdefault(key, []).append(value)
    return {key: float(np.mean(each)) for key, each in sorted(values.items())}


class PredictionLog:
    """Test predictions after the final ten epochs and after the best one: what every score can be recomputed from."""

    def __init__(self, test_labels: NDArray[np.int64], num_classes: int) -> None:
        self._dtype = np.uint8 if num_classes <= 256 else np.uint16
        self.test_labels = test_labels
        self.by_epoch: dict[int, NDArray[Any]] = {}
        self._best = (-1.0, -1)

    def add(self, epoch: int, predictions: NDArray[np.int64]) -> float:
        """Keep the predictions as long as they are needed; returns the accuracy."""
        accuracy = float((predictions == self.test_labels).mean())
        self.by_epoch[epoch] = predictions.astype(self._dtype)
        if accuracy > self._best[0]:
            self._best = (accuracy, epoch)
        for old in [e for e in self.by_epoch if e <= epoch - FINAL_EPOCHS and e != self._best[1]]:
            del self.by_epoch[old]
        return accuracy

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        import torch

        epochs = sorted(self.by_epoch)
        stacked = np.stack([self.by_epoch[e] for e in epochs]) if epochs else np.zeros((0, len(self.test_labels)))
        return {
            "epochs": epochs,
            "predictions": torch.from_numpy(stacked.astype(np.int32)),
            "best": [self._best[0], self._best[1]],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        stacked = state["predictions"].cpu().numpy().astype(self._dtype)
        self.by_epoch = {epoch: stacked[row] for row, epoch in enumerate(state["epochs"])}
        self._best = (float(state["best"][0]), int(state["best"][1]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of ``predictions.npz``."""
        epochs = sorted(self.by_epoch)
        return {
            "test_labels": self.test_labels.astype(self._dtype),
            "epochs": np.array(epochs, dtype=np.int32),
            "predictions": np.stack([self.by_epoch[e] for e in epochs]),
        }
