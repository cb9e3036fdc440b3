"""The built-in suite files against the table of the benchmark's tasks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lnlbench.builtin import lnlbench_suites
from lnlbench.contracts.noise import GeneratedLabels
from lnlbench.contracts.suite import Suite, SuiteTask
from lnlbench.contracts.views import Cutout, RandAugment, RandomCrop, RandomFlip, RandomResizedCrop
from lnlbench.engine.data import dataset_options, find_dataset
from lnlbench.engine.planner import noise_spec
from lnlbench.plugins import Registry
from lnlbench.suitefiles import read_suite_file

SUITES = {suite.name: suite for file in lnlbench_suites() for suite in read_suite_file(file.path)}

SMALL = ["0.20", "0.40", "0.60"]
SYM = ["0.20", "0.50", "0.80", "0.90"]
ASYM = ["0.10", "0.30", "0.40"]
PAIR = ["0.40", "0.45"]
PDN = ["0.20", "0.40", "0.50"]
WEB = ["0.20", "0.40", "0.60", "0.80"]
JOSRC = ["sym@0.20", "sym@0.50", "sym@0.80", "asym@0.40"]

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
    "fashion-pair": (PAIR, "pair bernoulli"),
    "fashion-pdn": (SMALL, "part-dependent normalised per-class"),
    "digits-idn": (SMALL, "part-dependent normalised per-class"),
    "digits-openset": (["sym@0.20", "sym@0.50", "asym@0.40"], "open-set exact lnlbench"),
    "cifar10-idn-pdn": (PDN, "part-dependent raw per-class"),
    "cifar10-idn-pdn-norm": (PDN, "part-dependent normalised per-class"),
    "cifar10-idn-pdn-shared": (PDN, "part-dependent raw shared"),
    "cifar100-idn-pdn": (PDN, "part-dependent raw per-class"),
    "cifar100-idn-pdn-norm": (PDN, "part-dependent normalised per-class"),
    "cifar10-idn-seal": (["0.10", "0.20", "0.30", "0.40"], "seal"),
    "cifar80n-o": (JOSRC, "open-set bernoulli lnlbench"),
    "cifar100n-c": (JOSRC, "open-set bernoulli lnlbench"),
    "cifar10n": (["aggre", "random1", "random2", "random3", "worse"], "cifar-n"),
    "cifar100n": (["fine"], "cifar-n"),
    "animal10n": (["full"], "own"),
    "red-mini-imagenet": (WEB, "own"),
    "red-mini-imagenet-84": (WEB, "own"),
    "red-mini-imagenet-299": (WEB, "own"),
    "mini-webvision": (["full"], "own"),
    "clothing1m": (["noisy"], "own"),
    "clothing1m+clean-train": (["noisy"], "own"),
    "food101n": (["full"], "own"),
}
GENERATED = {
    name: suite
    for name, suite in SUITES.items()
    if suite.tasks[0].rate and suite.noise.generator not in ("own", "seal")
}
# The most likely wrong class of part-dependent noise can be more likely than the right one.
CLASS_NOISE = {name: suite for name, suite in GENERATED.items() if suite.noise.generator != "part-dependent"}

# dataset, or suite where it has a setup of its own: (backbone, epochs, precision, threads, crop padding, flip)
SETUPS: dict[str, tuple[str, int, str, int | None, int, bool]] = {
    "digits": ("small-cnn", 40, "float32", 1, 1, False),
    "fashion": ("small-cnn", 30, "float32", None, 2, True),
    "cifar10": ("preact-resnet18", 300, "auto", None, 4, True),
    "cifar100": ("preact-resnet18", 300, "auto", None, 4, True),
    "cifar80n-o": ("cnn7", 200, "auto", None, 4, True),
    "cifar100n-c": ("cnn7", 200, "auto", None, 4, True),
    "animal10n": ("timm:vgg19_bn", 300, "auto", None, 8, True),
    "red-mini-imagenet": ("preact-resnet18", 300, "auto", None, 4, True),
    "red-mini-imagenet-84": ("timm:resnet18", 300, "auto", None, 8, True),
    "clothing1m": ("timm:resnet50+pretrained", 15, "auto", None, 0, True),
    "food101n": ("timm:resnet50+pretrained", 50, "auto", None, 0, True),
}
SCALED = {"mini-webvision": 80, "red-mini-imagenet-299": 80}
"""Suites with random-resized crops, and their epochs."""

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
every_generated_suite = pytest.mark.parametrize("suite", GENERATED.values(), ids=list(GENERATED))


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
    kinds = {"symmetric": "sym", "asymmetric": "asym", "pair": "pair"}
    if suite.noise.generator in kinds:
        parts = suite.name.split("-")
        assert parts[:2] == [suite.dataset, kinds[suite.noise.generator]]
        assert suite.variant_of == ("-".join(parts[:2]) if len(parts) == 3 else None)
    elif suite.variant_of:
        assert suite.name.startswith(suite.variant_of + "-")
    for task in suite.tasks:
        level = task.name.rpartition("@")[2]
        assert task.rate is None or level == f"{task.rate:.2f}"


@every_suite
def test_each_dataset_has_one_setup(suite: Suite) -> None:
    assert (suite.version, suite.seeds) == (1, (1, 2, 3))
    assert suite.title
    assert "20" in suite.facts, "a paper with its year"
    if suite.name in SCALED:
        assert (suite.backbone, suite.epochs) == ("timm:inception_resnet_v2", SCALED[suite.name])
        assert suite.views["weak"].ops == (RandomResizedCrop(), RandomFlip())
        return
    backbone, epochs, precision, threads, padding, flip = SETUPS.get(suite.name) or SETUPS[suite.dataset]
    assert (suite.backbone, suite.epochs, suite.precision, suite.threads) == (backbone, epochs, precision, threads)
    assert suite.views["weak"].ops == (RandomCrop(padding=padding), *([RandomFlip()] if flip else []))


@every_suite
def test_strong_views_are_weak_ones_and_more(suite: Suite) -> None:
    weak, strong = suite.views["weak"].ops, suite.views["strong"].ops
    assert strong[: len(weak)] == weak
    if suite.dataset == "digits":
        # 8 x 8 pixels, where few operations leave a digit what it is.
        assert [op.op for op in strong[len(weak) :]] == ["randaugment", "cutout"]
        assert not {"invert", "solarise", "equalise", "posterise"} & set(strong[-2].pool)
    else:
        assert strong[len(weak) :] == (RandAugment(), Cutout()), "FixMatch (Sohn et al. 2020)"


@every_suite
def test_dataset_and_noise_know_every_option(suite: Suite, registry: Registry) -> None:
    options = registry.noise.find(suite.noise.generator).entry.options
    for task in suite.tasks:
        dataset = find_dataset(registry, suite.dataset, dataset_options(suite, task))
        assert dataset.num_classes >= (suite.known_classes or 2)
        # Every switch is written out, so that a default of a generator can change without changing a suite.
        assert {**suite.noise.options, **task.noise}.keys() == options.keys()
        spec = noise_spec(registry, suite, task, 7)
        assert (spec.seed == 7) == (suite.name in GENERATED)


def drawn(suite: Suite, task: SuiteTask, registry: Registry, count: int) -> tuple[NDArray[np.int64], GeneratedLabels]:
    """Labels with as many true classes as the dataset has, and what the suite makes of them."""
    dataset = find_dataset(registry, suite.dataset)
    labels = np.arange(count, dtype=np.int64) % dataset.num_classes
    options = dict(noise_spec(registry, suite, task, 1).options)
    if registry.noise.find(suite.noise.generator).entry.uses_images:
        options["images"] = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    generate = registry.noise.find(suite.noise.generator).load()
    num_classes = suite.known_classes or dataset.num_classes
    return labels, generate(labels, task.rate, num_classes=num_classes, seed=1, **options)


@every_generated_suite
def test_rates_rise_from_level_to_level(suite: Suite, registry: Registry) -> None:
    rates: dict[str, list[float]] = {}
    for task in suite.tasks:
        labels, generated = drawn(suite, task, registry, 5_000)
        rates.setdefault(task.name.partition("@")[0] if "@" in task.name else "", []).append(
            float((generated.labels != labels).mean())
        )
    for found in rates.values():
        assert found == sorted(found)
        assert 0.04 < found[0] <= found[-1] < 0.92


@pytest.mark.parametrize("suite", CLASS_NOISE.values(), ids=list(CLASS_NOISE))
def test_the_true_label_stays_the_most_frequent_one(suite: Suite, registry: Registry) -> None:
    for task in suite.tasks:
        _, generated = drawn(suite, task, registry, 1_000)
        known = generated.matrix[: generated.matrix.shape[1]]
        assert (known.argmax(axis=1) == np.arange(len(known))).all()


def test_levels_have_the_names_people_use() -> None:
    assert SUITES["cifar10n"].task("worst").name == "worse"
    assert SUITES["cifar10n"].task("rand2").name == "random2"
    webvision = SUITES["mini-webvision"]
    assert webvision.task("full").test_sets == ("webvision", "ilsvrc12")
    assert webvision.task("ilsvrc12").test_sets == ("ilsvrc12",)
    assert webvision.top5
    assert SUITES["cifar80n-o"].known_classes == 80
