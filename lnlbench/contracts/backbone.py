"""What a backbone is: a factory of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import nn


class BackboneEntry(BaseModel):
    """A backbone as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'preact-resnet18'; a name ending in ':' takes a model name after it.")
    target: str = Field(description="Where the factory is, as 'package.module:function'.")
    summary: str = Field(description="One sentence.")


class BackboneFactory(Protocol):
    """Builds one network with freshly initialised weights, on the CPU."""

    def __call__(self, name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
        """Build it.

        Args:
            name: The full name asked for, e.g. ``timm:resnet50``.
            num_classes: Number of outputs C.
            channels: Input channels.
            image_size: Side of the square input in pixels.

        Returns:
            A module with ``num_features`` (int), ``embed(images_BCHW) -> features_BD`` and
            ``classify(features_BD) -> logits_BC``; its ``forward`` is the two in a row.

        Raises:
            UsageError: The name or the input size does not fit this backbone.
        """
