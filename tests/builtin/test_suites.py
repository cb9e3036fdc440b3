"""The built-in suite files against the table of the benchmark's tasks."""

from __future__ import annotations

import importlib
from typing import cast

import numpy as np
import pytest

from lnlbench.api import NoiseGenerator
from lnlbench.builtin import lnlbench_suites
from lnlbench.builtin.noise import ENTRIES
from lnlbench.contracts.suite import Suite
from lnlbench.contracts.views import RandomCrop, RandomFlip
from lnlbench.suitefiles import read_suite_file

SUITES = {suite.name: suite for file in lnlbench_suites() for suite in read_suite_file(file.path)}

SMALL = ["0.20", "0.40", "0.60"]
SYM = ["0.20", "0.50", "0.80", "0.90"]
ASYM = ["0.10", "0.30", "0.40"]
PAIR = ["0.40", "0.45"]

# suite: (tasks, generator and options in one word)
TABLE: dict[str, tuple[list[str], str]] = {
    "digits-sym": (SMALL, "symmetric exact exclusive"),
    "digits-sym-incl": (SMALL, "symmetric exact inclusive"),
    "digits-asym": (ASYM, "asymmetric exact-per-class mnist"),
    "fashion-sym": (SMALL, "symmetric exact exclusive"),
    "fashion-sym-incl": (SMALL, "symmetric exact inclusive"),
    "cifar10-sym": (SYM, "symmetric exact inclusive"),
    "cifar10-sym-excl": (SYM[:3], "symmetric exact exclusive"),
    "cifar10-sym-bern": (SYM[:3], "symmetric bernoulli exclusive"),
    "cifar10-asym": (ASYM, "asymmetric exact cifar10"),
    "cifar10-asym-bern": (ASYM, "asymmetric bernoulli cifar10"),
    "cifar10-pair": (PAIR, "pair bernoulli"),
    "cifar100-sym": (SYM, "symmetric exact inclusive"),
    "cifar100-sym-excl": (SYM, "symmetric exact exclusive"),
    "cifar100-sym-bern": (SYM, "symmetric bernoulli exclusive"),
    "cifar100-asym": (ASYM, "asymmetric bernoulli superclass"),
    "cifar100-asym-block5": (ASYM, "asymmetric bernoulli block5"),
    "cifar100-asym-pair": (ASYM, "asymmetric bernoulli next"),
    "cifar100-pair": (PAIR, "pair bernoulli"),
}

# dataset: (classes, backbone, epochs, precision, threads, crop padding, flip)
DATASETS: dict[str, tuple[int, str, int, str, int | None, int, bool]] = {
    "digits": (10, "small-cnn", 40, "float32", 1, 1, False),
    "fashion": (10, "small-cnn", 30, "float32", None, 2, True),
    "cifar10": (10, "preact-resnet18", 300, "auto", None, 4, True),
    "cifar100": (100, "preact-resnet18", 300, "auto", None, 4, True),
}

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))


def test_the_suites_are_those_of_the_table() -> None:
    found = {
        name: (
            [task.name for task in suite.tasks],
            " ".join([suite.noise.generator, *(suite.noise.options[key] for key in sorted(suite.noise.options))]),
        )
        for name, suite in SUITES.items()
    }
    assert found == TABLE


@every_suite
def test_names_say_what_is_inside(suite: Suite) -> None:
    parts = suite.name.split("-")
    assert parts[0] == suite.dataset
    assert parts[1] == {"symmetric": "sym", "asymmetric": "asym", "pair": "pair"}[suite.noise.generator]
    assert suite.variant_of == ("-".join(parts[:2]) if len(parts) == 3 else None)
    assert all(task.name == f"{task.rate:.2f}" for task in suite.tasks)


@every_suite
def test_each_dataset_has_one_setup(suite: Suite) -> None:
    _, backbone, epochs, precision, threads, padding, flip = DATASETS[suite.dataset]
    assert (suite.backbone, suite.epochs, suite.precision, suite.threads) == (backbone, epochs, precision, threads)
    assert suite.views["weak"].ops == (RandomCrop(padding=padding), *([RandomFlip()] if flip else []))
    assert (suite.version, suite.seeds) == (1, (1, 2, 3))
    assert suite.title
    assert "20" in suite.facts, "a paper with its year"


@every_suite
def test_the_generator_accepts_every_level(suite: Suite) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == suite.noise.generator)
    assert {key: value for key, value in suite.noise.options.items() if value not in entry.options[key]} == {}
    # Every switch is written out, so that a default of a generator can change without changing a suite.
    assert suite.noise.options.keys() == entry.options.keys()
    module, _, function = entry.target.partition(":")
    generate = cast("NoiseGenerator", getattr(importlib.import_module(module), function))
    num_classes = DATASETS[suite.dataset][0]
    labels = np.arange(5_000, dtype=np.int64) % num_classes
    rates = [
        float(
            np.mean(generate(labels, t.rate, num_classes=num_classes, seed=1, **suite.noise.options).labels != labels)
        )
        for t in suite.tasks
    ]
    assert rates == sorted(rates)
    assert 0.04 < rates[0] < rates[-1] < 0.92


@every_suite
def test_the_true_label_stays_the_most_frequent_one(suite: Suite) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == suite.noise.generator)
    module, _, function = entry.target.partition(":")
    generate = cast("NoiseGenerator", getattr(importlib.import_module(module), function))
    num_classes = DATASETS[suite.dataset][0]
    labels = np.arange(1_000, dtype=np.int64) % num_classes
    for task in suite.tasks:
        matrix = generate(labels, task.rate, num_classes=num_classes, seed=1, **suite.noise.options).matrix
        assert (matrix.argmax(axis=1) == np.arange(num_classes)).all()
