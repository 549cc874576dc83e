"""A variational autoencoder whose divergence is weighted: latents that are smooth and close to N(0, I).

Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR 2017;
sizes and b = 0.1 of Dietrichstein et al. (2022). The squared error is summed over pixels: with its mean, b = 0.1
would mean a decoder variance above the largest principal variance of mammogram patches, and the posterior
would collapse.

With `batch_norm` it is the convolutional variational autoencoder that Mukesh et al., "Anomaly Detection in Medical
Images with VAEs" (2024) train on whole dermoscopic images, each drawn into one patch, and judge by reconstruction; its
sizes are those of the other models here.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import Decoder, Encoder, Padding, bounded, count_active, divergence, initialize, moments
from rayad.options import Channels, PatchSide, Rate, Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the variational autoencoder."""

    width: Size = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: Size = 64
    """Numbers that a patch is squeezed into."""
    beta: Weight = 0.1
    """Weight of the divergence from N(0, I), in squared full scales of a pixel for each nat."""
    padding: Padding = "valid"
    """Padding of the convolutions: "valid" is scored whole images at once, "same", the paper's, patch by patch."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate, chosen for some thousands of patches and tens of epochs; the paper has more patches, 100 epochs
    and 1e-5."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the training loop."""
    batch_norm: bool = False
    """Batch normalization before every activation; workers learn by the statistics of their common batch."""

    def build(self) -> "VariationalAutoencoder":
        """An untrained autoencoder of this size."""
        return VariationalAutoencoder(self)


PRESETS = {"paper": ("width=32", "latents=64", "padding=same", "learning_rate=1e-5", "beta=0.1")}
"""Dietrichstein et al. 2022, beside 100 epochs in batches of 64."""


class VariationalAutoencoder(nn.Module):
    """A Gaussian q(z | x) a patch, and the decoder of its draws."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        sizes = (config.channels, config.width, config.latents, config.padding, config.patch_px)
        self.encoder = Encoder(*sizes, batch_norm=config.batch_norm)
        self.decoder = Decoder(*sizes, batch_norm=config.batch_norm)
        self.log_variance = nn.Linear(self.encoder.head.in_features, config.latents)
        initialize(self.log_variance)

    def encode(self, x: Patches) -> Latents:
        """The mean of q(z | x)."""
        return self.encoder(x)

    def reconstruct(self, x: Patches) -> Patches:
        """Each patch decoded from its mean latents."""
        return self.decode(self.encode(x))

    def decode(self, z: Latents) -> Patches:
        """The patch of each latent."""
        return self.decoder(z)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """Of each patch at its mean latents, without noise, the same each time.

        "elbo" is the loss, "reconstruction" the mean squared error, "divergence" that of q(z | x) from N(0, I) in nats.
        """
        mean, log_variance = self.posterior(x)
        error = (x - self.decode(mean)).square().flatten(1)
        nats = divergence(mean, log_variance)
        loss = error.sum(1) + self.config.beta * nats
        return {"elbo": loss, "reconstruction": error.mean(1), "divergence": nats}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective; then a count of the active latents, which fails where all have collapsed."""
        parameters, config = list(self.parameters()), self.config
        train = Objective("elbo", self.loss, parameters, config.learning_rate, config.optimizer)
        check = Pass("active latents", lambda x: moments(self.encode(x)), self.count_active, checks=True)
        return [[train], [check]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L = sum of (x - x^)^2 over pixels + b KL(q(z | x) || N(0, I)) of each patch, at z drawn from q."""
        error, nats = self.description(x, draw)
        return error + self.config.beta * nats

    def description(self, x: Patches, draw: Draw) -> tuple[Scores, Scores]:
        """Of each patch the squared error, summed over pixels, at z drawn from q; and KL(q(z | x) || N(0, I)), nats."""
        mean, log_variance = self.posterior(x)
        z = mean + (log_variance / 2).exp() * draw(self.latents)
        return self.errors(x, z), divergence(mean, log_variance)

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z."""
        return (x - self.decode(z)).square().flatten(1).sum(1)

    def posterior(self, x: Patches) -> tuple[Latents, Latents]:
        """Mean and bounded log-variance of q(z | x)."""
        cells = self.encoder.cells(x).flatten(1)
        log_variance = bounded(self.log_variance(cells))
        return self.encoder.head(cells).to(x), log_variance.to(x)  # from the lower precision of autocast

    def count_active(self, sums: list[Tensor]) -> Row:
        """How many latents vary; TrainingError if none does."""
        return count_active(sums, self.config.beta)
