"""The variational autoencoder: its loss by an independent formula, and the collapse that ends training."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from workers import in_threads

from rayad.errors import TrainingError
from rayad.fit import ALONE, Schedule, batches, fit
from rayad.models._blocks import BOUND, BatchNorm, count_active, moments
from rayad.models.bvae import Config, VariationalAutoencoder

SMALL = Config(width=4, latents=6)
NORMALIZED = replace(SMALL, batch_norm=True, padding="same")


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


def learned(x: torch.Tensor, world: int, schedule: Schedule) -> list[VariationalAutoencoder]:
    """The models of all workers."""
    torch.manual_seed(0)
    models = [NORMALIZED.build() for _ in range(world)]

    def work(sync) -> None:
        shares = {"sync": sync}
        fit(
            models[sync.rank],
            lambda epoch: batches(x, schedule, epoch, **shares),
            lambda: batches(x, schedule, **shares),
            schedule,
            sync=sync,
        )

    in_threads(world, work) if world > 1 else work(ALONE)
    return models


@pytest.mark.parametrize(("world", "batch"), [(2, 7), (3, 7), (5, 3)])
def test_workers_normalize_by_their_common_batch(world, batch):
    """Alone, torch's own layer does it; of batches of 3, two of 5 workers have nothing."""
    x = torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    schedule = Schedule(epochs=2, batch=batch, precision="float64")
    (one,), many = learned(x, 1, schedule), learned(x, world, schedule)
    for model in many:
        for name, value in one.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)
        assert all(layer.sync == ALONE for layer in model.modules() if isinstance(layer, BatchNorm))


def test_workers_with_unequal_shares_cut_them_into_equally_many_parts():
    x = torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    schedule = Schedule(epochs=1, batch=7, precision="float64", accumulate=3)  # shares of 2, 2 and 3
    first, *others = learned(x, 3, schedule)
    for model in others:
        for name, value in first.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)


def test_a_normalized_layer_has_mean_0_and_deviation_1(x):
    torch.manual_seed(0)
    seen = []
    model = NORMALIZED.build().train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.detach().clone()))
    model.reconstruct(x)
    assert len(seen) == 6
    for maps in seen:
        torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(maps.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(maps.std((0, 2, 3)), torch.ones(maps.shape[1]), rtol=0.02, atol=0)


def test_a_normalized_model_repeats_what_it_learned_by_heart():
    y, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    spots = torch.stack([(-4 * ((y - a) ** 2 + (columns - b) ** 2)).exp() for a, b in [(0, 0), (0.5, -0.5), (-0.5, 0)]])
    few = 0.2 + 0.6 * spots.repeat(4, 1, 1)[:, None]
    torch.manual_seed(0)
    model = replace(NORMALIZED, beta=1e-3, learning_rate=1e-2).build()
    schedule = Schedule(epochs=60, batch=3, patience=60)
    fit(model, lambda epoch: batches(few, schedule, epoch), lambda: batches(few, schedule), schedule)
    assert model.scores(few)["reconstruction"].max() < 0.15 * few.var()
