"""A cascade of two variational autoencoders, and a discriminator of images and their reconstructions.

Guo et al., "CVAD: A generic medical anomaly detector based on Cascade VAE", 2021 (arXiv 2110.15811). The second
autoencoder sees the features of the first encoder and those of the first decoder, both before the last of three
convolutions, side by side, and the reconstruction is the mean of both. The discriminator is trained afterwards,
by binary cross-entropy, on images and their reconstructions from the mean latents.

What differs. Squared errors are summed over pixels, so b has the same meaning as in a beta-VAE (the authors' code
divides the error and the divergences by the number of pixels). Sizes are those of the other models here, without
batch norm; the second branch has a convolution before its latents. The score is the mean of the negative ELBO and
the discriminator's log-odds, each calibrated: the authors add them and scale with the smallest and the largest
score of the *test* set, here each is replaced by its quantile among healthy validation patches. Beyond the healthy
range a quantile goes on as a straight line, one range for each 1, so that it stays strictly increasing.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import SLOPE, Decoder, Encoder, Padding, bounded, divergence, initialize, side_of
from rayad.options import Channels, PatchSide, Rate, Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

LEVELS = 64
"""Steps of a calibrated score from 0 to 1."""
RANGE = (-6.0, 10.0)
"""What the bins of a score's histogram reach over, in standard deviations from its healthy mean."""
BINS = 320
FEATURES = 5
"""Layers of an encoder up to the activations of its second convolution."""
MIRRORED = 4
"""Layers of a decoder up to the activations of the same size."""

Posterior = tuple[Latents, Latents]
"""Mean and log-variance of q(z | x)."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the cascade."""

    width: Size = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: Size = 64
    """Latents of each branch; the authors' second branch has four times as many as their first."""
    beta: Weight = 0.1
    """Weight of both divergences from N(0, I), in squared full scales of a pixel for each nat."""
    padding: Padding = "valid"
    """Padding of the convolutions: "valid" is encoded whole images at once, "same" patch by patch."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of both stages; ours, for some thousands of patches and tens of epochs."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the training loop."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise OptionError(f"beta is a weight, at least 0, not {self.beta}")

    def build(self) -> "CascadeVAE":
        """An untrained cascade of this size."""
        return CascadeVAE(self)


class CascadeVAE(nn.Module):
    """Two branches, the discriminator, and how healthy patches score."""

    centre: Tensor
    spread: Tensor
    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        sizes = (config.channels, config.width, config.latents, config.padding, config.patch_px)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.second, self.second_decoder = _Second(config), Decoder(*sizes)
        self.log_variance = nn.Linear(self.encoder.head.in_features, config.latents)
        initialize(self.log_variance)
        self.discriminator = Encoder(config.channels, config.width, 1, config.padding, config.patch_px)
        self.register_buffer("centre", torch.zeros(2))  # of the negative ELBO and the log-odds, in this order
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("quantiles", torch.linspace(*RANGE, LEVELS + 1).repeat(2, 1))

    def encode(self, x: Patches) -> Latents:
        """The mean of q(z | x) of the first branch; the second's depends on the first decoder."""
        return self.encoder(x)

    def reconstruct(self, x: Patches) -> Patches:
        """x^ = (x1 + x2) / 2 at the mean latents of both branches."""
        return self._cascade(x)[0]

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The mean of both calibrated parts, and the parts: negative ELBO at the mean latents, log-odds in nats."""
        parts = self.parts(x)
        return {"reconstruction": self.calibrated(parts).mean(1), "elbo": parts[:, 0], "discriminator": parts[:, 1]}

    def stages(self) -> list[list[Objective | Pass]]:
        """Both branches; the discriminator; then how healthy validation patches score."""
        rate, optimizer = self.config.learning_rate, self.config.optimizer
        discriminator_parameters = list(self.discriminator.parameters())
        branch_parameters = [
            parameter for name, parameter in self.named_parameters() if not name.startswith("discriminator.")
        ]
        return [
            [Objective("elbo", self.loss, branch_parameters, rate, optimizer)],
            [Objective("discriminator", self.discriminator_loss, discriminator_parameters, rate, optimizer)],
            [
                Pass("healthy moments", self.moments, self.standardize, of="validation"),
                Pass("healthy quantiles", self.histograms, self.set_quantiles, of="validation"),
            ],
        ]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L = sum of (x - x^)^2 over pixels + b (KL1 + KL2) of each patch, at latents drawn from both q."""
        return self._loss(x, *self._cascade(x, draw))

    def discriminator_loss(self, x: Patches, draw: Draw) -> Scores:
        """-log(1 - D(x)) - log D(x^) of each patch, where D is the probability of a reconstruction."""
        with torch.no_grad():
            fake = self.reconstruct(x)
        return functional.softplus(self.log_odds(x)) + functional.softplus(-self.log_odds(fake))

    def log_odds(self, x: Patches) -> Scores:
        """Of a patch being a reconstruction, log D / (1 - D), in nats."""
        return self.discriminator(x).squeeze(1).to(x)  # from the lower precision of autocast

    def parts(self, x: Patches) -> Tensor:
        """Negative ELBO at the mean latents and log-odds of each patch, n 2."""
        return torch.stack([self._loss(x, *self._cascade(x)), self.log_odds(x)], dim=1)

    def calibrated(self, parts: Tensor) -> Tensor:
        """The share of healthy patches that score lower, n 2; below 0 or above 1 outside of their range."""
        standard = ((parts - self.centre) / self.spread).T.contiguous()  # 2 n
        lowest, highest = self.quantiles[:, :1], self.quantiles[:, -1:]
        inside = standard.clamp(lowest, highest)
        upper = torch.searchsorted(self.quantiles, inside).clamp(1, LEVELS)
        low, high = self.quantiles.gather(1, upper - 1), self.quantiles.gather(1, upper)
        level = (upper - 1 + (inside - low) / (high - low)) / LEVELS
        return (level + (standard - inside) / (highest - lowest)).T

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches, and sums of both parts and of their squares; they add over batches."""
        parts = self.parts(x).double()
        return [torch.tensor(float(len(parts))).to(parts), parts.sum(0), parts.square().sum(0)]

    def standardize(self, moments: list[Tensor]) -> Row:
        """Set mean and standard deviation of the healthy parts."""
        count, first, second = moments
        mean = first / count
        spread = (second / count - mean.square()).clamp(min=0).sqrt()
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))
        return {"healthy_elbo": float(mean[0]), "healthy_discriminator": float(mean[1])}

    def histograms(self, x: Patches) -> list[Tensor]:
        """How many patches have each part in each bin, 2 b; beyond the range they count in the outermost."""
        standard = (self.parts(x) - self.centre) / self.spread
        place = ((standard - RANGE[0]) / (RANGE[1] - RANGE[0]) * BINS).long().clamp(0, BINS - 1)  # n 2
        return [functional.one_hot(place, BINS).sum(0).double()]

    def set_quantiles(self, counts: list[Tensor]) -> Row:
        """Set the standardized parts at even levels from 0 to 1; a bin's patches lie evenly in it."""
        (count,) = counts
        edges = torch.linspace(*RANGE, BINS + 1).to(count)
        levels = torch.linspace(0, 1, LEVELS + 1).to(count)
        for part, row in enumerate(count):
            filled = row.nonzero().squeeze(1)
            cumulative = row.cumsum(0) / row.sum()
            last = torch.searchsorted(cumulative[filled], levels).clamp(max=len(filled) - 1)
            bins = filled[last]  # the first filled bin whose share reaches the level
            share = (levels - cumulative[bins]) * row.sum() / row[bins]  # in [-1, 0], from the bin's end
            self.quantiles[part] = edges[bins + 1] + share * (edges[1] - edges[0])
        return {"healthy_patches": int(count[0].sum())}

    def _cascade(self, x: Patches, draw: Draw | None = None) -> tuple[Patches, Posterior, Posterior]:
        """x^ and q of both branches; without a draw, at the means."""
        features = self.encoder.cells[:FEATURES](x)
        cells = self.encoder.cells[FEATURES:](features).flatten(1)
        first = self.encoder.head(cells).to(x), bounded(self.log_variance(cells).to(x))
        mirrored = self.decoder.pixels[:MIRRORED](self.decoder.head(_sample(first, draw)))
        mean, log_variance = self.second(torch.cat([mirrored, features], dim=1))
        second = mean.to(x), bounded(log_variance.to(x))
        first_pixels = self.decoder.pixels[MIRRORED:](mirrored)
        return (first_pixels + self.second_decoder(_sample(second, draw))) / 2, first, second

    def _loss(self, x: Patches, reconstruction: Patches, first: Posterior, second: Posterior) -> Scores:
        error = (x - reconstruction).square().flatten(1).sum(1)
        return error + self.config.beta * (divergence(*first) + divergence(*second))


class _Second(nn.Module):
    """The second branch's encoder: features of two networks to the mean and log-variance of its latents."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, side = 4 * config.width, side_of(config.padding, config.patch_px)
        self.cells = nn.Sequential(
            nn.Conv2d(width, width, 5, 2, 0 if config.padding == "valid" else 2), nn.LeakyReLU(SLOPE, inplace=True)
        )
        self.heads = nn.Linear(width * side**2, 2 * config.latents)
        self.apply(initialize)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.heads(self.cells(features).flatten(1)).chunk(2, dim=1)
        return mean, log_variance


def _sample(q: Posterior, draw: Draw | None) -> Latents:
    mean, log_variance = q
    return mean if draw is None else mean + (log_variance / 2).exp() * draw(mean.shape[1])
