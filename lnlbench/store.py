"""The data folder: where data files live on this machine, and the only part of the core that downloads."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import filelock
import platformdirs
from pydantic import ValidationError

from lnlbench.contracts.dataset import Edition, RemoteFile
from lnlbench.contracts.suite import NAME_PATTERN
from lnlbench.errors import DataError, UsageError
from lnlbench.files import OS_FS, make_folder, read_json, storage_errors, write_json
from lnlbench.formats.messages import reason
from lnlbench.formats.verify import verify_file

DATA_VARIABLE = "LNLBENCH_DATA"
MIRROR_VARIABLE = "LNLBENCH_MIRROR"
EDITION_FILE = "edition.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 2**20
_TIMEOUT_S = 30.0


def default_data_root() -> Path:
    """Return the folder for data: ``$LNLBENCH_DATA`` if set, else one in the user's cache folder."""
    chosen = os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("lnlbench")) / "data"


class LocalDataStore:
    """Data files under one folder, one sub-folder per dataset.

    Args:
        root: The data folder; it need not exist.
        offline: Forbid every download.
        progress: Show progress bars, if the standard error is a terminal.
    """

    def __init__(self, root: Path, offline: bool = False, progress: bool = True) -> None:
        self.root = root
        self.offline = offline
        self.progress_wanted = progress

    def folder(self, dataset: str) -> Path:
        """Return the folder of a dataset (it may not exist yet); that of ``folder:mine`` is ``folder-mine``."""
        return self.root / dataset.replace(":", "-")

    def fetch(self, dataset: str, file: RemoteFile) -> Path:
        """Return the verified file, downloading it if it is absent.

        It comes from its official address, or, if ``$LNLBENCH_MIRROR`` is set, from ``$LNLBENCH_MIRROR/<file name>``.
        It appears under its name only when complete and verified; a second process that wants it meanwhile waits.

        Raises:
            DataError: It is absent and downloading is forbidden, the download failed, or its checksum is wrong.
            StorageError: It cannot be written.
        """
        if Path(file.name).name != file.name:
            raise DataError(
                f"{dataset}: {file.name!r} is not a plain file name; tell the author of this dataset's plugin"
            )
        target = self.folder(dataset) / file.name
        if not target.exists():
            if self.offline:
                raise DataError(_absent(dataset, target, file, "and downloading is off"))
            self._download(dataset, file, target)
        else:
            verify_file(target, file.digest, size=file.size, hint=f"delete it and run `lnlbench prepare {dataset}`")
        return target

    def edition(self, dataset: str) -> Edition:
        """Return which edition of a dataset was registered; ``canonical`` if none was.

        Raises:
            DataError: The note of the registration is damaged.
        """
        path = self.folder(dataset) / EDITION_FILE
        try:
            edition = Edition.model_validate(read_json(path))
            _check_edition(edition)
        except FileNotFoundError:
            return Edition()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = ".".join(str(part) for part in first["loc"]) + f": {first['msg']}"
        except (OSError, ValueError, RecursionError, UsageError) as error:
            what = reason(error)
        else:
            return edition
        raise DataError(
            f"{path}: not a registered edition: {reason(what)}; delete it, or run "
            f"`lnlbench prepare {dataset} --edition NAME` again"
        )

    def write_edition(self, dataset: str, edition: Edition) -> None:
        """Remember that a dataset now consists of other bytes than the published ones.

        Raises:
            UsageError: The name is reserved or has characters that a name may not have.
            StorageError: The note cannot be written.
        """
        _check_edition(edition)
        write_json(make_folder(self.folder(dataset)) / EDITION_FILE, edition.model_dump(mode="json"))

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar, if wanted and if the standard error is a terminal."""
        from tqdm import tqdm

        shown = self.progress_wanted and sys.stderr is not None and sys.stderr.isatty()
        with tqdm(desc=what, total=total, disable=not shown, unit_scale=True, dynamic_ncols=True) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance

    def _download(self, dataset: str, file: RemoteFile, target: Path) -> None:
        url = _address(dataset, file)
        folder = make_folder(target.parent)
        with storage_errors(target), _exclusively(folder / f".{file.name}.lock", target):
            if target.exists():
                # Another process was faster; its file was verified before it got its name.
                return
            # A folder of its own, in the same file system: whatever an interrupted download left is in there.
            workplace = folder / f".{file.name}.part"
            shutil.rmtree(workplace, ignore_errors=True)
            workplace.mkdir()
            try:
                self._retrieve(dataset, file, url, workplace, target)
                with OS_FS.open(workplace / file.name, "rb") as complete:
                    OS_FS.fsync(complete)
                OS_FS.replace(workplace / file.name, target)
                OS_FS.fsync_dir(folder)
            finally:
                shutil.rmtree(workplace, ignore_errors=True)

    def _retrieve(self, dataset: str, file: RemoteFile, url: str, workplace: Path, target: Path) -> None:
        # Imported here: a run whose data are in place needs neither pooch nor requests.
        import pooch

        size = f" ({file.size:,} bytes)" if file.size is not None else ""
        print(f"lnlbench: downloading {url}{size} to {target}", file=sys.stderr, flush=True)
        pooch.get_logger().setLevel(logging.WARNING)  # the line above says it already
        responses: list[Any] = []

        def look(response: Any, *_: Any, **__: Any) -> None:
            responses.append(response)
            _inspect_response(response)

        transport = pooch.HTTPDownloader(
            progressbar=self.progress_wanted and sys.stderr is not None and sys.stderr.isatty(),
            chunk_size=_CHUNK,
            timeout=_TIMEOUT_S,
            headers={"Accept-Encoding": "identity"},
            hooks={"response": look},
        )

        def download(address: str, output: str, caller: Any) -> None:
            with open(output, "wb") as raw:
                try:
                    transport(address, _Capped(raw, file.size), caller)
                finally:
                    # After a failure the connection would stay open for as long as the exception is kept.
                    for response in responses:
                        response.close()

        try:
            pooch.retrieve(url, file.digest, fname=file.name, path=workplace, downloader=download)
        except _UnwantedError as error:
            raise DataError(_absent(dataset, target, file, f"and {url} did not give it: {reason(error)}")) from error
        except ValueError as error:
            # That is how pooch reports a wrong checksum; also how an address that is none is reported.
            wrong = "what arrived has another checksum" if "hash" in str(error) else reason(error)
            raise DataError(_absent(dataset, target, file, f"and {url} did not give it: {wrong}")) from error
        except OSError as error:
            # Every failure of requests is an OSError without a number; one with a number is our own disk's.
            if error.errno is not None:
                raise
            raise DataError(_absent(dataset, target, file, f"and its download failed: {reason(error)}")) from error


class _UnwantedError(Exception):
    """Internal: the server gives something else than the file."""


class _Capped:
    """A file that takes no more bytes than the file asked for has."""

    def __init__(self, file: IO[bytes], limit: int | None) -> None:
        self._file = file
        self._left = limit

    def write(self, data: bytes) -> int:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise _UnwantedError("it sends more bytes than the file has")
        return self._file.write(data)

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is closed, not after every piece."""


def _inspect_response(response: Any) -> None:
    """Look at every response, redirections included, before its body is read."""
    if response.is_redirect:
        following = urljoin(response.url, response.headers["location"])
        if urlsplit(response.url).scheme == "https" and urlsplit(following).scheme != "https":
            raise _UnwantedError(f"it redirects to {following}, which is not https")
    # We ask for the bytes as they are. A server that names an encoding all the same describes the file itself
    # (a .tar.gz is "gzip-encoded tar"), and undoing that would yield another file.
    response.raw.headers.pop("content-encoding", None)


def _address(dataset: str, file: RemoteFile) -> str:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror:
        # Plain http is the user's own choice here, and the checksum decides in any case.
        if urlsplit(mirror).scheme not in ("http", "https"):
            raise UsageError(f"{MIRROR_VARIABLE}={mirror!r} is not an address; it must start with https:// or http://")
        return f"{mirror.rstrip('/')}/{file.name}"
    if urlsplit(file.url).scheme != "https":
        raise DataError(f"{dataset}: the address {file.url} is not https; tell the author of this dataset's plugin")
    return file.url


def _absent(dataset: str, target: Path, file: RemoteFile, why: str) -> str:
    size = f" ({file.size:,} bytes)" if file.size is not None else ""
    return (
        f"{dataset}: {target}{size} is missing {why}; get it from {file.url} and put it there, "
        f"or run `lnlbench prepare {dataset}` with a connection"
    )


@contextlib.contextmanager
def _exclusively(path: Path, target: Path) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"lnlbench: waiting for another process that downloads {target}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_edition(edition: Edition) -> None:
    if edition.is_canonical:
        raise UsageError("'canonical' is the name of the published edition; choose another one for other bytes")
    # The name becomes part of rows and file names.
    if not NAME_PATTERN.fullmatch(edition.name):
        raise UsageError(
            f"edition name {edition.name!r} is not valid: use up to 64 letters, digits, '.', '_', '+' and '-'"
        )
    if not edition.files or not all(_SHA256.fullmatch(digest) for digest in edition.files.values()):
        raise UsageError(f"edition {edition.name!r} lacks the SHA-256 sums of its files")
