"""Local binary patterns: which of the neighbours on a circle are brighter than a pixel, counted over a patch.

Ojala, Pietikäinen and Mäenpää, "Multiresolution Gray-Scale and Rotation Invariant Texture Classification with Local
Binary Patterns", IEEE PAMI 2002: rotation-invariant uniform patterns, equation 9, of 8 neighbours at several radii.
Only pixels whose circle lies in the patch are counted.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rayad.errors import OptionError
from rayad.models._texture import Features, Texture, grey
from rayad.options import Channels, PatchSide, Within
from rayad.tensors import Patches

NEIGHBOURS = 8
TOLERANCE = 1e-6
"""Below the steps of 16-bit pixels: where all is equal, rounding must not make a pattern."""
CODES = NEIGHBOURS + 2
"""Uniform patterns by their number of brighter neighbours, 0 to 8, and one code for all others."""


@dataclass(frozen=True)
class Config:
    """At which scales patterns are counted."""

    radii: Annotated[tuple[int, ...], Within(1, 127)] = (1, 2, 4)
    """Radii of the circles of neighbours, px."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour, of which the mean is taken."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""

    def __post_init__(self) -> None:
        if not self.radii or not all(1 <= radius < self.patch_px // 2 for radius in self.radii):
            raise OptionError(f"radii of local binary patterns are 1 to {self.patch_px // 2 - 1} px, not {self.radii}")

    def build(self) -> "Patterns":
        """A texture that nothing was learned of."""
        return Patterns(self)


class Patterns(Texture):
    """The shares of the patterns in a patch, at every radius."""

    def __init__(self, config: Config) -> None:
        super().__init__(self._shares, CODES * len(config.radii))
        self.config = config

    def _shares(self, x: Patches) -> Features:
        patterns = [codes(grey(x), radius) for radius in self.config.radii]
        return torch.cat([functional.one_hot(c.flatten(1), CODES).to(x).mean(1) for c in patterns], 1)


def codes(image: Float[Tensor, "n h w"], radius: int) -> Tensor:
    """The pattern of every pixel whose circle lies in the image, n h-2r w-2r."""
    h, w = image.shape[1:]
    centre = image[:, radius : h - radius, radius : w - radius]
    brighter = torch.stack([_neighbour(image, radius, k) >= centre - TOLERANCE for k in range(NEIGHBOURS)], -1)
    changes = (brighter != brighter.roll(1, -1)).sum(-1)
    return torch.where(changes <= 2, brighter.sum(-1), NEIGHBOURS + 1)


def _neighbour(image: Float[Tensor, "n h w"], radius: int, k: int) -> Tensor:
    """The k-th neighbour of every pixel, between pixels by bilinear interpolation."""
    angle = 2 * math.pi * k / NEIGHBOURS
    row, column = (round(radius * f, 5) for f in (-math.sin(angle), math.cos(angle)))
    h, w = (side - 2 * radius for side in image.shape[1:])
    top, left = math.floor(row), math.floor(column)
    down, right = row - top, column - left

    def at(dy: int, dx: int) -> Tensor:
        y, x = radius + top + dy, radius + left + dx
        return image[:, y : y + h, x : x + w]

    value = (1 - down) * ((1 - right) * at(0, 0) + (right * at(0, 1) if right else 0))
    return value + down * ((1 - right) * at(1, 0) + (right * at(1, 1) if right else 0)) if down else value
