"""The conditional autoencoder: what it is told, it need not encode, and its parts by independent formulas."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rayad.errors import OptionError
from rayad.fit import Schedule, batches, fit
from rayad.models.conditional_vae import Config
from rayad.scoring import dense
from rayad.scoring.scores import Conditional

SMALL = Config(width=4, latents=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def told(x: torch.Tensor, fact: str, model) -> torch.Tensor:
    planes = torch.tensor(model.planes(fact)).to(x)[None, :, None, None].expand(len(x), -1, 64, 64)
    return torch.cat([x, planes], 1)


def test_a_fact_is_a_plane_of_its_class(model):
    assert isinstance(model, Conditional)
    assert [model.planes(fact) for fact in ("F", "D", "", "?")] == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_the_loss_is_the_summed_error_and_the_weighted_divergence(model, x):
    noise = torch.randn(5, 6)
    y = told(x, "G", model)
    numbers = torch.tensor(model.planes("G")).expand(5, 3)
    mean, log_variance = model.posterior(y)
    z = mean + (log_variance / 2).exp() * noise
    nats = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    truth = (x - model.decoder(torch.cat([z, numbers], 1))).square().sum((1, 2, 3)) + 0.1 * nats
    torch.testing.assert_close(model.loss(y, lambda *shape: noise[:, : shape[0]]), truth)
    assert set(model.scores(y)) == {"elbo", "reconstruction", "divergence"}


def test_a_model_that_is_given_the_fact_scores_as_one_that_sees_the_planes(model, x):
    for fact in ("F", "D", ""):
        given, planes = model.given(fact), told(x, fact, model)
        torch.testing.assert_close(given.encode(x), model.encode(planes))
        torch.testing.assert_close(given.reconstruct(x), model.reconstruct(planes))
        for name, score in model.scores(planes).items():
            torch.testing.assert_close(given.scores(x)[name], score)
    torch.testing.assert_close(model.encode(x), model.encode(told(x, "", model)))  # the model itself did not change


def test_a_given_fact_is_scored_over_whole_images_too(model):
    pixels = torch.rand(150, 140, generator=torch.Generator().manual_seed(1)).numpy()
    given = model.given("D")
    torch.testing.assert_close(dense.encode(given, pixels, 8), dense.encode_patches(given, pixels, 8))
    assert not torch.allclose(dense.encode(given, pixels, 8), dense.encode(model, pixels, 8))


def test_it_learns_to_use_what_it_is_told():
    """Brightness follows from the class: told the wrong class, a patch is drawn in another brightness."""
    torch.manual_seed(0)
    model = Config(width=4, latents=2, classes="dark bright", learning_rate=1e-2).build()
    random = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(64, 1, 64, 64, generator=random)
    noise[:, :, :32] += 0.2 * torch.randn(64, 1, 1, 1, generator=random)  # something is left for the latents
    patches = torch.cat([told(noise[:32] + 0.3, "dark", model), told(noise[32:] + 0.7, "bright", model)])
    schedule = Schedule(epochs=40, batch=16, patience=40)
    fit(model, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)
    model.eval()
    right = model.scores(patches)["reconstruction"].mean()
    wrong = model.scores(torch.cat([patches[:, :1], 1 - patches[:, 1:]], 1))["reconstruction"].mean()
    assert wrong > 2 * right


def test_wrong_classes_conditions_and_patches_are_refused(model, x):
    with pytest.raises(OptionError, match="density or view, not 'age'"):
        Config(condition="age")
    with pytest.raises(OptionError, match="different names"):
        Config(classes="F F")
    with pytest.raises(OptionError, match="1 channels and 3 planes are wanted, not of 2"):
        model.encode(torch.cat([x, x], 1))
