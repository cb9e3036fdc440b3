"""The learned policies of AutoAugment (Cubuk et al., CVPR 2019, tables 7 and 9 of the appendix), as in torchvision.

Each pair of operations is two times: name, probability, level of 0 to 9 (0 where an operation has none).
"""

from __future__ import annotations

Move = tuple[str, float, int]

POLICIES: dict[str, tuple[tuple[Move, Move], ...]] = {
    "cifar10": (
        (("invert", 0.1, 0), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
        (("autocontrast", 0.5, 0), ("equalise", 0.9, 0)),
        (("shear-y", 0.2, 7), ("posterise", 0.3, 7)),
        (("colour", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalise", 0.6, 0), ("equalise", 0.5, 0)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("colour", 0.7, 7), ("translate-x", 0.5, 8)),
        (("equalise", 0.3, 0), ("autocontrast", 0.4, 0)),
        (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("colour", 0.2, 8)),
        (("solarise", 0.5, 2), ("invert", 0.0, 0)),
        (("equalise", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalise", 0.2, 0), ("equalise", 0.6, 0)),
        (("colour", 0.9, 9), ("equalise", 0.6, 0)),
        (("autocontrast", 0.8, 0), ("solarise", 0.2, 8)),
        (("brightness", 0.1, 3), ("colour", 0.7, 0)),
        (("solarise", 0.4, 5), ("autocontrast", 0.9, 0)),
        (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
        (("autocontrast", 0.9, 0), ("solarise", 0.8, 3)),
        (("equalise", 0.8, 0), ("invert", 0.1, 0)),
        (("translate-y", 0.7, 9), ("autocontrast", 0.9, 0)),
    ),
    "imagenet": (
        (("posterise", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarise", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
        (("posterise", 0.6, 7), ("posterise", 0.6, 6)),
        (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
        (("equalise", 0.4, 0), ("rotate", 0.8, 8)),
        (("solarise", 0.6, 3), ("equalise", 0.6, 0)),
        (("posterise", 0.8, 5), ("equalise", 1.0, 0)),
        (("rotate", 0.2, 3), ("solarise", 0.6, 8)),
        (("equalise", 0.6, 0), ("posterise", 0.4, 6)),
        (("rotate", 0.8, 8), ("colour", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalise", 0.6, 0)),
        (("equalise", 0.0, 0), ("equalise", 0.8, 0)),
        (("invert", 0.6, 0), ("equalise", 1.0, 0)),
        (("colour", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("colour", 1.0, 2)),
        (("colour", 0.8, 8), ("solarise", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
        (("shear-x", 0.6, 5), ("equalise", 1.0, 0)),
        (("colour", 0.4, 0), ("equalise", 0.6, 0)),
        (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
        (("solarise", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("invert", 0.6, 0), ("equalise", 1.0, 0)),
        (("colour", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
    ),
}
