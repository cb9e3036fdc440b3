from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lnlbench.builtin.taxonomies import Taxonomy
from lnlbench.contracts.executor import Job
from lnlbench.contracts.method import Method, MethodConfig, MethodEntry
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine import analyse as module
from lnlbench.engine.analyse import NotFinishedError, analyse, embed_test_images, measure_network, restore_networks
from lnlbench.engine.planner import Request, cell_folder, plan
from lnlbench.engine.runner import run_cell
from lnlbench.engine.session import read_record
from lnlbench.errors import DataError, LnlbenchError, PluginError, UsageError
from lnlbench.plugins import Catalogue, Provider, Registered, Registry
from lnlbench.records import RunRecord
from lnlbench.store import LocalDataStore

CPU = torch.device("cpu")
CALLS: list[str] = []
"""What a method did, for the test to look at."""


class TwinsConfig(MethodConfig):
    widths: tuple[int, ...] = (4, 4)
    what: str = ""


class Linear(nn.Module):
    """A network with a random projection for features."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(64, width)
        self.head = nn.Linear(width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.projection(images.flatten(1))
        return features

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


class Twins(Method[TwinsConfig]):
    """Networks in a list that are never trained, and something frozen beside them."""

    Config = TwinsConfig

    @classmethod
    def preset(cls, task: TaskInfo) -> TwinsConfig:
        return TwinsConfig(epochs=2, batch_size=50, backbone=task.default_backbone)

    def fit(self, task: Any, run: Any) -> None:
        config = self.config
        if config.what == "stage":
            run.stage("scale", self._scale, inputs={}, uses_labels=True)
        if config.what == "changed" and CALLS:
            raise IndexError("list index out of range\nand a second line")
        generator = run.rng("weights").torch
        self.networks = nn.ModuleList([Linear(width, task.num_classes) for width in config.widths])
        for parameter in self.networks.parameters():
            nn.init.normal_(parameter, generator=generator)
        frozen = nn.Linear(2, 2)
        tracked: dict[str, Any] = {"both": self.networks, "frozen": frozen, "book": {"epochs": 0}}
        if config.what == "renamed" and CALLS:
            tracked["also"] = {}
        run.track(**tracked)
        for epoch in run.epochs(config.epochs):
            CALLS.append(f"epoch {epoch}")
            if config.what == "diverge":
                run.log(loss=float("nan"))
            with torch.no_grad():
                for parameter in self.networks.parameters():
                    parameter += 0.1
        CALLS.append("end")

    def _scale(self, stage: Any) -> dict[str, Tensor]:
        CALLS.append("stage")
        return {"scale": torch.ones(1)}

    def predict(self, images: Tensor) -> Tensor:
        if not self.config.widths:
            return images.flatten(1)[:, :10]
        network: Any = self.networks[0]
        logits: Tensor = network.classify(network.embed(images))
        return logits


@pytest.fixture(scope="module")
def with_twins(registry: Registry) -> Registry:
    methods: Catalogue[MethodEntry] = Catalogue("method")
    for item in registry.methods:
        methods.add(item)
    entry = MethodEntry(name="twins", target=f"{__name__}:Twins", summary="For tests.")
    methods.add(Registered(entry, Provider("lnlbench-twins", "3.1")))
    return dataclasses.replace(registry, methods=methods)


@pytest.fixture(scope="module")
def train(with_twins: Registry, store: LocalDataStore, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a cell on 150 digits for two epochs, once; returns its folder."""
    runs = tmp_path_factory.mktemp("runs")

    def run(method: str, **changes: Any) -> Path:
        CALLS.clear()
        usual: dict[str, Any] = {"suites": ["digits-sym"], "tasks": ["0.40"], "seeds": [1], "epochs": 2}
        request = Request(methods=[method], **(usual | {"limit_train": 150} | changes))
        planned = plan(request, with_twins, store)
        (cell,) = planned.cells
        folder = cell_folder(runs, cell)
        suite = planned.suites[cell.suite]
        job = Job(cell=cell, suite=suite, folder=folder, data=store.root, offline=True, threads=1)
        run_cell(job, "cpu", with_twins, lambda _event: None)
        return folder

    return run


@pytest.fixture
def look(with_twins: Registry, store: LocalDataStore) -> Callable[..., module.Analysis]:
    def call(folder: Path, registry: Registry = with_twins, **changes: Any) -> module.Analysis:
        return analyse(folder, registry, store, CPU, lambda _event: None, **changes)

    return call


def record_of(folder: Path) -> RunRecord:
    record = read_record(folder)
    assert record is not None
    return record


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


Train = Callable[..., Path]
Look = Callable[..., module.Analysis]


def test_the_network_of_the_last_epoch_comes_back(
    train: Train, look: Look, with_twins: Registry, store: LocalDataStore
) -> None:
    folder = train("ce")
    record, before = record_of(folder), files_in(folder)
    analysis = look(folder)
    (network,) = analysis.networks
    assert (network.name, network.width, analysis.num_test, analysis.pairs) == ("network", 64, 360, ())
    assert record.scores is not None
    assert network.accuracy == record.scores.last
    assert (network.lca_distance, analysis.taxonomy) == (None, None)
    assert files_in(folder) == before

    networks, _ = restore_networks(folder, record, with_twins, store, CPU, lambda _event: None)
    state = torch.load(folder / "checkpoints" / "ckpt-000001.pt", weights_only=True)["state"]["network"]["state"]
    restored = networks["network"].state_dict()
    assert set(restored) == set(state)
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert not networks["network"].training


def test_measures_are_those_of_the_networks_answers(
    train: Train, look: Look, with_twins: Registry, store: LocalDataStore
) -> None:
    folder = train("dividemix", overrides={"warmup_epochs": "1"})
    analysis = look(folder)
    assert [each.name for each in analysis.networks] == ["net1", "net2"]
    networks, data = restore_networks(folder, record_of(folder), with_twins, store, CPU, lambda _event: None)
    answers = {name: embed_test_images(each, data, CPU, store.root) for name, each in networks.items()}
    features = {name: each[0].double().numpy() for name, each in answers.items()}
    logits = {name: each[1].double().numpy() for name, each in answers.items()}
    labels = data.images.test_labels
    for measured in analysis.networks:
        mine = features[measured.name]
        variances = np.array([mine[labels == label].var(axis=0).sum() for label in range(10)])
        shares = variances / variances.sum()
        entropy = -(shares * np.log(shares)).sum()
        assert measured.variance_entropy == pytest.approx(entropy, rel=1e-9)
        assert measured.variance_entropy_share == pytest.approx(entropy / math.log(10), rel=1e-9)
        assert measured.accuracy == (logits[measured.name].argmax(1) == labels).mean()
    (pair,) = analysis.pairs
    assert (pair.networks, pair.pairs, pair.sampled) == (("net1", "net2"), 360 * 359 // 2, False)
    first, second = np.triu_indices(360, 1)
    one, other = (each[first] - each[second] for each in features.values())
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert pair.embedding_consistency == pytest.approx(cosines.mean(), rel=1e-6)
    apart = np.abs(np.sort(logits["net1"]) - np.sort(logits["net2"])).mean()
    assert pair.logit_wasserstein == pytest.approx(apart, rel=1e-9)
    # DivideMix answers with the sum of the two; so these are the networks its score is of.
    scores = record_of(folder).scores
    assert scores is not None
    assert ((logits["net1"] + logits["net2"]).argmax(1) == labels).mean() == scores.last


def test_networks_in_containers_are_found_and_nothing_else_is(train: Train, look: Look) -> None:
    analysis = look(train("twins", overrides={"widths": "[4, 4, 6]"}))
    assert [(each.name, each.width) for each in analysis.networks] == [("both.0", 4), ("both.1", 4), ("both.2", 6)]
    consistent = {each.networks: each.embedding_consistency is not None for each in analysis.pairs}
    assert consistent == {("both.0", "both.1"): True, ("both.0", "both.2"): False, ("both.1", "both.2"): False}
    assert all(each.logit_wasserstein is not None and each.logit_wasserstein > 0 for each in analysis.pairs)


def test_nothing_is_trained_again(train: Train, look: Look) -> None:
    folder = train("twins", overrides={"what": "stage"})
    assert CALLS == ["stage", "epoch 0", "epoch 1", "end"]
    CALLS.clear()
    look(folder)
    # What the stage computed is stored; the loop is entered, and left at once.
    assert CALLS == ["end"]


def test_an_analysis_repeats_exactly(train: Train, look: Look) -> None:
    folder = train("twins")
    assert look(folder) == look(folder)


def test_many_images_are_compared_by_a_sample_of_pairs(
    train: Train, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train("twins")
    (exact,) = look(folder).pairs
    monkeypatch.setattr(module, "ALL_PAIRS", 359)
    monkeypatch.setattr(module, "SAMPLED_PAIRS", 30_000)
    (sampled,) = look(folder).pairs
    assert (sampled.pairs, sampled.sampled) == (30_000, True)
    assert exact.embedding_consistency is not None
    assert sampled.embedding_consistency == pytest.approx(exact.embedding_consistency, abs=0.02)
    assert sampled.embedding_consistency != exact.embedding_consistency
    assert look(folder).pairs == (sampled,)


def test_a_taxonomy_gives_distances(train: Train, look: Look, with_twins: Registry, store: LocalDataStore) -> None:
    folder = train("twins")
    parity = {str(digit): "odd" if digit % 2 else "even" for digit in range(10)}
    analysis = look(folder, taxonomy=Taxonomy("parity", parity | {"odd": "number", "even": "number"}))
    assert analysis.taxonomy == "parity"
    networks, data = restore_networks(folder, record_of(folder), with_twins, store, CPU, lambda _event: None)
    assert data.class_names == tuple(parity)
    for measured in analysis.networks:
        logits = embed_test_images(networks[measured.name], data, CPU, store.root)[1].numpy()
        second, first = np.argsort(logits, axis=1)[:, -2:].T
        # One for two odd digits or two even ones, two for one of each kind.
        assert measured.lca_distance == pytest.approx((1 + (first + second) % 2).mean())
    with pytest.raises(UsageError, match=r"taxonomy pets: class '0' \(and 9 more\) has no parent"):
        look(folder, taxonomy=Taxonomy("pets", {"cat": "pet"}))


def test_an_open_set_is_measured_on_the_known_classes(train: Train, look: Look) -> None:
    analysis = look(train("ce", suites=["digits-openset"], tasks=["sym@0.50"]))
    assert analysis.num_test < 360
    (network,) = analysis.networks
    assert network.variance_entropy is not None
    assert network.variance_entropy_share == pytest.approx(network.variance_entropy / math.log(8))


def test_a_run_that_started_from_a_selection(train: Train, look: Look) -> None:
    folder = train("ce", select="clipcleaner")
    scores = record_of(folder).scores
    assert scores is not None
    assert look(folder).networks[0].accuracy == scores.last


def test_degenerate_features_have_no_measures() -> None:
    features, logits = torch.ones(6, 3), torch.eye(6)[:, :2]
    measured = measure_network("flat", features, logits, torch.arange(6) % 2, None)
    assert (measured.variance_entropy, measured.variance_entropy_share) == (None, None)
    one_class = measure_network("single", torch.rand(6, 3), logits, torch.zeros(6, dtype=torch.int64), None)
    assert (one_class.variance_entropy, one_class.variance_entropy_share) == (0.0, None)


@pytest.fixture
def damaged(train: Train, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(train("ce"), tmp_path / "run"))


def refusal(look: Look, folder: Path, kind: type[LnlbenchError], registry: Registry | None = None) -> str:
    with pytest.raises(kind) as raised:
        look(folder) if registry is None else look(folder, registry)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_unfinished_run(damaged: Path, look: Look) -> None:
    (damaged / "result.json").unlink()
    assert refusal(look, damaged, NotFinishedError) == "the run is not finished; issue its run command again"
    (damaged / "spec.json").unlink()
    assert refusal(look, damaged, NotFinishedError) == "no run is there"


def test_a_diverged_run(train: Train, look: Look) -> None:
    folder = train("twins", overrides={"what": "diverge"})
    assert "the run diverged, so there are no final networks (loss is nan" in refusal(look, folder, NotFinishedError)


def test_a_damaged_record(damaged: Path, look: Look) -> None:
    (damaged / "result.json").write_text("{")
    assert "result.json is damaged" in refusal(look, damaged, DataError)


def test_no_checkpoints(damaged: Path, look: Look) -> None:
    shutil.rmtree(damaged / "checkpoints")
    assert "the checkpoint of the last epoch is not in" in refusal(look, damaged, DataError)
    assert not (damaged / "checkpoints").exists()


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_not_replaced_by_an_earlier_one(both: bool, damaged: Path, look: Look) -> None:
    for epoch in range(2)[0 if both else 1 :]:
        path = damaged / "checkpoints" / f"ckpt-00000{epoch}.pt"
        if path.exists():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = refusal(look, damaged, DataError)
    assert said == "checkpoint ckpt-000001.pt is damaged, and the final networks with it; run the cell anew"


def test_a_checkpoint_that_was_removed(damaged: Path, look: Look) -> None:
    (damaged / "checkpoints" / "ckpt-000001.pt").unlink()
    assert "ckpt-000001.pt cannot be read (No such file or directory), and" in refusal(look, damaged, DataError)


def test_an_index_that_ends_early(damaged: Path, look: Look) -> None:
    index = damaged / "checkpoints" / "latest.json"
    content = json.loads(index.read_text())
    content["checkpoints"] = [each for each in content["checkpoints"] if each["epoch"] == 0]
    index.write_text(json.dumps(content))
    assert "the checkpoint of the last epoch is not in" in refusal(look, damaged, DataError)


def test_other_data_than_those_of_the_run(damaged: Path, look: Look) -> None:
    path = damaged / "result.json"
    record = json.loads(path.read_text())
    record["data"]["digest"] = "0" * 64
    path.write_text(json.dumps(record))
    assert "dataset 'digits' has other images or labels now" in refusal(look, damaged, DataError)


def test_a_plugin_of_another_version_or_none(
    train: Train, look: Look, with_twins: Registry, registry: Registry
) -> None:
    folder = train("twins")
    assert "unknown method 'twins'" in refusal(look, folder, UsageError, registry)
    methods: Catalogue[MethodEntry] = Catalogue("method")
    entry = with_twins.methods.find("twins").entry
    methods.add(Registered(entry, Provider("lnlbench-twins", "4.0")))
    said = refusal(look, folder, PluginError, dataclasses.replace(with_twins, methods=methods))
    assert "planned with lnlbench-twins 3.1, but lnlbench-twins 4.0 is installed" in said


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("changed", "twins (lnlbench-twins 3.1) could not be restored: IndexError: list index out of range"),
        ("renamed", "the method tracks ['also', 'book', 'both', 'frozen'], its checkpoint holds"),
    ],
)
def test_a_method_that_cannot_be_restored(what: str, said: str, train: Train, look: Look) -> None:
    assert said in refusal(look, train("twins", overrides={"what": what}), PluginError)


def test_a_method_without_networks(train: Train, look: Look) -> None:
    folder = train("twins", overrides={"widths": "[]"})
    assert refusal(look, folder, UsageError) == "twins tracks no network, so that there is nothing to analyse"


def test_the_json_form_is_plain_and_complete(train: Train, look: Look) -> None:
    analysis = look(train("twins"))
    plain = json.loads(json.dumps(analysis.as_json(), allow_nan=False))
    assert {key: plain[key] for key in ("method", "suite", "task", "seed", "epochs", "num_test")} == {
        "method": "twins",
        "suite": "digits-sym",
        "task": "0.40",
        "seed": 1,
        "epochs": 2,
        "num_test": 360,
    }
    assert plain["cell"] == analysis.cell.id
    assert [each["name"] for each in plain["networks"]] == ["both.0", "both.1"]
    assert plain["pairs"][0]["networks"] == ["both.0", "both.1"]
    for field, each in itertools.product(("embedding_consistency", "logit_wasserstein"), plain["pairs"]):
        assert isinstance(each[field], float)
