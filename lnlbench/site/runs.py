"""One page per measured row, with its runs: curves, given labels, configuration, environment, how to repeat it."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lnlbench.leaderboard.aggregate import Row, scores_on
from lnlbench.leaderboard.content import MAIN, Epoch
from lnlbench.leaderboard.reproduce import commands, needed, row_name
from lnlbench.leaderboard.store import guard
from lnlbench.records import CellSpec, Environment, RunRecord, Scores, canonical_json, digest
from lnlbench.site.model import Run, Site
from lnlbench.site.output import write
from lnlbench.site.plots import Series, lines, matrix
from lnlbench.site.render import render
from lnlbench.site.workers import workers

SELECTION = {
    "clean_precision": "Clean-selection precision",
    "clean_recall": "Clean-selection recall",
    "clean_auc": "Clean-selection AUC",
    "pseudo_label_accuracy": "Pseudo-label accuracy",
    "memorised_noise": "Memorised noise",
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

_KINDS = ("accuracies", "selection", "logged")
"""Kinds of what is known after an epoch."""
_SHOWN_EPOCHS = 12
"""Rows of a run's table; its files have all epochs."""
_SHOWN_CLASSES = 20
"""Up to so many classes all shares are in a table, else the largest ones only."""

_LABELS = "data/noise/"
"""Folder of the files about given labels."""

_CHUNK = 50
"""Rows that are treated together; their given labels are read and drawn once."""


@dataclass(frozen=True)
class Logged:
    """A run with its metrics."""

    run: Run
    name: str
    """What it is called among the runs of its row."""
    epochs: Sequence[Epoch]
    scores: Scores | None
    """On the test set of the row; ``None`` if it diverged."""


@dataclass(frozen=True)
class Quantity:
    """Something that is known after each epoch."""

    label: str
    """A heading."""
    kind: str
    """``accuracies`` or ``selection``: where it is."""
    key: str
    """Its name there."""

    def values(self, epochs: Sequence[Epoch]) -> list[float | None]:
        """Return it after each epoch, in percent; ``None`` where there is none."""
        found = [getattr(epoch, self.kind).get(self.key) for epoch in epochs]
        return [None if value is None else 100 * value for value in found]


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
    classes: list[str]
    """What the given classes are called."""
    named: bool
    """Whether these are names, not numbers."""
    shares: tuple[tuple[str, tuple[str, ...]], ...]
    """Rows of the table: true class, then shares of given classes in percent; of few classes only."""
    flips: tuple[tuple[str, str, str], ...]
    """The largest shares of wrong classes, of many classes: true class, given class, percent."""
    kept: str
    """Smallest and largest share of right labels of a class."""
    stem: str
    """Address of its files, without the ending; empty if there are none."""
    figures: dict[str, Markup] = field(default_factory=dict)
    """What pages show of them, by the names of the runs: on a large board, many pages show the same."""

    def shown(self, names: str, path: str) -> Markup:
        """Render them.

        Args:
            names: Names of the runs.
            path: Address of the page.
        """
        if names not in self.figures:
            self.figures[names] = Markup(render("labels.html", path, names=names, given=self))  # noqa: S704
        return self.figures[names]


_Seen = dict[str, GivenLabels]
"""Given labels that have been drawn, by data and noise."""


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield the page of every measured row, and the files behind it.

    Raises:
        DataError: A bundle is damaged.
    """
    written = set()
    for chunk in _chunks(site):
        for path, text in _pages(site, chunk):
            # Rows of several chunks may have the same given labels, and then the same files of them.
            if path not in written or not path.startswith(_LABELS):
                written.add(path)
                yield path, text


@contextlib.contextmanager
def writing(site: Site, folder: Path) -> Iterator[Iterator[str]]:
    """Write the files of :func:`pages`. Where there are many, other processes begin at once, and work on meanwhile.

    Args:
        site: All results.
        folder: Where the site is written.

    Yields:
        The path of each file. Once there are no more, all are written.

    Raises:
        DataError: A bundle is damaged.
    """
    count = sum(map(len, site.runs.values()))
    with workers(count, _inherit, site, folder) as pool:
        if pool is None:
            yield write(folder, pages(site))
        else:
            yield _once(itertools.chain.from_iterable(pool.map(_write_inherited, _chunks(site))))


def _once(paths: Iterable[str]) -> Iterator[str]:
    """Leave out files of given labels that another process has written as well: with the same content."""
    written = set()
    for path in paths:
        if path not in written or not path.startswith(_LABELS):
            written.add(path)
            yield path


def _chunks(site: Site) -> list[list[Row]]:
    rows = list(site.rows())
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


_inherited: list[tuple[Site, Path]] = []
"""In a worker process: the site, and where it is written."""


def _inherit(site: Site, folder: Path) -> None:
    _inherited.append((site, folder))


def _write_inherited(rows: Sequence[Row]) -> list[str]:
    site, folder = _inherited[0]
    return list(write(folder, _pages(site, rows)))


def _pages(site: Site, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    seen: _Seen = {}
    datasets = {name: site.dataset_of(name) for name in {row.suite for row in rows}}
    for row in rows:
        yield from _page(site, row, datasets[row.suite], seen)


def _page(site: Site, row: Row, dataset: str, seen: _Seen) -> Iterator[tuple[str, str]]:
    path = site.row_url(row)
    runs = _logged(row, site.runs_of(row))
    known = {kind: set().union(*(getattr(epoch, kind) for each in runs for epoch in each.epochs)) for kind in _KINDS}
    quantities = _quantities(row, runs, known)
    columns = {each.name: [quantity.values(each.epochs) for quantity in quantities] for each in runs}
    records = [each.run.record for each in runs]
    noises = _noises(runs)
    drawn = [key for key in noises if key not in seen]
    for key in drawn:
        seen[key] = _draw(site, noises[key][0].run, key)
    stem = f"data/{path.removesuffix('.html')}" if any(each.epochs for each in runs) else ""
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
            runs=runs,
            figures=_figures(runs, quantities, columns),
            tables={each.name: _table(columns[each.name], quantities) for each in runs},
            headings=["Epochs trained", *(each.label for each in quantities)],
            noises=[seen[key].shown("; ".join(each.name for each in members), path) for key, members in noises.items()],
            environments={each.name: _environment(each.run.record.environment.model_dump_json()) for each in runs},
            commands=[each.text for each in commands(records, site.registry.suites)],
            needed=list(dict.fromkeys(each for record in records for each in needed(record))),
            compare=shlex.join(["lnlbench", "reproduce", row_name(*_place(row)), "--run"]),
            options=_options(records[0].spec) if records else [],
            protocol=_protocol(row),
            stem=stem,
        ),
    )
    if stem:
        yield from _epoch_files(stem, runs, known)
    for key in drawn:
        yield from _confusion_files(seen[key])


def _logged(row: Row, runs: Sequence[Run]) -> list[Logged]:
    names = _names([run.record for run in runs])
    return [
        Logged(run, name, run.epochs(), scores_on(run.record, row.task)) for run, name in zip(runs, names, strict=True)
    ]


@lru_cache(maxsize=100)
def _environment(text: str) -> Markup:
    """Render what is told of an environment, given as JSON: most runs share one."""
    return Markup(render("environment.html", "", environment=Environment.model_validate_json(text)))  # noqa: S704


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


_Known = Mapping[str, Set[str]]
"""Names of what is known in any epoch of any run of a row, by kind."""


def _quantities(row: Row, runs: Sequence[Logged], known: _Known) -> list[Quantity]:
    """Return what has a curve: whatever is known in any epoch."""
    tests = next((each.run.record.spec.test_sets for each in runs), ())
    own = row.task if row.task in tests[1:] else MAIN
    accuracies = {own: "Test accuracy", f"{own}.top5" if own else "top5": "Top-5 test accuracy"}
    accuracies["validation"] = "Accuracy on clean validation data"
    labels = {"accuracies": accuracies, "selection": SELECTION}
    return [
        Quantity(label, kind, key) for kind, held in labels.items() for key, label in held.items() if key in known[kind]
    ]


_Columns = Mapping[str, Sequence[Sequence[float | None]]]
"""For each run by name: the values of each quantity after each epoch."""


def _figures(runs: Sequence[Logged], quantities: Sequence[Quantity], columns: _Columns) -> list[Markup]:
    """Draw each quantity by the number of epochs trained."""
    figures = []
    for number, quantity in enumerate(quantities):
        curves = {
            each.name: tuple((at, value) for at, value in enumerate(columns[each.name][number], 1) if value is not None)
            for each in runs
        }
        curves = {name: points for name, points in curves.items() if points}
        ends = ", ".join(f"{name}: {points[-1][1]:.2f}" for name, points in curves.items())
        drawing = lines(
            quantity.label,
            f"{quantity.label} by the number of epochs trained. At the end, {ends}. The tables of the runs have the "
            "numbers.",
            "epochs trained",
            f"{quantity.label}, %",
            [Series(name, points) for name, points in curves.items()],
            count=max(len(each.epochs) for each in runs if each.name in curves),
            id_prefix=f"curve-{number + 1}",
        )
        figures.append(drawing)
    return figures


def _table(columns: Sequence[Sequence[float | None]], quantities: Sequence[Quantity]) -> Table:
    """Return the numbers of some epochs: the first, the last, and between them at equal distances."""
    last = len(columns[0]) if columns else 0
    count = min(last, _SHOWN_EPOCHS)
    shown = sorted({round(1 + place * (last - 1) / max(count - 1, 1)) for place in range(count)})
    texts = [
        [_two(column[number - 1]) for number in shown] for column, quantity in zip(columns, quantities, strict=True)
    ]
    rows = [
        f'<tr><th scope="row" class="n">{number}</th><td class="n">{row}</td></tr>\n'
        for number, row in zip(shown, map('</td><td class="n">'.join, zip(*texts, strict=True)), strict=True)
    ]
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


def _noises(runs: Sequence[Logged]) -> dict[str, list[Logged]]:
    """Return the given labels of runs, by a key: the runs that had them."""
    found: dict[str, list[Logged]] = {}
    for each in runs:
        record = each.run.record
        found.setdefault(_labels_key(record.noise.digest, record.data.digest), []).append(each)
    return found


@lru_cache(maxsize=1000)
def _labels_key(noise: str, data: str) -> str:
    return digest([noise, data])[:16]


def _draw(site: Site, run: Run, key: str) -> GivenLabels:
    record = run.with_confusion()
    counts = record.noise.confusion
    if not counts:
        return GivenLabels(record, Markup(), [], False, (), (), "", "")
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    classes, few = record.data.num_classes, len(counts) <= _SHOWN_CLASSES
    names = site.class_names(record.spec)
    numbers = [str(number) for number in range(len(counts))]
    # Names of own data are the business of those who have them, and digits are called what they are.
    named = len(names) == len(counts) and list(names) != numbers
    shown = list(names) if named else numbers
    true = [name if number < classes else f"{name} (outside the task)" for number, name in enumerate(shown)]
    wrong = sorted(
        ((-share, true, given) for true, row in enumerate(shares) for given, share in enumerate(row) if true != given)
    )
    flips = tuple((true[one], shown[other], _two(-100 * share)) for share, one, other in wrong[:10] if share)
    kept = [row[each] for each, row in enumerate(shares[:classes]) if sum(row)]
    most = " Most often, {}{} is labelled {}: {} %.".format("" if named else "class ", *flips[0]) if flips else ""
    picture = matrix(
        "Transition matrix of the given labels",
        f"Share of given classes by true class, {len(counts)} x {classes}. On the diagonal, where labels are right, "
        f"from {_two(100 * min(kept, default=0))} to {_two(100 * max(kept, default=0))} %.{most}",
        "given class",
        "true class",
        shares,
        names=shown if named and few else (),
        id_prefix=f"noise-{key[:8]}",
    )
    table = tuple((name, tuple(_two(100 * share) for share in row)) for name, row in zip(true, shares, strict=True))
    span = f"{_two(100 * min(kept))} to {_two(100 * max(kept))}" if kept else ""
    stem = f"{_LABELS}{key}"
    return GivenLabels(record, picture, shown[:classes], named, table if few else (), () if few else flips, span, stem)


def _confusion_files(given: GivenLabels) -> Iterator[tuple[str, str]]:
    if not given.stem:
        return
    counts = given.record.noise.confusion or []
    header = ["true class", *(str(each) for each in range(given.record.data.num_classes))]
    rows = [[number, *row] for number, row in enumerate(counts)]
    yield f"{given.stem}.csv", _csv([header, *rows])
    facts = {"noise_digest": given.record.noise.digest, "data_digest": given.record.data.digest, "counts": counts}
    yield f"{given.stem}.json", json.dumps(facts) + "\n"


def _epoch_files(stem: str, runs: Sequence[Logged], known: _Known) -> Iterator[tuple[str, str]]:
    """Yield all that was measured after each epoch of each run; fractions, epochs counted from 0."""
    keys = {(kind, key): _column(kind, key) for kind, names in known.items() for key in names}
    # The test accuracy first, then by kind and name.
    columns = sorted(keys)
    header = ["seed", "cell", "epoch", *(guard(keys[each]) for each in columns)]
    rows: list[list[Any]] = []
    for each in runs:
        seed, cell = each.run.record.spec.seed, each.run.record.cell
        values = [[getattr(epoch, kind).get(key) for epoch in each.epochs] for kind, key in columns]
        rows += [[seed, cell, number, *line] for number, line in enumerate(zip(*values, strict=True))]
    yield f"{stem}.csv", _csv([header, *rows])
    yield f"{stem}.json", json.dumps({"columns": header, "rows": rows}, ensure_ascii=False, allow_nan=False) + "\n"


def _column(kind: str, key: str) -> str:
    if kind == "accuracies":
        return f"accuracy.{key}" if key else "test_accuracy"
    return f"{kind}.{key}"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    target = io.StringIO(newline="")
    csv.writer(target, lineterminator="\n").writerows(rows)
    return target.getvalue()


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _two(value: float | None, places: int = 2) -> str:
    return "" if value is None else f"{value:.{places}f}"
