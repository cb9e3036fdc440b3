from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lnlbench.contracts.suite import Suite
from lnlbench.contracts.views import RandomCrop, RandomFlip
from lnlbench.errors import UsageError
from lnlbench.suitefiles import SIZE_LIMIT, read_suite_file

GOOD = """\
name = "toy-sym"
version = 2
title = "Toy, symmetric"
facts = "Nobody 2020"
dataset = "toy"
backbone = "small-cnn"
epochs = 3
seeds = [4, 5]
precision = "float32"
threads = 1
tasks = [{ name = "0.20", rate = 0.2 }, { name = "0.40", rate = 0.4 }]

[noise]
generator = "symmetric"
options = { count = "exact", replacement = "exclusive" }

[views.weak]
ops = [{ op = "crop", padding = 2 }, { op = "flip" }]

[variants.incl]
title = "Toy, inclusive"
noise.options = { replacement = "inclusive" }

[variants.hard]
title = "Toy, hard"
facts = "Somebody 2021"
tasks = [{ name = "0.90", rate = 0.9 }]
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "suite.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(folder: Path, text: str | bytes) -> str:
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        read_suite_file(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def test_a_suite_and_its_variants(tmp_path: Path) -> None:
    base, incl, hard = read_suite_file(write(tmp_path, GOOD))
    assert (base.name, incl.name, hard.name) == ("toy-sym", "toy-sym-incl", "toy-sym-hard")
    assert (base.variant_of, incl.variant_of, hard.variant_of) == (None, "toy-sym", "toy-sym")
    assert base.views["weak"].ops == (RandomCrop(padding=2), RandomFlip(probability=0.5))
    assert base.seeds == (4, 5)
    assert [(task.name, task.rate) for task in base.tasks] == [("0.20", 0.2), ("0.40", 0.4)]


def test_a_variant_says_only_what_differs(tmp_path: Path) -> None:
    base, incl, hard = read_suite_file(write(tmp_path, GOOD))
    same = set(Suite.model_fields) - {"name", "title", "variant_of"}
    assert incl.noise.options == {"count": "exact", "replacement": "inclusive"}
    assert incl.title == "Toy, inclusive"
    assert all(getattr(incl, field) == getattr(base, field) for field in same - {"noise"})
    assert [task.name for task in hard.tasks] == ["0.90"]
    assert hard.facts == "Somebody 2021"
    assert all(getattr(hard, field) == getattr(base, field) for field in same - {"tasks", "facts"})


def test_defaults_may_be_left_out(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^(seeds|precision|threads) = .*\n", "", GOOD)
    base = read_suite_file(write(tmp_path, text))[0]
    assert (base.seeds, base.precision, base.threads) == ((1, 2, 3), "auto", None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 3", "epochs = 0", "epochs: input should be greater than or equal to 1"),
        ("epochs = 3", 'epochs = "3"', "epochs: input should be a valid integer"),
        ("epochs = 3", "epochs = true", "epochs: input should be a valid integer"),
        ("epochs = 3", "epoch = 3", "epoch: unknown key; did you mean 'epochs'? (and 1 more)"),
        ('dataset = "toy"\n', "", "dataset: missing; expected: Dataset by name."),
        ("version = 2", "version = 2021-02-03", "toml: version: expected text, finite numbers, true, false"),
        ("rate = 0.2", "rate = nan", "toml: tasks: expected text, finite numbers, true, false"),
        ("noise.options = {", "noise.more = inf\nnoise.options = {", "variants.incl.noise: expected text, finite"),
        ("[variants.incl]", f"[{'a.' * 50_000}b]", "toml: a: expected text, finite numbers"),
        ("rate = 0.2", "rate = 1.5", "tasks.0.rate: input should be less than or equal to 1"),
        ("rate = 0.2", "rat = 0.2", "tasks.0.rat: unknown key; did you mean 'rate'?"),
        ('name = "0.20"', 'name = "a b"', "tasks.0.name: task name 'a b' has characters other than"),
        ('name = "0.40"', 'name = "0.2"', "tasks: level '0.20' is listed twice; expected different names"),
        ('name = "toy-sym"', 'name = "../up"', "name: suite name '../up' has characters other than"),
        ("seeds = [4, 5]", "seeds = [4, 4]", "seeds: expected at least one seed, all different, none negative"),
        ("seeds = [4, 5]", "seeds = []", "seeds: expected at least one seed"),
        ("seeds = [4, 5]", "seeds = [-1]", "seeds: expected at least one seed"),
        (
            'precision = "float32"',
            'precision = "flaot32"',
            "precision: input should be 'auto', 'float32' or 'bf16'",
        ),
        ('generator = "symmetric"', 'genrator = "symmetric"', "noise.genrator: unknown key; did you mean 'generator'?"),
        ('op = "crop"', 'op = "crap"', "views.weak.ops.0: input tag 'crap'"),
        ("[views.weak]", "[views.strong]", "views: views must define 'weak'"),
        ("[variants.incl]", "[varaints.incl]", "varaints: unknown key; did you mean 'variants' or 'variant_of'?"),
        ('title = "Toy, inclusive"\n', "", "variants.incl.title: missing; expected: A line for people."),
        ("noise.options = {", "noise.option = {", "variants.incl.noise.option: unknown key; did you mean 'options'?"),
        (
            "noise.options = {",
            "epochs = 7\nx = {",
            "variants.incl.epochs: unknown key; known: facts, noise, tasks, title",
        ),
        ("[variants.hard]", '[variants."a b"]', "variants.\"a b\".name: suite name 'toy-sym-a b' has characters"),
        ("[variants.hard]", '[variants."a\\nb"]', 'variants."a\\nb".name: suite name'),
        ("epochs = 3", "epochs = 3\nepochs = 4", "is not valid TOML: Cannot overwrite a value"),
        ("epochs = 3", f"epochs = {'9' * 5000}", "is not valid TOML"),
        ("epochs = 3", f"epochs = {'[' * 50_000}", "is not valid TOML"),
    ],
)
def test_mistakes_are_one_line_with_the_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert said in refused(tmp_path, GOOD.replace(old, new, 1))


def test_variants_must_be_tables(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[variants.incl]")]
    assert "variants: expected tables [variants.NAME]" in refused(tmp_path, "variants = 3\n" + text)
    assert "variants.incl: " in refused(tmp_path, "variants = { incl = 3 }\n" + text)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "is not UTF-8 text (byte 8)" in refused(tmp_path, b'name = "\xff"')
    assert "larger than 1 MiB; is it the right file?" in refused(tmp_path, b"#" * (SIZE_LIMIT + 1))
    assert read_suite_file(write(tmp_path, GOOD + "#" * (SIZE_LIMIT - len(GOOD))))[0].name == "toy-sym"


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read suite file .*absent\.toml: No such file"):
        read_suite_file(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match=r"cannot read suite file .*: Is a directory"):
        read_suite_file(tmp_path)


LINES = GOOD.splitlines()
SCRAPS = st.sampled_from(
    [
        *LINES,
        *["", "[", "]", "=", '"', "'''", "{", "}", "nan", "-1", "1e400", "true", "[[tasks]]", "[variants]"],
        *["[variants.x]", "variants = []", "[noise]", "noise = 1", "1979-05-27", '"\\u0000"', "\x00", "\u2028"],
        *['"" = 1', '"a\\nb" = 1'],
    ]
)


def suites_or_refusal(path: Path) -> tuple[tuple[Suite, ...], str]:
    """Return the suites, or the message; any other exception is a failure."""
    try:
        return read_suite_file(path), ""
    except UsageError as error:
        return (), str(error)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 25), SCRAPS | st.text(max_size=8)), max_size=4)
)
def test_mutated_files_give_suites_or_one_line(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for start, length, scrap in edits:
        text = text[:start] + scrap + text[start + length :]
    path = write(tmp_path, text.encode(errors="surrogatepass"))
    suites, message = suites_or_refusal(path)
    assert len({suite.name for suite in suites}) == len(suites)
    assert suites or (str(path) in message and len(message.splitlines()) == 1)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.sets(st.sampled_from(range(len(LINES)))), swapped=st.permutations(range(len(LINES))), shuffle=st.booleans()
)
def test_lines_dropped_or_shuffled_give_suites_or_one_line(
    tmp_path: Path, kept: set[int], swapped: list[int], shuffle: bool
) -> None:
    lines = [LINES[i] for i in (swapped if shuffle else range(len(LINES))) if i in kept]
    path = write(tmp_path, "\n".join(lines))
    suites, message = suites_or_refusal(path)
    assert suites or len(message.splitlines()) == 1
    assert {suite.name for suite in suites} <= {"toy-sym", "toy-sym-incl", "toy-sym-hard"}


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_one_line(tmp_path: Path, data: bytes) -> None:
    assert "suite file" in refused(tmp_path, data)
