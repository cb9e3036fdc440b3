"""Vision-language encoders as a run uses them: on its device, with the features of the training set kept on the disk.

Legend: N training samples, B batch, H height, W width, K channels, T texts, E features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lnlbench.contracts.encoder import EncoderEntry, EncoderFactory, VisionLanguageModel
from lnlbench.contracts.views import PLAIN
from lnlbench.engine.hub import offline_if
from lnlbench.engine.tracking import Emit
from lnlbench.engine.views import PixelSource
from lnlbench.errors import PluginError
from lnlbench.files import (
    HashingWriter,
    make_folder,
    read_json,
    remove_leftovers,
    sha256_file,
    write_atomically,
    write_json,
)
from lnlbench.formats.messages import reason
from lnlbench.plugins import Catalogue
from lnlbench.records import digest, safe_name

_FORMAT = 1
_IMAGES, _TEXTS = 128, 128
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class TrainingImages:
    """The training images of a run, as encoders see them."""

    source: PixelSource
    digest: str
    """Digest of the data."""
    mean: tuple[float, ...]
    """Per channel, on the 0-1 scale: how the source normalises."""
    std: tuple[float, ...]
    """Likewise."""


class Encoders:
    """The encoders of one run, each built when it is first asked for."""

    def __init__(
        self,
        catalogue: Catalogue[EncoderEntry],
        images: TrainingImages,
        root: Path,
        device: torch.device,
        precision: str,
        emit: Emit,
        *,
        offline: bool,
    ) -> None:
        """Build nothing yet.

        Args:
            catalogue: Every installed encoder.
            images: The training images.
            root: Folder for features of training sets, shared between runs.
            device: Where encoders work.
            precision: The run's, ``"float32"`` or ``"bf16"``.
            emit: Where events go.
            offline: Whether factories must not download.
        """
        self._catalogue = catalogue
        self._images = images
        self._root = root
        self._device = device
        self._precision = precision
        self._emit = emit
        self._offline = offline
        self._built: dict[str, TaskEncoder] = {}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What was used so far: SHA-256 of the weights, by name."""
        return {name: encoder.fingerprint for name, encoder in self._built.items()}

    def get(self, name: str) -> TaskEncoder:
        """Return an encoder.

        Raises:
            UnknownNameError: No encoder of that name.
            DataError: Its weights are not there.
            PluginError: It is not what the contract asks for.
        """
        if name not in self._built:
            registered = self._catalogue.find(name)
            factory: EncoderFactory = registered.load()
            model = self._build(factory, name)
            if not isinstance(model, nn.Module):
                raise PluginError(f"encoder {name!r} of {registered.provider} is not a torch.nn.Module")
            self._built[name] = TaskEncoder(
                name, model, self._images, self._root, self._device, self._precision, self._emit
            )
        return self._built[name]

    def _build(self, factory: EncoderFactory, name: str) -> VisionLanguageModel:
        # Whatever building draws of random numbers must not move the run's own generators.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            with offline_if(self._offline):
                model = factory(name)
        for each in caught:
            if issubclass(each.category, UserWarning):
                self._emit({"event": "warning", "message": reason(str(each.message))})
        return model


class TaskEncoder:
    """Implements :class:`lnlbench.contracts.encoder.Encoder`.

    Everything is computed in float32, with one exception: augmented views on a GPU, in a run of lower precision, are
    encoded under autocast to float16. Cosines are divided by temperatures as small as 0.01; with a ViT-B/32, float16
    moves them by 0.0002 at most, bfloat16 by 0.002.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        images: TrainingImages,
        root: Path,
        device: torch.device,
        precision: str,
        emit: Emit,
    ) -> None:
        """Move the model to the device; see :class:`Encoders` for the arguments."""
        model = model.to(device).eval().requires_grad_(False)
        self._model: VisionLanguageModel = model  # type: ignore[assignment]
        self.name = name
        self.embed_dim = self._model.embed_dim
        self.context_dim = self._model.context_dim
        self.temperature = self._model.temperature
        self.fingerprint = self._model.fingerprint
        self._images = images
        self._root = root
        self._device = device
        self._half = device.type == "cuda" and precision != "float32"
        self._emit = emit
        self._training: Tensor | None = None
        self._texts: dict[str, Tensor] = {}
        # Both normalisations as one multiplication and one addition, before and after resizing.
        self._image_mean, self._image_std = self._per_channel(images.mean), self._per_channel(images.std)
        self._mean, self._std = self._per_channel(self._model.mean), self._per_channel(self._model.std)

    def training_features(self) -> Tensor:
        """See :meth:`lnlbench.contracts.encoder.Encoder.training_features`."""
        if self._training is None:
            stored = self._kept("image", self._image_facts(), self._images.source.size, self._encode_training_images)
            self._training = torch.from_numpy(stored).to(self._device)
        return self._training

    def image_features(self, images: Tensor) -> Tensor:
        """See :meth:`lnlbench.contracts.encoder.Encoder.image_features`."""
        return self._encode(images, half=self._half)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`lnlbench.contracts.encoder.Encoder.text_features`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            facts = {"format": _FORMAT, "texts": new, "encoder": self.name, "weights": self.fingerprint}
            features = self._kept("text", facts, len(new), lambda: self._encode_texts(new))
            self._texts.update(zip(new, torch.from_numpy(features).to(self._device), strict=True))
        if not texts:
            return torch.empty(0, self.embed_dim, device=self._device)
        return torch.stack([self._texts[text] for text in texts])

    def token_embeddings(self, text: str) -> Tensor:
        """See :meth:`lnlbench.contracts.encoder.Encoder.token_embeddings`."""
        return self._model.embed_tokens(text).detach().float().clone()

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """See :meth:`lnlbench.contracts.encoder.Encoder.prompt_features`."""
        return _unit(self._model.encode_prompts(context, names))

    @torch.no_grad()
    def _encode(self, images: Tensor, *, half: bool) -> Tensor:
        pixels = (images.float() * self._image_std + self._image_mean).clamp(0.0, 1.0)
        pixels = _with_channels(pixels, len(self._model.mean))
        size = self._model.image_size
        if pixels.shape[-2:] != (size, size):
            pixels = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        normalised = (pixels - self._mean) / self._std
        with torch.autocast(self._device.type, torch.float16, enabled=half):
            features = self._model.encode_images(normalised)
        return _unit(features)

    def _per_channel(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None, None]

    def _kept(
        self, kind: str, facts: dict[str, object], count: int, compute: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return features of shape ``(count, E)``: from the disk, or computed and then kept there."""
        folder = make_folder(self._root / f"{safe_name(self.name)[-64:]}-{digest(facts)[:16]}")
        stage = f"{kind} features ({self.name})"
        self._emit({"event": "stage", "stage": stage})
        # Runs that need the same features wait here for the first of them.
        with filelock.FileLock(folder / ".lock"):
            remove_leftovers(folder)
            stored = self._read(folder, count)
            features = compute() if stored is None else stored
            if stored is None:
                _write(folder, features, facts)
        self._emit({"event": "stage done", "stage": stage, "cached": stored is not None})
        return features

    def _image_facts(self) -> dict[str, object]:
        """Return everything the features of the training set depend on, down to rounding."""
        source = self._images.source
        return {
            "format": _FORMAT,
            "data": self._images.digest,
            "images": [source.size, source.height, source.width, source.channels],
            "encoder": self.name,
            "weights": self.fingerprint,
            "image_size": self._model.image_size,
            "mean": list(self._model.mean),
            "std": list(self._model.std),
            "resize": "bicubic",
        }

    def _encode_training_images(self) -> NDArray[np.float32]:
        source = self._images.source
        order = torch.arange(source.size, device=self._device)
        features = np.empty((source.size, self.embed_dim), np.float32)
        start = 0
        for (images,) in source.batches(order, _IMAGES, -(-source.size // _IMAGES), (PLAIN,), (0,)):
            features[start : start + len(images)] = self._encode(images, half=False).cpu().numpy()
            start += len(images)
        return features

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [_unit(self._model.encode_texts(texts[at : at + _TEXTS])) for at in range(0, len(texts), _TEXTS)]
        features: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return features

    def _read(self, folder: Path, count: int) -> NDArray[np.float32] | None:
        """Return what is stored; ``None`` if there is nothing, or, with a warning, if it is damaged."""
        if not (folder / "features.json").exists():
            return None
        path = folder / "features.npy"
        try:
            if sha256_file(path) != read_json(folder / "features.json")["sha256"]:
                raise ValueError("its content does not match its checksum")
            features: NDArray[np.float32] = np.load(path, allow_pickle=False)
            if features.shape != (count, self.embed_dim) or features.dtype != np.float32:
                raise ValueError(f"it has {features.dtype} of shape {features.shape}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} is damaged ({reason(error)}); the features are computed again"
            self._emit({"event": "warning", "message": message})
            return None
        return features


def _write(folder: Path, features: NDArray[np.float32], facts: dict[str, object]) -> None:
    def write(writer: HashingWriter) -> None:
        np.save(writer, features, allow_pickle=False)

    sha256, size = write_atomically(folder / "features.npy", write)
    write_json(folder / "features.json", {"sha256": sha256, "size": size, **facts})


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Make ``pixels_BKHW`` grey (luma of ITU-R BT.601) or coloured, if they are not."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 1:
        return (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    return pixels.expand(-1, channels, -1, -1)
