"""One Gaussian with a shrunk covariance: its negative log-likelihood ranks as Mahalanobis' distance does.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
Analysis 2004, as scikit-learn has it.
"""

import math
from dataclasses import dataclass

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from rayad.density._arrays import Learned, Others
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """Nothing is to be chosen: the data tell how much to shrink."""

    def build(self, variables: int) -> "Gaussian":
        """A Gaussian that learned nothing."""
        return Gaussian(variables)


class Gaussian(Learned):
    """N(z; mu, Sigma)."""

    factor: Tensor
    """m m: Cholesky factor of the precision, upper triangle last."""

    def __init__(self, variables: int) -> None:
        super().__init__(variables, factor="m m")

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Fit mean and covariance; there is no chance in it."""
        estimator = LedoitWolf().fit(self.standardize(train, 2).cpu().numpy())
        self.keep(factor=torch.linalg.cholesky(torch.as_tensor(estimator.precision_)))
        likelihood = float(self.log_prob(validation).double().mean()) if len(validation) else math.nan
        return {"shrinkage": float(estimator.shrinkage_), "validation": likelihood}

    def log_prob(self, z: Latents) -> Scores:
        """log p(z), in nats."""
        deviations = self.standardized(z) @ self.factor
        constant = self.factor.diagonal().log().sum() - self.variables / 2 * math.log(2 * math.pi)
        return (constant - deviations.square().sum(1) / 2 + self.log_determinant).to(z)
