"""What methods cost: each one trains in a process of its own, as in ``lnlbench run``, while it is watched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.executor import Executor, Job, Launcher, Listener, Resources
from lnlbench.contracts.suite import Suite
from lnlbench.engine.launch import LOG, EngineLauncher, die_with_parent
from lnlbench.engine.session import Outcome, run_cells
from lnlbench.engine.watching import Usage, Watch
from lnlbench.errors import DataError, LnlbenchError, PluginError
from lnlbench.files import read_json, storage_errors
from lnlbench.plugins import Registry, discover
from lnlbench.records import CellSpec, Environment

WATCHED = "watched.json"
_MAIN_PHASE = 0.25


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodProfile(_Record):
    """What one method used and what it cost."""

    method: str = Field(description="Method id.")
    version: str = Field(description="Version of the distribution that provides it.")
    changed: dict[str, Any] = Field(description="The options that differ from the preset.")
    backbone: str = Field(description="Backbone.")
    epochs: int = Field(description="Epochs trained.")
    asked: tuple[str, ...] = Field(description="What preset and method asked for on this task.")
    networks_at_test: int = Field(description="Networks that vote on a test image.")
    parameters: int = Field(description="Trainable parameters of all tracked networks.")
    usage: Usage = Field(description="Used in the last epoch.")
    seconds_per_epoch: float = Field(
        description="Training, without evaluation; median over the last quarter of the epochs. On a CPU processor time "
        "of all threads, in which other programs do not count; else by the clock."
    )
    stage_seconds: dict[str, float] = Field(description="Each named stage before training.")
    peak_memory_bytes: int = Field(description="Peak memory of the device (GPU) or of the process (CPU).")


class Measurement(_Record):
    """Methods measured side by side: same task, same seed, same device, one after the other."""

    suite: str = Field(description="Suite id.")
    task: str = Field(description="Level within the suite.")
    num_train: int = Field(description="Training images.")
    precision: str = Field(description="Precision of forward passes.")
    environment: Environment = Field(description="Where it was measured.")
    measured: str = Field(description="The day, ISO 8601.")
    methods: tuple[MethodProfile, ...] = Field(description="In the order asked for.")


@dataclass(frozen=True)
class Failure:
    """A method that could not be measured."""

    cell: CellSpec
    message: str


def measure(
    cells: Sequence[CellSpec],
    suites: Mapping[str, Suite],
    *,
    data: Path,
    offline: bool,
    threads: int,
    device: str,
    registry: Registry,
    started: Callable[[CellSpec], None],
) -> tuple[Measurement | None, list[Failure]]:
    """Train each cell once more, alone on the machine as far as this program goes, and watch it.

    Args:
        cells: One per method, on one task.
        suites: The suites of the cells, by name.
        data: Root of the data folder.
        offline: Whether downloads are forbidden.
        threads: CPU threads.
        device: PyTorch device name.
        registry: What is installed.
        started: Told of each cell as it starts.

    Returns:
        The measurement, ``None`` if any method could not be measured, and the failures. The run folders, with what the
        workers printed, stay only after a failure.
    """
    runs = Path(tempfile.mkdtemp(prefix="lnlbench-profile-"))

    def listen(cell: CellSpec, event: dict[str, Any]) -> None:
        if event["event"] == "launch":
            started(cell)

    try:
        outcomes = run_cells(
            cells,
            runs,
            data=data,
            offline=offline,
            threads=lambda _cell: threads,
            executor=WatchingExecutor(),
            resources=Resources(devices=(device,)),
            registry=registry,
            suites=suites,
            listen=listen,
        )
    except BaseException:
        shutil.rmtree(runs, ignore_errors=True)
        raise
    profiles, failures = [], []
    for outcome in outcomes:
        try:
            profiles.append(profile_of(outcome))
        except LnlbenchError as error:
            failures.append(Failure(outcome.cell, str(error)))
    if failures:
        return None, failures
    shutil.rmtree(runs, ignore_errors=True)
    record = outcomes[0].record
    assert record is not None  # noqa: S101 - a failure otherwise
    return Measurement(
        suite=record.spec.suite,
        task=record.spec.task,
        num_train=record.data.num_train,
        precision=record.spec.precision,
        environment=record.environment,
        measured=record.finished[:10],
        methods=tuple(profiles),
    ), []


def profile_of(outcome: Outcome) -> MethodProfile:
    """Put together what the run and its watch wrote down.

    Raises:
        PluginError: The run failed or diverged, or its last epoch trained no network.
        DataError: The worker ended before it wrote down what it saw.
    """
    record = outcome.record
    if record is None or record.status != "finished":
        raise PluginError(outcome.message)
    try:
        watched = read_json(outcome.folder / WATCHED)
    except (OSError, ValueError):
        raise DataError(f"the worker ended before it wrote {WATCHED}; see {outcome.folder / LOG}") from None
    if watched["usage"] is None:
        raise PluginError(
            "no optimiser changed a network of the task in the last epoch, so there is no step to measure"
        )
    seconds = watched["processor_seconds"]
    if record.environment.device_type != "cpu":
        lines = (outcome.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        seconds = [json.loads(line)["seconds"]["train"] for line in lines]
    method = record.spec.method
    return MethodProfile(
        method=method.name,
        version=method.version,
        changed=method.changed,
        backbone=method.config["backbone"],
        epochs=len(seconds),
        asked=record.asked,
        networks_at_test=method.networks,
        parameters=record.parameters,
        usage=Usage.model_validate(watched["usage"]),
        seconds_per_epoch=median(seconds[-max(1, int(_MAIN_PHASE * len(seconds))) :]),
        stage_seconds=record.timing.stage_seconds,
        peak_memory_bytes=record.peak_memory_bytes,
    )


class WatchingExecutor(Executor):
    """Runs one cell at a time, each in a worker that watches its method."""

    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        """See :meth:`lnlbench.api.Executor.run`."""
        for job in jobs:
            listen(job.cell.id, {"event": "launch", "device": resources.devices[0]})
            (*python, _module, folder, device), environment = launcher.command(job, resources.devices[0])
            command = [*python, __name__, folder, device]
            with storage_errors(job.folder / LOG), (job.folder / LOG).open("wb") as log:
                done = subprocess.run(
                    command, env=environment, input=job.model_dump_json().encode(), stdout=log, stderr=log
                )
            listen(job.cell.id, {"event": "exit", "code": done.returncode})


def main() -> int:
    """Run the cell on standard input, on the device that is the last argument, and write down what its method used."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    die_with_parent()
    job = Job.model_validate_json(sys.stdin.buffer.read())
    watch = Watch()
    EngineLauncher(watch.methods(discover())).here(job, device, lambda _cell, _event: None)
    watch.write(folder / WATCHED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
