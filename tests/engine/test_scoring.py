from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lnlbench.engine.scoring import (
    VALIDATION,
    Answers,
    PredictionLog,
    Truth,
    Verdicts,
    best_validation_epoch,
    mean_selection,
    memorised_noise,
    score_run,
    score_verdicts,
)

TRUE = np.array([0, 0, 1, 1, 2, 2])
GIVEN = np.array([0, 1, 1, 1, 0, 2])  # samples 1 and 4 are wrong


def verdict(name: str = "", **values: Any) -> Verdicts:
    empty: dict[str, Any] = {"clean_probs": None, "selected": None, "pseudo_labels": None, "ood": None}
    return Verdicts(name=name, **(empty | {key: np.array(value) for key, value in values.items()}))


def score(*verdicts: Verdicts, true: NDArray[np.int64] = TRUE, given: NDArray[np.int64] = GIVEN) -> dict[str, float]:
    return score_verdicts(list(verdicts), Truth.of(true, given, 3))


def log_of(accuracies: list[float], **further: list[float]) -> list[dict[str, Any]]:
    """The rows of a run with these accuracies."""
    rows: list[dict[str, Any]] = [{"test_accuracy": each} for each in accuracies]
    for name, values in further.items():
        for row, value in zip(rows, values, strict=True):
            row.setdefault("accuracies", {})[name.replace("_", ".")] = value
    return rows


def pairwise_auc(is_clean: NDArray[np.bool_], probs: NDArray[np.float64]) -> float:
    """The share of (clean, wrong) pairs in the right order; a tie counts half."""
    pairs = [
        1.0 if clean > wrong else 0.5 if clean == wrong else 0.0
        for clean in probs[is_clean]
        for wrong in probs[~is_clean]
    ]
    return float(np.mean(pairs))


def test_memorised_noise_is_the_share_of_wrong_labels_that_are_answered() -> None:
    true, given = np.array([0, 1, 2, 0, 1, -1, 3]), np.array([0, 2, 2, 1, 0, 1, 1])
    truth = Truth.of(true, given, num_classes=3)
    index = np.array([0, 1, 3, 5, 6])
    # Wrong are 1, 3 and 6, the last one for being of no class; of 5 nobody knows. Answered are the labels of 1 and 6.
    assert memorised_noise(np.array([0, 2, 0, 1, 1]), index, truth) == {"memorised_noise": pytest.approx(2 / 3)}
    assert memorised_noise(np.array([0, 1]), np.array([0, 5]), truth) == {}


def test_auc_by_hand() -> None:
    # Clean samples: .9 .2 .8 .7; wrong ones: .3 .7. Of eight pairs, five are in order, one is tied.
    scores = score(verdict(clean_probs=[0.9, 0.3, 0.2, 0.8, 0.7, 0.7]))
    assert scores == {"clean_auc": pytest.approx(5.5 / 8)}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30))
def test_auc_counts_pairs(samples: list[tuple[bool, int]]) -> None:
    is_clean = np.array([clean for clean, _ in samples])
    probs = np.array([value / 6 for _, value in samples])
    true = np.zeros(len(samples), dtype=np.int64)
    scores = score(verdict(clean_probs=probs), true=true, given=np.where(is_clean, 0, 1))
    if is_clean.all() or not is_clean.any():
        assert scores == {}
    else:
        assert scores["clean_auc"] == pytest.approx(pairwise_auc(is_clean, probs))


def test_selection_by_hand() -> None:
    scores = score(verdict(selected=[True, True, True, False, False, False]))
    assert scores == {
        "clean_size": pytest.approx(3 / 6),
        "clean_precision": pytest.approx(2 / 3),
        "clean_recall": pytest.approx(2 / 4),
    }


def test_pseudo_labels_by_hand() -> None:
    scores = score(verdict(pseudo_labels=[0, 0, 2, -1, -1, 2]))
    assert scores == {"pseudo_label_size": pytest.approx(4 / 6), "pseudo_label_accuracy": pytest.approx(3 / 4)}


def test_undefined_scores_are_left_out() -> None:
    assert score(verdict()) == {}
    assert score(verdict(selected=[False] * 6)) == {"clean_size": 0.0, "clean_recall": 0.0}
    assert score(verdict(pseudo_labels=[-1] * 6)) == {"pseudo_label_size": 0.0}
    everything_wrong = (TRUE + 1) % 3
    assert score(verdict(selected=[True] * 6, clean_probs=np.arange(6.0)), given=everything_wrong) == {
        "clean_size": 1.0,
        "clean_precision": 0.0,
    }


def test_named_reports_are_scored_alone_and_averaged() -> None:
    first = verdict("net1", selected=[True, True, False, False, False, False])
    second = verdict("net2", selected=[True, False, True, True, False, True])
    scores = score(first, second)
    assert scores["clean_precision.net1"] == pytest.approx(1 / 2)
    assert scores["clean_precision.net2"] == 1.0
    assert scores["clean_precision"] == pytest.approx(3 / 4)
    assert scores["clean_recall"] == pytest.approx((1 / 4 + 1) / 2)


def test_a_report_without_a_name_is_the_verdict_and_others_stand_beside_it() -> None:
    verdicts = [
        verdict(selected=[True, False, False, False, False, False]),
        verdict("loss", selected=[True, True, False, False, False, False], pseudo_labels=[0] * 6),
    ]
    scores = score(*verdicts)
    assert (scores["clean_precision"], scores["clean_precision.loss"]) == (1.0, pytest.approx(1 / 2))
    assert "pseudo_label_accuracy.loss" in scores
    assert "pseudo_label_accuracy" not in scores, "the verdict itself has no pseudo-labels"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=25))
def test_scores_of_a_run(accuracies: list[float]) -> None:
    scores = score_run(log_of(accuracies))
    assert scores.last == accuracies[-1]
    assert scores.best == max(accuracies)
    assert scores.best_epoch == accuracies.index(max(accuracies))
    assert scores.last10 == pytest.approx(sum(accuracies[-10:]) / min(10, len(accuracies)))


def test_the_first_of_tied_best_epochs_counts() -> None:
    assert score_run(log_of([0.1, 0.8, 0.3, 0.8])).best_epoch == 1


def test_further_test_sets_and_the_validation_set_have_scores() -> None:
    rows = log_of([0.1, 0.6, 0.5], other=[0.3, 0.2, 0.4], validation=[0.2, 0.9, 0.9], other_top5=[0.5, 0.7, 0.9])
    assert best_validation_epoch(rows) == 1
    main, other = score_run(rows), score_run(rows, "other")
    assert (main.best, main.best_val, main.top5_last) == (0.6, 0.6, None)
    assert (other.last, other.best, other.best_epoch, other.best_val) == (0.4, 0.4, 2, 0.2)
    assert (other.top5_last10, other.top5_last, other.top5_best) == (pytest.approx(0.7), 0.9, 0.9)
    assert best_validation_epoch(log_of([0.5])) is None


def test_what_nobody_knows_does_not_count() -> None:
    # The first three labels are known: right, wrong, right.
    truth = Truth.of(np.array([-1] * 5), np.zeros(5, dtype=np.int64), 3, np.array([1, 0, 1, -1, -1], dtype=np.int8))
    scores = score_verdicts(
        [
            verdict(
                clean_probs=[0.9, 0.5, 0.4, 1.0, 0.0], selected=[True, True, False, True, False], pseudo_labels=[0] * 5
            )
        ],
        truth,
    )
    assert scores == {
        "clean_auc": pytest.approx(1 / 2),
        "clean_precision": pytest.approx(1 / 2),
        "clean_recall": pytest.approx(1 / 2),
        "clean_size": pytest.approx(3 / 5),
        "pseudo_label_size": 1.0,
    }


def test_open_set_verdicts_by_hand() -> None:
    true, given = np.array([0, 1, 2, 2, 3, 4]), np.array([0, 1, 0, 2, 1, 2])  # 3 and 4 are outside the task
    selected = [True, True, False, False, True, False]
    ood = [False, False, False, False, False, True]
    scores = score(verdict(selected=selected, ood=ood), true=true, given=given)
    assert scores == {
        "clean_size": pytest.approx(3 / 6),
        "clean_precision": pytest.approx(2 / 3),  # one from outside was taken for clean
        "clean_recall": pytest.approx(2 / 3),
        "ood_precision": 1.0,
        "ood_recall": pytest.approx(1 / 2),
        "id_noise_precision": pytest.approx(1 / 2),  # samples 2 and 3 are left; only 2 is wrong
        "id_noise_recall": 1.0,
    }
    closed = score(verdict(selected=selected, ood=ood))
    assert not {key for key in closed if key.startswith(("ood", "id_noise"))}, "no open set, no open-set scores"


def test_selection_is_averaged_where_it_exists() -> None:
    rows: list[dict[str, Any]] = [{"selection": {"clean_auc": 0.0}}]  # the eleventh from the end does not count
    rows += [{"selection": {}} for _ in range(8)]
    rows += [{"selection": {"clean_auc": 0.5}}, {"selection": {"clean_auc": 1.0, "clean_size": 0.25}}]
    assert mean_selection(rows) == {"clean_auc": 0.75, "clean_size": 0.25}
    assert mean_selection([]) == {}


def filled_log(hits: list[int], num_classes: int = 10) -> PredictionLog:
    """A log in which epoch e has ``hits[e]`` of twenty test images right."""
    log = PredictionLog({"": np.zeros(20, dtype=np.int64)}, num_classes)
    for epoch, count in enumerate(hits):
        predictions = np.where(np.arange(20) < count, 0, 1 + epoch % 9)
        assert log.add(epoch, {"": Answers(predictions, None)}) == {"": pytest.approx(count / 20)}
    return log


@pytest.mark.parametrize(
    ("hits", "kept"),
    [
        ([3, 2, 1], [0, 1, 2]),
        ([1, 9, 9, *range(5), 4, 4, 4, 4, 4], [1, *range(3, 13)]),
        ([1, 5, 2, *[3] * 12, 8], list(range(6, 16))),
    ],
    ids=["short", "best is older, the first of a tie", "best is recent"],
)
def test_the_log_keeps_the_final_ten_and_the_best(hits: list[int], kept: list[int]) -> None:
    arrays = filled_log(hits).arrays()
    assert arrays["epochs"].tolist() == kept
    assert arrays["predictions"].shape == (len(kept), 20)
    accuracies = (arrays["predictions"] == arrays["test_labels"]).mean(axis=1)
    np.testing.assert_allclose(accuracies, [hits[epoch] / 20 for epoch in kept])
    # What is kept is enough to recompute every score.
    scores = score_run(log_of([count / 20 for count in hits]))
    by_epoch = dict(zip(kept, accuracies, strict=True))
    assert np.mean([by_epoch[epoch] for epoch in range(max(0, len(hits) - 10), len(hits))]) == pytest.approx(
        scores.last10
    )
    assert by_epoch[scores.best_epoch] == pytest.approx(scores.best)


@pytest.mark.parametrize(("num_classes", "dtype"), [(10, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_predictions_are_small_integers(num_classes: int, dtype: type) -> None:
    arrays = filled_log([1, 2], num_classes).arrays()
    assert arrays["predictions"].dtype == arrays["test_labels"].dtype == dtype


@pytest.mark.parametrize("cut", [0, 1, 5, 14])
def test_the_log_goes_on_from_its_state(cut: int) -> None:
    hits = [4, 11, *[3] * 10, 5, 6, 11, 2]
    whole = filled_log(hits)
    first = filled_log(hits[:cut])
    state = first.state()
    rest = PredictionLog({"": np.zeros(20, dtype=np.int64)}, 10)
    rest.restore(state)
    for epoch in range(cut, len(hits)):
        rest.add(epoch, {"": Answers(np.where(np.arange(20) < hits[epoch], 0, 1 + epoch % 9), None)})
    expected, found = whole.arrays(), rest.arrays()
    assert expected.keys() == found.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype


def several(accuracies: dict[str, list[int]]) -> PredictionLog:
    """A log over three sets of ten images, one of them for validation, with top-5 hits on the second."""
    log = PredictionLog({name: np.zeros(10, dtype=np.int64) for name in accuracies}, 60)
    for epoch in range(len(accuracies[""])):
        answers = {}
        for name, hits in accuracies.items():
            classes = np.where(np.arange(10) < hits[epoch], 0, 7)
            answers[name] = Answers(classes, np.arange(10) < hits[epoch] + 1 if name == "other" else None)
        added = log.add(epoch, answers)
        assert added["other.top5"] == pytest.approx((accuracies["other"][epoch] + 1) / 10)
    return log


def test_the_log_keeps_what_every_test_set_needs() -> None:
    flat = [3] * 15
    hits = {"": [9, *flat], "other": [1, 8, *flat[1:]], VALIDATION: [1, 1, 7, *flat[2:]]}
    log = several(hits)
    arrays = log.arrays()
    # Best on the main set, on the other one, on validation, and the final ten of sixteen.
    assert arrays["epochs"].tolist() == [0, 1, 2, *range(6, 16)]
    assert set(arrays) == {
        *("epochs", "test_labels", "predictions"),
        *("other.test_labels", "other.predictions", "other.top5"),
    }
    assert arrays["other.top5"].dtype == np.bool_
    rest = PredictionLog({name: np.zeros(10, dtype=np.int64) for name in hits}, 60)
    rest.restore(log.state())
    for key, array in rest.arrays().items():
        np.testing.assert_array_equal(arrays[key], array)
        assert arrays[key].dtype == array.dtype
