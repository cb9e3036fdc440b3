from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from lnlbench.errors import DataError
from lnlbench.leaderboard.aggregate import Row, decimals, summarise
from lnlbench.records import CellSpec, Environment, MethodSpec, NoiseSpec, RunRecord, Scores, Timing

Spec = Callable[..., CellSpec]
Record = Callable[..., RunRecord]

PROMISED = [
    "suite",
    "suite_version",
    "task",
    "method",
    "method_version",
    "protocol",
    "protocol_key",
    "supervision",
    "ruleset",
    "knows_noise",
    "clean_data",
    "n",
    "n_diverged",
    "seeds",
    "noise_seeds",
    "last10_mean",
    "last10_std",
    "last_mean",
    "last_std",
    "best_mean",
    "best_std",
    "gap_mean",
    "best_val_mean",
    "best_val_std",
    "top5_last10_mean",
    "top5_last10_std",
    "top5_best_mean",
    "top5_best_std",
    "clean_precision_mean",
    "clean_recall_mean",
    "clean_auc_mean",
    "clean_size_mean",
    "id_noise_precision_mean",
    "id_noise_recall_mean",
    "ood_precision_mean",
    "ood_recall_mean",
    "pseudo_label_accuracy_mean",
    "memorised_noise_mean",
    "edition",
    "data_digest",
    "noise_variant",
    "nominal_rate",
    "realised_rate_mean",
    "ood_share_mean",
    "known_truth",
    "noise_digest",
    "backbone",
    "input_size",
    "initialisation",
    "epochs",
    "batch_size",
    "networks",
    "parameters",
    "test_images",
    "train_images",
    "validation",
    "reduced",
    "resume",
    "device",
    "precision",
    "train_seconds_mean",
    "stage_seconds_mean",
    "peak_memory_mib_mean",
    "torch",
    "lnlbench",
    "provenance",
    "trust",
]


OWN = NoiseSpec(generator="own", options={}, rate=None, seed=None)
SETS = ("webvision", "ilsvrc12")


def scores(last10: float, last: float = 0.5, best: float = 0.95, **more: float) -> Scores:
    return Scores(last10=last10, last=last, best=best, best_epoch=0, **more)


def test_the_promised_columns_come_in_their_order() -> None:
    columns = list(Row.model_fields)
    assert [column for column in columns if column in PROMISED] == PROMISED
    assert set(columns) - set(PROMISED) == {"distribution", "diverged_seeds", "numerics", "selector"}
    assert all(field.description for field in Row.model_fields.values())
    assert decimals("last10_mean") == 2
    assert decimals("n") is None


def test_three_seeds_worked_by_hand(spec: Spec, record: Record) -> None:
    runs = [
        record(
            spec(seed=seed, noise_seed=seed + 10),
            scores(last10, last, best),
            selection={"clean_precision": precision, "clean_size": size},
            timing=Timing(
                train_seconds=seconds, evaluate_seconds=9, harness_seconds=9, stage_seconds={"a": 1.0, "b": 2.0}
            ),
        )
        for seed, last10, last, best, precision, size, seconds in [
            (3, 0.90, 0.89, 0.93, 0.97, 0.50, 10.0),
            (1, 0.91, 0.92, 0.94, 0.98, 0.55, 20.0),
            (2, 0.95, 0.95, 0.96, 0.99, 0.60, 60.0),
        ]
    ]
    (row,) = summarise(runs)
    assert (row.n, row.n_diverged, row.seeds, row.noise_seeds, row.diverged_seeds) == (3, 0, "1 2 3", "11 12 13", "")
    # Mean of 90, 91, 95 is 92; deviations -2, -1, 3; their squares sum to 14; sqrt(14 / 2) = 2.6458.
    assert (row.last10_mean, row.last10_std) == (92.0, 2.65)
    assert (row.last_mean, row.last_std) == (92.0, 3.0)
    assert (row.best_mean, row.best_std) == (94.33, 1.53)
    # Gaps are 3, 3 and 1.
    assert row.gap_mean == 2.33
    assert (row.clean_precision_mean, row.clean_size_mean) == (98.0, 55.0)
    assert (row.clean_recall_mean, row.clean_auc_mean) == (None, None)
    assert (row.nominal_rate, row.realised_rate_mean, row.known_truth) == (40.0, 75.0, 100.0)
    assert (row.train_seconds_mean, row.stage_seconds_mean, row.peak_memory_mib_mean) == (30.0, 3.0, 256.0)
    assert row.noise_digest.split() == [each.noise.digest[:12] for each in sorted(runs, key=lambda one: one.spec.seed)]
    assert (row.backbone, row.epochs, row.batch_size, row.input_size) == ("mlp", 12, 64, 8)
    assert (row.protocol, row.reduced, row.provenance, row.noise_variant) == (
        "preset",
        "",
        "run",
        "symmetric(count=exact)",
    )
    assert (row.device, row.torch, row.lnlbench, row.resume) == ("Some CPU", "2.13.0+cpu", "0.1.0", "exact")


def test_spread_is_the_sample_standard_deviation(spec: Spec, record: Record) -> None:
    rng = random.Random(0)
    for n in range(2, 30):
        values = [rng.random() for _ in range(n)]
        (row,) = summarise([record(spec(seed=seed), scores(value)) for seed, value in enumerate(values)])
        assert row.last10_std == round(statistics.stdev(100 * value for value in values), 2)
        assert row.last10_mean == round(statistics.fmean(100 * value for value in values), 2)
        assert row.n == n


def test_a_single_run_has_no_spread(spec: Spec, record: Record) -> None:
    (row,) = summarise([record(spec(), scores(0.9, 0.9, 0.9))])
    assert (row.last10_mean, row.last10_std, row.last_std, row.best_std) == (90.0, None, None, None)
    assert str(row.gap_mean) == "0.0"


def test_diverged_runs_are_counted_and_never_averaged(spec: Spec, record: Record) -> None:
    broken = {"timing": Timing(train_seconds=1e6, evaluate_seconds=0, harness_seconds=0, stage_seconds={})}
    (row,) = summarise(
        [
            record(spec(seed=1), scores(0.8)),
            record(spec(seed=2), **broken, parameters=0),
            record(spec(seed=3), scores(0.9)),
            record(spec(seed=4), **broken, parameters=0),
        ]
    )
    assert (row.n, row.n_diverged, row.seeds, row.diverged_seeds) == (2, 2, "1 3", "2 4")
    assert (row.last10_mean, row.last10_std) == (85.0, 7.07)
    assert (row.train_seconds_mean, row.parameters) == (12.5, 12345)
    (row,) = summarise([record(spec(seed=2))])
    assert (row.n, row.n_diverged, row.seeds, row.diverged_seeds) == (0, 1, "", "2")
    numbers = {column for column in Row.model_fields if decimals(column) is not None}
    # What is asked for and what is known of the labels does not depend on how a run ends.
    assert {getattr(row, column) for column in numbers - {"nominal_rate", "known_truth"}} == {None}
    assert row.device == "Some CPU"


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "digits-asym"},
        {"suite_version": 2},
        {"task": "0.60"},
        {"method": "other"},
        {"version": "0.2.0"},
        {"distribution": "fork"},
        {"config": {"lr": 0.2}},
        {"config": {"epochs": 3}},
        {"supervision": ("clip",)},
        {"networks": 2},
        {"edition": "jpeg"},
        {"edition_digest": "e" * 64},
        {"limit_train": 100},
        {"data_options": {"size": 84}},
        {"known_classes": 3},
        {"noise": OWN},
        {"views": {}},
        {"precision": "bf16"},
        {"compile": True},
        {"deterministic": False},
        {"reduced": ("epochs 3 of 12",)},
        {"numerics": 99},
    ],
    ids=str,
)
def test_whatever_can_change_a_result_splits_the_row(spec: Spec, record: Record, change: dict[str, Any]) -> None:
    same = [record(spec(seed=1), scores(0.8)), record(spec(seed=2, noise_seed=7), scores(0.9))]
    rows = summarise([*same, record(spec(**({"seed": 3} | change)), scores(0.1))])
    assert len({row.protocol_key for row in rows}) == 2
    assert sorted((row.n, row.last10_mean) for row in rows) == [(1, 10.0), (2, 85.0)]


def test_other_data_or_noise_split_the_row_but_devices_do_not(spec: Spec, record: Record) -> None:
    one = record(spec(seed=1), scores(0.8))
    data = record(spec(seed=2), scores(0.8), data=one.data.model_copy(update={"digest": "e" * 64}))
    variant = spec(seed=3)
    noise = record(variant.model_copy(update={"noise": variant.noise.model_copy(update={"options": {}})}), scores(0.8))
    assert [row.n for row in summarise([one, data, noise])] == [1, 1, 1]
    environment = Environment(**(one.environment.model_dump() | {"device": "A GPU", "versions": {"torch": "2.14"}}))
    (row,) = summarise([one, record(spec(seed=2), scores(0.8), environment=environment, resume="inexact")])
    assert (row.device, row.torch, row.resume) == ("A GPU + Some CPU", "2.13.0+cpu + 2.14", "inexact")


def test_each_test_set_has_a_row_of_its_own(spec: Spec, record: Record) -> None:
    runs = [
        record(
            spec(task="full", noise=OWN, test_sets=SETS, seed=seed),
            scores(main, best_val=main - 0.01, top5_last10=0.9, top5_last=0.9, top5_best=0.95),
            further_scores={"ilsvrc12": scores(other)},
            best_val_epoch=3,
            selection={"clean_auc": 0.8},
        )
        for seed, main, other in [(1, 0.76, 0.70), (2, 0.78, 0.74)]
    ]
    runs.append(record(spec(task="full", noise=OWN, test_sets=SETS, seed=3)))
    ilsvrc12, webvision = summarise(runs)
    assert (ilsvrc12.task, webvision.task) == ("ilsvrc12", "webvision")
    assert (ilsvrc12.last10_mean, ilsvrc12.last10_std, ilsvrc12.test_images) == (72.0, 2.83, 30)
    assert (webvision.last10_mean, webvision.last10_std, webvision.test_images) == (77.0, 1.41, 50)
    assert (webvision.best_val_mean, webvision.best_val_std) == (76.0, 1.41)
    assert (webvision.top5_last10_mean, webvision.top5_last10_std) == (90.0, 0.0)
    assert (webvision.top5_best_mean, webvision.top5_best_std) == (95.0, 0.0)
    assert (ilsvrc12.best_val_mean, ilsvrc12.top5_last10_mean, ilsvrc12.top5_best_std) == (None, None, None)
    same = set(Row.model_fields) - {column for column in Row.model_fields if column.endswith(("_mean", "_std"))}
    for column in (same - {"task", "test_images"}) | {"clean_auc_mean", "train_seconds_mean"}:
        assert getattr(ilsvrc12, column) == getattr(webvision, column)
    assert (webvision.n, webvision.n_diverged, webvision.diverged_seeds) == (2, 1, "3")


def test_a_single_named_test_set_names_the_task(spec: Spec, record: Record) -> None:
    one = record(spec(task="full", noise=OWN, test_sets=("ilsvrc12",)), scores(0.7))
    both = record(spec(task="full", noise=OWN, test_sets=SETS), scores(0.7))
    rows = summarise([one, both])
    assert [row.task for row in rows] == ["ilsvrc12", "ilsvrc12", "webvision"]
    assert [row.test_images for row in rows if row.protocol_key == summarise([one])[0].protocol_key] == [50]


def test_labels_that_were_not_drawn_have_no_rate_and_no_seed(spec: Spec, record: Record) -> None:
    run = record(spec(task="full", noise=OWN), scores(0.7))
    unknown = {"num_known": 0, "num_changed": 0, "realised_rate": None, "confusion": None}
    (row,) = summarise([run.model_copy(update={"noise": run.noise.model_copy(update=unknown)})])
    assert (row.nominal_rate, row.noise_seeds, row.noise_variant) == (None, "", "own")
    assert (row.realised_rate_mean, row.ood_share_mean, row.known_truth) == (None, None, 0.0)
    partly = {"num_known": 10, "num_changed": 2, "realised_rate": 0.2, "num_ood": 1}
    (row,) = summarise([run.model_copy(update={"noise": run.noise.model_copy(update=partly)})])
    assert (row.realised_rate_mean, row.ood_share_mean, row.known_truth) == (20.0, 10.0, 25.0)


def test_out_of_distribution_scores(spec: Spec, record: Record) -> None:
    names = ("id_noise_precision", "id_noise_recall", "ood_precision", "ood_recall")
    names += ("pseudo_label_accuracy", "memorised_noise")
    runs = [
        record(
            spec(seed=seed, known_classes=4),
            scores(0.5),
            selection={name: 0.1 * number + seed / 100 for number, name in enumerate(names, start=1)},
        )
        for seed in (1, 3)
    ]
    (row,) = summarise(runs)
    assert [getattr(row, f"{name}_mean") for name in names] == [12.0, 22.0, 32.0, 42.0, 52.0, 62.0]
    # Nobody is out of distribution here, but in such a suite there could be.
    assert row.ood_share_mean == 0.0
    (row,) = summarise([record(spec(), scores(0.5))])
    assert {getattr(row, f"{name}_mean") for name in names} == {row.ood_share_mean} == {None}


def test_keys_of_rows_are_what_they_always_were(spec: Spec, record: Record) -> None:
    (row,) = summarise([record(spec(), scores(0.9))])
    assert row.protocol_key == "95db4953"


def test_order_of_records_does_not_matter(spec: Spec, record: Record) -> None:
    runs = [
        record(spec(method, task, seed, reduced=reduced), scores(0.5 + seed / 10))
        for method in ("b", "a")
        for task in ("0.60", "0.20")
        for seed in (3, 1, 2)
        for reduced in ((), ("epochs 3 of 12",))
    ]
    expected = summarise(runs)
    assert [(row.task, row.reduced != "", row.method) for row in expected] == [
        (task, reduced, method) for task in ("0.20", "0.60") for reduced in (False, True) for method in "ab"
    ]
    for seed in range(20):
        random.Random(seed).shuffle(runs)
        assert summarise(runs) == expected


def test_a_cell_given_twice_is_refused(spec: Spec, record: Record) -> None:
    run = record(spec(), scores(0.9))
    with pytest.raises(DataError, match="given twice"):
        summarise([run, run])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "preset"),
        ({"changed": {"lambda_u": 25, "alpha": 0.5}}, "alpha=0.5,lambda_u=25"),
        ({"changed": {"epochs": 3}, "reduced": ("epochs 3 of 40",)}, "reduced: epochs 3 of 40"),
        (
            {"changed": {"epochs": 3, "lr": 1.0}, "reduced": ("3 of 40 epochs", "9 of 10 training images")},
            "lr=1.0; reduced: 3 of 40 epochs, 9 of 10 training images",
        ),
        ({"compile": True, "deterministic": False}, "compiled; nondeterministic"),
        ({"changed": {"name": "x" * 500}}, "name=" + "x" * 194 + "…"),
    ],
)
def test_the_protocol_is_readable(spec: Spec, record: Record, change: dict[str, Any], expected: str) -> None:
    (row,) = summarise([record(spec(**change), scores(0.9))])
    assert row.protocol == expected


@pytest.mark.parametrize(
    ("asked", "supervision", "expected"),
    [
        ((), ("scratch",), ("scratch", "agnostic", "scratch", "no", "no", "no")),
        (("noise rate",), ("scratch",), ("scratch+noise-rate", "tuned", "scratch", "rate", "no", "no")),
        (("validation", "noise type"), ("clip",), ("clip+noise-type", "tuned", "clip", "type", "no", "yes")),
        (
            ("noise type", "noise rate"),
            ("clip", "clean-validation"),
            ("clip+clean-validation+noise-rate+noise-type", "tuned", "clip", "rate+type", "clean-validation", "no"),
        ),
        ((), ("imagenet", "clip"), ("imagenet+clip", "agnostic", "imagenet+clip", "no", "no", "no")),
    ],
)
def test_supervision_and_ruleset(
    spec: Spec, record: Record, asked: tuple[str, ...], supervision: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    (row,) = summarise([record(spec(supervision=supervision), scores(0.9), asked=asked)])
    found = (row.supervision, row.ruleset, row.initialisation, row.knows_noise, row.clean_data, row.validation)
    assert found == expected


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        ([("a", "0.60", {}, ())], {("0.40", ""): "agnostic", ("0.60", ""): "agnostic"}),
        ([("a", "0.60", {"lr": 0.2}, ())], {("0.40", ""): "tuned", ("0.60", "lr=0.2"): "tuned"}),
        # An option tried out on one task is a choice for that task; the preset still ran on all of them.
        (
            [("a", "0.60", {}, ()), ("a", "0.60", {"lr": 0.2}, ())],
            {("0.40", ""): "agnostic", ("0.60", ""): "agnostic", ("0.60", "lr=0.2"): "tuned"},
        ),
        (
            [("a", "0.60", {}, ()), ("a", "0.60", {"lr": 0.2}, ()), ("a", "0.40", {"lr": 0.2}, ())],
            dict.fromkeys([("0.40", ""), ("0.60", ""), ("0.60", "lr=0.2"), ("0.40", "lr=0.2")], "agnostic"),
        ),
        # What it asks for on one task decides for all of them.
        ([("a", "0.60", {}, ("noise rate",))], {("0.40", ""): "tuned", ("0.60", ""): "tuned"}),
        # Other methods, suites and editions are none of its business.
        ([("b", "0.60", {"lr": 0.2}, ("noise rate",))], {("0.40", ""): "agnostic"}),
    ],
    ids=str,
)
def test_one_setting_on_all_tasks_is_agnostic(
    spec: Spec, record: Record, further: list[Any], expected: dict[tuple[str, str], str]
) -> None:
    runs = [record(spec("a", "0.40"), scores(0.9)), record(spec("a", "0.60", edition="jpeg", config={"lr": 9})), *(
        record(spec(method, task, changed=changed, config=changed), scores(0.9), asked=asked)
        for method, task, changed, asked in further
    )]  # fmt: skip
    rows = [row for row in summarise(runs) if row.method == "a" and row.edition == "canonical"]
    assert {(row.task, row.protocol.replace("preset", "")): row.ruleset for row in rows} == expected


def test_a_preset_that_differs_between_tasks_is_tuned_even_if_it_asks_for_nothing(spec: Spec, record: Record) -> None:
    runs = [record(spec("a", task, config={"lr": lr}), scores(0.9)) for task, lr in (("0.40", 0.1), ("0.60", 0.2))]
    assert [row.ruleset for row in summarise(runs)] == ["tuned", "tuned"]
    assert [row.ruleset for row in summarise(runs[:1])] == ["agnostic"]
    # A configuration may carry the seed, which is no choice.
    runs = [
        record(spec("a", task, seed, config={"seed": seed}), scores(0.9)) for seed, task in enumerate(["0.40", "0.60"])
    ]
    assert [row.ruleset for row in summarise(runs)] == ["agnostic", "agnostic"]


@pytest.mark.parametrize(
    ("backbone", "supervision", "expected"),
    [
        ("timm:resnet50+pretrained", ("scratch",), ("imagenet", "imagenet")),
        ("timm:resnet50+pretrained", ("imagenet",), ("imagenet", "imagenet")),
        ("timm:resnet50+pretrained", ("clip",), ("imagenet+clip", "imagenet+clip")),
        ("timm:resnet50", ("scratch",), ("scratch", "scratch")),
        ("timm:resnet50", ("imagenet",), ("imagenet", "imagenet")),
    ],
)
def test_weights_of_a_pretrained_backbone_are_supervision_whatever_the_method_says(
    spec: Spec, record: Record, backbone: str, supervision: tuple[str, ...], expected: tuple[str, str]
) -> None:
    (row,) = summarise([record(spec(supervision=supervision, config={"backbone": backbone}), scores(0.9))])
    assert (row.supervision, row.initialisation) == expected
    tuned = record(spec(supervision=supervision, config={"backbone": backbone}), scores(0.9), asked=("noise rate",))
    assert summarise([tuned])[0].supervision == f"{expected[0]}+noise-rate"


def test_a_row_says_whose_selection_it_starts_from(spec: Spec, record: Record) -> None:
    def selector(**changes: Any) -> MethodSpec:
        fields = {"name": "chooser", "version": "1.0", "distribution": "x", "config": {"tau": 0.5}, "changed": {}}
        return MethodSpec(**(fields | {"supervision": ("clip",), "networks": 1, "asked": ()} | changes))

    made = [
        spec(),
        spec(selector=selector()),
        spec(selector=selector(config={"tau": 0.7}, changed={"tau": 0.7}, asked=("noise rate",))),
    ]
    rows = {row.protocol: row for row in summarise([record(each, scores(0.9)) for each in made])}
    assert set(rows) == {"preset", "from chooser's selection", "from chooser's selection (tau=0.7)"}
    plain, chosen, tuned = (rows[each] for each in sorted(rows, key=len))
    assert len({plain.protocol_key, chosen.protocol_key, tuned.protocol_key}) == 3
    assert (plain.selector, plain.supervision, plain.initialisation) == ("", "scratch", "scratch")
    assert (chosen.selector, chosen.supervision, chosen.initialisation) == ("chooser 1.0", "clip", "clip")
    assert (tuned.supervision, tuned.ruleset) == ("clip+noise-rate", "tuned"), "its questions count as the method's own"


def test_own_data_are_an_edition(spec: Spec, record: Record) -> None:
    (row,) = summarise([record(spec(edition="own"), scores(0.9))])
    assert row.edition == "own"
