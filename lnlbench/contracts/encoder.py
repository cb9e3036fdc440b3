"""What a vision-language encoder is: a frozen pair of towers that put images and texts into one space (CLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.method import Paper

if TYPE_CHECKING:
    from torch import Tensor


class EncoderEntry(BaseModel):
    """A vision-language encoder as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'glyphs'; a name ending in ':' takes a model name after it.")
    target: str = Field(description="Where the factory is, as 'package.module:function'.")
    summary: str = Field(description="One sentence.")
    paper: Paper | None = Field(None, description="The publication, if there is one.")


class VisionLanguageModel(Protocol):
    """The two towers, as a :class:`torch.nn.Module` on the CPU, in eval mode, without gradients for its parameters.

    Shapes: B images, H and W pixels, T texts, C classes, M context tokens, L tokens, D width of a token embedding, E
    width of the common space. Features are not normalised yet.
    """

    image_size: int
    """Side of the square input in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the 0-1 scale; its length is the number of input channels, 1 or 3."""
    std: tuple[float, ...]
    """Per channel, on the 0-1 scale."""
    embed_dim: int
    """E."""
    context_dim: int
    """D."""
    temperature: float
    """What cosines are divided by for a softmax: 1 / exp(logit scale)."""
    fingerprint: str
    """SHA-256 (hex) of the weights."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` (float32, of :attr:`image_size`, normalised) to ``features_BE``."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map T texts to ``features_TE``."""

    def embed_tokens(self, text: str) -> Tensor:
        """Return the token embeddings ``tokens_LD`` of a text, without start, end and padding."""

    def encode_prompts(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Map learnable context to class features (Zhou et al. 2022, CoOp, eq. 2), differentiably.

        The sequence of class c is: start, the M context vectors, the tokens of its name, ".", end, padding.

        Args:
            context: ``context_MD``, float32, shared by all classes.
            names: C class names.

        Returns:
            ``features_CE``.

        Raises:
            UsageError: Context and a name are longer than the text tower takes.
        """


class EncoderFactory(Protocol):
    """Builds a pair of towers with its weights."""

    def __call__(self, name: str) -> VisionLanguageModel:
        """Build it.

        Args:
            name: The full name asked for, e.g. ``open-clip:ViT-B-32-quickgelu/openai``.

        Raises:
            UnknownNameError: There is no such model.
            DataError: Its weights are not on this machine and cannot be downloaded; the message says what to fetch and
                where to put it.
        """


class Encoder(Protocol):
    """A frozen vision-language encoder, as a method sees it. All features have length 1 and are float32, on the device.

    Shapes as in :class:`VisionLanguageModel`; N training samples.
    """

    name: str
    embed_dim: int
    context_dim: int
    temperature: float
    fingerprint: str
    """SHA-256 (hex) of the weights."""

    def training_features(self) -> Tensor:
        """Return ``features_NE`` of the un-augmented training images; computed once per data folder, then read."""

    def image_features(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW``, as a loader gives them, to ``features_BE``, without gradient.

        They are scaled to the encoder's input size (bicubic) and normalised as it wants them; a grey image becomes a
        coloured one where it wants colours.
        """

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Map T texts to ``features_TE``, without gradient; a set of texts is computed once per data folder."""

    def token_embeddings(self, text: str) -> Tensor:
        """Return ``tokens_LD`` of a text: what a learnable context may start from."""

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Map ``context_MD`` and C class names to ``features_CE``; gradients flow to the context only.

        Raises:
            UsageError: Context and a name are longer than the text tower takes.
        """
