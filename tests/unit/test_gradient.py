"""Gradient ascent: its slopes against differences, what it learns, and the constraints that it keeps."""

import pytest
import torch
from torch import Tensor

from rayad.density.em import EM
from rayad.density.gradient import _Climber, fit_by_gradient
from rayad.density.leaves import MAX_VARIANCE
from rayad.density.spn import SPN, Config

STATES = (0, 3, 0, 4, 2)


def rows(number: int, seed: int = 0) -> Tensor:
    """Two clusters of numbers and codes."""
    generator = torch.Generator().manual_seed(seed)
    high = torch.rand(number, 1, generator=generator) < 0.5
    sizes = torch.tensor(STATES)
    coded = torch.where(high, sizes - 1, 0) * (torch.rand(number, 5, generator=generator) < 0.8)
    return torch.where(sizes > 0, coded, torch.randn(number, 5, generator=generator) + 4 * high).double()


def circuit(**other) -> SPN:
    density = Config(roots=2, inputs=3, sums=2, depth=2, replicas=2, states=STATES, **other).build(5).double()
    density.start(rows(60), seed=0)
    return density


@pytest.mark.parametrize("blocks", [0, 1])
def test_slopes_are_differences_of_the_likelihood(blocks: int):
    density, z = circuit(blocks=blocks), rows(40, seed=1)
    climber = _Climber(density)
    statistics = density.statistics(z)
    slopes = [coordinate.slope(statistics) for coordinate in climber.coordinates]
    generator = torch.Generator().manual_seed(0)
    for coordinate, value, slope in zip(climber.coordinates, climber.values, slopes, strict=True):
        way = torch.randn(value.shape, dtype=torch.float64, generator=generator).masked_fill_(~value.isfinite(), 0)
        likelihood = []
        for size in (1e-5, -1e-5):
            coordinate.put(value + size * way)
            likelihood.append(density.log_prob(z).sum().item())
        coordinate.put(value.clone())
        difference = (likelihood[0] - likelihood[1]) / 2e-5
        assert difference == pytest.approx((slope * way).sum().item(), rel=1e-4, abs=1e-4)


def test_climbing_raises_the_likelihood_of_new_rows_and_keeps_the_constraints():
    train, validation = rows(300), rows(100, seed=1)
    density = circuit()
    before = density.log_prob(validation).mean().item()
    history = fit_by_gradient(density, train, validation, EM(epochs=15, batches=8, step=0.05, seed=0))
    assert density.log_prob(validation).mean().item() > before + 0.2
    assert history.best["validation"] < history.rows[0]["validation"]
    for layer in density.layers():
        torch.testing.assert_close(
            layer.weights.sum(layer.own), torch.ones_like(layer.weights.sum(layer.own)), rtol=0, atol=1e-9
        )
    variance, theta = density.leaves.gaussian.variance, density.leaves.categorical.probabilities
    assert density.config.min_variance <= variance.min().item() <= variance.max().item() <= MAX_VARIANCE
    torch.testing.assert_close(theta.sum(2), torch.ones_like(theta.sum(2)), rtol=0, atol=1e-9)
    assert (theta[~density.leaves.categorical.used.expand_as(theta)] == 0).all()
