from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from lnlbench.contracts.dataset import Dataset, DatasetOptions, DataStore, ImageData, RemoteFile, Split
from lnlbench.engine.data import find_dataset, limited_index, load_data, task_info
from lnlbench.engine.realisation import noisy_labels
from lnlbench.errors import PluginError, UnknownNameError, UsageError
from lnlbench.plugins import Registry
from lnlbench.records import NoiseSpec
from lnlbench.store import LocalDataStore

OWN = NoiseSpec(generator="own", options={}, rate=None, seed=None)


class Toy(Dataset):
    """Five classes; image i shows nothing but i."""

    class Options(DatasetOptions):
        """One switch."""

        level: int = Field(1, ge=1, description="Unused.")

    name = "toy"
    num_classes = 5
    class_names = tuple("abcde")
    num_train, num_test = 40, 10
    image_size, channels = 2, 1
    mean, std = (0.0,), (1.0,)
    licence = source = "made up"

    def files(self) -> tuple[RemoteFile, ...]:
        return ()

    def prepare(self, store: DataStore) -> None:
        pass

    def load(self, store: DataStore) -> ImageData:
        def images(count: int) -> Any:
            return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), dtype=np.uint8)

        train = np.arange(40, dtype=np.int64) % 5
        test = np.arange(10, dtype=np.int64) % 5
        more = {"further_tests": {"other": Split(images(5), test[:5])}} | self.more()
        return ImageData(images(40), train, images(10), test, **more)

    def more(self) -> dict[str, Any]:
        return {}


def toy(**changes: Any) -> Toy:
    class Changed(Toy):
        def more(self) -> dict[str, Any]:
            return changes

    return Changed()


def test_open_set_keeps_training_images_and_drops_test_images(store: LocalDataStore) -> None:
    data = load_data(Toy(), store, known_classes=3, test_sets=("main", "other"))
    assert data.images.train_labels.tolist() == [0, 1, 2, 3, 4] * 8
    assert data.images.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert isinstance(data.images.test_images, np.ndarray)
    assert data.images.test_images[:, 0, 0, 0].tolist() == [0, 1, 2, 5, 6, 7]
    assert data.images.further_tests["other"].labels.tolist() == [0, 1, 2]
    assert (data.num_classes, data.facts.num_classes, data.facts.num_test) == (3, 3, 6)
    assert data.facts.num_further_test == {"other": 3}
    assert data.class_names == tuple("abcde"), "rows of a transition matrix have names too"


def test_further_test_sets_are_loaded_only_if_asked_for(store: LocalDataStore) -> None:
    assert load_data(Toy(), store).images.further_tests == {}
    with pytest.raises(PluginError, match="'toy' broke its contract: it returned no test set 'third'"):
        load_data(Toy(), store, test_sets=("main", "third"))


def test_a_limit_cuts_everything_that_belongs_to_a_training_sample(store: LocalDataStore) -> None:
    given = np.roll(np.arange(40, dtype=np.int64) % 5, 1)
    correct = np.zeros(40, dtype=np.int8)
    data = load_data(toy(given_labels=given, correct=correct), store, 7)
    kept = limited_index(40, 7)
    assert data.images.given_labels is not None
    assert data.images.given_labels.tolist() == given[kept].tolist()
    assert data.images.correct is not None
    assert len(data.images.correct) == data.facts.num_train == 7
    assert len(data.all_true_labels) == 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"given_labels": np.zeros(3, dtype=np.int64)}, r"given_labels of shape \(3,\) for 40 training images"),
        ({"given_labels": np.full(40, 5)}, "given labels from 5 to 5 for 5 classes"),
        ({"correct": np.zeros(2, dtype=np.int8)}, r"correct of shape \(2,\)"),
        ({"correct": np.full(40, -1, dtype=np.int8)}, "true labels of samples of which it says that nobody knows"),
        ({"validation": Split(np.zeros((2, 2, 2, 1), dtype=np.uint8), np.zeros(3, dtype=np.int64))}, "2 validation"),
        *(
            (
                {"further_tests": {name: Split(np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int64))}},
                f"a test set {name!r}",
            )
            for name in ("training", "validation")
        ),
    ],
)
def test_a_dataset_that_breaks_its_contract_is_named(changes: Any, said: str, store: LocalDataStore) -> None:
    with pytest.raises(PluginError, match=f"dataset 'toy' broke its contract: it returned {said}"):
        load_data(toy(**changes), store)


def test_options_of_a_dataset_are_checked(registry: Registry) -> None:
    assert Toy("toy", {"level": 2}).options.model_dump() == {"level": 2}
    with pytest.raises(UsageError, match="dataset 'toy': option 'level': Input should be greater"):
        Toy("toy", {"level": 0})
    with pytest.raises(UsageError, match="dataset 'digits': option 'levle': Extra inputs are not permitted"):
        find_dataset(registry, "digits", {"levle": 1})
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit'"):
        find_dataset(registry, "digit")


def test_what_a_method_may_know_of_an_open_set(registry: Registry) -> None:
    suite = registry.suites.find("digits-openset").entry
    info = task_info(suite, suite.task("sym@0.50"), find_dataset(registry, suite.dataset))
    assert (info.num_classes, info.class_names) == (8, tuple("01234567"))
    assert info.ask_noise_rate() == 0.5
    assert info.asked == {"noise rate"}


def realised(dataset: Toy, registry: Registry, store: LocalDataStore, spec: NoiseSpec = OWN) -> Any:
    return noisy_labels(registry, store, "toy", 1, "full", spec, load_data(dataset, store))


def test_labels_of_the_dataset_itself(registry: Registry, store: LocalDataStore) -> None:
    given = (np.arange(40, dtype=np.int64) + (np.arange(40) < 10)) % 5
    facts = realised(toy(given_labels=given), registry, store).facts
    assert (facts.num_known, facts.num_changed, facts.realised_rate) == (40, 10, 0.25)

    # Half of the truth, and of the true classes nothing.
    half = toy(given_labels=given, correct=np.repeat(np.array([0, 1, -1, -1], dtype=np.int8), 10))
    whole = half.load(store)
    half.load = lambda _: replace(whole, train_labels=np.full(40, -1))  # type: ignore[method-assign]
    facts = realised(half, registry, store).facts
    assert (facts.num_known, facts.num_changed, facts.realised_rate, facts.confusion) == (20, 10, 0.5, None)


def test_clean_labels_as_they_are(registry: Registry, store: LocalDataStore) -> None:
    assert realised(Toy(), registry, store).facts.realised_rate == 0.0
    unchecked = Toy()
    unchecked.labels_are_true = False
    made = realised(unchecked, registry, store)
    assert (made.facts.num_known, made.facts.realised_rate, made.facts.confusion) == (0, None, None)
    assert made.given_labels.tolist() == [0, 1, 2, 3, 4] * 8


def test_noisy_labels_get_no_more_noise(registry: Registry, store: LocalDataStore) -> None:
    spec = NoiseSpec(generator="symmetric", options={}, rate=0.2, seed=1)
    with pytest.raises(UsageError, match="noisy already, so 'symmetric' noise cannot be added; use noise 'own'"):
        realised(toy(given_labels=np.zeros(40, dtype=np.int64)), registry, store, spec)
