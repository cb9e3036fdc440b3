from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lnlbench.api import DataError, UsageError
from lnlbench.plugins import discover
from lnlbench_clipcleaner import prompts
from lnlbench_clipcleaner.prompts import class_texts, has_facts, read_facts

FILES = sorted(path.stem for path in Path(prompts.__file__).with_name("prompts").glob("*.json"))
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple(f"digit {number}" for number in NUMBERS)


@pytest.mark.parametrize("dataset", FILES)
def test_every_class_has_eight_short_facts_of_its_own(dataset: str) -> None:
    content = read_facts(dataset)
    assert len({each.name for each in content.classes}) == len(content.classes)
    assert content.suffix.endswith(".")
    assert content.provenance
    for each in content.classes:
        assert each.name == each.name.lower()
        assert len(each.facts) == 8
        assert all(4 <= len(fact.split()) <= 15 and not fact.endswith(".") for fact in each.facts), each.name


@pytest.mark.parametrize("dataset", FILES)
def test_classes_come_in_the_order_of_the_labels(dataset: str) -> None:
    names = discover().datasets.find(dataset).load().class_names
    if dataset == "digits":
        names = DIGITS
    assert [each.name for each in read_facts(dataset).classes] == [
        name.partition(",")[0].lower().replace("_", " ") for name in names
    ]


def test_texts_of_a_class() -> None:
    cat = class_texts("cifar10", CIFAR10, "class-specific")[3]
    facts = read_facts("cifar10").classes[3].facts
    assert cat == [f"a photo of a cat {fact}." for fact in facts]
    assert class_texts("cifar10", CIFAR10, "single")[3] == ["a photo of a cat."]


def test_classes_are_found_by_name() -> None:
    names = ("cat", "lynx", "wolf", "coyote", "jaguar", "cheetah", "chimpanzee", "orangutan", "hamster", "guinea pig")
    swapped = (*names[:4], "cheetah", "jaguar", *names[6:])
    straight, other = (class_texts("animal10n", each, "single") for each in (names, swapped))
    assert straight[4] == other[5] == ["a photo of a jaguar, a type of animal."]
    assert straight[5] == other[4] == ["a photo of a cheetah, a type of animal."]
    assert straight[:4] + straight[6:] == other[:4] + other[6:]


def test_names_the_file_does_not_have_stand_for_their_labels() -> None:
    texts = class_texts("digits", tuple("01234567"), "single")
    assert texts == [[f"a photo of a {name}."] for name in DIGITS[:8]]


def test_underscores_case_and_synonyms_are_dropped() -> None:
    names = ("Lawn_Mower", "tank, army tank")
    assert class_texts("unknown", names, "single") == [["a photo of a lawn mower."], ["a photo of a tank."]]


def test_a_dataset_without_facts_has_the_single_prompt_only() -> None:
    assert not has_facts("folder:mine")
    with pytest.raises(UsageError, match=r"no class-specific prompts for 'folder:mine'; use --set prompts=single"):
        class_texts("folder:mine", ("a", "b"), "class-specific")


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="class 10, 'submarine', is not described"):
        class_texts("cifar10", (*CIFAR10, "submarine"), "single")
    with pytest.raises(DataError, match="share one description"):
        class_texts("cifar10", (*CIFAR10[:3], "submarine", "cat", *CIFAR10[5:]), "single")


def damaged(**changes: Any) -> str:
    classes = [{"name": name, "facts": ["which is one", "which is two"]} for name in ("a", "b")]
    return json.dumps({"dataset": "toy", "suffix": ".", "provenance": "made up", "classes": classes} | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (damaged(dataset="other"), "it says that it is for 'other'"),
        (damaged(classes=[]), "classes: Tuple should have at least 1 item"),
        (damaged(classes=[{"name": "a", "facts": []}]), "facts: Tuple should have at least 1 item"),
        (damaged(classes=[{"name": "a", "facts": ["it is"]}]), "a fact of 'a' does not begin with 'which': 'it is'"),
        (damaged(classes=[{"name": "a", "facts": ["which is"] * 2}]), "a fact of 'a' stands there twice"),
        (
            damaged(classes=[{"name": "a", "facts": ["which is", "which has"]}, {"name": "b", "facts": ["which is"]}]),
            "'b' has 1 facts, others 2",
        ),
        (damaged(more=1), "more: Extra inputs are not permitted"),
        ("[", "Invalid JSON"),
    ],
)
def test_a_strange_file_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "toy.json"
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(prompts, "_resource", lambda _: path)
    with pytest.raises(DataError) as caught:
        read_facts("toy")
    assert str(caught.value).startswith("prompts/toy.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
