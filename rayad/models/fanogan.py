"""f-AnoGAN: a generator of healthy patches, a critic that judges them, and an encoder that finds each patch's place.

Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks", Medical Image
Analysis 2019. First a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017),

    L_D = D(G(z)) - D(x) + 10 (|grad D(x')| - 1)^2,    L_G = -D(G(z)),    x' = a x + (1 - a) G(z),

five steps of the critic to one of the generator; then, both frozen, the encoder "izi_f",

    L_E = mean (x - G(E(x)))^2 + kappa mean (f(x) - f(G(E(x))))^2,

f the critic's last features. The score of a patch is L_E. Pixels are in [-1, 1] inside. Residual blocks activate before
they convolve; the generator and the encoder normalize over the batch, the critic over each patch, because its penalty
is of single patches. Each worker normalizes over its own part of the batch, and the running statistics are the mean
over the workers, so more workers are a slightly different model; a score uses the running statistics alone. The critic
ends without biases: its loss is of differences, in which they cancel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.options import Channels, Count, PatchSide, Rate, Size, Weight
from rayad.progress import Row
from rayad.tensors import Latents, Patches, Scores

Maps = Float[Tensor, "n k mh mw"]
PENALTY = 10.0
"""Weight of the gradient penalty."""
BETAS = (0.0, 0.9)
"""Of Adam, for both adversaries."""
REDUCTION = 16
"""How often the side of the smallest maps goes into that of a patch: maps of 4 x 4 px of 64 x 64."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of f-AnoGAN; the defaults train on a CPU, the preset `paper` has the paper's."""

    width: Size = 8
    """d: channels of the widest maps; the smallest have eight times as many."""
    latents: Size = 64
    """Numbers that a patch is drawn from."""
    kappa: Weight = 1.0
    """Weight of the features in score and encoder."""
    critic_steps: Count = 5
    """Steps of the critic to one of the generator."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 2e-4
    """Learning rate of generator and critic."""
    encoder_rate: Rate = 5e-4
    """Learning rate of the encoder, by RMSProp."""

    def __post_init__(self) -> None:
        if min(self.width, self.latents, self.critic_steps) < 1 or not self.kappa >= 0:
            sizes = f"{self.width}, {self.latents}, {self.critic_steps}, {self.kappa}"
            raise OptionError(f"width, latents, critic_steps of f-AnoGAN are at least 1, kappa at least 0, not {sizes}")
        if self.patch_px % REDUCTION:
            raise OptionError(f"patch_px of f-AnoGAN must be a multiple of {REDUCTION}, not {self.patch_px}")

    def build(self) -> "FastAnoGAN":
        """Untrained networks of this size."""
        return FastAnoGAN(self)


PRESETS = {"paper": ("width=64", "latents=128", "learning_rate=1e-4", "encoder_rate=5e-5")}
"""Sizes and rates of the published configuration, beside batches of 64 and 50,000 steps of the encoder."""


class FastAnoGAN(nn.Module):
    """Generator, critic and encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        d, smallest = config.width, config.patch_px // REDUCTION
        self.generator = Generator(d, config.latents, config.channels, smallest)
        self.features = body(config.channels, d, lambda channels: nn.GroupNorm(1, channels))
        self.verdict = nn.Linear(8 * d * smallest**2, 1, bias=False)
        self.inverse = nn.Sequential(
            body(config.channels, d, nn.BatchNorm2d), nn.Flatten(), nn.Linear(8 * d * smallest**2, config.latents)
        )

    def encode(self, x: Patches) -> Latents:
        """E(x): the latents that the generator would draw the patch from."""
        return self.inverse(2 * x - 1)

    def reconstruct(self, x: Patches) -> Patches:
        """G(E(x)) in [0, 1]."""
        return self.draw(self.encode(x))

    def draw(self, z: Latents) -> Patches:
        """G(z) in [0, 1]."""
        return (self.generator(z) + 1) / 2

    def scores(self, x: Patches) -> dict[str, Scores]:
        """ "reconstruction" is L_E; "pixel" and "feature" are its parts, without kappa."""
        pixel, feature = self._residuals(2 * x - 1)
        return {"reconstruction": pixel + self.config.kappa * feature, "pixel": pixel, "feature": feature}

    def stages(self) -> list[list[Objective | Pass]]:
        """The adversaries take turns; then the encoder learns from both, frozen."""
        config, agree = self.config, Pass("batch statistics", self.statistics, self.agree)
        generator_parameters, critic_parameters = (
            list(self.generator.parameters()),
            [*self.features.parameters(), *self.verdict.parameters()],
        )
        adam = {"learning_rate": config.learning_rate, "betas": BETAS, "validates": False, "then": agree}
        critic = Objective("critic", self.critic_loss, critic_parameters, repeats=config.critic_steps, **adam)
        generator = Objective("generator", self.generator_loss, generator_parameters, **adam)
        encoder_parameters = list(self.inverse.parameters())
        encoder = Objective(
            "encoder", self.encoder_loss, encoder_parameters, config.encoder_rate, "rmsprop", then=agree
        )
        return [[critic, generator], [encoder]]

    def critic(self, x: Patches) -> Scores:
        """D(x) of pixels in [-1, 1]: high for what looks healthy."""
        return self.verdict(self.features(x).flatten(1))[:, 0]

    def critic_loss(self, x: Patches, draw: Draw) -> Scores:
        """L_D of each patch, with a draw and a point between the two."""
        real = 2 * x - 1
        with torch.no_grad():
            generated = self.generator(draw(self.latents)).to(x)
        share = torch.special.ndtr(draw(1))[:, :, None, None]  # uniform in [0, 1]
        mixed = (share * real + (1 - share) * generated).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square()
        return self.critic(generated) - self.critic(real) + PENALTY * penalty

    def generator_loss(self, x: Patches, draw: Draw) -> Scores:
        """L_G of as many draws as there are patches."""
        return -self.critic(self.generator(draw(self.latents)))

    def encoder_loss(self, x: Patches, draw: Draw) -> Scores:
        """L_E of each patch; there is no noise."""
        with frozen(self.generator):
            pixel, feature = self._residuals(2 * x - 1)
        return pixel + self.config.kappa * feature

    def statistics(self, x: Patches) -> list[Tensor]:
        """1 a worker, and its running statistics; they add over workers."""
        buffers = [value.double() for value in self.buffers() if value.is_floating_point()]
        return [torch.ones(1).to(buffers[0]), *buffers]

    def agree(self, sums: list[Tensor]) -> Row:
        """Set the running statistics to their mean over the workers."""
        buffers = [value for value in self.buffers() if value.is_floating_point()]
        for buffer, total in zip(buffers, sums[1:], strict=True):
            buffer.copy_(total / sums[0])
        return {}

    def _residuals(self, real: Patches) -> tuple[Scores, Scores]:
        """Mean squared differences of pixels, and of the critic's features."""
        reconstructed = self.generator(self.inverse(real)).to(real)
        pixel = (real - reconstructed).square().flatten(1).mean(1)
        return pixel, (self.features(real) - self.features(reconstructed)).square().flatten(1).mean(1)


class Generator(nn.Module):
    """Latents to pixels in [-1, 1]."""

    def __init__(self, d: int, latents: int, channels: int, smallest: int) -> None:
        super().__init__()
        self.start = nn.Sequential(
            nn.Linear(latents, 8 * d * smallest**2), nn.Unflatten(1, (8 * d, smallest, smallest))
        )
        self.blocks = nn.Sequential(*(Up(*pair) for pair in pairwise([8 * d, 8 * d, 4 * d, 2 * d, d])))
        self.end = nn.Sequential(nn.BatchNorm2d(d), nn.ReLU(), nn.Conv2d(d, channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Latents) -> Patches:
        return self.end(self.blocks(self.start(z)))


class Up(nn.Module):
    """A residual block that doubles the side."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.short = nn.Conv2d(before, after, 1)

    def forward(self, x: Maps) -> Float[Tensor, "n k2 mh2 mw2"]:
        return functional.interpolate(self.short(x), scale_factor=2) + self.path(x)


class Down(nn.Module):
    """A residual block that halves the side."""

    def __init__(self, before: int, after: int, norm: Callable[[int], nn.Module], bias: bool) -> None:
        super().__init__()
        self.path = nn.Sequential(
            norm(before),
            nn.ReLU(),
            nn.Conv2d(before, before, 3, padding=1),
            norm(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, padding=1, bias=bias),
            nn.AvgPool2d(2),
        )
        self.short = nn.Conv2d(before, after, 1, bias=bias)

    def forward(self, x: Maps) -> Float[Tensor, "n k2 mh2 mw2"]:
        return self.short(functional.avg_pool2d(x, 2)) + self.path(x)


def body(channels: int, d: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Pixels to maps of 8 d channels, 4 x 4 px of 64 x 64: what critic and encoder have in common."""
    widths = [d, 2 * d, 4 * d, 8 * d, 8 * d]
    blocks = [Down(before, after, norm, bias=True) for before, after in pairwise(widths[:-1])]
    return nn.Sequential(nn.Conv2d(channels, d, 3, padding=1), *blocks, Down(8 * d, 8 * d, norm, bias=False))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within, a module normalizes by its running statistics and does not change them."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
