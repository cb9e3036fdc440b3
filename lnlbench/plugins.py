"""Discovery of extensions and look-up by name.

Every entry point of group ``lnlbench`` is loaded on its own, the core's built-ins among them, so that a broken plugin
is reported with its name and version and hides none of the others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pluggy

from lnlbench import hookspecs
from lnlbench.contracts.backbone import BackboneEntry
from lnlbench.contracts.dataset import DatasetEntry
from lnlbench.contracts.encoder import EncoderEntry
from lnlbench.contracts.executor import ExecutorEntry
from lnlbench.contracts.method import MethodEntry
from lnlbench.contracts.noise import NoiseEntry
from lnlbench.contracts.suite import NAME_PATTERN, Suite, SuiteFile
from lnlbench.errors import LnlbenchError, PluginError, UnknownNameError
from lnlbench.suitefiles import read_suite_file

GROUP = "lnlbench"
STRICT_VARIABLE = "LNLBENCH_STRICT_PLUGINS"
# Windows refuses files of these names, and a method or suite name becomes a folder.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

EntryT = TypeVar("EntryT", MethodEntry, DatasetEntry, NoiseEntry, BackboneEntry, EncoderEntry, ExecutorEntry, Suite)


@dataclass(frozen=True)
class Provider:
    """The installed distribution that an extension comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin, or a part of one, that could not be used."""

    provider: Provider
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.entry_point!r} of {self.provider} is broken: {self.reason}"


@dataclass(frozen=True)
class Registered(Generic[EntryT]):
    """An entry and who provides it."""

    entry: EntryT
    provider: Provider

    def load(self) -> Any:
        """Import the code behind the entry.

        Raises:
            PluginError: It cannot be imported.
        """
        target = getattr(self.entry, "target", "")
        module_name, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:  # a module may call sys.exit() while it is imported
            raise PluginError(
                f"{self.entry.name!r} of {self.provider} cannot be loaded from {target}: {one_line(error)}"
            ) from error


class Catalogue(Generic[EntryT]):
    """All extensions of one kind, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, list[Registered[EntryT]]] = {}

    def add(self, item: Registered[EntryT]) -> None:
        """Register an entry; a second one of the same name makes the name unusable, not the first one hidden."""
        self._items.setdefault(item.entry.name, []).append(item)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)

    def __iter__(self) -> Iterator[Registered[EntryT]]:
        for name in self.names():
            yield self._items[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def find(self, name: str) -> Registered[EntryT]:
        """Look up a name; a registered ``timm:`` also answers to ``timm:resnet50``.

        Raises:
            UnknownNameError: Nothing has this name; the message offers near misses.
            PluginError: Two distributions claim the name.
        """
        prefix = name.partition(":")[0] + ":" if ":" in name else name
        items = self._items.get(name) or self._items.get(prefix)
        if not items:
            raise UnknownNameError(self.kind, name, self._items)
        if len(items) > 1:
            claims = " and ".join(str(item.provider) for item in items)
            raise PluginError(f"{self.kind} {name!r} is claimed by {claims}; uninstall one of them")
        return items[0]


@dataclass
class Registry:
    """Everything that is installed."""

    methods: Catalogue[MethodEntry] = field(default_factory=lambda: Catalogue("method"))
    suites: Catalogue[Suite] = field(default_factory=lambda: Catalogue("suite"))
    datasets: Catalogue[DatasetEntry] = field(default_factory=lambda: Catalogue("dataset"))
    noise: Catalogue[NoiseEntry] = field(default_factory=lambda: Catalogue("noise"))
    backbones: Catalogue[BackboneEntry] = field(default_factory=lambda: Catalogue("backbone"))
    encoders: Catalogue[EncoderEntry] = field(default_factory=lambda: Catalogue("encoder"))
    executors: Catalogue[ExecutorEntry] = field(default_factory=lambda: Catalogue("executor"))
    broken: list[BrokenPlugin] = field(default_factory=list)
    providers: list[tuple[str, Provider]] = field(default_factory=list)

    def catalogues(self) -> dict[str, Catalogue[Any]]:
        """Every catalogue by the plural noun of the command line."""
        return {
            "methods": self.methods,
            "suites": self.suites,
            "datasets": self.datasets,
            "noise": self.noise,
            "backbones": self.backbones,
            "encoders": self.encoders,
            "executors": self.executors,
        }


def discover() -> Registry:
    """Load every installed plugin.

    Raises:
        PluginError: A plugin is broken and ``LNLBENCH_STRICT_PLUGINS=1``.
    """
    registry = Registry()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    entry_points = importlib.metadata.entry_points(group=GROUP)
    # An editable install beside a wheel can list an entry point twice; sorting makes the order the machine's choice no
    # longer.
    for entry_point in sorted(set(entry_points), key=lambda each: (_provider(each).distribution, each.name)):
        _register(registry, manager, entry_point)
    if registry.broken and os.environ.get(STRICT_VARIABLE, "") not in ("", "0"):
        raise PluginError(f"{registry.broken[0]} ({STRICT_VARIABLE} is set)")
    return registry


def one_line(error: BaseException) -> str:
    """Describe an exception in one line: its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def readme(distribution: str) -> str:
    """Return the README of an installed distribution, in its present state if that is installed for editing.

    It is empty if the distribution has none, or is not installed.
    """
    try:
        installed = importlib.metadata.distribution(distribution)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            page = Path(url2pathname(urlsplit(origin["url"]).path)) / "README.md"
            if page.is_file():
                return page.read_text(encoding="utf-8")
        return str(installed.metadata.json.get("description", "")).strip()
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, OSError):
        return ""


def _provider(entry_point: importlib.metadata.EntryPoint) -> Provider:
    try:
        distribution = entry_point.dist
        name, version = (distribution.name, distribution.version) if distribution else ("", "")
    except Exception:  # half uninstalled: the entry points are still there, the metadata are gone
        name = version = ""
    return Provider(name or "unknown", version or "unknown")


def _register(registry: Registry, manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    provider = _provider(entry_point)

    def broken(reason: str) -> None:
        registry.broken.append(BrokenPlugin(provider, entry_point.name, reason))

    name = f"{provider.distribution}:{entry_point.name}"
    try:
        module = entry_point.load()
        unknown = [
            attribute
            for attribute in dir(module)
            if manager.parse_hookimpl_opts(module, attribute) and not hasattr(hookspecs, attribute)
        ]
        if unknown:
            raise PluginError(f"unknown hook {unknown[0]!r}")
        manager.register(module, name=name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even call sys.exit() while it is imported
        broken(one_line(error))
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return
    registry.providers.append((entry_point.name, provider))
    kinds: tuple[tuple[str, type[Any], Catalogue[Any] | None], ...] = (
        ("lnlbench_methods", MethodEntry, registry.methods),
        ("lnlbench_datasets", DatasetEntry, registry.datasets),
        ("lnlbench_noise", NoiseEntry, registry.noise),
        ("lnlbench_backbones", BackboneEntry, registry.backbones),
        ("lnlbench_encoders", EncoderEntry, registry.encoders),
        ("lnlbench_executors", ExecutorEntry, registry.executors),
        ("lnlbench_suites", SuiteFile, None),
    )
    for hook, kind, catalogue in kinds:
        try:
            entries = _call(manager, hook, module)
            for entry in entries:
                if not isinstance(entry, kind):
                    raise PluginError(f"{hook} returned a {type(entry).__name__}, expected {kind.__name__}")
                if catalogue is None:
                    for suite in read_suite_file(entry.path):
                        registry.suites.add(Registered(suite, provider))
                else:
                    check_name(entry.name)
                    catalogue.add(Registered(entry, provider))
        except KeyboardInterrupt:
            raise
        except LnlbenchError as error:
            broken(str(error))
        except BaseException as error:
            broken(f"{hook}: {one_line(error)}")


def _call(manager: pluggy.PluginManager, hook: str, module: object) -> Sequence[Any]:
    # Each plugin's hook is called on its own: one that raises must not take the others with it.
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is module:
            return list(implementation.function())
    return []


def check_name(name: str) -> None:
    """Check that an extension may have this name.

    Raises:
        PluginError: It has other characters, or stands for something already.
    """
    stem = name.removesuffix(":")
    if not NAME_PATTERN.fullmatch(stem) or stem.lower() in _RESERVED:
        raise PluginError(f"{name!r} is not a valid name: use letters, digits, '.', '_', '+' and '-'")
