"""Every timm model as a backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lnlbench.api import UnknownNameError, UsageError

_PRETRAINED = "+pretrained"


class TimmBackbone(nn.Module):
    """Gives a timm model the interface of a backbone: features are what its last linear layer sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.num_features = int(model.head_hidden_size if hasattr(model, "head_hidden_size") else model.num_features)  # type: ignore[arg-type]

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD``."""
        features: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)  # type: ignore[operator]
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.model.get_classifier()(features)  # type: ignore[operator]
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


def timm_model(name: str, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build ``timm:<model>`` from scratch, or with ImageNet weights as ``timm:<model>+pretrained``.

    Raises:
        UnknownNameError: timm has no such model.
        UsageError: The model does not accept this input, or its weights cannot be had.
    """
    import timm

    model_name = name.partition(":")[2]
    pretrained = model_name.endswith(_PRETRAINED)
    model_name = model_name.removesuffix(_PRETRAINED)
    if not timm.is_model(model_name):
        raise UnknownNameError("timm model", model_name, timm.list_models())
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": channels}
    try:
        try:
            model = timm.create_model(model_name, img_size=image_size, **options)
        except TypeError:  # convolutional models have no fixed input size
            model = timm.create_model(model_name, **options)
    except Exception as error:
        raise UsageError(
            f"backbone {name!r} cannot be built for {channels} x {image_size} x {image_size} images: {error}"
        ) from error
    return TimmBackbone(model)
