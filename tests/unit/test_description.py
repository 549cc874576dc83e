"""Bits a pixel through a variational autoencoder, against the same from scipy and against what is known exactly."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from rayad.fit import Schedule, batches, fit
from rayad.models import bvae
from rayad.scoring.description import bits_a_pixel


class Linear(nn.Module):
    """x = 0.5 + w z + noise, z ~ N(0, 1), and q(z | x) = N(a (mean of x - 0.5), v): all in the open."""

    def __init__(self, a: float, v: float) -> None:
        super().__init__()
        self.w, self.a, self.v = nn.Parameter(torch.tensor(0.05, dtype=torch.float64)), a, v

    def description(self, x: Tensor, draw) -> tuple[Tensor, Tensor]:
        mean = self.a * (x.flatten(1).mean(1) - 0.5)
        z = mean + self.v**0.5 * draw(1)[:, 0]
        error = (x - 0.5 - self.w * z[:, None, None, None]).square().flatten(1).sum(1)
        return error, 0.5 * (mean**2 + self.v - 1 - np.log(self.v))


def drawn(n: int, noise: float) -> Tensor:
    random = np.random.default_rng(0)
    z = random.normal(size=(n, 1, 1, 1))
    return torch.tensor(0.5 + 0.05 * z + noise * random.normal(size=(n, 1, 64, 64)))


def test_the_bound_meets_the_true_likelihood_where_q_is_the_posterior():
    noise, d = 0.1, 64 * 64
    x = drawn(400, noise)
    precision = 1 + d * 0.05**2 / noise**2
    model = Linear(a=d * 0.05 / noise**2 / precision, v=1 / precision)
    # exact: x - 0.5 is normal with covariance noise^2 I + 0.05^2 11'
    centred = x.flatten(1).numpy() - 0.5
    mean = centred.mean(1)
    along = stats.norm.logpdf(mean * d**0.5, scale=(noise**2 + d * 0.05**2) ** 0.5)
    across = -0.5 * ((centred - mean[:, None]) ** 2).sum(1) / noise**2 - (d - 1) / 2 * np.log(2 * np.pi * noise**2)
    exact = -(along + across).mean() / d / np.log(2) + 16
    assert bits_a_pixel(model, lambda: [x], lambda: [x]) == pytest.approx(exact, abs=1e-3)
    worse = Linear(a=model.a * 0.9, v=model.v)
    assert bits_a_pixel(worse, lambda: [x], lambda: [x]) > exact


def test_an_encoder_that_has_collapsed_costs_more():
    """Their own losses, weighted by b, say nothing about that."""
    random = np.random.default_rng(0)
    shapes = random.uniform(0, 1, (3, 8, 8)).repeat(8, 1).repeat(8, 2)
    mix = random.dirichlet(np.ones(3), 96)
    x = torch.tensor(np.einsum("nk,khw->nhw", mix, shapes)[:, None] + 0.05 * random.normal(size=(96, 1, 64, 64)))
    x, schedule, costs = x.float(), Schedule(epochs=40, batch=16, patience=40), {}
    for beta in (0.005, 20.0):
        torch.manual_seed(0)
        model = bvae.Config(width=4, latents=4, beta=beta, learning_rate=5e-3).build()
        stages = model.stages()[:1]  # without the count that refuses a collapse
        model.stages = lambda stages=stages: stages
        fit(model, lambda epoch: batches(x[:64], schedule, epoch), lambda: batches(x[64:], schedule), schedule)
        costs[beta] = bits_a_pixel(model, lambda: [x[:64]], lambda: [x[64:]])
    assert costs[0.005] < costs[20.0] - 0.05
