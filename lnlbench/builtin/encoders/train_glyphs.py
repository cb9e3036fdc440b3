"""Trains the embedded encoder: ``python -m lnlbench.builtin.encoders.train_glyphs --out DIR``.

The only images are those that :func:`render_fonts` draws from the fonts in :data:`FONTS`, which come with the Python
packages of :data:`PACKAGES`; no data set is read. The fonts of :data:`VALIDATION_FONTS` are not trained on: settings
were chosen by the accuracy on them. See ``weights/MODEL_CARD.md`` for the command and the checksum it gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from lnlbench.api import DataError, LnlbenchError
from lnlbench.builtin.encoders.glyphs import (
    CONTEXT_LENGTH,
    END,
    IMAGE_SIZE,
    MEAN,
    START,
    STD,
    build_clip,
    glyph_tokenizer,
)
from lnlbench.files import make_folder, write_bytes

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer

PACKAGES = {
    "font_amatic_sc": "font-amatic-sc==0.0.4",
    "font_caladea": "font-caladea==0.0.2",
    "font_hanken_grotesk": "font-hanken-grotesk==0.0.2",
    "font_intuitive": "font-intuitive==0.0.4",
    "font_manrope": "font-manrope==0.0.2",
    "font_roboto": "font-roboto==0.0.1",
    "font_source_sans_pro": "font-source-sans-pro==0.0.1",
    "matplotlib": "matplotlib==3.11.2",
}
_MATPLOTLIB = "matplotlib/mpl-data/fonts/ttf"
FONTS = (
    *(f"font_amatic_sc/files/AmaticSC-{style}.ttf" for style in ("Bold", "Regular")),
    *(f"font_hanken_grotesk/files/HankenGrotesk-{style}.otf" for style in ("Light", "Medium", "Bold", "Italic")),
    *(f"font_manrope/files/Manrope-{style}.ttf" for style in ("ExtraLight", "Regular", "ExtraBold")),
    *(f"font_roboto/files/Roboto-{style}.ttf" for style in ("Thin", "Regular", "Black", "LightItalic", "BoldItalic")),
    *(f"font_source_sans_pro/files/SourceSansPro-{style}.ttf" for style in ("Light", "Semibold", "Black", "It")),
    *(f"{_MATPLOTLIB}/DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "Mono", "Mono-Bold")),
    *(f"{_MATPLOTLIB}/DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic")),
    *(f"{_MATPLOTLIB}/STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"{_MATPLOTLIB}/cm{style}10.ttf" for style in ("b", "mi", "r", "ss", "ti", "tt")),
)
VALIDATION_FONTS = (
    "font_intuitive/files/Intuitive.ttf",
    *(f"font_caladea/files/Caladea-{style}.ttf" for style in ("Regular", "Bold", "Italic", "BoldItalic")),
)

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("{digit}", "{word}", "digit {digit}", "digit {word}", "number {digit}", "number {word}", "figure {word}")
TEMPLATES = (
    "{name}",
    "a {name}",
    "the {name}",
    "a photo of a {name}",
    "a photo of the {name}",
    "a picture of the {name}",
    "an image of a handwritten {name}",
    "a {name} written by hand",
    "a drawing of a {name}",
    "a small grey image of the {name}",
    "a blurry {name}",
    "a printed {name}",
    "this is a {name}",
)
NAMELESS = ("a digit", "a photo of a digit", "a photo of a number", "something written")
# What a digit looks like, and the digits of which that is true.
SHAPES = (
    ("is a ring", "0"),
    ("is one round closed curve around an empty space", "0"),
    ("has neither a beginning nor an end", "08"),
    ("is a plain upright line", "1"),
    ("is a slim bar without any curve", "1"),
    ("begins with a hook and finishes with a level base line", "2"),
    ("resembles a swan on the water", "2"),
    ("stands on a flat foot", "2"),
    ("consists of two bumps that point to the right", "3"),
    ("has two gaps on its left side", "3"),
    ("has lines that cross at a right angle", "4"),
    ("looks like a chair turned over", "4"),
    ("has an angle at the left and a pole at the right", "4"),
    ("wears a flat cap above a big belly", "5"),
    ("has a straight upper part and a curved lower part", "5"),
    ("has a ring below a long neck", "6"),
    ("is closed below and open above", "6"),
    ("is a roof with a leaning pole", "7"),
    ("has a level line on top and a steep line under it", "7"),
    ("is two rings on top of each other", "8"),
    ("looks like a snowman", "8"),
    ("crosses itself in the centre", "8"),
    ("has a ring above a long tail", "9"),
    ("is closed above and open below", "9"),
    ("contains exactly one hole", "0469"),
    ("contains no hole at all", "12357"),
    ("contains two holes", "8"),
    ("is drawn with straight lines only", "147"),
    ("has a flat top", "57"),
    ("is curved everywhere", "03689"),
    ("is even", "02468"),
    ("is odd", "13579"),
)
# Clauses that name another digit: the first name in a caption is what counts.
MENTIONS = (
    "comes after {other}",
    "comes before {other}",
    "is not a {other}",
    "looks a little like a {other}",
    "could be taken for the {other}",
    "is a {other} turned upside down",
    "is one half of a {other}",
)

GLYPH_SIZE = 64
_CANVAS = 32
_BANK_THICKNESS = (0, 1)


@dataclass(frozen=True)
class Caption:
    """A text as token ids, and the digits it is true of."""

    tokens: list[int]
    digits: frozenset[int]


def find_font(path: str) -> Path:
    """Return where the font ``package/folder/file`` is installed.

    Raises:
        DataError: Its package is not installed, or has no such file.
    """
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise DataError(f"train_glyphs: font {path} is not installed; run: pip install --no-deps {PACKAGES[package]}")


def render_glyph(font: ImageFont.FreeTypeFont, digit: int, thickness: int) -> np.ndarray[Any, Any]:
    """Draw a digit, scaled to fit the middle 48x48 of a 64x64 image.

    Args:
        font: At a size of about 48 pixels.
        digit: 0..9.
        thickness: Pixels added on each side of the strokes.

    Returns:
        uint8, ``(64, 64)``, ink 255 on paper 0.
    """
    page = Image.new("L", (160, 160), 0)
    ImageDraw.Draw(page).text((50, 40), str(digit), font=font, fill=255, stroke_width=thickness)
    ink = page.crop(page.getbbox())
    scale = 48 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    glyph = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE), 0)
    glyph.paste(ink, ((GLYPH_SIZE - ink.width) // 2, (GLYPH_SIZE - ink.height) // 2))
    return np.asarray(glyph)


def render_fonts(paths: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Draw the ten digits of each font in several thicknesses.

    Returns:
        ``glyphs_NHW``, float32 in 0..1, 64x64, and ``digits_N``, int64.
    """
    glyphs, digits = [], []
    for path in paths:
        font = ImageFont.truetype(str(find_font(path)), 48, layout_engine=ImageFont.Layout.BASIC)
        for digit in range(10):
            for thickness in _BANK_THICKNESS:
                glyphs.append(render_glyph(font, digit, thickness))
                digits.append(digit)
    return torch.from_numpy(np.stack(glyphs)).float() / 255, torch.tensor(digits)


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def _resample(glyphs: Tensor, rows: Sequence[Sequence[Tensor]], size: int, offsets: Tensor | None = None) -> Tensor:
    """Take ``glyphs_BHW`` at the places that an affine map gives, plus offsets, as images of ``size``.

    Args:
        glyphs: The images.
        rows: The map's two rows of three coefficients, each of shape B, in units of half the image.
        size: Side of the result.
        offsets: ``offsets_BHW2`` in the same units.
    """
    matrix = torch.stack([torch.stack(tuple(row), 1) for row in rows], 1)
    grid = functional.affine_grid(matrix, [len(glyphs), 1, size, size], align_corners=False)
    if offsets is not None:
        grid = grid + offsets
    return functional.grid_sample(glyphs[:, None], grid, align_corners=False)[:, 0]


def _bend(count: int, rng: torch.Generator) -> Tensor:
    """Return smooth random displacements ``offsets_BHW2`` in units of half the image."""
    coarse = torch.randn(count, 2, 4, 4, generator=rng) * _uniform(count, 0.0, 0.13, rng)[:, None, None, None]
    return functional.interpolate(coarse, size=(GLYPH_SIZE, GLYPH_SIZE), mode="bicubic").permute(0, 2, 3, 1)


def _warp(glyphs: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate, slant, stretch and bend ``glyphs_BHW``."""
    count = len(glyphs)
    angle = _uniform(count, -0.3, 0.3, rng)
    slant = _uniform(count, -0.5, 0.4, rng)
    width, height = _uniform(count, 0.75, 1.35, rng), _uniform(count, 0.85, 1.15, rng)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(count)
    rows = (cos * width, (slant * cos - sin) * height, zero), (sin * width, (slant * sin + cos) * height, zero)
    return _resample(glyphs, rows, GLYPH_SIZE, _bend(count, rng))


def _rethicken(glyphs: Tensor, rng: torch.Generator) -> Tensor:
    """Make the strokes of ``glyphs_BHW`` thicker or thinner by blurring and a threshold."""
    blurred = glyphs[:, None]
    for _ in range(2):
        blurred = functional.avg_pool2d(blurred, 5, stride=1, padding=2)
    # Thin strokes never reach the higher thresholds, so these are relative to the darkest point.
    threshold = _uniform(len(glyphs), 0.25, 0.6, rng) * blurred.amax((1, 2, 3))
    return ((blurred[:, 0] - threshold[:, None, None]) * 12).sigmoid()


def _extent(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the first and the last true value of each row of ``ink_BS`` are: centre and half the distance.

    Both in units of half the image, the centre counted from the middle; all false gives (0, 0.05).
    """
    size = ink.shape[1]
    places = (torch.arange(size) + 0.5) / size * 2 - 1
    low = torch.where(ink, places, 1.0).amin(1)
    high = torch.where(ink, places, -1.0).amax(1)
    return (low + high) / 2, ((high - low) / 2).clamp(min=0.05)


def _fit(glyphs: Tensor, rng: torch.Generator) -> Tensor:
    """Scale the ink of ``glyphs_BHW`` to nearly fill a 32x32 image, jittered."""
    count = len(glyphs)
    ink = glyphs > 0.5
    (centre_x, half_x), (centre_y, half_y) = _extent(ink.any(1)), _extent(ink.any(2))
    half_y = torch.maximum(half_y, half_x * 0.8)
    # Narrow digits are widened a little, never to the full width.
    half_x = torch.maximum(half_x, half_y * _uniform(count, 0.6, 1.0, rng))
    zoom = _uniform(count, 0.95, 1.2, rng)
    shift_x, shift_y = _uniform(count, -0.12, 0.12, rng), _uniform(count, -0.08, 0.08, rng)
    zero = torch.zeros(count)
    rows = (half_x * zoom, zero, centre_x + half_x * shift_x), (zero, half_y * zoom, centre_y + half_y * shift_y)
    return _resample(glyphs, rows, _CANVAS)


def _degrade(glyphs: Tensor, rng: torch.Generator) -> Tensor:
    """Reduce ``glyphs_BHW`` to 8x8 in 16 grey levels, with random contrast and noise, and scale it up again."""
    count = len(glyphs)
    small = functional.avg_pool2d(glyphs[:, None], 4)
    small = small ** _uniform(count, 0.6, 1.5, rng)[:, None, None, None]
    small = small * _uniform(count, 0.75, 1.1, rng)[:, None, None, None]
    small = small + torch.randn(small.shape, generator=rng) * _uniform(count, 0.0, 0.1, rng)[:, None, None, None]
    small = (small.clamp(0, 1) * 16).round() / 16
    large = functional.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
    return large.clamp(0, 1)


def distort(glyphs: Tensor, rng: torch.Generator) -> Tensor:
    """Turn clean ``glyphs_BHW`` (64x64, 0..1) into ``images_B1HW`` (0..1) as the encoder takes them."""
    return _degrade(_fit(_rethicken(_warp(glyphs, rng), rng), rng), rng)


class CaptionWriter:
    """Makes up captions from the lists of this module.

    Args:
        tokenizer: Turns them into ids.
        rng: Where chance comes from.
    """

    def __init__(self, tokenizer: SimpleTokenizer, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng

    def name(self, digit: int) -> str:
        """Return one of the names of a digit."""
        return self._rng.choice(NAMES).format(digit=digit, word=WORDS[digit])

    def clause(self, digit: int) -> str:
        """Return a relative clause about a digit, with or without another digit's name."""
        if self._rng.random() < 0.35:
            other = self.name(self._rng.choice([other for other in range(10) if other != digit]))
            return "which " + self._rng.choice(MENTIONS).format(other=other)
        return "which " + self._rng.choice([shape for shape, digits in SHAPES if str(digit) in digits])

    def nonsense(self, longest: int) -> list[int]:
        """Return random tokens: by them the text tower learns to pass over words it does not know."""
        return [self._rng.randrange(START) for _ in range(self._rng.randint(1, longest))]

    def write(self, digit: int) -> Caption:
        """Make up a caption that is true of images of a digit."""
        encode = self._tokenizer.encode
        kind = self._rng.random()
        if kind < 0.1:
            shape, digits = self._rng.choice([entry for entry in SHAPES if str(digit) in entry[1]])
            tokens = encode(f"{self._rng.choice(NAMELESS)} which {shape}.")
            return Caption(tokens, frozenset(map(int, digits)))
        text = self._rng.choice(TEMPLATES).format(name=self.name(digit))
        if kind < 0.4:
            tokens = encode(f"{text}.")
        elif kind < 0.75:
            tokens = encode(f"{text} {self.clause(digit)}.")
        elif kind < 0.9:
            tokens = encode(f"{text} which") + self.nonsense(10) + encode(".")
        else:
            tokens = self.nonsense(16) + encode(f"{self.name(digit)}.")
        return Caption(tokens, frozenset((digit,)))


def matching_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Contrastive loss in both directions, where an image may have several true captions and the other way round.

    The targets of each row are spread evenly over its matches (Yang et al. 2022, "Unified Contrastive Learning in
    Image-Text-Label Space"); the two directions are averaged, as CLIP does.

    Args:
        logits: ``logits_BT``: cosines divided by the temperature.
        matches: ``matches_BT``, bool, with at least one in each row and column.
    """
    weights = matches.float()
    by_image = functional.cross_entropy(logits, weights / weights.sum(1, keepdim=True))
    by_text = functional.cross_entropy(logits.T, weights.T / weights.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


def _pick(values: Tensor, rng: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), (), generator=rng)]


def batches(
    glyphs: Tensor, digits: Tensor, images: int, texts: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ``images_BCHW``, normalised, ``tokens_TL`` and ``matches_BT`` without end.

    Args:
        glyphs: ``glyphs_NHW`` as :func:`render_fonts` draws them.
        digits: ``digits_N``.
        images: B, at least 10.
        texts: T, at least 10.
        seed: Of the choice and distortion of images, and of the captions.
    """
    rng = torch.Generator().manual_seed(seed)
    writer = CaptionWriter(glyph_tokenizer(), random.Random(seed))
    pools = [(digits == digit).nonzero()[:, 0] for digit in range(10)]
    while True:
        # Each digit equally often, so that every caption is true of some image.
        chosen = torch.stack([_pick(pools[index % 10], rng) for index in range(images)])
        captions = [writer.write(index % 10) for index in range(texts)]
        true = torch.tensor([[digit in caption.digits for caption in captions] for digit in range(10)])
        yield normalise(distort(glyphs[chosen], rng)), pad([each.tokens for each in captions]), true[digits[chosen]]


def normalise(images: Tensor) -> Tensor:
    """Turn ``images_B1HW`` in 0..1 into ``images_B3HW`` as the image tower takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def pad(texts: Sequence[Sequence[int]]) -> Tensor:
    """Return ``tokens_TL``: texts between start and end, filled with 0 to the length of the longest."""
    rows = [torch.tensor([START, *tokens[: CONTEXT_LENGTH - 2], END]) for tokens in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def encode_tokens(clip: CLIP, tokens: Tensor) -> Tensor:
    """Map ``tokens_TL`` to ``features_TE`` of length 1, as ``clip.encode_text`` does, which insists on the full L."""
    length = tokens.shape[1]
    embedded = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    hidden = clip.ln_final(clip.transformer(embedded, attn_mask=clip.attn_mask[:length, :length]))
    return functional.normalize(hidden[torch.arange(len(hidden)), tokens.argmax(1)] @ clip.text_projection, dim=-1)


def train(
    glyphs: Tensor,
    digits: Tensor,
    steps: int,
    *,
    images: int = 128,
    texts: int = 120,
    learning_rate: float = 2e-3,
    seed: int = 1,
    log: Callable[[int, float], None] | None = None,
) -> CLIP:
    """Train an encoder from scratch.

    Args:
        glyphs: ``glyphs_NHW`` as :func:`render_fonts` draws them.
        digits: ``digits_N``.
        steps: Steps of AdamW, with a warm-up over the first twentieth and a cosine decay.
        images: Images in a batch.
        texts: Captions in a batch.
        learning_rate: The highest.
        seed: Of weights, images and captions.
        log: Called with the step and its loss.

    Returns:
        The model in eval mode; its logit scale is as it was built.
    """
    torch.manual_seed(seed)
    clip = build_clip().train()
    clip.logit_scale.requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], learning_rate, weight_decay=0.05)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    stream = batches(glyphs, digits, images, texts, seed)
    for step in range(steps):
        pictures, tokens, matches = next(stream)
        cosines = clip.encode_image(pictures, normalize=True) @ encode_tokens(clip, tokens).T
        loss = matching_loss(clip.logit_scale.exp() * cosines, matches)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if log:
            log(step, loss.item())
    return clip.eval()


@torch.no_grad()
def zero_shot_accuracy(clip: CLIP, glyphs: Tensor, digits: Tensor, images: int = 4_000, seed: int = 2) -> float:
    """Return the share of distorted ``glyphs_NHW`` whose name, of the ten, is the nearest to them, 0..1."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(glyphs), (images,), generator=rng)
    tokenizer = glyph_tokenizer()
    texts = encode_tokens(clip, pad([tokenizer.encode(f"a photo of a digit {word}.") for word in WORDS]))
    right = 0
    for part in torch.split(chosen, 500):
        features = clip.encode_image(normalise(distort(glyphs[part], rng)), normalize=True)
        right += int(((features @ texts.T).argmax(1) == digits[part]).sum())
    return right / images


def serialise(clip: CLIP) -> bytes:
    """Return the weights as safetensors: arrays in float16, single numbers as they are."""
    return save({key: value.half() if value.ndim else value for key, value in clip.state_dict().items()})


def run(out: Path, steps: int) -> None:
    """Train, print the accuracy on the validation fonts, and write ``glyphs.safetensors`` into a folder."""
    make_folder(out)
    training, validation = render_fonts(FONTS), render_fonts(VALIDATION_FONTS)
    # Sums over several threads depend on their number; over one they are the same each time.
    torch.set_num_threads(1)

    def log(step: int, loss: float) -> None:
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.3f}", flush=True)

    clip = train(*training, steps, log=log)
    print(f"accuracy on the validation fonts: {100 * zero_shot_accuracy(clip, *validation):.1f} %")
    path = out / "glyphs.safetensors"
    sha256, size = write_bytes(path, serialise(clip))
    print(f"{path}: {size} bytes, sha256 {sha256}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Train the embedded encoder on digits rendered from fonts.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--steps", type=int, default=1_000)
    arguments = parser.parse_args()
    try:
        run(arguments.out, arguments.steps)
    except LnlbenchError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
