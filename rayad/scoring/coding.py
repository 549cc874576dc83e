"""What a patch costs in bits through a decoder and the density of its latents together: a figure that compares both.

A patch x is sent as latents z, which cost what the density p makes of them, and as what decoding leaves of its D
pixels: Gaussian noise of variance s^2. Whatever noise q(z | x) the latents are sent with (Hinton and van Camp, "Keeping
Neural Networks Simple by Minimizing the Description Length of the Weights", COLT 1993),

    -log2 p(x) <= E_q[D/2 log2(2 pi s^2) + |x - x^(z)|^2 / (2 s^2 ln 2) + (ln q(z | x) - ln p(z)) / ln 2],

with equality where q is the posterior. The noise is

- of an encoder with q(z | x) = N(m, v): N(m, t^2 min(v, c)) for each latent, where c is the variance of its mean over
  patches. The density knows these means alone, and a latent that is not in use, with v = 1, would cost it too much;
- of any other encoder of numbers: steps of d = min(t e, 2 sqrt(c)), where e is twice the largest sqrt(c). What is
  decoded is z rounded to them, and q is even within a step: ln q = -sum ln d. This is at least what the steps'
  probabilities cost (Theis et al., "A Note on the Evaluation of Generative Models", ICLR 2016, section 3.1);
- of codes: none. They cost -log2 P(z) exactly.

s^2 and t, of 1, 1/2, 1/4, ..., are those that cost least on training patches. No label enters.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional

from rayad.fit import Draw
from rayad.scoring.description import DEPTH, Batches, noise, pixels_of
from rayad.tensors import Latents, Patches, Scores, like

DESCRIBED, CHOOSING = 1024, 256
"""Training patches by which latents are described, and by which s^2 and t are chosen; whole batches, so a few more."""
FINEST = 2.0**-2 / (1 << DEPTH) ** 2
"""The least s^2: noise far below a step of the stored pixels."""
HALVINGS = 24
"""Of t, at most."""
RIDGE = 1e-3
"""Share of each variance that is added to it where a Gaussian is made of a few patches."""
LogProb = Callable[[Latents], Scores]
"""log p(z) in nats, or log P(z) of codes."""


@runtime_checkable
class Decodes(Protocol):
    """A model with a decoder of its latents; an nn.Module besides."""

    def encode(self, x: Patches) -> Latents: ...

    def errors(self, x: Patches, z: Latents) -> Scores:
        """Of each patch the squared error, summed over pixels, of what is decoded from z."""
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A model whose encoder gives a Gaussian."""

    def posterior(self, x: Patches) -> tuple[Latents, Latents]:
        """Mean and log-variance of q(z | x)."""
        ...


class Sent(NamedTuple):
    """Latents of some patches as they are sent."""

    decoded: Latents
    judged: Latents
    """By the density."""
    log_q: Scores
    """ln q(z | x)."""


@dataclass(frozen=True)
class Channel:
    """How the latents of a model are sent."""

    model: Any
    centre: Tensor
    """Mean of each latent over patches."""
    deviation: Tensor
    """Standard deviation of each latent over patches."""

    @staticmethod
    def of_latents(model: Any, z: Latents) -> "Channel":
        """The channel of a model that has these latents of training patches."""
        deviation = z.double().std(0, correction=0)
        least = 1e-6 * float(deviation.max()) or 1e-6
        return Channel(model, z.mean(0), deviation.clamp(min=least).to(z))

    def read(self, x: Patches) -> tuple[Tensor, ...]:
        """What the encoder says of patches."""
        return self.model.posterior(x) if isinstance(self.model, Uncertain) else (self.model.encode(x),)

    def send(self, read: tuple[Tensor, ...], width: float, draw: Draw) -> Sent:
        """The latents with noise of this width, t."""
        z = read[0]
        if getattr(self.model, "states", ()):
            return Sent(z, z, z.new_zeros(len(z)))
        if len(read) == 2:
            sigma = width * torch.minimum((read[1] / 2).exp(), self.deviation)
            standard = draw(z.shape[1])
            sent = z + sigma * standard
            return Sent(sent, sent, -(standard.square() / 2 + sigma.log() + math.log(2 * math.pi) / 2).sum(1))
        steps = 2 * torch.minimum(width * self.deviation.max(), self.deviation)
        rounded = self.centre + steps * ((z - self.centre) / steps).round()
        even = torch.special.ndtr(draw(z.shape[1])) - 0.5
        return Sent(rounded, rounded + steps * even, -steps.log().sum().expand(len(z)))


@dataclass(frozen=True)
class Cost:
    """Sums over patches."""

    error: float
    """Squared, over all pixels."""
    nats: float
    """Of the latents."""
    pixels: int

    @property
    def variance(self) -> float:
        """The s^2 that costs least."""
        return max(self.error / self.pixels, FINEST)

    def bits(self, variance: float) -> float:
        """A pixel's, of the 16 that it is stored in."""
        nats = self.error / (2 * variance) + self.nats
        return math.log2(2 * math.pi * variance) / 2 + nats / (self.pixels * math.log(2)) + DEPTH


@torch.no_grad()
def bits_together(model: Decodes, log_prob: LogProb, train: Batches, validation: Batches) -> float:
    """Mean bits that a pixel of the validation patches costs at most, of the 16 that it is stored in.

    Args:
        log_prob: of a density of the latents that `encode` gives; for a model of codes, of these.
        train: gives the patches that s^2 and t are chosen by.
    """
    assert isinstance(model, nn.Module)  # Decodes' docstring; a Protocol cannot say it
    channel = Channel.of_latents(model, latents_of(model, train))
    few = [(x, channel.read(x)) for x in _moved(model, taken(train(), CHOOSING))]
    width, cost = 1.0, _cost(channel, log_prob, few, 1.0)
    for _ in range(0 if getattr(model, "states", ()) else HALVINGS):
        narrower = _cost(channel, log_prob, few, width / 2)
        if not narrower.bits(narrower.variance) < cost.bits(cost.variance):
            break
        width, cost = width / 2, narrower
    judged = _cost(channel, log_prob, ((x, channel.read(x)) for x in _moved(model, validation())), width)
    return judged.bits(cost.variance)


@torch.no_grad()
def latents_of(model: Decodes, train: Batches) -> Latents:
    """The latents of the first patches."""
    assert isinstance(model, nn.Module)  # as in bits_together()
    return torch.cat([model.encode(x) for x in _moved(model, taken(train(), DESCRIBED))])


def simple_density(model: Any, z: Latents) -> LogProb:
    """What is made of latents at once: their Gaussian; of codes, the frequencies of each variable's alone."""
    if states := getattr(model, "states", ()):
        return _frequencies(z, max(states))
    covariance = z.double().T.cov(correction=0).reshape(z.shape[1], z.shape[1])
    variances = covariance.diagonal()
    least = 1e-12 + RIDGE**2 * float(variances.max())
    covariance = covariance + torch.diag(RIDGE * variances + least)
    normal = MultivariateNormal(z.double().mean(0), covariance)
    return lambda z: normal.log_prob(z.double())


def _frequencies(z: Latents, states: int) -> LogProb:
    """Each code is thought to have been seen once more than it was."""
    counts = functional.one_hot(z.long(), states).double().sum(0) + 1  # m k
    logarithms = (counts / counts.sum(1, keepdim=True)).log()
    return lambda z: logarithms.gather(1, z.long().T).sum(0)


def _cost(
    channel: Channel, log_prob: LogProb, batches: Iterable[tuple[Patches, tuple[Tensor, ...]]], width: float
) -> Cost:
    """The cost of all patches; the noise is the same each time."""
    generator, reference = torch.Generator().manual_seed(0), like(channel.model)
    error = nats = 0.0
    pixels = 0
    for x, read in batches:
        sent = channel.send(read, width, noise(len(x), generator, reference))
        error += float(channel.model.errors(x, sent.decoded).sum(dtype=torch.float64))
        nats += float((sent.log_q - log_prob(sent.judged)).sum(dtype=torch.float64))
        pixels += pixels_of(channel.model, x)
    return Cost(error, nats, pixels)


def taken(batches: Iterable[Patches], patches: int) -> Iterator[Patches]:
    """The first batches that hold so many patches, or all of them."""
    number = 0
    for x in batches:
        if number >= patches:
            return
        number += len(x)
        yield x


def _moved(model: nn.Module, batches: Iterable[Patches]) -> Iterable[Patches]:
    return (x.to(like(model)) for x in batches)
