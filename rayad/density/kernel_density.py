"""Kernel density estimation: a Gaussian around every training latent.

Parzen, "On Estimation of a Probability Density Function and Mode", 1962. All Gaussians have the same width, in standard
deviations of each latent; the width is the one under which the validation latents are most likely.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayad.density._arrays import Learned, Others, in_parts, squared_distances
from rayad.errors import OptionError
from rayad.options import Weight
from rayad.progress import Row
from rayad.tensors import Latents, Scores

GRID = tuple(float(width) for width in np.geomspace(0.05, 2.0, 24))
"""Widths that are tried."""


@dataclass(frozen=True)
class Config:
    """How wide the Gaussians are."""

    bandwidth: Weight = 0.0
    """Standard deviation of a Gaussian, in those of each latent; 0: by the likelihood of the validation latents."""

    def __post_init__(self) -> None:
        if not 0 <= self.bandwidth < math.inf:
            raise OptionError(f"bandwidth of a kernel density must be at least 0, not {self.bandwidth}")

    def build(self, variables: int) -> "KernelDensity":
        """A density that learned nothing."""
        return KernelDensity(self, variables)


class KernelDensity(Learned):
    """p(z) = mean over the training latents of N(z; z_i, h^2)."""

    rows: Tensor
    bandwidth: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__(variables, rows="k m", bandwidth="")
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Keep the training latents and choose the width; there is no chance in it."""
        self.keep(rows=self.standardize(train, 1))
        likelihoods = {}
        for width in [self.config.bandwidth] if self.config.bandwidth else GRID:
            self.keep(bandwidth=width)
            likelihoods[width] = float(self.log_prob(validation).double().mean()) if len(validation) else -width
        best = max(likelihoods, key=lambda width: likelihoods[width])
        self.keep(bandwidth=best)
        return {"bandwidth": best, "validation": likelihoods[best]}

    def log_prob(self, z: Latents) -> Scores:
        """log p(z), in nats."""
        return in_parts(self._log_prob, z, len(self.rows))

    def _log_prob(self, z: Latents) -> Scores:
        distances = squared_distances(self.standardized(z), self.rows) / self.bandwidth.square()
        constant = math.log(len(self.rows)) + self.variables * (self.bandwidth.log() + math.log(2 * math.pi) / 2)
        return torch.logsumexp(-distances / 2, 1) - constant + self.log_determinant
