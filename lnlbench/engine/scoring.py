"""Scores a run against the truth that its method never sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.records import Scores

FINAL_EPOCHS = 10
TRAINING = "training"
"""Under this name the answers to a sample of the training images are handed over; no test set may have it."""
VALIDATION = "validation"
"""Under this name the accuracy on a dataset's clean validation set is logged; no test set may have it."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the harness knows of the training labels, and no method does.

    Shapes: N training samples.
    """

    true_labels: NDArray[np.int64]
    """``(N,)``, int64: -1 where nobody knows; C or more for classes outside the task."""
    given_labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C)."""
    correct: NDArray[np.int8]
    """``(N,)``: whether the given label is right (1), wrong (0), or nobody knows (-1)."""
    ood: NDArray[np.bool_]
    """``(N,)``: whether the sample belongs to none of the task's classes."""

    @classmethod
    def of(
        cls,
        true_labels: NDArray[np.int64],
        given_labels: NDArray[np.int64],
        num_classes: int,
        correct: NDArray[np.int8] | None = None,
    ) -> Truth:
        """Put together what is known; ``correct`` follows from the true labels unless it is known by itself."""
        if correct is None:
            correct = np.where(true_labels < 0, -1, true_labels == given_labels).astype(np.int8)
        return cls(true_labels, given_labels, correct, true_labels >= num_classes)


@dataclass(frozen=True)
class Verdicts:
    """What a method said about the training samples in one epoch, on the host."""

    name: str
    clean_probs: NDArray[np.float64] | None
    selected: NDArray[np.bool_] | None
    pseudo_labels: NDArray[np.int64] | None
    ood: NDArray[np.bool_] | None


def score_verdicts(verdicts: list[Verdicts], truth: Truth) -> dict[str, float]:
    """Score one epoch's verdicts; a score that is undefined (nothing selected, nothing known) is left out.

    Only samples of which the truth is known count. A sample from outside the task is never clean.

    Returns:
        ``clean_auc``, ``clean_precision``, ``clean_recall``, ``clean_size`` (share of the whole training set),
        ``pseudo_label_accuracy``, ``pseudo_label_size``; where there are samples from outside the task also
        ``ood_precision``, ``ood_recall``, ``id_noise_precision``, ``id_noise_recall``, the last two for samples taken
        for neither clean nor out of distribution (Yao et al. 2021, Table 5). Named reports are scored under their own
        names too, as ``clean_auc.net1``. Without a suffix stands the score of the report that has no name; if all of
        them have one, the mean over them.
    """
    scores: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    unnamed = any(not verdict.name for verdict in verdicts)
    for verdict in verdicts:
        for key, value in _score_one(verdict, truth).items():
            if verdict.name:
                scores[f"{key}.{verdict.name}"] = value
            if not (verdict.name and unnamed):
                sums.setdefault(key, []).append(value)
    scores.update({key: float(np.mean(values)) for key, values in sums.items()})
    return scores


def _score_one(verdict: Verdicts, truth: Truth) -> dict[str, float]:
    scores: dict[str, float] = {}
    known = truth.correct >= 0
    is_clean = truth.correct == 1
    if verdict.clean_probs is not None and 0 < is_clean.sum() < known.sum():
        from sklearn.metrics import roc_auc_score

        scores["clean_auc"] = float(roc_auc_score(is_clean[known], verdict.clean_probs[known]))
    if verdict.selected is not None:
        scores["clean_size"] = float(verdict.selected.mean())
        scores |= _retrieval("clean", verdict.selected & known, is_clean)
    if verdict.ood is not None and truth.ood.any():
        scores |= _retrieval("ood", verdict.ood & known, truth.ood)
        if verdict.selected is not None:
            taken = ~verdict.selected & ~verdict.ood & known
            scores |= _retrieval("id_noise", taken, (truth.correct == 0) & ~truth.ood)
    if verdict.pseudo_labels is not None:
        labelled = verdict.pseudo_labels >= 0
        scores["pseudo_label_size"] = float(labelled.mean())
        scored = labelled & (truth.true_labels >= 0)
        if scored.any():
            scores["pseudo_label_accuracy"] = float((verdict.pseudo_labels == truth.true_labels)[scored].mean())
    return scores


def memorised_noise(classes: NDArray[np.int64], index: NDArray[np.int64], truth: Truth) -> dict[str, float]:
    """Score how many wrong labels a method has learnt by heart.

    Args:
        classes: ``(S,)``, int64: answers to S training images without augmentation.
        index: ``(S,)``, int64: their positions in the training set.
        truth: What is known of the labels.

    Returns:
        ``memorised_noise``, the share of the labels known to be wrong that are answered all the same; nothing if none
        is known to be wrong.
    """
    wrong = truth.correct[index] == 0
    if not wrong.any():
        return {}
    return {"memorised_noise": float((classes == truth.given_labels[index])[wrong].mean())}


def _retrieval(name: str, taken: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> dict[str, float]:
    scores = {}
    hits = int((taken & wanted).sum())
    if taken.any():
        scores[f"{name}_precision"] = hits / int(taken.sum())
    if wanted.any():
        scores[f"{name}_recall"] = hits / int(wanted.sum())
    return scores


def score_run(rows: list[dict[str, Any]], test_set: str = "") -> Scores:
    """Turn the accuracies in a run's log into its scores on a test set; the main one has no name.

    >>> score_run([{"test_accuracy": value} for value in (0.5, 0.9, 0.7)]).last10
    0.7
    """
    accuracies = [row["accuracies"][test_set] if test_set else row["test_accuracy"] for row in rows]
    best_epoch = int(np.argmax(accuracies))
    scores: dict[str, Any] = {
        "last10": float(np.mean(accuracies[-FINAL_EPOCHS:])),
        "last": accuracies[-1],
        "best": accuracies[best_epoch],
        "best_epoch": best_epoch,
    }
    if (epoch := best_validation_epoch(rows)) is not None:
        scores["best_val"] = accuracies[epoch]
    key = top5_key(test_set)
    if key in rows[-1].get("accuracies", {}):
        top5 = [row["accuracies"][key] for row in rows]
        scores |= {
            "top5_last10": float(np.mean(top5[-FINAL_EPOCHS:])),
            "top5_last": top5[-1],
            "top5_best": top5[best_epoch],
        }
    return Scores(**scores)


def best_validation_epoch(rows: list[dict[str, Any]]) -> int | None:
    """Return the first epoch of highest accuracy on the clean validation set; ``None`` if there is no such set."""
    if not rows or VALIDATION not in rows[-1].get("accuracies", {}):
        return None
    return int(np.argmax([row["accuracies"][VALIDATION] for row in rows]))


def top5_key(test_set: str) -> str:
    """Return the name under which a test set's top-5 accuracy is logged."""
    return f"{test_set}.top5" if test_set else "top5"


def mean_selection(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average each selection score over the final ten epochs, where it exists."""
    values: dict[str, list[float]] = {}
    for row in rows[-FINAL_EPOCHS:]:
        for key, value in row["selection"].items():
            values.setdefault(key, []).append(value)
    return {key: float(np.mean(each)) for key, each in sorted(values.items())}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a method answered to a set of M images."""

    classes: NDArray[np.int64]
    """``(M,)``: the class of the highest score."""
    top5: NDArray[np.bool_] | None
    """``(M,)``: whether the right class is among the five highest scores; ``None`` if not asked for."""
    networks: dict[str, float] = field(default_factory=dict)
    """Accuracy of each network by itself, where the method tells them apart; for the log only."""


class PredictionLog:
    """Test predictions after the final ten epochs and after the best ones: what scores can be recomputed from.

    An epoch is best if its accuracy on a test set, or on the validation set, is the highest so far.
    """

    def __init__(self, labels: Mapping[str, NDArray[np.int64]], num_classes: int) -> None:
        """Start with nothing.

        Args:
            labels: Test labels by test set, the main one first and named ``""``; further ones by their names, and the
                validation set, if there is one, as ``"validation"``.
            num_classes: Number of classes C.
        """
        self._dtype = np.uint8 if num_classes <= 256 else np.uint16
        self.labels = dict(labels)
        self._kept: dict[int, dict[str, Answers]] = {}
        self._best: dict[str, tuple[float, int]] = {}

    def add(self, epoch: int, answers: Mapping[str, Answers]) -> dict[str, float]:
        """Keep the predictions as long as they are needed.

        Returns:
            Accuracy by test set, and share of top-5 hits under :func:`top5_key`.
        """
        accuracies = {}
        for name, answer in answers.items():
            accuracies[name] = float((answer.classes == self.labels[name]).mean())
            if answer.top5 is not None:
                accuracies[top5_key(name)] = float(answer.top5.mean())
            if accuracies[name] > self._best.get(name, (-1.0, -1))[0]:
                self._best[name] = (accuracies[name], epoch)
        self._kept[epoch] = {name: answer for name, answer in answers.items() if name != VALIDATION}
        wanted = {best for _, best in self._best.values()}
        for old in [each for each in self._kept if each <= epoch - FINAL_EPOCHS and each not in wanted]:
            del self._kept[old]
        return accuracies

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        import torch

        arrays = {name: torch.from_numpy(array.astype(np.int32)) for name, array in self._stacked().items()}
        return {"epochs": sorted(self._kept), "arrays": arrays, "best": {k: list(v) for k, v in self._best.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in state["arrays"].items()}
        self._kept = {
            epoch: {
                name: Answers(
                    arrays[_key(name, "predictions")][row].astype(np.int64),
                    arrays[_key(name, "top5")][row].astype(np.bool_) if _key(name, "top5") in arrays else None,
                )
                for name in self.labels
                if name != VALIDATION
            }
            for row, epoch in enumerate(state["epochs"])
        }
        self._best = {name: (float(accuracy), int(epoch)) for name, (accuracy, epoch) in state["best"].items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of ``predictions.npz``."""
        arrays: dict[str, NDArray[Any]] = {"epochs": np.array(sorted(self._kept), dtype=np.int32)}
        for name, labels in self.labels.items():
            if name != VALIDATION:
                arrays[_key(name, "test_labels")] = labels.astype(self._dtype)
        return arrays | self._stacked()

    def _stacked(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        answers = [self._kept[epoch] for epoch in sorted(self._kept)]
        for name in answers[0] if answers else ():
            arrays[_key(name, "predictions")] = np.stack([each[name].classes for each in answers]).astype(self._dtype)
            hits = [top5 for each in answers if (top5 := each[name].top5) is not None]
            if hits:
                arrays[_key(name, "top5")] = np.stack(hits)
        return arrays


def _key(test_set: str, what: str) -> str:
    return f"{test_set}.{what}" if test_set else what
