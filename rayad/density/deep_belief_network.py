"""A deep belief network: restricted Boltzmann machines, each learning from the one below; novelty is a free energy.

Hinton, Osindero and Teh, "A Fast Learning Algorithm for Deep Belief Nets", Neural Computation 2006; learned by
contrastive divergence (Hinton, "A Practical Guide to Training Restricted Boltzmann Machines", 2010). The first machine
takes standardized latents (Gaussian units of variance 1), the others the probabilities of the units below. The novelty
is the sum of the machines' free energies, each centred and scaled by those of the training latents: the first alone
would not see the others, and the top one alone not what is lost on the way to it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from rayad.density._arrays import Learned, Others, in_parts
from rayad.errors import OptionError
from rayad.options import Count, Rate, Weight, Within
from rayad.progress import Row
from rayad.tensors import Latents, Scores


@dataclass(frozen=True)
class Config:
    """Sizes of the machines and their learning."""

    hidden: Annotated[tuple[int, ...], Within(1, 65_536)] = (128, 64)
    """Hidden units of each machine, from the latents upwards."""
    epochs: Count = 30
    """Passes over the training latents a machine."""
    batch: Count = 64
    """Latents a step of learning."""
    learning_rate: Rate = 0.01
    """Step size of contrastive divergence."""
    steps: Count = 1
    """k of contrastive divergence."""
    decay: Weight = 1e-4
    """Weight decay of each step."""

    def __post_init__(self) -> None:
        if not self.hidden or min(*self.hidden, self.epochs, self.batch, self.steps) < 1:
            raise OptionError("hidden units, epochs, batch and steps of a belief network must be at least 1")
        if not (self.learning_rate > 0 and self.decay >= 0):
            raise OptionError(
                f"learning rate must be above 0 and decay not below, not {self.learning_rate}, {self.decay}"
            )

    def build(self, variables: int) -> "Network":
        """A network that learned nothing."""
        return Network(self, variables)


class Network(Learned):
    """The machines' weights and biases, and where the free energies of training lie."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        sizes, shapes = ("m", *map(str, config.hidden)), {}
        for i, (below, above) in enumerate(pairwise(sizes)):
            shapes |= {f"weight{i}": f"{below} {above}", f"visible{i}": below, f"hidden{i}": above}
        machines = str(len(config.hidden))
        super().__init__(variables, mean=machines, deviation=machines, **shapes)
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Train the machines one after the other."""
        z = below = self.standardize(train, 2)
        generator = torch.Generator().manual_seed(seed)
        for i, hidden in enumerate(self.config.hidden):
            machine = _contrastive_divergence(below, hidden, self.config, generator, gaussian=i == 0)
            self.keep(**dict(zip((f"weight{i}", f"visible{i}", f"hidden{i}"), machine, strict=True)))
            below = _upwards(below, *machine)
        energies = self._energies(z)
        self.keep(mean=energies.mean(0), deviation=energies.std(0, correction=0).clamp_min(1e-9))
        return {f"free_energy_{i}": float(value) for i, value in enumerate(energies.mean(0))}

    def novelty(self, z: Latents) -> Scores:
        """Sum of the free energies in standard deviations of training."""

        def score(part: Latents) -> Scores:
            return ((self._energies(self.standardized(part)) - self.mean) / self.deviation).sum(1)

        return in_parts(score, z, sum(self.config.hidden) + self.variables)

    def _energies(self, z: Latents) -> Tensor:
        """n k: the free energy of each machine, given what those below make of standardized latents."""
        energies = []
        for i in range(len(self.config.hidden)):
            machine = tuple(self.get_buffer(f"{kind}{i}") for kind in ("weight", "visible", "hidden"))
            energies.append(free_energy(z, *machine, gaussian=i == 0))
            z = _upwards(z, *machine)
        return torch.stack(energies, 1)


def free_energy(v: Tensor, weight: Tensor, visible: Tensor, hidden: Tensor, *, gaussian: bool) -> Tensor:
    """-log of the sum over all hidden states of exp(-E(v, h)), n (Hinton 2010, section 16.1 and 13.2).

    Args:
        v: n m visible states.
        weight: m k;  visible: m;  hidden: k biases.
        gaussian: the visible units are numbers of variance 1, not probabilities.
    """
    visible_energy = ((v - visible).square() / 2).sum(1) if gaussian else -(v @ visible)
    return visible_energy - functional.softplus(v @ weight + hidden).sum(1)


def _upwards(v: Tensor, weight: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """Probabilities of the hidden units."""
    return (v @ weight + hidden).sigmoid()


def _contrastive_divergence(
    data: Tensor, hidden: int, config: Config, generator: torch.Generator, *, gaussian: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, visible and hidden biases of a machine that learned from the data."""

    def noise(like: Tensor, draw: object) -> Tensor:
        return draw(like.shape, generator=generator, dtype=like.dtype).to(like.device)  # type: ignore[reportCallIssue]

    weight = 0.01 * torch.randn(data.shape[1], hidden, generator=generator, dtype=data.dtype).to(data)
    visible, bias = data.mean(0), torch.zeros(hidden).to(data)
    for _ in range(config.epochs):
        order = torch.randperm(len(data), generator=generator).to(data.device)
        for rows in order.split(config.batch):
            v = data[rows]
            first = h = _upwards(v, weight, visible, bias)
            reconstructed = v
            for _ in range(config.steps):
                hidden_states = (noise(h, torch.rand) < h).to(h)
                activation = hidden_states @ weight.T + visible
                reconstructed = activation + noise(activation, torch.randn) if gaussian else activation.sigmoid()
                h = _upwards(reconstructed, weight, visible, bias)
            step = config.learning_rate / len(rows)
            weight = weight + step * (v.T @ first - reconstructed.T @ h) - config.learning_rate * config.decay * weight
            visible = visible + step * (v - reconstructed).sum(0)
            bias = bias + step * (first - h).sum(0)
    return weight, visible, bias
