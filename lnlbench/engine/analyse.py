"""What the networks of a finished run make of the test images, measured on their features and logits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnlbench.blocks.semantics import (
    class_variances,
    draw_pairs,
    embedding_consistency,
    lca_distances,
    logit_wasserstein,
    top2_lca_distance,
    variance_entropy,
)
from lnlbench.builtin.taxonomies import Taxonomy, taxonomy_of
from lnlbench.contracts.suite import NoiseSettings, Suite, SuiteTask
from lnlbench.contracts.views import PLAIN
from lnlbench.engine.checkpoint import Checkpoints, restore_state
from lnlbench.engine.data import LoadedData
from lnlbench.engine.device import set_determinism
from lnlbench.engine.live import LiveRun, RunDoor
from lnlbench.engine.runner import build_method, open_task, select_before, stage_base
from lnlbench.engine.scoring import PredictionLog
from lnlbench.engine.seeding import derive_seed
from lnlbench.engine.session import read_record
from lnlbench.engine.sources import open_source
from lnlbench.engine.stages import StageCache
from lnlbench.engine.tracking import Emit
from lnlbench.errors import DataError, LnlbenchError, PluginError, UsageError
from lnlbench.plugins import Provider, Registry, one_line
from lnlbench.records import CellSpec, RunRecord
from lnlbench.store import LocalDataStore

ALL_PAIRS = 10_000
"""Test images up to which every pair of them is taken."""
SAMPLED_PAIRS = 200_000
"""Pairs drawn where there are more images: the mean of cosines is then known to about 0.001."""
_BATCH = 128


@dataclass(frozen=True)
class NetworkMeasures:
    """One network on the test images. What cannot be computed is ``None``."""

    name: str
    """As the method tracks it."""
    width: int
    """Features of an image, D."""
    accuracy: float
    """As a fraction; the network by itself."""
    variance_entropy: float | None
    """Entropy of the classes' shares in the variance of the features, in nats."""
    variance_entropy_share: float | None
    """The same over its maximum, log C."""
    lca_distance: float | None
    """Mean distance of the two most probable classes in the taxonomy; ``None`` without one."""


@dataclass(frozen=True)
class PairMeasures:
    """Two networks on the test images."""

    networks: tuple[str, str]
    embedding_consistency: float | None
    """``None`` if the two have features of different widths, or all features coincide."""
    pairs: int
    """Pairs of images it is the mean over."""
    sampled: bool
    """Whether they are a sample of all pairs."""
    logit_wasserstein: float | None


@dataclass(frozen=True)
class Analysis:
    """A finished run, analysed after its last epoch."""

    folder: Path
    cell: CellSpec
    num_test: int
    taxonomy: str | None
    """Where the tree of classes comes from."""
    networks: tuple[NetworkMeasures, ...]
    pairs: tuple[PairMeasures, ...]
    """Of every two networks."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        cell = self.cell
        return {
            "folder": str(self.folder),
            "cell": cell.id,
            "method": cell.method.name,
            "suite": cell.suite,
            "task": cell.task,
            "seed": cell.seed,
            "epochs": cell.method.config["epochs"],
            "num_test": self.num_test,
            "taxonomy": self.taxonomy,
            "networks": [dataclasses.asdict(each) for each in self.networks],
            "pairs": [dataclasses.asdict(each) for each in self.pairs],
        }


class NotFinishedError(DataError):
    """The run has no final networks: it is unfinished, or diverged."""


def finished_record(folder: Path) -> RunRecord:
    """Return the record of a run that can be analysed.

    Raises:
        NotFinishedError: The run is not finished, or diverged.
        DataError: Its record is damaged.
    """
    record = read_record(folder)
    if record is None:
        started = (folder / "spec.json").exists()
        raise NotFinishedError("the run is not finished; issue its run command again" if started else "no run is there")
    if record.status != "finished":
        raise NotFinishedError(f"the run diverged, so there are no final networks ({record.message})")
    return record


def analyse(
    folder: Path,
    registry: Registry,
    store: LocalDataStore,
    device: torch.device,
    emit: Emit,
    taxonomy: Taxonomy | None = None,
) -> Analysis:
    """Restore the networks of a finished run and measure them on the images of the main test set.

    Args:
        folder: The run's folder; nothing is written there.
        registry: What is installed.
        store: The data folder.
        device: Where to compute.
        emit: Where events go.
        taxonomy: The tree of classes; if ``None``, the one that comes with the dataset.

    Raises:
        NotFinishedError: The run is not finished, or diverged.
        DataError: Its checkpoint is missing or damaged, or its data are not there any more.
        PluginError: The method is not installed in the version of the run, or cannot be restored.
        UsageError: A class is not in the taxonomy, or the method tracks no network.
    """
    record = finished_record(folder)
    set_determinism(record.spec.deterministic, compiled=False)
    networks, data = restore_networks(folder, record, registry, store, device, emit)
    taxonomy = taxonomy or taxonomy_of(record.spec.dataset)
    distances_CC = None if taxonomy is None else lca_distances(taxonomy.lines(data.class_names[: data.num_classes]))
    labels_N = torch.from_numpy(data.images.test_labels).to(device)
    answers = {name: embed_test_images(network, data, device, store.root) for name, network in networks.items()}
    return Analysis(
        folder=folder,
        cell=record.spec,
        num_test=len(labels_N),
        taxonomy=None if taxonomy is None else taxonomy.name,
        networks=tuple(
            measure_network(name, features_ND, logits_NC, labels_N, distances_CC)
            for name, (features_ND, logits_NC) in answers.items()
        ),
        pairs=tuple(
            measure_pair((one, other), *answers[one], *answers[other])
            for one, other in itertools.combinations(answers, 2)
        ),
    )


def restore_networks(
    folder: Path, record: RunRecord, registry: Registry, store: LocalDataStore, device: torch.device, emit: Emit
) -> tuple[dict[str, nn.Module], LoadedData]:
    """Return the networks a method tracked as they were after the last epoch, in eval mode, and the run's data.

    The method is built anew and its ``fit`` called with a run that has no epoch left: what it tracks is what it has
    just built, with the state of the last checkpoint.

    Raises:
        DataError: The checkpoint is missing or damaged, or the data are not those of the run.
        PluginError: The method is not installed in the version of the run, or failed.
        UsageError: It tracks no network.
    """
    # Compiling pays for many passes, and changes nothing in the state.
    cell = record.spec.model_copy(update={"compile": False})
    method = build_method(cell.method, registry)
    opened = open_task(cell, _suite_of(cell, registry), store, registry, device, emit)
    if opened.data.facts.digest != record.data.digest:
        raise DataError(f"dataset {cell.dataset!r} has other images or labels now than when the run was made")
    stages = StageCache(store.root / "stages", stage_base(cell, opened.data), opened.noise.facts.digest, emit)
    predictions = PredictionLog({}, opened.data.num_classes)
    run = _EndedRun(
        folder, opened.clock, device, "", opened.noise.truth, predictions, lambda _modules: {}, stages, emit
    )
    if cell.selector is not None:
        opened.task.selection = select_before(cell.selector, opened.task, run, registry, emit)
    try:
        method.fit(opened.task, RunDoor(run))
    except (LnlbenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        provider = Provider(cell.method.distribution, cell.method.version)
        raise PluginError(f"{cell.method.name} ({provider}) could not be restored: {one_line(error)}") from error
    networks = dict(
        found for name, item in run.tracked.items() if isinstance(item, nn.Module) for found in _networks(name, item)
    )
    if not networks:
        raise UsageError(f"{cell.method.name} tracks no network, so that there is nothing to analyse")
    return {name: network.eval() for name, network in networks.items()}, opened.data


class _EndedRun(LiveRun):
    """A run after its last epoch: state comes back, nothing is trained, and nothing is written."""

    def epochs(self, total: int) -> Iterator[int]:
        """Restore the tracked state; no epoch is left."""
        self._started = True
        complaints: list[str] = []
        payload = Checkpoints(self._folder / "checkpoints", complaints.append).load(self.device)
        if complaints:
            # What is said of a damaged checkpoint ends with what a training run does about it.
            raise DataError(f"{complaints[0].partition(';')[0]}, and the final networks with it; run the cell anew")
        if payload is None or payload["epoch"] + 1 != total:
            raise DataError(f"the checkpoint of the last epoch is not in {self._folder / 'checkpoints'}")
        restore_state(self.tracked, payload["state"])
        return iter(())


def _networks(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find what has the methods of :class:`lnlbench.contracts.task.Network`, in containers too."""
    if hasattr(module, "embed") and hasattr(module, "classify"):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _networks(f"{name}.{child_name}", child)


def _suite_of(cell: CellSpec, registry: Registry) -> Suite:
    """Return the suite of a cell, made up from the cell where it was defined on the command line."""
    if cell.suite in registry.suites:
        return registry.suites.find(cell.suite).entry
    return Suite(
        name=cell.suite,
        version=cell.suite_version,
        title=cell.suite,
        facts="Defined on the command line.",
        dataset=cell.dataset,
        data=cell.data_options,
        noise=NoiseSettings(generator=cell.noise.generator, options=cell.noise.options),
        tasks=(SuiteTask(name=cell.task, rate=cell.noise.rate),),
        backbone=cell.method.config["backbone"],
        epochs=cell.method.config["epochs"],
        views=cell.views,
    )


def embed_test_images(network: nn.Module, data: LoadedData, device: torch.device, root: Path) -> tuple[Tensor, Tensor]:
    """Return ``features_ND`` and ``logits_NC`` of the un-augmented images of the main test set, without gradient.

    Args:
        network: On the device, in eval mode.
        data: The run's data.
        device: Where to compute.
        root: The data folder.
    """
    source = open_source(data.images.test_images, data.dataset, [PLAIN], device, root)
    order = torch.arange(source.size, device=device)
    features, logits = [], []
    with torch.no_grad():
        for (images,) in source.batches(order, _BATCH, -(-source.size // _BATCH), (PLAIN,), (0,)):
            features.append(network.embed(images))  # type: ignore[operator]
            logits.append(network.classify(features[-1]))  # type: ignore[operator]
    return torch.cat(features), torch.cat(logits)


def measure_network(
    name: str, features_ND: Tensor, logits_NC: Tensor, labels_N: Tensor, distances_CC: Tensor | None
) -> NetworkMeasures:
    """Measure one network; classes without a test image do not count."""
    variances_C = class_variances(features_ND, labels_N)
    entropy = _number(variance_entropy(variances_C))
    highest = math.log(len(variances_C))
    return NetworkMeasures(
        name=name,
        width=features_ND.shape[1],
        accuracy=float((logits_NC.argmax(dim=1) == labels_N).double().mean()),
        variance_entropy=entropy,
        variance_entropy_share=None if entropy is None or not highest else entropy / highest,
        lca_distance=None if distances_CC is None else _number(top2_lca_distance(logits_NC, distances_CC)),
    )


def measure_pair(
    networks: tuple[str, str], first_ND: Tensor, first_NC: Tensor, second_ND: Tensor, second_NC: Tensor
) -> PairMeasures:
    """Compare two networks; consistency is over all pairs of images, or over a sample that is always the same."""
    num_images = len(first_ND)
    sampled = num_images > ALL_PAIRS
    comparable = first_ND.shape == second_ND.shape
    pairs_P2 = None
    if sampled:
        generator = torch.Generator().manual_seed(derive_seed("pairs of test images", num_images) % 2**63)
        pairs_P2 = draw_pairs(num_images, SAMPLED_PAIRS, generator)
    return PairMeasures(
        networks=networks,
        embedding_consistency=_number(embedding_consistency(first_ND, second_ND, pairs_P2)) if comparable else None,
        pairs=SAMPLED_PAIRS if sampled else num_images * (num_images - 1) // 2,
        sampled=sampled,
        logit_wasserstein=_number(logit_wasserstein(first_NC, second_NC)),
    )


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
