"""Augmentation recipes as data: what a training view is, apart from how the engine computes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Grey = Annotated[int, Field(ge=0, le=255)]
Fill = Grey | tuple[Grey, Grey, Grey]
"""A grey level or a colour; on grey images a colour counts as its luminance."""

OpName = Literal[
    "identity",
    "autocontrast",
    "brightness",
    "colour",
    "contrast",
    "equalise",
    "posterise",
    "rotate",
    "sharpness",
    "shear-x",
    "shear-y",
    "solarise",
    "translate-x",
    "translate-y",
    "invert",
    "cutout",
]
"""Operations of :class:`RandAugment` and :class:`AutoAugment`.

On grey images ``colour`` changes nothing, and ``contrast`` blends with the mean grey level as ever.
"""


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RandomCrop(_Op):
    """Pad on every side, then crop to the image size at a uniform random position.

    Images that are larger than the dataset's image size (see :class:`lnlbench.api.Resize`) need no padding for that.
    """

    op: Literal["crop"] = "crop"
    padding: int = Field(4, ge=0, description="Pixels of padding on each side.")
    mode: Literal["zero", "reflect"] = Field(
        "zero", description="What is in the padding: black, or the image mirrored at its border pixels."
    )

    @model_serializer(mode="wrap")
    def _without_default_mode(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes are part of a run's identity, and runs are older than the mode.
        return {key: value for key, value in dump(self).items() if (key, value) != ("mode", "zero")}


class RandomResizedCrop(_Op):
    """Cut out a random part of random shape and scale it to the image size (Szegedy et al., CVPR 2015).

    Up to ten rectangles are tried; if none fits into the image, the largest central one of admissible shape is taken.
    Interpolation is bilinear, and antialiased where a part is scaled down.
    """

    op: Literal["resized-crop"] = "resized-crop"
    area: tuple[float, float] = Field((0.08, 1.0), description="Least and largest share of the image's area.")
    shape: tuple[float, float] = Field((3 / 4, 4 / 3), description="Least and largest width over height.")

    @model_validator(mode="after")
    def _is_a_range(self) -> RandomResizedCrop:
        if not 0.0 < self.area[0] <= self.area[1] <= 1.0:
            raise ValueError(f"area {self.area} is not a range within (0, 1]")
        if not 0.0 < self.shape[0] <= self.shape[1]:
            raise ValueError(f"shape {self.shape} is not a range of positive numbers")
        return self


class RandomFlip(_Op):
    """Mirror left to right."""

    op: Literal["flip"] = "flip"
    probability: float = Field(0.5, ge=0.0, le=1.0, description="Chance that an image is mirrored.")


class RandAugment(_Op):
    """Random operations one after another, drawn with replacement (Cubuk et al., NeurIPS 2020).

    Each draw takes an operation of the pool, applies it with the given probability, and takes its level uniformly from
    ``levels``. A level's strength is ``f = level / top``; the law says what that means for each operation:

    ============  ==================================  ==================================
    operation     ``fixmatch``                        ``autoaugment``
    ============  ==================================  ==================================
    rotate        30 f degrees, either way            the same
    shear-x, -y   0.3 f, either way                   the same
    translate     0.3 f of the side, either way       150/331 f of the side, either way
    brightness    factor 0.05 + 0.9 f                 factor 1 + 0.9 f or 1 - 0.9 f
    colour        factor 0.05 + 0.9 f                 factor 1 + 0.9 f or 1 - 0.9 f
    contrast      factor 0.05 + 0.9 f                 factor 1 + 0.9 f or 1 - 0.9 f
    sharpness     factor 0.05 + 0.9 f                 factor 1 + 0.9 f or 1 - 0.9 f
    posterise     to 4 + floor(4 f) bits              to 8 - round(4 f) bits
    solarise      from grey level 256 - 256 f         from grey level 255 - 255 f
    cutout        a square of 20 f pixels             the same
    ============  ==================================  ==================================

    ``identity``, ``autocontrast``, ``equalise`` and ``invert`` have no level. Translations are by whole pixels, rounded
    towards zero; geometric operations take the nearest pixel; a shear leaves the upper left corner where it is.

    The defaults are FixMatch's (Sohn et al., NeurIPS 2020), without its cutout. torchvision's ``RandAugment()`` is
    ``RandAugment(probability=1.0, law="autoaugment", levels=(9, 9), top=30)``: there, 31 levels start at 0.
    """

    op: Literal["randaugment"] = "randaugment"
    num_ops: int = Field(2, ge=1, le=8, description="Operations drawn for each image.")
    pool: tuple[OpName, ...] = Field(
        (
            "autocontrast",
            "brightness",
            "colour",
            "contrast",
            "equalise",
            "identity",
            "posterise",
            "rotate",
            "sharpness",
            "shear-x",
            "shear-y",
            "solarise",
            "translate-x",
            "translate-y",
        ),
        min_length=1,
        max_length=64,
        description="Operations to draw from; one that stands there twice is drawn twice as often.",
    )
    probability: float = Field(0.5, ge=0.0, le=1.0, description="Chance that a drawn operation is applied.")
    law: Literal["fixmatch", "autoaugment"] = Field("fixmatch", description="What a level means, as in the table.")
    levels: tuple[int, int] = Field((1, 9), description="Least and greatest level.")
    top: int = Field(10, ge=1, le=1000, description="The level of full strength.")
    fill: Fill = Field(0, description="Colour of what comes in from outside the image, and of cutouts.")

    @model_validator(mode="after")
    def _levels_are_a_range(self) -> RandAugment:
        if not 0 <= self.levels[0] <= self.levels[1] <= self.top:
            raise ValueError(f"levels {self.levels} are not a range within 0 to top = {self.top}")
        return self


class AutoAugment(_Op):
    """One of 25 learned pairs of operations (Cubuk et al., CVPR 2019), as in torchvision.

    Levels are of 0 to 9, and mean what they mean in :class:`RandAugment` with law ``autoaugment`` and ``top=9``.
    """

    op: Literal["autoaugment"] = "autoaugment"
    policy: Literal["cifar10", "imagenet"] = Field(description="The dataset the pairs were learned on.")
    fill: Fill = Field(128, description="Colour of what comes in from outside the image.")


class Cutout(_Op):
    """Cover a square around a uniform random pixel; what lies outside the image is lost (DeVries & Taylor, 2017)."""

    op: Literal["cutout"] = "cutout"
    share: float = Field(0.5, gt=0.0, le=1.0, description="Side of the square over the shorter side of the image.")
    pixels: int | None = Field(None, ge=1, description="Side of the square, if not as a share.")
    fill: Fill = Field(127, description="Colour of the square.")


class ColourJitter(_Op):
    """Change brightness, contrast, saturation and hue, in random order, as torchvision's ``ColorJitter`` does.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the shift of the hue in [-hue, hue] of a full circle.
    Saturation and hue change nothing on grey images.
    """

    op: Literal["colour-jitter"] = "colour-jitter"
    brightness: float = Field(0.4, ge=0.0, description="Strength.")
    contrast: float = Field(0.4, ge=0.0, description="Strength.")
    saturation: float = Field(0.4, ge=0.0, description="Strength.")
    hue: float = Field(0.1, ge=0.0, le=0.5, description="Largest shift; 0.5 is the opposite colour.")
    probability: float = Field(0.8, ge=0.0, le=1.0, description="Chance that an image is changed at all.")


class Greyscale(_Op):
    """Replace colours by their luminance."""

    op: Literal["greyscale"] = "greyscale"
    probability: float = Field(0.2, ge=0.0, le=1.0, description="Chance that an image becomes grey.")


PixelOp = RandAugment | AutoAugment | Cutout | ColourJitter | Greyscale
"""Operations on the pixels of a view, after it has been cut out of the image."""
ViewOp = Annotated[RandomCrop | RandomResizedCrop | RandomFlip | PixelOp, Field(discriminator="op")]


class ViewRecipe(BaseModel):
    """An ordered list of random operations; the empty recipe is the image as it is.

    Crops and flips cut the view out of the image, and come first; the other operations act on what was cut out. Those
    may stand there more than once, and draw anew each time.

    Every sample draws its own parameters from (seed, loader, epoch, pass, sample index, view number), so a view is the
    same whatever the batch size, the order of batches or the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[ViewOp, ...] = Field((), description="Operations, applied first to last.")

    @model_validator(mode="after")
    def _cuts_come_first(self) -> ViewRecipe:
        kinds = [isinstance(op, PixelOp) for op in self.ops]
        if kinds != sorted(kinds):
            raise ValueError(f"crops and flips come first, but this view is {', '.join(op.op for op in self.ops)}")
        return self

    @property
    def cuts(self) -> tuple[RandomCrop | RandomResizedCrop | RandomFlip, ...]:
        """What cuts the view out of the image."""
        return tuple(op for op in self.ops if not isinstance(op, PixelOp))

    @property
    def pixel_ops(self) -> tuple[PixelOp, ...]:
        """What then happens to its pixels."""
        return tuple(op for op in self.ops if isinstance(op, PixelOp))


PLAIN = ViewRecipe()
"""The un-augmented image; its centre, where images are larger than the dataset's image size."""
