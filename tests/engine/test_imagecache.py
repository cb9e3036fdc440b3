from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.engine import imagecache
from lnlbench.engine.imagecache import build_cache, decode_all, find_cache, read_image, run_ahead, scaled
from lnlbench.errors import DataError, StorageError
from lnlbench.store import LocalDataStore

SIZES = ((40, 30), (30, 41), (64, 20), (25, 25), (33, 50))
SQUARE, RAGGED = Resize(16, square=True), Resize(20, square=False)


class CountingStore(LocalDataStore):
    """Keeps what progress it is told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, offline=True)
        self.told: list[int] = []

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield self.told.append


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def picture(seed: int, width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put_files(root: Path, contents: list[bytes], resize: Resize) -> ImageFiles:
    root.mkdir(exist_ok=True)
    names = tuple(f"{number:03d}.img" for number in range(len(contents)))
    for name, content in zip(names, contents, strict=True):
        (root / name).write_bytes(content)
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return ImageFiles(root, names, np.frombuffer(digests, np.uint8).reshape(-1, 32), resize, False)


def make_files(root: Path, count: int, resize: Resize) -> ImageFiles:
    return put_files(root, [encoded(picture(number, *SIZES[number % len(SIZES)])) for number in range(count)], resize)


def images(files: ImageFiles) -> list[NDArray[np.uint8]]:
    return [read_image(files, index) for index in range(len(files))]


@pytest.mark.parametrize("resize", [RAGGED, SQUARE, Resize(200, square=False)], ids=["ragged", "square", "enlarged"])
def test_images_are_what_torchvision_makes_of_them(tmp_path: Path, resize: Resize) -> None:
    size = [resize.side, resize.side] if resize.square else [resize.side]
    for number, (width, height) in enumerate(SIZES):
        files = put_files(tmp_path / "images", [encoded(picture(number, width, height))], resize)
        ours = read_image(files, 0)
        plain = Image.open(tmp_path / "images" / files.paths[0])
        tensor = functional.resize(functional.pil_to_tensor(plain), size, antialias=True)
        np.testing.assert_array_equal(ours, tensor.permute(1, 2, 0).numpy())
        # Pillow rounds its weights more finely, which shows in the last bit now and then.
        by_pillow = np.asarray(transforms.Resize(size)(plain)).astype(int)
        assert abs(ours - by_pillow).max() <= 1
        assert (ours != by_pillow).mean() < 0.1


COLOURS = picture(3, 61, 47)
UNUSUAL = {
    "progressive": encoded(COLOURS, progressive=True),
    "full chroma": encoded(COLOURS, subsampling=0),
    "half chroma": encoded(COLOURS, subsampling=1),
    "restarts": encoded(COLOURS, restart_marker_blocks=2),
    "stored as RGB": encoded(COLOURS, keep_rgb=True),
    "grey": encoded(COLOURS.convert("L")),
    "CMYK": encoded(COLOURS.convert("CMYK")),
    "turned": encoded(COLOURS, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "PNG": encoded(COLOURS, "PNG"),
    "PNG with a palette": encoded(COLOURS.convert("P"), "PNG"),
    "PNG with alpha": encoded(COLOURS.convert("RGBA"), "PNG"),
    "one column": encoded(COLOURS.resize((1, 30))),
    "one row": encoded(COLOURS.resize((30, 1))),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_files_decode_as_pillow_decodes_them(tmp_path: Path, data: bytes) -> None:
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    files = put_files(tmp_path / "images", [data], Resize(min(plain.shape[:2]), square=False))
    decoded = read_image(files, 0)
    np.testing.assert_array_equal(decoded, plain)
    assert decoded.flags.c_contiguous
    assert scaled(decoded, 5, 3).shape == (5, 3, 3)


def test_scaling_starts_no_threads() -> None:
    # With several threads for computing, each decoding thread would otherwise start as many of its own.
    torch.set_num_threads(4)
    counts: list[int] = []

    def work() -> None:
        counts.append(psutil.Process().num_threads())
        scaled(np.zeros((400, 500, 3), np.uint8), 300, 300)
        counts.append(psutil.Process().num_threads())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    torch.set_num_threads(1)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("resize", [RAGGED, SQUARE], ids=["ragged", "square"])
def test_a_cache_holds_the_images(
    tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch, resize: Resize, workers: int
) -> None:
    monkeypatch.setattr(imagecache, "BLOCK", 16)
    files = make_files(tmp_path / "images", 41, resize)
    folder = tmp_path / "decoded" / "toy"
    expected = images(files)
    assert find_cache(files, folder) is None
    build_cache(files, folder, store, workers)
    assert sum(store.told) == 41
    shutil.rmtree(files.root)
    cache = build_cache(files, folder, store, workers)
    found = find_cache(files, folder)
    assert found is not None
    assert len(found) == len(cache) == 41
    for index in (40, *range(41)):
        np.testing.assert_array_equal(found.image(index), expected[index])
        np.testing.assert_array_equal(cache.image(index), expected[index])
    assert sum(store.told) == 41


def test_what_the_pixels_depend_on_has_a_cache_of_its_own(tmp_path: Path, store: CountingStore) -> None:
    files = make_files(tmp_path / "images", 5, RAGGED)
    build_cache(files, tmp_path / "decoded", store)
    assert find_cache(make_files(tmp_path / "images", 5, SQUARE), tmp_path / "decoded") is None
    assert find_cache(files.take(np.array([1, 0, 2, 3, 4])), tmp_path / "decoded") is None
    assert find_cache(files, tmp_path / "elsewhere") is None
    moved = ImageFiles(tmp_path, tuple(f"images/{path}" for path in files.paths), files.digests, RAGGED, False)
    assert find_cache(moved, tmp_path / "decoded") is not None


def test_squares_are_decoded_once(tmp_path: Path, store: CountingStore) -> None:
    files = make_files(tmp_path / "images", 12, SQUARE)
    expected = np.stack(images(files))
    np.testing.assert_array_equal(decode_all(files, tmp_path / "decoded", store), expected)
    shutil.rmtree(files.root)
    again = decode_all(files, tmp_path / "decoded", store)
    np.testing.assert_array_equal(again, expected)
    assert again.shape == (12, 16, 16, 3)
    assert again.flags.writeable
    assert store.told == [0, 8, 4]


def test_squares_are_decoded_where_nothing_can_be_written(
    tmp_path: Path, store: CountingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make_files(tmp_path / "images", 12, SQUARE)
    (tmp_path / "decoded").write_text("in the way")
    found = decode_all(files, tmp_path / "decoded", store)
    np.testing.assert_array_equal(found, np.stack(images(files)))
    assert store.told == [8, 4]
    message = capsys.readouterr().err
    assert message.startswith("lnlbench: decoded images are not kept: cannot write ")
    assert message.count("\n") == 1


def test_a_full_disk_is_noticed_before_it_is_full(
    tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_files(tmp_path / "images", 10, RAGGED)
    size = sum(image.nbytes for image in images(files))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size - 1))
    with pytest.raises(StorageError, match=r"decoded images need .* GB more, but the disk has .* GB left; free some"):
        build_cache(files, tmp_path / "decoded", store)
    assert find_cache(files, tmp_path / "decoded") is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))
    assert len(build_cache(files, tmp_path / "decoded", store)) == 10


def test_another_file_than_the_prepared_one_is_refused(tmp_path: Path, store: CountingStore) -> None:
    files = make_files(tmp_path / "images", 20, SQUARE)
    (files.root / "013.img").write_bytes(encoded(picture(99, 30, 30)))
    for work in (build_cache, decode_all):
        with pytest.raises(DataError, match=r"013\.img: is not the file that was prepared; put that one back"):
            work(files, tmp_path / "decoded", store)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "not a sound JPEG or PNG image"),
        (b"GIF89a", "not a sound JPEG or PNG image"),
        (encoded(COLOURS)[:400], "not a sound JPEG or PNG image"),
        (None, "cannot be read: No such file or directory; put the image back"),
    ],
    ids=["empty", "GIF", "truncated", "missing"],
)
def test_damaged_files_are_named(tmp_path: Path, store: CountingStore, content: bytes | None, cause: str) -> None:
    files = put_files(tmp_path / "images", [encoded(COLOURS), content or b""], RAGGED)
    if content is None:
        (files.root / "001.img").unlink()
    for work in (lambda: read_image(files, 1), lambda: build_cache(files, tmp_path / "decoded", store)):
        with pytest.raises(DataError, match=cause) as caught:
            work()
        assert f"{files.root}/001.img" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_files(tmp_path / "images", 1, RAGGED)
    monkeypatch.setattr(imagecache, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"000\.img: has [\d,]+ bytes, expected an image of at most 100"):
        read_image(files, 0)


BUILDER = """
import contextlib, json, os, signal, sys
from pathlib import Path
import numpy as np
from lnlbench import files as seam
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.engine import imagecache
from lnlbench.store import LocalDataStore

root, last, events = Path(sys.argv[1]), None, []

def happens(event):
    if len(events) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    events.append(event)

class Fs(seam.OsFs):
    def open(self, path, mode):
        happens(f"open {path.name}")
        return super().open(path, mode)

    def fsync(self, file):
        happens(f"fsync {Path(file.name).name}")
        super().fsync(file)

class Store(LocalDataStore):
    @contextlib.contextmanager
    def progress(self, what, total):
        yield lambda count: happens("progress")

imagecache.OS_FS = Fs()
imagecache.BLOCK = 16
files = ImageFiles(root / "images", tuple(f"{n:03d}.img" for n in range(40)), np.load(root / "digests.npy"),
                   Resize(20, square=False), False)
for last in [*range(int(sys.argv[2])), None]:
    child = os.fork()
    if child == 0:
        imagecache.build_cache(files, root / str(last), Store(root), 2)
        print(json.dumps(events), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_killed_builder_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagecache, "BLOCK", 16)
    files = make_files(tmp_path / "images", 40, RAGGED)
    np.save(tmp_path / "digests.npy", files.digests)
    moments = 14
    command = [sys.executable, "-c", BUILDER, str(tmp_path), str(moments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    # One builder was killed before each of its events; the last one was not.
    events = json.loads(answer.stdout)
    assert len(events) == moments
    (reference,) = (path for path in (tmp_path / "None").iterdir() if path.is_dir())
    for last in range(moments):
        place = tmp_path / str(last) / reference.name
        assert not (place / "manifest.json").exists()
        store = CountingStore(tmp_path)
        build_cache(files, tmp_path / str(last), store)
        flushed = events[:last].count("fsync journal.bin")
        # The block that is about to be flushed lies in the system's memory, which outlives the process.
        assert store.told[0] in (min(16 * flushed, 40), min(16 * (flushed + 1), 40))
        assert sum(store.told) == 40
        for name in ("pixels.bin", "journal.bin", "manifest.json"):
            assert (place / name).read_bytes() == (reference / name).read_bytes()


@pytest.mark.parametrize("journal", [0, 5, 17 * 12 - 1, 17 * 12, 17 * 12 + 30, None])
@pytest.mark.parametrize("pixels", [0, 3000, None])
def test_whatever_is_left_of_a_cache_is_continued(
    tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch, journal: int | None, pixels: int | None
) -> None:
    monkeypatch.setattr(imagecache, "BLOCK", 16)
    files = make_files(tmp_path / "images", 40, SQUARE)
    build_cache(files, tmp_path / "decoded", store)
    (place,) = (path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    whole = {name: (place / name).read_bytes() for name in ("pixels.bin", "journal.bin", "manifest.json")}
    (place / "manifest.json").unlink()
    (place / "journal.bin").write_bytes(whole["journal.bin"][:journal])
    (place / "pixels.bin").write_bytes(whole["pixels.bin"][:pixels] + b"torn" * (pixels is None))
    build_cache(files, tmp_path / "decoded", store)
    assert {name: (place / name).read_bytes() for name in whole} == whole


def test_two_builders_share_the_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = make_files(tmp_path / "images", 60, RAGGED)
    stores = [CountingStore(tmp_path) for _ in range(2)]
    found: list[Any] = []
    start = threading.Barrier(2)

    def build(store: CountingStore) -> None:
        start.wait()
        found.append(build_cache(files, tmp_path / "decoded", store, 1))

    threads = [threading.Thread(target=build, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sum(store.told) for store in stores) == [0, 60]
    for index, image in enumerate(images(files)):
        np.testing.assert_array_equal(found[0].image(index), image)
        np.testing.assert_array_equal(found[1].image(index), image)
    assert capfd.readouterr().err.count("waiting for another process that decodes images") <= 1


def test_damage_is_found(tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagecache, "BLOCK", 16)
    files = make_files(tmp_path / "images", 20, SQUARE)
    build_cache(files, tmp_path / "decoded", store)
    (place,) = (path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    rng = random.Random(0)
    found = 0
    for number in range(300):
        path = place / ("pixels.bin", "journal.bin", "manifest.json")[number % 3]
        sound = path.read_bytes()
        bit = rng.randrange(8 * len(sound))
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            decode_all(files, tmp_path / "decoded", store)
        message = str(caught.value)
        found += message.startswith(f"{place}: the decoded images are damaged: ") and "\n" not in message
        path.write_bytes(sound)
    assert found == 300


@pytest.mark.parametrize("name", ["pixels.bin", "journal.bin", "manifest.json"])
@pytest.mark.parametrize("change", ["cut", "longer", "gone"])
def test_lost_parts_are_found(tmp_path: Path, store: CountingStore, name: str, change: str) -> None:
    files = make_files(tmp_path / "images", 20, SQUARE)
    build_cache(files, tmp_path / "decoded", store)
    (place,) = (path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    sound = (place / name).read_bytes()
    if change == "gone":
        (place / name).unlink()
    else:
        (place / name).write_bytes(sound[:-5] if change == "cut" else sound + b"{}")
    if (name, change) == ("manifest.json", "gone"):
        assert find_cache(files, tmp_path / "decoded") is None
    elif (name, change) == ("journal.bin", "longer"):
        # Nothing is lost, and what follows the last block is never looked at.
        assert find_cache(files, tmp_path / "decoded") is not None
    else:
        with pytest.raises(
            DataError, match=r"the decoded images are damaged: .*; delete this folder, and decode again"
        ):
            find_cache(files, tmp_path / "decoded")


def test_work_is_done_ahead_but_not_far() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(50):
            taken.append(job)
            yield job

    results = run_ahead(lambda job: job * job, jobs(), 3, 5)
    assert taken == []
    assert next(results) == 0
    assert len(taken) == 6
    assert [*results] == [job * job for job in range(1, 50)]


def test_a_failing_job_ends_the_work() -> None:
    def fail(job: int) -> int:
        if job == 3:
            raise DataError("the third")
        return job

    results = run_ahead(fail, range(1000), 2, 10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the third"):
        next(results)
    assert [*results] == []


def test_as_many_threads_decode_as_compute() -> None:
    assert imagecache.default_workers() == torch.get_num_threads() == 1
