"""The embedded encoder: its weights, what it can do without any training on the digits, and where it comes from."""

from __future__ import annotations

import ast
import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from lnlbench.builtin.encoders import glyphs as module
from lnlbench.builtin.encoders import train_glyphs
from lnlbench.builtin.encoders.glyphs import glyph_tokenizer, glyphs
from lnlbench.builtin.encoders.open_clip_models import ClipTowers
from lnlbench.errors import DataError, UnknownNameError, UsageError
from lnlbench_clipcleaner.prompts import class_texts

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def encoder() -> ClipTowers:
    return glyphs("glyphs")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return glyph_tokenizer()


@pytest.fixture(scope="module")
def handwritten(encoder: ClipTowers) -> tuple[Tensor, Tensor]:
    """Features of length 1 and labels of all 1,797 handwritten digits of scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).float()[:, None]
    side = encoder.image_size
    large = interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        parts = [
            encoder.encode_images((part - encoder.mean[0]) / encoder.std[0]) for part in coloured(large).split(300)
        ]
    return normalize(torch.cat(parts), dim=-1), torch.from_numpy(bunch.target)


def coloured(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def text_features(encoder: ClipTowers, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return normalize(encoder.encode_texts(texts), dim=-1)


@pytest.mark.parametrize("prompt", ["{digit}", "a photo of a {digit}.", "a photo of a digit {word}.", "number {word}"])
def test_handwritten_digits_are_named_without_training_on_them(
    encoder: ClipTowers, handwritten: tuple[Tensor, Tensor], prompt: str
) -> None:
    features, labels = handwritten
    texts = text_features(encoder, [prompt.format(digit=digit, word=word) for digit, word in enumerate(WORDS)])
    accuracy = float(((features @ texts.T).argmax(1) == labels).double().mean())
    # A stand-in for CLIP has to have a gap between the images it was trained on and those it is used on.
    assert 0.65 <= accuracy <= 0.9


def test_clipcleaners_facts_name_them_too(encoder: ClipTowers, handwritten: tuple[Tensor, Tensor]) -> None:
    # Feng et al. 2024, eq. 4: exponentials of cosines over 0.07 are summed over the prompts of a class.
    texts = class_texts("digits", [str(digit) for digit in range(10)], "class-specific")
    features, labels = handwritten
    prompts = text_features(encoder, [text for each in texts for text in each])
    sums = np.exp((features @ prompts.T).double().numpy() / 0.07).reshape(len(features), 10, -1).sum(2)
    probs = sums / sums.sum(1, keepdims=True)
    assert 0.65 <= (probs.argmax(1) == labels.numpy()).mean() <= 0.9
    # Neither nearly uniform nor always certain: the scale of the cosines suits the temperature.
    assert 0.5 < probs.max(1).mean() < 0.98


def test_a_learnable_context_reaches_the_same_features_as_its_text(encoder: ClipTowers) -> None:
    context = encoder.embed_tokens("a photo of a")
    assert context.shape == (4, encoder.context_dim)
    prompts = encoder.encode_prompts(context, WORDS)
    texts = encoder.encode_texts([f"a photo of a {word}." for word in WORDS])
    assert torch.allclose(prompts, texts, atol=1e-5)


def test_sixteen_context_vectors_learn_and_the_towers_do_not(
    encoder: ClipTowers, handwritten: tuple[Tensor, Tensor]
) -> None:
    features, labels = handwritten
    context = encoder.embed_tokens("a photo of a").repeat(4, 1).requires_grad_()
    optimiser = torch.optim.Adam([context], 0.01)
    losses = []
    for _ in range(5):
        prompts = normalize(encoder.encode_prompts(context, WORDS), dim=-1)
        loss = torch.nn.functional.cross_entropy(features[:300] @ prompts.T / encoder.temperature, labels[:300])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_its_facts_are_those_of_the_weights(encoder: ClipTowers) -> None:
    data = module.WEIGHTS.read_bytes()
    assert encoder.fingerprint == hashlib.sha256(data).hexdigest() == module.SHA256
    assert len(data) < 5_000_000
    assert encoder.temperature == pytest.approx(0.07)
    assert (encoder.image_size, encoder.embed_dim, len(encoder.mean)) == (32, 64, 3)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    card = module.WEIGHTS.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert encoder.fingerprint in card


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_missing_and_damaged_weights_are_one_clear_line(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "glyphs.safetensors"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(module, "WEIGHTS", path)
    with pytest.raises(
        DataError, match=r"glyphs\.safetensors: is missing or damaged .* install lnlbench again"
    ) as caught:
        glyphs("glyphs")
    assert "\n" not in str(caught.value)


def test_another_name_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="glyphs"):
        glyphs("glyph")


@given(text=st.text(max_size=60))
def test_any_text_can_be_encoded(encoder: ClipTowers, tokenizer: Any, text: str) -> None:
    assert all(0 <= token < module.START for token in tokenizer.encode(text)) or "_of_text>" in text
    assert encoder.encode_texts([text]).isfinite().all()


def test_texts_with_markers_or_beyond_the_room_are_encoded(encoder: ClipTowers, tokenizer: Any) -> None:
    assert tokenizer.encode("<start_of_text>3<end_of_text>") == [module.START, *tokenizer.encode("3"), module.END]
    assert encoder.encode_texts(["loop " * 200, "<end_of_text>"]).isfinite().all()


def test_a_context_that_is_too_long_is_refused(encoder: ClipTowers) -> None:
    with pytest.raises(UsageError, match="77"):
        encoder.encode_prompts(torch.zeros(75, encoder.context_dim), ["3"])


# Where it comes from.


def imported_modules(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_the_training_script_reads_no_data_set() -> None:
    outside = {"numpy", "torch", "torch.nn", "PIL", "safetensors.torch", "open_clip"}
    standard = {"__future__", "argparse", "importlib.util", "math", "random", "collections.abc", "dataclasses"}
    standard |= {"pathlib", "typing"}
    own = {"lnlbench.api", "lnlbench.files", "lnlbench.builtin.encoders.glyphs"}
    source = Path(train_glyphs.__file__).read_text(encoding="utf-8")
    assert imported_modules(source) <= outside | standard | own
    # Files are opened by path in one place, for fonts; nothing is downloaded or loaded.
    for word in ("load_digits", "fetch_", "urlopen", "np.load", "torch.load", "read_bytes", "open("):
        assert word not in source.replace("Image.open(", "")


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """Digits in the font that is part of Pillow, as the fonts of the script may not be installed."""
    font = ImageFont.load_default(48)
    assert isinstance(font, ImageFont.FreeTypeFont)
    bank = np.stack([train_glyphs.render_glyph(font, digit, 1) for digit in range(10)])
    return torch.from_numpy(bank).float() / 255, torch.arange(10)


def test_a_drawn_digit_fills_the_middle_of_its_image(drawn: tuple[Tensor, Tensor]) -> None:
    bank, _ = drawn
    assert bank.shape == (10, train_glyphs.GLYPH_SIZE, train_glyphs.GLYPH_SIZE)
    for glyph in bank:
        rows = glyph.amax(1).nonzero()[:, 0]
        assert (int(rows.min()), int(rows.max())) == (8, 55)
        assert glyph[:, :8].max() == glyph[:, 56:].max() == 0


def test_distorted_digits_are_images_of_eight_by_eight_in_grey_levels(drawn: tuple[Tensor, Tensor]) -> None:
    images = train_glyphs.distort(drawn[0].repeat(20, 1, 1), torch.Generator().manual_seed(1))
    assert images.shape == (200, 1, module.IMAGE_SIZE, module.IMAGE_SIZE)
    assert images.min() >= 0
    assert images.max() <= 1
    # No two alike, and each with ink and paper.
    assert len({image.numpy().tobytes() for image in images}) == 200
    assert ((images.amax((1, 2, 3)) - images.amin((1, 2, 3))) > 0.4).double().mean() > 0.95


def test_captions_are_true_of_their_digits_and_name_them_first(tokenizer: Any) -> None:
    writer = train_glyphs.CaptionWriter(tokenizer, random.Random(5))
    lengths = set()
    for index in range(500):
        caption = writer.write(index % 10)
        assert index % 10 in caption.digits
        lengths.add(len(caption.tokens))
        if len(caption.digits) > 1:
            assert "which" in tokenizer.decode(caption.tokens)
    assert len(lengths) > 15
    assert max(lengths) + 2 <= module.CONTEXT_LENGTH


def test_the_loss_is_that_of_several_positives(drawn: tuple[Tensor, Tensor]) -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(4, 3)) * 5
    matches = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=bool)

    def one_way(logits: Any, matches: Any) -> float:
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(np.mean([-log_probs[row][matches[row]].mean() for row in range(len(logits))]))

    expected = (one_way(logits, matches) + one_way(logits.T, matches.T)) / 2
    loss = train_glyphs.matching_loss(torch.from_numpy(logits).float(), torch.from_numpy(matches))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_training_again_gives_the_same_bytes_and_another_seed_others(drawn: tuple[Tensor, Tensor]) -> None:
    def weights(seed: int) -> bytes:
        return train_glyphs.serialise(train_glyphs.train(*drawn, 2, images=12, texts=12, seed=seed))

    first = weights(1)
    assert weights(1) == first
    assert all(value.isfinite().all() for value in load(first).values())
    assert weights(2) != first


def test_training_lowers_the_loss(drawn: tuple[Tensor, Tensor]) -> None:
    losses: dict[int, float] = {}
    train_glyphs.train(*drawn, 12, images=30, texts=30, log=losses.__setitem__)
    assert list(losses) == list(range(12))
    assert np.mean([losses[step] for step in (9, 10, 11)]) < np.mean([losses[step] for step in (0, 1, 2)])


def test_a_missing_font_says_what_to_install() -> None:
    with pytest.raises(DataError, match=r"font-roboto==0\.0\.1"):
        train_glyphs.find_font("font_roboto/files/Roboto-NotThere.ttf")


def test_the_command_says_so_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_glyphs, "FONTS", ("font_roboto/files/Roboto-NotThere.ttf",))
    monkeypatch.setattr("sys.argv", ["train_glyphs", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        train_glyphs.main()
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_font_has_a_package_to_install() -> None:
    fonts = [*train_glyphs.FONTS, *train_glyphs.VALIDATION_FONTS]
    assert len(set(fonts)) == len(fonts)
    assert {font.partition("/")[0] for font in fonts} == set(train_glyphs.PACKAGES)
    families = [
        {Path(font).name.partition("-")[0] for font in part}
        for part in (train_glyphs.FONTS, train_glyphs.VALIDATION_FONTS)
    ]
    assert not families[0] & families[1]
