"""Texts that describe the classes of a dataset, from data files beside this module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lnlbench.api import DataError, UsageError

_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class ClassFacts(BaseModel):
    """What is said of a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Text = Field(description="What stands in the text for the class.")
    facts: tuple[_Text, ...] = Field(min_length=1, description="Relative clauses, each begins with 'which'.")

    @model_validator(mode="after")
    def _facts_are_clauses(self) -> ClassFacts:
        for fact in self.facts:
            if not fact.startswith("which "):
                raise ValueError(f"a fact of {self.name!r} does not begin with 'which': {fact!r}")
        if len(set(self.facts)) < len(self.facts):
            raise ValueError(f"a fact of {self.name!r} stands there twice")
        return self


class PromptFile(BaseModel):
    """The descriptions of all classes of a dataset, in the order of their labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="Dataset by name.")
    suffix: str = Field(description="What ends every text, e.g. ', a type of animal.'.")
    provenance: _Text = Field(description="Where the facts come from.")
    classes: tuple[ClassFacts, ...] = Field(min_length=1, description="One per class.")

    @model_validator(mode="after")
    def _counts_are_equal(self) -> PromptFile:
        # A class's score is a sum over its texts (eq. 4): fewer of them would be a smaller prior.
        expected = len(self.classes[0].facts)
        for each in self.classes:
            if len(each.facts) != expected:
                raise ValueError(f"{each.name!r} has {len(each.facts)} facts, others {expected}")
        return self


def has_facts(dataset: str) -> bool:
    """Return whether there is a file of facts for a dataset."""
    return _resource(dataset).is_file()


def class_texts(dataset: str, class_names: Sequence[str], kind: Literal["class-specific", "single"]) -> list[list[str]]:
    """Return the texts of each class, equally many for all.

    ``class-specific``: one per fact, ``a photo of a NAME FACT SUFFIX``. ``single``: ``a photo of a NAME SUFFIX`` alone.

    A class is found in the dataset's file by its name, in lower case and without synonyms, or where the file has no
    such name (digits), by its label.

    Args:
        dataset: Dataset by name.
        class_names: The names of classes 0 to C - 1.
        kind: Which texts.

    Returns:
        C lists of J texts.

    Raises:
        UsageError: There are no facts about this dataset.
        DataError: They do not fit its classes.
    """
    if not has_facts(dataset):
        if kind == "class-specific":
            raise UsageError(f"there are no class-specific prompts for {dataset!r}; use --set prompts=single")
        return [[f"a photo of a {_plain(name)}."] for name in class_names]
    content = read_facts(dataset)
    described = [_find(content, label, name) for label, name in enumerate(class_names)]
    if len({each.name for each in described}) < len(class_names):
        raise DataError(f"prompts of {dataset!r}: two of the classes {', '.join(class_names)} share one description")
    if kind == "single":
        return [[f"a photo of a {each.name}{content.suffix}"] for each in described]
    return [[f"a photo of a {each.name} {fact}{content.suffix}" for fact in each.facts] for each in described]


def read_facts(dataset: str) -> PromptFile:
    """Read and check a dataset's file.

    Raises:
        DataError: Its content is not as described by :class:`PromptFile`.
    """
    try:
        content = PromptFile.model_validate_json(_resource(dataset).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"prompts/{dataset}.json: {where + ': ' if where else ''}{first['msg']}") from None
    if content.dataset != dataset:
        raise DataError(f"prompts/{dataset}.json: it says that it is for {content.dataset!r}")
    return content


def _find(content: PromptFile, label: int, name: str) -> ClassFacts:
    for each in content.classes:
        if each.name == _plain(name):
            return each
    if label >= len(content.classes):
        raise DataError(f"prompts of {content.dataset!r}: class {label}, {name!r}, is not described")
    return content.classes[label]


def _plain(name: str) -> str:
    return name.split(",")[0].lower().replace("_", " ")


def _resource(dataset: str) -> Traversable:
    return resources.files(__package__) / "prompts" / f"{dataset}.json"
