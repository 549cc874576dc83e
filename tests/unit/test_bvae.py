"""The variational autoencoder: its loss by an independent formula, and the collapse that ends training."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rayad.errors import TrainingError
from rayad.fit import Schedule, batches, fit
from rayad.models._blocks import BOUND, count_active, moments
from rayad.models.bvae import Config

SMALL = Config(width=4, latents=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def divergence(model, x) -> torch.Tensor:
    mean, log_variance = model.posterior(x)
    return kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)


def test_the_loss_is_the_summed_error_and_the_weighted_divergence(model, x):
    noise = torch.randn(5, 6)
    mean, log_variance = model.posterior(x)
    z = Normal(mean, (log_variance / 2).exp()).icdf(Normal(0.0, 1.0).cdf(noise))  # the same quantiles
    truth = (x - model.decoder(z)).square().sum((1, 2, 3)) + 0.1 * divergence(model, x)
    torch.testing.assert_close(model.loss(x, lambda *shape: noise), truth, rtol=1e-4, atol=0)


def test_the_score_is_the_loss_at_the_mean(model, x):
    truth = (x - model.reconstruct(x)).square().sum((1, 2, 3)) + 0.1 * divergence(model, x)
    torch.testing.assert_close(model.scores(x)["elbo"], truth)
    torch.testing.assert_close(model.loss(x, lambda *shape: torch.zeros(5, *shape)), truth)


def test_its_parts_are_scores_of_their_own(model, x):
    scores = model.scores(x)
    torch.testing.assert_close(scores["reconstruction"], (x - model.reconstruct(x)).square().mean((1, 2, 3)))
    torch.testing.assert_close(scores["divergence"], divergence(model, x))


def test_encoding_gives_the_mean(model, x):
    assert torch.equal(model.encode(x), model.posterior(x)[0])


def test_the_log_variance_is_bounded(model, x):
    with torch.no_grad():
        model.log_variance.weight.mul_(1e4)
    assert model.posterior(x)[1].abs().max() <= BOUND
    assert model.loss(x, lambda *shape: torch.randn(5, *shape)).isfinite().all()


def test_active_units_are_those_that_vary(model, x):
    with torch.no_grad():
        model.encoder.head.weight[2:] = 0
        model.encoder.head.bias.fill_(3)
    assert (
        count_active(moments(model.encode(x)), 0.1)["active_latents"]
        == int((model.encode(x).var(0, correction=0) > 0.01).sum())
        == 2
    )


def test_moments_add_over_batches(model, x):
    z = model.encode(x)
    parts = [a + b for a, b in zip(moments(z[:2]), moments(z[2:]), strict=True)]
    for part, whole in zip(parts, moments(z), strict=True):
        torch.testing.assert_close(part, whole)


def train(config: Config, x: torch.Tensor, epochs: int):
    torch.manual_seed(0)
    model, schedule = config.build(), Schedule(epochs=epochs, batch=5)
    return fit(model, lambda epoch: batches(x, schedule, epoch), lambda: batches(x, schedule), schedule)


def test_training_reports_the_active_latents(x):
    assert 1 <= train(SMALL, x, 1).rows[-1]["active_latents"] <= 6


def test_a_collapsed_posterior_ends_training(x):
    with pytest.raises(TrainingError, match=r"posterior collapse: none of 6 latents .*beta \(now 10000000"):
        train(replace(SMALL, beta=1e7, learning_rate=1e-2), x, 40)
