"""The implicit field: its input by formula, its score by other means, and a search that works wherever it is called."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from torch.nn import functional

from rayad import catalog
from rayad.errors import OptionError
from rayad.fit import Schedule, batches, fit
from rayad.models.implicit_field import Config

SMALL = Config(hidden=24, depth=2, latents=8, levels=8, side=8, steps=4, learning_rate=3e-3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build()


@pytest.fixture
def x() -> torch.Tensor:
    return (
        torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )


def edges(n: int, seed: int) -> torch.Tensor:
    """Patches that are dark to the left of a place and bright to the right of it."""
    place = torch.randint(8, 57, (n, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(64) < place, 0.2, 0.7).expand(n, 1, 64, 64)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model, schedule, x = SMALL.build(), Schedule(epochs=12, batch=8, patience=20), edges(96, 0)
    fit(model, lambda epoch: batches(x, schedule, epoch), lambda: batches(edges(32, 1), schedule), schedule)
    return model


def test_places_are_fourier_features_of_row_and_column(model):
    """8 px a side carry three octaves: 1, 2 and 4 half-turns over the patch's half."""
    row, column = 5, 2
    v, u = (2 * row + 1) / 8 - 1, (2 * column + 1) / 8 - 1
    truth = [wave(math.pi * 2**o * p) for p in (v, u) for wave in (math.sin, math.cos) for o in range(3)]
    assert model.places(8).shape == (64, 12)
    assert model.places(8)[8 * row + column].tolist() == pytest.approx(truth, abs=1e-6)


def test_f_is_the_network_on_the_concatenation(model):
    z, places = torch.randn(3, 8), model.places(8)
    both = torch.cat([z[:, None].expand(3, 64, 8), places.expand(3, 64, 12)], dim=2)
    truth = model.layers(model.first(both))[:, :, None]
    torch.testing.assert_close(model.logits(z, places), truth)


def test_classes_are_even_parts_of_the_scale(model):
    values = torch.tensor([0.0, 0.12, 0.13, 0.5, 0.99, 1.0])
    x = values[:, None, None, None].expand(6, 1, 64, 64)
    assert model.classes(x)[:, 0, 0].tolist() == [0, 0, 1, 4, 7, 7]


def test_classes_are_those_of_averaged_pixels(model, x):
    means = x.numpy().reshape(6, 8, 8, 8, 8).mean((2, 4))
    assert np.array_equal(model.classes(x)[..., 0].numpy(), np.floor(means * 8).astype(int).reshape(6, 64))


def test_the_score_is_the_cross_entropy_a_pixel(model, x):
    logits, classes = model.logits(model.encode(x), model.places(8))[:, :, 0].detach(), model.classes(x)[..., 0]
    score = model.scores(x)["reconstruction"].detach()
    truth = functional.cross_entropy(logits.transpose(1, 2), classes, reduction="none").mean(1)
    torch.testing.assert_close(score, truth)
    shares = np.take_along_axis(scipy.special.log_softmax(logits.numpy(), axis=2), classes.numpy()[..., None], axis=2)
    assert score.tolist() == pytest.approx((-shares.mean((1, 2))).tolist(), rel=1e-5)
    assert torch.equal(model.loss(x, lambda *shape: torch.zeros(6, *shape)).detach(), score)


def test_the_reconstruction_is_the_expected_centre_of_the_class(model, x):
    shares = model.logits(model.encode(x), model.places(64)).softmax(3)[:, :, 0].detach().numpy()
    centres = np.array([1, 3, 5, 7, 9, 11, 13, 15]) / 16
    found = model.reconstruct(x).detach().numpy().reshape(6, 4096)
    assert np.allclose(found, shares @ centres, atol=1e-6)


def test_one_step_goes_down_the_slope_to_the_sphere(x):
    torch.manual_seed(0)
    model = replace(SMALL, steps=1).build()
    zero = torch.zeros(6, 8, requires_grad=True)
    logits = model.logits(zero, model.places(8))[:, :, 0].transpose(1, 2)
    losses = functional.cross_entropy(logits, model.classes(x)[..., 0], reduction="none").mean(1)
    (slope,) = torch.autograd.grad(losses.sum(), zero)
    torch.testing.assert_close(model.encode(x), -slope / slope.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_latents_stay_in_the_ball(x, steps):
    z = replace(SMALL, steps=steps).build().encode(x)
    assert z.norm(dim=1).max() <= 1 + 1e-6
    assert z.norm(dim=1).min() > 0
    assert not z.requires_grad


def test_scores_need_no_gradients_around_them(trained):
    x = edges(5, 2)
    truth = trained.scores(x)["reconstruction"].detach()
    with torch.no_grad():
        assert torch.equal(trained.scores(x)["reconstruction"], truth)
    with torch.inference_mode():
        inside = x.clone()
        assert inside.is_inference()
        assert torch.equal(trained.scores(inside)["reconstruction"], truth)
        assert torch.equal(trained.encode(inside), trained.encode(x))
        assert trained.reconstruct(inside).shape == x.shape


def test_finding_latents_leaves_no_gradient_in_f(model, x):
    model.encode(x)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_patch_is_told_from_others_by_its_latent(trained):
    """Where the latents are those of other patches, or none, the same field explains far less."""
    x = edges(32, 3)
    z, y, places = trained.encode(x), trained.classes(x)[..., 0], trained.places(8)

    def cross_entropy(z: torch.Tensor) -> float:
        return functional.cross_entropy(trained.logits(z, places)[:, :, 0].transpose(1, 2), y).item()

    own = cross_entropy(z)
    assert own < 0.5 * cross_entropy(z.roll(1, dims=0))
    assert own < 0.5 * cross_entropy(torch.zeros_like(z))


def test_what_was_learned_scores_below_noise_and_is_reconstructed(trained):
    known, noise = edges(32, 4), torch.rand(32, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    low, high = trained.scores(known)["reconstruction"], trained.scores(noise)["reconstruction"]
    assert low.max() < high.min()
    assert (known - trained.reconstruct(known)).abs().mean() < 0.08 < (known - known.mean(0)).abs().mean()


def test_gradients_of_the_loss_take_latents_for_constants(model, x):
    y, z = model.classes(x)[..., 0], model.encode(x)
    logits = model.logits(z, model.places(8))[:, :, 0].transpose(1, 2)
    truth = torch.autograd.grad(functional.cross_entropy(logits, y), list(model.parameters()))
    found = torch.autograd.grad(model.loss(x, lambda *shape: torch.zeros(6)).mean(), list(model.parameters()))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_colours_have_classes_of_their_own(x):
    model = replace(SMALL, channels=3).build()
    colours = torch.cat([x, 1 - x, x], dim=1)
    assert model.classes(colours).shape == (6, 64, 3)
    assert model.reconstruct(colours).shape == (6, 3, 64, 64)
    logits = model.logits(model.encode(colours), model.places(8))
    truth = functional.cross_entropy(logits.flatten(0, 2), model.classes(colours).flatten(), reduction="none")
    torch.testing.assert_close(model.scores(colours)["reconstruction"], truth.view(6, -1).mean(1))


def test_the_sizes_of_the_paper():
    with torch.device("meta"):
        model = catalog.configure("models", "implicit_field", ["preset=paper"]).build()
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(512, 256 + 24), *[(512, 512)] * 7, (10, 512)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"side": 24}, "side must be a divisor of 64 above 1, not 24"), ({"levels": 1}, "levels .* at least 2, not 1")],
)
def test_impossible_sizes_are_an_error(wrong, message):
    with pytest.raises(OptionError, match=message):
        Config(**wrong)
