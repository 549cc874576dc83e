"""The local outlier factor: how much thinner it is around a latent than around its neighbours.

Breunig et al., "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000, as scikit-learn has it for new latents.
"""

from dataclasses import dataclass

import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from rayad.density._arrays import Learned, Others, in_parts, squared_distances
from rayad.errors import OptionError
from rayad.options import Count
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """How local it is."""

    neighbours: Count = 20
    """Number of neighbours that a latent is compared with."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise OptionError(f"neighbours of a local outlier factor must be at least 1, not {self.neighbours}")

    def build(self, variables: int) -> "Factor":
        """A factor that learned nothing."""
        return Factor(self, variables)


class Factor(Learned):
    """Novelty: mean reachability density of the neighbours over that of the latent; about 1 where it is usual."""

    rows: Tensor
    reach: Tensor
    """Distance of each training latent from its last neighbour."""
    density: Tensor
    """Local reachability density of each."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__(variables, rows="k m", reach="k", density="k")
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Measure the densities; there is no chance in it."""
        z = self.standardize(train, self.config.neighbours + 1)
        estimator = LocalOutlierFactor(n_neighbors=self.config.neighbours, novelty=True, algorithm="brute")
        estimator.fit(z.cpu().numpy())
        self.keep(rows=z, reach=estimator._distances_fit_X_[:, -1], density=estimator._lrd)
        return {"median": float(self.novelty(train[: min(1000, len(train))]).median())}

    def novelty(self, z: Latents) -> Scores:
        """The local outlier factor of each latent."""
        return in_parts(self._novelty, z, len(self.rows))

    def _novelty(self, z: Latents) -> Scores:
        squared, nearest = squared_distances(self.standardized(z), self.rows).topk(
            self.config.neighbours, 1, largest=False
        )
        density = 1 / (torch.maximum(squared.sqrt(), self.reach[nearest]).mean(1) + 1e-10)
        return self.density[nearest].mean(1) / density
