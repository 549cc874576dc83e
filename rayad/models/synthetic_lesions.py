"""A U-Net that learned to find lesions drawn into healthy patches.

How they are drawn: rayad/models/_lesions.py. The score is not how improbable a place is but how much it looks like a
drawn lesion: the log-odds of the mean probability in the middle of a patch. What it was not shown it may not find; it
is meant beside a likelihood, not in its place.

The network after Ronneberger et al., "U-Net", MICCAI 2015: two convolutions of 3x3 a level, halvings by means, as many
as let it see no further from the middle of a patch than to its border. So a whole image goes through it at once.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import ALONE, Draw, Objective, Pass, Sync
from rayad.models._blocks import SLOPE, initialize
from rayad.models._lesions import NUMBERS, with_lesions
from rayad.options import Channels, PatchSide, Rate, Share, Size, Within
from rayad.tensors import Latents, Patches, Scores

SMALLEST = 1e-30
"""Mean probability that still has a logarithm."""
Maps = Float[Tensor, "n k mh mw"]


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the network and of the lesions."""

    width: Size = 8
    """Channels of the widest maps; each halving doubles them."""
    lesions: Literal["all", "masses", "specks"] = "all"
    """Lesions that are drawn into the patches: masses, clusters of specks, or both."""
    largest_px: Annotated[float, Within(1, 256)] = 16.0
    """Radius of the largest mass, px; the smallest has an eighth of it."""
    faintest: Share = 0.05
    """Least brightness that is added to a lesion, full scales; above 0."""
    brightest: Share = 0.5
    """Most brightness that is added to a lesion, full scales."""
    middle_px: Annotated[int, Within(2, 64)] = 8
    """Even side of the middle of a patch, px: as large as the places are apart, or specks between them are not seen."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise OptionError(f"width must be at least 1, not {self.width}")
        if self.largest_px < 1:
            raise OptionError(f"largest_px must be at least 1 px, not {self.largest_px}")
        if not 0 < self.faintest < self.brightest:
            raise OptionError(f"faintest must be above 0 and below brightest, not {self.faintest} and {self.brightest}")
        if self.middle_px % 2 or not self._fits(1):
            raise OptionError(
                f"middle_px must be even and {2 * reach(1)} px less than the side of a patch at most, not "
                f"{self.middle_px} of {self.patch_px}"
            )

    @property
    def depth(self) -> int:
        """Halvings: 1 for patches of 32 px, 2 for 64, 3 for 128, 4 for 256, each of which divides the side."""
        return max(depth for depth in range(1, 6) if self._fits(depth))

    def _fits(self, depth: int) -> bool:
        return self.patch_px % 2**depth == 0 and reach(depth) + self.middle_px // 2 <= self.patch_px // 2

    def build(self) -> "SyntheticLesions":
        """An untrained network of this size."""
        return SyntheticLesions(self)


def reach(depth: int) -> int:
    """How far log-odds look, px: two convolutions a level on both ways, and the means."""
    return sum((2 if level == depth else 4) * 2**level for level in range(depth + 1)) + 2**depth - 1


class SyntheticLesions(nn.Module):
    """The network, and what it learns from."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.width * 2**config.depth
        self.stride = 2**config.depth
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([config.channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(lower + skip, skip) for lower, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last, self.others = nn.Conv2d(config.width, 1, 1), Others()
        self.apply(initialize)

    def encode(self, x: Patches) -> Latents:
        """The smallest maps of each patch, the mean over their middle."""
        side = max(1, self.config.middle_px // self.stride)
        return functional.avg_pool2d(_middle(self._narrowed(x)[-1], side), side)[:, :, 0, 0]

    def scores(self, x: Patches) -> dict[str, Scores]:
        """Log-odds of the mean probability of a lesion in the middle of each patch."""
        return {"lesion": self.windows(self.log_odds(x), 1)[:, 0, 0]}

    def windows(self, log_odds: Float[Tensor, "n h w"], step: int) -> Float[Tensor, "n gh gw"]:
        """The score of every patch of larger ones, so many px apart, by the log-odds of their pixels."""
        border = (self.config.patch_px - self.config.middle_px) // 2
        inner = log_odds[:, None, border : log_odds.shape[1] - border, border : log_odds.shape[2] - border]
        lesion, healthy = (
            functional.avg_pool2d(odds.sigmoid(), self.config.middle_px, step).clamp(min=SMALLEST)
            for odds in (inner, -inner)  # 1 - p would lose the digits of a p near 1
        )
        return (lesion.log() - healthy.log())[:, 0]

    def log_odds(self, x: Patches) -> Float[Tensor, "n h w"]:
        """Of a lesion at each pixel; sides that are multiples of `stride`."""
        maps = self._narrowed(x)
        y = maps.pop()
        for block in self.up:
            y = block(torch.cat([functional.interpolate(y, scale_factor=2), maps.pop()], 1))
        return self.last(y)[:, 0]

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective."""
        return [[Objective("segmentation", self.loss, list(self.parameters()), self.config.learning_rate)]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """Mean cross-entropy a pixel of each patch, and one minus the soft Dice overlap; half of them have a lesion."""
        u = torch.special.ndtr(draw(NUMBERS + 3))
        x = _turned(x, u[:, :3])
        foreign = self.others(x)
        contrast = self.config.faintest, self.config.brightest
        drawn, truth = with_lesions(x, foreign, u[:, 3:], self.config.lesions, self.config.largest_px, contrast)
        log_odds = self.log_odds(drawn).float()
        cross_entropy = functional.binary_cross_entropy_with_logits(log_odds, truth.float(), reduction="none")
        p = log_odds.sigmoid()
        overlap = (2 * (p * truth).sum((1, 2)) + 1) / ((p + truth).sum((1, 2)) + 1)
        return cross_entropy.mean((1, 2)) + 0.1 * (1 - overlap)

    def _narrowed(self, x: Patches) -> list[Tensor]:
        """The maps of every size, the largest first."""
        y, maps = x - 0.5, []
        for level, block in enumerate(self.down):
            y = block(functional.avg_pool2d(y, 2) if level else y)
            maps.append(y)
        return maps


class Others(nn.Module):
    """For each patch another one of the same batch, of all workers together: half a batch further on.

    In evaluation mode, in which nothing depends on the batch, it is the patch itself, turned upside down.
    """

    sync: Sync = ALONE

    def forward(self, x: Patches) -> Patches:
        if not self.training:
            return x.flip((2, 3))
        if self.sync.world == 1:
            return x.roll(len(x) // 2, 0)
        sizes = torch.zeros(self.sync.world, dtype=torch.int64, device=x.device)
        sizes[self.sync.rank] = len(x)
        self.sync.sum_([sizes])
        first, total = int(sizes[: self.sync.rank].sum()), int(sizes.sum())
        batch = x.new_zeros(total, *x.shape[1:])
        batch[first : first + len(x)] = x
        self.sync.sum_([batch])
        return batch.roll(total // 2, 0)[first : first + len(x)]


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (before, after):
        layers += [nn.Conv2d(inputs, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)


def _middle(maps: Maps, side: int) -> Float[Tensor, "n k side side"]:
    """What lies in the middle of maps."""
    first = (maps.shape[2] - side) // 2
    return maps[:, :, first : first + side, first : first + side]


def _turned(x: Patches, u: Float[Tensor, "n 3"]) -> Patches:
    """Patches mirrored at their axes and their diagonal, each half of the time: lesions have no side."""
    for number, mirrored in zip(u.T, (lambda y: y.flip(2), lambda y: y.flip(3), lambda y: y.mT), strict=True):
        x = torch.where((number < 0.5)[:, None, None, None], x, mirrored(x))
    return x
