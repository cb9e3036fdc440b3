"""Augmentation recipes as data: what a training view is, apart from how the engine computes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Op(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RandomCrop(_Op):
    """Pad with zeros (black) on every side, then crop to the original size at a uniform random position."""

    op: Literal["crop"] = "crop"
    padding: int = Field(4, ge=0, description="Pixels of zero padding on each side.")


class RandomFlip(_Op):
    """Mirror left to right."""

    op: Literal["flip"] = "flip"
    probability: float = Field(0.5, ge=0.0, le=1.0, description="Chance that an image is mirrored.")


ViewOp = Annotated[RandomCrop | RandomFlip, Field(discriminator="op")]


class ViewRecipe(BaseModel):
    """An ordered list of random operations; the empty recipe is the image as it is.

    Every sample draws its own parameters from (seed, loader, epoch, pass, sample index, view number), so a view is the
    same whatever the batch size, the order of batches or the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: tuple[ViewOp, ...] = Field((), description="Operations, applied first to last.")


PLAIN = ViewRecipe()
"""The un-augmented image."""
