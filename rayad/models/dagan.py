"""DAGAN: a generator that redraws a patch, and a discriminator that is an autoencoder as well.

Tang et al., "Anomaly detection neural network with dual auto-encoders GAN and its industrial inspection applications",
Sensors 2020, 20(12), 3336. The generator G is the U-Net of Skip-GANomaly (Akcay et al. 2019), the discriminator D an
autoencoder as in BEGAN (Berthelot et al. 2017), whose answer is a picture. Of each patch x, with |.| the root of the
mean square over pixels,

    L_adv = |D(x) - D(G(x))|,    L_G = 40 |x - G(x)| + L_adv,    L_D = |x - D(x)| - min(L_adv, m):

D repeats patches and tells them from what G made of them, G lets it see no difference. The score is |x - G(x)|. Losses,
their weights and Adam's rate are the paper's; its Euclidean norms are divided by the root of the number of pixels here.

Ours: the margin m, as of EBGAN (Zhao et al. 2017). Without it L_D has no least value; with pictures that a tanh bounds
instead, D gave one picture for all phantom patches. The sizes are those of Skip-GANomaly's code for G: convolutions of
4x4 at stride 2 with batch normalization, up to eight widths, halving maps as often as the side allows. D is the
autoencoder of the other models here, without skips: its latents are those that a density gets, and whole images are
encoded at once. Both networks are kept as they were when L_G of healthy validation patches was lowest; the paper takes
20,000 steps.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayad.errors import CollapseError, OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import SLOPE, BatchNorm, Decoder, Encoder, ToPixels, initialize
from rayad.options import Channels, PatchSide, Rate, Size, Weight, Within
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

Maps = Float[Tensor, "n k mh mw"]
BETAS = (0.5, 0.999)
"""Of Adam, for both adversaries, as in Skip-GANomaly."""
WIDEST = 8
"""Channels of the smallest maps, in widths."""
COLLAPSED = 1e-4
"""Share of the patches' variance at which all pictures of a network are one."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of DAGAN; the defaults train on a CPU, the preset `paper` has the authors' width."""

    width: Size = 8
    """Channels of the widest maps; each halving doubles them, up to eight times as many."""
    latents: Size = 64
    """Numbers that the discriminator squeezes a patch into."""
    contextual: Weight = 40.0
    """Weight of |x - G(x)| in the generator's loss."""
    adversarial: Weight = 1.0
    """Weight of |D(x) - D(G(x))| in both losses; 0 trains two networks that know nothing of each other."""
    margin: Annotated[float, Within(0, 1)] = 0.1
    """m: difference of its pictures beyond which the discriminator gains nothing, in full scales of a pixel."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of both networks; the paper's."""

    def __post_init__(self) -> None:
        if min(self.width, self.latents) < 1 or not self.contextual > 0 or not self.adversarial >= 0:
            values = f"{self.width}, {self.latents}, {self.contextual}, {self.adversarial}"
            raise OptionError(
                f"width and latents of DAGAN are at least 1, contextual above 0, adversarial at least 0, not {values}"
            )

    def build(self) -> "DualAutoencoderGAN":
        """Untrained networks of this size."""
        return DualAutoencoderGAN(self)


PRESETS = {"paper": ("width=64",)}
"""The width of Skip-GANomaly, on which the paper builds; losses and rate are the paper's by default. For a GPU."""


class DualAutoencoderGAN(nn.Module):
    """The generator, and the discriminator's encoder and decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        self.generator = SkipGenerator(config.channels, config.width, config.patch_px)
        sizes = (config.channels, config.width, config.latents, "valid", config.patch_px)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)

    def encode(self, x: Patches) -> Latents:
        """The discriminator's latents of each patch; the generator's skips pass its own by."""
        return self.encoder(x)

    def reconstruct(self, x: Patches) -> Patches:
        """G(x), the patch as the generator redraws it."""
        return self.generator(x)

    def discriminate(self, x: Patches) -> Patches:
        """D(x), the patch as the discriminator repeats it."""
        return self.decoder(self.encoder(x)).to(x)  # from the lower precision of autocast

    def scores(self, x: Patches) -> dict[str, Scores]:
        """|x - G(x)| of each patch; "discriminator" is |x - D(x)|; both in full scales of a pixel."""
        return {
            "reconstruction": difference(x, self.generator(x)),
            "discriminator": difference(x, self.discriminate(x)),
        }

    def stages(self) -> list[list[Objective | Pass]]:
        """The adversaries take turns; the check that pictures still differ."""
        adam = {"learning_rate": self.config.learning_rate, "betas": BETAS}
        discriminator_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        generator_parameters = list(self.generator.parameters())
        return [
            [
                Objective("discriminator", self.discriminator_loss, discriminator_parameters, validates=False, **adam),
                Objective("generator", self.generator_loss, generator_parameters, **adam),
            ],
            [Pass("pictures", self.moments, self.check_spread, checks=True)],
        ]

    def generator_loss(self, x: Patches, draw: Draw) -> Scores:
        """L_G of each patch; there is no noise."""
        generated = self.generator(x)
        adversarial = difference(self.discriminate(x), self.discriminate(generated))
        return self.config.contextual * difference(x, generated) + self.config.adversarial * adversarial

    def discriminator_loss(self, x: Patches, draw: Draw) -> Scores:
        """L_D of each patch; there is no noise."""
        with torch.no_grad():
            generated = self.generator(x)
        repeated = self.discriminate(x)
        adversarial = difference(repeated, self.discriminate(generated))
        return difference(x, repeated) - self.config.adversarial * adversarial.clamp(max=self.config.margin)

    def moments(self, x: Patches) -> list[Tensor]:
        """Number of patches; sums over them, at each pixel, of patches and both networks' pictures, and of squares."""
        pictures = torch.stack([x, self.generator(x), self.discriminate(x)]).double()  # 3 n c h w
        return [torch.tensor(float(len(x))).to(pictures), pictures.sum(1), pictures.square().sum(1)]

    def check_spread(self, moments: list[Tensor]) -> Row:
        """The variance of each network's pictures, as a share of the variance of the patches.

        Raises:
            CollapseError: all pictures of a network are one; it has learned not to look at the patch.
        """
        count, first, second = moments
        patches, generated, repeated = (second / count - (first / count).square()).clamp(min=0).flatten(1).mean(1)
        shares = {"generator_spread": float(generated / patches), "discriminator_spread": float(repeated / patches)}
        for name, share in shares.items():
            if not share > COLLAPSED:
                network = name.removesuffix("_spread")
                raise CollapseError(
                    f"collapse: the {network} gives one picture for all {int(count)} patches; lower the learning rate "
                    f"(now {self.config.learning_rate}) or adversarial (now {self.config.adversarial})"
                )
        return shares


class SkipGenerator(nn.Module):
    """Patches to patches: maps of every size are handed over to where they are doubled back."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        widths = [channels]
        while side % 2 == 0:
            side //= 2
            widths.append(width * min(2 ** (len(widths) - 1), WIDEST))
        pairs, last = list(pairwise(widths)), len(widths) - 2
        self.down = nn.ModuleList(_down(*pair, level, last) for level, pair in enumerate(pairs))
        self.up = nn.ModuleList(_up(*pair, level, last) for level, pair in reversed(list(enumerate(pairs))))
        self.apply(initialize)

    def forward(self, x: Patches) -> Patches:
        maps = [2 * x - 1]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        y = maps.pop()
        for layer in self.up[:-1]:
            y = torch.cat([layer(y), maps.pop()], 1)
        return self.up[-1](y).to(x).tanh() / 2 + 0.5  # from the lower precision of autocast


def difference(a: Patches, b: Patches) -> Scores:
    """Root of the mean squared difference of each pair of patches, in full scales of a pixel."""
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1) / math.prod(a.shape[1:]) ** 0.5


def _down(before: int, after: int, level: int, last: int) -> nn.Sequential:
    """Half the side; the largest maps and the smallest are not normalized."""
    is_normalized = 0 < level < last
    activation = [nn.LeakyReLU(SLOPE)] if level else []
    convolution = nn.Conv2d(before, after, 4, 2, 1, bias=not is_normalized)
    return nn.Sequential(*activation, convolution, *([BatchNorm(after)] if is_normalized else []))


def _up(after: int, before: int, level: int, last: int) -> nn.Sequential:
    """Twice the side, of maps beside those that were handed over; pixels are not normalized."""
    inputs = before if level == last else 2 * before
    if not level:
        return nn.Sequential(nn.ReLU(), ToPixels(inputs, after, 4, 2, 1))
    return nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inputs, after, 4, 2, 1, bias=False), BatchNorm(after))
