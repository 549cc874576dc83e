"""What a patch costs in bits through a variational autoencoder: a figure that compares encoders.

The loss of a bVAE does not: its weight b sets the scale. The bound on the likelihood does, with b = 1 and the variance
of the decoder's noise that suits the training patches best (Rybkin et al., "Simple and Effective VAE Training with
Calibrated Decoders", ICML 2021, equation 5): -log2 p(x) is at most

    D/2 log2(2 pi s^2) + |x - x^|^2 / (2 s^2 ln 2) + KL(q(z | x) || N(0, 1)) / ln 2,    s^2 = mean of |x - x^|^2 / D.

No label enters. In theory it is lowest where b = 2 s^2: there the loss is the bound, up to a factor.
"""

import math
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rayad.fit import Draw
from rayad.tensors import Patches, Scores, like

DEPTH = 16
"""Bits of a stored pixel: intensities come in steps of 2**-16."""
Batches = Callable[[], Iterable[Patches]]


@runtime_checkable
class Describes(Protocol):
    """A model with a decoder of latents that have a prior; an nn.Module besides."""

    def description(self, x: Patches, draw: Draw) -> tuple[Scores, Scores]:
        """Of each patch the squared error summed over pixels, at drawn latents, and the divergence in nats."""
        ...


@torch.no_grad()
def bits_a_pixel(model: Describes, train: Batches, validation: Batches) -> float:
    """Mean bits that a pixel of the validation patches costs at most, of the 16 that it is stored in.

    Args:
        train: gives the patches that the noise of the decoder is fitted to.
    """
    error, _, pixels = _sums(model, train)
    variance = error / pixels
    error, nats, pixels = _sums(model, validation)
    bits = math.log2(2 * math.pi * variance) / 2 + (error / (2 * variance) + nats) / (pixels * math.log(2))
    return bits + DEPTH


def _sums(model: Describes, batches: Batches) -> tuple[float, float, int]:
    """Squared error, nats and pixels of all patches; the noise is the same each time."""
    assert isinstance(model, nn.Module)  # Describes' docstring; a Protocol cannot say it
    generator, reference = torch.Generator().manual_seed(0), like(model)
    error = nats = 0.0
    pixels = 0
    for x in batches():
        errors, divergences = model.description(x.to(reference), noise(len(x), generator, reference))
        error, nats, pixels = error + float(errors.sum()), nats + float(divergences.sum()), pixels + pixels_of(model, x)
    return error, nats, pixels


def pixels_of(model: object, x: Patches) -> int:
    """Pixels of patches, a number a channel; planes that tell a model a fact are none."""
    channels = getattr(getattr(model, "config", None), "channels", x.shape[1])
    return x[:, :channels].numel()


def noise(n: int, generator: torch.Generator, reference: Tensor) -> Draw:
    """Draws for n patches, as numbers like the reference."""
    return lambda *shape: torch.randn(n, *shape, generator=generator).to(reference)
