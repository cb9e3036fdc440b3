"""Other processes that share the work on a large board."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

MANY_RUNS = 1000
"""From so many runs on it pays to have several processes."""

_MOST = 8


@contextlib.contextmanager
def workers(
    runs: int, begin: Callable[..., None] | None = None, *inherited: Any
) -> Iterator[ProcessPoolExecutor | None]:
    """Have several processes, if there are cores for them and work enough.

    They are forked, so that they have what this process has read: handing it over would take longer than the work.

    Args:
        runs: How many runs there are.
        begin: Called first in each of the processes.
        *inherited: Its arguments, which are not copied.

    Yields:
        The processes, or ``None`` where one process does as well.
    """
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST)
    if count == 1 or runs < MANY_RUNS:
        yield None
        return
    with warnings.catch_warnings():
        # Libraries that compute keep threads of their own, which the children neither have nor need.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), begin, inherited)
        # The first task forks them all.
        pool.submit(os.getpid)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
