"""The cascade of autoencoders: its losses by independent formulas, and quantiles that keep the ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from rayad.errors import OptionError
from rayad.fit import Schedule, batches, fit
from rayad.models.cvad import BINS, LEVELS, RANGE, Config
from rayad.scoring import dense

SMALL = Config(width=4, latents=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def gaussian(q) -> Normal:
    return Normal(q[0], (q[1] / 2).exp())


def calibrate(model, parts: torch.Tensor) -> None:
    """As the two passes do, on parts that are given."""
    model.parts = lambda x: parts.to(model.centre)
    x = torch.zeros(0, 1, 64, 64)
    model.standardize(model.moments(x))
    model.set_quantiles(model.histograms(x))


def test_the_second_branch_sees_features_of_the_encoder_and_of_the_decoder(model, x):
    seen = []
    model.second.register_forward_hook(lambda module, inputs, outputs: seen.append((inputs[0], outputs[0])))
    reconstruction = model.reconstruct(x)
    features, mean = seen[0]
    assert features.shape == (12, 16, 13, 13)
    torch.testing.assert_close(features[:, 8:], model.encoder.cells[:5](x))
    torch.testing.assert_close(features[:, :8], model.decoder.pixels[:4](model.decoder.head(model.encode(x))))
    torch.testing.assert_close(reconstruction, (model.decoder(model.encode(x)) + model.second_decoder(mean)) / 2)


def test_the_loss_is_the_summed_error_and_both_divergences(model, x):
    noise = [torch.randn(12, 6), torch.randn(12, 6)]
    draws = iter(noise)
    reconstruction, first, second = model._cascade(x, lambda *shape: next(draws))
    divergence = sum(kl_divergence(gaussian(q), Normal(0.0, 1.0)).sum(1) for q in (first, second))
    truth = functional.mse_loss(reconstruction, x, reduction="none").sum((1, 2, 3)) + 0.1 * divergence
    draws = iter(noise)
    torch.testing.assert_close(model.loss(x, lambda *shape: next(draws)), truth)


def test_both_branches_draw_their_latents(model, x):
    zeros, still = torch.zeros(12, 6), model.reconstruct(x)
    for draws in ([zeros, zeros], [zeros, zeros + 1], [zeros + 1, zeros]):
        noise = iter(draws)
        moved = (model._cascade(x, lambda *shape, noise=noise: next(noise))[0] - still).abs().max() > 1e-3
        assert moved == any(bool(draw.any()) for draw in draws)


def test_the_discriminator_is_trained_by_binary_cross_entropy(model, x):
    real, fake = (model.log_odds(images).sigmoid() for images in (x, model.reconstruct(x).detach()))
    of_real = functional.binary_cross_entropy(real, torch.zeros(12), reduction="none")
    of_fake = functional.binary_cross_entropy(fake, torch.ones(12), reduction="none")
    loss = model.discriminator_loss(x, lambda *shape: torch.zeros(12, *shape))
    torch.testing.assert_close(loss, of_real + of_fake)
    gradient = torch.autograd.grad(loss.sum(), model.encoder.head.weight, allow_unused=True)
    assert gradient == (None,)


@pytest.mark.parametrize("sample", ["normal", "lognormal", "few"])
def test_quantiles_are_those_of_healthy_scores(model, sample):
    random = np.random.default_rng(0)
    parts = {
        "normal": random.normal(40, 3, (5000, 2)),
        "lognormal": random.lognormal(0, 0.5, (5000, 2)),
        "few": random.choice([1.0, 2.0, 5.0], (7, 2)),
    }[sample]
    calibrate(model, torch.from_numpy(parts))
    found = (model.quantiles * model.spread[:, None] + model.centre[:, None]).T
    truth = np.quantile(parts, np.linspace(0, 1, LEVELS + 1), axis=0, method="inverted_cdf")
    bin_width = (RANGE[1] - RANGE[0]) / BINS * parts.std(0)
    inside = np.linspace(0, 1, LEVELS + 1) < 0.99 if sample == "lognormal" else slice(None)  # the tail is open
    assert (np.abs(found.numpy() - truth)[inside] <= 1.01 * bin_width).all()


def test_a_calibrated_score_is_the_share_of_healthy_patches_below(model):
    parts = torch.from_numpy(np.random.default_rng(1).normal((40, -2), (3, 0.1), (5000, 2))).float()
    calibrate(model, parts)
    shares = model.calibrated(parts).sort(dim=0).values
    assert (shares - torch.linspace(0, 1, 5000)[:, None]).abs().max() < 0.01


def test_ranks_are_kept_inside_between_and_far_beyond(model):
    calibrate(model, torch.from_numpy(np.random.default_rng(2).choice([1.0, 1.1, 4.0], (50, 2))))
    line = torch.linspace(-50, 200, 5001)[:, None].repeat(1, 2)
    assert (model.calibrated(line).diff(dim=0) > 0).all()


def test_beyond_the_healthy_range_a_range_counts_one(model):
    calibrate(model, torch.from_numpy(np.random.default_rng(3).uniform(2, 6, (20_000, 2))))
    lowest, highest = (model.quantiles[:, at] * model.spread + model.centre for at in (0, -1))
    beyond = torch.stack([lowest - (highest - lowest), lowest, highest, highest + 2 * (highest - lowest)])
    truth = torch.tensor([-1.0, 0.0, 1.0, 3.0])[:, None].expand(4, 2)
    torch.testing.assert_close(model.calibrated(beyond), truth, rtol=0, atol=1e-5)


def test_histograms_hold_every_patch_and_add_over_batches(model, x):
    whole = model.histograms(x)[0]
    torch.testing.assert_close(model.histograms(x[:5])[0] + model.histograms(x[5:])[0], whole)
    assert whole.sum(1).tolist() == [12, 12]
    assert whole[0, -1] == 12  # before any pass, sums of squared errors are beyond the range


def test_healthy_patches_that_are_all_equal_are_calibrated(model):
    calibrate(model, torch.full((9, 2), 3.0))
    assert model.calibrated(torch.tensor([[2.0, 3.0], [4.0, 5.0]])).isfinite().all()


def test_training_calibrates_on_the_validation_patches(x):
    torch.manual_seed(0)
    model, schedule, validation = SMALL.build(), Schedule(epochs=2, batch=4), x[:8] / 2
    fit(model, lambda epoch: batches(x, schedule, epoch), lambda: batches(validation, schedule), schedule)
    parts = model.parts(validation).detach()
    torch.testing.assert_close(model.centre, parts.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.spread, parts.std(0, correction=0), rtol=1e-2, atol=1e-5)
    scores = model.scores(validation)
    assert scores["reconstruction"].mean().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(torch.stack([scores["elbo"], scores["discriminator"]], 1), parts)


def test_whole_images_are_encoded_at_once(model):
    pixels = np.random.default_rng(0).random((96, 80), np.float32)
    together, one_by_one = dense.encode(model, pixels, 16), dense.encode_patches(model, pixels, 16)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [replace(SMALL, padding="same"), replace(SMALL, channels=3)])
def test_padded_and_coloured_patches(config):
    model, x = config.build(), torch.rand(2, config.channels, 64, 64)
    assert model.reconstruct(x).shape == x.shape
    assert model.scores(x)["reconstruction"].shape == (2,)


def test_a_negative_weight_is_an_error():
    with pytest.raises(OptionError, match="beta is a weight, at least 0, not -1"):
        Config(beta=-1)
