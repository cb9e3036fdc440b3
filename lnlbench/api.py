"""The door for extensions: everything a plugin needs, and the only module (with ``lnlbench.blocks``) it may import."""

from __future__ import annotations

from lnlbench.contracts.backbone import BackboneEntry, BackboneFactory
from lnlbench.contracts.dataset import (
    Dataset,
    DatasetEntry,
    DatasetOptions,
    DataStore,
    Edition,
    ImageData,
    ImageFiles,
    Needed,
    RemoteFile,
    Resize,
    Split,
)
from lnlbench.contracts.encoder import Encoder, EncoderEntry, EncoderFactory, VisionLanguageModel
from lnlbench.contracts.executor import Executor, ExecutorEntry, Job, Launcher, Listener, Resources
from lnlbench.contracts.method import Ensemble, Method, MethodConfig, MethodEntry, Paper
from lnlbench.contracts.noise import GeneratedLabels, NoiseEntry, NoiseGenerator, ReleasedLabels
from lnlbench.contracts.run import Run, Stage, Stateful, Stream
from lnlbench.contracts.suite import NoiseSettings, Suite, SuiteFile, SuiteTask
from lnlbench.contracts.task import Batch, Loader, Network, Selection, Task, TaskInfo, ValidationSplit
from lnlbench.contracts.views import (
    PLAIN,
    AutoAugment,
    ColourJitter,
    Cutout,
    Greyscale,
    RandAugment,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    ViewRecipe,
)
from lnlbench.errors import (
    DataError,
    DivergedError,
    LnlbenchError,
    PluginError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from lnlbench.hookspecs import hookimpl
from lnlbench.records import CellSpec

__all__ = [
    "PLAIN",
    "AutoAugment",
    "BackboneEntry",
    "BackboneFactory",
    "Batch",
    "CellSpec",
    "ColourJitter",
    "Cutout",
    "DataError",
    "DataStore",
    "Dataset",
    "DatasetEntry",
    "DatasetOptions",
    "DivergedError",
    "Edition",
    "Encoder",
    "EncoderEntry",
    "EncoderFactory",
    "Ensemble",
    "Executor",
    "ExecutorEntry",
    "GeneratedLabels",
    "Greyscale",
    "ImageData",
    "ImageFiles",
    "Job",
    "Launcher",
    "Listener",
    "LnlbenchError",
    "Loader",
    "Method",
    "MethodConfig",
    "MethodEntry",
    "Needed",
    "Network",
    "NoiseEntry",
    "NoiseGenerator",
    "NoiseSettings",
    "Paper",
    "PluginError",
    "RandAugment",
    "RandomCrop",
    "RandomFlip",
    "RandomResizedCrop",
    "ReleasedLabels",
    "RemoteFile",
    "Resize",
    "Resources",
    "Run",
    "Selection",
    "Split",
    "Stage",
    "Stateful",
    "StorageError",
    "Stream",
    "Suite",
    "SuiteFile",
    "SuiteTask",
    "Task",
    "TaskInfo",
    "UnknownNameError",
    "UsageError",
    "ValidationSplit",
    "ViewRecipe",
    "VisionLanguageModel",
    "hookimpl",
]
