"""Every open_clip model that has CLIP's own text tower, as an encoder.

Legend: B images, T texts, C classes, M context tokens, L tokens, D width of a token embedding, E width of the common
space.
"""

from __future__ import annotations

import logging
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lnlbench.api import DataError, UnknownNameError, UsageError
from lnlbench.files import sha256_file
from lnlbench.formats.messages import reason

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# What open_clip looks for in a repository whose weights have no name of their own, the safe format first.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class Tokenizer(Protocol):
    """Texts to token ids, as :class:`open_clip.SimpleTokenizer` does it."""

    sot_token_id: int
    eot_token_id: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Return ``ids_TL``, int64: start, text, end, zeros; a text that is too long is cut before its end token."""


class ClipTowers(nn.Module):
    """The towers of an :class:`open_clip.CLIP` or :class:`open_clip.CustomTextCLIP`.

    Implements :class:`lnlbench.api.VisionLanguageModel`.
    """

    def __init__(
        self, clip: nn.Module, tokenizer: Tokenizer, mean: Sequence[float], std: Sequence[float], fingerprint: str
    ) -> None:
        """Freeze the towers.

        Args:
            clip: The model, whose text tower takes the feature at the end token.
            tokenizer: Its tokenizer.
            mean: Per channel, on the 0-1 scale.
            std: Per channel, on the 0-1 scale.
            fingerprint: SHA-256 (hex) of the weights.
        """
        super().__init__()
        self.clip = clip.float().eval().requires_grad_(False)
        self._tokenizer = tokenizer
        parts: Any = clip
        side = parts.visual.image_size
        self.image_size = int(side if isinstance(side, int) else side[0])
        self.mean = tuple(float(each) for each in mean)
        self.std = tuple(float(each) for each in std)
        self.context_dim = int(self._text.token_embedding.embedding_dim)
        projection = self._text.text_projection
        if projection is None:
            self.embed_dim = self.context_dim
        else:
            self.embed_dim = int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])
        self.temperature = float(torch.exp(-parts.logit_scale.double()))
        self.fingerprint = fingerprint
        self.eval()

    def encode_images(self, images: Tensor) -> Tensor:
        """Map ``images_BKHW``, normalised, to ``features_BE``."""
        features: Tensor = self.clip.encode_image(images)  # type: ignore[operator]
        return features

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map T texts to ``features_TE``; what the tower has no room for is cut off, as open_clip does."""
        tokens = self._tokenizer(list(texts), self._text.context_length)
        features: Tensor = self.clip.encode_text(tokens.to(self._device))  # type: ignore[operator]
        return features

    def embed_tokens(self, text: str) -> Tensor:
        """Return the token embeddings ``tokens_LD`` of a text, without start, end and padding."""
        return self._embedded(self._tokenizer.encode(text))

    def encode_prompts(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Map ``context_MD`` and C class names to ``features_CE`` (Zhou et al. 2022, CoOp, eq. 2).

        The text tower has a causal mask, so what follows the last end token cannot matter and is left out.

        Raises:
            UsageError: Context and a name are longer than the text tower takes.
        """
        text, tokenizer = self._text, self._tokenizer
        suffixes = [[*tokenizer.encode(f"{name}."), tokenizer.eot_token_id] for name in names]
        ends = [len(context) + len(suffix) for suffix in suffixes]
        room = text.context_length
        longest = max(range(len(names)), key=lambda each: ends[each])
        if ends[longest] >= room:
            raise UsageError(
                f"{len(context)} context tokens and the class name {names[longest]!r} make {ends[longest] + 1} tokens, "
                f"but the text tower takes {room}"
            )
        length = room if text.attn_mask is None else ends[longest] + 1
        padded = [suffix + [0] * (length - 1 - len(context) - len(suffix)) for suffix in suffixes]
        start = self._embedded([tokenizer.sot_token_id]).expand(len(names), -1, -1)
        middle = context.expand(len(names), -1, -1)
        sequence = torch.cat([start, middle, self._embedded(padded)], dim=1)
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        hidden = text.transformer(sequence + text.positional_embedding[:length], attn_mask=mask)
        rows, places = torch.arange(len(names)), torch.tensor(ends)
        features: Tensor = text.ln_final(hidden)[rows.to(self._device), places.to(self._device)]
        projection = text.text_projection
        if projection is None:
            return features
        projected: Tensor = projection(features) if isinstance(projection, nn.Linear) else features @ projection
        return projected

    @property
    def _text(self) -> Any:
        # CustomTextCLIP has its text tower in one piece, CLIP has the parts of it.
        return getattr(self.clip, "text", self.clip)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._text.positional_embedding.device
        return device

    def _embedded(self, tokens: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        embedded: Tensor = self._text.token_embedding(torch.tensor(tokens, dtype=torch.int64, device=self._device))
        return embedded


def open_clip_model(name: str) -> ClipTowers:
    """Build ``open-clip:<model>/<tag>``, or ``open-clip:<model>/<path>`` with the weights in a file.

    Weights are safetensors, or tensors in PyTorch's own format, which are read without running code of theirs. A
    TorchScript archive is code, so only those are taken that have the checksum OpenAI published.

    OpenAI trained with another activation, QuickGELU; a model name without it gets it nevertheless, and a warning.

    Raises:
        UnknownNameError: open_clip has no such model, or no such weights for it.
        UsageError: The model has another kind of text tower or tokenizer.
        DataError: The weights are not on this machine and cannot be downloaded, or are not this model's.
    """
    import open_clip

    model, _, source = name.partition(":")[2].partition("/")
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise UnknownNameError("open_clip model", model, open_clip.list_models())
    _check_text_tower(name, config)
    facts: dict[str, Any] = open_clip.get_pretrained_cfg(model, source)
    if facts:
        path = _published_weights(name, model, facts)
    elif source.endswith(_SUFFIXES):
        path = Path(source).expanduser()
    else:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise UnknownNameError(f"weights of open_clip model {model!r}", source, tags)
    fingerprint = _checked_fingerprint(path)
    quick = bool(facts.get("quick_gelu")) or fingerprint in _openai_checksums()
    if quick and not config.get("quick_gelu"):
        config["quick_gelu"] = True
        warnings.warn(
            f"encoder {name!r}: its weights were trained with QuickGELU, so it is built with that; "
            f"'{model}-quickgelu' says so in its name",
            UserWarning,
            stacklevel=2,
        )
    clip = _build(config)
    _load(clip, path, model, fingerprint)
    mean = facts.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = facts.get("std", open_clip.OPENAI_DATASET_STD)
    return ClipTowers(clip, open_clip.SimpleTokenizer(), mean, std, fingerprint)


def _check_text_tower(name: str, config: dict[str, Any]) -> None:
    text = config["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name") or text.get("embed_cls"):
        raise UsageError(
            f"encoder {name!r}: its text tower or tokenizer is not CLIP's own; "
            "choose a model that has them, for instance 'open-clip:ViT-B-32-quickgelu/openai'"
        )


def _build(config: dict[str, Any]) -> nn.Module:
    import open_clip

    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    # All weights come from the file; timm must not fetch some of its own.
    config["vision_cfg"]["timm_model_pretrained"] = False
    model: nn.Module = kind(**config)
    return model


def _published_weights(name: str, model: str, facts: dict[str, Any]) -> Path:
    """Return the file of published weights, downloading it if it is not in the cache of the Hugging Face hub.

    Raises:
        DataError: It is neither there nor can be downloaded.
    """
    import huggingface_hub

    repository, _, file = facts["hf_hub"].rpartition("/")
    files = (file,) if file else _HUB_FILES
    for each in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, each)
        if isinstance(cached, str):
            return Path(cached)
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        why = "and downloading is off"
    else:
        try:
            return _download(repository, files)
        except Exception as error:  # the hub's client fails in many ways, and with types of several libraries
            why = f"and cannot be downloaded ({reason(error)})"
    raise DataError(
        f"encoder {name!r}: its weights are not on this machine {why}; get {files[0]} of {repository} from "
        f"huggingface.co, put it anywhere, and name it: 'open-clip:{model}//path/to/{files[0]}'"
    )


def _download(repository: str, files: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # The client tells of every attempt; what came of them is told in one line by the caller.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    *first, last = files
    for each in first:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, each))
        except LocalEntryNotFoundError:  # an EntryNotFoundError by type, but it means that there is no connection
            raise
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repository, last))


def _openai_checksums() -> set[str]:
    import open_clip

    return {open_clip.get_pretrained_url(model, "openai").split("/")[-2] for model in open_clip.list_openai_models()}


def _checked_fingerprint(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the weights ({error.strerror}); check the path") from error


def _load(clip: nn.Module, path: Path, model: str, fingerprint: str) -> None:
    import open_clip

    scripted = _is_torchscript(path)
    if scripted and fingerprint not in _openai_checksums():
        raise DataError(
            f"{path}: is a TorchScript archive, which can run code, and none that OpenAI published; "
            "use its weights as safetensors"
        )
    try:
        if scripted:
            _load_torchscript(clip, path)
        else:
            open_clip.load_checkpoint(clip, str(path), weights_only=True)
    except Exception as error:  # damaged files fail in all the ways that pickles, archives and shapes can
        raise DataError(f"{path}: not weights of open_clip model {model!r} ({reason(error)})") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(each.endswith("/constants.pkl") for each in archive.namelist())


def _load_torchscript(clip: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but that is how OpenAI published them
        weights = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    facts = ("input_resolution", "context_length", "vocab_size")
    clip.load_state_dict({key: value for key, value in weights.items() if key not in facts})
