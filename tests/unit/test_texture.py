"""Texture features against scikit-image, their distance against numpy, and a texture that is not the learned one."""

import numpy as np
import pytest
import torch
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from rayad.errors import OptionError, TrainingError
from rayad.models import glcm, lbp


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_patterns_are_those_of_scikit_image(x, radius):
    inside, levels = slice(radius, -radius), (x[:, 0] * 256).long()
    for image, found in zip(levels.numpy(), lbp.codes(levels.double(), radius), strict=True):
        truth = local_binary_pattern(image, 8, radius, method="uniform")[inside, inside]
        assert (found.numpy() == truth).mean() > 0.999  # ties of interpolated levels


def test_co_occurrence_is_that_of_scikit_image(x):
    """At distance 1; at others scikit-image rounds diagonals to another distance."""
    levels, distance = (x[:, 0] * 16).long(), 1
    angles = [0, 3 * np.pi / 4, np.pi / 2, np.pi / 4]  # its rows count downwards
    for i, image in enumerate(levels.numpy().astype(np.uint8)):
        truth = graycomatrix(image, [distance], angles, levels=16, symmetric=True, normed=True)
        for k, (dy, dx) in enumerate(glcm.DIRECTIONS):
            found = glcm.matrix(levels[i : i + 1], 16, dy * distance, dx * distance)
            assert found[0].numpy() == pytest.approx(truth[:, :, 0, k], abs=1e-12)
        names = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
        expected = [graycoprops(truth, name).mean() for name in names]
        model = glcm.Config(distances=(distance,)).build().double()
        assert model.features(x[i : i + 1])[0].numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("config", [lbp.Config(), glcm.Config()])
def test_the_distance_is_mahalanobis_over_the_features(config, x):
    model = config.build().double()
    model.learn([a + b for a, b in zip(model.moments(x[:1]), model.moments(x[1:]), strict=True)])
    features = model.features(x).numpy()
    z = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    correlation = 0.9 * (z.T @ z) / len(z) + 0.1 * np.eye(z.shape[1])
    truth = np.sqrt(np.einsum("ni,ij,nj->n", z, np.linalg.inv(correlation), z))
    assert model.scores(x)["distance"].numpy() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("config", [lbp.Config(channels=3), glcm.Config(channels=3)])
def test_colours_are_averaged(config, x):
    model = config.build().double()
    torch.testing.assert_close(model.encode(x.repeat(1, 3, 1, 1)), model.encode(x))


@pytest.mark.parametrize("config", [lbp.Config(), glcm.Config()])
def test_another_texture_of_the_same_brightness_is_far(config):
    random = torch.Generator().manual_seed(1)
    fine = torch.rand(60, 1, 64, 64, generator=random)
    coarse = torch.rand(10, 1, 16, 16, generator=random).repeat_interleave(4, 2).repeat_interleave(4, 3)
    model = config.build()
    model.learn(model.moments(fine[:50]))
    assert model.scores(coarse)["distance"].min() > model.scores(fine[50:])["distance"].max()


def test_sizes_that_make_no_texture_are_refused(x):
    with pytest.raises(OptionError, match="1 to 31 px"):
        lbp.Config(radii=(40,))
    with pytest.raises(OptionError, match="2 to 256 grey levels, not 1"):
        glcm.Config(levels=1)
    with pytest.raises(OptionError, match="1 to 63 px"):
        glcm.Config(distances=())
    model = lbp.Config().build()
    with pytest.raises(TrainingError, match="at least two patches, got 1"):
        model.learn(model.moments(x[:1]))
