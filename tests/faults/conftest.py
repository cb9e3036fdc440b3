"""What the fault tests share: a laboratory that plans and runs small cells, and processes that can be killed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lnlbench.contracts.executor import Job
from lnlbench.contracts.method import MethodEntry
from lnlbench.engine.planner import Request, plan
from lnlbench.engine.runner import run_cell
from lnlbench.leaderboard.store import COLUMNS, score
from lnlbench.plugins import Provider, Registered, Registry, discover
from lnlbench.records import CellSpec
from lnlbench.store import LocalDataStore

HERE = Path(__file__).parent
# Seconds and bytes differ from run to run, and how often a run was resumed is the very difference under test.
UNEQUAL = ("timing", "peak_memory_bytes", "finished", "resumed")
UNEQUAL_COLUMNS = ("train_seconds_mean", "stage_seconds_mean", "peak_memory_mib_mean")
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back the process as it was: a run sets threads, determinism and the global generators."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])


@dataclass
class Lab:
    """Plans and runs small cells in this process."""

    root: Path
    registry: Registry

    def with_method(self, name: str, target: type[Any]) -> Lab:
        """Return a laboratory where one more method is installed."""
        registry = Registry(**{**self.registry.__dict__, "methods": type(self.registry.methods)("method")})
        for registered in self.registry.methods:
            registry.methods.add(registered)
        entry = MethodEntry(name=name, target=f"{target.__module__}:{target.__qualname__}", summary="For tests.")
        registry.methods.add(Registered(entry, Provider("lnlbench-toys", "1.0")))
        return Lab(self.root, registry)

    def cell(
        self, method: str, *, epochs: int, limit: int = 200, seed: int = 1, options: Mapping[str, object] | None = None
    ) -> CellSpec:
        """Plan one cell of digits-sym@0.40, with the noise of seed 1."""
        request = Request(
            methods=[method],
            suites=["digits-sym"],
            tasks=["0.40"],
            seeds=[seed],
            noise_seed=1,
            epochs=epochs,
            limit_train=limit,
            overrides={key: str(value) for key, value in (options or {}).items()},
        )
        (cell,) = plan(request, self.registry, LocalDataStore(self.root / "data", offline=True)).cells
        return cell

    def job(self, cell: CellSpec, folder: Path) -> Job:
        """Return the cell's job in a folder of the test's choice."""
        suite = self.registry.suites.find(cell.suite).entry
        return Job(cell=cell, suite=suite, folder=folder, data=self.root / "data", offline=True, threads=1)

    def run(self, cell: CellSpec, folder: Path, stop_after: int | None = None) -> list[dict[str, Any]]:
        """Run the cell to its end, or up to an interrupt right after the log line of an epoch; return the events."""
        events: list[dict[str, Any]] = []

        def hear(event: dict[str, Any]) -> None:
            events.append(event)
            if stop_after is not None and event["event"] == "epoch" and event["epoch"] == stop_after:
                raise KeyboardInterrupt

        try:
            run_cell(self.job(cell, folder), "cpu", self.registry, hear)
        except KeyboardInterrupt:
            assert stop_after is not None
        return events


@dataclass
class Child:
    """A process of the fork server."""

    pid: int
    connection: socket.socket
    events: list[dict[str, Any]] = field(default_factory=list)
    _pending: bytes = b""

    def listen(self) -> dict[str, Any] | None:
        """Return the next event; ``None`` when the process has ended."""
        while b"\n" not in self._pending:
            if self.connection.fileno() < 0:
                return None
            ready, _, _ = select.select([self.connection], [], [], PATIENCE)
            assert ready, f"process {self.pid} has been silent for {PATIENCE:.0f} s after {self.events[-1:]}"
            data = self.connection.recv(1 << 16)
            if not data:
                self.connection.close()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        self.events.append(event)
        return event

    def until(self, name: str) -> dict[str, Any] | None:
        """Return the next event of that name; ``None`` if the process ended before."""
        while (event := self.listen()) is not None:
            if event["event"] == name:
                return event
        return None

    def finish(self) -> list[dict[str, Any]]:
        """Listen to the end and return all events."""
        while self.listen() is not None:
            pass
        return self.events

    def kill(self) -> None:
        """Send SIGKILL and wait until the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.finish()

    def named(self, name: str) -> list[dict[str, Any]]:
        """All events of that name so far."""
        return [event for event in self.events if event["event"] == name]


@dataclass
class ForkServer:
    """Starts processes that have everything imported already."""

    address: str

    def start(self, call: str, **request: Any) -> Child:
        """Call a function of ``scenarios.py`` in a new process."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.address)
        connection.sendall(json.dumps({"call": call, **request}).encode() + b"\n")
        child = Child(0, connection)
        first = child.listen()
        assert first is not None
        child.pid = first["pid"]
        return child

    def run(self, job: Job, **options: Any) -> Child:
        """Run a cell."""
        return self.start("run", job=job.model_dump(mode="json"), **options)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), discover())


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked on this system")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # A socket's path may have about 100 characters only, so it cannot be below pytest's own folder.
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "socket")
        process = subprocess.Popen(
            [sys.executable, str(HERE / "forkserver.py"), address],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield ForkServer(address)
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


@pytest.fixture(scope="session")
def small_disk(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where a process cannot have a small disk of its own."""
    child = forks.start("can_mount", mount=str(tmp_path_factory.mktemp("probe")))
    child.finish()
    if not child.named("mounted"):
        pytest.skip("no RAM disk can be mounted here: user namespaces are not allowed")


@pytest.fixture(scope="session")
def crashfs() -> ModuleType:
    """The module that simulates power cuts."""
    spec = importlib.util.spec_from_file_location("crashfs", HERE / "crashfs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crashfs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def essence(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """Return everything of a finished run that must not depend on interruptions, down to the bit."""

    def of(folder: Path) -> dict[str, Any]:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((folder / "result.json").read_text())
        # The working copy may be edited while tests run.
        result["environment"].pop("commit")
        return {
            "metrics": [{key: value for key, value in row.items() if key != "seconds"} for row in metrics],
            "result": {key: value for key, value in result.items() if key not in UNEQUAL},
            "predictions": (folder / "predictions.npz").read_bytes(),
            "samples": (folder / "samples.npz").read_bytes(),
            "weights": weights(folder),
            "row": csv_row(folder, tmp_path_factory.mktemp("board")),
        }

    return of


def weights(folder: Path) -> list[bytes]:
    """Return the tracked state after the final epoch, as bytes."""
    index = json.loads((folder / "checkpoints" / "latest.json").read_text())
    newest = torch.load(folder / "checkpoints" / index["checkpoints"][0]["name"], weights_only=True)
    found: list[bytes] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                found.append(repr(key).encode())
                walk(value[key])
        elif isinstance(value, list | tuple):
            for inner in value:
                walk(inner)
        else:
            found.append(repr(value).encode())

    walk(newest["state"])
    return found


def csv_row(folder: Path, board: Path) -> dict[str, str]:
    """Score one run onto a board of its own and return its row."""
    (csv_file,) = score([folder], board).boards
    header, line = (list(cells) for cells in _csv(csv_file))
    assert tuple(header) == COLUMNS
    return {key: cell for key, cell in zip(header, line, strict=True) if key not in UNEQUAL_COLUMNS}


def _csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))
