from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import filelock
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lnlbench.builtin.datasets.digits import Digits
from lnlbench.contracts.dataset import DatasetEntry, DataStore, ImageData
from lnlbench.contracts.executor import Job
from lnlbench.contracts.method import Ensemble, Method, MethodConfig, MethodEntry
from lnlbench.contracts.noise import GeneratedLabels, NoiseEntry
from lnlbench.contracts.suite import Suite
from lnlbench.contracts.task import Selection, TaskInfo
from lnlbench.engine.data import find_dataset, limited_index, load_data
from lnlbench.engine.hub import OFFLINE_VARIABLE
from lnlbench.engine.realisation import labels_digest, noisy_labels
from lnlbench.engine.runner import build_method, run_cell
from lnlbench.errors import CellBusyError, PluginError, StorageError
from lnlbench.plugins import Catalogue, Provider, Registered, Registry
from lnlbench.records import CellSpec, RunRecord
from lnlbench.store import LocalDataStore

MakeCells = Callable[..., tuple[CellSpec, ...]]
RunHere = Callable[..., tuple[Path, list[dict[str, Any]]]]
PROVIDER = Provider("lnlbench-odd", "3.1")
SEEN: dict[str, Any] = {}
"""What a method got hold of, for the test to look at."""


class OddConfig(MethodConfig):
    what: str = ""


class Odd(Method[OddConfig]):
    """Nearest class mean, averaged over epochs; its ``what`` option makes it misbehave in one way."""

    Config = OddConfig

    @classmethod
    def preset(cls, task: TaskInfo) -> OddConfig:
        return OddConfig(epochs=3, batch_size=150, backbone=task.default_backbone)

    def fit(self, task: Any, run: Any) -> None:
        what = self.config.what
        SEEN["task"] = task
        SEEN["offline"] = os.environ.get(OFFLINE_VARIABLE)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, task.num_classes))
        nn.init.zeros_(self.network[1].weight)
        nn.init.zeros_(self.network[1].bias)
        tracked: dict[str, Any] = {"network": self.network}
        if what == "untrackable":
            tracked["numbers"] = [1, 2]
        if what == "track twice":
            run.track(network=self.network)
        if what == "array in state":
            tracked["state"] = {"scores": {"last": np.zeros(3)}}
        if what == "no epochs":
            return
        if what == "log without epochs":
            run.log(loss=1.0)
            return
        run.track(**tracked)
        for epoch in run.epochs(self.config.epochs):
            self.network.train()
            if what == "break" and epoch == 1:
                break
            if what == "raise" and epoch == 1:
                raise IndexError("list index out of range\nand a second line")
            if what == "raise once" and epoch == 1 and not SEEN.get("raised"):
                SEEN["raised"] = True
                raise IndexError("just this once")
            if what == "exit":
                raise SystemExit(0)
            if what == "out of memory":
                raise torch.OutOfMemoryError("tried to allocate 4 GiB")
            if what == "track late":
                run.track(more={})
            if what == "stage late":
                run.stage("s", dict, inputs={}, uses_labels=False)
            if what == "epochs twice":
                list(run.epochs(2))
            if what == "nan loss":
                run.log(loss=torch.tensor(1.0))
                run.log(loss=torch.tensor(float("nan") if epoch == 1 else 1.0))
            if what == "nan prob":
                run.report(clean_probs=torch.full((task.num_train,), float("nan")))
            if what == "short report":
                run.report(selected=torch.zeros(3, dtype=torch.bool))
            if what == "float selection":
                run.report(selected=torch.zeros(task.num_train))
            if what == "two reports":
                run.report("a", selected=torch.ones(task.num_train, dtype=torch.bool))
                run.report("b", clean_probs=torch.linspace(0, 1, task.num_train), pseudo_labels=task.labels)
            if what == "open set":
                run.report(selected=torch.arange(task.num_train) % 3 == 0, ood=torch.arange(task.num_train) % 3 == 1)
            (batch,) = task.loader("train", batch_size=task.num_train)
            images = batch.images.flatten(1)
            with torch.no_grad():
                means = torch.stack([images[batch.labels == label].mean(0) for label in range(task.num_classes)])
                layer = self.network[1]
                layer.weight.copy_(0.5 * layer.weight + means)
                layer.bias.copy_(-0.5 * (layer.weight**2).sum(1))

    def select(self, task: Any, run: Any) -> Selection:
        clean_probs = torch.rand(task.num_train, generator=run.rng("select").torch)
        if self.config.what == "raise":
            raise IndexError("list index out of range")
        if self.config.what == "short selection":
            return Selection(clean_probs[:3], clean_probs[:3] > 0.5)
        if self.config.what == "float selection":
            return Selection(clean_probs, clean_probs)
        return Selection(clean_probs, clean_probs > 0.5)

    def predict(self, images: Tensor) -> Tensor | Ensemble:
        assert not self.network.training
        assert not torch.is_grad_enabled()
        logits: Tensor = self.network(images)
        match self.config.what:
            case "wide predictions":
                return logits.repeat(1, 2)
            case "flat predictions":
                return logits.argmax(1)
            case "threes":
                SEEN.setdefault("asked", []).append(len(images))
                return torch.nn.functional.one_hot(torch.full((len(images),), 3), logits.shape[1]).float()
            case "nan predictions":
                return logits * float("nan")
            case "ensemble":
                return Ensemble(logits, {"right": logits, "upside_down": -logits})
            case "wide ensemble":
                return Ensemble(logits, {"wide": logits.repeat(1, 2)})
            case "no tensor":
                return logits.tolist()  # type: ignore[no-any-return]
        return logits


class Scrambled(Digits):
    """Digits with the truth about it withheld: all labels are shifted by one class."""

    name = "digits-scrambled"

    def load(self, store: DataStore) -> ImageData:
        data = super().load(store)
        return dataclasses.replace(
            data, train_labels=(data.train_labels + 1) % 10, test_labels=(data.test_labels + 1) % 10
        )


def blind_noise(
    true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
) -> GeneratedLabels:
    """Given labels that owe nothing to the true ones, but are right for most digits."""
    digits = Digits().load(None)  # type: ignore[arg-type]
    labels = digits.train_labels[limited_index(len(digits.train_labels), len(true_labels))].copy()
    labels[:: round(1 / rate)] = 0
    return GeneratedLabels(labels, np.eye(num_classes))


@pytest.fixture
def odd(registry: Registry) -> Registry:
    """The installed registry, and the oddities of this file."""
    methods: Catalogue[MethodEntry] = Catalogue("method")
    datasets: Catalogue[DatasetEntry] = Catalogue("dataset")
    noise: Catalogue[NoiseEntry] = Catalogue("noise")
    suites: Catalogue[Suite] = Catalogue("suite")
    for made, installed in (
        (methods, registry.methods),
        (datasets, registry.datasets),
        (noise, registry.noise),
        (suites, registry.suites),
    ):
        for item in installed:  # type: ignore[attr-defined]
            made.add(item)  # type: ignore[attr-defined]

    for name, selects in (("odd", False), ("chooser", True)):
        entry = MethodEntry(
            name=name, target=f"{__name__}:Odd", summary="For tests.", selects=selects, starts_from_selection=True
        )
        methods.add(Registered(entry, PROVIDER))
    datasets.add(
        Registered(
            DatasetEntry(name="digits-scrambled", target=f"{__name__}:Scrambled", summary="For tests."), PROVIDER
        )
    )
    noise.add(Registered(NoiseEntry(name="blind", target=f"{__name__}:blind_noise", summary="For tests."), PROVIDER))
    usual = registry.suites.find("digits-sym").entry
    for name, dataset in (("blind", "digits"), ("blind-scrambled", "digits-scrambled")):
        changes = {"name": name, "dataset": dataset, "noise": {"generator": "blind"}}
        suites.add(Registered(Suite.model_validate(usual.model_dump() | changes), PROVIDER))
    return dataclasses.replace(registry, methods=methods, datasets=datasets, noise=noise, suites=suites)


@pytest.fixture
def run_odd(odd: Registry, make_cells: MakeCells, run_here: RunHere) -> Callable[..., Path]:
    def run(what: str = "", **changes: Any) -> Path:
        SEEN.clear()
        (cell,) = make_cells(odd, methods=["odd"], overrides={"what": what}, **{"epochs": 3, **changes})
        return run_here(cell, odd)[0]

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def record_of(folder: Path) -> RunRecord:
    return RunRecord.model_validate(read(folder / "result.json"))


def failure_of(folder: Path) -> str:
    assert not (folder / "result.json").exists()
    failure = read(folder / "failure.json")
    assert "\n" not in failure["message"]
    return str(failure["message"])


def test_a_complete_run(make_cells: MakeCells, run_here: RunHere, store: LocalDataStore, registry: Registry) -> None:
    (cell,) = make_cells()
    folder, events = run_here(cell)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {"spec.json", "environment.json", "noise.json", "metrics.jsonl", "predictions.npz", "samples.npz"}
    assert files >= {"result.json", "checkpoints/latest.json", "checkpoints/ckpt-000001.pt"}
    assert not {"failure.json"} & files
    assert CellSpec.model_validate(read(folder / "spec.json")) == cell

    record = record_of(folder)
    assert (record.cell, record.status, record.spec) == (cell.id, "finished", cell)
    assert (record.data.num_train, record.data.num_test, record.parameters) == (150, 360, 35_674)
    assert (record.resumed, record.resume, record.asked) == (0, "exact", ())
    assert record.environment.model_dump(mode="json") == read(folder / "environment.json")
    assert record.noise.model_dump(mode="json") == read(folder / "noise.json")

    data = load_data(find_dataset(registry, "digits"), store, 150)
    assert record.data == data.facts
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with np.load(folder / "predictions.npz") as predictions, np.load(folder / "samples.npz") as samples:
        np.testing.assert_array_equal(predictions["test_labels"], data.images.test_labels)
        accuracies = (predictions["predictions"] == data.images.test_labels).mean(axis=1)
        assert predictions["epochs"].tolist() == [0, 1]
        given = samples["given_labels"]
    assert [row["epoch"] for row in rows] == [0, 1]
    np.testing.assert_allclose([row["test_accuracy"] for row in rows], accuracies)
    assert record.scores is not None
    assert record.scores.last10 == pytest.approx(accuracies.mean())
    assert labels_digest(given.astype(np.int64)) == record.noise.digest
    assert int((given != data.images.train_labels).sum()) == record.noise.num_changed == 60
    assert [event["event"] for event in events] == ["data", "start", "epoch", "saving", "epoch", "saving"]


def test_open_set_verdicts_are_scored_against_the_truth(
    run_odd: Callable[..., Path], registry: Registry, store: LocalDataStore
) -> None:
    record = record_of(run_odd("open set", suites=["digits-openset"], tasks=["sym@0.50"]))
    spec = record.spec
    data = load_data(find_dataset(registry, "digits"), store, 150, known_classes=8)
    truth = noisy_labels(registry, store, spec.suite, 1, spec.task, spec.noise, data).truth
    outside = truth.true_labels >= 8
    wrong = (truth.true_labels != truth.given_labels) & ~outside
    third = np.arange(150) % 3
    assert record.noise.num_ood == outside.sum() > 0
    assert record.selection["ood_precision"] == pytest.approx(outside[third == 1].mean(), abs=1e-5)
    assert record.selection["ood_recall"] == pytest.approx((third == 1)[outside].mean(), abs=1e-5)
    assert record.selection["id_noise_precision"] == pytest.approx(wrong[third == 2].mean(), abs=1e-5)
    assert record.selection["id_noise_recall"] == pytest.approx((third == 2)[wrong].mean(), abs=1e-5)
    assert record.selection["clean_precision"] == pytest.approx((~wrong & ~outside)[third == 0].mean(), abs=1e-5)


def test_memorised_noise_is_found_in_what_a_method_answers(
    run_odd: Callable[..., Path], registry: Registry, store: LocalDataStore
) -> None:
    folder = run_odd("threes", limit_train=1200)
    record = record_of(folder)
    with np.load(folder / "samples.npz") as samples:
        given = samples["given_labels"]
    true = load_data(find_dataset(registry, "digits"), store, 1200).images.train_labels
    sample = limited_index(1200, 1000)
    wrong = (given != true)[sample]
    share = (given[sample][wrong] == 3).mean()
    assert 0 < share < 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["selection"] for row in rows] == [{"memorised_noise": pytest.approx(share, abs=1e-5)}] * 3
    assert record.selection == {"memorised_noise": pytest.approx(share, abs=1e-5)}
    # After each epoch: the test images, then images with right and wrong labels alike.
    assert SEEN["asked"] == [360, 1000] * 3


def test_each_network_of_an_ensemble_is_logged_beside_the_answer(run_odd: Callable[..., Path]) -> None:
    folder = run_odd("ensemble")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["networks"]["right"] == pytest.approx(row["test_accuracy"], abs=1e-5)
        assert row["networks"]["upside_down"] < 0.1 < row["networks"]["right"]
    assert record_of(folder).scores == record_of(run_odd()).scores


def test_a_method_starts_from_anothers_selection(run_odd: Callable[..., Path]) -> None:
    folder = run_odd(select="chooser")
    selection = SEEN["task"].selection
    assert selection.selected.tolist() == (selection.clean_probs > 0.5).tolist()
    record = record_of(folder)
    assert record.spec.selector is not None
    assert (record.spec.selector.name, record.spec.label) == ("chooser", "chooser+odd digits-sym@0.40 seed 1")
    assert record.timing.stage_seconds["selection by chooser"] >= 0
    run_odd()
    assert SEEN["task"].selection is None


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise", r"\(lnlbench-odd 3\.1\) failed: IndexError: list index out of range"),
        (
            "short selection",
            r"returned clean_probs as torch\.float32 of shape \(3,\); expected a float tensor of \(150,\)",
        ),
        ("float selection", r"returned selected as torch\.float32 of shape \(150,\); expected a bool tensor"),
    ],
)
def test_a_selection_that_is_none_is_named(
    what: str, said: str, odd: Registry, make_cells: MakeCells, run_here: RunHere
) -> None:
    (cell,) = make_cells(odd, methods=["odd"], select="chooser", overrides={"chooser.what": what}, epochs=3)
    assert re.search(rf"select\(\) of chooser {said}", failure_of(run_here(cell, odd)[0]))


@pytest.mark.parametrize("before", [None, "0"])
def test_an_offline_run_keeps_libraries_off_the_network(
    run_odd: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is None:
        monkeypatch.delenv(OFFLINE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(OFFLINE_VARIABLE, before)
    run_odd()
    assert SEEN["offline"] == "1"
    assert os.environ.get(OFFLINE_VARIABLE) == before


def test_a_finished_cell_is_left_alone(run_odd: Callable[..., Path]) -> None:
    folder = run_odd()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    SEEN["task"] = None
    run_odd()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    assert SEEN == {}


def test_runs_are_repeatable(make_cells: MakeCells, run_here: RunHere, tmp_path: Path) -> None:
    (cell,) = make_cells()
    first, second = (run_here(cell, runs=tmp_path / name)[0] for name in ("one", "two"))
    for file in ("predictions.npz", "samples.npz"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def reachable(thing: Any, seen: set[int], depth: int = 0) -> list[Any]:
    """Every array that can be reached from an object by attributes, items, and what functions close over."""
    if id(thing) in seen or depth > 30 or isinstance(thing, ModuleType | type):
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor | np.ndarray):
        return [thing]
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        parts = list(thing)
    elif isinstance(thing, MethodType):
        parts = [thing.__self__, thing.__func__]
    elif isinstance(thing, FunctionType):
        parts = [cell.cell_contents for cell in thing.__closure__ or ()]
    else:
        parts = list(getattr(thing, "__dict__", {}).values())
    return [array for part in parts for array in reachable(part, seen, depth + 1)]


def test_a_task_does_not_reach_the_truth(
    run_odd: Callable[..., Path], registry: Registry, store: LocalDataStore
) -> None:
    run_odd()
    images = load_data(find_dataset(registry, "digits"), store, 150).images
    arrays = [np.asarray(array) for array in reachable(SEEN["task"], set())]
    assert any(array.shape == (150,) for array in arrays), "the given labels are within reach"
    for array in arrays:
        assert not np.array_equal(array.reshape(-1), images.train_labels)
        assert not np.array_equal(array.reshape(-1), images.test_labels)
        # Neither are the test images, padded or not.
        assert len(array.reshape(-1)) % (360 * 64) != 0 or array.size == 0


def test_scrambled_truth_changes_no_prediction(run_odd: Callable[..., Path]) -> None:
    honest, scrambled = run_odd(suites=["blind"]), run_odd(suites=["blind-scrambled"])
    with np.load(honest / "predictions.npz") as one, np.load(scrambled / "predictions.npz") as other:
        np.testing.assert_array_equal(one["predictions"], other["predictions"])
        np.testing.assert_array_equal((one["test_labels"].astype(int) + 1) % 10, other["test_labels"])
    first, second = record_of(honest), record_of(scrambled)
    assert first.noise.digest == second.noise.digest
    assert first.noise.num_changed != second.noise.num_changed
    assert first.scores is not None
    assert second.scores is not None
    assert first.scores.last > 0.5 > second.scores.last


def test_a_method_that_raises(run_odd: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_odd("raise")
    message = failure_of(folder)
    assert message.startswith("odd (lnlbench-odd 3.1) failed in epoch 1: IndexError: list index out of range; see ")
    assert message.endswith(str(folder / "log.txt"))
    assert "Traceback" in read(folder / "failure.json")["details"]
    assert "IndexError" in capsys.readouterr().err
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_failed_cell_is_resumed(
    run_odd: Callable[..., Path], run_here: RunHere, odd: Registry, make_cells: MakeCells
) -> None:
    folder = run_odd("raise once")
    assert "failed in epoch 1" in failure_of(folder)
    (cell,) = make_cells(odd, methods=["odd"], overrides={"what": "raise once"}, epochs=3)
    again, events = run_here(cell, odd)
    assert again == folder
    assert {"event": "resumed", "epoch": 1, "epochs": 3} in events
    record = record_of(folder)
    assert (record.resumed, record.resume) == (1, "exact")
    assert not (folder / "failure.json").exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # The interruption left no trace in the numbers.
    whole = run_odd()
    with np.load(folder / "predictions.npz") as one, np.load(whole / "predictions.npz") as other:
        np.testing.assert_array_equal(one["predictions"], other["predictions"])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("exit", "odd (lnlbench-odd 3.1) failed in epoch 0: SystemExit: 0; see"),
        ("no epochs", "odd returned from fit() without iterating over run.epochs()"),
        ("log without epochs", "odd returned from fit() without iterating over run.epochs()"),
        ("wide predictions", "epoch 0: predict() returned shape (360, 20), expected (360, 10)"),
        ("flat predictions", "epoch 0: predict() returned shape (360,), expected (360, 10)"),
        ("wide ensemble", "epoch 0: predict() returned shape (360, 20), expected (360, 10)"),
        ("no tensor", "odd (lnlbench-odd 3.1) failed in epoch 0: AttributeError"),
        ("track late", "track(more) came after epochs(); track everything before the loop"),
        ("stage late", "stage('s') came after epochs(); stages come before training"),
        ("epochs twice", "epochs() was called twice; a method has one outer loop"),
        ("track twice", "'network' is tracked twice"),
        ("untrackable", "'numbers' has neither state_dict() nor is it a dictionary; it cannot be tracked"),
        ("array in state", "tracked state 'state.scores.last' is a numpy.ndarray"),
        ("short report", "epoch 0: report(selected=...) got torch.bool of shape (3,); expected bool of (150,)"),
        ("float selection", "report(selected=...) got torch.float32 of shape (150,); expected bool of (150,)"),
        ("out of memory", "out of memory on cpu in epoch 0: OutOfMemoryError: tried to allocate 4 GiB; try fewer"),
    ],
)
def test_broken_contracts_are_told_in_one_line(run_odd: Callable[..., Path], what: str, message: str) -> None:
    folder = run_odd(what)
    assert message in failure_of(folder)
    status = read(folder / "failure.json")["status"]
    assert status == ("oom" if what == "out of memory" else "failed")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan loss", "loss is nan at epoch 1, step 1"),
        ("nan prob", "epoch 0: a reported clean probability is not finite"),
        ("nan predictions", "epoch 0: a test score is not finite"),
    ],
)
def test_a_diverged_run_is_a_result(run_odd: Callable[..., Path], what: str, message: str) -> None:
    folder = run_odd(what)
    record = record_of(folder)
    assert (record.status, record.scores, record.message) == ("diverged", None, message)
    assert not (folder / "predictions.npz").exists()
    assert not (folder / "failure.json").exists()


def test_an_early_break_still_evaluates(run_odd: Callable[..., Path]) -> None:
    folder = run_odd("break")
    record = record_of(folder)
    assert record.status == "finished"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert record.scores is not None
    assert record.scores.last == rows[1]["test_accuracy"]


def test_reports_are_scored_and_kept(run_odd: Callable[..., Path]) -> None:
    folder = run_odd("two reports")
    record = record_of(folder)
    assert record.selection["clean_size.a"] == record.selection["clean_size"] == 1.0
    assert record.selection["clean_precision"] == pytest.approx(0.6)
    assert record.selection["pseudo_label_accuracy.b"] == pytest.approx(0.6)
    assert 0 < record.selection["clean_auc"] < 1
    with np.load(folder / "samples.npz") as samples:
        assert set(samples) == {"given_labels", "selected.a", "clean_probs.b", "pseudo_labels.b"}
        np.testing.assert_array_equal(samples["pseudo_labels.b"], samples["given_labels"])


def test_another_version_of_the_method_is_refused(odd: Registry, make_cells: MakeCells, run_here: RunHere) -> None:
    (cell,) = make_cells(odd, methods=["odd"])
    older = cell.model_copy(update={"method": cell.method.model_copy(update={"version": "3.0"})})
    message = failure_of(run_here(older, odd)[0])
    assert message == (
        "odd was planned with lnlbench-odd 3.0, but lnlbench-odd 3.1 is installed; issue the run command again"
    )
    with pytest.raises(PluginError, match=r"planned with lnlbench-odd 3\.0"):
        build_method(older.method, odd)


def test_another_edition_is_refused(make_cells: MakeCells, run_here: RunHere) -> None:
    (cell,) = make_cells()
    message = failure_of(run_here(cell.model_copy(update={"edition": "jpeg"}))[0])
    assert "dataset 'digits' was edition 'jpeg' when this cell was planned and is now 'canonical'" in message


def test_a_cell_belongs_to_one_process(make_cells: MakeCells, run_here: RunHere, tmp_path: Path) -> None:
    (cell,) = make_cells()
    folder = tmp_path / "runs" / "digits-sym" / "0.40" / "ce" / f"seed1-{cell.id}"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(CellBusyError, match="run by another process"):
        run_here(cell)
    assert not (folder / "spec.json").exists()


def test_a_file_in_place_of_the_folder(
    make_cells: MakeCells, registry: Registry, data_root: Path, tmp_path: Path
) -> None:
    (cell,) = make_cells()
    (tmp_path / "file").write_text("in the way")
    suite = registry.suites.find(cell.suite).entry
    job = Job(cell=cell, suite=suite, folder=tmp_path / "file" / "cell", data=data_root, offline=True, threads=1)
    with pytest.raises(StorageError, match="cannot write"):
        run_cell(job, "cpu", registry, [].append)


def test_leftovers_of_a_dead_writer_are_removed(run_odd: Callable[..., Path]) -> None:
    folder = run_odd("raise")
    (folder / "result.json.123.abcd.tmp").write_text("{")
    run_odd("raise")
    assert not list(folder.rglob("*.tmp"))


def test_peak_memory_is_that_of_the_process_itself() -> None:
    ballast = np.ones(100_000_000)
    code = """
import psutil, torch
from lnlbench.engine.runner import _peak_memory
print(_peak_memory(torch.device("cpu")), psutil.Process().memory_info().rss)
"""
    # A process that vfork() started keeps its parent's peak in getrusage().
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert 0.99 * now < peak < min(1.5 * now, psutil.Process().memory_info().rss)
    assert ballast[-1] == 1.0
