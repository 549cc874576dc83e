"""A patch as a function of the place: an implicit field that healthy patches share but for a latent of their own.

Naval Marimont and Tarroni, "Implicit field learning for unsupervised anomaly detection in medical images", MICCAI
2021. A network f([z, gamma(p)]) gives the logits of the intensity classes at place p, where gamma(p) are sines and
cosines of octaves of the place. There is no encoder: the latent of a patch, |z| <= 1, is the one under which the
patch is probable. The score is what cannot be explained by any such latent, the cross-entropy a pixel.

What differs. In the paper each training image keeps a latent, learned along with f. Here every patch gets its
latent anew, in training as in scoring, by the same few gradient steps from 0, and f is trained at the latents so
found without looking back through the steps (first order). So f learns to be explained quickly, from 0, and a
latent says nothing that so few steps cannot find. The steps' lengths are given, falling, 1 in sum: steps in
proportion to the gradient left twice the cross-entropy on toy patches. The authors' penalty on |z|, dropout and
second entry of z at the fifth layer are left out, and classes are even parts of the full scale, not clusters.

To be affordable, latents are found and patches are scored on a grid of averaged pixels: a speck smaller than
such a pixel fades. gamma has the octaves that the grid can carry; the authors' code has ten, for 160 px.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import Draw, Objective, Pass
from rayad.models._blocks import initialize
from rayad.options import Channels, PatchSide, Rate, Size, Within
from rayad.tensors import Latents, Patches, Scores, like

Classes = Int[Tensor, "n p c"]
"""Of the intensities at the p places of the grid, row by row."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of the field; the defaults are for a CPU, the preset `paper` has the authors' sizes."""

    hidden: Size = 64
    """Neurons of each hidden layer."""
    depth: Annotated[int, Within(1, 1000)] = 4
    """Number of hidden layers."""
    latents: Size = 64
    """Numbers that tell one patch from another."""
    levels: Annotated[int, Within(2, 65_536)] = 16
    """Classes of intensity, even parts of the full scale."""
    side: Annotated[int, Within(2, 64)] = 16
    """Rows and columns of averaged pixels that a patch is looked at in; a divisor of patch_px."""
    steps: Annotated[int, Within(1, 1000)] = 5
    """Gradient steps from 0 to the latent of a patch, in training as in scoring."""
    channels: Channels = 1
    """1 for grey patches, 3 for colour; each has its own classes."""
    patch_px: PatchSide = 64
    """Side of the patches; unless it is given, that of the corpus that is learned from."""
    learning_rate: Rate = 1e-3
    """Learning rate of the field and of the latents."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the training loop."""

    def __post_init__(self) -> None:
        for name, minimum in (("hidden", 1), ("depth", 1), ("latents", 1), ("levels", 2), ("steps", 1)):
            if getattr(self, name) < minimum:
                raise OptionError(f"{name} of an implicit field must be at least {minimum}, not {getattr(self, name)}")
        if self.side < 2 or self.patch_px % self.side:
            raise OptionError(f"side must be a divisor of {self.patch_px} above 1, not {self.side}")

    def build(self) -> "ImplicitField":
        """An untrained field of this size."""
        return ImplicitField(self)


PRESETS = {"paper": ("hidden=512", "depth=8", "latents=256", "levels=10", "side=64", "learning_rate=5e-4")}
"""The authors' sizes; for a GPU."""


class ImplicitField(nn.Module):
    """f, and the search for the latents of patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.latents = config, config.latents
        self.octaves = int(math.log2(config.side))  # the last has two pixels a period
        self.first = nn.Linear(config.latents + 4 * self.octaves, config.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise([config.hidden] * config.depth + [config.levels * config.channels]):
            layers += [nn.ReLU(), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def encode(self, x: Patches) -> Latents:
        """The latent of each patch: the end of `steps` steps from 0 that lower the cross-entropy, |z| <= 1."""
        y = self.classes(x)
        with _gradients(y.device):
            y, places = y.clone(), self.places(self.config.side)  # a tensor of inference mode has no part in gradients
            z = torch.zeros(len(y), self.latents).to(places)
            for step in range(self.config.steps):
                z.requires_grad_()
                (gradient,) = torch.autograd.grad(_cross_entropy(self.logits(z, places), y).sum(), z)
                length = 2 * (1 - step / self.config.steps) / (self.config.steps + 1)
                z = z.detach() - length * functional.normalize(gradient, dim=1)
                z = z / z.norm(dim=1, keepdim=True).clamp(min=1)
        return z

    def reconstruct(self, x: Patches) -> Patches:
        """The expected centre of the class at every pixel, finer than the grid, under the latent of each patch."""
        return self._decode(self.encode(x))

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z."""
        return (x - self._decode(z)).square().flatten(1).sum(1)

    def _decode(self, z: Latents) -> Patches:
        centres = (torch.arange(self.config.levels).to(z) + 0.5) / self.config.levels
        patch_px = self.config.patch_px
        shares = self.logits(z, self.places(patch_px)).softmax(3)  # n p c levels
        return (shares @ centres).transpose(1, 2).unflatten(2, (patch_px, patch_px))

    def scores(self, x: Patches) -> dict[str, Scores]:
        """The cross-entropy a pixel of the grid under the latent of each patch, in nats."""
        logits = self.logits(self.encode(x), self.places(self.config.side))
        return {"reconstruction": _cross_entropy(logits, self.classes(x))}

    def stages(self) -> list[list[Objective | Pass]]:
        """One objective, the score itself."""
        parameters, config = list(self.parameters()), self.config
        return [[Objective("cross_entropy", self.loss, parameters, config.learning_rate, config.optimizer)]]

    def loss(self, x: Patches, draw: Draw) -> Scores:
        """The cross-entropy at the latents found, which count as constants; there is no noise."""
        return self.scores(x)["reconstruction"]

    def logits(self, z: Latents, places: Float[Tensor, "p f"]) -> Float[Tensor, "n p c levels"]:
        """f([z, gamma(p)]) of every patch at every place; of the first layer each part is computed once."""
        latent_weight, place_weight = self.first.weight.split([self.latents, places.shape[1]], dim=1)
        sums = functional.linear(z, latent_weight, self.first.bias)[:, None] + functional.linear(places, place_weight)
        return self.layers(sums).to(z).unflatten(2, (self.config.channels, self.config.levels))

    def places(self, side: int) -> Float[Tensor, "p f"]:
        """gamma of a grid's pixel centres, row by row: sin and cos of pi 2^o v, v the row and the column in [-1, 1]."""
        v = (torch.arange(side).to(like(self)) + 0.5) * (2 / side) - 1
        angles = v[:, None] * math.pi * 2 ** torch.arange(self.octaves).to(v)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # side 2o
        return torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], dim=1)

    def classes(self, x: Patches) -> Classes:
        """The class of each averaged pixel; the full scale belongs to the highest."""
        pooled = functional.avg_pool2d(x, self.config.patch_px // self.config.side)
        highest = self.config.levels - 1
        return (pooled * self.config.levels).long().clamp(0, highest).flatten(2).transpose(1, 2)


def _cross_entropy(logits: Float[Tensor, "n p c levels"], y: Classes) -> Scores:
    """Mean over places and channels, in nats."""
    return -logits.log_softmax(3).gather(3, y[..., None]).mean((1, 2, 3))


@contextmanager
def _gradients(device: torch.device) -> Iterator[None]:
    """Gradients wherever this is called from, in the precision of the parameters."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield
