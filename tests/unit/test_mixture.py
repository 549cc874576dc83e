"""The mixture against scikit-learn's, from the same start."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from rayad.catalog import names
from rayad.density.em import EM, fit
from rayad.density.mixture import Config
from rayad.errors import OptionError


def rows(number: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = np.array([[0, 5, -3, 1], [4, 4, 4, 30], [-2, 0, 1, 9]])
    return centres[generator.integers(3, size=number)] + generator.standard_normal((number, 4)) * [1, 2, 0.5, 9]


def test_em_takes_the_steps_of_scikit_learn():
    z, steps = rows(200), 7
    density = Config(components=3, min_variance=1e-6, weight_prior=0).build(4).double()
    density.start(torch.from_numpy(z), seed=0)
    columns = density.leaves.scopes[0].argsort()
    centre, scale = density.standardization.centre, density.standardization.scale

    def parameters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        means = density.leaves.mean[0, :, columns] * scale + centre
        variances = density.leaves.variance[0, :, columns] * scale**2
        return density.root.weights.flatten().numpy().copy(), means.numpy(), variances.numpy()

    weights, means, variances = parameters()
    theirs = GaussianMixture(
        3, covariance_type="diag", reg_covar=0, tol=0, max_iter=steps,
        weights_init=weights / weights.sum(), means_init=means, precisions_init=1 / variances,
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        theirs.fit(z)
    for _ in range(steps):
        density.update(density.statistics(torch.from_numpy(z)), 1)
    for ours, reference in zip(parameters(), (theirs.weights_, theirs.means_, theirs.covariances_), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(density.log_prob(torch.from_numpy(z)), theirs.score_samples(z), rtol=1e-10)


def test_learning_finds_three_clusters():
    train, test = torch.from_numpy(rows(600)), rows(300, seed=2)
    density = Config(components=3).build(4).double()
    fit(density, train, torch.from_numpy(rows(100, seed=1)), EM(epochs=40))
    reference = GaussianMixture(3, covariance_type="diag", random_state=0, n_init=5).fit(train.numpy())
    assert density.log_prob(torch.from_numpy(test)).mean() > reference.score(test) - 0.1


def test_densities_are_found_by_their_file_names():
    assert {"spn", "mixture"} <= set(names("density"))
    assert not {"em", "leaves", "sums", "region_graph"} & set(names("density"))


def test_bad_sizes_are_refused():
    with pytest.raises(OptionError, match="components of a mixture must be at least 1, not 0"):
        Config(components=0)
