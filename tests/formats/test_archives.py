from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnlbench.errors import DataError
from lnlbench.formats.archives import gunzip, read_members

LIMITS = {"inner/one": 100, "inner/two": 5000}
CONTENT = {"inner/one": b"first" * 20, "inner/two": bytes(range(250)) * 16}


def member(name, data=b"", type_=tarfile.REGTYPE, **attributes):
    info = tarfile.TarInfo(name)
    info.type = type_
    info.size = attributes.pop("size", len(data))
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def pack(*members, format_=tarfile.GNU_FORMAT, end=True):
    body = b"".join(info.tobuf(format=format_) + data + bytes(-len(data) % 512) for info, data in members)
    return body + bytes(1024) * end


def good():
    return [member("inner", type_=tarfile.DIRTYPE), *(member(name, data) for name, data in CONTENT.items())]


def zipped(body):
    return gzip.compress(body, 6, mtime=0)


def linked(name, type_, target):
    return member(name, type_=type_, linkname=target)


ONE = member("inner/one", CONTENT["inner/one"])
TWO = member("inner/two", CONTENT["inner/two"])

HOSTILE = {
    "traversal instead": pack(member("inner/../../one", CONTENT["inner/one"]), TWO),
    "absolute instead": pack(member("/inner/one", CONTENT["inner/one"]), TWO),
    "dot prefix": pack(member("./inner/one", CONTENT["inner/one"]), TWO),
    "backslashes": pack(member("inner\\one", CONTENT["inner/one"]), TWO),
    "symbolic link as member": pack(linked("inner/one", tarfile.SYMTYPE, "/etc/passwd"), TWO),
    "hard link as member": pack(TWO, linked("inner/one", tarfile.LNKTYPE, "inner/two")),
    "folder as member": pack(member("inner/one", type_=tarfile.DIRTYPE), TWO),
    "symbolic link beside": pack(linked("inner", tarfile.SYMTYPE, "/etc"), ONE, TWO),
    "hard link beside": pack(ONE, TWO, linked("x", tarfile.LNKTYPE, "/etc/passwd")),
    "link after the members": pack(ONE, TWO, linked("inner/one", tarfile.SYMTYPE, "/etc/passwd")),
    "character device": pack(member("inner/one", type_=tarfile.CHRTYPE, devmajor=1, devminor=5), TWO),
    "block device": pack(ONE, TWO, member("disk", type_=tarfile.BLKTYPE)),
    "pipe": pack(member("pipe", type_=tarfile.FIFOTYPE), ONE, TWO),
    "contiguous file": pack(member("inner/one", CONTENT["inner/one"], tarfile.CONTTYPE), TWO),
    "sparse file": pack(member("inner/one", CONTENT["inner/one"], tarfile.GNUTYPE_SPARSE), TWO),
    "pax sparse file": pack(
        member(
            "inner/one", b"1\n0\n100\n" + bytes(504), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        ),
        TWO,
        format_=tarfile.PAX_FORMAT,
    ),
    "member missing": pack(ONE),
    "empty": b"",
    "empty archive": pack(),
    "member twice": pack(ONE, TWO, ONE),
    "member too large": pack(member("inner/one", b"x" * 101), TWO),
    "size a lie, too large": pack(member("inner/one", b"x" * 100, size=2**40), TWO),
    "size negative": pack(member("inner/one", b"", size=-512), TWO),
    "beside, size negative": pack(ONE, member("other", b"", size=-(2**40)), TWO),
    "cut in a member": pack(ONE, TWO)[:3000],
    "cut at a member boundary": pack(ONE, end=False),
    "cut in a header": pack(ONE, TWO)[:1200],
    "header damaged": bytearray(pack(ONE, TWO)).replace(b"inner/two", b"inner/twx"),
    "unlisted bomb": pack(ONE, member("other", bytes(2**23)), TWO),
    "bomb after the end": pack(ONE, TWO) + bytes(2**23),
    "long name bomb": pack(member("././@LongLink", bytes(2**23), tarfile.GNUTYPE_LONGNAME), ONE, TWO),
    "pax header bomb": pack(member("x", bytes(2**23), tarfile.XHDTYPE), ONE, TWO),
    "many pax headers": pack(*[member("x", b"6 a=b\n", tarfile.XHDTYPE)] * 3000, ONE, TWO),
    "many members": pack(*[member(f"f{i}") for i in range(2000)], ONE, TWO),
    "terminal escapes": pack(linked("\x1b[2J\nx", tarfile.SYMTYPE, "y")),
}
OUTER = {
    "not compressed": pack(*good()),
    "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "gzip cut": zipped(pack(*good()))[:-8],
    "gzip cut by a byte": zipped(pack(*good()))[:-1],
    "gzip checksum wrong": zipped(pack(*good()))[:-8] + bytes(8),
    "gzip with rubbish behind": zipped(pack(*good())) + b"rubbish",
    "zip of a zip": zipped(zipped(pack(*good()))),
}
ALL = {name: zipped(bytes(body)) for name, body in HOSTILE.items()} | OUTER


def tree(folder):
    return sorted((str(path.relative_to(folder)), path.is_symlink()) for path in folder.rglob("*"))


def test_good_members_are_read_in_the_order_asked_for():
    data = zipped(pack(*reversed(good())))
    assert list(read_members(data, LIMITS, "a").items()) == list(CONTENT.items())


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_with_other_files_beside(format_):
    data = zipped(pack(*good(), member("inner/readme.html", b"<p>"), member("x" * 90, b"y"), format_=format_))
    assert read_members(data, LIMITS, "a") == CONTENT


def test_an_archive_of_the_standard_library_is_read():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in good():
            archive.addfile(info, io.BytesIO(content))
    assert read_members(buffer.getvalue(), LIMITS, "a") == CONTENT


@pytest.mark.parametrize("name", ALL)
def test_hostile_archives_are_refused_and_write_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = tree(tmp_path)
    with pytest.raises(DataError) as caught:
        read_members(ALL[name], LIMITS, "the/archive.tar.gz")
    message = str(caught.value)
    assert message.startswith("the/archive.tar.gz: ")
    assert message.isprintable()
    assert tree(tmp_path) == before


def test_there_are_enough_of_them():
    assert len(ALL) >= 40


BOMBS = """
import sys
from lnlbench.errors import DataError
from lnlbench.formats.archives import gunzip, read_members

def peak():
    # Not ru_maxrss: that one is inherited from the parent process.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    for read in (lambda: read_members(data, {"one": 2**20}, "x"), lambda: gunzip(data, 2**20, "x")):
        try:
            read()
        except DataError as error:
            print("refused")
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bombs_of_a_gigabyte_cost_no_memory(tmp_path):
    # Concatenated gzip members are one valid stream, so sixteen megabytes compressed once make any number.
    zeros = gzip.compress(bytes(2**24), 1)
    paths = []
    for number, info in enumerate(
        (
            member("one", size=2**30)[0],
            member("other", size=2**30)[0],
            member("././@LongLink", size=2**30, type_=tarfile.GNUTYPE_LONGNAME)[0],
        )
    ):
        path = tmp_path / f"bomb{number}.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf()) + zeros * 64)
        paths.append(str(path))
    result = subprocess.run([sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, check=True)
    *verdicts, megabytes = result.stdout.split()
    assert verdicts == ["refused"] * 6
    assert int(megabytes) < 64


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_noticed_without_any_outer_checksum(data):
    # Only the ten bytes of the gzip header (date, system) and padding bits may change without changing the content.
    archive = bytearray(zipped(pack(*good())))
    position = data.draw(st.integers(0, len(archive) - 1))
    archive[position] ^= 1 << data.draw(st.integers(0, 7))
    message = ""
    try:
        content = read_members(bytes(archive), LIMITS, "a")
    except DataError as error:
        content, message = CONTENT, str(error)
    assert content == CONTENT
    assert message.isprintable()


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_gunzip_respects_its_limit(content, limit):
    packed = gzip.compress(content)
    if len(content) <= limit:
        assert gunzip(packed, limit, "x") == content
    else:
        with pytest.raises(DataError, match=f"x: unpacks to more than {limit:,} bytes"):
            gunzip(packed, limit, "x")


def test_gunzip_notices_damage():
    packed = gzip.compress(bytes(range(256)) * 10, mtime=0)
    expected = hashlib.sha256(gunzip(packed, 10_000, "x")).hexdigest()
    assert expected == hashlib.sha256(bytes(range(256)) * 10).hexdigest()
    for cut in range(len(packed)):
        with pytest.raises(DataError, match="x: not a sound gzip file"):
            gunzip(packed[:cut], 10_000, "x")
