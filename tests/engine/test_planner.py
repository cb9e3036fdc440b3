from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.contracts.method import Method, MethodConfig, MethodEntry
from lnlbench.contracts.suite import NoiseSettings, SuiteTask
from lnlbench.contracts.task import TaskInfo
from lnlbench.engine.data import find_dataset
from lnlbench.engine.own import own_suite
from lnlbench.engine.planner import Request, cell_folder, noise_spec, parse_overrides, parse_seeds, plan
from lnlbench.errors import LnlbenchError, PluginError, UnknownNameError, UsageError
from lnlbench.plugins import Catalogue, Provider, Registered, Registry
from lnlbench.records import CellSpec
from lnlbench.store import LocalDataStore

MakeCells = Callable[..., tuple[CellSpec, ...]]


class PickyConfig(MethodConfig):
    sizes: tuple[int, ...] = (1, 2)
    name: str = "x"
    limit: float | None = 0.5
    strong: bool = False


class Picky(Method[PickyConfig]):
    """Declines everything but 40 % of noise."""

    Config = PickyConfig

    @classmethod
    def preset(cls, task: TaskInfo) -> PickyConfig:
        task.ask_noise_rate()
        return PickyConfig(epochs=4, batch_size=8, backbone="small-cnn")

    @classmethod
    def supports(cls, task: TaskInfo) -> str | None:
        return None if task.task == "0.40" else "only 0.40 is of interest"

    def fit(self, task: Any, run: Any) -> None:
        raise NotImplementedError

    def predict(self, images: Any) -> Any:
        raise NotImplementedError


class BadPreset(Picky):
    @classmethod
    def preset(cls, task: TaskInfo) -> PickyConfig:
        raise ZeroDivisionError("three by nought")


class BadSupports(Picky):
    @classmethod
    def supports(cls, task: TaskInfo) -> str | None:
        raise KeyError("rate")


@pytest.fixture
def picky(registry: Registry) -> Registry:
    methods: Catalogue[MethodEntry] = Catalogue("method")
    for item in registry.methods:
        methods.add(item)
    for cls in (Picky, BadPreset, BadSupports):
        entry = MethodEntry(name=cls.__name__.lower(), target=f"{__name__}:{cls.__name__}", summary="For tests.")
        methods.add(Registered(entry, Provider("lnlbench-picky", "2.0")))
    return dataclasses.replace(registry, methods=methods)


def ids(cells: tuple[CellSpec, ...]) -> list[str]:
    return [cell.id for cell in cells]


def test_a_request_becomes_every_combination(make_cells: MakeCells) -> None:
    cells = make_cells(methods=["ce", "dividemix"], tasks=["0.20", "0.40"], seeds=[1, 2])
    combinations = [(cell.method.name, cell.task, cell.seed) for cell in cells]
    assert combinations == [
        (method, task, seed) for method in ("ce", "dividemix") for task in ("0.20", "0.40") for seed in (1, 2)
    ]
    assert len(set(ids(cells))) == 8


def test_what_is_not_asked_for_comes_from_the_suite(make_cells: MakeCells) -> None:
    cells = make_cells(tasks=[], seeds=[], epochs=None, limit_train=None)
    assert [(cell.task, cell.seed) for cell in cells] == [(t, s) for t in ("0.20", "0.40", "0.60") for s in (1, 2, 3)]
    for cell in cells:
        assert cell.reduced == ()
        assert cell.noise.seed == cell.seed
        assert cell.noise.rate == float(cell.task)
        assert (cell.dataset, cell.edition, cell.precision) == ("digits", "canonical", "float32")
        assert (cell.method.distribution, cell.method.changed) == ("lnlbench-ce", {})


def test_repeated_names_count_once(make_cells: MakeCells) -> None:
    assert ids(make_cells(methods=["ce", "ce"], suites=["digits-sym"] * 2, tasks=["0.4", "0.40"])) == ids(make_cells())


def test_a_cell_id_is_stable(make_cells: MakeCells) -> None:
    (cell,) = make_cells()
    assert len(cell.id) == 16
    assert make_cells()[0].id == cell.id
    assert CellSpec.model_validate(json.loads(json.dumps(cell.model_dump(mode="json")))).id == cell.id


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return {"float32": "bf16"}.get(value, value + "x")
        case None:
            return 1
        case list():
            return [*value, "x"]
        case dict():
            return {**value, "x": 1}
    raise AssertionError(f"no other value for {value!r}")


def fields(record: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a specification, those of its parts included."""
    found = []
    for key, value in record.items():
        found.append((*prefix, key))
        if key in ("method", "noise"):
            found += fields(value, (*prefix, key))
    return found


def test_every_field_matters_to_the_id(make_cells: MakeCells) -> None:
    (cell,) = make_cells()
    record = cell.model_dump(mode="json")
    seen = {cell.id}
    paths = [path for path in fields(record) if path not in {("method",), ("noise",)}]
    for path in paths:
        other = json.loads(json.dumps(record))
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = record["method"] if path == ("selector",) else changed(place[path[-1]])
        seen.add(CellSpec.model_validate(other).id)
    assert len(seen) == len(paths) + 1


def test_only_what_can_change_a_result_is_in_the_id(make_cells: MakeCells, tmp_path: Path) -> None:
    (cell,) = make_cells()
    # The same training in other words: options at their preset values, a limit above the set, a task by its number.
    full = make_cells(limit_train=None, epochs=None)
    assert ids(make_cells(limit_train=5_000, epochs=40)) == ids(full)
    assert ids(make_cells(overrides={"ce.momentum": "0.9"})) == [cell.id]
    assert ids(make_cells(tasks=["digits-sym@0.4"], noise_seed=1, precision="auto")) == [
        make_cells(precision="auto")[0].id
    ]
    assert not {"runs", "device", "threads", "jobs"} & set(cell.model_dump())
    assert cell_folder(tmp_path, cell) == tmp_path / "digits-sym" / "0.40" / "ce" / f"seed1-{cell.id}"


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [2]},
        {"noise_seed": 7},
        {"tasks": ["0.20"]},
        {"suites": ["digits-sym-incl"]},
        {"epochs": 3},
        {"limit_train": 151},
        {"precision": "bf16"},
        {"compile": True},
        {"deterministic": False},
        {"overrides": {"momentum": "0.8"}},
        {"methods": ["dividemix"]},
    ],
    ids=str,
)
def test_every_request_that_changes_a_result_changes_the_id(make_cells: MakeCells, changes: dict[str, Any]) -> None:
    assert not set(ids(make_cells())) & set(ids(make_cells(**changes)))


def test_a_frozen_noise_seed(make_cells: MakeCells) -> None:
    cells = make_cells(seeds=[1, 2], noise_seed=9)
    assert [(cell.seed, cell.noise.seed) for cell in cells] == [(1, 9), (2, 9)]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_seeds_one_by_one(seeds: list[int]) -> None:
    assert parse_seeds(", ".join(map(str, seeds))) == tuple(dict.fromkeys(seeds))


@given(st.integers(0, 1_000), st.integers(0, 999))
def test_seeds_by_range(first: int, length: int) -> None:
    assert parse_seeds(f"{first}-{first + length}") == tuple(range(first, first + length + 1))


@given(st.text(alphabet="0123456789,- x", max_size=8))
def test_seeds_are_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except UsageError as error:
        message = str(error)
    else:
        message = ""
        assert seeds
        assert len(set(seeds)) == len(seeds)
        assert min(seeds) >= 0
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", ",", "a", "1,", "-1", "3-1", "0-1000", "1.5", "1-2-3"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="seeds"):
        parse_seeds(text)


KEYS = st.text(alphabet="abcdefgh_.", min_size=1, max_size=8)
VALUES = st.text(alphabet="abc123=[]. ", max_size=8)


@given(st.dictionaries(KEYS, VALUES))
def test_overrides_are_read_back(pairs: dict[str, str]) -> None:
    parsed = parse_overrides([f"{key} = {value}" for key, value in pairs.items()])
    assert parsed == {key: value.strip() for key, value in pairs.items()}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], [" =1"], ["a=1", "a=2"], [""]])
def test_wrong_overrides(pairs: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_overrides(pairs)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ({"sizes": "[3, 4]"}, [3, 4]),
        ({"picky.sizes": "[]"}, []),
        ({"name": "a=b"}, "a=b"),
        ({"limit": "null"}, None),
        ({"limit": "1e-3"}, 0.001),
        ({"strong": "true"}, True),
        ({"batch_size": "16"}, 16),
    ],
    ids=str,
)
def test_overrides_have_the_type_of_their_option(
    make_cells: MakeCells, picky: Registry, override: dict[str, str], value: Any
) -> None:
    (cell,) = make_cells(picky, methods=["picky"], overrides=override, epochs=None)
    option = next(iter(override)).rpartition(".")[2]
    assert cell.method.config[option] == value
    assert type(cell.method.config[option]) is type(value)
    assert cell.method.changed == {option: value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"batch_size": "many"}, r"picky: option batch_size: .*integer.*'many'"),
        ({"batch_size": "2.5"}, r"picky: option batch_size: .*integer.*'2.5'"),
        ({"batch_size": "0"}, r"picky: option batch_size: .*greater than or equal to 1"),
        ({"limit": "small"}, r"picky: option limit: .*number"),
        ({"strong": "perhaps"}, r"picky: option strong: .*boolean"),
        ({"sizes": "[1, true_]"}, r"picky: option sizes"),
        ({"sizes": "[1, 2.5]"}, r"picky: option sizes.1: .*integer"),
        ({"name": "null"}, r"picky: option name: .*string"),
    ],
    ids=str,
)
def test_overrides_of_the_wrong_type(
    make_cells: MakeCells, picky: Registry, override: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_cells(picky, methods=["picky"], overrides=override)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_an_override_may_be_meant_for_one_method(make_cells: MakeCells) -> None:
    ce, dividemix = make_cells(methods=["ce", "dividemix"], overrides={"ce.momentum": "0.5"})
    assert ce.method.changed == {"momentum": 0.5, "epochs": 2}
    assert dividemix.method.changed == {"epochs": 2}
    for cell in make_cells(methods=["ce", "dividemix"], overrides={"momentum": "0.5"}):
        assert cell.method.config["momentum"] == 0.5


def test_unknown_options_are_refused_with_near_misses(make_cells: MakeCells) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown option of ce .* 'momentun'; did you mean 'momentum'"):
        make_cells(overrides={"momentun": "0.5"})
    with pytest.raises(UnknownNameError, match=r"unknown method .* 'dividemx'; did you mean 'dividemix'"):
        make_cells(methods=["dividemix"], overrides={"dividemx.alpha": "1"})
    with pytest.raises(UnknownNameError, match=r"unknown option of ce .* 'lambda_u'"):
        make_cells(methods=["ce", "dividemix"], overrides={"lambda_u": "1"})


@pytest.mark.parametrize(
    ("changes", "reduced"),
    [
        ({"limit_train": None, "epochs": None}, ()),
        ({"limit_train": None, "epochs": 41}, ()),
        ({"limit_train": None, "epochs": 39}, ("39 of 40 epochs",)),
        ({"epochs": None}, ("150 of 1437 training images",)),
        ({"epochs": None, "limit_train": 1_437}, ()),
        ({"epochs": None, "limit_train": None, "overrides": {"lr_drop_epoch": "1"}}, ()),
        (
            {"overrides": {"backbone": "cnn7"}},
            ("2 of 40 epochs", "backbone cnn7 instead of small-cnn", "150 of 1437 training images"),
        ),
    ],
    ids=str,
)
def test_why_a_run_is_reduced(make_cells: MakeCells, changes: dict[str, Any], reduced: tuple[str, ...]) -> None:
    (cell,) = make_cells(**changes)
    assert cell.reduced == reduced


def test_tasks_are_found_by_number_and_by_suite(make_cells: MakeCells) -> None:
    assert [cell.task for cell in make_cells(tasks=["0.4"])] == ["0.40"]
    cells = make_cells(suites=["digits-sym", "digits-asym"], tasks=["digits-sym@.2", "0.40"])
    assert [(cell.suite, cell.task) for cell in cells] == [
        ("digits-sym", "0.20"),
        ("digits-sym", "0.40"),
        ("digits-asym", "0.40"),
    ]
    cells = make_cells(suites=["digits-sym", "digits-asym"], tasks=["digits-asym@0.1"])
    assert [(cell.suite, cell.task) for cell in cells] == [("digits-asym", "0.10")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["c"]}, "unknown method 'c'"),
        ({"methods": ["dividmix"]}, "unknown method 'dividmix'; did you mean 'dividemix'"),
        ({"suites": ["digit-sym"]}, "unknown suite 'digit-sym'; did you mean 'digits-sym'"),
        ({"tasks": ["0.41"]}, "unknown task of suite 'digits-sym' '0.41'; did you mean"),
        ({"tasks": ["digits-asym@0.40"]}, "unknown suite .in --task. 'digits-asym'; did you mean 'digits-sym'"),
        ({"overrides": {"backbone": "smal-cnn"}}, "unknown backbone 'smal-cnn'; did you mean 'small-cnn'"),
        ({"limit_train": 0}, "--limit-train 0"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
    ids=str,
)
def test_wrong_requests(make_cells: MakeCells, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_cells(**changes)


def test_a_declined_task_is_skipped(picky: Registry, store: LocalDataStore) -> None:
    planned = plan(Request(methods=["picky", "ce"], suites=["digits-sym"], seeds=[1]), picky, store)
    assert [(cell.method.name, cell.task) for cell in planned.cells] == [
        ("picky", "0.40"),
        ("ce", "0.20"),
        ("ce", "0.40"),
        ("ce", "0.60"),
    ]
    assert [(skip.method, skip.suite, skip.task, skip.reason) for skip in planned.skipped] == [
        ("picky", "digits-sym", task, "only 0.40 is of interest") for task in ("0.20", "0.60")
    ]


def test_nothing_to_run(picky: Registry, store: LocalDataStore) -> None:
    with pytest.raises(UsageError, match=r"nothing to run: picky on digits-sym@0.20: only 0.40 is of interest"):
        plan(Request(methods=["picky"], suites=["digits-sym"], tasks=["0.20"]), picky, store)


def test_what_a_preset_asked_is_written_down(make_cells: MakeCells, picky: Registry) -> None:
    assert make_cells(picky, methods=["picky"])[0].method.asked == ("noise rate",)
    assert make_cells()[0].method.asked == ()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("badpreset", "preset.. of 'badpreset' .lnlbench-picky 2.0. failed: ZeroDivisionError: three by nought"),
        ("badsupports", "supports.. of 'badsupports' .lnlbench-picky 2.0. failed: KeyError: 'rate'"),
    ],
)
def test_a_method_that_fails_while_planning_is_named(
    make_cells: MakeCells, picky: Registry, method: str, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        make_cells(picky, methods=[method])


def test_noise_is_defined_completely(registry: Registry) -> None:
    suite = registry.suites.find("digits-sym").entry
    spec = noise_spec(registry, suite, suite.task("0.4"), 5)
    assert (spec.generator, spec.rate, spec.seed) == ("symmetric", 0.4, 5)
    assert set(spec.options) == set(registry.noise.find("symmetric").entry.options)
    assert spec.variant == "symmetric(count=exact,replacement=exclusive)"


def test_errors_of_planning_are_those_of_the_command_line() -> None:
    assert issubclass(UsageError, LnlbenchError)
    assert UsageError("x").exit_code == UnknownNameError("a", "b", []).exit_code == 2
    assert PluginError("x").exit_code == 1


def test_levels_with_a_sign_of_their_own(make_cells: MakeCells) -> None:
    for task in ("sym@0.50", "digits-openset@sym@0.50"):
        (cell,) = make_cells(suites=["digits-openset"], tasks=[task])
        assert (cell.task, cell.known_classes, cell.noise.rate) == ("sym@0.50", 8, 0.5)
        assert cell.noise.options == {"count": "exact", "flip": "symmetric", "stream": "lnlbench"}
    with pytest.raises(UnknownNameError, match="unknown suite \\(in --task\\) 'sim'"):
        make_cells(suites=["digits-openset"], tasks=["sim@0.50"])


def test_test_sets_can_be_asked_for_one_by_one(make_cells: MakeCells) -> None:
    def sets(*tasks: str) -> tuple[tuple[str, ...], Any]:
        (cell,) = make_cells(suites=["mini-webvision"], tasks=tasks, limit_train=None)
        return cell.test_sets, cell.data_options["test_sets"]

    both = ("webvision", "ilsvrc12")
    assert sets() == sets("full") == sets("ilsvrc12", "webvision") == (both, list(both))
    assert sets("ilsvrc12") == (("ilsvrc12",), ["ilsvrc12"])


def test_labels_that_are_not_drawn_have_no_seed(make_cells: MakeCells) -> None:
    cells = make_cells(suites=["cifar10n"], tasks=["worst"], seeds=[1, 2])
    assert [(cell.task, cell.noise.seed, cell.noise.rate) for cell in cells] == [("worse", None, None)] * 2
    assert cells[0].noise.options == {"labels": "worse_label"}
    with pytest.raises(UsageError, match="--noise-seed: the labels of cifar10n@worse are not drawn"):
        make_cells(suites=["cifar10n"], tasks=["worse"], noise_seed=1)


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ({"generator": "symmetric", "options": {"cuont": "exact"}}, r"unknown option of symmetric noise .* 'cuont'"),
        ({"generator": "symmetric", "options": {"count": "exakt"}}, "did you mean 'exact'"),
        ({"generator": "symetric"}, "unknown noise 'symetric'"),
    ],
)
def test_switches_of_the_noise_are_checked_before_anything_runs(
    noise: dict[str, Any], said: str, registry: Registry
) -> None:
    suite = registry.suites.find("digits-sym").entry
    wrong = suite.model_copy(update={"noise": NoiseSettings.model_validate(noise)})
    with pytest.raises(LnlbenchError, match=said):
        noise_spec(registry, wrong, suite.task("0.40"), 1)


def test_drawn_noise_needs_a_rate(registry: Registry) -> None:
    suite = registry.suites.find("digits-sym").entry
    with pytest.raises(UsageError, match="digits-sym@full: 'symmetric' noise is drawn and needs a rate"):
        noise_spec(registry, suite, SuiteTask(name="full"), 1)


def test_a_suite_of_the_request_itself(make_cells: MakeCells, registry: Registry, store: LocalDataStore) -> None:
    dataset = find_dataset(registry, "digits", {}, store)
    suite = own_suite(dataset, {}, "symmetric", {"count": "bernoulli"}, [0.2, 0.125])
    assert [task.name for task in suite.tasks] == ["0.20", "0.125"]
    cells = make_cells(suites=[], own_suites=[suite], tasks=[])
    assert {(cell.suite, cell.task) for cell in cells} == {(suite.name, "0.20"), (suite.name, "0.125")}
    assert cells[0].noise.options == {"count": "bernoulli", "replacement": "exclusive"}
    others = [
        own_suite(dataset, {}, "symmetric", {}, [0.2]),
        own_suite(dataset, {}, "symmetric", {"count": "exact"}, [0.2]),
        own_suite(dataset, {}, "pair", {}, [0.2]),
        own_suite(dataset, {}, "own", {}, []),
    ]
    assert len({suite.name, *(other.name for other in others)}) == 5, "each has a leaderboard of its own"
    assert others[-1].tasks == (SuiteTask(name="full"),)
    assert len(own_suite(dataset, {}, "x" * 80, {}, [0.2]).name) == 64
    with pytest.raises(UsageError, match=r"--rate 1\.5 is not between 0 and 1"):
        own_suite(dataset, {}, "symmetric", {}, [1.5])


def test_who_may_select_for_whom(picky: Registry, store: LocalDataStore) -> None:
    def ask(method: str, selector: str, **changes: Any) -> CellSpec:
        request = Request(
            methods=[method], suites=["digits-sym"], tasks=["0.40"], seeds=[1], select=selector, **changes
        )
        return plan(request, chosen, store).cells[0]

    def entry(name: str, **changes: Any) -> Registered[MethodEntry]:
        made = MethodEntry(name=name, target=f"{__name__}:Picky", summary="For tests.", **changes)
        return Registered(made, Provider("lnlbench-picky", "2.0"))

    methods: Catalogue[MethodEntry] = Catalogue("method")
    for item in (*picky.methods, entry("chooser", selects=True), entry("heir", starts_from_selection=True)):
        methods.add(item)
    chosen = dataclasses.replace(picky, methods=methods)

    plain, cell = ask("heir", "chooser"), ask("heir", "chooser", overrides={"chooser.limit": "0.1"}, epochs=3)
    assert cell.selector is not None
    assert (cell.selector.name, cell.selector.config["limit"], cell.selector.config["epochs"]) == ("chooser", 0.1, 4)
    assert (cell.method.config["limit"], cell.method.config["epochs"]) == (0.5, 3)
    assert plain.id != cell.id
    with pytest.raises(UsageError, match="method 'picky' cannot start from another method's selection"):
        ask("picky", "chooser")
    with pytest.raises(UsageError, match=r"'heir' selects nothing before training; those that do: .*chooser"):
        ask("heir", "heir")
    with pytest.raises(UnknownNameError, match="unknown method 'choser'; did you mean 'chooser'"):
        ask("heir", "choser")
    with pytest.raises(UnknownNameError, match="option of chooser"):
        ask("heir", "chooser", overrides={"chooser.limt": "1"})
