"""A variational autoencoder whose divergence is weighted: latents that are smooth and close to N(0, I).

Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR 2017;
sizes and b = 0.1 of Dietrichstein et al. (2022). The squared error is summed over pixels: with its mean, b = 0.1
would mean a decoder variance above the largest principal variance of mammogram patches, and the posterior
would collapse.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayad.arrays import Latents, Patches, Scores
from rayad.errors import TrainingError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import Decoder, Encoder, Padding, initialize
from rayad.progress import Row

BOUND = 8.0
"""Of the log-variance, to both sides."""
ACTIVE = 0.01
"""A latent is active if its mean varies by more over the data (Burda et al. 2016, section 5.2)."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the variational autoencoder."""

    width: int = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: int = 64
    """Numbers that a patch is squeezed into."""
    beta: float = 0.1
    """Weight of the divergence from N(0, I), in squared full scales of a pixel for each nat."""
    padding: Padding = "valid"
    """Of the convolutions: "valid" is scored whole images at once, "same", the paper's, patch by patch."""
    channels: int = 1
    """1 for grey patches, 3 for colour."""
    learning_rate: float = 1e-3
    """Ours, for some thousands of patches and tens of epochs; the paper has more patches, 100 epochs and 1e-5."""
    optimizer: Literal["adam", "sgd"] = "adam"

    def build(self) -> "VariationalAutoencoder":
        """An untrained autoencoder of this size."""
        return VariationalAutoencoder(self)


class VariationalAutoencoder(nn.Module):
    """A Gaussian q(z | x) a patch, and the decoder of its draws."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        sizes = (config.channels, config.width, config.latents, config.padding)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.log_variance = nn.Linear(self.encoder.head.in_features, config.latents)
        initialize(self.log_variance)

    def encode(self, x: Patches) -> Latents:
        """The mean of q(z | x)."""
        return self.encoder(x)

    def reconstruct(self, x: Patches) -> Patches:
        """Each patch decoded from its mean latents."""
        return self.decoder(self.encode(x))

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The loss of each patch at its mean latents: without noise, the same each time."""
        mean, log_variance = self.posterior(x)
        return {"reconstruction": self._loss(x, mean, mean, log_variance)}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective; then a count of the active latents, which fails where all have collapsed."""
        parameters, config = list(self.parameters()), self.config
        train = Objective("elbo", self.loss, parameters, config.learning_rate, config.optimizer)
        return [[train], [Pass("active latents", self.moments, self.count_active)]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L = sum of (x - x^)^2 over pixels + b KL(q(z | x) || N(0, I)) of each patch, at z drawn from q."""
        mean, log_variance = self.posterior(x)
        z = mean + (log_variance / 2).exp() * draw(self.latents)
        return self._loss(x, z, mean, log_variance)

    def posterior(self, x: Patches) -> tuple[Latents, Latents]:
        """Mean and bounded log-variance of q(z | x)."""
        cells = self.encoder.cells(x).flatten(1)
        log_variance = BOUND * (self.log_variance(cells) / BOUND).tanh()
        return self.encoder.head(cells).to(x), log_variance.to(x)  # from the lower precision of autocast

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches, and sums of their latents and of the squares; they add over batches."""
        z = self.encode(x).double()
        return [torch.tensor(float(len(z))).to(z), z.sum(0), z.square().sum(0)]

    def count_active(self, moments: list[Tensor]) -> Row:
        """How many latents vary over the patches that the moments were summed over.

        Raises:
            TrainingError: none does; the decoder has learned to ignore them.
        """
        count, first, second = moments
        active = int((second / count - (first / count).square() > ACTIVE).sum())
        if not active:
            raise TrainingError(
                f"posterior collapse: none of {self.latents} latents depends on the patch; lower beta "
                f"(now {self.config.beta}) or train longer"
            )
        return {"active_latents": active}

    def _loss(self, x: Patches, z: Latents, mean: Latents, log_variance: Latents) -> Scores:
        error = (x - self.decoder(z)).square().flatten(1).sum(1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return error + self.config.beta * divergence


def active_units(model: VariationalAutoencoder, x: Patches) -> int:
    """How many latents vary over these patches; TrainingError if none does. Training ends with this check."""
    return int(model.count_active(model.moments(x))["active_latents"])
