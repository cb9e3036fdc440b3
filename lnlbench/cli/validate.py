"""``lnlbench validate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lnlbench.cli.common import load_registry
from lnlbench.errors import DataError, LnlbenchError, UsageError

if TYPE_CHECKING:
    from lnlbench.engine.data import LoadedData
    from lnlbench.leaderboard.bundle import Content
    from lnlbench.plugins import Registry
    from lnlbench.records import CellSpec
    from lnlbench.store import LocalDataStore

_EDITION = ("edition", "edition_digest")
_LONGEST = 300


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LNLBENCH_DATA",
    help="Folder of all data.  [default: the user's cache folder]",
)
@click.option("--record", is_flag=True, help="FOLDER is a board: note there which runs are validated.")
def validate(folder: Path, data: Path | None, record: bool) -> int:
    """Check every bundle of FOLDER, a submission or a board: a line for each mismatch, exit code 1 if there is any.

    Scores are recomputed from the predictions. Suite version, task, noise, views, options and ids are compared with
    what is installed here; data, test labels and noisy labels with the data that lie here. Nothing is downloaded: what
    could not be checked is said, and such a run does not count as validated.
    """
    from lnlbench.leaderboard.bundle import read
    from lnlbench.leaderboard.reproduce import load
    from lnlbench.leaderboard.submission import LIST, inspect, printable
    from lnlbench.store import LocalDataStore, default_data_root

    if record and (folder / LIST).exists():
        raise UsageError(f"--record: {folder} is a submission; copy its bundles to a board first")
    registry = load_registry()
    store = LocalDataStore(data or default_data_root(), offline=True, progress=False)
    inspected = inspect(folder)
    for refused in inspected.refused:
        click.echo(f"mismatch: {refused.reason}")
    checker = _Checker(registry, store)
    validated: dict[str, list[str]] = {}
    mismatches, unchecked = len(inspected.refused), 0
    # Reading the data takes longest, so bundles on the same data follow each other.
    for path in sorted(inspected.bundles, key=lambda path: (_data_key(read(path, confusion=False).spec), path)):
        content = load(path)
        problems, open_questions = checker.check(content)
        for text in problems:
            click.echo(printable(f"mismatch: {path}: {_short(text)}"))
        for text in open_questions:
            click.echo(printable(f"not checked: {path}: {_short(text)}"))
        mismatches += len(problems)
        unchecked += bool(open_questions and not problems)
        if not problems and not open_questions:
            validated.setdefault(content.record.spec.suite, []).append(content.record.cell)
    count = sum(map(len, validated.values()))
    total = len(inspected.bundles)
    click.echo(f"{count} of {total} readable bundles validated, {unchecked} in part; {mismatches} mismatches")
    if record:
        _record(folder, validated)
    return 1 if mismatches else 0


class _Checker:
    """Compares bundles with what is installed and with the data that lie here."""

    def __init__(self, registry: Registry, store: LocalDataStore) -> None:
        self.registry = registry
        self.store = store
        self._loaded: tuple[str, LoadedData] | None = None

    def check(self, content: Content) -> tuple[list[str], list[str]]:
        """Return what does not fit, and what could not be checked."""
        spec = content.record.spec
        if spec.suite not in self.registry.suites:
            return [f"suite: {spec.suite} is not installed here"], []
        unchecked: list[str] = []
        try:
            problems = list(self._definition(spec))
            if not problems and not (unchecked := self._unknown_method(spec)):
                problems = list(self._method(spec))
            if not problems:
                problems = list(self._contents(content))
        except DataError as error:
            unchecked.append(f"data and noisy labels, since the data are not here: {error}")
        except LnlbenchError as error:
            problems = [str(error)]
        return problems, unchecked

    def _definition(self, spec: CellSpec) -> Iterator[str]:
        """Compare with the suite."""
        from lnlbench.engine.data import dataset_options
        from lnlbench.engine.planner import noise_spec
        from lnlbench.records import NUMERICS

        suite = self.registry.suites.find(spec.suite).entry
        if spec.suite_version != suite.version:
            yield f"suite_version: {spec.suite_version}, expected is {suite.version}"
            return
        if min(spec.seed, spec.noise.seed or 0) < 0:
            yield "seed: negative"
            return
        task = suite.task(spec.task)
        whole = task.test_sets
        if spec.test_sets and set(spec.test_sets) <= set(whole):
            # One training may be evaluated on some of the test sets only, in the suite's order.
            task = task.model_copy(update={"test_sets": tuple(name for name in whole if name in spec.test_sets)})
        noise = noise_spec(self.registry, suite, task, spec.noise.seed or 0)
        expected = {
            "task": task.name,
            "dataset": suite.dataset,
            "data_options": dataset_options(suite, task),
            "known_classes": suite.known_classes,
            "test_sets": list(task.test_sets),
            "noise": noise.model_dump(mode="json"),
            "views": {name: recipe.model_dump(mode="json") for name, recipe in suite.views.items()},
            "numerics": NUMERICS,
        }
        yield from _different(spec.model_dump(mode="json"), expected)

    def _method(self, spec: CellSpec) -> Iterator[str]:
        """Plan the cell anew with the installed method."""
        from lnlbench.engine.planner import Request, plan
        from lnlbench.leaderboard.reproduce import overrides

        epochs = spec.method.changed.get("epochs")
        request = Request(
            methods=[spec.method.name],
            suites=[spec.suite],
            tasks=[f"{spec.suite}@{level}" for level in spec.test_sets or (spec.task,)],
            seeds=[spec.seed],
            noise_seed=None if spec.noise.seed in (None, spec.seed) else spec.noise.seed,
            select=None if spec.selector is None else spec.selector.name,
            overrides=overrides(spec),
            epochs=epochs if isinstance(epochs, int) else None,
            limit_train=spec.limit_train,
            precision=spec.precision,
            compile=spec.compile,
            deterministic=spec.deterministic,
        )
        (planned,) = plan(request, self.registry, self.store).cells
        # Which edition lies here says nothing about theirs; that is compared with the data.
        yield from _different(spec.model_dump(mode="json"), planned.model_dump(mode="json", exclude=set(_EDITION)))

    def _unknown_method(self, spec: CellSpec) -> list[str]:
        unknown = []
        for each in (spec.method, spec.selector):
            if each is None:
                continue
            recorded = f"{each.name} of {each.distribution} {each.version}"
            if each.name not in self.registry.methods:
                unknown.append(f"options, since method {recorded} is not installed here")
            elif str(found := self.registry.methods.find(each.name).provider) != f"{each.distribution} {each.version}":
                unknown.append(f"options, since method {recorded} is here as of {found}")
        return unknown

    def _contents(self, content: Content) -> Iterator[str]:
        """Compare data, test labels and noisy labels with what lies here.

        Raises:
            DataError: The data are not here, or are another edition.
        """
        from lnlbench.engine.realisation import noisy_labels
        from lnlbench.engine.sources import into_memory

        record = content.record
        spec = record.spec
        loaded = self._load(spec)
        yield from _different(record.data.model_dump(mode="json"), loaded.facts.model_dump(mode="json"), "data.")
        labels = {"": loaded.images.test_labels}
        labels |= {name: split.labels for name, split in loaded.images.further_tests.items()}
        for name, predictions in content.predictions.items():
            if predictions.labels.tolist() != labels[name].tolist():
                yield f"predictions: test labels{f' of {name}' if name else ''} are not those of {spec.dataset}"
        if self.registry.noise.find(spec.noise.generator).entry.uses_images:
            loaded = into_memory(loaded, self.store)
        noise = noisy_labels(
            self.registry, self.store, spec.suite, spec.suite_version, spec.task, spec.noise, loaded
        ).facts.model_dump(mode="json")
        # If the labels are others, so are all counts.
        yield from list(_different(record.noise.model_dump(mode="json"), noise, "noise."))[:1]

    def _load(self, spec: CellSpec) -> LoadedData:
        """Load the data of a cell, unless it has those of the one before."""
        from lnlbench.engine.data import load_cell

        key = _data_key(spec)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = (key, load_cell(spec, self.registry, self.store))
        return self._loaded[1]


def _data_key(spec: CellSpec) -> str:
    """Return the same for cells on the same data."""
    from lnlbench.records import canonical_json

    names = {"dataset", "data_options", "known_classes", "test_sets", "limit_train", *_EDITION}
    return canonical_json(spec.model_dump(mode="json", include=names))


def _different(recorded: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Say where a record departs from what is expected, in words for each innermost value."""
    for name, value in expected.items():
        found = recorded.get(name)
        if isinstance(found, dict) and isinstance(value, dict):
            whole = dict.fromkeys([*value, *found])
            yield from _different(found, {key: value.get(key) for key in whole}, f"{prefix}{name}.")
        elif found != value:
            yield f"{prefix}{name}: {_short(str(found))}, expected is {_short(str(value))}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _record(board: Path, validated: Mapping[str, list[str]]) -> None:
    from lnlbench.leaderboard.store import rebuild
    from lnlbench.leaderboard.trust import raise_trust

    for suite, cells in sorted(validated.items()):
        raise_trust(board, suite, cells, "validated")
        for path in rebuild(board, [suite]):
            click.echo(f"leaderboard: {path}")
