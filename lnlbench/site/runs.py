"""One page per measured row, with its runs: curves, given labels, configuration, environment, how to repeat it."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lnlbench.leaderboard.aggregate import Row, scores_on
from lnlbench.leaderboard.content import MAIN
from lnlbench.leaderboard.reproduce import commands, needed, row_name
from lnlbench.leaderboard.store import guard
from lnlbench.records import CellSpec, RunRecord, Scores, canonical_json, digest
from lnlbench.site.model import LoggedEpoch, Run, Site
from lnlbench.site.plots import Series, lines, matrix
from lnlbench.site.render import render

SELECTION = {
    "clean_precision": "Clean-selection precision",
    "clean_recall": "Clean-selection recall",
    "clean_auc": "Clean-selection AUC",
    "pseudo_label_accuracy": "Pseudo-label accuracy",
    "id_noise_precision": "In-distribution noise, precision",
    "id_noise_recall": "In-distribution noise, recall",
    "ood_precision": "Out-of-distribution, precision",
    "ood_recall": "Out-of-distribution, recall",
}
"""Selection scores with a curve, and what they are called."""

SCORES = {
    "last10": "Mean of the last 10 epochs",
    "last": "Last epoch",
    "best": "Best epoch, chosen on the test set",
    "best_val": "Best epoch on clean validation data",
    "top5_last10": "Top-5, mean of the last 10 epochs",
    "top5_best": "Top-5 at the best epoch, chosen on the test set",
}
"""Scores of a row, the headline first."""

TRUST = {
    "claimed": "the scores follow from the predictions",
    "validated": "data, labels and protocol were checked as well",
    "re-run": "run again, with the same outcome",
}
"""What the tiers of trust mean."""

_MEMORISED = "memori"
"""Logged metrics with this in their names say how much of the noise the networks know by heart."""
_SHOWN_EPOCHS = 12
"""Rows of a run's table; its files have all epochs."""
_SHOWN_CLASSES = 20
"""Up to so many classes all shares are in a table, else the largest ones only."""

_LABELS = "data/noise/"
"""Folder of the files about given labels."""

_CHUNK = 50
"""Rows that are treated together; their given labels are read and drawn once."""
_MANY_RUNS = 1000
"""From so many runs on it pays to have several processes."""
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Logged:
    """A run with its metrics."""

    run: Run
    name: str
    """What it is called among the runs of its row."""
    epochs: Sequence[LoggedEpoch]
    scores: Scores | None
    """On the test set of the row; ``None`` if it diverged."""

    def curve(self, of: Quantity) -> list[tuple[int, float]]:
        """Return a quantity by the number of epochs trained."""
        found = ((number, of.value(epoch)) for number, epoch in enumerate(self.epochs, start=1))
        return [(number, value) for number, value in found if value is not None]


@dataclass(frozen=True)
class Quantity:
    """Something that is known after each epoch."""

    label: str
    """A heading."""
    kind: str
    """``accuracies``, ``selection`` or ``logged``: where it is."""
    key: str
    """Its name there."""

    @property
    def unit(self) -> str:
        """The unit it is shown in; empty for what a method logs, which is shown as it is."""
        return "" if self.kind == "logged" else "%"

    def value(self, epoch: LoggedEpoch) -> float | None:
        """Return it as it is shown; ``None`` where there is none."""
        if self.kind == "logged":
            return epoch.logged.get(self.key)
        held = epoch.scores.accuracies if self.kind == "accuracies" else epoch.scores.selection
        value = held.get(self.key)
        return None if value is None else 100 * value


@dataclass(frozen=True)
class Table:
    """The numbers of a run by epoch."""

    rows: Markup
    count: int
    """How many rows there are."""


@dataclass(frozen=True)
class GivenLabels:
    """Given labels, which most runs of a level share."""

    record: RunRecord
    """A run with them, and with their confusion matrix."""
    picture: Markup
    """Empty if no true class is known."""
    shares: tuple[tuple[str, tuple[str, ...]], ...]
    """Rows of the table: true class, then shares of given classes in percent; of few classes only."""
    flips: tuple[tuple[int, int, str], ...]
    """The largest shares of wrong classes, of many classes: true class, given class, percent."""
    kept: str
    """Smallest and largest share of right labels of a class."""
    stem: str
    """Address of its files, without the ending; empty if there are none."""


_Seen = dict[str, GivenLabels]
"""Given labels that have been drawn, by data and noise."""


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield the page of every measured row, and the files behind it. Many are made by several processes.

    Raises:
        DataError: A bundle is damaged.
    """
    rows = list(site.rows())
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    written = set()
    for made in _each(site, chunks):
        for path, text in made:
            # Rows of several chunks may have the same given labels, and then the same files of them.
            if not path.startswith(_LABELS) or path not in written:
                written.add(path)
                yield path, text


def _each(site: Site, chunks: Sequence[Sequence[Row]]) -> Iterator[list[tuple[str, str]]]:
    """Make the pages of each chunk, in this order."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
    if workers == 1 or sum(map(len, site.runs.values())) < _MANY_RUNS:
        yield from (_pages(site, chunk) for chunk in chunks)
        return
    # Forked processes have the site already; handing it over would take longer than the pages.
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings(), ProcessPoolExecutor(workers, context, _inherit, (site,)) as pool:
        # Libraries that compute keep threads of their own, which the children neither have nor need.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        yield from pool.map(_inherited_pages, chunks)


_inherited: list[Site] = []
"""In a worker process: the site."""


def _inherit(site: Site) -> None:
    _inherited.append(site)


def _inherited_pages(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return _pages(_inherited[0], rows)


def _pages(site: Site, rows: Sequence[Row]) -> list[tuple[str, str]]:
    seen: _Seen = {}
    datasets = {name: site.dataset_of(name) for name in {row.suite for row in rows}}
    return [page for row in rows for page in _page(site, row, datasets[row.suite], seen)]


def _page(site: Site, row: Row, dataset: str, seen: _Seen) -> Iterator[tuple[str, str]]:
    path = site.row_url(row)
    logged = _logged(row, site.runs_of(row))
    quantities = _quantities(row, logged)
    curves = [(each, [(one, points) for one in logged if (points := one.curve(each))]) for each in quantities]
    records = [each.run.record for each in logged]
    known = len(seen)
    noises = _noises(logged, seen)
    stem = f"data/{path.removesuffix('.html')}" if any(each.epochs for each in logged) else ""
    yield (
        path,
        render(
            "run.html",
            path,
            site=site,
            results=site.suites[row.suite],
            row=row,
            dataset=dataset,
            scores=_scores(row),
            selection=_selection(row),
            runs=logged,
            figures=[_figure(number, each, found) for number, (each, found) in enumerate(curves, start=1)],
            tables={each.name: _table(each, quantities) for each in logged},
            quantities=quantities,
            noises=noises,
            commands=[each.text for each in commands(records, site.registry.suites)],
            needed=list(dict.fromkeys(each for record in records for each in needed(record))),
            compare=shlex.join(["lnlbench", "reproduce", row_name(*_place(row)), "--run"]),
            options=_options(records[0].spec) if records else [],
            protocol=_protocol(row),
            stem=stem,
        ),
    )
    if stem:
        yield from _epoch_files(stem, logged)
    for given in list(seen.values())[known:]:
        yield from _confusion_files(given)


def _logged(row: Row, runs: Sequence[Run]) -> list[Logged]:
    names = _names([run.record for run in runs])
    return [
        Logged(run, name, run.epochs(), scores_on(run.record, row.task)) for run, name in zip(runs, names, strict=True)
    ]


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Name runs by seed, and where the noise was frozen or a seed occurs twice by what tells them apart."""
    names = []
    for record in records:
        seed, noise = record.spec.seed, record.spec.noise.seed
        names.append(f"seed {seed}" if noise in (None, seed) else f"seed {seed}, noise seed {noise}")
    return [
        name if names.count(name) == 1 else f"{name}, {record.cell[:6]}"
        for name, record in zip(names, records, strict=True)
    ]


def _quantities(row: Row, runs: Sequence[Logged]) -> list[Quantity]:
    """Return what has a curve: whatever is known in any epoch."""
    epochs = [epoch for each in runs for epoch in each.epochs]
    tests = next((each.run.record.spec.test_sets for each in runs), ())
    own = row.task if row.task in tests[1:] else MAIN
    accuracies = {own: "Test accuracy", f"{own}.top5" if own else "top5": "Top-5 test accuracy"}
    accuracies["validation"] = "Accuracy on clean validation data"
    logged = {name for epoch in epochs for name in epoch.logged}
    memorised = {name: f"Memorised noise: {name}" for name in sorted(logged) if _MEMORISED in name.lower()}
    known = {
        "accuracies": {name for epoch in epochs for name in epoch.scores.accuracies},
        "selection": {name for epoch in epochs for name in epoch.scores.selection},
        "logged": logged,
    }
    labels = {"accuracies": accuracies, "selection": SELECTION, "logged": memorised}
    return [
        Quantity(label, kind, key) for kind, held in labels.items() for key, label in held.items() if key in known[kind]
    ]


def _figure(number: int, quantity: Quantity, curves: Sequence[tuple[Logged, list[tuple[int, float]]]]) -> Markup:
    ends = ", ".join(f"{each.name}: {points[-1][1]:.2f}" for each, points in curves)
    return lines(
        quantity.label,
        f"{quantity.label} by the number of epochs trained. At the end, {ends}. The tables of the runs have the "
        "numbers.",
        "epochs trained",
        f"{quantity.label}{f', {quantity.unit}' if quantity.unit else ''}",
        [Series(each.name, tuple(points)) for each, points in curves],
        count=max(len(each.epochs) for each, _ in curves),
        id_prefix=f"curve-{number}",
    )


def _table(run: Logged, quantities: Sequence[Quantity]) -> Table:
    """Return the numbers of some epochs: the first, the last, and between them at equal distances."""
    last = len(run.epochs)
    count = min(last, _SHOWN_EPOCHS)
    shown = sorted({round(1 + place * (last - 1) / max(count - 1, 1)) for place in range(count)})
    rows = []
    for number in shown:
        epoch = run.epochs[number - 1]
        cells = (_two(each.value(epoch), places=2 if each.unit else 4) for each in quantities)
        row = '</td><td class="n">'.join(cells)
        rows.append(f'<tr><th scope="row" class="n">{number}</th><td class="n">{row}</td></tr>\n')
    # There are hundreds of thousands of such rows on a large board, and nothing but numbers in them.
    return Table(Markup("".join(rows)), len(rows))  # noqa: S704


def _place(row: Row) -> tuple[str, str, str, str]:
    return row.suite, row.task, row.method, row.protocol_key


def _scores(row: Row) -> list[tuple[str, str, float, float | None]]:
    found = ((kind, label, getattr(row, f"{kind}_mean")) for kind, label in SCORES.items())
    return [(kind, label, mean, getattr(row, f"{kind}_std")) for kind, label, mean in found if mean is not None]


def _selection(row: Row) -> list[tuple[str, float]]:
    labels = {**SELECTION, "clean_size": "Share of the training set called clean"}
    return [(label, mean) for key, label in labels.items() if (mean := getattr(row, f"{key}_mean")) is not None]


def _protocol(row: Row) -> list[tuple[str, str]]:
    """Return what has to be the same for two rows to be compared."""
    trained = [f"{row.epochs} epochs" if row.epochs else "", f"batches of {row.batch_size}" if row.batch_size else ""]
    facts = {
        "Version": f"{row.method} {row.method_version} ({row.distribution}), suite version {row.suite_version}",
        "Started from": f"the selection of {row.selector}" if row.selector else "",
        "Protocol": f"{row.protocol} (key {row.protocol_key})",
        "Ruleset": row.ruleset,
        "Supervision": row.supervision,
        "Asked of the noise": row.knows_noise,
        "Backbone": f"{row.backbone}, {row.input_size} x {row.input_size} pixels, initialisation: {row.initialisation}",
        "Networks": f"{row.networks} at test; {row.parameters:,} trainable parameters in all",
        "Training": ", ".join(filter(None, [*trained, row.precision])),
        "Noise": row.noise_variant,
        "Noise rate": _rates(row),
        "Data": f"{row.train_images:,} training and {row.test_images:,} test images, edition {row.edition}, "
        f"digest {row.data_digest}",
        "Reduced": row.reduced,
        "Time": _times(row),
        "Device": row.device,
        "Trust": f"{row.trust}: {TRUST[row.trust]}" if row.trust in TRUST else row.trust,
        "Software": f"lnlbench {row.lnlbench}, PyTorch {row.torch}, numerics {row.numerics}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _rates(row: Row) -> str:
    parts = {
        "nominal": row.nominal_rate,
        "realised": row.realised_rate_mean,
        "out of distribution": row.ood_share_mean,
    }
    return ", ".join(f"{name} {value:.2f} %" for name, value in parts.items() if value is not None)


def _times(row: Row) -> str:
    if row.train_seconds_mean is None:
        return ""
    stages = f", {row.stage_seconds_mean:,.1f} s of stages before" if row.stage_seconds_mean else ""
    memory = "" if row.peak_memory_mib_mean is None else f"; {row.peak_memory_mib_mean:,.0f} MiB at most"
    return f"{row.train_seconds_mean:,.1f} s of training per run{stages}{memory}"


def _options(spec: CellSpec) -> list[tuple[str, str, bool]]:
    """Return every option of the method, and of the one it starts from: name, value, whether the preset differs."""
    found = [(name, _plain(value), name in spec.method.changed) for name, value in sorted(spec.method.config.items())]
    if spec.selector is not None:
        prefix, held = spec.selector.name, spec.selector
        found += [
            (f"{prefix}.{name}", _plain(value), name in held.changed) for name, value in sorted(held.config.items())
        ]
    return found


def _noises(runs: Sequence[Logged], seen: _Seen) -> list[tuple[str, GivenLabels]]:
    """Return the given labels of runs, each with the names of the runs that had them."""
    names: dict[str, list[Logged]] = {}
    for each in runs:
        record = each.run.record
        names.setdefault(digest([record.noise.digest, record.data.digest])[:16], []).append(each)
    for key, members in names.items():
        if key not in seen:
            seen[key] = _draw(members[0].run, key)
    return [("; ".join(each.name for each in members), seen[key]) for key, members in names.items()]


def _draw(run: Run, key: str) -> GivenLabels:
    record = run.with_confusion()
    counts = record.noise.confusion
    if not counts:
        return GivenLabels(record, Markup(), (), (), "", "")
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    classes = record.data.num_classes
    kept = [row[each] for each, row in enumerate(shares[:classes]) if sum(row)]
    picture = matrix(
        "Transition matrix of the given labels",
        f"Share of given classes by true class, {len(counts)} x {classes}. On the diagonal, where labels are right, "
        f"from {_two(100 * min(kept, default=0))} to {_two(100 * max(kept, default=0))} %.",
        "given class",
        "true class",
        shares,
        id_prefix=f"noise-{key[:8]}",
    )
    few = len(counts) <= _SHOWN_CLASSES
    table = tuple((_class(each, classes), tuple(_two(100 * share) for share in row)) for each, row in enumerate(shares))
    wrong = sorted(
        ((-share, true, given) for true, row in enumerate(shares) for given, share in enumerate(row) if true != given)
    )
    flips = tuple((true, given, _two(-100 * share)) for share, true, given in wrong[:10] if share)
    span = f"{_two(100 * min(kept))} to {_two(100 * max(kept))}" if kept else ""
    return GivenLabels(record, picture, table if few else (), () if few else flips, span, f"{_LABELS}{key}")


def _class(number: int, classes: int) -> str:
    return str(number) if number < classes else f"{number} (outside the task)"


def _confusion_files(given: GivenLabels) -> Iterator[tuple[str, str]]:
    if not given.stem:
        return
    counts = given.record.noise.confusion or []
    header = ["true class", *(str(each) for each in range(given.record.data.num_classes))]
    rows = [[number, *row] for number, row in enumerate(counts)]
    yield f"{given.stem}.csv", _csv([header, *rows])
    facts = {"noise_digest": given.record.noise.digest, "data_digest": given.record.data.digest, "counts": counts}
    yield f"{given.stem}.json", json.dumps(facts) + "\n"


def _epoch_files(stem: str, runs: Sequence[Logged]) -> Iterator[tuple[str, str]]:
    """Yield all that was measured after each epoch of each run; fractions, epochs counted from 0."""
    keys: dict[tuple[str, str], str] = {}
    for each in runs:
        for epoch in each.epochs:
            keys |= {
                ("accuracies", key): f"accuracy.{key}" if key else "test_accuracy" for key in epoch.scores.accuracies
            }
            keys |= {("selection", key): f"selection.{key}" for key in epoch.scores.selection}
            keys |= {("logged", key): f"logged.{key}" for key in epoch.logged}
    # The test accuracy first, then by kind and name.
    columns = sorted(keys)
    header = ["seed", "cell", "epoch", *(guard(keys[each]) for each in columns)]
    rows: list[list[Any]] = []
    for each in runs:
        for number, epoch in enumerate(each.epochs):
            held: Mapping[str, Mapping[str, float]] = {
                "accuracies": epoch.scores.accuracies,
                "selection": epoch.scores.selection,
                "logged": epoch.logged,
            }
            values = [held[kind].get(key) for kind, key in columns]
            rows.append([each.run.record.spec.seed, each.run.record.cell, number, *values])
    yield f"{stem}.csv", _csv([header, *rows])
    yield f"{stem}.json", json.dumps({"columns": header, "rows": rows}, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    target = io.StringIO(newline="")
    csv.writer(target, lineterminator="\n").writerows(rows)
    return target.getvalue()


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _two(value: float | None, places: int = 2) -> str:
    return "" if value is None else f"{value:.{places}f}"
