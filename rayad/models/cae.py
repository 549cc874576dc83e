"""A convolutional autoencoder: what it cannot repeat, it has not seen in healthy tissue.

Dietrichstein, Major, Trapp et al., "Anomaly Detection Using Generative Models and Sum-Product Networks in
Mammography Scans", DGM4MICCAI 2022.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import Decoder, Encoder, Padding
from rayad.options import Channels, PatchSide, Rate, Size
from rayad.tensors import Latents, Patches, Scores


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the autoencoder."""

    width: Size = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: Size = 64
    """Numbers that a patch is squeezed into."""
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

    def build(self) -> "Autoencoder":
        """An untrained autoencoder of this size."""
        return Autoencoder(self)


PRESETS = {"paper": ("width=32", "latents=64", "padding=same", "learning_rate=1e-5")}
"""Dietrichstein et al. 2022, beside 100 epochs in batches of 64."""


class Autoencoder(nn.Module):
    """Encoder and decoder, trained to repeat healthy patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        sizes = (config.channels, config.width, config.latents, config.padding, config.patch_px)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)

    def encode(self, x: Patches) -> Latents:
        """The latents of each patch."""
        return self.encoder(x)

    def reconstruct(self, x: Patches) -> Patches:
        """Each patch as the model would have it."""
        return self.decode(self.encode(x))

    def decode(self, z: Latents) -> Patches:
        """The patch of each latent."""
        return self.decoder(z)

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z."""
        return (x - self.decode(z)).square().flatten(1).sum(1)

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The mean squared error of each patch."""
        return {"reconstruction": (x - self.reconstruct(x)).square().flatten(1).mean(1)}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective, the score itself."""
        parameters, config = list(self.parameters()), self.config
        return [[Objective("reconstruction", self.loss, parameters, config.learning_rate, config.optimizer)]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """L = mean((x - x^)^2) of each patch; there is no noise."""
        return self.scores(x)["reconstruction"]
