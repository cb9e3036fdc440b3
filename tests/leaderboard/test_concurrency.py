"""Several processes write to one board, and some of them are killed."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lnlbench.leaderboard import bundle, store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def fork(work: Callable[[], object]) -> int:
    """Run something in a child; it exits with 0 if that succeeds, else with 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, of which this process has none that matter
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def test_two_scorers_lose_no_row(thousand: list[list[Path]], board: Path) -> None:
    def score_all(folders: list[Path]) -> None:
        for folder in folders:
            (added,) = store.score([folder], board).added
            assert added.outcome == "added"

    # Both write to the same rows: each has half of the seeds of both methods.
    shares = [[folder for method in thousand[:2] for folder in method[start:60:2]] for start in (0, 1)]
    children = [fork(lambda share=share: score_all(share)) for share in shares]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    csv = board / "digits-sym.csv"
    assert [(row.method, row.n) for row in store.read_rows(csv)] == [("alpha", 60), ("beta", 60)]
    before = csv.read_bytes()
    store.rebuild(board, verify=True)
    assert csv.read_bytes() == before


def test_killed_writers_lose_tear_and_double_nothing(thousand: list[list[Path]], board: Path) -> None:
    def add_all(folders: list[Path]) -> None:
        for number, folder in enumerate(folders):
            spec_cell = folder.name.split("-")[1]
            if not bundle.bundle_folder(board, "digits-sym", spec_cell).exists():
                bundle.add(folder, board)
            elif number % 50 == 0:
                # Replacing has a moment of its own in which a writer may die.
                bundle.add(folder, board, replace=True)

    rng = random.Random(0)
    shares = [method[:150] for method in thousand]
    writers = {fork(lambda share=share: add_all(share)): share for share in shares}  # type: ignore[misc]
    kills = 0
    deadline = time.monotonic() + 120
    while writers and time.monotonic() < deadline:
        time.sleep(0.05)
        victim = None
        # On a slow disk most writers would be killed before they got anywhere, so at some point they are left alone.
        if kills < 50:
            victim = rng.choice(sorted(writers))
            os.kill(victim, signal.SIGKILL)
        for child in sorted(writers):
            ended, status = os.waitpid(child, 0 if child == victim else os.WNOHANG)
            if ended == 0:
                continue
            share = writers.pop(child)
            if os.WIFSIGNALED(status):
                kills += 1
                writers[fork(lambda share=share: add_all(share))] = share  # type: ignore[misc]
            else:
                assert os.waitstatus_to_exitcode(status) == 0
    assert not writers
    assert kills >= 10
    (csv,) = store.rebuild(board, verify=True)
    assert [row.n for row in store.read_rows(csv)] == [150] * 4
    names = sorted(path.name for path in (board / "bundles" / "digits-sym").iterdir())
    assert names == sorted(folder.name.split("-")[1] for share in shares for folder in share)
