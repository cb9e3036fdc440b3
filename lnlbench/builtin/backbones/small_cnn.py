"""A small convolutional network for the embedded suites."""

from __future__ import annotations

from torch import Tensor, nn

_WIDTH = 16


class SmallCnn(nn.Module):
    """Conv-conv-pool-conv-conv-pool-conv with batch norm and ReLU, global average pooling, one linear layer.

    Widths 16, 16, 32, 32, 64; D = 64. With one input channel and ten classes it has 35,674 parameters.
    """

    num_features = 4 * _WIDTH

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()

        def block(in_width: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(in_width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

        self.layers = nn.Sequential(
            *block(channels, _WIDTH),
            *block(_WIDTH, _WIDTH),
            nn.MaxPool2d(2),
            *block(_WIDTH, 2 * _WIDTH),
            *block(2 * _WIDTH, 2 * _WIDTH),
            nn.MaxPool2d(2),
            *block(2 * _WIDTH, 4 * _WIDTH),
        )
        self.head = nn.Linear(self.num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``, D = 64."""
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def small_cnn(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build it; see :class:`lnlbench.api.BackboneFactory`."""
    del name, image_size
    return SmallCnn(num_classes, channels)
