"""From records to rows: runs that differ in nothing but their seeds are averaged, everything else stays apart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.errors import DataError
from lnlbench.records import CellSpec, RunRecord, Scores, canonical_json, digest

SUMMARY_LIMIT = 200
"""Characters of the readable protocol; ``protocol_key`` tells rows apart whose summaries are cut alike."""

OWN_EDITION = "own"
"""Edition of data that nobody published."""

CLAIMED = "claimed"
TIERS = (CLAIMED, "validated", "re-run")
"""How far a run has been checked, the least first."""

_INITIALISATIONS = ("imagenet", "clip")
_PRETRAINED = "+pretrained"
_CLEAN = "clean"
_NOISE = ("noise rate", "noise type")


def _number(decimals: int, description: str) -> Any:
    """Declare an optional number that is written with a fixed count of decimals, and blank where it is missing."""
    return Field(description=description, json_schema_extra={"decimals": decimals})


def _percent(description: str) -> Any:
    return _number(2, f"{description}, in percent.")


class Row(BaseModel):
    """A row of a leaderboard: a protocol on a test set. Its fields, in this order, are the columns of the CSV.

    Averages and lists are over the *finished* runs of the row. Standard deviations are those of a sample (n - 1), and
    missing for a single run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(description="Suite id.")
    suite_version: int = Field(description="Version of the suite.")
    task: str = Field(description="Level within the suite; where a level has several test sets, the test set.")
    method: str = Field(description="Method id.")
    method_version: str = Field(description="Version of the distribution that provides the method.")
    distribution: str = Field(description="Name of that distribution.")
    selector: str = Field(description="The method whose selection before training it starts from, with its version.")
    protocol: str = Field(description="'preset', or the options that differ from it; then why it is reduced, if it is.")
    protocol_key: str = Field(
        description="8 hexadecimal digits over everything but the seeds that can change a result: rows with different "
        "keys are not comparable run by run, and are never merged."
    )
    supervision: str = Field(description="What is used beyond the noisy training set, and what the method asked for.")
    ruleset: str = Field(
        description="'agnostic' if, on all tasks of the suite on which it has runs, the method asked for neither noise "
        "rate nor noise type, and ran with the very options of this row; else 'tuned'."
    )
    knows_noise: str = Field(description="What it asked of the noise: 'rate', 'type', 'rate+type', or 'no'.")
    clean_data: str = Field(description="Clean data it declares to use, e.g. 'clean-validation', or 'no'.")
    n: int = Field(description="Finished runs.")
    n_diverged: int = Field(description="Runs that diverged; they are counted here and averaged nowhere.")
    seeds: str = Field(description="Training seeds, ascending.")
    noise_seeds: str = Field(description="Noise seeds, in the order of the training seeds; blank if nothing is drawn.")
    diverged_seeds: str = Field(description="Training seeds of the diverged runs, ascending.")
    last10_mean: float | None = _percent("Test accuracy, mean over the final ten epochs: the headline")
    last10_std: float | None = _percent("Its standard deviation")
    last_mean: float | None = _percent("Test accuracy after the final epoch")
    last_std: float | None = _percent("Its standard deviation")
    best_mean: float | None = _percent("Highest test accuracy of any epoch: chosen on the test set, hence optimistic")
    best_std: float | None = _percent("Its standard deviation")
    gap_mean: float | None = _percent("Best minus last10: what choosing the epoch on the test set adds")
    best_val_mean: float | None = _percent(
        "Test accuracy at the epoch that is best on the dataset's clean validation set"
    )
    best_val_std: float | None = _percent("Its standard deviation")
    top5_last10_mean: float | None = _percent(
        "Share of test images with the class among the first five, mean over the final ten epochs"
    )
    top5_last10_std: float | None = _percent("Its standard deviation")
    top5_best_mean: float | None = _percent(
        "Likewise at the epoch of the highest test accuracy: chosen on the test set, hence optimistic"
    )
    top5_best_std: float | None = _percent("Its standard deviation")
    clean_precision_mean: float | None = _percent("Share of the samples called clean whose given label is true")
    clean_recall_mean: float | None = _percent("Share of the samples with a true label that were called clean")
    clean_auc_mean: float | None = _percent("Area under the ROC curve of the method's cleanness score")
    clean_size_mean: float | None = _percent("Share of the training set that is called clean")
    id_noise_precision_mean: float | None = _percent(
        "Share of the samples taken for mislabelled, yet of one of the classes, that are so"
    )
    id_noise_recall_mean: float | None = _percent(
        "Share of the mislabelled samples of one of the classes taken for such"
    )
    ood_precision_mean: float | None = _percent("Share of the samples taken for out of distribution that are so")
    ood_recall_mean: float | None = _percent("Share of the samples out of distribution that were taken for such")
    pseudo_label_accuracy_mean: float | None = _percent("Share of the labels that the method put itself that are true")
    memorised_noise_mean: float | None = _percent(
        "Memorised noise: share of the wrong labels that the method answers, of up to 1,000 training images"
    )
    edition: str = Field(
        description="'canonical', the name of the registered data edition, or 'own' for data that nobody published."
    )
    data_digest: str = Field(description="First 12 hexadecimal digits of the digest of images and true labels.")
    noise_variant: str = Field(description="Noise generator and its switches.")
    nominal_rate: float | None = _percent("Noise rate asked of the generator; blank if nothing is drawn")
    realised_rate_mean: float | None = _percent("Share of wrong labels among those known to be right or wrong")
    ood_share_mean: float | None = _percent(
        "Share of samples that belong to none of the classes among the same; blank if there are no such samples"
    )
    known_truth: float | None = _percent("Share of the training labels that are known to be right or wrong")
    noise_digest: str = Field(
        description="First 12 hexadecimal digits of the digest of the given labels, in the order of the seeds."
    )
    backbone: str = Field(description="Backbone.")
    input_size: int = Field(description="Side of the images in pixels.")
    initialisation: str = Field(description="'scratch', or which pre-trained weights were used anywhere.")
    epochs: int | None = Field(description="Training epochs, warm-up included.")
    batch_size: int | None = Field(description="Images per mini-batch.")
    networks: int = Field(description="Networks that vote on a test image.")
    parameters: int = Field(description="Trainable parameters of all networks; the most of any run if they differ.")
    test_images: int = Field(description="Test images evaluated, of the row's test set.")
    train_images: int = Field(description="Training images used.")
    validation: str = Field(description="'yes' if a validation split of the noisy training set was asked for.")
    reduced: str = Field(description="Why these are not full runs; blank for full ones.")
    resume: str = Field(description="'inexact' if any run was resumed on another device or software, else 'exact'.")
    device: str = Field(description="Devices, joined by ' + '.")
    precision: str = Field(description="Precision of forward passes.")
    train_seconds_mean: float | None = _number(1, "Seconds of training.")
    stage_seconds_mean: float | None = _number(1, "Seconds of all stages before training.")
    peak_memory_mib_mean: float | None = _number(1, "Peak memory in MiB.")
    torch: str = Field(description="PyTorch versions, joined by ' + '.")
    lnlbench: str = Field(description="Versions of the core, joined by ' + '.")
    numerics: int = Field(description="Numerical generation of the core; results of different ones never share a row.")
    provenance: str = Field(description="'run': measured by this harness.")
    trust: str = Field(
        description="'claimed': the scores follow from the predictions; 'validated': data, labels and protocol are the "
        "suite's as well; 're-run': run again with the same outcome. That of the row's least checked run."
    )


def decimals(column: str) -> int | None:
    """Return how many decimals a column is written with; ``None`` if it holds no fractional number."""
    extra = Row.model_fields[column].json_schema_extra
    value = extra.get("decimals") if isinstance(extra, dict) else None
    return value if isinstance(value, int) else None


def protocol_digest(record: RunRecord) -> str:
    """Return the digest of all that makes runs comparable: the whole specification but its seeds, and the data used."""
    spec = record.spec
    # Spelled out rather than dumped from the model, so that a field added to the specification later on does not
    # split old rows from new ones by itself. For the same reason what only some suites have is left out elsewhere.
    special: dict[str, Any] = {
        "data_options": spec.data_options,
        "known_classes": spec.known_classes,
        "test_sets": spec.test_sets,
        "selector": spec.selector and spec.selector.model_dump(mode="json"),
    }
    data = record.data.model_dump(mode="json", exclude_defaults=True)
    return digest(
        {
            "suite": [spec.suite, spec.suite_version, spec.task, spec.dataset],
            "method": [spec.method.name, spec.method.version, spec.method.distribution],
            "config": {key: value for key, value in spec.method.config.items() if key != "seed"},
            "changed": {key: value for key, value in spec.method.changed.items() if key != "seed"},
            "model": [spec.method.supervision, spec.method.networks],
            "noise": [spec.noise.generator, spec.noise.options, spec.noise.rate],
            "data": [spec.edition, spec.edition_digest, spec.limit_train, data],
            "views": spec.views,
            "computation": [spec.precision, spec.compile, spec.deterministic, spec.numerics],
            "reduced": spec.reduced,
            **{name: value for name, value in special.items() if value},
        }
    )


def summarise(records: Iterable[RunRecord], trust: Mapping[str, str] | None = None) -> list[Row]:
    """Average records into rows, one per protocol key and test set, whatever order they come in.

    Args:
        records: Results of any suites; a cell may occur once.
        trust: How far runs have been checked, by cell id; the others are claimed.

    Returns:
        The rows, sorted by suite, task, full runs before reduced ones, method, version and protocol key.

    Raises:
        DataError: A cell occurs twice, so it would count twice.
    """
    records = list(records)
    tuned = tuned_cells(records)
    groups: dict[str, list[RunRecord]] = {}
    seen: set[str] = set()
    for record in records:
        if record.cell in seen:
            raise DataError(f"cell {record.cell} ({record.spec.label}) is given twice; give every run once")
        seen.add(record.cell)
        groups.setdefault(protocol_digest(record), []).append(record)
    rows = [
        (key, _row(key[:8], group, test_set, tuned=group[0].cell in tuned, trust=trust or {}))
        for key, group in groups.items()
        for test_set in group[0].spec.test_sets or ("",)
    ]
    return [row for _, row in sorted(rows, key=lambda pair: (*_order(pair[1]), pair[0]))]


def _order(row: Row) -> tuple[str, int, str, bool, str, str]:
    return row.suite, row.suite_version, row.task, row.reduced != "", row.method, row.method_version


def _row(key: str, group: Sequence[RunRecord], test_set: str, tuned: bool, trust: Mapping[str, str]) -> Row:
    """Average the runs of a group on one of its test sets; the only one of a suite has no name."""
    group = sorted(group, key=lambda record: (record.spec.seed, record.spec.noise.seed or 0, record.cell))
    finished = [record for record in group if record.status == "finished"]
    diverged = [record for record in group if record.status == "diverged"]
    # All that is in the key is the same in the whole group, so any member will do for it. What is not in the key but
    # describes the average is told of the runs in the average, as long as there are any.
    told = finished or diverged
    spec, data = group[0].spec, group[0].data
    asked = {each for record in group for each in _asked(record)}
    scores = [each for record in finished if (each := scores_on(record, test_set)) is not None]
    known = [each for each in _NOISE if each in asked]
    supervision = _supervision(spec)

    def selection(name: str) -> float | None:
        return _mean([100 * record.selection[name] for record in finished if name in record.selection])

    def averaged(value: Callable[[RunRecord], float]) -> float | None:
        return _mean([value(record) for record in finished], 1)

    def share(value: Callable[[RunRecord], float | None], of: Sequence[RunRecord] = finished) -> float | None:
        return _mean([100 * each for record in of if (each := value(record)) is not None])

    def accuracy(value: Callable[[Scores], float | None]) -> tuple[float | None, float | None]:
        values = [100 * each for score in scores if (each := value(score)) is not None]
        return _mean(values), _std(values)

    last10_mean, last10_std = accuracy(lambda each: each.last10)
    last_mean, last_std = accuracy(lambda each: each.last)
    best_mean, best_std = accuracy(lambda each: each.best)
    gap_mean, _ = accuracy(lambda each: each.best - each.last10)
    best_val_mean, best_val_std = accuracy(lambda each: each.best_val)
    top5_last10_mean, top5_last10_std = accuracy(lambda each: each.top5_last10)
    top5_best_mean, top5_best_std = accuracy(lambda each: each.top5_best)
    return Row(
        suite=spec.suite,
        suite_version=spec.suite_version,
        task=test_set or spec.task,
        method=spec.method.name,
        method_version=spec.method.version,
        distribution=spec.method.distribution,
        selector="" if spec.selector is None else f"{spec.selector.name} {spec.selector.version}",
        protocol=_protocol(spec),
        protocol_key=key,
        supervision="+".join([*supervision, *(each.replace(" ", "-") for each in known)]),
        ruleset="tuned" if tuned else "agnostic",
        knows_noise="+".join(each.removeprefix("noise ") for each in known) or "no",
        clean_data="+".join(each for each in supervision if each.startswith(_CLEAN)) or "no",
        n=len(finished),
        n_diverged=len(diverged),
        seeds=_words(record.spec.seed for record in finished),
        noise_seeds=_words(seed for record in finished if (seed := record.spec.noise.seed) is not None),
        diverged_seeds=_words(record.spec.seed for record in diverged),
        last10_mean=last10_mean,
        last10_std=last10_std,
        last_mean=last_mean,
        last_std=last_std,
        best_mean=best_mean,
        best_std=best_std,
        gap_mean=gap_mean,
        best_val_mean=best_val_mean,
        best_val_std=best_val_std,
        top5_last10_mean=top5_last10_mean,
        top5_last10_std=top5_last10_std,
        top5_best_mean=top5_best_mean,
        top5_best_std=top5_best_std,
        clean_precision_mean=selection("clean_precision"),
        clean_recall_mean=selection("clean_recall"),
        clean_auc_mean=selection("clean_auc"),
        clean_size_mean=selection("clean_size"),
        id_noise_precision_mean=selection("id_noise_precision"),
        id_noise_recall_mean=selection("id_noise_recall"),
        ood_precision_mean=selection("ood_precision"),
        ood_recall_mean=selection("ood_recall"),
        pseudo_label_accuracy_mean=selection("pseudo_label_accuracy"),
        memorised_noise_mean=selection("memorised_noise"),
        edition=spec.edition,
        data_digest=data.digest[:12],
        noise_variant=spec.noise.variant,
        nominal_rate=share(lambda record: record.spec.noise.rate, group[:1]),
        realised_rate_mean=share(lambda record: record.noise.realised_rate),
        ood_share_mean=share(_ood_share),
        known_truth=share(lambda record: record.noise.num_known / record.data.num_train, told),
        noise_digest=_words(record.noise.digest[:12] for record in finished),
        backbone=str(spec.method.config.get("backbone", "")),
        input_size=data.image_size,
        initialisation="+".join(each for each in _INITIALISATIONS if each in supervision) or "scratch",
        epochs=_whole(spec.method.config.get("epochs")),
        batch_size=_whole(spec.method.config.get("batch_size")),
        networks=spec.method.networks,
        parameters=max(record.parameters for record in told),
        test_images=data.num_further_test.get(test_set, data.num_test),
        train_images=data.num_train,
        validation="yes" if "validation" in asked else "no",
        reduced="; ".join(spec.reduced),
        resume="inexact" if any(record.resume == "inexact" for record in told) else "exact",
        device=_distinct(record.environment.device for record in told),
        precision=spec.precision,
        train_seconds_mean=averaged(lambda record: record.timing.train_seconds),
        stage_seconds_mean=averaged(lambda record: sum(record.timing.stage_seconds.values())),
        peak_memory_mib_mean=averaged(lambda record: record.peak_memory_bytes / 2**20),
        torch=_distinct(record.environment.versions.get("torch", "") for record in told),
        lnlbench=_distinct(record.environment.lnlbench for record in told),
        numerics=spec.numerics,
        provenance="run",
        trust=min((trust.get(record.cell, CLAIMED) for record in group), key=TIERS.index),
    )


def scores_on(record: RunRecord, test_set: str) -> Scores | None:
    """Return the scores of a run on one of its test sets, by name; ``None`` if the run diverged."""
    if test_set in record.spec.test_sets[1:]:
        return record.further_scores.get(test_set)
    return record.scores


def division(record: RunRecord) -> tuple[Any, ...]:
    """Return what the results of different methods must have in common to be comparable at all.

    It is suite, version and numerical generation, the edition of the data and how much of the training set is used,
    and whether the run is a full one. Own data have no edition to go by, hence their digest.
    """
    spec = record.spec
    own = record.data.digest if spec.edition == OWN_EDITION else ""
    data = (spec.edition, spec.edition_digest, own, spec.limit_train)
    return (spec.suite, spec.suite_version, spec.numerics, *data, bool(spec.reduced))


def tuned_cells(records: Sequence[RunRecord]) -> set[str]:
    """Return the ids of the cells that fall under the ``tuned`` ruleset.

    Args:
        records: All results of the suites they belong to: what a method did on one task decides for the others.

    Returns:
        Cells whose method asked for noise rate or type on any task of the suite, or has runs on a task of it that were
        not repeated with the options of this cell.
    """
    keys = [_method_and_options(record) for record in records]
    tasks: dict[Any, set[str]] = {}
    covered: dict[Any, set[str]] = {}
    asking = set()
    for record, (method, options) in zip(records, keys, strict=True):
        tasks.setdefault(method, set()).add(record.spec.task)
        covered.setdefault((method, options), set()).add(record.spec.task)
        if not _asked(record).isdisjoint(_NOISE):
            asking.add(method)
    return {
        record.cell
        for record, (method, options) in zip(records, keys, strict=True)
        if method in asking or covered[method, options] < tasks[method]
    }


def _method_and_options(record: RunRecord) -> tuple[Any, str]:
    methods = [each for each in (record.spec.method, record.spec.selector) if each is not None]
    options = [{name: value for name, value in each.config.items() if name != "seed"} for each in methods]
    names = tuple((each.name, each.version, each.distribution) for each in methods)
    return (division(record), names), canonical_json(options)


def _asked(record: RunRecord) -> set[str]:
    selector = record.spec.selector
    return {*record.asked, *record.spec.method.asked, *(() if selector is None else selector.asked)}


def _supervision(spec: CellSpec) -> list[str]:
    """Say what is used beyond the noisy training set: what the method declares, and the weights of its backbone."""
    declared = list(spec.method.supervision)
    if spec.selector is not None:
        declared += [each for each in spec.selector.supervision if each not in declared]
        declared = [each for each in declared if each != "scratch" or len(declared) == 1]
    if not str(spec.method.config.get("backbone", "")).endswith(_PRETRAINED) or "imagenet" in declared:
        return declared
    return ["imagenet", *(each for each in declared if each != "scratch")]


def _ood_share(record: RunRecord) -> float | None:
    # Where no class is outside the task, a share of zero would suggest that somebody had looked.
    noise = record.noise
    return noise.num_ood / noise.num_known if noise.num_ood or (record.spec.known_classes and noise.num_known) else None


def _protocol(spec: CellSpec) -> str:
    parts = [departure(spec)] if departure(spec) else []
    if spec.reduced:
        parts.append(f"reduced: {', '.join(spec.reduced)}")
    text = "; ".join(parts) or "preset"
    return text if len(text) <= SUMMARY_LIMIT else f"{text[: SUMMARY_LIMIT - 1]}…"


def departure(spec: CellSpec) -> str:
    """Say for people in what way a run differs from the preset, but for being reduced; empty if in none."""
    # A reason that names the option it comes from ("3 of 40 epochs") says it all.
    explained = {word for reason in spec.reduced for word in reason.split()}
    changed = {name: value for name, value in spec.method.changed.items() if name not in explained}
    parts = [",".join(f"{name}={_plain(changed[name])}" for name in sorted(changed))] if changed else []
    if spec.selector is not None:
        options = ",".join(f"{name}={_plain(value)}" for name, value in sorted(spec.selector.changed.items()))
        parts.append(f"from {spec.selector.name}'s selection" + (f" ({options})" if options else ""))
    if spec.compile:
        parts.append("compiled")
    if not spec.deterministic:
        parts.append("nondeterministic")
    return "; ".join(parts)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _mean(values: Sequence[float], digits: int = 2) -> float | None:
    # Adding zero turns the negative zero that rounding leaves into zero.
    return round(statistics.fmean(values), digits) + 0.0 if values else None


def _std(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 2) + 0.0 if len(values) > 1 else None


def _words(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _distinct(values: Iterable[str]) -> str:
    return " + ".join(sorted({value for value in values if value}))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
