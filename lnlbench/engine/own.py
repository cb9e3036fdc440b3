"""A suite for one command: any dataset, above all a user's own images, with noise or as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lnlbench.contracts.dataset import Dataset
from lnlbench.contracts.suite import NoiseSettings, Suite, SuiteTask
from lnlbench.contracts.views import RandomCrop, RandomFlip, ViewRecipe
from lnlbench.errors import UsageError
from lnlbench.records import digest, safe_name

_TINY, _SMALL = 16, 96
"""Sides in pixels up to which images get the smallest backbone, and one for CIFAR-like images."""

_LONGEST_NAME = 64


def own_suite(
    dataset: Dataset,
    data_options: Mapping[str, Any],
    noise: str,
    noise_options: Mapping[str, Any],
    rates: Sequence[float],
) -> Suite:
    """Describe a dataset with a noise as a suite.

    Args:
        dataset: The dataset, opened.
        data_options: Its options.
        noise: Noise by name; ``own`` for the labels as they are.
        noise_options: Switches of the noise.
        rates: Nominal rates, one task each; none for noise without a rate.

    Raises:
        UsageError: A rate is not in [0, 1].
    """
    if bad := [rate for rate in rates if not 0.0 <= rate <= 1.0]:
        raise UsageError(f"--rate {bad[0]:g} is not between 0 and 1")
    side = dataset.image_size
    if side <= _TINY:
        backbone, epochs, padding = "small-cnn", 40, 1
    elif side <= _SMALL:
        backbone, epochs, padding = "preact-resnet18", 100, side // 8
    else:
        backbone, epochs, padding = "timm:resnet50", 50, 0
    name = safe_name(dataset.name.replace(":", "-"))
    if noise != "own":
        name = f"{name}-{noise}"
    if data_options or noise_options or len(name) > _LONGEST_NAME:
        # Two suites of one name would share a leaderboard.
        name = f"{name[: _LONGEST_NAME - 7]}-{digest([name, dict(data_options), dict(noise_options)])[:6]}"
    tasks = tuple(SuiteTask(name=f"{rate:.2f}" if round(rate, 2) == rate else f"{rate:g}", rate=rate) for rate in rates)
    return Suite(
        name=name,
        version=1,
        title=f"{dataset.name}, {'labels as they are' if noise == 'own' else f'{noise} noise'}",
        facts="Defined on the command line.",
        dataset=dataset.name,
        data=dict(data_options),
        noise=NoiseSettings(generator=noise, options=dict(noise_options)),
        tasks=tasks or (SuiteTask(name="full"),),
        backbone=backbone,
        epochs=epochs,
        views={"weak": ViewRecipe(ops=(RandomCrop(padding=padding), RandomFlip()))},
    )
