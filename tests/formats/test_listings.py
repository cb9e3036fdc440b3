from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnlbench.errors import DataError
from lnlbench.formats.listings import folder_names, image_names, read_lines, read_listing, unsafe_path

HINT = "fetch it again"


def write(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_listing(path, hint=HINT, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(f"; {HINT}")
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    "content",
    [
        "a/1.jpg 0\nb/2.jpg 1\n",
        "a/1.jpg 0\nb/2.jpg 1",
        "a/1.jpg 0\r\nb/2.jpg 1\r\n",
        "\ufeffa/1.jpg 0\nb/2.jpg 1\n\n\n",
    ],
    ids=["plain", "no end of line", "Windows", "byte order mark"],
)
def test_paths_and_labels(tmp_path, content):
    found = read_listing(write(tmp_path, content), num_labels=2, hint=HINT)
    assert found.paths == ("a/1.jpg", "b/2.jpg")
    assert found.labels.tolist() == [0, 1]
    assert found.labels.dtype == np.int64


def test_paths_alone(tmp_path):
    found = read_listing(write(tmp_path, "a 1.jpg\n..b,2.jpg\n"), hint=HINT)
    assert found.paths == ("a 1.jpg", "..b,2.jpg")
    assert found.labels.tolist() == [-1, -1]


def test_blanks_in_a_path_and_another_separator(tmp_path):
    assert read_listing(write(tmp_path, "a b/c d.jpg 7\n"), num_labels=8, hint=HINT).paths == ("a b/c d.jpg",)
    found = read_listing(write(tmp_path, "a b.jpg\t1\n"), num_labels=2, separator="\t", hint=HINT)
    assert (found.paths, found.labels.tolist()) == (("a b.jpg",), [1])


def test_a_header_is_passed_over_if_there_is_one(tmp_path):
    for first in ("class_name/key\tverification_label\n", ""):
        path = write(tmp_path, first + "pie/1.jpg\t1\npie/2.jpg\t0\n")
        found = read_listing(path, num_labels=2, separator="\t", header=True, hint=HINT)
        assert found.paths == ("pie/1.jpg", "pie/2.jpg")
    path = write(tmp_path, "class_name/key\nbad\\1.jpg\n")
    assert "line 2:" in refusal(path, header=True)
    assert "nothing but a header" in refusal(write(tmp_path, "class_name\n"), header=True)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../a.jpg", "a/../b.jpg", "a/..", "..", ".", "./a.jpg", "a//b.jpg", "a/", "", "a\\b.jpg",
        "C:a.jpg", "a\x00.jpg", "a\x1b[2J.jpg", "a\r.jpg", "a\u2028b.jpg", "a\u202egpj.jpg", "a\x85.jpg",
    ],
)  # fmt: skip
def test_unsafe_paths_are_refused_with_their_line(tmp_path, name):
    assert unsafe_path(name)
    message = refusal(write(tmp_path, f"good.jpg 0\n{name} 1\nlast.jpg 0\n"), num_labels=2)
    assert "line 2: " in message
    assert "is not a plain relative path" in message


@pytest.mark.parametrize("label", ["", "-1", "2", "1.0", "x", "0x1", "1_0", "٣", "99999999999999999999"])
def test_labels_are_whole_numbers_in_range(tmp_path, label):
    message = refusal(write(tmp_path, f"a.jpg 1\nb.jpg {label}\n"), num_labels=2)
    assert "line 2: " in message
    assert "is not a label in 0..1" in message


def test_doubled_lines_name_both_places(tmp_path):
    path = write(tmp_path, "a.jpg 0\nb.jpg 0\na.jpg 1\n")
    assert "line 3: 'a.jpg' stands in line 1 already" in refusal(path, num_labels=2)
    assert read_listing(path, num_labels=2, unique=False, hint=HINT).paths == ("a.jpg", "b.jpg", "a.jpg")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"a.jpg 0\n\xff\xfe 1\n", "line 2: not text"),
        (b"a.jpg 0\n\nb.jpg 0\n", "line 2"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, what):
    assert what in refusal(write(tmp_path, content), num_labels=2)


def test_files_that_cannot_be_lists_are_not_read(tmp_path):
    assert "is missing" in refusal(tmp_path / "absent.txt")
    assert "not a regular file" in refusal(tmp_path)
    assert "expected at most 5" in refusal(write(tmp_path, "abc.jpg\n"), limit=5)


def test_lines_may_have_rare_characters(tmp_path):
    assert read_lines(write(tmp_path, "crème brûlée\nx\x0cy\n"), hint=HINT) == ["crème brûlée", "x\x0cy"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(["a/b.jpg", " ", "1", "\n", "\r\n", "/", "..", "\t"])).map(
    lambda parts: "".join(parts).encode()
))  # fmt: skip
def test_anything_gives_a_list_or_one_line(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("fuzz"), content)
    try:
        found = read_listing(path, num_labels=3, hint=HINT)
    except DataError as error:
        message = str(error)
    else:
        message = ""
        assert len(found.paths) == len(found.labels) == len(set(found.paths)) > 0
        assert ((found.labels >= 0) & (found.labels < 3)).all()
        assert not any(unsafe_path(each) for each in found.paths)
    assert message.isprintable()


def test_long_lists_are_read_fast(tmp_path):
    lines = [
        f"images/{number % 10}/{number % 97:02}/{number},{number * 7}.jpg {number % 14}" for number in range(100_000)
    ]
    path = write(tmp_path, "\n".join(lines))
    started = time.perf_counter()
    found = read_listing(path, num_labels=14, hint=HINT)
    assert time.perf_counter() - started < 5.0
    assert found.labels.tolist() == [number % 14 for number in range(100_000)]


def test_image_names_are_sorted_and_litter_is_passed_over(tmp_path):
    for name in ("b.jpg", "a.JPEG", "c.png", ".hidden", "Thumbs.db", "10.jpg", "9.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert image_names(tmp_path, hint=HINT) == ["10.jpg", "9.jpg", "a.JPEG", "b.jpg", "c.png"]


@pytest.mark.parametrize("name", ["notes.txt", "cat.gif", "cat.jpg.part", "folder"])
def test_anything_else_in_a_folder_of_images_is_refused(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"'{name}' is not called .jpg, .jpeg, .png; {HINT}"):
        image_names(tmp_path, hint=HINT)


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"a\x1b[2J.jpg", b"a\xff.jpg", b"a\\b.jpg"])
def test_file_names_that_could_harm_are_refused(tmp_path, name):
    (tmp_path / "x").mkdir()
    with open(bytes(tmp_path / "x") + b"/" + name, "wb"):
        pass
    with pytest.raises(DataError, match="characters that are not allowed") as caught:
        image_names(tmp_path / "x", hint=HINT)
    assert str(caught.value).isprintable()


def test_folders(tmp_path):
    for name in ("b", "a", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "c").write_bytes(b"")
    assert folder_names(tmp_path, hint=HINT) == ["a", "b"]
    for reader in (folder_names, image_names):
        with pytest.raises(DataError, match=f"cannot be read: No such file or directory; {HINT}"):
            reader(tmp_path / "absent", hint=HINT)
    with pytest.raises(DataError, match="there are no images in it"):
        image_names(tmp_path / "a", hint=HINT)
