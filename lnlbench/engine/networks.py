"""A backbone in the run's precision and memory format."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PrecisionNetwork(nn.Module):
    """Runs a backbone under autocast and returns float32, so that no method has to mention precision.

    The autocast region is one forward pass: a longer one would keep low-precision copies of weights across an
    optimiser step, and train on stale ones.
    """

    def __init__(self, inner: nn.Module, precision: str, device: torch.device, compiled: bool) -> None:
        """Move ``inner`` to the device, channels-last.

        Args:
            inner: The backbone.
            precision: ``"float32"`` or ``"bf16"``.
            device: Where it works.
            compiled: Whether to compile its forward pass with ``torch.compile``.
        """
        super().__init__()
        self.inner = inner.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_features: int = inner.num_features  # type: ignore[assignment]
        self._device_type = device.type
        self._autocast = precision == "bf16"
        embed: Callable[[Tensor], Tensor] = inner.embed  # type: ignore[assignment]
        classify: Callable[[Tensor], Tensor] = inner.classify  # type: ignore[assignment]
        if compiled:
            embed = torch.compile(embed)
        self._passes: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = (embed, classify)

    def _region(self) -> torch.autocast:
        return torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocast)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``, float32."""
        with self._region():
            logits = self._passes[1](self._passes[0](images))
        return logits.float()

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``, float32."""
        with self._region():
            features = self._passes[0](images)
        return features.float()

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``, float32."""
        with self._region():
            logits = self._passes[1](features)
        return logits.float()
