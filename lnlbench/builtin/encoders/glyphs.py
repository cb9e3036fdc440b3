"""The embedded encoder: a small CLIP (Radford et al. 2021) trained on digits rendered from fonts.

What it is and what it is not: ``weights/MODEL_CARD.md``. How it is trained:
:mod:`lnlbench.builtin.encoders.train_glyphs`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnlbench.api import DataError, UnknownNameError
from lnlbench.builtin.encoders.open_clip_models import ClipTowers

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer

WEIGHTS = Path(__file__).with_name("weights") / "glyphs.safetensors"
SHA256 = "93ac7154be6c21c8b375386ed96ebf087b3002e1d4f422c0ac4ea7cd46ef3c71"

# CLIP's byte-pair encoding starts with the 256 bytes, inside a word and at its end; the merges follow, most frequent
# first, and then start and end. The first of the merges make a vocabulary of 8,192 that can still encode any text.
_BYTES = 512
_MERGES = 7_678
START = _BYTES + _MERGES
END = START + 1

IMAGE_SIZE = 32
CONTEXT_LENGTH = 77
# Grey images are given as three equal channels, for open_clip's towers take colours only.
MEAN = (0.3, 0.3, 0.3)
STD = (0.38, 0.38, 0.38)


def glyph_tokenizer() -> SimpleTokenizer:
    """Return CLIP's tokenizer, cut down to its first 7,678 merges."""
    # Imported here, for it takes seconds.
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    tokenizer.bpe_ranks = {pair: rank for pair, rank in tokenizer.bpe_ranks.items() if rank < _MERGES}
    tokenizer.encoder |= {"<start_of_text>": START, "<end_of_text>": END}
    tokenizer.sot_token_id, tokenizer.eot_token_id = START, END
    return tokenizer


def build_clip() -> CLIP:
    """Build the model with random weights.

    Its temperature is what CLIP starts its training with, 0.07, which is also CLIPCleaner's (Feng et al. 2024).
    """
    from open_clip import CLIP

    vision: dict[str, Any] = {"image_size": IMAGE_SIZE, "layers": (1, 1, 1, 1), "width": 8, "head_width": 64}
    text: dict[str, Any] = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": END + 1,
        "width": 64,
        "heads": 4,
        "layers": 3,
    }
    return CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)


def glyphs(name: str) -> ClipTowers:
    """Build the embedded encoder; see :class:`lnlbench.api.EncoderFactory`.

    Raises:
        UnknownNameError: ``name`` is not "glyphs".
        DataError: The installed weights are missing or damaged.
    """
    from safetensors.torch import load

    if name != "glyphs":
        raise UnknownNameError("encoder", name, ["glyphs"])
    data = WEIGHTS.read_bytes() if WEIGHTS.is_file() else b""
    fingerprint = hashlib.sha256(data).hexdigest()
    if fingerprint != SHA256:
        raise DataError(
            f"{WEIGHTS}: is missing or damaged (sha256 {fingerprint}, not {SHA256}); install lnlbench again"
        )
    clip = build_clip()
    clip.load_state_dict(load(data))
    return ClipTowers(clip, glyph_tokenizer(), MEAN, STD, fingerprint).eval()
