"""Several test sets, top-5, a clean validation set, samples of unknown truth: what records say of them must fit."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lnlbench.errors import DataError
from lnlbench.leaderboard import bundle
from lnlbench.leaderboard.aggregate import summarise
from lnlbench.leaderboard.content import MAIN, parse_metrics, parse_predictions, parse_record
from lnlbench.records import CellSpec, NoiseSpec, cell_id

Run = Callable[..., Path]
Spec = Callable[..., CellSpec]
Archive = Callable[..., bytes]

OWN = NoiseSpec(generator="own", options={}, rate=None, seed=None)
T = TypeVar("T")
SETS = ("webvision", "ilsvrc12")
PROPERTY = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Files:
    """The files of a run, to be falsified."""

    record: Any
    lines: list[Any]
    arrays: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Files:
        with np.load(folder / "predictions.npz") as arrays:
            return cls(
                json.loads((folder / "result.json").read_text()),
                [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
                {name: arrays[name].copy() for name in arrays.files},
            )

    def write(self, folder: Path) -> None:
        # Whoever falsifies a specification gives it its new id as well.
        self.record["cell"] = cell_id(self.record["spec"])
        (folder / "result.json").write_text(json.dumps(self.record))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in self.lines))
        target = io.BytesIO()
        np.savez(target, **self.arrays)
        (folder / "predictions.npz").write_bytes(target.getvalue())


def assert_refused(folder: Path, board: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        bundle.add(folder, board)
    assert str(caught.value).isprintable()
    assert not board.exists()


@pytest.fixture
def rich(run: Run, spec: Spec) -> Path:
    """A run of twenty epochs with two test sets, top-5 and a validation set, on labels that came with the data."""
    full = spec(task="full", noise=OWN, test_sets=SETS, data_options={"size": 32}, config={"epochs": 20})
    return run(full, top5=True, validation=True)


def test_everything_there_can_be_passes(rich: Path, board: Path) -> None:
    files = Files.of(rich)
    # The best epochs on the main test set, the other one and the validation set, then the final ten.
    assert files.arrays["epochs"].tolist() == [0, 1, 3, *range(10, 20)]
    assert set(files.arrays) == {
        *("epochs", "test_labels", "predictions", "top5"),
        *("ilsvrc12.test_labels", "ilsvrc12.predictions", "ilsvrc12.top5"),
    }
    folder = bundle.add(rich, board).folder
    bundle.verify(folder)
    record = bundle.read(folder)
    assert record.scores is not None
    assert record.best_val_epoch == 3
    assert record.scores.best_val == files.lines[3]["test_accuracy"]
    other = record.further_scores["ilsvrc12"]
    assert (other.best_epoch, other.best_val) == (1, files.lines[3]["accuracies"]["ilsvrc12"])
    assert other.top5_best == files.lines[1]["accuracies"]["ilsvrc12.top5"]


def test_a_change_on_any_test_set_is_a_disagreement(rich: Path, board: Path, tmp_path: Path) -> None:
    added = bundle.add(rich, board)
    assert bundle.add(rich, board).agrees is True
    files = Files.of(rich)
    image = np.flatnonzero(files.arrays["ilsvrc12.predictions"][-1] != files.arrays["ilsvrc12.test_labels"])[0]
    # From one wrong class to another: no score moves.
    wrong = files.arrays["ilsvrc12.predictions"][-1, image]
    files.arrays["ilsvrc12.predictions"][-1, image] = (wrong + 1) % 4
    files.write(rich)
    assert bundle.add(rich, board).agrees is False
    bundle.verify(added.folder)


def test_a_diverged_run_has_no_scores_on_any_test_set(run: Run, spec: Spec, board: Path) -> None:
    folder = run(spec(test_sets=SETS), diverged=True)
    record = bundle.read(bundle.add(folder, board).folder)
    assert (record.scores, record.further_scores) == (None, {})
    raw = json.loads((folder / "result.json").read_text())
    raw["further_scores"] = {"ilsvrc12": {"last10": 0.9, "last": 0.9, "best": 0.9, "best_epoch": 0}}
    (folder / "result.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="further_scores is about ilsvrc12, not nothing"):
        bundle.add(folder, board)


Edit = Callable[[Files], object]


def each_line(change: Callable[[Any], object]) -> Edit:
    return lambda files: [change(line["accuracies"]) for line in files.lines]


EDITS: dict[str, tuple[Edit, str]] = {
    "best_val score": (
        lambda files: files.record["scores"].update(best_val=1.0),
        r"result.json: scores.best_val is 1, recomputed",
    ),
    "best_val score gone": (
        lambda files: files.record["scores"].update(best_val=None),
        "scores.best_val is missing, recomputed it is 0",
    ),
    "best_val epoch": (
        lambda files: files.record.update(best_val_epoch=0),
        "best_val_epoch is 0, the metrics say 3",
    ),
    "best_val epoch gone": (
        lambda files: files.record.update(best_val_epoch=None),
        "best_val_epoch is None, the metrics say 3",
    ),
    "validation accuracy": (
        lambda files: files.lines[7]["accuracies"].update(validation=1.0),
        "best_val_epoch is 3, the metrics say 7",
    ),
    "validation accuracies gone": (
        each_line(lambda accuracies: accuracies.pop("validation")),
        "line 1: accuracies and predictions disagree about validation",
    ),
    "validation set denied": (
        lambda files: files.record["data"].update(num_validation=0),
        "disagree about validation",
    ),
    "accuracy on a further test set": (
        lambda files: files.lines[15]["accuracies"].update(ilsvrc12=0.01),
        "metrics.jsonl: ilsvrc12 of epoch 15 is 0.01, recomputed",
    ),
    "a better epoch on a further test set": (
        lambda files: files.lines[7]["accuracies"].update(ilsvrc12=1.0),
        r"holds epochs \[0, 1, 3, 10.* ask for \[0, 3, 7, 10",
    ),
    "one accuracy gone": (
        lambda files: files.lines[4]["accuracies"].pop("ilsvrc12"),
        "line 5: accuracies and predictions disagree about ilsvrc12",
    ),
    "an accuracy more": (
        lambda files: files.lines[4]["accuracies"].update(imagenet=0.5),
        "line 5: .* disagree about imagenet",
    ),
    "no fraction": (
        lambda files: files.lines[4]["accuracies"].update(ilsvrc12=1.5),
        "line 5: ilsvrc12 is 1.5, not a fraction",
    ),
    "no number": (
        lambda files: files.lines[4]["accuracies"].update(top5="0.5"),
        "line 5: top5 is '0.5', not a fraction",
    ),
    "no object": (
        lambda files: files.lines[4].update(accuracies=[0.5]),
        "line 5: accuracies is not an object",
    ),
    "top-5 accuracy": (
        lambda files: files.lines[15]["accuracies"].update(top5=1.0),
        "top5 of epoch 15 is 1, recomputed",
    ),
    "top-5 array": (
        lambda files: files.arrays.update(top5=np.ones_like(files.arrays["top5"])),
        r"top5 of epoch \d is 0\.\d+, recomputed it is 1",
    ),
    "top-5 array of a further test set": (
        lambda files: files.arrays.update({"ilsvrc12.top5": np.ones_like(files.arrays["ilsvrc12.top5"])}),
        "ilsvrc12.top5 of epoch",
    ),
    "top-5 array gone": (
        lambda files: files.arrays.pop("top5"),
        "line 1: accuracies and predictions disagree about top5",
    ),
    "top-5 as numbers": (
        lambda files: files.arrays.update(top5=files.arrays["top5"].astype(np.uint8)),
        r"top5 is uint8 \(13, 50\), not 2-dimensional booleans",
    ),
    "top-5 cut": (
        lambda files: files.arrays.update(top5=files.arrays["top5"][:, 1:]),
        r"top5 has shape \(13, 49\), predictions \(13, 50\)",
    ),
    **{
        f"{place} {score}": (
            (lambda files, place=place, score=score: scores_in(files, place).update({score: 0.123})),
            f"{score} is 0.123, recomputed",
        )
        for place in ("main", "further")
        for score in ("last10", "last", "best", "best_val", "top5_last10", "top5_last", "top5_best")
    },
    "further best epoch": (
        lambda files: scores_in(files, "further").update(best_epoch=0),
        "further_scores.ilsvrc12.best_epoch is 0, recomputed it is 1",
    ),
    "an epoch that overflows": (
        lambda files: scores_in(files, "further").update(best_epoch=10**400),
        "further_scores.ilsvrc12.best_epoch is 1000",
    ),
    "a score that overflows": (
        lambda files: scores_in(files, "further").update(best=10**400),
        "result.json",
    ),
    "further scores gone": (
        lambda files: files.record["further_scores"].clear(),
        "further_scores is about nothing, not ilsvrc12",
    ),
    "further scores renamed": (
        lambda files: files.record.update(further_scores={"imagenet": files.record["scores"]}),
        "further_scores is about imagenet, not ilsvrc12",
    ),
    "test set added": (
        lambda files: files.record["spec"]["test_sets"].append("third"),
        "further_scores is about ilsvrc12, not ilsvrc12, third",
    ),
    "test set taken away": (
        lambda files: files.record["spec"]["test_sets"].pop(),
        "further_scores is about ilsvrc12, not nothing",
    ),
    "test set twice": (
        lambda files: files.record["spec"].update(test_sets=["webvision", "webvision"]),
        "spec.test_sets: webvision, webvision cannot be told apart",
    ),
    "test set like a top-5": (
        lambda files: files.record["spec"].update(test_sets=["a", "b", "b.top5"]),
        "cannot be told apart",
    ),
    "test set like the validation set": (
        lambda files: files.record["spec"].update(test_sets=["webvision", "validation"]),
        "cannot be told apart",
    ),
    "hostile test set": (
        lambda files: files.record["spec"].update(test_sets=["webvision", "\x1b[31m"]),
        "cannot be the name of a test set",
    ),
    "further images": (
        lambda files: files.record["data"].update(num_further_test={"ilsvrc12": 31}),
        "ilsvrc12.test_labels: 30 of them, the record says 31",
    ),
    "further images gone": (
        lambda files: files.record["data"].update(num_further_test={}),
        "data.num_further_test is about nothing, not ilsvrc12",
    ),
    "further labels": (
        lambda files: files.arrays.update({"ilsvrc12.test_labels": np.roll(files.arrays["ilsvrc12.test_labels"], 1)}),
        "ilsvrc12",
    ),
    "further labels out of range": (
        lambda files: files.arrays["ilsvrc12.test_labels"].__setitem__(0, 9),
        r"ilsvrc12.test_labels has a class outside 0..3",
    ),
    "further predictions out of range": (
        lambda files: files.arrays["ilsvrc12.predictions"].__setitem__((0, 0), 9),
        r"ilsvrc12.predictions has a class outside 0..3",
    ),
    "further predictions cut": (
        lambda files: files.arrays.update({"ilsvrc12.predictions": files.arrays["ilsvrc12.predictions"][1:]}),
        r"ilsvrc12.predictions has shape \(12, 30\) for 13 epochs, 30 test labels",
    ),
    "further predictions as fractions": (
        lambda files: files.arrays.update({"ilsvrc12.predictions": files.arrays["ilsvrc12.predictions"] / 1}),
        r"ilsvrc12.predictions is float64 \(13, 30\), not 2-dimensional integers",
    ),
    "further predictions gone": (
        lambda files: files.arrays.pop("ilsvrc12.predictions"),
        "predictions.npz: holds",
    ),
    "an array more": (
        lambda files: files.arrays.update({"ilsvrc12.epochs": files.arrays["epochs"]}),
        "predictions.npz: holds",
    ),
    "no epoch": (
        lambda files: files.arrays.update(
            {name: array[:0] for name, array in files.arrays.items() if not name.endswith("labels")}
        ),
        r"holds epochs \[\]",
    ),
}


def scores_in(files: Files, place: str) -> dict[str, Any]:
    scores: dict[str, Any] = files.record["scores"] if place == "main" else files.record["further_scores"]["ilsvrc12"]
    return scores


@pytest.mark.parametrize("what", EDITS)
def test_whatever_is_falsified_is_noticed(rich: Path, board: Path, what: str) -> None:
    edit, message = EDITS[what]
    files = Files.of(rich)
    edit(files)
    files.write(rich)
    assert_refused(rich, board, message)


@PROPERTY
@given(st.data())
def test_runs_of_any_shape_pass_and_any_moved_number_is_noticed(
    run_at: Callable[..., Path], spec: Spec, data: st.DataObject
) -> None:
    sets = data.draw(st.sampled_from([(), ("one",), ("one", "two"), ("a", "b", "c.d")]))
    top5, validation = data.draw(st.booleans()), data.draw(st.booleans())
    epochs = data.draw(st.integers(1, 15))
    with tempfile.TemporaryDirectory() as place:
        cell = spec(test_sets=sets, config={"epochs": epochs})
        folder = run_at(Path(place), cell, top5=top5, validation=validation)
        content = bundle.load_run(folder)
        assert list(content.predictions) == [MAIN, *sets[1:]]
        files = Files.of(folder)
        name = data.draw(st.sampled_from(sorted(set(files.arrays) - {"epochs"})))
        array = files.arrays[name]
        where = data.draw(st.tuples(*(st.integers(0, size - 1) for size in array.shape)))
        if name.endswith("predictions"):
            label = files.arrays[name.replace("predictions", "test_labels")][where[1]]
            array[where] = (label + 1) % 4 if array[where] == label else label
        elif name.endswith("top5"):
            array[where] = not array[where]
        else:
            array[where] = 4
        files.write(folder)
        with pytest.raises(DataError):
            bundle.load_run(folder)


# Records from before there were several test sets, validation sets or labels of unknown truth.


def test_records_without_the_newer_fields_are_read_and_keep_their_row(run: Run, board: Path) -> None:
    folder = run()
    files = Files.of(folder)
    for part, names in (
        ("", ("further_scores", "best_val_epoch")),
        ("spec", ("selector", "data_options", "known_classes", "test_sets")),
        ("data", ("num_further_test", "num_validation")),
        ("noise", ("num_known", "num_ood")),
        ("scores", ("best_val", "top5_last10", "top5_last", "top5_best")),
    ):
        for name in names:
            del (files.record[part] if part else files.record)[name]
    files.write(folder)
    added = bundle.add(folder, board)
    assert added.cell == "bd6ef80f68a66727"
    bundle.verify(added.folder)
    record = bundle.read(added.folder)
    assert (record.noise.num_known, record.noise.num_ood, record.best_val_epoch) == (40, 0, None)
    (row,) = summarise([record])
    assert row.protocol_key == "95db4953"


# Noise of which not everything is known.


def known(files: Files, **noise: Any) -> None:
    files.record["noise"].update(noise)


def test_unknown_truth_is_no_noise_rate(run: Run, board: Path) -> None:
    folder = run()
    files = Files.of(folder)
    known(files, num_known=0, num_changed=0, realised_rate=None, confusion=None)
    files.write(folder)
    record = bundle.read(bundle.add(folder, board).folder, confusion=False)
    assert (record.noise.confusion, record.noise.realised_rate) == (None, None)


@pytest.mark.parametrize(
    "noise",
    [
        # Right and wrong labels are known, true classes are not.
        {"num_known": 20, "num_changed": 5, "num_ood": 0, "realised_rate": 0.25, "confusion": None},
        # Of the right ones alone the true class is known.
        {"num_known": 20, "num_changed": 5, "realised_rate": 0.25, "confusion": np.diag([5, 5, 5, 0]).tolist()},
        # Six classes, four of them in the task.
        {
            "num_known": 40,
            "num_changed": 20,
            "num_ood": 15,
            "realised_rate": 0.5,
            "confusion": [[5, 5, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5], [2, 3, 0, 0], [0, 0, 5, 5]],
        },
        # Whether they are right is known of more than what they truly are.
        {
            "num_known": 40,
            "num_changed": 10,
            "num_ood": 4,
            "realised_rate": 0.25,
            "confusion": [[5, 5, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5], [0, 0, 1, 0]],
        },
    ],
)
def test_partly_known_noise_passes(run: Run, board: Path, noise: dict[str, Any]) -> None:
    folder = run()
    files = Files.of(folder)
    known(files, **noise)
    files.write(folder)
    added = bundle.add(folder, board)
    bundle.verify(added.folder)
    kept = bundle.read(added.folder).noise.model_dump()
    assert {name: kept[name] for name in noise} == noise


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"num_known": 41, "realised_rate": 30 / 41}, "of 40 training samples 41 known"),
        ({"num_known": 29, "realised_rate": 1.0}, "29 known, of these 30 changed"),
        ({"num_known": 38, "realised_rate": 30 / 38}, "do not fit the 0, 30, 40 of its confusion matrix"),
        ({"num_changed": 31, "realised_rate": 31 / 40}, "0 out of distribution, 31 changed, 40 known do not fit"),
        ({"num_changed": -1, "realised_rate": -1 / 40}, "of these -1 changed"),
        ({"num_ood": 31}, "of these 31 out of distribution cannot be"),
        ({"num_ood": 1}, "1 out of distribution, 30 changed, 40 known do not fit the 0"),
        ({"num_ood": -1}, "of these -1 out of distribution"),
        ({"realised_rate": None}, "noise.realised_rate is missing, recomputed it is 0.75"),
        ({"num_known": 0, "num_changed": 0, "confusion": None}, "realised_rate is 0.75, recomputed it is missing"),
        ({"confusion": [[8, 1, 1, 0]] * 3}, "not a table of counts with 4 columns"),
        ({"confusion": [[8, 1, 1]] * 4}, "not a table of counts with 4 columns"),
        ({"confusion": [[8, 1, 2, -1]] * 4}, "not a table of counts with 4 columns"),
        ({"confusion": []}, "not a table of counts with 4 columns"),
        ({"confusion": [[8, 1, 1, 0]] * 5}, "do not fit the 10, 40, 50"),
    ],
)
def test_noise_that_contradicts_itself_is_refused(run: Run, board: Path, noise: dict[str, Any], message: str) -> None:
    folder = run()
    files = Files.of(folder)
    # The matrix of every run here: ten samples in each class, of which eight, one, one and none stay.
    assert files.record["noise"]["confusion"] == [[8, 1, 1, 0]] * 4
    known(files, **noise)
    files.write(folder)
    assert_refused(folder, board, message)


def test_a_run_without_training_samples_is_refused(run: Run, board: Path) -> None:
    folder = run()
    files = Files.of(folder)
    known(files, num_known=0, num_changed=0, realised_rate=None, confusion=None)
    files.record["data"]["num_train"] = 0
    files.write(folder)
    assert_refused(folder, board, "of 0 training samples")


# Parsers of foreign text.


def outcome(read: Callable[[], T]) -> T | str:
    """Return what was read, or why it was refused."""
    try:
        return read()
    except DataError as error:
        return str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@PROPERTY
@given(data=st.data())
def test_any_value_in_a_record_is_read_or_refused_in_one_line(rich: Path, data: st.DataObject) -> None:
    node = root = Files.of(rich).record
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(json_values)
    root["cell"] = cell_id(root["spec"])
    record = outcome(lambda: parse_record(json.dumps(root).encode(), Path("run.json")))
    if isinstance(record, str):
        assert record.isprintable()
    else:
        assert summarise([record])[0].suite == record.spec.suite


@PROPERTY
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3) | json_values, json_values)
def test_any_accuracies_are_read_or_refused_in_one_line(accuracies: Any, selection: Any) -> None:
    line = {"epoch": 0, "test_accuracy": 0.5, "accuracies": accuracies, "selection": selection}
    epochs = outcome(lambda: parse_metrics(f"{json.dumps(line)}\n".encode(), Path("metrics.jsonl")))
    if isinstance(epochs, str):
        assert epochs.isprintable()
    else:
        assert all(0 <= each <= 1 for each in epochs[0].accuracies.values())


@PROPERTY
@given(st.integers(0, 2**32))
def test_a_damaged_archive_is_read_or_refused_in_one_line(rich: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray((rich / "predictions.npz").read_bytes())
    for _ in range(rng.randrange(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    predictions = outcome(lambda: parse_predictions(bytes(data), Path("predictions.npz"), ["ilsvrc12"]))
    if isinstance(predictions, str):
        assert predictions.isprintable()
    else:
        assert list(predictions) == [MAIN, "ilsvrc12"]


def test_further_arrays_are_not_read_unless_asked_for(archive: Archive) -> None:
    labels, epochs, classes = np.zeros(3, np.uint8), np.arange(2), np.zeros((2, 3), np.uint8)
    plain = archive(labels, epochs, classes)
    assert list(parse_predictions(plain, Path("x"))) == [MAIN]
    with pytest.raises(DataError, match=r"x: holds .*, not epochs, other\.predictions, other\.test_labels"):
        parse_predictions(plain, Path("x"), ["other"])
    more = archive(labels, epochs, classes, **{"other.test_labels": labels, "other.predictions": classes})
    with pytest.raises(DataError, match="x: holds"):
        parse_predictions(more, Path("x"))
