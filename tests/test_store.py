from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from lnlbench.contracts.dataset import DataStore, Edition, RemoteFile
from lnlbench.errors import DataError, StorageError, UsageError
from lnlbench.store import LocalDataStore, _inspect_response, _UnwantedError, default_data_root

CONTENT = bytes(range(256)) * 40
REMOTE = RemoteFile(
    name="data.tar.gz",
    url="https://example.invalid/somewhere/data.tar.gz",
    size=len(CONTENT),
    digest="sha256:" + hashlib.sha256(CONTENT).hexdigest(),
)
PAGE = b"<!DOCTYPE html><html><body>Not here</body></html>"


@pytest.fixture
def store(tmp_path):
    return LocalDataStore(tmp_path / "data", progress=False)


@pytest.fixture(scope="module")
def server():
    # With threads: a request that hangs in a broken answer must not delay the next test.
    with HTTPServer(threaded=True) as running:
        yield running


@pytest.fixture
def mirror(server, monkeypatch):
    server.clear()
    monkeypatch.setenv("LNLBENCH_MIRROR", server.url_for("/files/"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return server


def serve(server, response):
    server.expect_request("/files/data.tar.gz").respond_with_handler(lambda _: response)


def refusal(call, *args, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(folder):
    """Everything below a folder but the lock files."""
    return sorted(path.name for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_it_is_a_data_store(store):
    checked: DataStore = store
    assert checked.folder("digits") == store.root / "digits"
    assert not store.root.exists()


def test_a_file_is_downloaded_once(store, mirror, capsys):
    serve(mirror, Response(CONTENT))
    path = store.fetch("toy", REMOTE)
    assert path == store.root / "toy" / "data.tar.gz"
    assert path.read_bytes() == CONTENT
    assert visible(store.root) == ["data.tar.gz", "toy"]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert mirror.url_for("/files/data.tar.gz") in told
    assert store.fetch("toy", REMOTE) == path
    assert len(mirror.log) == 1


def test_a_file_in_place_needs_no_connection(store):
    store.offline = True
    folder = store.folder("toy")
    folder.mkdir(parents=True)
    (folder / REMOTE.name).write_bytes(CONTENT)
    assert store.fetch("toy", REMOTE).read_bytes() == CONTENT
    assert visible(folder) == ["data.tar.gz"]


def test_a_damaged_file_in_place_is_refused_and_kept(store):
    folder = store.folder("toy")
    folder.mkdir(parents=True)
    (folder / REMOTE.name).write_bytes(CONTENT[:-1] + b"\x00")
    message = refusal(store.fetch, "toy", REMOTE)
    assert str(folder / REMOTE.name) in message
    assert "lnlbench prepare toy" in message
    assert visible(folder) == ["data.tar.gz"]


def test_offline_says_what_is_expected_where_and_how_to_get_it(store):
    store.offline = True
    message = refusal(store.fetch, "toy", REMOTE)
    for part in (str(store.folder("toy") / "data.tar.gz"), "10,240 bytes", REMOTE.url, "lnlbench prepare toy"):
        assert part in message
    assert not store.root.exists()


def short_body():
    response = Response(CONTENT[: len(CONTENT) // 2])
    response.headers["Content-Length"] = str(len(CONTENT))
    return response


def sixty_four_megabytes():
    def body():
        for _ in range(2**10):
            yield bytes(2**16)

    return Response(body())


def broken_off():
    def body():
        yield CONTENT[:1000]
        raise ConnectionResetError

    response = Response(body())
    response.headers["Content-Length"] = str(len(CONTENT))
    return response


FAULTS = {
    "wrong checksum": lambda: Response(CONTENT[:-1] + b"\x00"),
    "a flipped bit": lambda: Response(bytes([CONTENT[0] ^ 1]) + CONTENT[1:]),
    "too short": lambda: Response(CONTENT[:-1]),
    "too long": lambda: Response(CONTENT + b"\x00"),
    "nothing": lambda: Response(b""),
    "not found": lambda: Response(PAGE, status=404),
    "forbidden": lambda: Response(PAGE, status=403),
    "out of order": lambda: Response(PAGE, status=503),
    "web page": lambda: Response(PAGE, content_type="text/html"),
    "redirect in circles": lambda: Response(status=302, headers={"Location": "/files/data.tar.gz"}),
    "redirect to a web page": lambda: Response(status=302, headers={"Location": "/login"}),
    "redirect to a file": lambda: Response(status=302, headers={"Location": "file:///etc/passwd"}),
    "far too long": sixty_four_megabytes,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_download_leaves_nothing(name, store, mirror):
    mirror.expect_request("/login").respond_with_data(PAGE, content_type="text/html")
    serve(mirror, FAULTS[name]())
    message = refusal(store.fetch, "toy", REMOTE)
    for part in (str(store.folder("toy") / "data.tar.gz"), REMOTE.url, "lnlbench prepare toy"):
        assert part in message
    assert visible(store.root) == ["toy"]


@pytest.mark.parametrize("response", [short_body, broken_off])
def test_a_cut_connection_leaves_nothing(response, store, mirror, monkeypatch):
    # The failing server side would report its own error through the thread's hook.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    serve(mirror, response())
    message = refusal(store.fetch, "toy", REMOTE)
    assert "download failed" in message or "did not give it" in message
    assert visible(store.root) == ["toy"]


def test_nobody_at_home_is_one_line(store, monkeypatch):
    monkeypatch.setenv("LNLBENCH_MIRROR", "http://127.0.0.1:9")
    message = refusal(store.fetch, "toy", REMOTE)
    assert "its download failed" in message
    assert visible(store.root) == ["toy"]


def test_a_second_try_succeeds_and_cleans_up_after_a_crash(store, mirror):
    folder = store.folder("toy")
    part = folder / ".data.tar.gz.part"
    part.mkdir(parents=True)
    (part / "tmpabcdef").write_bytes(CONTENT[:100])
    serve(mirror, Response(CONTENT))
    store.fetch("toy", REMOTE)
    assert visible(store.root) == ["data.tar.gz", "toy"]


def test_an_interrupted_download_leaves_nothing(store, mirror, monkeypatch):
    import pooch

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.fetch("toy", REMOTE)
    assert visible(store.root) == ["toy"]


def test_bytes_are_taken_as_they_are(store, mirror):
    # Some servers call a .tar.gz "gzip-encoded"; undoing that would give another file.
    packed = gzip.compress(CONTENT)
    remote = REMOTE.model_copy(update={"size": len(packed), "digest": "md5:" + hashlib.md5(packed).hexdigest()})  # noqa: S324
    serve(mirror, Response(packed, headers={"Content-Encoding": "gzip"}))
    assert store.fetch("toy", remote).read_bytes() == packed


@pytest.mark.parametrize(
    ("address", "location", "fine"),
    [
        ("https://a/x", "http://a/x", False),
        ("https://a/x", "ftp://a/x", False),
        ("https://a/x", "https://b/x", True),
        ("https://a/x", "/y", True),
        ("http://a/x", "http://b/x", True),
        ("http://a/x", "https://b/x", True),
    ],
)
def test_no_redirection_leaves_https(address, location, fine):
    response = SimpleNamespace(
        url=address, is_redirect=True, headers={"location": location}, raw=SimpleNamespace(headers={})
    )
    if fine:
        assert _inspect_response(response) is None
    else:
        with pytest.raises(_UnwantedError, match="not https"):
            _inspect_response(response)


def test_only_https_addresses_are_used(store):
    message = refusal(store.fetch, "toy", REMOTE.model_copy(update={"url": "http://example.invalid/x"}))
    assert "is not https" in message
    assert not store.root.exists()


def test_a_mirror_must_be_an_address(store, monkeypatch):
    monkeypatch.setenv("LNLBENCH_MIRROR", "/some/folder")
    assert "LNLBENCH_MIRROR" in refusal(store.fetch, "toy", REMOTE, kind=UsageError)


@pytest.mark.parametrize("name", ["../data", "a/b", "/etc/passwd", ".."])
def test_a_file_stays_in_its_folder(name, store):
    store.offline = True
    assert refusal(store.fetch, "toy", REMOTE.model_copy(update={"name": name}))
    assert not store.root.exists()


FETCH = """
import sys
from pathlib import Path
from lnlbench.contracts.dataset import RemoteFile
from lnlbench.store import LocalDataStore
print(LocalDataStore(Path(sys.argv[1])).fetch("toy", RemoteFile.model_validate_json(sys.argv[2])))
"""


def test_processes_that_want_the_same_file_share_one_download(store, mirror):
    def slowly(request):
        time.sleep(1.5)
        return Response(CONTENT)

    mirror.expect_request("/files/data.tar.gz").respond_with_handler(slowly)
    arguments = [sys.executable, "-c", FETCH, str(store.root), REMOTE.model_dump_json()]
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    target = store.folder("toy") / "data.tar.gz"
    assert [(process.returncode, out.strip()) for process, (out, _) in zip(processes, outputs, strict=True)] == [
        (0, str(target))
    ] * 3
    assert target.read_bytes() == CONTENT
    assert len(mirror.log) == 1
    assert visible(store.root) == ["data.tar.gz", "toy"]


def test_a_folder_that_cannot_be_made_is_one_line(store):
    store.root.parent.mkdir(exist_ok=True)
    store.root.write_text("a file in the way")
    assert refusal(store.fetch, "toy", REMOTE, kind=StorageError)


def test_nothing_of_the_downloader_is_imported_before_it_is_needed():
    code = "import sys, lnlbench.store; print([n for n in ('pooch', 'requests', 'tqdm', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


SUMS = {"folder/file": "0" * 64}


def test_editions_are_remembered(store):
    assert store.edition("toy") == Edition()
    assert store.edition("toy").is_canonical
    store.write_edition("toy", Edition(name="jpeg", files=SUMS))
    assert store.edition("toy") == Edition(name="jpeg", files=SUMS)
    assert store.edition("other").is_canonical
    assert visible(store.root) == ["edition.json", "toy"]


@pytest.mark.parametrize("name", ["canonical", "", "a/b", "../x", "a b", "a\n", "-rf", "x" * 65])
def test_bad_edition_names_are_refused(name, store):
    assert "edition" in refusal(store.write_edition, "toy", Edition(name=name, files=SUMS), kind=UsageError)
    assert not store.root.exists()


@pytest.mark.parametrize("files", [{}, {"a": ""}, {"a": "xyz"}, {"a": "0" * 63}])
def test_an_edition_without_sums_is_refused(files, store):
    assert "SHA-256" in refusal(store.write_edition, "toy", Edition(name="jpeg", files=files), kind=UsageError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": "jpeg"}',
        '{"name": "jpeg", "files": {"a": 1}}',
        '{"name": "jpeg", "files": {"a": "zz"}}',
        '{"name": "jpeg", "files": NaN}',
        '{"name": "a b", "files": {"a": "' + "0" * 64 + '"}}',
        '{"name": "canonical"}',
        '{"name": "jpeg", "files": {}, "extra": 1}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_damaged_note_of_an_edition_is_one_line(text, store):
    path = store.folder("toy") / "edition.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refusal(store.edition, "toy")
    assert message.startswith(f"{path}: not a registered edition: ")
    assert "lnlbench prepare toy --edition NAME" in message


def test_a_note_is_readable_json(store):
    store.write_edition("toy", Edition(name="jpeg", files=SUMS))
    assert json.loads((store.folder("toy") / "edition.json").read_text()) == {"name": "jpeg", "files": SUMS}


def test_the_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("LNLBENCH_DATA", str(tmp_path / "mine"))
    assert default_data_root() == tmp_path / "mine"
    monkeypatch.setenv("LNLBENCH_DATA", "~/mine")
    assert default_data_root() == Path.home() / "mine"
    monkeypatch.delenv("LNLBENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_root().name == "data"
    assert "lnlbench" in default_data_root().parts


def test_progress_is_shown_on_a_terminal_only(store, mirror, capsys, monkeypatch):
    store.progress_wanted = True
    serve(mirror, Response(CONTENT))
    store.fetch("toy", REMOTE)
    assert "%" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    store.fetch("other", REMOTE)
    assert "100%" in capsys.readouterr().err
