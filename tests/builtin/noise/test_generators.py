"""What holds for every built-in generator, and the facts that make each one what it is."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from lnlbench.api import GeneratedLabels, NoiseGenerator
from lnlbench.builtin.noise import ENTRIES
from lnlbench.builtin.noise.draws import confusion_counts, transition_matrix
from lnlbench.builtin.noise.maps import class_map
from lnlbench.errors import UnknownNameError, UsageError

Labels = NDArray[np.int64]


def load(name: str) -> NoiseGenerator:
    """Return a generator; one that uses images gets some that are made from the labels' positions."""
    entry = next(entry for entry in ENTRIES if entry.name == name)
    module, _, function = entry.target.partition(":")
    generator = cast("NoiseGenerator", getattr(importlib.import_module(module), function))
    if not entry.uses_images:
        return generator

    def with_images(true_labels: Labels, rate: float, **arguments: Any) -> GeneratedLabels:
        images = np.random.RandomState(3).randint(0, 256, (len(true_labels), 2, 3, 2), dtype=np.uint8)
        return generator(true_labels, rate, images=images, **arguments)

    return with_images


symmetric, asymmetric, pair = load("symmetric"), load("asymmetric"), load("pair")


UNTOGETHER = {("released", "exact"), ("released", "exact-per-class")}


def variants(num_classes: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Every generator with every combination of options that fits the number of classes."""
    unfit = {10: {"superclass"}, 100: {"cifar10", "mnist"}}.get(
        num_classes, {"superclass", "cifar10", "mnist", "block5"}
    )
    for entry in (entry for entry in ENTRIES if entry.kind == "generated"):
        for values in itertools.product(*entry.options.values()):
            options = dict(zip(entry.options, values, strict=True))
            if options.get("map") not in unfit and (options.get("stream"), options.get("count")) not in UNTOGETHER:
                yield entry.name, options


def balanced(num_samples: int, num_classes: int) -> Labels:
    labels = np.arange(num_samples, dtype=np.int64) % num_classes
    return np.random.RandomState(0).permutation(labels).astype(np.int64)


def skewed(num_samples: int, num_classes: int) -> Labels:
    """Every class present, the last one about ten times as often as the first."""
    weights = np.linspace(1, 10, num_classes)
    drawn = np.random.RandomState(1).choice(num_classes, num_samples - num_classes, p=weights / weights.sum())
    return np.concatenate([np.arange(num_classes), drawn]).astype(np.int64)


def moved_classes(options: dict[str, str], num_classes: int) -> NDArray[np.bool_]:
    return np.not_equal(class_map(options.get("map", "next"), num_classes), np.arange(num_classes))


def id_of(value: object) -> str | None:
    return "-".join(value.values()) if isinstance(value, dict) else None


ALL = [(name, options, classes) for classes in (10, 100) for name, options in variants(classes)]
every_variant = pytest.mark.parametrize(("name", "options", "num_classes"), ALL, ids=id_of)


@every_variant
def test_realised_rate_is_the_defined_one(name: str, options: dict[str, str], num_classes: int) -> None:
    labels = balanced(50_000, num_classes)
    for rate in (0.1, 0.2, 0.3, 0.4, 0.45):
        given_labels = load(name)(labels, rate, num_classes=num_classes, seed=1, **options).labels
        if name == "part-dependent":
            expected = stats.truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, rate, 0.1)
        elif options.get("replacement") == "inclusive":
            expected = rate * (num_classes - 1) / num_classes
        else:
            expected = rate * moved_classes(options, num_classes).mean()
        # Exact counts vary less than binomially, so the interval holds all the more.
        low, high = stats.binom.interval(0.999, len(labels), expected)
        assert low <= np.count_nonzero(given_labels != labels) <= high


@every_variant
def test_the_intended_matrix_is_what_happens(name: str, options: dict[str, str], num_classes: int) -> None:
    labels = skewed(40 * num_classes, num_classes)
    generate = load(name)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    matrices = []
    for seed in range(30):
        generated = generate(labels, 0.35, num_classes=num_classes, seed=seed, **options)
        counts += confusion_counts(labels, generated.labels, num_classes)
        matrices.append(generated.matrix)
    # The same for every seed, but where the projections of images are drawn.
    intended = np.mean(matrices, axis=0)
    assert intended.dtype == np.float64
    assert (intended >= 0).all()
    np.testing.assert_allclose(intended.sum(axis=1), 1.0)
    if name != "part-dependent":
        np.testing.assert_allclose(matrices[0], intended, atol=1e-14)
    # Samples with different probabilities or exact counts stray less than a binomial count with their mean.
    sizes = counts.sum(axis=1, keepdims=True)
    expected = stats.binom(sizes, intended.clip(0.0, 1.0))
    assert expected.cdf(counts).min() > 1e-8
    assert expected.sf(counts - 1).min() > 1e-8


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_generators_are_pure_functions_with_labels_in_range(data: st.DataObject) -> None:
    num_classes = data.draw(st.sampled_from([2, 3, 10, 100]))
    name, options = data.draw(st.sampled_from(list(variants(num_classes))))
    labels = np.array(data.draw(st.lists(st.integers(0, num_classes - 1), max_size=60)), dtype=np.int64)
    limit = {"asymmetric": 0.5, "pair": 0.4999}.get(options.get("flip", name), 1.0)
    rate = data.draw(st.floats(0.0, limit))
    seed = data.draw(st.integers(0, 2**64 if options.get("stream") != "released" else 2**32 - 1))
    before = labels.copy()
    first = load(name)(labels, rate, num_classes=num_classes, seed=seed, **options)
    random.seed(data.draw(st.integers(0, 9)))
    again = load(name)(labels, rate, num_classes=num_classes, seed=seed, **options)

    assert (labels == before).all()
    assert first.labels.dtype == np.int64
    assert first.labels.shape == labels.shape
    assert not np.shares_memory(first.labels, labels)
    assert ((first.labels >= 0) & (first.labels < num_classes)).all()
    assert (first.labels == again.labels).all()
    np.testing.assert_allclose(first.matrix.sum(axis=1), 1.0)
    # What the intended matrix calls impossible never happens.
    assert (first.matrix[labels, first.labels] > 0).all()
    if rate == 0.0 and name != "part-dependent":  # whose flip rates then still are a normal's upper half
        assert (first.labels == labels).all()


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=10).filter(any),
    rate=st.integers(0, 1000).map(lambda permille: permille / 1000),
    seed=st.integers(0, 1000),
)
def test_exact_counts_are_exact(sizes: list[int], rate: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    permille = round(rate * 1000)
    whole = symmetric(labels, rate, num_classes=len(sizes), seed=seed, count="exact").labels
    assert np.count_nonzero(whole != labels) == permille * len(labels) // 1000
    by_class = symmetric(labels, rate, num_classes=len(sizes), seed=seed, count="exact-per-class").labels
    changed = np.bincount(labels[by_class != labels], minlength=len(sizes))
    assert changed.tolist() == [permille * size // 1000 for size in sizes]


@every_variant
def test_seeds_matter_and_global_state_does_not(name: str, options: dict[str, str], num_classes: int) -> None:
    labels = balanced(2_000, num_classes)
    generate = load(name)
    first = generate(labels, 0.4, num_classes=num_classes, seed=1, **options).labels
    np.random.seed(5)
    random.seed(5)
    state = np.random.get_state(legacy=False)
    symmetric(labels, 0.9, num_classes=num_classes, seed=77)
    again = generate(labels, 0.4, num_classes=num_classes, seed=1, **options).labels
    after = np.random.get_state(legacy=False)
    other = generate(labels, 0.4, num_classes=num_classes, seed=2, **options).labels
    assert (first == again).all()
    assert (first != other).any()
    assert str(state) == str(after)


@pytest.mark.parametrize("replacement", ["exclusive", "inclusive"])
def test_a_label_changed_at_a_low_rate_has_the_same_replacement_at_a_high_one(replacement: str) -> None:
    labels = balanced(5_000, 10)
    low, high = (symmetric(labels, r, num_classes=10, seed=4, replacement=replacement).labels for r in (0.2, 0.5))
    assert (low[low != labels] == high[low != labels]).all()
    assert np.count_nonzero(high != labels) > np.count_nonzero(low != labels)


@pytest.mark.parametrize("replacement", ["exclusive", "inclusive"])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_symmetric_cells_off_the_diagonal_are_flat(replacement: str, num_classes: int) -> None:
    labels = balanced(50_000, num_classes)
    given_labels = symmetric(labels, 0.5, num_classes=num_classes, seed=1, replacement=replacement).labels
    counts = confusion_counts(labels, given_labels, num_classes)
    assert stats.chisquare(counts[~np.eye(num_classes, dtype=bool)]).pvalue > 0.001
    diagonal = np.diag(counts)
    assert (diagonal > 0).all()
    assert diagonal.max() - diagonal.min() < 10 * np.sqrt(50_000 / num_classes)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_exclusive_at_rate_one_leaves_nothing_right(num_classes: int) -> None:
    labels = balanced(500, num_classes)
    generated = symmetric(labels, 1.0, num_classes=num_classes, seed=1)
    assert (generated.labels != labels).all()
    assert np.diag(generated.matrix).tolist() == [0.0] * num_classes


def test_inclusive_half_on_ten_classes_is_45_percent_wrong() -> None:
    labels = balanced(50_000, 10)
    given_labels = symmetric(labels, 0.5, num_classes=10, seed=1, replacement="inclusive").labels
    assert np.mean(given_labels != labels) == pytest.approx(0.45, abs=0.003)


@pytest.mark.parametrize("count", ["exact", "exact-per-class", "bernoulli"])
def test_cifar10_map_at_40_percent_is_20_percent_wrong_in_five_cells(count: str) -> None:
    labels = balanced(50_000, 10)
    given_labels = asymmetric(labels, 0.4, num_classes=10, seed=1, map="cifar10", count=count).labels
    assert np.mean(given_labels != labels) == pytest.approx(0.2, abs=0.003)
    spared = np.isin(labels, [0, 1, 6, 7, 8])
    assert (given_labels[spared] == labels[spared]).all()
    counts = confusion_counts(labels, given_labels, 10)
    assert {(row, column) for row, column in np.argwhere(counts).tolist() if row != column} == {
        (9, 1), (2, 0), (4, 7), (3, 5), (5, 3),
    }  # fmt: skip


def test_exact_picks_from_all_classes_and_the_spared_ones_stay() -> None:
    # The same stream on the cyclic map, which spares no class, shows which 20,000 indices were picked.
    labels = balanced(50_000, 10)
    picked = asymmetric(labels, 0.4, num_classes=10, seed=1, map="next").labels != labels
    changed = asymmetric(labels, 0.4, num_classes=10, seed=1, map="cifar10").labels != labels
    assert np.count_nonzero(picked) == 20_000
    assert (changed == (picked & ~np.isin(labels, [0, 1, 6, 7, 8]))).all()


@pytest.mark.parametrize("name", ["superclass", "block5", "next"])
@pytest.mark.parametrize("count", ["exact", "bernoulli"])
def test_one_cell_per_row_at_the_place_of_the_map(name: str, count: str) -> None:
    labels = balanced(50_000, 100)
    generated = asymmetric(labels, 0.3, num_classes=100, seed=1, map=name, count=count)
    moved = generated.labels != labels
    assert (generated.labels[moved] == class_map(name, 100)[labels[moved]]).all()
    assert len(np.unique(labels[moved])) == 100
    assert np.count_nonzero(generated.matrix) == 200


def test_pair_moves_to_the_next_class_and_around() -> None:
    labels = balanced(10_000, 10)
    given_labels = pair(labels, 0.45, num_classes=10, seed=1).labels
    moved = given_labels != labels
    assert set(((given_labels - labels) % 10)[moved].tolist()) == {1}
    assert ((labels == 9) & (given_labels == 0)).any()


def test_a_fifth_of_the_digits_is_287() -> None:
    labels = skewed(1_437, 10)
    generated = symmetric(labels, 0.2, num_classes=10, seed=1)
    assert np.count_nonzero(generated.labels != labels) == 287
    assert np.diag(generated.matrix) == pytest.approx(1 - 287 / 1_437)


def test_exact_per_class_matrix_estimates_without_error() -> None:
    labels = skewed(1_437, 10)
    generated = asymmetric(labels, 0.3, num_classes=10, seed=2, map="mnist", count="exact-per-class")
    np.testing.assert_allclose(transition_matrix(labels, generated.labels, 10), generated.matrix)


# Computed once on labels 0, 1, ..., C-1, 0, 1, ... of 50,000 samples, up to 99 for open sets. If one of these changes,
# so does every stored realisation and every published row: that needs a new version of every suite, never a new digest
# here.
PINNED: list[tuple[str, float, int, int, dict[str, str], str]] = [
    ("symmetric", 0.5, 10, 1, {"count": "exact", "replacement": "inclusive"}, "ba47e1d7a8dcdee6"),
    ("symmetric", 0.2, 10, 2, {"count": "exact", "replacement": "exclusive"}, "6e3831b58240c6cd"),
    ("symmetric", 0.8, 100, 3, {"count": "bernoulli", "replacement": "exclusive"}, "d8058d08c09a4c19"),
    ("symmetric", 0.9, 100, 1, {"count": "exact-per-class", "replacement": "inclusive"}, "3256f39827a07e70"),
    ("asymmetric", 0.4, 10, 1, {"count": "exact", "map": "cifar10"}, "fc0ac4289523d311"),
    ("asymmetric", 0.4, 10, 1, {"count": "exact-per-class", "map": "mnist"}, "728da9a754eed5b1"),
    ("asymmetric", 0.3, 100, 2, {"count": "bernoulli", "map": "superclass"}, "f641985db4e3493f"),
    ("asymmetric", 0.4, 100, 3, {"count": "bernoulli", "map": "block5"}, "feb98904b5d3f628"),
    ("pair", 0.45, 10, 1, {"count": "bernoulli"}, "bd641acc285ef4f8"),
    ("pair", 0.4, 100, 1, {"count": "exact"}, "a7af14f561cacc95"),
    ("part-dependent", 0.4, 10, 1, {"features": "raw", "projection": "per-class"}, "9fcf2352bd747550"),
    ("part-dependent", 0.2, 100, 2, {"features": "normalised", "projection": "per-class"}, "6962a49d223f4338"),
    ("part-dependent", 0.5, 10, 3, {"features": "raw", "projection": "shared"}, "10a792c66ad7f051"),
    ("open-set", 0.5, 80, 1, {"flip": "symmetric", "count": "bernoulli", "stream": "lnlbench"}, "988313b217cf2e0b"),
    ("open-set", 0.4, 80, 2, {"flip": "pair", "count": "exact", "stream": "lnlbench"}, "02372b8009157a33"),
    ("open-set", 0.2, 80, 0, {"flip": "symmetric", "count": "bernoulli", "stream": "released"}, "926b2d99bf753f2d"),
]


@pytest.mark.parametrize(("name", "rate", "num_classes", "seed", "options", "expected"), PINNED, ids=id_of)
def test_realisations_never_change(
    name: str, rate: float, num_classes: int, seed: int, options: dict[str, str], expected: str
) -> None:
    labels = np.arange(50_000, dtype=np.int64) % (100 if name == "open-set" else num_classes)
    given_labels = load(name)(labels, rate, num_classes=num_classes, seed=seed, **options).labels
    assert hashlib.sha256(given_labels.astype("<i8").tobytes()).hexdigest()[:16] == expected


TEN = np.arange(10, dtype=np.int64)


def check_refusal(name: str, changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"true_labels": TEN, "rate": 0.2, "num_classes": 10, "seed": 1} | changes
    with pytest.raises(UsageError, match=said) as caught:
        load(name)(arguments.pop("true_labels"), arguments.pop("rate"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "pair", "part-dependent", "open-set"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": -0.1}, "rate -0.1 of .* noise is out of range"),
        ({"rate": 1.1}, "rate 1.1 of .* noise is out of range"),
        ({"rate": float("nan")}, "rate nan of .* noise is out of range"),
        ({"seed": -1}, "seed -1 of .* noise is negative"),
        ({"num_classes": 1}, "at least two classes"),
        ({"true_labels": np.array([0, -1])}, "label -1 at index 1 is not a class id"),
        ({"true_labels": np.array([0.0, 1.0])}, "integer labels, not 1 dimensions of type float64"),
        ({"true_labels": np.zeros((2, 2), dtype=np.int64)}, "one-dimensional"),
    ],
)
def test_wrong_arguments_are_one_line(name: str, changes: dict[str, Any], said: str) -> None:
    check_refusal(name, changes, said)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "pair", "open-set"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": "exat"}, "unknown 'count' of .* noise: 'exat'; did you mean 'exact'"),
        ({"count": 3}, "unknown 'count' of .* noise: '3'; known: bernoulli, exact, exact-per-class"),
        ({"cuont": "exact"}, "unknown option of .* noise 'cuont'; did you mean 'count'"),
    ],
)
def test_wrong_options_are_one_line(name: str, changes: dict[str, Any], said: str) -> None:
    check_refusal(name, changes, said)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "pair", "part-dependent"])
def test_only_open_set_noise_knows_classes_outside_the_task(name: str) -> None:
    labels = np.array([0, 1, 10, 11])
    check_refusal(
        name, {"true_labels": labels}, "label 10 at index 2 is not a class id.*from 0 to 9; .* use noise 'open-set'"
    )
    assert load("open-set")(labels, 0.0, num_classes=10, seed=1).labels[:2].tolist() == [0, 1]


def test_unknown_values_carry_the_nearest_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown 'replacement' of symmetric noise: 'inclusve'; did you mean"):
        symmetric(TEN, 0.2, num_classes=10, seed=1, replacement="inclusve")
    with pytest.raises(UnknownNameError, match="unknown 'map' of asymmetric noise: 'cifar100'; did you mean 'cifar10'"):
        asymmetric(TEN, 0.2, num_classes=10, seed=1, map="cifar100")


@pytest.mark.parametrize("name", ["cifar10", "mnist", "block5", "next"])
def test_rates_that_would_exchange_classes_are_refused(name: str) -> None:
    labels = balanced(1_000, 10)
    with pytest.raises(UsageError, match=f"rate 0.51 .* above 0.5, where map '{name}' would exchange classes"):
        asymmetric(labels, 0.51, num_classes=10, seed=1, map=name)
    assert (asymmetric(labels, 0.5, num_classes=10, seed=1, map=name).labels != labels).any()


def test_pair_is_refused_from_one_half_on() -> None:
    with pytest.raises(UsageError, match=r"rate 0\.5 of pair noise is not below 0\.5"):
        pair(TEN, 0.5, num_classes=10, seed=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_narrow_label_types_give_the_same_labels(dtype: type[np.integer[Any]]) -> None:
    labels = balanced(1_000, 100)
    narrow = cast("Labels", labels.astype(dtype))
    expected = symmetric(labels, 0.5, num_classes=100, seed=1).labels
    assert (symmetric(narrow, 0.5, num_classes=100, seed=1).labels == expected).all()


def test_fifty_thousand_labels_take_milliseconds(benchmark: Any) -> None:
    labels = balanced(50_000, 100)
    generated = benchmark(symmetric, labels, 0.5, num_classes=100, seed=1)
    assert len(generated.labels) == 50_000
