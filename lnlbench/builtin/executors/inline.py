"""The in-process executor: a debugger reaches the method, and nothing has to start."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import Executor, Job, Launcher, Listener, Resources


class InlineExecutor(Executor):
    """Runs cells one after the other on the first device."""

    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        """See :meth:`lnlbench.api.Executor.run`."""
        for job in jobs:
            listen(job.cell.id, {"event": "launch", "device": resources.devices[0]})
            launcher.here(job, resources.devices[0], listen)
            listen(job.cell.id, {"event": "exit", "code": 0})
