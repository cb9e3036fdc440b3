from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from lnlbench.builtin.executors.inline import InlineExecutor
from lnlbench.builtin.executors.local import LocalExecutor
from lnlbench.contracts.executor import Executor, Job, Listener, Resources
from lnlbench.engine.launch import EngineLauncher
from lnlbench.engine.session import run_cells
from lnlbench.plugins import Registry, discover
from lnlbench.records import CellSpec

MakeCells = Callable[..., tuple[CellSpec, ...]]
ON_CPU = Resources(devices=("cpu",), jobs_per_device=2)


class ScriptLauncher:
    """Workers that are small Python scripts instead of cells: all an executor should care about."""

    def __init__(self, scripts: dict[int, str]) -> None:
        self.scripts = scripts
        self.started: list[tuple[int, str]] = []

    def here(self, job: Job, device: str, listen: Listener) -> None:
        self.started.append((job.cell.seed, device))
        listen(job.cell.id, {"event": "epoch"})

    def command(self, job: Job, device: str) -> tuple[list[str], dict[str, str]]:
        self.started.append((job.cell.seed, device))
        script = self.scripts.get(job.cell.seed, 'print(\'{"event": "epoch"}\')')
        if script == "absent":
            return [str(job.folder / "no such program")], {}
        return [sys.executable, "-S", "-c", script], {"NOTE": str(job.folder)}


class Heard:
    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.threads: set[int] = set()

    def __call__(self, cell: str, event: dict[str, Any]) -> None:
        self.events[cell].append(event)

    def of(self, job: Job) -> list[str]:
        return [event["event"] for event in self.events[job.cell.id]]

    def code(self, job: Job) -> int:
        return int(self.events[job.cell.id][-1]["code"])


@pytest.fixture
def make_jobs(make_cells: MakeCells, registry: Registry, tmp_path: Path) -> Callable[[int], list[Job]]:
    def make(count: int) -> list[Job]:
        cells = make_cells(seeds=range(count))
        suite = registry.suites.find("digits-sym").entry
        return [Job(cell=c, suite=suite, folder=tmp_path / c.id, data=tmp_path, offline=True, threads=1) for c in cells]

    return make


def run(jobs: Sequence[Job], scripts: dict[int, str], resources: Resources = ON_CPU) -> tuple[Heard, ScriptLauncher]:
    heard, launcher = Heard(), ScriptLauncher(scripts)
    LocalExecutor().run(jobs, resources, launcher, heard)
    return heard, launcher


@pytest.mark.parametrize("executor", [InlineExecutor(), LocalExecutor()], ids=["inline", "local"])
def test_every_job_is_run_once_and_ends_with_exit(executor: Executor, make_jobs: Callable[[int], list[Job]]) -> None:
    jobs, heard, launcher = make_jobs(5), Heard(), ScriptLauncher({})
    executor.run(jobs, ON_CPU, launcher, heard)
    assert sorted(launcher.started) == [(seed, "cpu") for seed in range(5)]
    for job in jobs:
        assert heard.of(job) == ["launch", "epoch", "exit"]
        assert heard.events[job.cell.id][0]["device"] == "cpu"
        assert heard.code(job) == 0


def test_no_job_is_nothing_to_do() -> None:
    heard, launcher = run([], {})
    assert (heard.events, launcher.started) == ({}, [])


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", -int(signal.SIGKILL)),
        ("import os; os._exit(3)", 3),
        ("import os; os._exit(0)", 0),
        ("raise SystemExit(1)", 1),
        ("print('{\"event\": \"ep', end='', flush=True); import os; os._exit(5)", 5),
    ],
    ids=["killed", "exit 3", "exit 0", "system exit", "in the middle of a line"],
)
def test_a_worker_that_dies_takes_no_other_with_it(
    make_jobs: Callable[[int], list[Job]], script: str, code: int
) -> None:
    jobs = make_jobs(4)
    heard, _ = run(jobs, {1: script})
    assert heard.of(jobs[1]) == ["launch", "exit"]
    assert heard.code(jobs[1]) == code
    for job in (jobs[0], *jobs[2:]):
        assert heard.of(job) == ["launch", "epoch", "exit"]


def test_a_worker_that_cannot_be_started_is_reported(make_jobs: Callable[[int], list[Job]]) -> None:
    jobs = make_jobs(3)
    heard, _ = run(jobs, {0: "absent"}, Resources(devices=("cpu",)))
    assert "could not be started" in heard.events[jobs[0].cell.id][-1]["message"]
    assert [heard.of(job)[-1] for job in jobs] == ["exit"] * 3


def test_what_is_not_an_event_is_ignored(make_jobs: Callable[[int], list[Job]]) -> None:
    jobs = make_jobs(1)
    noise = r"""print('hello'); print('[1]'); print('{"no": 1}'); print('\udcff'.encode('utf-8', 'replace'))
import sys; sys.stdout.buffer.write(b'\xff\xfe\n'); print('{"event": "epoch", "epoch": 3}')"""
    heard, _ = run(jobs, {0: noise})
    assert heard.of(jobs[0]) == ["launch", "epoch", "exit"]
    assert heard.events[jobs[0].cell.id][1] == {"event": "epoch", "epoch": 3}


def test_cells_run_side_by_side_but_no_more_than_allowed(make_jobs: Callable[[int], list[Job]]) -> None:
    jobs = make_jobs(5)
    running: set[str] = set()
    most = 0
    lock = threading.Lock()

    def listen(cell: str, event: dict[str, Any]) -> None:
        nonlocal most
        # The executor promises that a listener is never called by two threads at once.
        assert lock.acquire(blocking=False)
        if event["event"] == "launch":
            running.add(cell)
        if event["event"] == "exit":
            running.discard(cell)
        most = max(most, len(running))
        lock.release()

    script = "import time; time.sleep(0.3)"
    launcher = ScriptLauncher(dict.fromkeys(range(5), script))
    LocalExecutor().run(jobs, Resources(devices=("cpu",), jobs_per_device=3), launcher, listen)
    assert most == 3
    assert running == set()


def test_every_device_gets_cells(make_jobs: Callable[[int], list[Job]]) -> None:
    script = "import time; time.sleep(0.3)"
    resources = Resources(devices=("cuda:0", "cuda:1"), jobs_per_device=1)
    _, launcher = run(make_jobs(2), {0: script, 1: script}, resources)
    assert sorted(device for _, device in launcher.started) == ["cuda:0", "cuda:1"]


def test_an_interrupt_ends_the_workers(make_jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(4)
    launcher = ScriptLauncher(dict.fromkeys(range(4), "import time; time.sleep(60)"))
    heard = Heard()
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        # What Ctrl-C does to the main thread, once both workers are there.
        join(self, timeout)
        if len(workers()) == 2:
            raise KeyboardInterrupt

    def workers() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if "time.sleep(60)" in child.cmdline()[-1]]

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LocalExecutor().run(jobs, ON_CPU, launcher, heard)
    monkeypatch.undo()
    assert time.monotonic() - began < 20
    assert workers() == []
    assert len(launcher.started) == 2


def test_no_pipe_is_left_open(make_jobs: Callable[[int], list[Job]]) -> None:
    jobs = make_jobs(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        heard, _ = run(jobs, {})
        gc.collect()
    assert heard.code(jobs[0]) == 0
    assert caught == []


def test_a_cell_whose_folder_cannot_be_made_stops_no_other(
    registry: Registry, make_jobs: Callable[[int], list[Job]], tmp_path: Path
) -> None:
    class OnlyWritable(ScriptLauncher):
        """The engine's own way for the first job, a script for the others."""

        def command(self, job: Job, device: str) -> tuple[list[str], dict[str, str]]:
            if job.cell.seed == 0:
                return EngineLauncher(registry).command(job, device)
            return super().command(job, device)

    jobs = make_jobs(3)
    (tmp_path / "file").write_text("in the way")
    jobs[0] = jobs[0].model_copy(update={"folder": tmp_path / "file" / "cell"})
    heard = Heard()
    LocalExecutor().run(jobs, Resources(devices=("cpu",)), OnlyWritable({}), heard)
    assert heard.of(jobs[0]) == ["launch", "error", "exit"]
    message = heard.events[jobs[0].cell.id][1]["message"]
    assert message.startswith(f"cannot write {tmp_path / 'file' / 'cell'}")
    assert heard.of(jobs[1]) == heard.of(jobs[2]) == ["launch", "epoch", "exit"]


def test_a_worker_has_the_environment_of_its_device(
    registry: Registry, make_jobs: Callable[[int], list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = make_jobs(1)
    launcher = EngineLauncher(registry)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for visible, device, inner, seen in (
        (None, "cpu", "cpu", ""),
        (None, "cuda:1", "cuda:0", "1"),
        ("4,7", "cuda:1", "cuda:0", "7"),
    ):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        command, environment = launcher.command(job, device)
        assert command[:2] == [sys.executable, "-u"]
        assert command[-4:] == ["-m", "lnlbench.engine.launch", str(job.folder), inner]
        assert environment["CUDA_VISIBLE_DEVICES"] == seen
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert Job.model_validate_json((job.folder / "job.json").read_bytes()) == job


CRASHING = """
    import os, signal
    from pydantic import Field
    from lnlbench.api import Method, MethodConfig, MethodEntry, hookimpl

    @hookimpl
    def lnlbench_methods():
        return [MethodEntry(name="crashing", target="crashing_plugin:Crashing", summary="For tests.")]

    class Config(MethodConfig):
        how: str = Field("", description="How it ends.")

    class Crashing(Method):
        Config = Config

        @classmethod
        def preset(cls, task):
            return Config(epochs=2, batch_size=64, backbone=task.default_backbone)

        def fit(self, task, run):
            print("a word for the log")
            self.network = task.network("net", self.config.backbone)
            run.track(network=self.network)
            for epoch in run.epochs(2):
                if epoch == 1 and self.config.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)

        def predict(self, images):
            return self.network(images)
"""


def test_real_workers_that_die_fail_only_their_own_cells(
    plugins: Any, make_cells: MakeCells, data_root: Path, tmp_path: Path
) -> None:
    plugins.add("lnlbench-crashing", "crashing_plugin", CRASHING)
    installed = discover()
    kill, good = itertools.chain.from_iterable(
        make_cells(installed, methods=["crashing"], overrides={"how": how}) for how in ("kill", "")
    )
    heard = Heard()
    outcomes = run_cells(
        (kill, good),
        tmp_path / "runs",
        data=data_root,
        offline=True,
        threads=lambda cell: cell.seed,
        executor=LocalExecutor(),
        resources=Resources(devices=("cpu",), jobs_per_device=2),
        registry=installed,
        suites={suite.entry.name: suite.entry for suite in installed.suites},
        listen=lambda cell, event: heard(cell.id, event),
    )
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert outcomes[0].message.startswith("the worker was killed by signal 9 without a result; see ")
    for outcome in outcomes:
        assert "a word for the log" in (outcome.folder / "log.txt").read_text()
    # What had been done before the crash is kept.
    assert (outcomes[0].folder / "checkpoints" / "ckpt-000000.pt").exists()
    assert outcomes[1].record is not None
    assert outcomes[1].record.environment.threads == 1
    told = [event["event"] for event in heard.events[good.id]]
    assert (told[0], told[-1], told.count("epoch")) == ("launch", "exit", 2)
    assert told.index("start") < told.index("epoch")
