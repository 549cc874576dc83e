"""Learning of circuits by gradient ascent, an option beside expectation-maximization.

Adam (Kingma and Ba 2015) climbs the likelihood in coordinates without constraints: logits of the weights, of the mixing
and of the codes, means, and logarithms of variances, which are kept between their bounds. The gradients follow from the
statistics of the E-step, so no graph of derivatives is recorded: with expected visits v,

    dL / d logit_k = v_k - w_k sum(v),   dL / d mean = T1 / variance,   dL / d log variance = (T2 / variance - v) / 2

for deviations T1 and their squares T2 from the current mean. There are no priors: early stopping guards.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rayad.density.categorical import FLOOR, CategoricalLeaves
from rayad.density.em import EM, EMHistory, Labels, Validation, improve
from rayad.density.leaves import MAX_VARIANCE, GaussianLeaves
from rayad.density.mixed import MixedLeaves
from rayad.density.spn import SPN, CircuitStatistics
from rayad.density.sums import MIN_WEIGHT
from rayad.fit import ALONE, Row, Sync
from rayad.tensors import Latents, Scores


def fit_by_gradient(
    circuit: SPN,
    train: Latents,
    validation: Validation,
    schedule: EM,
    *,
    labels: Labels | None = None,
    sync: Sync = ALONE,
    report: Callable[[Row], None] = lambda row: None,
) -> EMHistory:
    """Start the circuit from the training rows and climb; the best parameters on validation stay in it.

    Args:
        schedule: as of expectation-maximization; its step is Adam's learning rate, 0.01 to 0.1.

    Raises:
        TrainingError: no rows, an infinite value, or a likelihood that is not finite.
        OptionError: another number of variables than the circuit was built for.
    """
    circuit.start(train, schedule.seed, sync)
    climber = _Climber(circuit)
    return improve(climber, train, validation, schedule, labels=labels, sync=sync, report=report)


class _Coordinate(NamedTuple):
    """A parameter without constraints."""

    take: Callable[[], Tensor]
    """Its value in the circuit."""
    put: Callable[[Tensor], object]
    """Give the circuit this value."""
    slope: Callable[[CircuitStatistics], Tensor]
    """Derivative of the likelihood of the rows."""


class _Climber(nn.Module):
    """A circuit whose M-step is a step of Adam."""

    def __init__(self, circuit: SPN) -> None:
        super().__init__()
        self.circuit = circuit
        self.coordinates = [*_sums(circuit), *_leaves(circuit.leaves, lambda statistics: statistics.leaves)]
        self.values = [coordinate.take() for coordinate in self.coordinates]
        self.adam = Adam(self.values)

    def start(self, z: Latents, seed: int, sync: Sync = ALONE) -> None:
        self.circuit.start(z, seed, sync)
        self._take()

    def log_prob(self, z: Latents) -> Scores:
        return self.circuit.log_prob(z)

    def statistics(self, z: Latents, labels: Labels | None = None) -> CircuitStatistics:
        return self.circuit.statistics(z, labels)

    @torch.no_grad()
    def update(self, statistics: CircuitStatistics, step: float) -> None:
        """Climb with this learning rate."""
        for group in self.adam.param_groups:
            group["lr"] = step
        for value, coordinate in zip(self.values, self.coordinates, strict=True):
            value.grad = coordinate.slope(statistics) / -float(statistics.rows)
        self.adam.step()
        for value, coordinate in zip(self.values, self.coordinates, strict=True):
            coordinate.put(value)

    def revive(self, z: Latents, visits: Tensor, share: float, seed: int, sync: Sync = ALONE) -> int:
        number = self.circuit.revive(z, visits, share, seed, sync)
        self._take()
        return number

    @torch.no_grad()
    def _take(self) -> None:
        for value, coordinate in zip(self.values, self.coordinates, strict=True):
            value.copy_(coordinate.take())


def _sums(circuit: SPN) -> Iterator[_Coordinate]:
    tables = (table for layer in circuit.layers() for table in layer.tables())
    for number, (table, own) in enumerate(tables):
        yield _shares(table, own, lambda statistics, number=number: statistics.sums[number])
    yield _shares(circuit.mixing, (0,), lambda statistics: statistics.roots)


def _leaves(leaves: nn.Module, moments: Callable[[CircuitStatistics], Any]) -> Iterator[_Coordinate]:
    match leaves:
        case GaussianLeaves():
            yield from _gaussian(leaves, moments)
        case CategoricalLeaves():
            yield _categorical(leaves, moments)
        case MixedLeaves():
            yield from _gaussian(leaves.gaussian, lambda statistics: moments(statistics).gaussian)
            yield _categorical(leaves.categorical, lambda statistics: moments(statistics).categorical)


def _shares(weights: Tensor, dims: tuple[int, ...], visits: Callable[[CircuitStatistics], Tensor]) -> _Coordinate:
    """Logits of weights that add to one over these dimensions."""

    def put(logits: Tensor) -> None:
        weights.copy_(_softmax(logits, dims).clamp_min_(MIN_WEIGHT))

    def slope(statistics: CircuitStatistics) -> Tensor:
        expected = visits(statistics)
        return expected - weights * expected.sum(dims, keepdim=True)

    return _Coordinate(lambda: weights.log(), put, slope)


def _gaussian(leaves: GaussianLeaves, moments: Callable[[CircuitStatistics], Any]) -> Iterator[_Coordinate]:
    def put(logarithm: Tensor) -> None:
        logarithm.clamp_(math.log(leaves.min_variance), math.log(MAX_VARIANCE))
        leaves.variance.copy_(logarithm.exp().clamp_(leaves.min_variance, MAX_VARIANCE))

    def widen(statistics: CircuitStatistics) -> Tensor:
        return (moments(statistics).second / leaves.variance - moments(statistics).mass) / 2

    yield _Coordinate(leaves.mean.clone, leaves.mean.copy_, lambda s: moments(s).first / leaves.variance)
    yield _Coordinate(leaves.variance.log, put, widen)


def _categorical(leaves: CategoricalLeaves, counts: Callable[[CircuitStatistics], Any]) -> _Coordinate:
    def put(logits: Tensor) -> None:
        sizes = leaves.sizes[..., None, None].to(logits)
        theta = _softmax(logits, (2,)).mul_(1 - FLOOR * sizes).add_(FLOOR)
        leaves.probabilities.copy_(theta.masked_fill_(~leaves.used, 0))

    def slope(statistics: CircuitStatistics) -> Tensor:
        mass, table = counts(statistics).tensors()
        return table - leaves.probabilities * mass[:, :, None]

    return _Coordinate(leaves.probabilities.log, put, slope)


def _softmax(logits: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (logits - logits.logsumexp(dims, keepdim=True)).exp_()
