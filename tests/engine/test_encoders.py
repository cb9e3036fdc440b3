"""Encoders as a run uses them: preprocessing, caches, and what they must not touch."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lnlbench.builtin.encoders.open_clip_models import ClipTowers
from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.contracts.encoder import EncoderEntry
from lnlbench.engine.encoders import Encoders, TaskEncoder, TrainingImages
from lnlbench.engine.stream import open_files
from lnlbench.engine.views import ImageStore, PixelSource
from lnlbench.errors import DataError, PluginError, UnknownNameError
from lnlbench.files import write_json
from lnlbench.plugins import Catalogue, Provider, Registered, discover
from lnlbench.records import RunRecord

CPU = torch.device("cpu")
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
N = 150
BUILT: list[str] = []
ENCODED: list[int] = []
SEEN: list[Tensor] = []


class Counting(ClipTowers):
    """A tiny CLIP that notes the images it sees and counts what it encodes."""

    def encode_images(self, images: Tensor) -> Tensor:
        SEEN.append(images)
        ENCODED.append(len(images))
        return super().encode_images(images)

    def encode_texts(self, texts: Any) -> Tensor:
        ENCODED.append(len(texts))
        return super().encode_texts(texts)


def tiny_clip(name: str) -> ClipTowers:
    """The factory: ``tiny-clip:SEED`` or ``tiny-clip:SEED-grey``."""
    BUILT.append(name)
    seed, _, kind = name.partition(":")[2].partition("-")
    torch.manual_seed(int(seed))
    model = open_clip.CLIP(
        16,
        {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},  # type: ignore[arg-type]
        {"context_length": 32, "width": 24, "heads": 2, "layers": 1},  # type: ignore[arg-type]
    )
    if kind == "grey":
        model.visual.conv1 = torch.nn.Conv2d(1, 32, 8, 8, bias=False)
    mean, std = ((0.5,), (0.3,)) if kind == "grey" else (MEAN, STD)
    return Counting(model, open_clip.SimpleTokenizer(), mean, std, f"{int(seed):064x}")


def warning_factory(name: str) -> ClipTowers:
    warnings.warn("built in\nanother way", UserWarning, stacklevel=2)
    torch.rand(5)
    return tiny_clip("tiny-clip:1")


def offline_factory(name: str) -> ClipTowers:
    raise DataError(f"offline={os.environ.get('HF_HUB_OFFLINE')}")


def no_module(name: str) -> object:
    return object()


@pytest.fixture
def catalogue() -> Catalogue[EncoderEntry]:
    found: Catalogue[EncoderEntry] = Catalogue("encoder")
    for name, function in (
        ("tiny-clip:", tiny_clip),
        ("warns", warning_factory),
        ("offline", offline_factory),
        ("no-module", no_module),
    ):
        entry = EncoderEntry(name=name, target=f"{__name__}:{function.__name__}", summary="For tests.")
        found.add(Local(entry, Provider("tests", "1"), function))
    return found


class Local(Registered[EncoderEntry]):
    """An entry whose code is in this module, which has no name that could be imported."""

    def __init__(self, entry: EncoderEntry, provider: Provider, function: Callable[..., Any]) -> None:
        super().__init__(entry, provider)
        object.__setattr__(self, "function", function)

    def load(self) -> Any:
        return self.function  # type: ignore[attr-defined]


def pixels(channels: int = 3, side: int = 8, count: int = N) -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]


def source_of(images: NDArray[np.uint8]) -> ImageStore:
    return ImageStore(torch.from_numpy(images), *normalisation(images.shape[3]), 2, CPU)


@pytest.fixture
def make(catalogue: Catalogue[EncoderEntry], tmp_path: Path) -> Callable[..., Encoders]:
    BUILT.clear()
    ENCODED.clear()
    SEEN.clear()

    def build(source: PixelSource | None = None, emit: Any = print, digest: str = "d" * 64, **options: Any) -> Encoders:
        source = source or source_of(pixels())
        images = TrainingImages(source, digest, *normalisation(source.channels))
        options = {"offline": False, **options}
        return Encoders(catalogue, images, tmp_path / "features", CPU, "float32", emit, **options)

    return build


def prepared(model: Any, images: NDArray[np.uint8]) -> Tensor:
    """The input of a model, by Pillow's conversion and bicubic resizing, on the 0-1 scale."""
    mode = "L" if len(model.mean) == 1 else "RGB"
    opened = [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert(mode) for image in images]
    side = model.image_size
    resized = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in opened])
    return torch.from_numpy(resized.reshape(len(images), side, side, -1) / 255).permute(0, 3, 1, 2)


def encoded(model: Any, images: Tensor) -> Tensor:
    """Features of images on the 0-1 scale."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (model.mean, model.std))
    with torch.no_grad():
        return functional.normalize(model.encode_images(((images - mean) / std).float()), dim=1)


# ------------------------------------------------------------------------------------------------ image features


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 40])
@pytest.mark.parametrize("name", ["tiny-clip:1", "tiny-clip:1-grey"])
def test_images_arrive_as_pillow_would_prepare_them(
    make: Callable[..., Encoders], name: str, side: int, channels: int
) -> None:
    # Without extremes: Pillow cuts overshooting values off between its two passes.
    images = 64 + pixels(channels, side, 20) // 2
    encoder = make(source_of(images)).get(name)
    mean, std = (np.array(each) for each in normalisation(channels))
    as_loaded = torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
    features = encoder.image_features(as_loaded)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(20))
    model = tiny_clip(name)
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (model.mean, model.std))
    seen = SEEN[0] * std + mean
    assert SEEN[0].shape == (20, len(model.mean), 16, 16)
    # Pillow rounds to grey levels after each pass, and after its conversion to grey.
    rounded = side != 16 or (channels == 3 and len(mean) == 1)
    torch.testing.assert_close(seen, prepared(model, images), atol=2 / 255 if rounded else 1e-6, rtol=0)
    torch.testing.assert_close(features, encoded(model, seen), atol=1e-5, rtol=0)


def test_training_features_are_those_of_the_plain_images(make: Callable[..., Encoders]) -> None:
    encoder = make().get("tiny-clip:1")
    features = encoder.training_features()
    assert features.shape == (N, 16)
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in normalisation(3))
    torch.testing.assert_close(features, encoder.image_features((images - mean) / std), atol=1e-5, rtol=0)
    assert encoder.training_features() is features


def test_images_that_stay_files(make: Callable[..., Encoders], tmp_path: Path) -> None:
    images = pixels(3, 16, 9)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = tuple(f"{number}.png" for number in range(9))
    files = ImageFiles(tmp_path, paths, np.zeros((9, 32), np.uint8), Resize(16, square=True), resident=False)
    source = open_files(files, 16, *normalisation(3), CPU, tmp_path / "decoded")
    encoder = make(source).get("tiny-clip:1")
    model = tiny_clip("tiny-clip:1")
    expected = encoded(model, prepared(model, images))
    torch.testing.assert_close(encoder.training_features(), expected, atol=1e-5, rtol=0)


def test_values_outside_the_range_of_images_are_cut_off(make: Callable[..., Encoders]) -> None:
    encoder = make().get("tiny-clip:1")
    encoder.image_features(100 * torch.randn(5, 3, 8, 8))
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    seen = SEEN[0] * std + mean
    assert seen.min() > -1e-6
    assert seen.max() < 1 + 1e-6


# ------------------------------------------------------------------------------------------------------ the cache


def features_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "features").iterdir())


def test_training_features_are_computed_once_per_data_folder(make: Callable[..., Encoders], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    first = make(emit=events.append).get("tiny-clip:1").training_features()
    assert sum(ENCODED) == N
    again = make(emit=events.append).get("tiny-clip:1").training_features()
    assert sum(ENCODED) == N
    assert torch.equal(first, again)
    assert [event.get("cached") for event in events if event["event"] == "stage done"] == [False, True]
    (folder,) = features_folders(tmp_path)
    facts = json.loads((folder / "features.json").read_text())
    assert (facts["encoder"], facts["weights"], facts["data"]) == ("tiny-clip:1", f"{1:064x}", "d" * 64)
    assert np.array_equal(np.load(folder / "features.npy", allow_pickle=False), first.numpy())


def test_other_data_weights_or_sizes_have_features_of_their_own(make: Callable[..., Encoders], tmp_path: Path) -> None:
    make().get("tiny-clip:1").training_features()
    make().get("tiny-clip:2").training_features()
    make(digest="e" * 64).get("tiny-clip:1").training_features()
    make(source_of(pixels(side=12))).get("tiny-clip:1").training_features()
    make(source_of(pixels(count=10))).get("tiny-clip:1").training_features()
    assert len(features_folders(tmp_path)) == 5
    assert sum(ENCODED) == 4 * N + 10


def damage_content(folder: Path) -> None:
    data = bytearray((folder / "features.npy").read_bytes())
    data[-1] ^= 1
    (folder / "features.npy").write_bytes(data)


def remove_content(folder: Path) -> None:
    (folder / "features.npy").unlink()


def damage_facts(folder: Path) -> None:
    (folder / "features.json").write_text('{"sha256": ')


def other_facts(folder: Path) -> None:
    write_json(folder / "features.json", [1])


def other_shape(folder: Path) -> None:
    from lnlbench.files import sha256_file

    np.save(folder / "features.npy", np.zeros((3, 16), np.float32))
    write_json(folder / "features.json", {"sha256": sha256_file(folder / "features.npy")})


@pytest.mark.parametrize("damage", [damage_content, remove_content, damage_facts, other_facts, other_shape])
def test_damaged_features_are_computed_again(
    make: Callable[..., Encoders], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = make().get("tiny-clip:1").training_features()
    (folder,) = features_folders(tmp_path)
    damage(folder)
    events: list[dict[str, Any]] = []
    assert torch.equal(make(emit=events.append).get("tiny-clip:1").training_features(), first)
    (warning,) = [event["message"] for event in events if event["event"] == "warning"]
    assert warning.startswith(f"{folder / 'features.npy'} is damaged (")
    assert warning.endswith("; the features are computed again")
    ENCODED.clear()
    assert torch.equal(make().get("tiny-clip:1").training_features(), first)
    assert ENCODED == []


def test_what_a_killed_writer_left_is_removed(make: Callable[..., Encoders], tmp_path: Path) -> None:
    make().get("tiny-clip:1").training_features()
    (folder,) = features_folders(tmp_path)
    (folder / "features.json").unlink()
    (folder / "features.npy.123.abcd.tmp").write_bytes(b"half")
    make().get("tiny-clip:1").training_features()
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == ["features.json", "features.npy"]
    assert sum(ENCODED) == 2 * N


def test_of_several_runs_at_once_one_computes(make: Callable[..., Encoders], tmp_path: Path) -> None:
    # Threads with a lock each: the system keeps them apart as it does processes.
    ready = threading.Barrier(3)
    encoders = [make(emit=lambda _: None).get("tiny-clip:1") for _ in range(3)]

    def work(encoder: TaskEncoder) -> Tensor:
        ready.wait(30)
        return encoder.training_features()

    with ThreadPoolExecutor(3) as pool:
        first, second, third = pool.map(work, encoders)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert sum(ENCODED) == N
    assert len(features_folders(tmp_path)) == 1


# -------------------------------------------------------------------------------------------------- texts, prompts


def test_each_text_is_computed_once_per_run(make: Callable[..., Encoders]) -> None:
    encoder = make().get("tiny-clip:1")
    texts = ["a cat.", "a dog.", "a cat."]
    features = encoder.text_features(texts)
    assert ENCODED == [2]
    assert torch.equal(features[0], features[2])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert not features.requires_grad
    assert torch.equal(encoder.text_features(["a dog."])[0], features[1])
    assert ENCODED == [2]
    assert encoder.text_features([]).shape == (0, 16)
    many = [f"number {i}" for i in range(300)]
    assert torch.equal(encoder.text_features(many)[:130], encoder.text_features(many[:130]))
    assert sum(ENCODED) == 2 + 300


def test_a_set_of_texts_is_kept_for_later_runs(make: Callable[..., Encoders]) -> None:
    texts = ["a cat.", "a dog."]
    first = make().get("tiny-clip:1").text_features(texts)
    assert torch.equal(make().get("tiny-clip:1").text_features(texts), first)
    assert ENCODED == [2], "the second run read them"
    make().get("tiny-clip:1").text_features(["a cat.", "a bird."])
    make().get("tiny-clip:2").text_features(texts)
    assert ENCODED == [2, 2, 2], "other texts and other weights have features of their own"


def test_prompts_start_as_texts_and_train_the_context_alone(make: Callable[..., Encoders]) -> None:
    encoder = make().get("tiny-clip:1")
    names = ["cat", "grand piano"]
    context = encoder.token_embeddings("a photo of a").requires_grad_()
    assert context.shape == (4, encoder.context_dim)
    features = encoder.prompt_features(context, names)
    texts = encoder.text_features([f"a photo of a {name}." for name in names])
    torch.testing.assert_close(features, texts, atol=1e-5, rtol=0)
    image = encoder.image_features(torch.rand(5, 3, 8, 8))
    functional.cross_entropy(image @ features.T / encoder.temperature, torch.tensor([0, 1, 0, 1, 1])).backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    model: Any = encoder._model
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(encoder.token_embeddings("a photo of a"), context.detach())
    with torch.no_grad():
        context.zero_()
    assert encoder.token_embeddings("a photo of a").abs().sum() > 0


# ------------------------------------------------------------------------------------------------------- building


def test_an_encoder_is_built_once_and_noted(make: Callable[..., Encoders]) -> None:
    encoders = make()
    assert encoders.fingerprints == {}
    encoder = encoders.get("tiny-clip:1")
    assert isinstance(encoder, TaskEncoder)
    assert encoders.get("tiny-clip:1") is encoder
    assert BUILT == ["tiny-clip:1"]
    assert encoders.fingerprints == {"tiny-clip:1": f"{1:064x}"}
    assert encoder.temperature == pytest.approx(0.07)


def test_building_leaves_the_global_generator_alone(make: Callable[..., Encoders]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make().get("tiny-clip:1")
    assert torch.equal(torch.rand(3), expected)


def test_warnings_of_a_factory_become_events(make: Callable[..., Encoders]) -> None:
    events: list[dict[str, Any]] = []
    make(emit=events.append).get("warns")
    assert events == [{"event": "warning", "message": "built in another way"}]


def test_factories_learn_that_the_run_is_offline(
    make: Callable[..., Encoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for offline, seen in ((True, "1"), (False, "None")):
        with pytest.raises(DataError, match=f"offline={seen}$"):
            make(offline=offline).get("offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(DataError, match=r"offline=1$"):
        make(offline=True).get("offline")
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_unknown_and_faulty_encoders(make: Callable[..., Encoders]) -> None:
    with pytest.raises(UnknownNameError, match="unknown encoder 'tiny-clp:1'; did you mean 'tiny-clip:'"):
        make().get("tiny-clp:1")
    with pytest.raises(PluginError, match=r"'no-module' of tests 1 is not a torch.nn.Module"):
        make().get("no-module")


# ---------------------------------------------------------------------------------------------------------- a run

NEAREST = """
import torch
from torch import nn
from lnlbench.api import DataError, EncoderEntry, Method, MethodConfig, MethodEntry, hookimpl


@hookimpl
def lnlbench_methods():
    return [MethodEntry(name="nearest", target="nearest_plugin:Nearest", summary="s", supervision=("clip",))]


@hookimpl
def lnlbench_encoders():
    return [EncoderEntry(name="halves", target="nearest_plugin:halves", summary="s")]


class Config(MethodConfig):
    encoder: str = "halves"


class Nearest(Method[Config]):
    '''The class whose mean feature is nearest.'''

    Config = Config

    @classmethod
    def preset(cls, task):
        return Config(epochs=1, batch_size=10, backbone=task.default_backbone)

    def fit(self, task, run):
        self.encoder = task.encoder(self.config.encoder)
        features = self.encoder.training_features()
        self.means = nn.Parameter(torch.stack([features[task.labels == c].mean(0) for c in range(task.num_classes)]))
        run.track(means=nn.ParameterList([self.means]))
        for epoch in run.epochs(1):
            pass

    def predict(self, images):
        return self.encoder.image_features(images) @ self.means.T


class Halves(nn.Module):
    image_size, mean, std, embed_dim, context_dim = 4, (0.2,), (0.5,), 16, 16
    temperature, fingerprint = 0.1, "ab" * 32

    def encode_images(self, images):
        return images.flatten(1)


def halves(name):
    return Halves()
"""


def test_a_run_uses_encoders_and_notes_them(plugins: Any, make_cells: Any, run_here: Any, tmp_path: Path) -> None:
    plugins.add("lnlbench-nearest", "nearest_plugin", NEAREST)
    registry = discover()
    assert registry.broken == []
    data = tmp_path / "data"
    made = []
    for task, cached in (("0.20", False), ("0.40", True)):
        (cell,) = make_cells(registry, methods=["nearest"], tasks=[task], epochs=1)
        folder, events = run_here(cell, registry, data=data)
        record = RunRecord.model_validate_json((folder / "result.json").read_bytes())
        assert record.encoders == {"halves": "ab" * 32}
        assert record.scores is not None
        assert record.scores.last > 0.5
        assert [event["cached"] for event in events if event["event"] == "stage done"] == [cached]
        made += list((data / "features").iterdir())
    assert made[0] == made[1]


def test_a_run_without_weights_says_what_to_fetch(
    plugins: Any, make_cells: Any, run_here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugins.add("lnlbench-nearest", "nearest_plugin", NEAREST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    registry = discover()
    overrides = {"encoder": "open-clip:ViT-B-32-quickgelu/openai"}
    (cell,) = make_cells(registry, methods=["nearest"], epochs=1, overrides=overrides)
    folder, _ = run_here(cell, registry)
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["details"] == ""
    assert failure["message"].startswith("encoder 'open-clip:ViT-B-32-quickgelu/openai': its weights are not on this ")
    assert "downloading is off; get open_clip_model.safetensors of timm/" in failure["message"]
    assert not (folder / "result.json").exists()
