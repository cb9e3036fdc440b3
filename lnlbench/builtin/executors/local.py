"""Worker processes on this machine: a crash takes one cell with it, and no cell sees another's global state."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from lnlbench.api import Executor, Job, Launcher, Listener, Resources

_GRACE_SECONDS = 10.0


class LocalExecutor(Executor):
    """One process per cell, ``jobs_per_device`` of them at a time on every device."""

    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        """See :meth:`lnlbench.api.Executor.run`. An interrupt ends the workers, whose cells can be resumed."""
        pending: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            pending.put(job)
        lock = threading.Lock()
        alive: set[subprocess.Popen[bytes]] = set()
        stopping = threading.Event()

        def tell(cell: str, event: dict[str, Any]) -> None:
            with lock:
                listen(cell, event)

        def serve(device: str) -> None:
            while not stopping.is_set():
                try:
                    job = pending.get_nowait()
                except queue.Empty:
                    return
                _run_one(job, device, launcher, tell, alive)

        slots = [device for _ in range(resources.jobs_per_device) for device in resources.devices][: len(jobs)]
        threads = [threading.Thread(target=serve, args=(device,), daemon=True) for device in slots]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                # Joining in slices keeps the main thread open to Ctrl-C.
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:
            stopping.set()
            _end(alive)
            raise


def _run_one(job: Job, device: str, launcher: Launcher, tell: Listener, alive: set[subprocess.Popen[bytes]]) -> None:
    command, environment = launcher.command(job, device)
    tell(job.cell.id, {"event": "launch", "device": device})
    try:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        tell(job.cell.id, {"event": "exit", "code": -1, "message": f"the worker could not be started: {error}"})
        return
    alive.add(process)
    try:
        assert process.stdout is not None  # noqa: S101 - requested above
        for line in process.stdout:
            # A worker that dies in the middle of a line must not take the reader with it.
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    tell(job.cell.id, event)
        code = process.wait()
    finally:
        alive.discard(process)
        if process.stdout is not None:
            process.stdout.close()
    tell(job.cell.id, {"event": "exit", "code": code})


def _end(alive: set[subprocess.Popen[bytes]]) -> None:
    processes = list(alive)
    for process in processes:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
