"""Fixtures every test may use: the installed registry, a data folder, the command line, plugins made up on disk."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lnlbench.cli.main import _run
from lnlbench.contracts.executor import Job
from lnlbench.engine.planner import Request, cell_folder, plan
from lnlbench.engine.runner import run_cell
from lnlbench.plugins import Registry, discover
from lnlbench.records import CellSpec
from lnlbench.store import LocalDataStore

_VARIABLES = ("LNLBENCH_RUNS", "LNLBENCH_LEADERBOARDS", "LNLBENCH_OFFLINE", "LNLBENCH_MIRROR", "LNLBENCH_DEBUG")


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


@dataclass
class PluginFolder:
    """A folder in which distributions lie as an installer leaves them: modules, metadata and entry points."""

    path: Path
    modules: list[str] = field(default_factory=list)

    def add(
        self,
        distribution: str,
        module: str,
        source: str,
        *,
        version: str = "1.0",
        entry_point: str | None = None,
        metadata: bool = True,
    ) -> None:
        """Install a distribution of one module, with one entry point that names the module."""
        folder = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        if metadata:
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[lnlbench]\n{entry_point or module} = {module}\n")
        self.add_module(module, source)

    def add_module(self, module: str, source: str) -> None:
        """Write a module that no entry point names."""
        self.path.mkdir(exist_ok=True)
        (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        self.modules.append(module)


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process() -> Iterator[None]:
    """One thread, and none of the switches that a cell run in this process may have left."""
    torch.set_num_threads(1)
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = False


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for all tests; the digits are embedded, so that it may start empty."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """The builders of ``tests/trees.py``."""
    return _beside("trees")


@pytest.fixture(scope="session")
def web_trees() -> ModuleType:
    """The builders of ``tests/trees_web.py``."""
    return _beside("trees_web")


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def registry() -> Registry:
    """What is installed."""
    return discover()


@pytest.fixture(scope="session")
def store(data_root: Path) -> LocalDataStore:
    return LocalDataStore(data_root, offline=True, progress=False)


@pytest.fixture
def make_cells(registry: Registry, store: LocalDataStore) -> Callable[..., tuple[CellSpec, ...]]:
    """Plan cells of ``ce`` on digits: two epochs of 150 images, unless told otherwise."""

    def make(registry: Registry = registry, **changes: Any) -> tuple[CellSpec, ...]:
        usual: dict[str, Any] = {"methods": ["ce"], "suites": ["digits-sym"], "tasks": ["0.40"], "seeds": [1]}
        usual |= {"epochs": 2, "limit_train": 150}
        return plan(Request(**(usual | changes)), registry, store).cells

    return make


@pytest.fixture
def run_here(registry: Registry, data_root: Path, tmp_path: Path) -> Callable[..., tuple[Path, list[dict[str, Any]]]]:
    """Run one cell in this process; returns its folder and the events it emitted."""

    def run(
        cell: CellSpec, registry: Registry = registry, runs: Path = tmp_path / "runs", data: Path = data_root
    ) -> tuple[Path, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        folder = cell_folder(runs, cell)
        suite = registry.suites.find(cell.suite).entry
        job = Job(cell=cell, suite=suite, folder=folder, data=data, offline=True, threads=1)
        run_cell(job, "cpu", registry, events.append)
        return folder, events

    return run


@pytest.fixture
def workplace(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no variable of the caller's that changes what commands do."""
    for variable in _VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LNLBENCH_DATA", str(data_root))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(workplace: Path) -> Callable[..., Answer]:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _run([str(each) for each in arguments])
        return Answer(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def cli_process(workplace: Path) -> Callable[..., Answer]:
    """Run the installed ``lnlbench`` script as a process of its own."""

    def run(*arguments: str | Path, environment: Mapping[str, str] | None = None, timeout: float = 240) -> Answer:
        done = subprocess.run(
            [Path(sys.executable).with_name("lnlbench"), *map(str, arguments)],
            env={**os.environ, **(environment or {})},
            cwd=workplace,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginFolder]:
    """A folder of distributions, on the path of this process and of those it starts."""
    folder = PluginFolder(tmp_path / "site")
    folder.path.mkdir()
    monkeypatch.syspath_prepend(folder.path)
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    yield folder
    for module in folder.modules:
        sys.modules.pop(module, None)
