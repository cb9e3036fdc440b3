"""What a suite is: a dataset, a noise family and its levels, as declarative data (one TOML file)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lnlbench.contracts.views import ViewRecipe

NAME_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
# A level may name its noise as well, as in "sym@0.20".
TASK_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+@-]{0,62}[A-Za-z0-9])?")


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SuiteFile(_Data):
    """A TOML file that defines a suite and its variants, as announced by a plugin."""

    path: Path = Field(description="The file.")


class NoiseSettings(_Data):
    """Which noise a suite has."""

    generator: str = Field(description="Where the noisy labels come from, by name: a generator, released files, 'own'.")
    options: dict[str, Any] = Field(default_factory=dict, description="The generator's switches.")


class SuiteTask(_Data):
    """One level of a suite."""

    name: str = Field(description="Task id within the suite, e.g. '0.50'.")
    rate: float | None = Field(None, ge=0.0, le=1.0, description="Nominal noise rate, where there is one.")
    aliases: tuple[str, ...] = Field((), description="Other names users know this level by.")
    noise: dict[str, Any] = Field(default_factory=dict, description="Switches of the noise at this level.")
    data: dict[str, Any] = Field(default_factory=dict, description="Options of the dataset at this level.")
    test_sets: tuple[str, ...] = Field(
        (), description="Names of the test sets one training is evaluated on, if there are several; the main one first."
    )

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        if not TASK_PATTERN.fullmatch(name):
            raise ValueError(
                f"task name {name!r} has characters other than letters, digits, '.', '_', '+', '-' and '@'"
            )
        return name


class Suite(_Data):
    """A suite: the unit of comparison and of a leaderboard."""

    name: str = Field(description="Id: dataset and noise family, e.g. 'cifar10-sym'.")
    version: int = Field(ge=1, description="Raised whenever a result on this suite would change.")
    title: str = Field(description="A line for people.")
    facts: str = Field(description="Where the definition comes from.")
    dataset: str = Field(description="Dataset by name.")
    data: dict[str, Any] = Field(default_factory=dict, description="Options of the dataset.")
    known_classes: int | None = Field(
        None,
        ge=2,
        description="An open-set suite: classes from this one on are outside the task. Their training images stay, out "
        "of distribution and with labels of known classes; their test images are left out.",
    )
    noise: NoiseSettings = Field(description="The noise.")
    tasks: tuple[SuiteTask, ...] = Field(min_length=1, description="The levels.")
    backbone: str = Field(description="Backbone for methods without an opinion of their own.")
    epochs: int = Field(ge=1, description="Schedule length for methods whose paper does not cover this dataset.")
    encoder: str = Field(
        "open-clip:ViT-B-32-quickgelu/openai", description="Vision-language encoder for methods that use one."
    )
    seeds: tuple[int, ...] = Field((1, 2, 3), description="Training seeds of a full run; the noise seed is the same.")
    views: dict[str, ViewRecipe] = Field(description="Named augmentation recipes; 'weak' must be among them.")
    top5: bool = Field(False, description="Whether the share of test images with the class among five is scored too.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="Precision of forward passes; 'auto' is bf16 where the hardware has it."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a cell; all cores if not given.")
    variant_of: str | None = Field(None, description="The suite this one is a variant of.")

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"suite name {name!r} has characters other than letters, digits, '.', '_', '+' and '-'")
        return name

    @field_validator("views")
    @classmethod
    def _has_weak(cls, views: dict[str, ViewRecipe]) -> dict[str, ViewRecipe]:
        if "weak" not in views:
            raise ValueError("views must define 'weak'")
        return views

    def task(self, name: str) -> SuiteTask:
        """Return a level by name; ``0.5`` finds ``0.50``, an alias its level, a test set the level evaluated on it.

        Where a level has several test sets, naming one of them leaves the others out.

        Raises:
            UnknownNameError: The suite has no such level.
        """
        from lnlbench.errors import UnknownNameError

        for task in self.tasks:
            if name in (task.name, *task.aliases) or _same_number(task.name, name):
                return task
            if name in task.test_sets:
                return task.model_copy(update={"test_sets": (name,)})
        known = [name for task in self.tasks for name in (task.name, *task.test_sets)]
        raise UnknownNameError(f"task of suite {self.name!r}", name, known)


def _same_number(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return False
