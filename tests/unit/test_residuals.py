"""Residual operators against numpy and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from rayad.scoring.residuals import OPERATORS


@pytest.fixture(params=[1, 3])
def pair(request) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(request.param)
    x = random.random((3, request.param, 64, 64))
    return torch.from_numpy(x), torch.from_numpy(np.clip(x + random.normal(0, 0.1, x.shape), 0, 1))


def test_squared_and_maximum_are_what_numpy_computes(pair):
    a, b = (t.numpy() for t in pair)
    assert OPERATORS["squared"](*pair).numpy() == pytest.approx(((a - b) ** 2).mean((1, 2, 3)))
    assert OPERATORS["maximum"](*pair).numpy() == pytest.approx(np.abs(a - b).max((1, 2, 3)))


def test_the_dissimilarity_is_that_of_scikit_image(pair):
    for score, a, b in zip(OPERATORS["ssim"](*pair), *(t.numpy() for t in pair), strict=True):
        options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "full": True}
        full = [structural_similarity(x, y, **options)[1] for x, y in zip(a, b, strict=True)]
        inside = np.stack(full)[:, 5:-5, 5:-5]  # windows of 11 px that lie in the patch
        assert float(score) == pytest.approx(1 - inside.mean(), abs=1e-9)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_perfect_reconstruction_scores_nothing_and_float32_is_enough(name, pair):
    x = pair[0].float()
    assert OPERATORS[name](x, x).abs().max() < 1e-5
    assert OPERATORS[name](x, pair[1].float()).numpy() == pytest.approx(OPERATORS[name](*pair).numpy(), rel=1e-4)
    assert OPERATORS[name](x[:0], x[:0]).shape == (0,)
