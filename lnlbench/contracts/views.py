"""Augmentation recipes as data: what a training view is, apart from how the engine computes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RandomCrop(_Op):
    """Pad with zeros (black) on every side, then crop to the image size at a uniform random position.

    Images that are larger than the dataset's image size (see :class:`lnlbench.api.Resize`) need no padding for that.
    """

    op: Literal["crop"] = "crop"
    padding: int = Field(4, ge=0, description="Pixels of zero padding on each side.")


class RandomResizedCrop(_Op):
    """Cut out a random part of random shape and scale it to the image size (Szegedy et al., CVPR 2015).

    Up to ten rectangles are tried; if none fits into the image, the largest central one of admissible shape is taken.
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


ViewOp = Annotated[RandomCrop | RandomResizedCrop | RandomFlip, Field(discriminator="op")]


class ViewRecipe(BaseModel):
    """An ordered list of random operations; the empty recipe is the image as it is.

    Every sample draws its own parameters from (seed, loader, epoch, pass, sample index, view number), so a view is the
    same whatever the batch size, the order of batches or the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[ViewOp, ...] = Field((), description="Operations, applied first to last.")


PLAIN = ViewRecipe()
"""The un-augmented image; its centre, where images are larger than the dataset's image size."""
