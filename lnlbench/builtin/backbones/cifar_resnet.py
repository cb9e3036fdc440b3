"""Post-activation ResNet-18 (He et al., CVPR 2016) with the stem that small images call for."""

from __future__ import annotations

from torch import Tensor, nn


class CifarResNet18(nn.Module):
    """torchvision's ResNet-18 with a 3x3 convolution of stride 1 as its stem, and no max-pooling.

    D = 512. With 10 classes and RGB input it has 11,173,962 parameters.
    """

    num_features = 512

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        from torchvision.models import resnet18

        model = resnet18(num_classes=num_classes)
        model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.layers = nn.Sequential(
            *(model.conv1, model.bn1, model.relu, model.layer1, model.layer2, model.layer3, model.layer4),
            *(model.avgpool, nn.Flatten()),
        )
        self.head: nn.Module = model.fc

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``, D = 512."""
        features: Tensor = self.layers(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def resnet18_cifar(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build it; see :class:`lnlbench.api.BackboneFactory`. Any input of 8 pixels or more works."""
    del name, image_size
    return CifarResNet18(num_classes, channels)
