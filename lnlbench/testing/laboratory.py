"""Where a method is examined: small tasks made of the embedded digits, run by the real engine in a folder of their own.

Shapes: N training samples, M test samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from lnlbench.api import (
    DatasetEntry,
    DatasetOptions,
    DataStore,
    ImageData,
    ImageFiles,
    Job,
    Method,
    MethodEntry,
    Resize,
    Run,
    Suite,
    Task,
)
from lnlbench.builtin.datasets.digits import Digits
from lnlbench.engine import checkpoint
from lnlbench.engine.planner import Request, plan
from lnlbench.engine.runner import FAILURE, RESULT, run_cell
from lnlbench.errors import LnlbenchError
from lnlbench.files import read_json, write_json
from lnlbench.plugins import Catalogue, Registered, Registry, discover
from lnlbench.records import CellSpec, RunRecord
from lnlbench.store import LocalDataStore

DRAWN, OWN = "check-drawn", "check-own"
"""Suites: labels drawn as symmetric noise, and labels that the dataset comes with."""
LIMIT = 200
"""Training images of most runs."""
_EPOCHS, _LONG = 4, 6


class CheckError(AssertionError):
    """A method does not do what a check asks of it; the message is one line that says what happened instead."""


class LabOptions(DatasetOptions):
    """What is made of the digits."""

    given: Literal["", "noisy", "one-class", "missing-class"] = ""
    shuffled_truth: bool = False
    files: bool = False


class LabDigits(Digits):
    """The digits, with given labels of their own, another truth, or as image files, as the options say."""

    Options = LabOptions
    options: LabOptions

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, options)
        if self.options.files:
            self.channels = 3
            self.mean, self.std = 3 * Digits.mean, 3 * Digits.std  # type: ignore[assignment] # one per channel

    def load(self, store: DataStore) -> ImageData:
        """Read the digits and change them."""
        data = super().load(store)
        data = dataclasses.replace(data, given_labels=self._given(data.train_labels))
        if self.options.shuffled_truth:
            draw = np.random.Generator(np.random.PCG64(1))
            data = dataclasses.replace(
                data, train_labels=draw.permutation(data.train_labels), test_labels=draw.permutation(data.test_labels)
            )
        if self.options.files:
            data = dataclasses.replace(
                data,
                train_images=_written(data.train_images, store.root / "digits-train"),
                test_images=_written(data.test_images, store.root / "digits-test"),
            )
        return data

    def _given(self, labels: NDArray[np.int64]) -> NDArray[np.int64] | None:
        position = np.arange(len(labels))
        match self.options.given:
            case "noisy":
                return np.where(position % 10 < 3, (labels + 1 + position // 10 % 9) % 10, labels)
            case "one-class":
                return np.zeros_like(labels)
            case "missing-class":
                return np.where(labels == 3, 4, labels)
        return None


def _written(images: NDArray[np.uint8] | ImageFiles, folder: Path) -> ImageFiles:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths, digests = [], []
    for position, pixels in enumerate(np.asarray(images)):
        buffer = io.BytesIO()
        Image.fromarray(pixels[:, :, 0]).save(buffer, "PNG")
        path = folder / f"{position:05d}.png"
        if not path.exists():
            path.write_bytes(buffer.getvalue())
        paths.append(path.name)
        digests.append(np.frombuffer(hashlib.sha256(buffer.getvalue()).digest(), dtype=np.uint8))
    return ImageFiles(folder, tuple(paths), np.stack(digests), Resize(8, square=True), resident=False)


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path

    @property
    def record(self) -> RunRecord:
        """Its result."""
        return RunRecord.model_validate(read_json(self.folder / RESULT))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The log, one row per epoch."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of a file."""
        with np.load(self.folder / name) as file:
            return {key: file[key] for key in file.files}

    def difference(self, other: Finished, *, same_truth: bool = True) -> str:
        """Say in a few words where another run first differs in what the method did; empty if nowhere.

        Args:
            other: The run to compare with.
            same_truth: Whether scores, which depend on the true labels, are compared too.
        """
        compared = ("logged", "test_accuracy", "selection") if same_truth else ("logged",)
        if len(self.rows) != len(other.rows):
            return f"there are {len(self.rows)} epochs here and {len(other.rows)} there"
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            for part in compared:
                if mine[part] != theirs[part]:
                    return f"{_first_difference(part, mine[part], theirs[part])} in epoch {mine['epoch']}"
        mine, theirs = self.arrays("predictions.npz"), other.arrays("predictions.npz")
        wrong = (mine["predictions"] != theirs["predictions"]).any(axis=1)
        if wrong.any():
            return f"the predictions differ in epoch {mine['epochs'][wrong.argmax()]}"
        mine, theirs = self.arrays("samples.npz"), other.arrays("samples.npz")
        if set(mine) != set(theirs):
            return f"the reports are {', '.join(sorted(mine))} here and {', '.join(sorted(theirs))} there"
        for name in mine:
            if not np.array_equal(mine[name], theirs[name]):
                return f"the reported {name} differ in the last epoch"
        return ""


def _first_difference(part: str, mine: Any, theirs: Any) -> str:
    if not isinstance(mine, dict):
        return f"the {part.replace('_', ' ')} is {mine} here and {theirs} there"
    name = min(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    return f"{name!r} is {mine.get(name, 'absent')} here and {theirs.get(name, 'absent')} there"


class Lab:
    """Runs of one method, each made when it is first asked for. Everything is written to a temporary folder."""

    def __init__(self, method: str, installed: Registry | None = None) -> None:
        """Look the method up; nothing runs yet.

        Args:
            method: Its name.
            installed: What is installed; found out if ``None``.

        Raises:
            UnknownNameError: No method of that name.
            PluginError: Its code cannot be imported.
        """
        self.registry = lab_registry(installed or discover())
        self.registered = self.registry.methods.find(method)
        self.cls: type[Method[Any]] = self.registered.load()
        self.method = method
        self._folder = tempfile.TemporaryDirectory(prefix="lnlbench-check-")
        self.root = Path(self._folder.name)

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def cell(self, suite: str, task: str, *, limit: int | None = LIMIT, seed: int = 1, long: bool = False) -> CellSpec:
        """Plan a run.

        Raises:
            CheckError: The method declines the task, or its preset fails.
        """
        store = LocalDataStore(self.root / "data", offline=True, progress=False)
        request = Request(
            methods=[self.method],
            suites=(),
            own_suites=[self._suite(suite, long)],
            tasks=[task],
            seeds=[seed],
            limit_train=limit,
        )
        try:
            (cell,) = plan(request, self.registry, store).cells
        except LnlbenchError as error:
            raise CheckError(str(error)) from error
        return cell

    def run(
        self,
        cell: CellSpec,
        where: str,
        *,
        data: str = "data",
        stop_in: int | None = None,
        registry: Registry | None = None,
    ) -> Finished:
        """Run a cell in this process, or go on with it.

        Args:
            cell: What to run.
            where: Name of its folder; one that holds an interrupted run is gone on with.
            data: Name of the data folder, which also holds what stages computed.
            stop_in: Interrupt the run at the end of this epoch, before its state is saved.
            registry: In place of the lab's own.

        Raises:
            CheckError: It did not come to its end.
        """

        def hear(event: dict[str, Any]) -> None:
            if (event["event"], event.get("epoch")) == ("epoch", stop_in):
                raise KeyboardInterrupt

        job = self._job(cell, where, data)
        with undisturbed(), patch.object(checkpoint, "_PACE", 0.0), _unheard():
            try:
                run_cell(job, "cpu", registry or self.registry, hear)
            except KeyboardInterrupt:
                if stop_in is None:
                    raise
                return Finished(job.folder)
        return self._finished(job.folder)

    @cached_property
    def short(self) -> Finished:
        """A few epochs on a few digits with symmetric noise: what other runs are compared with."""
        return self.run(self.cell(DRAWN, "0.40"), "short")

    @cached_property
    def long(self) -> Finished:
        """More epochs on all digits."""
        return self.run(self.cell(DRAWN, "0.40", limit=None, long=True), "long")

    @cached_property
    def elsewhere(self) -> tuple[Finished, list[str]]:
        """The short run in a process of its own, from an empty data folder; and what importing the method changed."""
        job = self._job(self.cell(DRAWN, "0.40"), "elsewhere", "data-elsewhere")
        job.folder.mkdir(parents=True)
        (job.folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        command = f"from lnlbench.testing.laboratory import work_elsewhere; work_elsewhere({str(job.folder)!r})"
        # With another seed of text hashes, sets of names come in another order.
        environment = {**os.environ, "PYTHONHASHSEED": "4321", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
        try:
            changes = read_json(job.folder / "changes.json")
        except OSError:
            last = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
            raise CheckError(f"a process of its own ended without a result: {last}") from None
        return self._finished(job.folder), list(changes)

    def watched(self, seed: int) -> Watch:
        """Watch what a run does to the global state of its process."""
        watch = Watch()
        methods: Catalogue[MethodEntry] = Catalogue("method")
        methods.add(_Watched(self.registered.entry, self.registered.provider, watch))
        registry = dataclasses.replace(self.registry, methods=methods)
        self.run(self.cell(DRAWN, "0.40", seed=seed), f"watched-{seed}", registry=registry)
        return watch

    def _suite(self, name: str, long: bool) -> Suite:
        usual = self.registry.suites.find("digits-sym").entry.model_dump()
        changes: dict[str, Any] = {"name": name, "variant_of": None, "epochs": _LONG if long else _EPOCHS}
        if name == DRAWN:
            rates = (0.4, 0.0, 1.0)
            changes["tasks"] = [{"name": f"{rate:.2f}", "rate": rate} for rate in rates]
            changes["tasks"].append({"name": "files", "rate": 0.4, "data": {"files": True}})
        else:
            changes["noise"] = {"generator": "own"}
            changes["tasks"] = [
                {"name": "noisy", "rate": 0.3, "data": {"given": "noisy"}},
                {"name": "shuffled-truth", "rate": 0.3, "data": {"given": "noisy", "shuffled_truth": True}},
                {"name": "one-class", "data": {"given": "one-class"}},
                {"name": "missing-class", "data": {"given": "missing-class"}},
            ]
        return Suite.model_validate(usual | changes)

    def _job(self, cell: CellSpec, where: str, data: str) -> Job:
        suite = self._suite(cell.suite, cell.method.config["epochs"] != _EPOCHS)
        return Job(cell=cell, suite=suite, folder=self.root / where, data=self.root / data, offline=True, threads=1)

    def _finished(self, folder: Path) -> Finished:
        if (folder / FAILURE).exists():
            failure = read_json(folder / FAILURE)
            raise CheckError(_told(failure["message"], failure["details"], self.cls))
        finished = Finished(folder)
        if finished.record.status == "diverged":
            raise CheckError(f"it diverged: {finished.record.message}")
        return finished


def lab_registry(installed: Registry) -> Registry:
    """Return what is installed, with the digits of the lab in place of the usual ones."""
    provider = installed.datasets.find("digits").provider
    datasets: Catalogue[DatasetEntry] = Catalogue("dataset")
    entry = DatasetEntry(name="digits", target=f"{__name__}:LabDigits", summary="Digits for checks.")
    datasets.add(Registered(entry, provider))
    return dataclasses.replace(installed, datasets=datasets)


def work_elsewhere(folder: str) -> None:
    """Do the work of a process of its own: import the method, run the job that lies in the folder."""
    registry = lab_registry(discover())
    job = Job.model_validate_json(Path(folder, "job.json").read_bytes())
    before = settings()
    registry.methods.find(job.cell.method.name).load()
    write_json(Path(folder, "changes.json"), changed(before, settings()))
    run_cell(job, "cpu", registry, lambda _: None)


_CUDNN = torch.backends.cudnn
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "PyTorch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "PyTorch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "PyTorch's default device": (torch.get_default_device, torch.set_default_device),
    "PyTorch's deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "torch.backends.cudnn.deterministic": (
        lambda: _CUDNN.deterministic,
        lambda value: setattr(_CUDNN, "deterministic", value),
    ),
    "torch.backends.cudnn.benchmark": (lambda: _CUDNN.benchmark, lambda value: setattr(_CUDNN, "benchmark", value)),
    "PyTorch's precision of matrix products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "PyTorch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "PyTorch's anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "NumPy's treatment of floating-point errors": (np.geterr, lambda value: np.seterr(**value)),
    "the current folder": (Path.cwd, os.chdir),
}
"""What a method has to leave alone, by what people call it: how to ask for it, and how to set it."""


def settings() -> dict[str, Any]:
    """Return the settings of this process that a method has to leave alone."""
    return {name: get() for name, (get, _) in _SETTINGS.items()}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say which settings changed, from what to what."""
    return [f"{name} ({before[name]} to {after[name]})" for name in before if before[name] != after[name]]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what engine and method change in this process: settings, and the states of global generators."""
    before = settings()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for name, (get, put) in _SETTINGS.items():
            if get() != before[name]:
                put(before[name])
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    # What a run prints would stand between the lines of the report; what went wrong is in its folder as well.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@dataclass
class Watch:
    """What was seen of a run's global state."""

    changes: list[str] = field(default_factory=list)
    """Settings that ``fit`` left changed."""
    generators: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    """After the set-up and after each epoch: the states of the global generators, by name."""


@dataclass(frozen=True)
class _Watched(Registered[MethodEntry]):
    """A method whose runs are watched."""

    watch: Watch

    def load(self) -> Any:
        cls, watch = super().load(), self.watch

        class Watched(cls):  # type: ignore[misc, valid-type]
            def fit(self, task: Task, run: Run) -> None:
                before = settings()
                super().fit(task, _WatchedRun(run, watch))
                watch.changes = changed(before, settings())

        return Watched


class _WatchedRun:
    def __init__(self, run: Run, watch: Watch) -> None:
        self._run, self._watch = run, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def epochs(self, total: int) -> Iterator[int]:
        self._watch.generators.append(("the set-up", _generator_states()))
        for epoch in self._run.epochs(total):
            yield epoch
            self._watch.generators.append((f"epoch {epoch}", _generator_states()))


def _generator_states() -> dict[str, bytes]:
    return {
        "Python's": repr(random.getstate()).encode(),
        "NumPy's": repr([np.asarray(part).tolist() for part in np.random.get_state()]).encode(),
        "PyTorch's": torch.get_rng_state().numpy().tobytes(),
    }


def _told(message: str, details: str, cls: type[Method[Any]]) -> str:
    """Return the message of a failed run, with the last line of the method's own code instead of a log file."""
    told = message.partition("; see ")[0]
    package = cls.__module__.partition(".")[0]
    frames = re.findall(r'File "([^"]+)", line (\d+)', details)
    own = [(Path(file).name, line) for file, line in frames if package in Path(file).parts or package in file]
    return f"{told} ({own[-1][0]}, line {own[-1][1]})" if own else told
