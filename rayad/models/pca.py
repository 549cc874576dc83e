"""Principal components of patches: the autoencoder that is linear, and learned without a step.

Bishop, *Pattern Recognition and Machine Learning* (2006), section 12.1. The sums behind mean and covariance add over
batches and workers, so one pass is the whole training.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError, TrainingError
from rayad.fit import Objective, Pass
from rayad.options import Channels, PatchSide, Size, Within
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores


@dataclass(frozen=True)
class Config:
    """Size of the subspace."""

    components: Size = 64
    """Numbers that a patch is squeezed into."""
    side: Annotated[int, Within(1, 64)] = 32
    """Patches are averaged to side x side px before; the covariance has side**4 numbers. It divides patch_px."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""

    def __post_init__(self) -> None:
        if self.side < 1 or self.patch_px % self.side:
            raise OptionError(f"side of averaged patches must divide {self.patch_px} px, not {self.side}")
        if not 1 <= self.components <= self.channels * self.side**2:
            raise OptionError(
                f"components must be 1 to the {self.channels * self.side**2} pixels of an averaged patch, "
                f"not {self.components}"
            )

    def build(self) -> "PrincipalComponents":
        """Components that nothing was learned into."""
        return PrincipalComponents(self)


class PrincipalComponents(nn.Module):
    """The mean patch, and the directions in which healthy patches differ most from it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.components
        pixels = config.channels * config.side**2
        self.mean: Tensor
        self.directions: Tensor
        self.register_buffer("mean", torch.full((pixels,), 0.5))
        self.register_buffer("directions", torch.eye(config.components, pixels))

    def encode(self, x: Patches) -> Latents:
        """Where the averaged patch lies along each direction."""
        return (self._averaged(x) - self.mean) @ self.directions.T

    def reconstruct(self, x: Patches) -> Patches:
        """The nearest patch of the subspace, each averaged pixel drawn as a square."""
        return self._decode(self.encode(x))

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z."""
        return (x - self._decode(z)).square().flatten(1).sum(1)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The mean squared distance of the averaged patch from the subspace."""
        centred = self._averaged(x) - self.mean
        return {"reconstruction": (centred - (centred @ self.directions.T) @ self.directions).square().mean(1)}

    def stages(self) -> list[list[Objective | Pass]]:
        """One pass over the patches."""
        return [[Pass("principal components", self.moments, self.learn)]]

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches, sums of their pixels and of products of pixels; they add over batches."""
        flat = self._averaged(x).double() - 0.5  # near the mean, so that few digits cancel
        return [torch.tensor(float(len(flat))).to(flat), flat.sum(0), flat.T @ flat]

    def learn(self, sums: list[Tensor]) -> Row:
        """Set mean and directions, those of the largest variance first.

        Raises:
            TrainingError: fewer than two patches.
        """
        count, first, second = sums
        if count < 2:
            raise TrainingError(f"principal components need at least two patches, got {int(count)}")
        mean = first / count
        covariance = second / count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)
        largest = vectors[:, -self.latents :].flip(1).T
        signs = largest.gather(1, largest.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have none of their own
        self.mean.copy_(mean + 0.5)
        self.directions.copy_(largest * signs)
        return {"explained_variance": float(variances[-self.latents :].sum() / variances.sum())}

    def _decode(self, z: Latents) -> Patches:
        flat = self.mean + z @ self.directions
        small = flat.unflatten(1, (self.config.channels, self.config.side, self.config.side))
        return functional.interpolate(small, scale_factor=self.config.patch_px // self.config.side, mode="nearest")

    def _averaged(self, x: Patches) -> Tensor:
        return functional.avg_pool2d(x, self.config.patch_px // self.config.side).flatten(1)
