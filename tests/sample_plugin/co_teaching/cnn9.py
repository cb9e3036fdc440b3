"""The nine-layer CNN of Co-teaching (Han et al., NeurIPS 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from lnlbench.api import UsageError

_SAME = ((128, 128, 128), (256, 256, 256))
_VALID = (512, 256, 128)
_SMALLEST = 28


class Cnn9(nn.Module):
    """Three blocks of three 3x3 convolutions with batch norm and leaky ReLU; then a mean over positions.

    The first two blocks keep the size and end in 2x2 max-pooling and dropout of whole maps; in the last one, each
    convolution takes two pixels off each side. The features are its 128 maps, averaged.
    """

    num_features = _VALID[-1]

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for widths in _SAME:
            for width in widths:
                layers += _convolution(channels, width, padding=1)
                channels = width
            layers += [nn.MaxPool2d(2), nn.Dropout2d(0.25)]
        for width in _VALID:
            layers += _convolution(channels, width, padding=0)
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(self.num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``."""
        features: Tensor = self.layers(images).mean((2, 3))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def _convolution(channels: int, width: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=padding), nn.BatchNorm2d(width), nn.LeakyReLU(0.01, inplace=True)]


def cnn9(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build it; see :class:`lnlbench.api.BackboneFactory`."""
    if image_size < _SMALLEST:
        raise UsageError(f"backbone {name!r} needs images of at least {_SMALLEST} pixels, these have {image_size}")
    return Cnn9(num_classes, channels)
