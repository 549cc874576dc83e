"""A self-organizing map: units on a grid that spread over the latents; novelty is the distance to the nearest.

Kohonen, "Self-Organized Formation of Topologically Correct Feature Maps", 1982, by the batch rule (Kohonen, "Essentials
of the Self-Organizing Map", 2013): every unit becomes the mean of the latents, weighted by how near it lies on the grid
to their best unit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayad.density._arrays import Learned, Others, in_parts, squared_distances
from rayad.errors import OptionError
from rayad.options import Count, Size
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """Size of the map and its learning."""

    rows: Size = 12
    """Rows of the grid of units."""
    columns: Size = 12
    """Columns of the grid of units."""
    epochs: Count = 40
    """Passes over the training latents; the neighbourhood shrinks from half the map to half a unit."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.epochs) < 1:
            raise OptionError(
                f"rows, columns and epochs of a map must be at least 1, not {self.rows}, {self.columns}, {self.epochs}"
            )

    def build(self, variables: int) -> "Map":
        """A map that learned nothing."""
        return Map(self, variables)


class Map(Learned):
    """Units, k m, row by row of the grid."""

    units: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__(variables, units="k m")
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Spread the units, from random training latents on."""
        z, number = self.standardize(train, 2), self.config.rows * self.config.columns
        generator = torch.Generator().manual_seed(seed)
        self.keep(units=z[torch.randint(len(z), (number,), generator=generator).to(z.device)])
        grid_distances = self._grid_distances().to(z)
        widths = torch.logspace(0, 1, self.config.epochs, base=1 / max(self.config.rows, self.config.columns)).to(z)
        for width in (widths * max(self.config.rows, self.config.columns) / 2).clamp_min(0.5):
            best = self._nearest(z)[1]
            counts = torch.bincount(best, minlength=number).to(z)
            sums = torch.zeros_like(self.units).index_add_(0, best, z)
            neighbourhood = (-grid_distances / (2 * width.square())).exp()
            weight = neighbourhood @ counts
            self.units = torch.where(
                weight[:, None] > 1e-9, neighbourhood @ sums / weight[:, None].clamp_min(1e-9), self.units
            )
        distance, best = self._nearest(z)
        second = squared_distances(z, self.units).topk(min(2, number), 1, largest=False).indices[:, -1]
        # best and second-best unit are no neighbours
        topographic_error = (grid_distances[best, second] > 2).double().mean()
        return {"quantization_error": float(distance.mean()), "topographic_error": float(topographic_error)}

    def novelty(self, z: Latents) -> Scores:
        """Distance to the nearest unit, in standard deviations of the latents."""
        return in_parts(lambda part: self._nearest(self.standardized(part))[0], z, len(self.units))

    def _nearest(self, z: Latents) -> tuple[Tensor, Tensor]:
        squared, best = squared_distances(z, self.units).min(1)
        return squared.sqrt(), best

    def _grid_distances(self) -> Tensor:
        """k k: squared distances of the units on the grid."""
        rows, columns = torch.meshgrid(torch.arange(self.config.rows), torch.arange(self.config.columns), indexing="ij")
        positions = torch.stack([rows.flatten(), columns.flatten()], 1).double()
        return squared_distances(positions, positions)
