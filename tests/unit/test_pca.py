"""Principal components against those of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from rayad.errors import OptionError, TrainingError
from rayad.models.pca import Config


@pytest.fixture
def x() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(80, 6, generator=random, dtype=torch.float64)
    patterns = torch.rand(6, 1, 64, 64, generator=random, dtype=torch.float64)
    noise = torch.randn(80, 1, 64, 64, generator=random, dtype=torch.float64)
    return 0.5 + 0.05 * torch.einsum("nk,kchw->nchw", weights, patterns) + 0.01 * noise


def learned(x: torch.Tensor, **settings):
    model = Config(**settings).build().double()
    parts = [a + b for a, b in zip(model.moments(x[:30]), model.moments(x[30:]), strict=True)]
    return model, model.learn(parts)


@pytest.mark.parametrize("side", [8, 16])
def test_components_and_errors_are_those_of_scikit_learn(x, side):
    model, said = learned(x, components=4, side=side)
    flat = x.reshape(80, side, 64 // side, side, 64 // side).mean((2, 4)).flatten(1).numpy()
    peer = PCA(4, svd_solver="full").fit(flat)
    assert np.abs((model.directions.numpy() * peer.components_).sum(1)) == pytest.approx(np.ones(4), abs=1e-9)
    assert said["explained_variance"] == pytest.approx(peer.explained_variance_ratio_.sum())
    projected = peer.transform(flat)
    assert np.abs(model.encode(x).numpy()) == pytest.approx(np.abs(projected), abs=1e-9)
    errors = ((flat - peer.inverse_transform(projected)) ** 2).mean(1)
    assert model.scores(x)["reconstruction"].numpy() == pytest.approx(errors, rel=1e-9)


def test_the_reconstruction_has_the_subspaces_averages(x):
    model, _ = learned(x, components=4, side=16)
    again = model.reconstruct(x)
    assert again.shape == x.shape
    torch.testing.assert_close(model.encode(again), model.encode(x))


def test_colours_are_pixels_too():
    x = torch.rand(20, 3, 64, 64)
    model = Config(components=2, side=8, channels=3).build()
    model.learn(model.moments(x))
    assert model.reconstruct(x).shape == x.shape


def test_sizes_that_do_not_fit_and_too_few_patches_are_refused(x):
    with pytest.raises(OptionError, match="must divide 64 px, not 30"):
        Config(side=30)
    with pytest.raises(OptionError, match="1 to the 16 pixels"):
        Config(components=17, side=4)
    small = Config(components=4, side=8).build()
    with pytest.raises(TrainingError, match="at least two patches, got 1"):
        small.learn(small.moments(x[:1].float()))
