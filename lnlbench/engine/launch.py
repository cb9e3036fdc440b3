"""How a cell gets its process: the launcher given to executors, and the worker it starts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from lnlbench.contracts.executor import Job, Listener
from lnlbench.errors import LnlbenchError, StorageError
from lnlbench.files import make_folder, storage_errors, write_bytes
from lnlbench.plugins import Registry, discover

LOG = "log.txt"
_JOB = "job.json"
_TELL = "import sys; print(sys.argv[1])"


class EngineLauncher:
    """Implements :class:`lnlbench.contracts.executor.Launcher`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def here(self, job: Job, device: str, listen: Listener) -> None:
        """Run the cell in this process."""
        from lnlbench.engine.runner import run_cell

        def emit(event: dict[str, Any]) -> None:
            listen(job.cell.id, event)

        try:
            run_cell(job, device, self._registry, emit)
        except LnlbenchError as error:
            emit(_error(error))

    def command(self, job: Job, device: str) -> tuple[list[str], dict[str, str]]:
        """Return how to start a worker process for the cell."""
        environment = dict(os.environ)
        try:
            make_folder(job.folder)
            write_bytes(job.folder / _JOB, job.model_dump_json().encode())
        except StorageError as error:
            # No executor has to know that the folder was needed; it hears of it in the way of every failing cell.
            return [sys.executable, "-c", _TELL, json.dumps(_error(error))], environment
        environment["PYTHONHASHSEED"] = "0"
        environment["OMP_NUM_THREADS"] = str(job.threads)
        environment["MKL_NUM_THREADS"] = str(job.threads)
        inner = device
        if device.startswith("cuda:"):
            # The worker sees its own card only, so that no library can open a context on another one.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            ordinal = int(device.partition(":")[2])
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[ordinal] if visible else str(ordinal)
            inner = "cuda:0"
        elif device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        # Unbuffered, so that the log has the last words of a worker that dies.
        return [
            sys.executable,
            "-u",
            *_search_path(),
            "-m",
            "lnlbench.engine.launch",
            str(job.folder),
            inner,
        ], environment


def main() -> int:
    """Run the cell whose folder and device are the arguments; speak JSON events on standard output."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    die_with_parent()
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    try:
        with storage_errors(folder / LOG):
            log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except StorageError as error:
        events.write(json.dumps(_error(error)) + "\n")
        return 1
    os.dup2(log, 1)
    os.dup2(log, 2)
    job = Job.model_validate_json((folder / _JOB).read_bytes())

    def listen(_cell: str, event: dict[str, Any]) -> None:
        # A reader that went away must not take the run with it.
        with contextlib.suppress(BrokenPipeError):
            events.write(json.dumps(event) + "\n")

    EngineLauncher(discover()).here(job, device, listen)
    return 0


def _search_path() -> list[str]:
    # A worker imports what its coordinator does: unless that one looks there, a folder that happens to be named like
    # a package must not be taken for it because one works beside it.
    return [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]


def _error(error: LnlbenchError) -> dict[str, Any]:
    return {"event": "error", "message": str(error)}


def die_with_parent() -> None:
    """Have this process end when the one that started it does; on Linux only."""
    # A worker whose coordinator was killed would go on unseen and hold its cell's lock.
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
        # It may have died before that; then the pipe to it has no reader.
        pipe = select.poll()
        pipe.register(1, 0)
        gone = any(event & select.POLLERR for _, event in pipe.poll(0))
        if os.getppid() != parent or gone:
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
