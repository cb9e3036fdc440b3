"""``lnlbench doctor``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from lnlbench.cli.common import data_options, data_store, json_option, print_json, runs_option


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    state: Literal["ok", "note", "problem"]
    what: str
    found: str
    advice: str = ""


@click.command()
@data_options
@runs_option
@json_option
def doctor(data: Path | None, offline: bool, runs: Path, as_json: bool) -> int:
    """Check the installation, devices, data and plugins, and say what to do. Exit code 1 if there is a problem."""
    findings: list[Finding] = []
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _libraries,
        _devices,
        _plugins,
        lambda: _data(data, offline),
        lambda: _folder("run folders", runs),
    )
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a check that cannot even run is itself a finding
            findings.append(Finding("problem", "check", f"{type(error).__name__}: {error}"))
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
        for finding in findings:
            click.echo(f"{marks[finding.state]}  {finding.what}: {finding.found}")
            if finding.advice:
                click.echo(f"           -> {finding.advice}")
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _libraries() -> list[Finding]:
    import importlib
    import importlib.metadata
    import platform

    findings = [Finding("ok", "python", platform.python_version())]
    for package, module in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("timm", "timm"),
        ("scikit-learn", "sklearn"),
        ("pandas", "pandas"),
    ):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("problem", package, "not installed", f"python3 -m pip install {package}"))
            continue
        try:
            importlib.import_module(module)
        except Exception as error:
            advice = "install torch and torchvision together, from the same place, so that their builds match"
            findings.append(Finding("problem", package, f"{version} does not import: {error}", advice))
            continue
        if package == "torch" and tuple(int(p) for p in version.split("+")[0].split(".")[:2]) < (2, 10):
            advice = "python3 -m pip install --upgrade 'torch>=2.10' torchvision"
            findings.append(Finding("problem", "torch", f"{version} loads checkpoints unsafely", advice))
        else:
            findings.append(Finding("ok", package, version))
    return findings


def _devices() -> list[Finding]:
    import torch

    from lnlbench.engine.device import cpu_name, has_fast_bf16, usable_cores

    native = "bf16 is native" if has_fast_bf16("cpu") else "no native bf16"
    findings = [Finding("ok", "cpu", f"{cpu_name()}, {usable_cores()} cores, {native}")]
    if not torch.cuda.is_available():
        findings.append(Finding("note", "gpu", "none that PyTorch can use", "the embedded suites run well on the CPU"))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        findings.append(Finding("ok", f"cuda:{number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
    return findings


def _plugins() -> list[Finding]:
    from lnlbench.errors import LnlbenchError
    from lnlbench.plugins import Registry, discover

    try:
        registry: Registry = discover()
    except LnlbenchError as error:
        return [Finding("problem", "plugins", str(error))]
    findings = []
    for registered in registry.methods:
        try:
            registered.load()
            findings.append(Finding("ok", f"method {registered.entry.name}", str(registered.provider)))
        except LnlbenchError as error:
            findings.append(Finding("problem", f"method {registered.entry.name}", str(error)))
    for broken in registry.broken:
        advice = f"python3 -m pip install --upgrade {broken.provider.distribution}, or uninstall it"
        findings.append(
            Finding("problem", f"plugin {broken.entry_point}", f"{broken.provider}: {broken.reason}", advice)
        )
    if not len(registry.methods.names()):
        advice = (
            "install a package that provides one; the requirements.txt of the source tree installs all built-in ones"
        )
        findings.append(Finding("problem", "methods", "none is installed", advice))
    return findings


def _data(data: Path | None, offline: bool) -> list[Finding]:
    from lnlbench.engine.data import find_dataset
    from lnlbench.errors import LnlbenchError
    from lnlbench.plugins import discover

    store = data_store(data, offline=True)
    findings = _folder("data folder", store.root)
    registry = discover()
    for registered in registry.datasets:
        name = registered.entry.name
        if name.endswith(":"):  # a family, each member of which is somebody's own
            continue
        try:
            find_dataset(registry, name).prepare(store)
            findings.append(Finding("ok", f"dataset {name}", f"{store.edition(name).name} edition"))
        except LnlbenchError as error:
            advice = "" if offline else f"lnlbench prepare {name}"
            findings.append(Finding("note", f"dataset {name}", str(error), advice))
    return findings


def _folder(what: str, folder: Path) -> list[Finding]:
    import filelock

    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    try:
        # What resuming rests on: locks that hold, and renames that replace.
        with (
            tempfile.TemporaryDirectory(dir=existing) as name,
            filelock.FileLock(Path(name) / "lock", timeout=1),
        ):
            (Path(name) / "a").write_text("a")
            (Path(name) / "b").write_text("b")
            (Path(name) / "a").replace(Path(name) / "b")
    except (OSError, filelock.Timeout) as error:
        return [Finding("problem", what, f"{folder} cannot be written to: {error}", "choose another folder")]
    state: Literal["ok", "problem"] = "ok" if free > 1 else "problem"
    advice = "" if free > 1 else "free some space: a CIFAR run needs about 1 GiB"
    return [Finding(state, what, f"{folder}, {free:.1f} GiB free", advice)]
