"""Backbones: the networks of the papers, and every timm model."""

from __future__ import annotations

from lnlbench.api import BackboneEntry

ENTRIES = (
    BackboneEntry(
        name="preact-resnet18",
        target="lnlbench.builtin.backbones.preact_resnet:preact_resnet18",
        summary="PreAct ResNet-18 for 32-pixel images, as in DivideMix's released code (11.2 M parameters).",
    ),
    BackboneEntry(
        name="resnet18-cifar",
        target="lnlbench.builtin.backbones.cifar_resnet:resnet18_cifar",
        summary="ResNet-18 with a 3x3 stem and no max-pooling, for 32-pixel images (11.2 M parameters).",
    ),
    BackboneEntry(
        name="cnn7",
        target="lnlbench.builtin.backbones.cnn7:cnn7",
        summary="Six convolutions and a linear layer, the '7-layer CNN' of JoCoR and Jo-SRC.",
    ),
    BackboneEntry(
        name="small-cnn",
        target="lnlbench.builtin.backbones.small_cnn:small_cnn",
        summary="Five narrow convolutions for 8 to 32-pixel images; a CPU trains it in seconds.",
    ),
    BackboneEntry(
        name="timm:",
        target="lnlbench.builtin.backbones.timm_models:timm_model",
        summary="Any timm model: 'timm:resnet50' from scratch, 'timm:resnet50+pretrained' with ImageNet weights.",
    ),
)
