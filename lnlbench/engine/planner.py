"""From what the user asked for to cells. Every unknown name and bad option fails here, before a device is touched."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from lnlbench.contracts.dataset import Dataset, DataStore
from lnlbench.contracts.method import Method, MethodConfig, MethodEntry
from lnlbench.contracts.suite import Suite, SuiteTask
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine.data import edition_digest, find_dataset, task_info
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


def plan(request: Request, registry: Registry, store: DataStore) -> Plan:
    """Expand a request.

    Raises:
        UnknownNameError: A method, suite, task or option does not exist.
        UsageError: A value is out of range, or nothing is left to run.
        PluginError: A method's own code failed.
    """
    methods = [registry.methods.find(name) for name in dict.fromkeys(request.methods)]
    suites = [registry.suites.find(name).entry for name in dict.fromkeys(request.suites)]
    chosen = _choose_tasks(suites, request.tasks)
    _check_overrides(request.overrides, methods)
    if request.limit_train is not None and request.limit_train < 1:
        raise UsageError(f"--limit-train {request.limit_train}: at least one image is needed")
    cells: list[CellSpec] = []
    skipped: list[Skip] = []
    for suite, tasks in chosen:
        dataset = find_dataset(registry, suite.dataset)
        limit = _limit(request.limit_train, dataset)
        registry.noise.find(suite.noise.generator)
        for registered in methods:
            for task in tasks:
                info = _info(registry, suite, task, dataset, limit)
                cls: type[Method[Any]] = registered.load()
                with _blaming(registered, "supports"):
                    reason = cls.supports(info)
                if reason is not None:
                    skipped.append(Skip(registered.entry.name, suite.name, task.name, reason))
                    continue
                method, reduced = _configure(registered, cls, info, request)
                registry.backbones.find(method.config["backbone"])
                if limit is not None:
                    reduced = (*reduced, f"{limit} of {dataset.num_train} training images")
                for seed in request.seeds or suite.seeds:
                    cells.append(_cell(method, suite, task, dataset, limit, seed, reduced, request, registry, store))
    if not cells:
        reasons = "; ".join(f"{each.method} on {each.suite}@{each.task}: {each.reason}" for each in skipped)
        raise UsageError(f"nothing to run: {reasons}")
    return Plan(tuple(cells), tuple(skipped))


def noise_spec(registry: Registry, suite: Suite, task: SuiteTask, seed: int) -> NoiseSpec:
    """Return the complete definition of a task's noise: the suite's switches over the generator's defaults."""
    entry = registry.noise.find(suite.noise.generator).entry
    options: dict[str, Any] = {key: values[0] for key, values in entry.options.items()}
    return NoiseSpec(generator=entry.name, options={**options, **suite.noise.options}, rate=task.rate, seed=seed)


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


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Parse ``key=value`` pairs.

    Raises:
        UsageError: There is no ``=``, or a key comes twice.
    """
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not of the form option=value")
        if key in overrides:
            raise UsageError(f"--set {key} is given twice")
        overrides[key] = value.strip()
    return overrides


def _choose_tasks(suites: Sequence[Suite], wanted: Sequence[str]) -> list[tuple[Suite, list[SuiteTask]]]:
    if not wanted:
        return [(suite, list(suite.tasks)) for suite in suites]
    chosen: dict[str, list[SuiteTask]] = {suite.name: [] for suite in suites}
    for text in wanted:
        suite_name, at, level = text.rpartition("@")
        if at and suite_name not in chosen:
            raise UnknownNameError("suite (in --task)", suite_name, chosen)
        for suite in suites:
            if not at or suite.name == suite_name:
                task = suite.task(level)
                if task not in chosen[suite.name]:
                    chosen[suite.name].append(task)
    return [(suite, chosen[suite.name]) for suite in suites if chosen[suite.name]]


def _limit(requested: int | None, dataset: Dataset) -> int | None:
    return None if requested is None or requested >= dataset.num_train else requested


def _info(registry: Registry, suite: Suite, task: SuiteTask, dataset: Dataset, limit: int | None) -> TaskInfo:
    return task_info(registry, suite.name, task.name, dataset, suite.noise.generator, task.rate, limit)


def _check_overrides(overrides: Mapping[str, str], methods: Sequence[Registered[MethodEntry]]) -> None:
    known = {registered.entry.name: set(registered.load().Config.model_fields) for registered in methods}
    for key in overrides:
        method, dot, option = key.rpartition(".")
        if dot and method not in known:
            raise UnknownNameError("method (in --set)", method, known)
        for name, options in known.items():
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
    return CellSpec(
        method=method,
        suite=suite.name,
        suite_version=suite.version,
        task=task.name,
        dataset=dataset.name,
        edition=edition,
        edition_digest=files,
        limit_train=limit,
        noise=noise_spec(registry, suite, task, seed if request.noise_seed is None else request.noise_seed),
        views={name: recipe.model_dump(mode="json") for name, recipe in suite.views.items()},
        seed=seed,
        precision=resolve_precision(request.precision or suite.precision, request.device_type),
        compile=request.compile,
        deterministic=request.deterministic,
        reduced=reduced,
    )
