from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lnlbench_clipcleaner.selection import (
    consistency_scores,
    fill_empty_classes,
    induced_probabilities,
    loss_scores,
    zero_shot_probabilities,
)

ROWS = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.05, 0.9, 0.05]]


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(17)


def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


# ---------------------------------------------------------------- zero-shot probabilities


@pytest.mark.parametrize(("tau", "expected"), [(0.07, [0.908174, 0.091826]), (0.01, [1.0, 0.0])])
def test_zero_shot_worked_numbers(tau: float, expected: list[float]) -> None:
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    probs = zero_shot_probabilities(torch.tensor([[0.6, 0.8]]), texts, torch.tensor([0, 0, 1]), 2, tau)
    np.testing.assert_allclose(probs.numpy(), [expected], atol=1e-6)


def test_zero_shot_agrees_with_numpy(generator: np.random.Generator) -> None:
    images, texts = unit(generator.normal(size=(50, 6))), unit(generator.normal(size=(12, 6)))
    labels = np.repeat(np.arange(4), 3)
    order = generator.permutation(12)
    texts, labels = texts[order], labels[order]
    sums = np.zeros((50, 4))
    for prompt, label in enumerate(labels):
        sums[:, label] += np.exp(images @ texts[prompt] / 0.07)
    expected = sums / sums.sum(1, keepdims=True)

    features = [torch.tensor(each, dtype=torch.float32) for each in (images, texts)]
    probs = zero_shot_probabilities(*features, torch.tensor(labels), 4, 0.07)
    assert probs.dtype == torch.float32
    np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(probs.sum(1).numpy(), np.ones(50), atol=1e-6)


# ---------------------------------------------------------------- the induced classifier


def noisy_features(generator: np.random.Generator, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = unit(generator.normal(size=(len(counts), 5)))
    features = unit(centres[labels] + 0.4 * generator.normal(size=(len(labels), 5)))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def test_logistic_regression_is_the_balanced_optimum(generator: np.random.Generator) -> None:
    from scipy.optimize import minimize

    features, labels = noisy_features(generator, (40, 25, 10))
    probs = induced_probabilities(features, labels, 3, "logistic", 20).numpy()

    # The same objective, written out: weighted cross-entropy plus half the squared weights, intercepts free.
    x, one_hot = features.double().numpy(), np.eye(3)[labels.numpy()]
    weights = len(x) / (3 * one_hot.sum(0))

    def predict(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = x @ flat[:15].reshape(5, 3) + flat[15:]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def objective(flat: NDArray[np.float64]) -> float:
        per_sample = (one_hot * np.log(predict(flat))).sum(1) * (one_hot @ weights)
        return float(0.5 * (flat[:15] ** 2).sum() - per_sample.sum())

    best = minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(probs, predict(best.x), atol=2e-3)
    np.testing.assert_allclose(probs.sum(1), np.ones(75), atol=1e-6)


def test_neighbours_vote(generator: np.random.Generator) -> None:
    features, labels = noisy_features(generator, (40, 25, 10))
    labels = labels[torch.from_numpy(generator.permutation(75))]
    probs = induced_probabilities(features, labels, 3, "knn", 7).numpy()
    x = features.double().numpy()
    nearest = np.argsort(((x[:, None] - x[None]) ** 2).sum(2), axis=1)[:, :7]
    np.testing.assert_allclose(probs, np.eye(3)[labels.numpy()][nearest].mean(1), atol=1e-6)


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_classes_without_samples_have_no_probability(generator: np.random.Generator, classifier: Any) -> None:
    features, labels = noisy_features(generator, (12, 0, 10, 0))
    probs = induced_probabilities(features, labels, 4, classifier, 50)
    assert (probs[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(probs.sum(1).numpy(), np.ones(22), atol=1e-6)


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_a_single_class_is_certain(generator: np.random.Generator, classifier: Any) -> None:
    features, labels = noisy_features(generator, (0, 9))
    assert induced_probabilities(features, labels, 3, classifier, 5).tolist() == [[0.0, 1.0, 0.0]] * 9


# ---------------------------------------------------------------- scores


def test_consistency_worked_numbers() -> None:
    scores = consistency_scores(torch.tensor(ROWS), torch.tensor([1, 1, 2, 1]))
    np.testing.assert_allclose(scores.numpy(), [0.6, 1, 1, 1], atol=1e-6)
    for threshold in (0.8, 1.0):
        assert (scores >= threshold).tolist() == [False, True, True, True]


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20), st.randoms())
def test_a_higher_threshold_never_selects_more(rows: list[list[float]], random: Any) -> None:
    probs = torch.tensor(rows) + 1e-3
    scores = consistency_scores(probs / probs.sum(1, keepdim=True), torch.tensor([random.randrange(4) for _ in rows]))
    assert ((scores > 0) & (scores <= 1)).all()
    sizes = [int((scores >= threshold).sum()) for threshold in (0.0, 0.3, 0.8, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(rows)


def test_loss_scores_agree_with_scikit_learn(generator: np.random.Generator) -> None:
    from sklearn.mixture import GaussianMixture

    labels = generator.integers(3, size=300)
    probs = generator.dirichlet(np.ones(3), size=300)
    sure = generator.random(300) < 0.6
    probs[sure] = 0.9 * np.eye(3)[labels[sure]] + 0.1 * probs[sure]
    scores = loss_scores(torch.tensor(probs, dtype=torch.float32), torch.tensor(labels), 4).numpy()
    for label in range(3):
        log_probs = np.log(probs[labels == label, label])
        rescaled = (log_probs - log_probs.min()) / (log_probs.max() - log_probs.min())
        mixture = GaussianMixture(2, random_state=4).fit(rescaled[:, None])
        expected = mixture.predict_proba(rescaled[:, None])[:, mixture.means_.argmax()]
        np.testing.assert_allclose(scores[labels == label], expected, atol=2e-2)
        # The component of the larger log-probability, not of the smaller.
        assert scores[labels == label][log_probs.argmax()] > 0.5 > scores[labels == label][log_probs.argmin()]


def test_impossible_labels_have_a_score_too() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.8, 0.2]])
    scores = loss_scores(probs, torch.zeros(4, dtype=torch.int64), 0)
    assert scores.isfinite().all()
    assert scores[1] < 0.01


# ---------------------------------------------------------------- empty classes

LABELS = torch.tensor([0] * 4 + [1] * 5 + [2] * 3 + [4])
SCORES = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3, 0.5, 0.5, 0.1, 0.4, 0.6, 0.7, 0.8, 0.05])


def mask(*selected: int) -> Tensor:
    result = torch.zeros(len(LABELS), dtype=torch.bool)
    result[list(selected)] = True
    return result


@pytest.mark.parametrize(
    ("order", "added"), [("best", {5, 6, 12}), ("released", {4, 7, 12})], ids=["best first", "as released"]
)
def test_an_empty_class_gets_as_many_as_the_smallest_other(order: Any, added: set[int]) -> None:
    selected, filled = fill_empty_classes(mask(0, 1, 2, 9, 10), SCORES, LABELS, 5, order)
    assert set(selected.nonzero().flatten().tolist()) == {0, 1, 2, 9, 10} | added
    assert filled == [1, 4], "class 3 has no sample to add"


def test_a_class_is_filled_with_n_by_c_squared_at_least() -> None:
    labels = torch.arange(90) % 3
    selected = torch.arange(90) == 0
    selected[1] = True
    filled, classes = fill_empty_classes(selected, torch.linspace(0, 1, 90), labels, 3, "best")
    assert classes == [2]
    assert filled[labels == 2].sum() == 10  # 90 / 9
    assert filled[labels == 2][-10:].all()


def test_an_empty_selection_is_filled_in_every_class() -> None:
    selected, filled = fill_empty_classes(mask(), SCORES, LABELS, 5, "best")
    assert selected.nonzero().flatten().tolist() == [0, 5, 11, 12]
    assert filled == [0, 1, 2, 4]


def test_what_is_selected_stays_as_it_is() -> None:
    given_selection = mask(0, 4, 9, 12)
    selected, filled = fill_empty_classes(given_selection, SCORES, LABELS, 5, "best")
    assert torch.equal(selected, given_selection)
    assert filled == []
    fill_empty_classes(mask(0), SCORES, LABELS, 5, "best")
    assert torch.equal(given_selection, mask(0, 4, 9, 12)), "the argument is not changed"
