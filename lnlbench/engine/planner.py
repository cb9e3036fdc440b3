"""From what the user asked for to cells. Every unknown name and bad option fails here, before a device is touched."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from lnlbench.contracts.dataset import Dataset, DataStore
from lnlbench.contracts.method import Method, MethodConfig, MethodEntry
from lnlbench.contracts.suite import Suite, SuiteTask
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine.data import dataset_options, edition_digest, find_dataset, task_info
from lnlbench.engine.device import resolve_precision
from lnlbench.errors import LnlbenchError, PluginError, UnknownNameError, UsageError
from lnlbench.plugins import Registered, Registry, one_line
from lnlbench.records import CellSpec, MethodSpec, NoiseSpec, safe_name


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    methods: Sequence[str]
    suites: Sequence[str]
    tasks: Sequence[str] = ()
    """Levels, or ``suite@level``; all of them if empty."""
    seeds: Sequence[int] = ()
    """Training seeds; the suite's own if empty."""
    noise_seed: int | None = None
    """Freezes the noise realisation; otherwise it follows the training seed."""
    select: str | None = None
    """A method whose selection the methods start from."""
    own_suites: Sequence[Suite] = ()
    """Suites that are defined for this request only."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """``option`` or ``method.option`` to its value as text."""
    epochs: int | None = None
    limit_train: int | None = None
    precision: str | None = None
    compile: bool = False
    deterministic: bool = True
    device_type: str = "cpu"


@dataclass(frozen=True)
class Skip:
    """A method declined a task."""

    method: str
    suite: str
    task: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What will be run, and what a method declined."""

    cells: tuple[CellSpec, ...]
    skipped: tuple[Skip, ...]
    suites: Mapping[str, Suite]
    """The suites of the cells, by name."""


def plan(request: Request, registry: Registry, store: DataStore) -> Plan:
    """Expand a request.

    Raises:
        UnknownNameError: A method, suite, task or option does not exist.
        UsageError: A value is out of range, or nothing is left to run.
        PluginError: A method's own code failed.
    """
    methods = [registry.methods.find(name) for name in dict.fromkeys(request.methods)]
    suites = [*(registry.suites.find(name).entry for name in dict.fromkeys(request.suites)), *request.own_suites]
    chosen = _choose_tasks(suites, request.tasks)
    selector = _find_selector(registry, request.select, methods)
    _check_overrides(request.overrides, methods, selector)
    if request.limit_train is not None and request.limit_train < 1:
        raise UsageError(f"--limit-train {request.limit_train}: at least one image is needed")
    cells: list[CellSpec] = []
    skipped: list[Skip] = []
    for suite, tasks in chosen:
        for registered in methods:
            for task in tasks:
                dataset = find_dataset(registry, suite.dataset, dataset_options(suite, task), store)
                limit = _limit(request.limit_train, dataset)
                info = task_info(suite, task, dataset, limit)
                cls: type[Method[Any]] = registered.load()
                with _blaming(registered, "supports"):
                    reason = cls.supports(info)
                if reason is not None:
                    skipped.append(Skip(registered.entry.name, suite.name, task.name, reason))
                    continue
                method, reduced = _configure(registered, cls, info, request)
                selection = None if selector is None else _configure_selector(selector, info, request)
                registry.backbones.find(method.config["backbone"])
                for each in (method, selection):
                    if each is not None and "encoder" in each.config:
                        registry.encoders.find(each.config["encoder"])
                if limit is not None:
                    reduced = (*reduced, f"{limit} of {dataset.num_train} training images")
                for seed in request.seeds or suite.seeds:
                    cells.append(
                        _cell(method, selection, suite, task, dataset, limit, seed, reduced, request, registry, store)
                    )
    if not cells:
        reasons = "; ".join(f"{each.method} on {each.suite}@{each.task}: {each.reason}" for each in skipped)
        raise UsageError(f"nothing to run: {reasons}")
    return Plan(tuple(cells), tuple(skipped), {suite.name: suite for suite in suites})


def noise_spec(registry: Registry, suite: Suite, task: SuiteTask, seed: int) -> NoiseSpec:
    """Return the complete definition of a task's noise: the switches of level and suite over the generator's defaults.

    Raises:
        UnknownNameError: The suite names noise, a switch or a value that does not exist.
        UsageError: The noise is drawn and the task has no rate.
    """
    entry = registry.noise.find(suite.noise.generator).entry
    set_here = {**suite.noise.options, **task.noise}
    for key, value in set_here.items():
        if key not in entry.options:
            raise UnknownNameError(f"option of {entry.name} noise (suite {suite.name!r})", key, entry.options)
        if value not in entry.options[key]:
            raise UnknownNameError(
                f"{key!r} of {entry.name} noise (suite {suite.name!r})", str(value), entry.options[key]
            )
    options: dict[str, Any] = {key: values[0] for key, values in entry.options.items()}
    drawn = entry.kind == "generated"
    if drawn and task.rate is None:
        raise UsageError(
            f"{suite.name}@{task.name}: {entry.name!r} noise is drawn and needs a rate; add it to the suite"
        )
    return NoiseSpec(
        generator=entry.name,
        options={**options, **set_here},
        rate=task.rate,
        # Labels that exist already are the same whatever the seed, and so is their record.
        seed=seed if drawn else None,
    )


def cell_folder(runs: Path, cell: CellSpec) -> Path:
    """Return the folder of a cell under ``runs``: readable, and unique by the cell's id."""
    return (
        runs / safe_name(cell.suite) / safe_name(cell.task) / safe_name(cell.method.name) / f"seed{cell.seed}-{cell.id}"
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse ``1,2,5-7`` into distinct non-negative integers.

    >>> parse_seeds("0-2,7")
    (0, 1, 2, 7)
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise UsageError(f"seeds {text!r} are not of the form 1,2,5-7") from None
        if high < low or high - low >= 1000:
            raise UsageError(f"seeds {part.strip()!r}: the range is empty or has more than 1,000 seeds")
        seeds.update(dict.fromkeys(range(low, high + 1)))
    return tuple(seeds)


def parse_overrides(pairs: Sequence[str], switch: str = "--set") -> dict[str, str]:
    """Parse ``key=value`` pairs given with a switch of the command line.

    Raises:
        UsageError: There is no ``=``, or a key comes twice.
    """
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{switch} {pair!r} is not of the form option=value")
        if key in overrides:
            raise UsageError(f"{switch} {key} is given twice")
        overrides[key] = value.strip()
    return overrides


def _choose_tasks(suites: Sequence[Suite], wanted: Sequence[str]) -> list[tuple[Suite, list[SuiteTask]]]:
    if not wanted:
        return [(suite, list(suite.tasks)) for suite in suites]
    names = [suite.name for suite in suites]
    chosen: dict[str, dict[str, SuiteTask]] = {name: {} for name in names}
    for text in wanted:
        suite_name, at, level = text.partition("@")
        # A level may have an "@" of its own, as in "sym@0.20".
        qualified = bool(at) and suite_name in names
        if at and not qualified and not any(_has_task(suite, text) for suite in suites):
            raise UnknownNameError("suite (in --task)", suite_name, names)
        for suite in suites:
            if not qualified or suite.name == suite_name:
                task = suite.task(level if qualified else text)
                earlier = chosen[suite.name].get(task.name)
                chosen[suite.name][task.name] = _with_test_sets(suite, task, earlier) if earlier else task
    return [(suite, list(chosen[suite.name].values())) for suite in suites if chosen[suite.name]]


def _has_task(suite: Suite, name: str) -> bool:
    try:
        suite.task(name)
    except UnknownNameError:
        return False
    return True


def _with_test_sets(suite: Suite, task: SuiteTask, earlier: SuiteTask) -> SuiteTask:
    """Merge two mentions of a level that name different test sets, in the suite's order."""
    wanted = {*task.test_sets, *earlier.test_sets}
    every = suite.task(task.name).test_sets
    return task.model_copy(update={"test_sets": tuple(name for name in every if name in wanted)})


def _limit(requested: int | None, dataset: Dataset) -> int | None:
    return None if requested is None or requested >= dataset.num_train else requested


def _find_selector(
    registry: Registry, name: str | None, methods: Sequence[Registered[MethodEntry]]
) -> Registered[MethodEntry] | None:
    if name is None:
        return None
    selector = registry.methods.find(name)
    if not selector.entry.selects:
        able = [each.entry.name for each in registry.methods if each.entry.selects]
        raise UsageError(f"method {name!r} selects nothing before training; those that do: {', '.join(able) or 'none'}")
    for each in methods:
        if not each.entry.starts_from_selection:
            raise UsageError(f"method {each.entry.name!r} cannot start from another method's selection")
    return selector


def _configure_selector(selector: Registered[MethodEntry], info: TaskInfo, request: Request) -> MethodSpec:
    # Only options that name the selector are meant for it.
    prefix = f"{selector.entry.name}."
    overrides = {key: value for key, value in request.overrides.items() if key.startswith(prefix)}
    cls: type[Method[Any]] = selector.load()
    with _blaming(selector, "supports"):
        reason = cls.supports(info)
    if reason is not None:
        raise UsageError(f"{selector.entry.name} cannot select on {info.suite}@{info.task}: {reason}")
    return _configure(selector, cls, info, replace(request, overrides=overrides, epochs=None))[0]


def _check_overrides(
    overrides: Mapping[str, str],
    methods: Sequence[Registered[MethodEntry]],
    selector: Registered[MethodEntry] | None,
) -> None:
    known = {registered.entry.name: set(registered.load().Config.model_fields) for registered in methods}
    prefixed = known if selector is None else {**known, selector.entry.name: set(selector.load().Config.model_fields)}
    for key in overrides:
        method, dot, option = key.rpartition(".")
        if dot and method not in prefixed:
            raise UnknownNameError("method (in --set)", method, prefixed)
        for name, options in (prefixed if dot else known).items():
            if (not dot or name == method) and option not in options:
                raise UnknownNameError(f"option of {name} (in --set)", option, options)


@contextlib.contextmanager
def _blaming(registered: Registered[MethodEntry], what: str) -> Iterator[None]:
    try:
        yield
    except LnlbenchError:
        raise
    except Exception as error:
        name = registered.entry.name
        raise PluginError(f"{what}() of {name!r} ({registered.provider}) failed: {one_line(error)}") from error


def _configure(
    registered: Registered[MethodEntry], cls: type[Method[Any]], info: TaskInfo, request: Request
) -> tuple[MethodSpec, tuple[str, ...]]:
    name = registered.entry.name
    with _blaming(registered, "preset"):
        preset: MethodConfig = cls.preset(info)
    # Pydantic reads text in the type of the field; JSON is tried for what has structure, such as lists.
    changes: dict[str, Any] = {}
    for key, text in request.overrides.items():
        method, dot, option = key.rpartition(".")
        if not dot or method == name:
            changes[option] = _structured(text)
    if request.epochs is not None:
        changes["epochs"] = request.epochs
    values = preset.model_dump(mode="json")
    try:
        config = cls.Config.model_validate({**values, **changes})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = f" (got {first['input']!r})" if where else ""
        raise UsageError(f"{name}: option {where or 'combination'}: {first['msg']}{given}") from None
    except ValueError as error:
        raise UsageError(f"{name}: {one_line(error)}") from None
    resolved = config.model_dump(mode="json")
    changed = {key: value for key, value in resolved.items() if value != values[key]}
    reduced = []
    if config.epochs < preset.epochs:
        reduced.append(f"{config.epochs} of {preset.epochs} epochs")
    if config.backbone != preset.backbone:
        reduced.append(f"backbone {config.backbone} instead of {preset.backbone}")
    spec = MethodSpec(
        name=name,
        version=registered.provider.version,
        distribution=registered.provider.distribution,
        config=resolved,
        changed=changed,
        supervision=registered.entry.supervision,
        networks=registered.entry.networks_at_test,
        asked=tuple(sorted(info.asked)),
    )
    return spec, tuple(reduced)


def _structured(text: str) -> Any:
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return None if text == "null" else text


def _cell(
    method: MethodSpec,
    selector: MethodSpec | None,
    suite: Suite,
    task: SuiteTask,
    dataset: Dataset,
    limit: int | None,
    seed: int,
    reduced: tuple[str, ...],
    request: Request,
    registry: Registry,
    store: DataStore,
) -> CellSpec:
    edition, files = edition_digest(store, dataset.name)
    noise = noise_spec(registry, suite, task, seed if request.noise_seed is None else request.noise_seed)
    if noise.seed is None and request.noise_seed is not None:
        raise UsageError(f"--noise-seed: the labels of {suite.name}@{task.name} are not drawn, so they have no seed")
    return CellSpec(
        method=method,
        selector=selector,
        suite=suite.name,
        suite_version=suite.version,
        task=task.name,
        dataset=dataset.name,
        data_options=dataset_options(suite, task),
        known_classes=suite.known_classes,
        test_sets=task.test_sets,
        edition=edition,
        edition_digest=files,
        limit_train=limit,
        noise=noise,
        views={name: recipe.model_dump(mode="json") for name, recipe in suite.views.items()},
        seed=seed,
        precision=resolve_precision(request.precision or suite.precision, request.device_type),
        compile=request.compile,
        deterministic=request.deterministic,
        reduced=reduced,
    )
