"""The open_clip adaptor, on tiny models of open_clip's architecture with random weights."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from lnlbench.builtin.encoders.open_clip_models import ClipTowers, open_clip_model
from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench.plugins import Registry

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT}
NAMES = ("cat", "grand piano", "aquarium fish", "t-shirt")


def tiny(**changes: Any) -> nn.Module:
    """A randomly initialised model; its weights are scaled so that attention is far from uniform."""
    torch.manual_seed(3)
    config = {**CONFIG, **changes}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_clip.SimpleTokenizer()


@pytest.fixture
def towers(tokenizer: Any) -> ClipTowers:
    return ClipTowers(tiny(), tokenizer, (0.5,) * 3, (0.25,) * 3, "f" * 64)


@pytest.fixture
def tiny_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model as one that open_clip knows under the names of a real one."""
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "ViT-B-32", CONFIG)
    monkeypatch.setitem(known, "ViT-B-32-quickgelu", {**CONFIG, "quick_gelu": True})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache


def save_weights(path: Path, model: nn.Module) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_features(one: ClipTowers, model: nn.Module) -> bool:
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        return torch.equal(one.encode_images(images), model.eval().encode_image(images))  # type: ignore[operator]


# ----------------------------------------------------------------------------------------------- the two towers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"custom_text": True},
        {"custom_text": True, "text_cfg": {**TEXT, "no_causal_mask": True}},
        {"custom_text": True, "text_cfg": {**TEXT, "proj_bias": True}},
        {"text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
    ],
    ids=["CLIP", "QuickGELU", "CustomTextCLIP", "no mask", "projection with bias", "pooled at the end token"],
)
def test_a_prompt_of_word_embeddings_is_the_text_of_these_words(tokenizer: Any, changes: dict[str, Any]) -> None:
    towers = ClipTowers(tiny(**changes), tokenizer, (0.5,) * 3, (0.25,) * 3, "")
    context = towers.embed_tokens("a photo of a")
    assert context.shape == (4, 24)
    assert not context.requires_grad
    prompts = towers.encode_prompts(context, NAMES)
    texts = towers.encode_texts([f"a photo of a {name}." for name in NAMES])
    assert prompts.shape == (len(NAMES), 20)
    torch.testing.assert_close(normalize(prompts, dim=1), normalize(texts, dim=1), atol=1e-5, rtol=0)


def test_the_sequence_of_a_prompt(towers: ClipTowers, tokenizer: Any) -> None:
    """Against the text tower of PyTorch alone, in float64, on the full length and with the end where CoOp has it."""
    context = torch.randn(16, 24)
    name = "aquarium fish"
    tokens = tokenizer.encode(name)
    clip: Any = towers.clip.double()
    sequence = torch.zeros(77, 24, dtype=torch.float64)
    embed = clip.token_embedding.weight
    sequence[:] = embed[0]
    sequence[0] = embed[tokenizer.sot_token_id]
    sequence[1:17] = context.double()
    sequence[17 : 17 + len(tokens)] = embed[torch.tensor(tokens)]
    sequence[17 + len(tokens)] = embed[tokenizer.encode(".")[0]]
    end = 1 + 16 + len(tokens) + 1
    sequence[end] = embed[tokenizer.eot_token_id]
    hidden = (sequence + clip.positional_embedding)[None]
    for block in clip.transformer.resblocks:
        normed = block.ln_1(hidden)
        hidden = hidden + block.attn(normed, normed, normed, attn_mask=clip.attn_mask.double())[0]
        hidden = hidden + block.mlp(block.ln_2(hidden))
    expected = clip.ln_final(hidden)[0, end] @ clip.text_projection
    towers.clip.float()
    features = towers.encode_prompts(context, [name])[0].double()
    torch.testing.assert_close(normalize(features, dim=0), normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_gradients_reach_the_context_alone(towers: ClipTowers) -> None:
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    context = (0.02 * torch.randn(16, 24)).requires_grad_()
    towers.encode_prompts(context, NAMES).square().sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum(1).min() > 0
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in towers.parameters())
    assert all(torch.equal(before[name], value) for name, value in towers.state_dict().items())


def test_the_gradient_of_the_context(tokenizer: Any) -> None:
    towers = ClipTowers(tiny(), tokenizer, (0.5,) * 3, (0.25,) * 3, "")
    context = torch.randn(3, 24)
    step = 1e-2 * torch.randn(3, 24)

    def value(moved: Tensor) -> Tensor:
        return towers.encode_prompts(moved, NAMES).sin().sum()

    leaf = context.clone().requires_grad_()
    value(leaf).backward()
    assert leaf.grad is not None
    slope = (value(context + step) - value(context - step)) / 2
    torch.testing.assert_close((leaf.grad * step).sum(), slope, atol=1e-3, rtol=0.02)


def test_a_prompt_that_is_too_long(tokenizer: Any) -> None:
    model = tiny(text_cfg={**TEXT, "context_length": 9})
    towers = ClipTowers(model, tokenizer, (0.5,) * 3, (0.25,) * 3, "")
    context = torch.randn(4, 24)
    # Start, four context tokens, two of the name, full stop, end: nine.
    assert towers.encode_prompts(context, ["cat", "grand piano"]).shape == (2, 20)
    with pytest.raises(
        UsageError, match=r"4 context tokens and the class name 'aquarium fish pond' make 10 tokens, .* 9"
    ):
        towers.encode_prompts(context, ["cat", "aquarium fish pond", "grand piano"])


def test_facts_of_the_towers(towers: ClipTowers) -> None:
    assert (towers.image_size, towers.embed_dim, towers.context_dim) == (16, 20, 24)
    assert towers.mean == (0.5, 0.5, 0.5)
    assert towers.std == (0.25, 0.25, 0.25)
    assert towers.temperature == pytest.approx(0.07, rel=1e-6)
    assert towers.fingerprint == "f" * 64
    assert not towers.clip.training
    assert all(name.startswith("clip.") for name in towers.state_dict())
    assert towers.embed_tokens("cat").shape == (1, 24)


def test_features_do_not_depend_on_the_batch(towers: ClipTowers) -> None:
    images = torch.randn(7, 3, 16, 16)
    texts = [f"a photo of a {name}." for name in NAMES]
    for encode, items in ((towers.encode_images, images), (towers.encode_texts, texts)):
        whole = encode(items)  # type: ignore[operator]
        single = torch.cat([encode(items[i : i + 1]) for i in range(len(items))])  # type: ignore[operator]
        torch.testing.assert_close(normalize(whole, dim=1), normalize(single, dim=1), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------- names and weights


@pytest.mark.usefixtures("tiny_config")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    model = tiny(quick_gelu=True)
    sha256 = save_weights(tmp_path / f"mine{suffix}", model)
    towers = open_clip_model(f"open-clip:ViT-B-32-quickgelu/{tmp_path}/mine{suffix}")
    assert towers.fingerprint == sha256
    assert same_features(towers, model)
    np.testing.assert_allclose(towers.mean, open_clip.OPENAI_DATASET_MEAN)
    np.testing.assert_allclose(towers.std, open_clip.OPENAI_DATASET_STD)


@pytest.mark.usefixtures("tiny_config")
def test_published_weights_from_the_hubs_cache(hub: Path) -> None:
    model = tiny(quick_gelu=True)
    snapshot = hub / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / ("0" * 40)
    sha256 = save_weights(snapshot / "open_clip_model.safetensors", model)
    (hub / "models--timm--vit_base_patch32_clip_224.openai" / "refs").mkdir()
    (hub / "models--timm--vit_base_patch32_clip_224.openai" / "refs" / "main").write_text("0" * 40)
    towers = open_clip_model("open-clip:ViT-B-32-quickgelu/openai")
    assert towers.fingerprint == sha256
    assert same_features(towers, model)


@pytest.mark.usefixtures("tiny_config")
def test_weights_trained_with_quickgelu_get_quickgelu(hub: Path) -> None:
    snapshot = hub / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / ("0" * 40)
    save_weights(snapshot / "open_clip_model.safetensors", tiny())
    (hub / "models--timm--vit_base_patch32_clip_224.openai" / "refs").mkdir()
    (hub / "models--timm--vit_base_patch32_clip_224.openai" / "refs" / "main").write_text("0" * 40)
    with pytest.warns(UserWarning, match="were trained with QuickGELU, so it is built with that; 'ViT-B-32-quickgelu'"):
        towers = open_clip_model("open-clip:ViT-B-32/openai")
    assert same_features(towers, tiny(quick_gelu=True))
    assert not same_features(towers, tiny())


def test_absent_weights_without_a_network(hub: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_clip_model("open-clip:ViT-B-32-quickgelu/openai")
    assert str(caught.value) == (
        "encoder 'open-clip:ViT-B-32-quickgelu/openai': its weights are not on this machine and downloading is off; "
        "get open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai from huggingface.co, put it "
        "anywhere, and name it: 'open-clip:ViT-B-32-quickgelu//path/to/open_clip_model.safetensors'"
    )


def test_absent_weights_that_cannot_be_downloaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    # The hub's client itself believes that it is offline, which is its quickest way to fail.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"and cannot be downloaded \(.*\); get open_clip_model.safetensors of timm/"
    ) as caught:
        open_clip_model("open-clip:ViT-B-32-quickgelu/openai")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open-clip:ViT-B-32-quickgeluu/openai", "unknown open_clip model .*; did you mean 'ViT-B-32-quickgelu'"),
        ("open-clip:ViT-B-32-quickgelu/opnai", "unknown weights of .*'opnai'; did you mean 'openai'"),
        ("open-clip:ViT-B-32-quickgelu", "unknown weights of open_clip model 'ViT-B-32-quickgelu' ''; known: "),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        open_clip_model(name)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP/webli", "roberta-ViT-B-32/laion2b_s12b_b32k", "coca_ViT-B-32/x"])
def test_models_with_another_text_tower_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="text tower or tokenizer is not CLIP's own; choose a model"):
        open_clip_model(f"open-clip:{name}")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.usefixtures("tiny_config")
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            open_clip_model(f"open-clip:ViT-B-32/{path}")
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        return text

    assert "cannot read the weights (No such file or directory)" in message(tmp_path / "absent.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 100)
    assert "not weights of open_clip model 'ViT-B-32'" in message(tmp_path / "noise.safetensors")
    save_weights(tmp_path / "other.safetensors", nn.Linear(2, 2))
    assert "not weights of open_clip model 'ViT-B-32'" in message(tmp_path / "other.safetensors")
    torch.save({"weight": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for name in ("bomb.pt", "old.bin"):
        assert "not weights of" in message(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


class Scripted(nn.Module):
    """Holds a model's weights under its names, as OpenAI's archives do, and facts beside them."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.register_buffer(last, value)
        self.register_buffer("input_resolution", torch.tensor(16))
        self.register_buffer("context_length", torch.tensor(77))

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.usefixtures("tiny_config")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_must_be_openais(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(quick_gelu=True)
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(Scripted(dict(model.state_dict()))).save(path)
    assert any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist())
    with pytest.raises(DataError, match=re.escape(f"{path}: is a TorchScript archive, which can run code, and none")):
        open_clip_model(f"open-clip:ViT-B-32/{path}")
    published = open_clip.pretrained._PRETRAINED["ViT-B-32"]["openai"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(published, "url", f"https://example.org/{sha256}/ViT-B-32.pt")
    with pytest.warns(UserWarning, match="trained with QuickGELU"):
        towers = open_clip_model(f"open-clip:ViT-B-32/{path}")
    assert same_features(towers, model)


# ------------------------------------------------------------------------------------------------ the command line


def test_encoders_are_listed_and_described(cli: Any, registry: Registry) -> None:
    listed = {row["name"]: row["summary"] for row in json.loads(cli("list", "encoders", "--json").out)}
    assert set(listed) == {"glyphs", "open-clip:"}
    (family,) = json.loads(cli("info", "open-clip:", "--json").out)
    assert (family["kind"], family["summary"]) == ("encoder", listed["open-clip:"])
    assert "ICML 2021" in family["paper"]
    assert family["suites"] == []
    (glyphs,) = json.loads(cli("info", "glyphs", "--json").out)
    assert glyphs["suites"] == [each.entry.name for each in registry.suites if each.entry.encoder == "glyphs"]
    assert re.fullmatch("SHA-256 [0-9a-f]{64}", glyphs["weights"])
    (suite,) = json.loads(cli("info", "cifar100-sym", "--json").out)
    assert suite["encoder"] == "open-clip:ViT-B-32-quickgelu/openai"


@pytest.mark.usefixtures("hub")
def test_describing_an_encoder_without_its_weights_is_an_error_of_one_line(cli: Any) -> None:
    answer = cli("info", "open-clip:ViT-B-32-quickgelu/openai")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "its weights are not on this machine" in answer.err
