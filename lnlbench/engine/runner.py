"""Runs one cell: from its folder, maybe with a checkpoint in it, to ``result.json``."""

from __future__ import annotations

import datetime
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lnlbench.contracts.executor import Job
from lnlbench.contracts.method import Method
from lnlbench.contracts.views import ViewRecipe
from lnlbench.engine.data import LoadedData, check_edition, find_dataset, load_data, task_info
from lnlbench.engine.device import describe_environment, set_determinism
from lnlbench.engine.live import LiveRun, RunDoor, write_arrays
from lnlbench.engine.realisation import NoiseRealisation, realise
from lnlbench.engine.scoring import PredictionLog, mean_selection, score_run
from lnlbench.engine.seeding import Clock
from lnlbench.engine.stages import StageCache
from lnlbench.engine.task import DeviceTask
from lnlbench.engine.tracking import Emit
from lnlbench.engine.views import ImageStore
from lnlbench.errors import CellBusyError, DivergedError, LnlbenchError, PluginError
from lnlbench.files import make_folder, remove_leftovers, storage_error, storage_errors, write_json
from lnlbench.plugins import Provider, Registry, one_line
from lnlbench.records import CellSpec, Environment, RunRecord, Timing
from lnlbench.store import LocalDataStore

RESULT = "result.json"
FAILURE = "failure.json"
_TEST_BATCH = 1000


def run_cell(job: Job, device_name: str, registry: Registry, emit: Emit) -> None:
    """Run a cell to its end; whatever happens is written into its folder, and nothing is raised for a failing cell.

    Raises:
        CellBusyError: Another process owns the folder.
        StorageError: The folder cannot be written to.
        KeyboardInterrupt: The user interrupted; the cell can be resumed.
    """
    folder = make_folder(job.folder)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:  # an OSError too
        raise CellBusyError(f"{job.cell.label} is being run by another process ({folder})") from None
    except OSError as error:
        raise storage_error(error, folder) from error
    try:
        if (folder / RESULT).exists():
            return
        with storage_errors(folder):
            remove_leftovers(folder)
            (folder / FAILURE).unlink(missing_ok=True)
        write_json(folder / "spec.json", job.cell.model_dump(mode="json"))
        _run_locked(job, device_name, registry, emit)
    finally:
        lock.release()


def _run_locked(job: Job, device_name: str, registry: Registry, emit: Emit) -> None:
    live: LiveRun | None = None

    def keep(run: LiveRun) -> None:
        nonlocal live
        live = run

    provider = Provider(job.cell.method.distribution, job.cell.method.version)
    try:
        _train(job, device_name, registry, emit, keep)
    except LnlbenchError as error:
        where = f"epoch {live.epoch}: " if live and live.epoch is not None and "epoch" not in str(error) else ""
        _write_failure(job, "failed", where + str(error), "")
    except torch.OutOfMemoryError as error:
        where = "" if live is None or live.epoch is None else f" in epoch {live.epoch}"
        message = f"out of memory on {device_name}{where}: {one_line(error)}; try fewer --jobs-per-gpu"
        _write_failure(job, "oom", message, traceback.format_exc())
    except (Exception, SystemExit) as error:
        where = "" if live is None or live.epoch is None else f" in epoch {live.epoch}"
        message = f"{job.cell.method.name} ({provider}) failed{where}: {one_line(error)}; see {job.folder / 'log.txt'}"
        traceback.print_exc(file=sys.stderr)
        _write_failure(job, "failed", message, traceback.format_exc())


def _write_failure(job: Job, kind: str, message: str, details: str) -> None:
    write_json(job.folder / FAILURE, {"status": kind, "message": message, "details": details, "cell": job.cell.id})


def _train(job: Job, device_name: str, registry: Registry, emit: Emit, keep: Callable[[LiveRun], None]) -> None:
    cell, folder = job.cell, job.folder
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    set_determinism(cell.deterministic, cell.compile)
    environment = describe_environment(device, job.threads)
    write_json(folder / "environment.json", environment.model_dump(mode="json"))

    store = LocalDataStore(job.data, offline=job.offline, progress=False)
    dataset = find_dataset(registry, cell.dataset)
    check_edition(cell, store)
    data = load_data(dataset, store, cell.limit_train)
    noise = realise_cell(cell, job.data, registry, data)
    write_json(folder / "noise.json", noise.facts.model_dump(mode="json"))

    clock = Clock(cell.seed)
    clock.move_to("setup")
    info = task_info(registry, cell.suite, cell.task, dataset, cell.noise.generator, cell.noise.rate, cell.limit_train)
    task = DeviceTask(
        info,
        torch.from_numpy(data.images.train_images),
        torch.from_numpy(noise.given_labels.astype(np.int64)),
        dataset.mean,
        dataset.std,
        {name: ViewRecipe.model_validate(recipe) for name, recipe in cell.views.items()},
        clock,
        registry.backbones,
        device,
        cell.precision,
        cell.compile,
    )
    method = build_method(cell, registry)
    tester = Tester(method, data, device)
    stages = StageCache(job.data / "stages", stage_base(cell, data), noise.facts.digest, emit)
    live = LiveRun(
        folder,
        clock,
        device,
        environment.fingerprint,
        data.images.train_labels,
        noise.given_labels.astype(np.int64),
        PredictionLog(data.images.test_labels, dataset.num_classes),
        tester.predict,
        stages,
        emit,
    )
    keep(live)
    emit({"event": "start", "epochs": cell.method.config["epochs"]})
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        method.fit(task, RunDoor(live))
        live.end_epoch()
        if not live.rows:
            raise PluginError(f"{cell.method.name} returned from fit() without iterating over run.epochs()")
    except DivergedError as error:
        # A diverged run is a result: it is counted on the board, and repeating it would give the same.
        where = f"epoch {live.epoch}: " if live.epoch is not None and "epoch" not in str(error) else ""
        _commit(job, environment, data, noise, live, info.asked, f"{where}{error}", device)
        return
    _commit(job, environment, data, noise, live, info.asked, None, device)


def build_method(cell: CellSpec, registry: Registry) -> Method[Any]:
    """Construct the method with its resolved configuration.

    Raises:
        PluginError: It is not installed in the version that the cell was planned for, or refuses its configuration.
    """
    registered = registry.methods.find(cell.method.name)
    if registered.provider != Provider(cell.method.distribution, cell.method.version):
        raise PluginError(
            f"{cell.method.name} was planned with {cell.method.distribution} {cell.method.version}, but "
            f"{registered.provider} is installed; issue the run command again"
        )
    cls: type[Method[Any]] = registered.load()
    return cls(cls.Config.model_validate(cell.method.config))


def realise_cell(cell: CellSpec, root: Path, registry: Registry, data: LoadedData) -> NoiseRealisation:
    """Draw the cell's noisy labels, or read them if they were drawn before."""
    return realise(
        root,
        cell.suite,
        cell.suite_version,
        cell.task,
        cell.dataset,
        cell.noise,
        registry.noise.find(cell.noise.generator).load(),
        data.images.train_labels,
        data.dataset.num_classes,
        data.dataset.class_names,
    )


def stage_base(cell: CellSpec, data: LoadedData) -> dict[str, Any]:
    """What every stage result of a cell depends on, labels and settings apart."""
    return {
        "numerics": cell.numerics,
        "method": cell.method.name,
        "version": cell.method.version,
        "data": data.facts.digest,
        "views": cell.views,
        "precision": cell.precision,
        "seed": cell.seed,
    }


class Tester:
    """Asks a method for its predictions on the whole test set."""

    def __init__(self, method: Method[Any], data: LoadedData, device: torch.device) -> None:
        self._method = method
        self._store = ImageStore(
            torch.from_numpy(data.images.test_images), data.dataset.mean, data.dataset.std, 0, device
        )
        self._count = len(data.images.test_labels)
        self._num_classes = data.dataset.num_classes
        self._device = device

    def predict(self, modules: list[nn.Module]) -> NDArray[np.int64]:
        """Return ``predictions_M``: the class of the highest score for each test image.

        Raises:
            DivergedError: A score is not finite; an argmax over it would look like a legitimate prediction.
            PluginError: ``predict`` returned another shape than (B, C).
        """
        training = [[module.training for module in each.modules()] for each in modules]
        for each in modules:
            each.eval()
        predictions, finite = [], []
        with torch.no_grad():
            for start in range(0, self._count, _TEST_BATCH):
                index = torch.arange(start, min(start + _TEST_BATCH, self._count), device=self._device)
                logits = self._method.predict(self._store.gather(index, None, None, None))
                if tuple(logits.shape) != (len(index), self._num_classes):
                    raise PluginError(
                        f"predict() returned shape {tuple(logits.shape)}, expected {(len(index), self._num_classes)}"
                    )
                finite.append(torch.isfinite(logits).all())
                predictions.append(logits.argmax(1))
        for each, flags in zip(modules, training, strict=True):
            for module, flag in zip(each.modules(), flags, strict=True):
                module.training = flag
        if not bool(torch.stack(finite).all()):
            raise DivergedError("a test score is not finite")
        host: NDArray[np.int64] = torch.cat(predictions).cpu().numpy()
        return host


def _commit(
    job: Job,
    environment: Environment,
    data: LoadedData,
    noise: NoiseRealisation,
    live: LiveRun,
    asked: set[str],
    diverged: str | None,
    device: torch.device,
) -> None:
    cell = job.cell
    live.save_samples()
    if diverged is None:
        write_arrays(job.folder / "predictions.npz", live.predictions.arrays())
    parameters = {id(p): p.numel() for module in live.modules() for p in module.parameters() if p.requires_grad}
    record = RunRecord(
        cell=cell.id,
        status="finished" if diverged is None else "diverged",
        message=diverged or "",
        spec=cell,
        environment=environment,
        data=data.facts,
        noise=noise.facts,
        scores=score_run([row["test_accuracy"] for row in live.rows]) if diverged is None else None,
        selection=mean_selection(live.rows),
        asked=tuple(sorted(asked | set(cell.method.asked))),
        timing=Timing(
            train_seconds=live.seconds.train,
            evaluate_seconds=live.seconds.evaluate,
            harness_seconds=live.seconds.harness,
            stage_seconds=live.seconds.stages,
        ),
        peak_memory_bytes=_peak_memory(device),
        parameters=sum(parameters.values()),
        resumed=live.seconds.resumed,
        resume="exact" if len(live.seconds.fingerprints) <= 1 else "inexact",
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_json(job.folder / RESULT, record.model_dump(mode="json"))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
