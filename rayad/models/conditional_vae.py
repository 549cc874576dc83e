"""A variational autoencoder that is told a fact about the image, such as the density of the breast.

Pol et al., "Anomaly Detection with Conditional Variational Autoencoders", ICMLA 2019. What is usual in a dense breast
is unusual in a fatty one; who knows the class need not spend latents on it. The loss is that of rayad/models/bvae.py,
of p(x | z, c) and q(z | x, c).

The fact comes as constant planes behind the image's channels, one a class: 1 in the plane of its class, 0 in the
others, and 0 in all where it is not known. A share of the patches is trained without it, so that "not known" has a
meaning. Where patches have no planes, it is not known.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayad.errors import OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import Decoder, Encoder, Padding, bounded, count_active, divergence, initialize, moments
from rayad.options import Channels, PatchSide, Rate, Share, Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores, like

Shown = Float[Tensor, "n planes h w"]
"""Patches with the condition's planes behind their channels, or without."""
Numbers = Float[Tensor, "n k"]
"""The condition of each patch."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the conditional variational autoencoder."""

    width: Size = 32
    """Channels of the first convolution; the second has twice, the third four times as many."""
    latents: Size = 64
    """Numbers that a patch is squeezed into."""
    beta: Weight = 0.1
    """Weight of the divergence from N(0, I), in squared full scales of a pixel for each nat."""
    condition: str = "density"
    """The fact that is told: density or view."""
    classes: str = "F G D"
    """Its values with blanks between; F G D are mini-MIAS's densities, MLO CC would be views."""
    dropped: Share = 0.1
    """Share of the training patches that are shown without it."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of Adam; ours."""
    padding: Padding = "valid"
    """Padding of the convolutions: "valid" is scored whole images at once, "same" patch by patch."""

    def __post_init__(self) -> None:
        if self.condition not in ("density", "view"):
            raise OptionError(f"a condition is density or view, not {self.condition!r}")
        names = self.classes.split()
        if len(set(names)) < len(names) or not names:
            raise OptionError(f"classes of a condition are different names with blanks between, not {self.classes!r}")
        if not 0 <= self.dropped < 1:
            raise OptionError(f"dropped is a share of the patches in [0, 1), not {self.dropped}")

    def build(self) -> "ConditionalAutoencoder":
        """An untrained autoencoder of this size."""
        return ConditionalAutoencoder(self)


class ConditionalAutoencoder(nn.Module):
    """q(z | x, c), and the decoder of its draws and the condition."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        self.condition, self.classes = config.condition, tuple(config.classes.split())
        k = len(self.classes)
        channels, width, padding, patch_px = config.channels, config.width, config.padding, config.patch_px
        self.encoder = Encoder(channels, width, config.latents, padding, patch_px)
        self.decoder = Decoder(channels, width, config.latents + k, padding, patch_px)
        self.log_variance = nn.Linear(self.encoder.head.in_features, config.latents)
        self.shift = nn.Linear(k, 2 * config.latents, bias=False)
        self.given_fact = torch.zeros(k)
        initialize(self.log_variance)
        nn.init.normal_(self.shift.weight, std=0.01)

    def planes(self, fact: str) -> list[float]:
        """The fact in numbers, one a class; all 0 where it is not one of them."""
        return [float(fact == name) for name in self.classes]

    def given(self, fact: str) -> "ConditionalAutoencoder":
        """The model for images of which this is known: it takes patches without planes, and scores whole images."""
        conditioned = copy.copy(self)
        conditioned._modules = dict(self._modules)
        conditioned.given_fact = torch.tensor(self.planes(fact)).to(like(self))
        conditioned.encoder = copy.deepcopy(self.encoder)
        with torch.no_grad():
            conditioned.encoder.head.bias += self.shift(conditioned.given_fact)[: self.latents]
        return conditioned

    def encode(self, x: Shown) -> Latents:
        """The mean of q(z | x, c)."""
        return self.posterior(x)[0]

    def reconstruct(self, x: Shown) -> Patches:
        """Each patch decoded from its mean latents and its condition, without planes."""
        image, numbers = self._split(x)
        return self._decode(self._posterior(image, numbers)[0], numbers)

    def decode(self, z: Latents) -> Patches:
        """The patch of each latent, of an image of which is known what `given` told; of any, where it told nothing."""
        return self._decode(z, self.given_fact.to(z).expand(len(z), -1))

    def scores(self, x: Shown) -> dict[str, Scores]:
        """As of rayad/models/bvae.py: "elbo" (the loss), "reconstruction" (mean squared error), "divergence"."""
        image, numbers = self._split(x)
        mean, log_variance = self._posterior(image, numbers)
        error = (image - self._decode(mean, numbers)).square().flatten(1)
        nats = divergence(mean, log_variance)
        return {"elbo": error.sum(1) + self.config.beta * nats, "reconstruction": error.mean(1), "divergence": nats}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective; then a count of the active latents, which fails where all have collapsed."""
        train = Objective("elbo", self.loss, list(self.parameters()), self.config.learning_rate)
        check = Pass("active latents", lambda x: moments(self.encode(x)), self.count_active, checks=True)
        return [[train], [check]]

    def loss(self, x: Shown, draw: Draw) -> Scores:
        """L = sum of (x - x^)^2 + b KL(q(z | x, c) || N(0, I)) of each patch, c dropped from some."""
        error, nats = self.description(x, draw)
        return error + self.config.beta * nats

    def description(self, x: Shown, draw: Draw) -> tuple[Scores, Scores]:
        """As of rayad/models/bvae.py: squared error summed over pixels, and KL(q(z | x, c) || N(0, I)) in nats."""
        image, numbers = self._split(x)
        uniform = torch.special.ndtr(draw(1))
        numbers = torch.where(uniform < self.config.dropped, 0, numbers) if self.training else numbers
        mean, log_variance = self._posterior(image, numbers)
        z = mean + (log_variance / 2).exp() * draw(self.latents)
        return (image - self._decode(z, numbers)).square().flatten(1).sum(1), divergence(mean, log_variance)

    def errors(self, x: Shown, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z and its condition."""
        image, numbers = self._split(x)
        return (image - self._decode(z, numbers)).square().flatten(1).sum(1)

    def posterior(self, x: Shown) -> tuple[Latents, Latents]:
        """Mean and bounded log-variance of q(z | x, c)."""
        return self._posterior(*self._split(x))

    def _posterior(self, image: Patches, numbers: Numbers) -> tuple[Latents, Latents]:
        cells = self.encoder.cells(image).flatten(1)
        shift_mean, shift_variance = self.shift(numbers).split(self.latents, 1)
        if self.given_fact.any():  # the encoder's head has it
            shift_mean = torch.zeros_like(shift_mean)
        log_variance = bounded(self.log_variance(cells) + shift_variance)
        return (self.encoder.head(cells) + shift_mean).to(image), log_variance.to(image)  # from autocast's precision

    def count_active(self, sums: list[Tensor]) -> Row:
        """How many latents vary; TrainingError if none does."""
        return count_active(sums, self.config.beta)

    def _decode(self, z: Latents, numbers: Numbers) -> Patches:
        return self.decoder(torch.cat([z, numbers], 1))

    def _split(self, x: Shown) -> tuple[Patches, Numbers]:
        """The image's channels, and the condition in the planes behind them."""
        channels, k = self.config.channels, len(self.classes)
        if x.shape[1] == channels:
            return x, self.given_fact.to(x).expand(len(x), k)
        if x.shape[1] != channels + k:
            raise OptionError(f"patches of {channels} channels and {k} planes are wanted, not of {x.shape[1]}")
        return x[:, :channels], x[:, channels:, 0, 0]
