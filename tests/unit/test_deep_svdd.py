"""Deep support vector data description: the centre by hand, no biases, and the collapse that ends training."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from rayad import catalog
from rayad.errors import OptionError, TrainingError
from rayad.fit import Objective, Pass, Schedule, batches, fit
from rayad.models._blocks import BOUND
from rayad.models.deep_svdd import Config

SMALL = Config(width=4, latents=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(10, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def train(config: Config, x: torch.Tensor, epochs: int):
    torch.manual_seed(0)
    model, schedule = config.build(), Schedule(epochs=epochs, batch=5)
    history = fit(model, lambda epoch: batches(x, schedule, epoch), lambda: batches(x, schedule), schedule)
    return model, history


def test_phi_has_no_biases_so_that_zero_weights_are_its_only_constant(model, x):
    layers = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    assert all(layer.bias is None for layer in layers)
    assert torch.equal(model.encode(torch.full((1, 1, 64, 64), 0.5)), torch.zeros(1, 6))


def test_the_centre_is_the_mean_away_from_zero(model):
    points = torch.tensor([[2.0, -0.3, 0.05, -0.05, 0.0, 0.3], [4.0, -0.1, 0.07, -0.05, 0.0, -0.1]])
    model.set_centre([torch.tensor(2.0), points.sum(0)])
    torch.testing.assert_close(model.centre, torch.tensor([3.0, -0.2, 0.1, -0.1, 0.1, 0.1]))


@torch.no_grad()
def test_the_centre_is_that_of_all_batches(model, x):
    a, b = model.sum_points(x[:3]), model.sum_points(x[3:])
    model.set_centre([first + second for first, second in zip(a, b, strict=True)])
    mean = model.encode(x).mean(0)
    far = mean.abs() >= 0.1
    assert far.any()
    torch.testing.assert_close(model.centre[far], mean[far])


def test_the_score_is_the_squared_distance(model, x):
    model.centre.copy_(torch.arange(6))
    truth = torch.cdist(model.encode(x), torch.arange(6.0)[None]).squeeze(1).square()
    torch.testing.assert_close(model.scores(x)["distance"], truth)
    torch.testing.assert_close(model.loss(x, lambda *shape: torch.zeros(10, *shape)), truth)


def test_the_joint_loss_adds_the_weighted_elbo(x):
    torch.manual_seed(0)
    model, noise = replace(SMALL, joint=0.5).build(), torch.randn(10, 6)
    mean, cells = model.encode(x), model.encoder.cells(x).flatten(1)
    posterior = Normal(mean, (BOUND * (model.log_variance(cells) / BOUND).tanh() / 2).exp())
    z = posterior.icdf(Normal(0.0, 1.0).cdf(noise))  # the same quantiles
    elbo = (x - model.decoder(z)).square().sum((1, 2, 3)) + 0.1 * kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    truth = (mean - model.centre).square().sum(1) + 0.5 * elbo
    torch.testing.assert_close(model.loss(x, lambda *shape: noise), truth, rtol=1e-4, atol=0)


def test_the_joint_loss_goes_on_training_the_decoder(model):
    def trained(config):
        return len(config.build().stages()[1][1].parameters)

    assert trained(SMALL) == 4
    assert trained(replace(SMALL, joint=0.1)) == len(list(model.parameters()))


@pytest.mark.parametrize("joint", [0.0, 0.1])
def test_distances_differ_after_training(x, joint):
    model, history = train(replace(SMALL, joint=joint), x, 4)
    scores = model.scores(x)["distance"]
    assert history.rows[-1]["distance"] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert history.rows[-1]["distance_spread"] == pytest.approx(scores.std(correction=0).item(), rel=1e-4)
    assert scores.std() > 1e-2 * scores.mean()


def test_the_centre_is_set_before_the_distance_is_trained(x):
    model, history = train(SMALL, x, 2)
    assert [type(item) for stage in model.stages() for item in stage] == [Objective, Pass, Objective, Pass]
    (row,) = [row for row in history.rows if "centre" in row]
    assert row["stage"] == 1
    assert model.centre.norm().item() == pytest.approx(row["centre"], rel=1e-6)


@torch.no_grad()
def test_a_collapsed_sphere_ends_training(model, x):
    model.centre.fill_(1)
    model.encoder.head.weight.zero_()
    with pytest.raises(TrainingError, match=r"hypersphere collapse: all 10 patches are 6 from the centre; raise joint"):
        model.check_spread(model.moments(x))


def test_moments_add_over_batches(model, x):
    parts = [a + b for a, b in zip(model.moments(x[:2]), model.moments(x[2:]), strict=True)]
    for part, whole in zip(parts, model.moments(x), strict=True):
        torch.testing.assert_close(part, whole)


def test_the_sizes_of_the_paper():
    """Ruff's network of colour images, 32, 64 and 128 filters of 5x5 and 128 numbers; Zhou's joint loss trains all."""
    model = catalog.configure("models", "deep_svdd", ["preset=paper", "channels=3"]).build()
    shapes = [tuple(layer.weight.shape) for layer in model.encoder.cells if isinstance(layer, nn.Conv2d)]
    assert shapes == [(32, 3, 5, 5), (64, 32, 5, 5), (128, 64, 5, 5)]
    assert model.encoder.head.weight.shape == (128, 128 * 8 * 8)
    (describe,) = [item for item in model.stages()[1] if isinstance(item, Objective)]
    assert len(describe.parameters) == len(list(model.parameters()))


def test_negative_weights_are_an_error():
    with pytest.raises(OptionError, match=r"beta and joint are weights, at least 0, not 0.1 and -1"):
        Config(joint=-1)
