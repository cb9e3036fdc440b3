"""The seven-layer CNN of JoCoR (Wei et al., CVPR 2020) and Jo-SRC (Yao et al., CVPR 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from lnlbench.api import UsageError

_WIDTHS = (64, 64, 128, 128, 196, 16)


class Cnn7(nn.Module):
    """Six 3x3 convolutions with batch norm and ReLU, three 2x2 max-poolings, one linear layer.

    On 32-pixel RGB images the features are 16 maps of 4x4, flattened: D = 256.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_width = channels
        for position, width in enumerate(_WIDTHS):
            layers += [nn.Conv2d(in_width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_width = width
            if position % 2 == 1:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = _WIDTHS[-1] * (image_size // 8) ** 2
        self.head = nn.Linear(self.num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``."""
        features: Tensor = self.layers(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def cnn7(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build it; see :class:`lnlbench.api.BackboneFactory`."""
    if image_size < 8:
        raise UsageError(f"backbone {name!r} needs images of at least 8 pixels, these have {image_size}")
    return Cnn7(num_classes, channels, image_size)
