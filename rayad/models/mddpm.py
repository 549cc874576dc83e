"""A masked diffusion model: what it draws into a hidden box, from the noisy rest, is how healthy tissue would go on.

Iqbal et al., "Unsupervised Anomaly Detection in Medical Images Using Masked Diffusion Model", MLMI 2023; diffusion
after Ho et al. 2020 with the cosine schedule of Nichol and Dhariwal 2021 (equation 17). A network sees

    x_t = sqrt(a_t) m(x) + sqrt(1 - a_t) noise,

m(x) the patch with a part hidden (a box, or a band of its frequencies), and predicts x itself; the loss is the mean
absolute error, as theirs. At test the patch is cut into boxes; each is hidden once, at t = T / 2, and drawn from the
rest in one call. The score is the mean absolute difference of the patch to its drawn boxes. The noise at test is one
fixed pattern, so that a score is the same each time and depends on no other patch. Pixels are in [-1, 1] inside.

What differs from the authors' code. Its noise is simplex noise, its boxes in training are those of the test (halves of
the side of 96 px, which `boxes` has as well), and its error is that of the hidden box alone; its network has attention
between the way down and the way up.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.options import Channels, PatchSide, Rate, Size, Within
from rayad.tensors import Latents, Patches, Scores

Maps = Float[Tensor, "n k mh mw"]
GROUPS = 1
"""Of the normalization, a patch at a time; groups of few channels lose how bright the patch is."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the diffusion model."""

    width: Size = 8
    """Channels of the largest maps."""
    multiples: Annotated[tuple[int, ...], Within(1, 64)] = (1, 2, 4, 8)
    """Channels of the maps of each size, the largest first, in widths; between two sizes lies a halving."""
    blocks: Annotated[int, Within(1, 64)] = 1
    """Residual blocks for the maps of each size, on the way down as on the way up."""
    steps: Annotated[int, Within(2, 1_000_000)] = 1000
    """T: number of steps of the diffusion."""
    boxes: Annotated[int, Within(1, 64)] = 2
    """Boxes along each side of a patch that are hidden in turn at test; a patch takes boxes**2 calls of the network."""
    hidden: Literal["boxes", "frequencies"] = "boxes"
    """Part that is hidden in training: a box of a quarter to half of the side, or a band of the patch's frequencies."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of Adam; ours."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise OptionError(f"width of a diffusion model must be at least 1, not {self.width}")
        if self.blocks < 1 or min(self.multiples, default=0) < 1:
            raise OptionError(
                "blocks and each of multiples of a diffusion model must be at least 1, not "
                f"{self.blocks} and {self.multiples}"
            )
        if self.patch_px % self.reduction:
            raise OptionError(
                f"maps of {self.patch_px} px cannot be halved {len(self.multiples) - 1} times (multiples)"
            )
        if self.steps < 2 or self.boxes < 1 or self.patch_px % self.boxes:
            raise OptionError(
                f"steps must be at least 2 and boxes divide {self.patch_px} px, not {self.steps} and {self.boxes}"
            )
        if self.hidden not in ("boxes", "frequencies"):
            raise OptionError(f"hidden in training are boxes or frequencies, not {self.hidden!r}")

    @property
    def reduction(self) -> int:
        """How often the side of the smallest maps goes into that of a patch."""
        return 2 ** (len(self.multiples) - 1)

    def build(self) -> "MaskedDiffusion":
        """An untrained model of this size."""
        return MaskedDiffusion(self)


PRESETS = {"paper": ("width=128", "multiples=1,2,2", "blocks=3", "learning_rate=1e-4")}
"""Sizes and rate of the authors' code, beside batches of 32 and 1,600 epochs; for a GPU."""


class MaskedDiffusion(nn.Module):
    """A U-shaped network that predicts a patch from a noisy part of it."""

    noise: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, d = config, config.width
        widths = [d * multiple for multiple in config.multiples]
        self.latents = widths[-1]
        self.time = nn.Sequential(nn.Linear(2 * d, 4 * d), nn.SiLU(), nn.Linear(4 * d, 4 * d))
        self.first = nn.Conv2d(config.channels, d, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for before, after in zip([d, *widths], widths, strict=False):
            self.down.extend(_blocks(before, after, 4 * d, config.blocks))
        for lower, skip in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.extend(_blocks(lower + skip, skip, 4 * d, config.blocks))
        self.last = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], config.channels, 3, padding=1)
        )
        shape = (config.channels, config.patch_px, config.patch_px)
        pattern = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", pattern)

    def encode(self, x: Patches) -> Latents:
        """The network's smallest maps of the patch without noise, the mean over their pixels."""
        return self._narrowed(2 * x - 1, x.new_zeros(len(x)))[-1].flatten(2).mean(2)

    def reconstruct(self, x: Patches) -> Patches:
        """The patch with every box drawn from the rest, in [0, 1]."""
        return (self._drawn(2 * x - 1) + 1) / 2

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The mean absolute difference of each patch to its drawn boxes, in full scales."""
        return {"reconstruction": (x - self.reconstruct(x)).abs().flatten(1).mean(1)}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective."""
        return [[Objective("diffusion", self.loss, list(self.parameters()), self.config.learning_rate)]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """The mean absolute error of each patch's prediction, at a random time and with a random part hidden."""
        real = 2 * x - 1
        uniform = torch.special.ndtr(draw(5))  # time; place, size or band
        time = (uniform[:, 0] * self.config.steps).floor().clamp_max(self.config.steps - 1) + 1
        masked = self._hidden(real, uniform[:, 1:])
        noisy = self._noisy(masked, time, draw(*x.shape[1:]))
        return (real - self.predict(noisy, time)).abs().flatten(1).mean(1)

    def predict(self, noisy: Patches, time: Float[Tensor, " n"]) -> Patches:
        """x from x_t and t."""
        maps = self._narrowed(noisy, time)
        x, embedded = maps.pop(), self._embedded(time)
        for number, block in enumerate(self.up):
            if number % self.config.blocks == 0:
                x = torch.cat([functional.interpolate(x, scale_factor=2), maps.pop()], 1)
            x = block(x, embedded)
        return self.last(x)

    def _narrowed(self, noisy: Patches, time: Float[Tensor, " n"]) -> list[Tensor]:
        """The maps of every size, the largest first."""
        x, embedded, maps = self.first(noisy), self._embedded(time), []
        for number, block in enumerate(self.down):
            is_first, is_last = (at % self.config.blocks == 0 for at in (number, number + 1))
            x = block(functional.avg_pool2d(x, 2) if number and is_first else x, embedded)
            if is_last:
                maps.append(x)
        return maps

    def _embedded(self, time: Float[Tensor, " n"]) -> Tensor:
        """Sines and cosines of the time, at frequencies between 1 and 1 / 10,000 (Vaswani et al. 2017, section 3.5)."""
        d = self.config.width
        frequencies = torch.exp(-math.log(10_000) * torch.arange(d).to(time) / d)
        angle = time[:, None] * frequencies
        return self.time(torch.cat([angle.sin(), angle.cos()], 1))

    def _noisy(self, x: Patches, time: Float[Tensor, " n"], noise: Tensor) -> Patches:
        signal_share = signal(time / self.config.steps)[:, None, None, None]
        return signal_share.sqrt() * x + (1 - signal_share).sqrt() * noise

    def _hidden(self, x: Patches, uniform: Float[Tensor, "n 4"]) -> Patches:
        """The patches with a part set to mid-grey, or with a band of frequencies left out."""
        if self.config.hidden == "frequencies":
            return without_band(x, uniform[:, :2])
        patch_px = self.config.patch_px
        side = patch_px / 4 * (1 + uniform[:, 2:])  # n 2
        first = uniform[:, :2] * (patch_px - side)
        pixel = torch.arange(patch_px).to(x)
        rows = (pixel >= first[:, :1]) & (pixel < first[:, :1] + side[:, :1])
        columns = (pixel >= first[:, 1:]) & (pixel < first[:, 1:] + side[:, 1:])
        return x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)

    def _drawn(self, real: Patches) -> Patches:
        """Every box drawn from the rest, at half of the diffusion."""
        time, out = real.new_full((len(real),), self.config.steps // 2), real.clone()
        side = self.config.patch_px // self.config.boxes
        for i in range(self.config.boxes):
            for j in range(self.config.boxes):
                box = (..., slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
                masked = real.clone()
                masked[box] = 0
                out[box] = self.predict(self._noisy(masked, time, self.noise.to(real)), time)[box].to(real)
        return out


class Block(nn.Module):
    """Two convolutions with a residual path; the time shifts the channels between them."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.shift = nn.Linear(time, after)
        self.two = nn.Sequential(nn.GroupNorm(GROUPS, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1))
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Maps, time: Float[Tensor, "n e"]) -> Float[Tensor, "n k2 mh mw"]:
        hidden = self.one(x) + self.shift(time)[:, :, None, None]
        return self.short(x) + self.two(hidden)


def _blocks(before: int, after: int, time: int, number: int) -> list[Block]:
    """Those for the maps of one size."""
    return [Block(after if i else before, after, time) for i in range(number)]


def signal(share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """a_t, the share of the variance that is still the patch, at a share of the time (Nichol and Dhariwal, eq. 17)."""
    s = 0.008

    def f(u: Tensor) -> Tensor:
        return torch.cos((u + s) / (1 + s) * math.pi / 2).square()

    return (f(share) / f(torch.zeros_like(share))).clamp(1e-5, 1)


def without_band(x: Patches, uniform: Float[Tensor, "n 2"]) -> Patches:
    """The patches without the frequencies in a ring: its inner radius uniform over all, its width up to a quarter."""
    spectrum, (h, w) = torch.fft.rfft2(x), x.shape[2:]
    rows, columns = torch.fft.fftfreq(h).to(x), torch.fft.rfftfreq(w).to(x)
    radius = (rows[:, None].square() + columns.square()).sqrt() * 2  # 1 at the Nyquist frequency
    inner, width = uniform[:, 0, None, None], uniform[:, 1, None, None] / 4
    inside = (radius >= inner) & (radius < inner + width) & (radius > 0)
    return torch.fft.irfft2(spectrum.masked_fill(inside[:, None], 0), s=(h, w))
