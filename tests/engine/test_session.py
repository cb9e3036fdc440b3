from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lnlbench.builtin.executors.inline import InlineExecutor
from lnlbench.contracts.executor import Executor, Job, Launcher, Listener, Resources
from lnlbench.engine.estimate import estimate_seconds
from lnlbench.engine.planner import cell_folder
from lnlbench.engine.session import Outcome, read_record, run_cells
from lnlbench.errors import DataError
from lnlbench.plugins import Registry
from lnlbench.records import CellSpec

MakeCells = Callable[..., tuple[CellSpec, ...]]


class Counting(Executor):
    """Runs cells here, and notes which ones it was given."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        self.given += [job.cell.id for job in jobs]
        InlineExecutor().run(jobs, resources, launcher, listen)


class Idle(Executor):
    """Does nothing but say how it ended."""

    def __init__(self, code: int) -> None:
        self.code = code

    def run(self, jobs: Sequence[Job], resources: Resources, launcher: Launcher, listen: Listener) -> None:
        for job in jobs:
            listen(job.cell.id, {"event": "exit", "code": self.code})


Carry = Callable[..., list[Outcome]]


@pytest.fixture
def carry_out(registry: Registry, data_root: Path, tmp_path: Path) -> Carry:
    def carry_out(cells: Sequence[CellSpec], executor: Executor, heard: list[Any] | None = None) -> list[Outcome]:
        return run_cells(
            cells,
            tmp_path / "runs",
            data=data_root,
            offline=True,
            threads=lambda cell: 1,  # noqa: ARG005
            executor=executor,
            resources=Resources(devices=("cpu",)),
            registry=registry,
            suites={suite.entry.name: suite.entry for suite in registry.suites},
            listen=lambda cell, event: (heard if heard is not None else []).append((cell.seed, event["event"])),
        )

    return carry_out


def test_only_missing_cells_are_run(make_cells: MakeCells, carry_out: Carry) -> None:
    executor = Counting()
    first = carry_out(make_cells(seeds=[1]), executor)
    both = carry_out(make_cells(seeds=[2, 1]), executor)
    assert executor.given == [first[0].cell.id, both[0].cell.id]
    assert [(outcome.cell.seed, outcome.status, outcome.new) for outcome in both] == [
        (2, "finished", True),
        (1, "finished", False),
    ]
    assert both[1].record == first[0].record
    idle = Counting()
    again = carry_out(make_cells(seeds=[2, 1]), idle)
    assert idle.given == []
    assert not any(outcome.new for outcome in again)


def test_a_cell_wanted_twice_is_run_once(make_cells: MakeCells, carry_out: Carry) -> None:
    executor = Counting()
    cells = make_cells()
    assert len(carry_out([*cells, *cells], executor)) == 1
    assert executor.given == [cells[0].id]


def test_the_listener_hears_of_cells(make_cells: MakeCells, carry_out: Carry) -> None:
    heard: list[Any] = []
    carry_out(make_cells(), Counting(), heard)
    assert heard[0] == (1, "launch")
    assert heard[-1] == (1, "exit")
    assert heard.count((1, "epoch")) == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [(3, "the worker ended with code 3 without a result"), (-9, "the worker was killed by signal 9 without a result")],
)
def test_a_worker_without_result_is_a_failure(make_cells: MakeCells, carry_out: Carry, code: int, message: str) -> None:
    (outcome,) = carry_out(make_cells(), Idle(code))
    assert (outcome.status, outcome.record, outcome.new) == ("failed", None, True)
    assert outcome.message == f"{message}; see {outcome.folder / 'log.txt'}"


def test_a_busy_cell_is_told(make_cells: MakeCells, carry_out: Carry, tmp_path: Path) -> None:
    import filelock

    (cell,) = make_cells()
    folder = cell_folder(tmp_path / "runs", cell)
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        (outcome,) = carry_out([cell], InlineExecutor())
    assert outcome.status == "failed"
    assert "is being run by another process" in outcome.message


def test_a_failed_cell_is_tried_again(make_cells: MakeCells, carry_out: Carry, tmp_path: Path) -> None:
    (cell,) = make_cells()
    wrong = cell.model_copy(update={"edition": "other"})
    (failed,) = carry_out([wrong], InlineExecutor())
    assert "edition 'other'" in failed.message
    executor = Counting()
    (again,) = carry_out([wrong], executor)
    assert (again.status, executor.given) == ("failed", [wrong.id])
    assert read_record(tmp_path / "runs") is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"status": NaN}', "\xff"])
def test_a_damaged_result_is_told_in_one_line(
    make_cells: MakeCells, carry_out: Carry, tmp_path: Path, content: str
) -> None:
    (cell,) = make_cells()
    folder = cell_folder(tmp_path / "runs", cell)
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"result\.json is damaged .*; delete it to run the cell again") as caught:
        carry_out([cell], InlineExecutor())
    assert "\n" not in str(caught.value)
    assert estimate_seconds(tmp_path / "runs", cell) is None


def test_times_are_judged_by_earlier_runs(make_cells: MakeCells, carry_out: Carry, tmp_path: Path) -> None:
    (cell,) = make_cells()
    runs = tmp_path / "runs"
    assert estimate_seconds(runs, cell) is None
    (outcome,) = carry_out([cell], InlineExecutor())
    assert outcome.record is not None
    timing = outcome.record.timing
    spent = timing.train_seconds + timing.evaluate_seconds + timing.harness_seconds
    (longer,) = make_cells(epochs=10, seeds=[7])
    assert estimate_seconds(runs, longer) == pytest.approx(5 * spent)
    # Another method, suite or size of the training set is no basis for a guess.
    for changes in ({"methods": ["dividemix"]}, {"suites": ["digits-asym"]}, {"limit_train": None}):
        assert estimate_seconds(runs, make_cells(**changes)[0]) is None
