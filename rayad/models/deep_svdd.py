"""Deep support vector data description: healthy patches are drawn to one point, the distance to it is the score.

Ruff et al., "Deep One-Class Classification", ICML 2018; the start as a variational autoencoder and the joint loss
of Zhou et al., "VAE-based Deep SVDD for Anomaly Detection", Neurocomputing 2021. phi(x) is the mean of q(z | x).
It has no biases: with them phi = c is a solution that looks at no patch (Ruff, proposition 2). Pixels are centred
first, a constant that is not trained. Ruff's weight decay is left out: early stopping on healthy validation
patches takes its place, and training ends with a check that distances still differ.

The decoder serves the start and the joint loss. Without the latter it no longer fits the encoder afterwards, so
there is no reconstruction.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayad.errors import CollapseError, OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import Decoder, Encoder, Padding, bounded, divergence, initialize
from rayad.options import Channels, PatchSide, Rate, Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

CLEARANCE = 0.1
"""Of each coordinate of the centre from 0, which weights of 0 would reach (as in Ruff's own code)."""
COLLAPSED = 1e-6
"""Standard deviation of the distances, in |c|^2, at which all patches are one point."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the description."""

    width: Size = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: Size = 64
    """Dimensions of the space that has the centre."""
    beta: Weight = 0.1
    """Weight of the divergence from N(0, I) in the ELBO, in squared full scales of a pixel for each nat."""
    joint: Weight = 0.0
    """Weight a of the negative ELBO beside the distance (Zhou); 0 trains the distance alone (Ruff)."""
    padding: Padding = "valid"
    """Padding of the convolutions: "valid" is encoded whole images at once, "same" patch by patch."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate, chosen for some thousands of patches and tens of epochs; Ruff's is 1e-4, then 1e-5, for
    150 epochs."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the training loop."""

    def __post_init__(self) -> None:
        if min(self.beta, self.joint) < 0:
            raise OptionError(f"beta and joint are weights, at least 0, not {self.beta} and {self.joint}")

    def build(self) -> "DeepSVDD":
        """An untrained description of this size."""
        return DeepSVDD(self)


PRESETS = {"paper": ("joint=1", "width=32", "latents=128", "padding=same", "learning_rate=1e-4")}
"""The joint loss of Zhou et al. 2021, whose weight is ours, with Ruff's network of colour images and its first rate."""


class DeepSVDD(nn.Module):
    """phi without biases, the centre c, and the decoder that phi starts with."""

    centre: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        sizes = (config.channels, config.width, config.latents, config.padding, config.patch_px)
        self.encoder, self.decoder = Encoder(*sizes, bias=False), Decoder(*sizes)
        self.log_variance = nn.Linear(self.encoder.head.in_features, config.latents)
        initialize(self.log_variance)
        self.register_buffer("centre", torch.zeros(config.latents))

    def encode(self, x: Patches) -> Latents:
        """phi of each patch."""
        return self.encoder(x)

    def distance(self, z: Latents) -> Scores:
        """|z - c|^2 of each point."""
        return (z - self.centre).square().sum(1)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """|phi(x) - c|^2 of each patch."""
        return {"distance": self.distance(self.encode(x))}

    def stages(self) -> list[list[Objective | Pass]]:
        """The variational autoencoder; the centre, then the distance to it; the check that distances differ."""
        rate, optimizer = self.config.learning_rate, self.config.optimizer
        trained = self.parameters() if self.config.joint else self.encoder.parameters()
        start = Objective("elbo", self.negative_elbo, list(self.parameters()), rate, optimizer)
        describe = Objective("distance", self.loss, list(trained), rate, optimizer)
        return [
            [start],
            [Pass("centre", self.sum_points, self.set_centre), describe],
            [Pass("distances", self.moments, self.check_spread, checks=True)],
        ]

    def negative_elbo(self, x: Patches, draw: Draw) -> Scores:
        """Sum of (x - x^)^2 over pixels + b KL(q(z | x) || N(0, I)) of each patch, at z drawn from q."""
        return self._negative_elbo(x, self.encoder.cells(x).flatten(1), draw)

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L = |phi(x) - c|^2 - a ELBO of each patch."""
        cells = self.encoder.cells(x).flatten(1)
        distance = self.distance(self.encoder.head(cells).to(x))
        if not self.config.joint:
            return distance
        return distance + self.config.joint * self._negative_elbo(x, cells, draw)

    def sum_points(self, x: Patches) -> list[Tensor]:
        """Number of patches, and the sum of their phi."""
        z = self.encode(x).double()
        return [torch.tensor(float(len(z))).to(z), z.sum(0)]

    def set_centre(self, sums: list[Tensor]) -> Row:
        """c = the mean of phi(x), each coordinate moved away from 0 to `CLEARANCE` at least."""
        count, total = sums
        mean = total / count
        sign = torch.where(mean < 0, -1.0, 1.0)
        self.centre.copy_(sign * mean.abs().clamp(min=CLEARANCE))
        return {"centre": float(self.centre.norm())}

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches, and sums of their distances and of the squares; they add over batches."""
        distance = self.distance(self.encode(x)).double()
        return [torch.tensor(float(len(distance))).to(distance), distance.sum(), distance.square().sum()]

    def check_spread(self, moments: list[Tensor]) -> Row:
        """Mean and standard deviation of the distances that the moments were summed over.

        Raises:
            TrainingError: all are equal; phi has learned not to look at the patch.
        """
        count, first, second = moments
        mean = first / count
        spread = (second / count - mean.square()).clamp(min=0).sqrt()
        if not spread > COLLAPSED * self.centre.square().sum():
            raise CollapseError(
                f"hypersphere collapse: all {int(count)} patches are {float(mean):.3g} from the centre; raise joint "
                f"(now {self.config.joint}) or lower the learning rate (now {self.config.learning_rate})"
            )
        return {"distance": float(mean), "distance_spread": float(spread)}

    def _negative_elbo(self, x: Patches, cells: Tensor, draw: Draw) -> Scores:
        mean = self.encoder.head(cells).to(x)  # from the lower precision of autocast
        log_variance = bounded(self.log_variance(cells).to(x))
        z = mean + (log_variance / 2).exp() * draw(self.latents)
        error = (x - self.decoder(z)).square().flatten(1).sum(1)
        return error + self.config.beta * divergence(mean, log_variance)
