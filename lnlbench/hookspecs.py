"""Every extension point: one hook per noun. A hook returns entries or paths; nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from lnlbench.contracts.backbone import BackboneEntry
from lnlbench.contracts.dataset import DatasetEntry
from lnlbench.contracts.encoder import EncoderEntry
from lnlbench.contracts.executor import ExecutorEntry
from lnlbench.contracts.method import MethodEntry
from lnlbench.contracts.noise import NoiseEntry
from lnlbench.contracts.suite import SuiteFile

PROJECT = "lnlbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lnlbench_methods() -> Sequence[MethodEntry]:  # type: ignore[empty-body]
    """Add methods."""


@hookspec
def lnlbench_suites() -> Sequence[SuiteFile]:  # type: ignore[empty-body]
    """Add suites: TOML files, each a suite with its variants."""


@hookspec
def lnlbench_datasets() -> Sequence[DatasetEntry]:  # type: ignore[empty-body]
    """Add datasets."""


@hookspec
def lnlbench_noise() -> Sequence[NoiseEntry]:  # type: ignore[empty-body]
    """Add noise generators."""


@hookspec
def lnlbench_backbones() -> Sequence[BackboneEntry]:  # type: ignore[empty-body]
    """Add backbones."""


@hookspec
def lnlbench_encoders() -> Sequence[EncoderEntry]:  # type: ignore[empty-body]
    """Add vision-language encoders."""


@hookspec
def lnlbench_executors() -> Sequence[ExecutorEntry]:  # type: ignore[empty-body]
    """Add executors."""
