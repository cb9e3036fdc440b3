"""Runs one cell: from its folder, maybe with a checkpoint in it, to ``result.json``."""

from __future__ import annotations

import contextlib
import datetime
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

from lnlbench.contracts.dataset import Split
from lnlbench.contracts.executor import Job
from lnlbench.contracts.method import Ensemble, Method
from lnlbench.contracts.suite import Suite
from lnlbench.contracts.task import Selection
from lnlbench.contracts.views import PLAIN, ViewRecipe
from lnlbench.engine.data import LoadedData, load_cell, task_info, training_sample
from lnlbench.engine.device import describe_environment, set_determinism
from lnlbench.engine.encoders import Encoders, TrainingImages
from lnlbench.engine.hub import offline_if
from lnlbench.engine.live import LiveRun, RunDoor, write_arrays
from lnlbench.engine.realisation import NoiseRealisation, noisy_labels
from lnlbench.engine.scoring import (
    TRAINING,
    VALIDATION,
    Answers,
    PredictionLog,
    best_validation_epoch,
    mean_selection,
    score_run,
)
from lnlbench.engine.seeding import SETUP, Clock
from lnlbench.engine.sources import into_memory, open_source
from lnlbench.engine.stages import StageCache
from lnlbench.engine.task import DeviceTask
from lnlbench.engine.tracking import Emit
from lnlbench.errors import CellBusyError, DivergedError, LnlbenchError, PluginError
from lnlbench.files import make_folder, remove_leftovers, storage_error, storage_errors, write_json
from lnlbench.plugins import Provider, Registry, one_line
from lnlbench.records import CellSpec, Environment, MethodSpec, RunRecord, Timing
from lnlbench.store import LocalDataStore

RESULT = "result.json"
FAILURE = "failure.json"
_SMALL = 100 * 100
"""Pixels of an image up to which a thousand of them make one test batch."""
_TEST_BATCH, _LARGE_TEST_BATCH = 1000, 128
_TOP = 5


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
        with offline_if(job.offline):
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
    opened = open_task(cell, job.suite, store, registry, device, emit)
    data, noise, clock, task = opened.data, opened.noise, opened.clock, opened.task
    write_json(folder / "noise.json", noise.facts.model_dump(mode="json"))
    method = build_method(cell.method, registry)
    # Where no label is known to be wrong, none can be found in the answers.
    sample, sampled = training_sample(data.images, noise.given_labels)
    looked_for = bool((noise.truth.correct[sample] == 0).any())
    tester = Tester(method, data, device, job.data, sampled if looked_for else None, top5=job.suite.top5)
    stages = StageCache(job.data / "stages", stage_base(cell, data), noise.facts.digest, emit)
    live = LiveRun(
        folder,
        clock,
        device,
        environment.fingerprint,
        noise.truth,
        PredictionLog(tester.labels, data.num_classes),
        tester.predict,
        stages,
        emit,
        sample,
    )
    keep(live)
    emit({"event": "start", "epochs": cell.method.config["epochs"]})
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        if cell.selector is not None:
            task.selection = select_before(cell.selector, task, live, registry, emit)
        method.fit(task, RunDoor(live))
        live.end_epoch()
        if not live.rows:
            raise PluginError(f"{cell.method.name} returned from fit() without iterating over run.epochs()")
    except DivergedError as error:
        # A diverged run is a result: it is counted on the board, and repeating it would give the same.
        where = f"epoch {live.epoch}: " if live.epoch is not None and "epoch" not in str(error) else ""
        _commit(job, environment, data, noise, live, task.info.asked, opened.encoders, f"{where}{error}", device)
        return
    _commit(job, environment, data, noise, live, task.info.asked, opened.encoders, None, device)


@dataclass(frozen=True, eq=False)
class OpenedTask:
    """A task as its methods get it, and what the harness knows beside it."""

    task: DeviceTask
    data: LoadedData
    noise: NoiseRealisation
    clock: Clock
    encoders: Encoders


def open_task(
    cell: CellSpec, suite: Suite, store: LocalDataStore, registry: Registry, device: torch.device, emit: Emit
) -> OpenedTask:
    """Load data, get the noisy labels, and build the task without the truth.

    Raises:
        DataError: A file is missing or damaged.
        UsageError: Dataset and noise do not go together.
    """
    data = load_cell(cell, registry, store)
    emit({"event": "data", "images": len(data.images.train_labels)})
    data = into_memory(data, store)
    noise = noisy_labels(registry, store, cell.suite, cell.suite_version, cell.task, cell.noise, data)
    clock = Clock(cell.seed)
    clock.move_to(SETUP)
    views = {name: ViewRecipe.model_validate(recipe) for name, recipe in cell.views.items()}
    source = open_source(data.images.train_images, data.dataset, views.values(), device, store.root)
    encoders = Encoders(
        registry.encoders,
        TrainingImages(source, data.facts.digest, data.dataset.mean, data.dataset.std),
        store.root / "features",
        device,
        cell.precision,
        emit,
        offline=store.offline,
    )
    task = DeviceTask(
        task_info(suite, suite.task(cell.task), data.dataset, len(data.images.train_labels)),
        source,
        torch.from_numpy(noise.given_labels),
        views,
        clock,
        registry.backbones,
        device,
        cell.precision,
        cell.compile,
        encoders,
    )
    return OpenedTask(task, data, noise, clock, encoders)


def build_method(spec: MethodSpec, registry: Registry) -> Method[Any]:
    """Construct a method with its resolved configuration.

    Raises:
        PluginError: It is not installed in the version that the cell was planned for, or refuses its configuration.
    """
    registered = registry.methods.find(spec.name)
    if registered.provider != Provider(spec.distribution, spec.version):
        raise PluginError(
            f"{spec.name} was planned with {spec.distribution} {spec.version}, but {registered.provider} is installed; "
            "issue the run command again"
        )
    cls: type[Method[Any]] = registered.load()
    return cls(cls.Config.model_validate(spec.config))


def select_before(spec: MethodSpec, task: DeviceTask, live: LiveRun, registry: Registry, emit: Emit) -> Selection:
    """Have a method select clean samples before anything is trained.

    Raises:
        PluginError: It failed, or returned something other than a selection of the training set.
    """
    emit({"event": "stage", "stage": f"selection by {spec.name}"})
    began = time.monotonic()
    try:
        selection = build_method(spec, registry).select(task, RunDoor(live))
    except (LnlbenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        provider = Provider(spec.distribution, spec.version)
        raise PluginError(f"select() of {spec.name} ({provider}) failed: {one_line(error)}") from error
    for name, values, kind in (
        ("clean_probs", selection.clean_probs, "a float"),
        ("selected", selection.selected, "a bool"),
    ):
        fits = values.is_floating_point() if kind == "a float" else values.dtype == torch.bool
        if tuple(values.shape) != (task.num_train,) or not fits:
            raise PluginError(
                f"select() of {spec.name} returned {name} as {values.dtype} of shape {tuple(values.shape)}; "
                f"expected {kind} tensor of ({task.num_train},)"
            )
    live.seconds.stages[f"selection by {spec.name}"] = time.monotonic() - began
    return selection


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
    """Asks a method for its predictions on every test set, on the clean validation set, and on training images."""

    def __init__(
        self,
        method: Method[Any],
        data: LoadedData,
        device: torch.device,
        root: Path,
        training: Split | None,
        *,
        top5: bool = False,
    ) -> None:
        images = data.images
        sets = {"": Split(images.test_images, images.test_labels), **images.further_tests}
        if images.validation is not None:
            sets[VALIDATION] = images.validation
        self.labels = {name: split.labels for name, split in sets.items()}
        """Labels by test set; the main one is named ``""``."""
        if training is not None:
            sets[TRAINING] = training
        self._sources = {
            name: open_source(split.images, data.dataset, [PLAIN], device, root) for name, split in sets.items()
        }
        self._on_device = {name: torch.from_numpy(split.labels).to(device) for name, split in sets.items()}
        self._method = method
        self._num_classes = data.num_classes
        self._device = device
        self._top5 = top5 and data.num_classes > _TOP

    def predict(self, modules: list[nn.Module]) -> dict[str, Answers]:
        """Return what the method answers to each set.

        Raises:
            DivergedError: A score is not finite; an argmax over it would look like a legitimate prediction.
            PluginError: ``predict`` returned another shape than (B, C).
        """
        training = [[module.training for module in each.modules()] for each in modules]
        for each in modules:
            each.eval()
        with torch.no_grad():
            answers = {name: self._ask(name) for name in self._sources}
        for each, flags in zip(modules, training, strict=True):
            for module, flag in zip(each.modules(), flags, strict=True):
                module.training = flag
        return answers

    def _ask(self, name: str) -> Answers:
        source, labels = self._sources[name], self._on_device[name]
        batch_size = _TEST_BATCH if source.height * source.width <= _SMALL else _LARGE_TEST_BATCH
        count = -(-source.size // batch_size)
        classes, hits, finite = [], [], []
        hits_alone: dict[str, Tensor] = {}
        order = torch.arange(source.size, device=self._device)
        for batch, (images,) in enumerate(source.batches(order, batch_size, count, (PLAIN,), (0,))):
            right = labels[batch * batch_size : (batch + 1) * batch_size]
            answer = self._method.predict(images)
            if isinstance(answer, Ensemble):
                logits = answer.logits
                for network, alone in answer.networks.items():
                    self._check_shape(alone, images)
                    finite.append(torch.isfinite(alone).all())
                    hits_alone[network] = hits_alone.get(network, 0) + (alone.argmax(1) == right).sum()
            else:
                logits = answer
            self._check_shape(logits, images)
            finite.append(torch.isfinite(logits).all())
            classes.append(logits.argmax(1))
            if self._top5:
                hits.append((logits.topk(_TOP, dim=1).indices == right[:, None]).any(1))
        if not bool(torch.stack(finite).all()):
            raise DivergedError("a test score is not finite")
        return Answers(
            torch.cat(classes).cpu().numpy(),
            torch.cat(hits).cpu().numpy() if hits else None,
            {network: int(count) / source.size for network, count in hits_alone.items()},
        )

    def _check_shape(self, logits: Tensor, images: Tensor) -> None:
        if tuple(logits.shape) != (len(images), self._num_classes):
            raise PluginError(
                f"predict() returned shape {tuple(logits.shape)}, expected {(len(images), self._num_classes)}"
            )


def _commit(
    job: Job,
    environment: Environment,
    data: LoadedData,
    noise: NoiseRealisation,
    live: LiveRun,
    asked: set[str],
    encoders: Encoders,
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
        scores=score_run(live.rows) if diverged is None else None,
        further_scores={name: score_run(live.rows, name) for name in cell.test_sets[1:]} if diverged is None else {},
        best_val_epoch=best_validation_epoch(live.rows) if diverged is None else None,
        selection=mean_selection(live.rows),
        asked=tuple(sorted(asked | set(cell.method.asked))),
        encoders=encoders.fingerprints,
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
    with contextlib.suppress(OSError):
        # Unlike the figure below it, this one does not count what the parent process had when it started this one.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
