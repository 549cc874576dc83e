"""Circuits over principal axes, against a circuit that is given turned rows, numpy's eigenvectors and quadrature."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from rayad.density import em, queries
from rayad.density.spn import SPN, Config
from rayad.errors import OptionError
from rayad.scoring import counterfactual

NAN = float("nan")


def correlated(number: int, variables: int, seed: int = 0) -> Tensor:
    """Two clusters, every variable correlated with the others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(variables, variables, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    z = torch.randn(number, variables, generator=generator, dtype=torch.float64) @ mix
    z[::2] += 3
    return 4 * z - 7


def circuit(variables: int, dtype: torch.dtype = torch.float64, **sizes) -> SPN:
    options = {"inputs": 3, "replicas": 2, "axes": "principal"} | sizes
    density = Config(**options).build(variables).to(dtype)
    density.start(correlated(300, variables).to(dtype), seed=1)
    return density


def turned(z: Tensor) -> tuple[np.ndarray, float]:
    """Coordinates along numpy's principal axes of variance 1, and the logarithm of the volume that they divide by."""
    rows = correlated(300, z.shape[1]).numpy()
    standard = (z.numpy() - rows.mean(0)) / rows.std(0)
    variances, axes = np.linalg.eigh(np.corrcoef(rows.T))
    return standard @ axes / np.sqrt(variances), float(np.log(rows.std(0)).sum() + np.log(variances).sum() / 2)


def test_densities_are_those_of_turned_rows():
    density, z = circuit(5), correlated(20, 5, seed=3)
    ours = density.standardization(z)
    coordinates, volume = turned(z)
    np.testing.assert_allclose(ours.abs(), np.abs(coordinates), rtol=1e-9)  # an axis has no direction
    np.testing.assert_allclose(density.log_prob(z), density.along_axes().log_prob(ours) - volume, rtol=1e-12)
    np.testing.assert_allclose(density.standardization.inverse(ours), z, rtol=1e-10)


def test_a_circuit_over_principal_axes_integrates_to_one():
    density, rows = circuit(2), correlated(300, 2)
    lines = [
        torch.linspace(m - 12 * d, m + 12 * d, 601).double() for m, d in zip(rows.mean(0), rows.std(0), strict=True)
    ]
    p = density.log_prob(torch.cartesian_prod(*lines)).exp().view(601, 601)
    assert torch.trapezoid(torch.trapezoid(p, lines[1]), lines[0]).item() == pytest.approx(1, abs=1e-6)


def test_correlated_rows_are_learned_better_along_their_axes():
    train, validation = correlated(2000, 8), correlated(500, 8, seed=5)
    found = {}
    for axes in ("variables", "principal"):
        density = Config(inputs=8, replicas=5, axes=axes).build(8).double()
        em.fit(density, train, validation, em.EM(epochs=10))
        found[axes] = float(density.log_prob(validation).mean())
    assert found["principal"] > found["variables"] + 0.5


def test_full_steps_never_lower_the_likelihood_and_shards_add_up():
    density, z = circuit(5, sum_prior=0), correlated(200, 5, seed=4)
    whole, parts = density.statistics(z), [density.statistics(part) for part in z.split(70)]
    for mine, its in zip(whole.tensors(), sum(parts[1:], parts[0]).tensors(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)
    likelihoods = []
    for _ in range(8):
        statistics = density.statistics(z)
        likelihoods.append(statistics.log_likelihood.item())
        density.update(statistics, 1)
    assert (np.diff(likelihoods) > -1e-9).all()


def test_samples_and_moments_are_in_the_units_of_the_rows():
    density = circuit(4)
    z = queries.sample(density, 40_000, seed=0)
    mean, covariance = queries.moments(density)
    error = (covariance.diagonal() / len(z)).sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.05 * float(covariance.diagonal().max()))
    held_out = correlated(500, 4, seed=6)
    assert float(density.log_prob(z).mean()) == pytest.approx(float(density.log_prob(held_out).mean()), abs=1.5)


def test_a_healthy_row_is_one_whose_surprising_coordinate_gave_way():
    density = circuit(4)
    x = density.standardization(correlated(2, 4, seed=6)[:1]).repeat(2, 1).clamp(-0.5, 0.5)
    x[1, 2] = 40
    z = density.standardization.inverse(x)
    better, replaced = counterfactual.healthy(density, z)
    assert replaced.tolist() == [0, 1]
    assert torch.equal(better[0], z[0])
    moved = density.standardization(better)[1] - x[1]
    assert abs(moved[2]) > 30
    assert moved[[0, 1, 3]].abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collinear_constant_and_far_values_keep_finite_likelihoods_in_their_order(dtype):
    z = correlated(200, 5)
    z[:, 3], z[:, 4] = z[:, 0] * 2 - z[:, 1], 5
    z = z.to(dtype)
    density = Config(inputs=3, replicas=2, axes="principal").build(5).to(dtype)
    density.start(z, seed=0)
    for _ in range(5):
        density.update(density.statistics(z), 1)
    far = z[:1].repeat(5, 1)
    far[:, 0] += z[:, 0].std() * torch.tensor([0, 10, 1e3, 1e6, float("inf")], dtype=dtype)
    log_prob = density.log_prob(far)
    assert log_prob.isfinite().all()
    assert (log_prob.diff() < 0).all()


def test_what_cannot_be_along_axes_is_refused():
    density, z = circuit(5), correlated(3, 5)
    z[1, 2] = NAN
    mean = partial(queries.conditional_mean, density)
    for refuse in (density.log_prob, density.statistics, mean, lambda z: density.start(z, 0)):
        with pytest.raises(OptionError, match="needs every value of a row; row 1 lacks one"):
            refuse(z)
    with pytest.raises(OptionError, match="over principal axes"):
        queries.surprise(density, correlated(3, 5))
    with pytest.raises(OptionError, match="this circuit has codes"):
        Config(axes="principal", states=(3,))
