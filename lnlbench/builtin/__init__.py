"""The parts of the core that are extensions themselves, registered through the public hooks like any plugin's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lnlbench.api import (
    BackboneEntry,
    DatasetEntry,
    EncoderEntry,
    ExecutorEntry,
    NoiseEntry,
    SuiteFile,
    hookimpl,
)

_HERE = Path(__file__).parent


@hookimpl
def lnlbench_datasets() -> Sequence[DatasetEntry]:
    """The embedded digits, public archives, sets of image files, and the user's own images."""
    from lnlbench.builtin.datasets import ENTRIES

    return ENTRIES


@hookimpl
def lnlbench_noise() -> Sequence[NoiseEntry]:
    """The noise of the literature: drawn, released as files, or a dataset's own."""
    from lnlbench.builtin.noise import ENTRIES

    return ENTRIES


@hookimpl
def lnlbench_backbones() -> Sequence[BackboneEntry]:
    """The networks of the papers, and every timm model."""
    from lnlbench.builtin.backbones import ENTRIES

    return ENTRIES


@hookimpl
def lnlbench_encoders() -> Sequence[EncoderEntry]:
    """The embedded vision-language encoder, and every open_clip model."""
    from lnlbench.builtin.encoders import ENTRIES

    return ENTRIES


@hookimpl
def lnlbench_executors() -> Sequence[ExecutorEntry]:
    """This process, or one worker process per cell."""
    from lnlbench.builtin.executors import ENTRIES

    return ENTRIES


@hookimpl
def lnlbench_suites() -> Sequence[SuiteFile]:
    """Every TOML file in the suites folder."""
    return [SuiteFile(path=path) for path in sorted((_HERE / "suites").glob("*.toml"))]
