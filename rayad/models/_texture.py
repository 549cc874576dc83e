"""What texture detectors share: the distance of a patch's features from those of healthy patches."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayad.errors import TrainingError
from rayad.fit import Objective, Pass
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

SHRINKAGE = 0.1
"""Share of the unit matrix in the correlation of the features: some are sums of others."""
FLOOR = 1e-6
"""Of a feature's standard deviation."""

Features = Float[Tensor, "n m"]


class Texture(nn.Module):
    """Standardized features, and their Mahalanobis distance from the healthy mean."""

    def __init__(self, features: Callable[[Patches], Features], latents: int) -> None:
        super().__init__()
        self.features, self.latents = features, latents
        self.mean: Tensor
        self.deviation: Tensor
        self.precision: Tensor
        self.register_buffer("mean", torch.zeros(latents))
        self.register_buffer("deviation", torch.ones(latents))
        self.register_buffer("precision", torch.eye(latents))

    def encode(self, x: Patches) -> Latents:
        """The features in healthy standard deviations from the healthy mean."""
        features = self.features(x.double())  # a pattern is a comparison: rounding must not decide it
        return ((features - self.mean) / self.deviation).to(x)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """ "distance": that of Mahalanobis, with a shrunk correlation."""
        z = self.encode(x)
        return {"distance": torch.einsum("ni,ij,nj->n", z, self.precision, z).clamp_min(0).sqrt()}

    def stages(self) -> list[list[Objective | Pass]]:
        """One pass over the patches."""
        return [[Pass("healthy texture", self.moments, self.learn)]]

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches, sums of their features and of products of features; they add over batches."""
        features = self.features(x.double())
        return [torch.tensor(float(len(features))).to(features), features.sum(0), features.T @ features]

    def learn(self, sums: list[Tensor]) -> Row:
        """Set mean, deviations and the inverse of the shrunk correlation; TrainingError with fewer than two patches."""
        count, first, second = sums
        if count < 2:
            raise TrainingError(f"a texture needs at least two patches, got {int(count)}")
        mean = first / count
        covariance = second / count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp_min(0).sqrt().clamp_min(FLOOR)
        unit = torch.eye(self.latents).to(covariance)
        correlation = (1 - SHRINKAGE) * covariance / torch.outer(deviation, deviation) + SHRINKAGE * unit
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.precision.copy_(torch.linalg.inv(correlation))
        return {"features": self.latents}


def grey(x: Patches) -> Float[Tensor, "n h w"]:
    """The mean of the channels."""
    return x.mean(1)
