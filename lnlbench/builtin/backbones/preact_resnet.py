"""Pre-activation ResNet-18 for small images (He et al., ECCV 2016), in the form DivideMix's released code uses."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        changes_shape = stride != 1 or in_width != width
        self.shortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if changes_shape else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map feature maps to feature maps."""
        activated = relu(self.norm1(inputs), inplace=True)
        # Unlike in the paper, the identity shortcut carries the activated input; published LNL numbers rest on this.
        shortcut = self.shortcut(activated)
        hidden: Tensor = self.conv2(relu(self.norm2(self.conv1(activated)), inplace=True))
        outputs: Tensor = hidden + shortcut
        return outputs


class PreActResNet18(nn.Module):
    """Stem, four stages of two blocks (64, 128, 256, 512 channels), global average pooling, one linear layer.

    There is no normalisation or ReLU after the last block, again as in the code behind the published numbers. With 10
    classes and RGB input it has 11,171,274 parameters.
    """

    num_features = 512

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        in_width = 64
        for width, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1):
                blocks.append(PreActBlock(in_width, width, stride))
                in_width = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(self.num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``, D = 512."""
        maps: Tensor = self.blocks(self.stem(images))
        return maps.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def preact_resnet18(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build it; see :class:`lnlbench.api.BackboneFactory`. Any input of 8 pixels or more works."""
    del name, image_size
    return PreActResNet18(num_classes, channels)
