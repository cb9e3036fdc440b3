from __future__ import annotations

import hashlib
import os

import pytest

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason
from lnlbench.formats.verify import check_digest, read_file, read_verified, sha256, verify_file

DATA = b"some bytes" * 100
MD5 = "md5:" + hashlib.md5(DATA, usedforsecurity=False).hexdigest()
SHA = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


def message(call, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("digest", [MD5, SHA, SHA.replace("sha256:", "sha256:").upper().replace("SHA256", "sha256")])
def test_the_right_file_is_handed_out(file, digest):
    assert read_verified(file, digest, size=len(DATA)) == DATA
    verify_file(file, digest, size=len(DATA))
    check_digest(DATA, digest, "x", hint="")


@pytest.mark.parametrize("digest", [MD5, SHA])
def test_a_wrong_digest_names_file_found_expected_and_the_way_out(file, digest):
    file.write_bytes(DATA[:-1] + b"X")
    algorithm, expected = digest.split(":")
    found = hashlib.new(algorithm, file.read_bytes()).hexdigest()
    for check in (read_verified, verify_file):
        text = message(check, file, digest, size=len(DATA), hint="ask the oracle")
        for part in (str(file), algorithm, expected, found, "ask the oracle"):
            assert part in text


def test_a_wrong_size_is_said_before_the_digest(file):
    for check in (read_verified, verify_file):
        assert "1,000 bytes, expected 999" in message(check, file, SHA, size=999)


def test_what_is_no_file_is_refused_without_waiting(tmp_path, file):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path, what in (
        (tmp_path / "absent", "is missing"),
        (tmp_path, "not a regular file"),
        (pipe, "not a regular file"),
        (dangling, "not a regular file"),
    ):
        assert what in message(read_verified, path, SHA)
        assert what in message(verify_file, path, SHA)
        assert what in message(read_file, path, hint="h")


def test_a_link_to_a_good_file_is_fine(tmp_path, file):
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_verified(link, SHA) == DATA


def test_too_large_a_file_is_not_read(tmp_path):
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as handle:
        handle.truncate(2**40)
    assert "expected at most 100" in message(read_file, sparse, limit=100, hint="h")
    assert "expected at most" in message(read_verified, sparse, SHA)


def test_an_unreadable_file_is_one_line(file, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "open", refuse)
    assert "cannot be read: Permission denied" in message(read_file, file, hint="h")
    assert "cannot be read: Permission denied" in message(verify_file, file, SHA)


@pytest.mark.parametrize("digest", ["", "md5", "md5:", "crc32:1234", "abcdef"])
def test_a_malformed_digest_is_a_mistake_of_the_caller(file, digest):
    with pytest.raises(ValueError, match="digest"):
        check_digest(DATA, digest, "x", hint="")


def test_sha256_and_reason():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert reason(ValueError()) == "ValueError"
    assert reason("a\nb\x1b[31m") == "a b\\x1b[31m"
    assert len(reason("x" * 1000)) == 160
