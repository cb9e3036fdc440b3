from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.builtin.datasets.red_mini_imagenet import RedMiniImageNet, _read_annotations
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.errors import DataError, UsageError
from lnlbench.store import LocalDataStore
from lnlbench.suitefiles import read_suite_file

TRAIN_LIST = "mini-imagenet/split/red_noise_nl_0.2"
TEST_LIST = "mini-imagenet/split/clean_validation"

# Loaded by path: tests are not packages here.
spec = importlib.util.spec_from_file_location("trees_web", Path(__file__).parents[2] / "trees_web.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)


@pytest.fixture
def folder(store: LocalDataStore) -> Path:
    return store.folder("red-mini-imagenet")


def small(**options: object) -> RedMiniImageNet:
    """The dataset with the numbers of images of a small tree."""
    dataset = RedMiniImageNet("red-mini-imagenet", options)
    dataset.expected = {"train": 18, "test": 6}
    return dataset


def refusal(call, *args, kind=DataError) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("layout", ["flat", "validation", "labels"])
@pytest.mark.parametrize("base", ["", "mini-imagenet", "dataset_no_images/mini-imagenet"])
def test_images_are_found_in_every_layout(store: LocalDataStore, folder: Path, layout: str, base: str) -> None:
    train = trees.red_mini_imagenet(folder, layout=layout, base=base)
    listing = small().listing(store)
    assert listing.train.paths == tuple(path for path, _, _ in train)
    assert listing.train.labels.tolist() == [label for _, label, _ in train]
    assert listing.true_labels is not None
    assert listing.true_labels.tolist() == [true for _, _, true in train]
    assert listing.correct is not None
    assert listing.correct.tolist() == [int(true >= 0) for _, _, true in train]
    assert list(listing.tests) == ["test"]
    assert listing.tests["test"].labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert listing.validation is None
    for path in listing.all_paths():
        assert (folder / path).is_file()


def test_loading(store: LocalDataStore, folder: Path) -> None:
    train = trees.red_mini_imagenet(folder)
    dataset = small()
    dataset.prepare(store)
    data = dataset.load(store)
    assert isinstance(data.train_images, ImageFiles)
    assert data.train_images.paths == tuple(path for path, _, _ in train)
    assert data.train_images.resident
    assert data.train_images.resize == Resize(32, square=True)
    assert data.given_labels is not None
    assert data.given_labels.tolist() == [label for _, label, _ in train]
    assert data.train_labels.tolist() == [true for _, _, true in train]
    assert data.correct is not None
    assert Counter(data.correct.tolist()) == {1: 12, 0: 6}
    assert len(data.test_images) == 6
    assert data.given_labels.dtype == data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.correct.dtype == np.int8


@pytest.mark.parametrize("place", ["noisy_images", "dataset_no_images/noisy_images"])
def test_folders_are_searched_for_each_image(store: LocalDataStore, folder: Path, place: str) -> None:
    trees.red_mini_imagenet(folder, base="dataset_no_images/mini-imagenet")
    for path in sorted((folder / "all_images").glob("0*.jpg")):
        (folder / place).mkdir(exist_ok=True)
        path.rename(folder / place / path.name)
    paths = small().listing(store).train.paths
    assert Counter(str(Path(path).parent) for path in paths) == {"all_images": 12, place: 6}


@pytest.mark.parametrize(
    ("size", "resize", "resident"),
    [
        (32, Resize(32, square=True), True),
        (84, Resize(84, square=True), False),
        (299, Resize(320, square=False), False),
    ],
)
def test_sizes(size: int, resize: Resize, resident: bool) -> None:
    dataset = RedMiniImageNet("red-mini-imagenet", {"size": size})
    assert (dataset.image_size, dataset.resize(), dataset.resident()) == (size, resize, resident)
    assert (dataset.mean, dataset.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_each_level_has_a_list_of_its_own(store: LocalDataStore, folder: Path) -> None:
    for level in ("0.4", "0.05"):
        trees.red_mini_imagenet(folder, level=level, web=int(level == "0.4"))
    assert len(small(level="0.4").listing(store).train.paths) == 15
    assert len(small(level="0.05").listing(store).train.paths) == 12
    message = refusal(small(level="0.8").listing, store)
    assert str(folder / "mini-imagenet/split/red_noise_nl_0.8") in message
    assert "is missing" in message


def test_the_published_numbers_are_required(store: LocalDataStore, folder: Path) -> None:
    numbers = {"0.2": 50_000, "0.3": 49_985, "0.4": 50_010, "0.5": 49_962, "0.6": 50_000, "0.8": 50_008}
    for level, number in numbers.items():
        dataset = RedMiniImageNet("red-mini-imagenet", {"level": level})
        assert dataset.num_train == number
        assert dataset.expected == {"train": number, "test": 5_000}
    trees.red_mini_imagenet(folder)
    message = refusal(RedMiniImageNet("red-mini-imagenet").prepare, store)
    assert "18 images" in message
    assert "50,000" in message


@pytest.mark.parametrize("options", [{"level": "0.7"}, {"level": 0.2}, {"size": 64}, {"colour": "blue"}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    message = refusal(RedMiniImageNet, "red-mini-imagenet", options, kind=UsageError)
    assert next(iter(options)) in message


def test_an_absent_list_is_named_with_the_places_looked_at(store: LocalDataStore, folder: Path) -> None:
    message = refusal(small().listing, store)
    for part in (str(folder), "split/", "dataset_no_images/mini-imagenet/", "https://"):
        assert part in message
    trees.red_mini_imagenet(folder)
    (folder / TEST_LIST).unlink()
    assert refusal(small().listing, store).startswith(f"{folder / TEST_LIST}: is missing")


def test_dead_addresses_are_counted_and_may_be_registered(store: LocalDataStore, folder: Path) -> None:
    train = trees.red_mini_imagenet(folder)
    gone = [path for path, _, true in train if true < 0][:4]
    for path in gone:
        (folder / path).unlink()
    message = refusal(small().prepare, store)
    assert "4 of 24" in message
    assert str(folder / gone[0]) in message
    assert "--edition" in message
    edition = small().register(store, "what-is-left")
    assert edition.name == "what-is-left"
    dataset = small()
    dataset.prepare(store)
    dataset.open(store)
    assert dataset.num_train == 14
    data = dataset.load(store)
    kept = [(label, true) for path, label, true in train if path not in gone]
    assert data.given_labels is not None
    assert list(zip(data.given_labels.tolist(), data.train_labels.tolist(), strict=True)) == kept


def test_without_annotations_every_web_image_counts_as_wrong(store: LocalDataStore, folder: Path) -> None:
    train = trees.red_mini_imagenet(folder, annotations=False)
    correct = small().listing(store).correct
    assert correct is not None
    assert correct.tolist() == [int(true >= 0) for _, _, true in train]


def test_a_web_image_that_nobody_annotated_is_unknown(store: LocalDataStore, folder: Path) -> None:
    train = trees.red_mini_imagenet(folder)
    path = folder / "mini-imagenet-annotations.json"
    content = json.loads(path.read_text())
    stranger = content["data"].pop(2)[0]["image/id"]
    path.rename(folder / "mini-imagenet" / path.name)
    (folder / "mini-imagenet" / path.name).write_text(json.dumps(content))
    correct = small().listing(store).correct
    assert correct is not None
    expected = [-1 if stranger in path else int(true >= 0) for path, _, true in train]
    assert correct.tolist() == expected
    assert expected.count(-1) == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"data": 1}',
        '{"data": []}',
        '{"data": [{}]}',
        '{"data": [[]]}',
        '{"data": [[{"id": "1"}]]}',
        "[" * 100_000,
    ],
)
def test_damaged_annotations_are_refused(store: LocalDataStore, folder: Path, content: str) -> None:
    trees.red_mini_imagenet(folder)
    path = folder / "mini-imagenet-annotations.json"
    path.write_text(content)
    assert refusal(small().listing, store).startswith(f"{path}: not the published annotations: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "image/id"]), inner),
)


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"data": value}).encode()))
def test_any_annotations_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_bytes(content)
        try:
            ids = _read_annotations(path)
        except DataError as error:
            message = str(error)
        else:
            assert ids == {str(each[0]["image/id"]) for each in json.loads(content)["data"]}
            return
    assert message.startswith(f"{path}: ")
    assert message.isprintable()


def test_a_mini_imagenet_image_has_the_class_of_its_synset(store: LocalDataStore, folder: Path) -> None:
    # In a published list of red noise these labels are all right; a list of another noise is not taken for one.
    trees.red_mini_imagenet(folder, web=0, clean=1)
    path = folder / TRAIN_LIST
    path.write_text(path.read_text().replace("n0451500300000001.jpg 1", "n0451500300000001.jpg 2"))
    listing = small().listing(store)
    assert listing.true_labels is not None
    assert listing.correct is not None
    assert listing.train.labels.tolist() == [0, 2, 2]
    assert listing.true_labels.tolist() == [0, 1, 2]
    assert listing.correct.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "name",
    [
        "n9999999900000001.jpg",  # no class of Mini-ImageNet
        "n01704323_17.JPEG",  # ILSVRC's own name
        "5922767E5677AEF4.jpg",
        "5922767e5677aef.jpg",
        "all_images/n0170432300000001.jpg",
    ],
)
def test_other_file_names_are_refused(store: LocalDataStore, folder: Path, name: str) -> None:
    trees.red_mini_imagenet(folder)
    path = folder / TRAIN_LIST
    path.write_text(path.read_text() + f"{name} 0\n")
    message = refusal(small().listing, store)
    assert message.startswith(f"{path}: line 19: '{name}'")


@pytest.mark.parametrize("name", [TRAIN_LIST, TEST_LIST])
@pytest.mark.parametrize("how", [*trees.SPOILED, *trees.SPOILED_LABELS])
def test_spoiled_lists_are_refused(store: LocalDataStore, folder: Path, name: str, how: str) -> None:
    trees.red_mini_imagenet(folder)
    path = folder / name
    path.write_bytes((trees.SPOILED | trees.SPOILED_LABELS)[how](path.read_bytes()))
    assert refusal(small().listing, store).startswith(f"{path}: ")


@pytest.mark.parametrize("how", trees.HARMLESS)
def test_harmless_differences_do_not_matter(store: LocalDataStore, folder: Path, how: str) -> None:
    trees.red_mini_imagenet(folder)
    before = small().listing(store)
    for name in (TRAIN_LIST, TEST_LIST):
        (folder / name).write_bytes(trees.HARMLESS[how]((folder / name).read_bytes()))
    after = small().listing(store)
    assert after.all_paths() == before.all_paths()
    assert after.train.labels.tolist() == before.train.labels.tolist()


def test_a_folder_with_links_out_of_the_data_is_refused(store: LocalDataStore, folder: Path, tmp_path: Path) -> None:
    train = trees.red_mini_imagenet(folder)
    (tmp_path / "elsewhere.jpg").write_bytes(trees.jpeg(1))
    (folder / train[0][0]).unlink()
    (folder / train[0][0]).symlink_to(tmp_path / "elsewhere.jpg")
    assert refusal(small().prepare, store).startswith(str(folder / train[0][0]))


def test_classes() -> None:
    names = RedMiniImageNet.class_names
    assert len(names) == len(set(names)) == 100
    assert (names[0], names[13], names[99]) == ("triceratops", "American robin", "dishrag")


def test_needs_name_everything_with_its_source() -> None:
    needs = RedMiniImageNet("red-mini-imagenet").needs()
    assert {each.path for each in needs} == {
        "mini-imagenet/split/",
        "mini-imagenet-annotations.json",
        "all_images/",
        "all_validation/",
    }
    assert all("https://" in each.source and not each.download for each in needs)
    assert RedMiniImageNet("red-mini-imagenet").files() == ()


@pytest.mark.parametrize(("name", "size"), [("", 32), ("-84", 84), ("-299", 299)])
def test_suites(name: str, size: int) -> None:
    here = Path(sys.modules[RedMiniImageNet.__module__].__file__ or "").parents[1]
    (suite,) = read_suite_file(here / "suites" / f"red-mini-imagenet{name}.toml")
    assert (suite.noise.generator, suite.dataset) == ("own", "red-mini-imagenet")
    for task in suite.tasks:
        dataset = RedMiniImageNet("red-mini-imagenet", {**suite.data, **task.data})
        assert dataset.image_size == size
        assert float(dataset.options.level) == task.rate == float(task.name)
    assert [task.name for task in suite.tasks] == ["0.20", "0.40", "0.60", "0.80"]
