"""Co-occurrence of grey levels: how often two levels stand next to each other in a patch, and what follows from that.

Haralick, Shanmugam and Dinstein, "Textural Features for Image Classification", IEEE SMC 1973: contrast, dissimilarity,
homogeneity, energy, correlation and entropy of the symmetric matrix, the mean over four directions, at several
distances.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from rayad.errors import OptionError
from rayad.models._texture import Features, Texture, grey
from rayad.options import Channels, PatchSide, Within
from rayad.tensors import Patches

DIRECTIONS = ((0, 1), (-1, 1), (-1, 0), (-1, -1))
"""Rows and columns to the other pixel at distance 1: 0, 45, 90 and 135 degrees."""
PROPERTIES = 6


@dataclass(frozen=True)
class Config:
    """How pixels are paired."""

    levels: Annotated[int, Within(2, 256)] = 16
    """Grey levels that pixels in [0, 1] are cut into."""
    distances: Annotated[tuple[int, ...], Within(1, 255)] = (1, 2, 4)
    """Distances between the pixels of a pair, px."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour, of which the mean is taken."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise OptionError(f"co-occurrence needs 2 to 256 grey levels, not {self.levels}")
        if not self.distances or not all(1 <= distance < self.patch_px for distance in self.distances):
            raise OptionError(f"distances of co-occurrence are 1 to {self.patch_px - 1} px, not {self.distances}")

    def build(self) -> "CoOccurrence":
        """A texture that nothing was learned of."""
        return CoOccurrence(self)


class CoOccurrence(Texture):
    """The properties of a patch's matrices, at every distance."""

    def __init__(self, config: Config) -> None:
        super().__init__(self._properties, PROPERTIES * len(config.distances))
        self.config = config

    def _properties(self, x: Patches) -> Features:
        levels = (grey(x).clamp(0, 1) * self.config.levels).long().clamp_max(self.config.levels - 1)
        measures = []
        for distance in self.config.distances:
            direction_properties = [
                properties(matrix(levels, self.config.levels, dy * distance, dx * distance).to(x))
                for dy, dx in DIRECTIONS
            ]
            measures.append(torch.stack(direction_properties).mean(0))
        return torch.cat(measures, 1)


def matrix(levels: Tensor, number: int, dy: int, dx: int) -> Float[Tensor, "n k k"]:
    """Shares of the pairs (level, level of the pixel dy below and dx to the right), counted both ways round.

    Args:
        levels: n h w, whole numbers below `number`; dy is at most 0.
    """
    n, h, w = levels.shape
    left, right = max(0, -dx), w - max(0, dx)
    pixels, neighbours = levels[:, -dy:, left:right], levels[:, : h + dy, left + dx : right + dx]
    pairs = (pixels * number + neighbours).flatten(1) + number**2 * torch.arange(n, device=levels.device)[:, None]
    counts = torch.bincount(pairs.flatten(), minlength=n * number**2).view(n, number, number).double()
    return (counts + counts.mT) / (2 * max(1, pairs.shape[1]))


def properties(p: Float[Tensor, "n k k"]) -> Features:
    """Contrast, dissimilarity, homogeneity, energy, correlation (1 where all pixels are equal) and entropy in nats."""
    level = torch.arange(p.shape[1], device=p.device).to(p)
    difference = level[:, None] - level
    mean = torch.einsum("nij,i->n", p, level)
    centred = level - mean[:, None]  # n k
    variance = torch.einsum("nij,ni->n", p, centred.square())
    covariance = torch.einsum("nij,ni,nj->n", p, centred, centred)
    flat = variance < 1e-12
    correlation = torch.where(flat, 1, covariance / torch.where(flat, 1, variance))
    return torch.stack(
        [
            (p * difference.square()).sum((1, 2)),
            (p * difference.abs()).sum((1, 2)),
            (p / (1 + difference.square())).sum((1, 2)),
            p.square().sum((1, 2)).sqrt(),
            correlation,
            -torch.xlogy(p, p).sum((1, 2)),
        ],
        1,
    )
