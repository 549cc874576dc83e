"""Gaussian leaves against scipy and numpy; standardization; missing values; the M-step."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from rayad.density.leaves import MAX_VARIANCE, GaussianLeaves, Moments, Standardization
from rayad.density.region_graph import random_scopes
from rayad.errors import OptionError, TrainingError

M, NAN = 5, float("nan")


@pytest.fixture
def leaves() -> GaussianLeaves:
    """Three inputs in four regions (two replicas, widths 3 and 2) of five variables."""
    leaves = GaussianLeaves(random_scopes(M, 1, 2, seed=0), M, inputs=3, min_variance=1e-3).double()
    generator = torch.Generator().manual_seed(0)
    leaves.mean.normal_(generator=generator)
    leaves.variance.uniform_(0.2, 2, generator=generator)
    return leaves


def rows(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, M, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_scipy(leaves: GaussianLeaves, x: Tensor) -> np.ndarray:
    """Log density of each region, input and row, one Gaussian at a time; nothing for missing values."""
    scopes, mean, sd = leaves.scopes.tolist(), leaves.mean.numpy(), leaves.variance.sqrt().numpy()
    values = x.numpy()
    out = np.zeros((*mean.shape[:2], len(x)))
    for region, scope in enumerate(scopes):
        for place, variable in enumerate(scope):
            if variable < M:
                for i in range(mean.shape[1]):
                    log = norm.logpdf(values[:, variable], mean[region, i, place], sd[region, i, place])
                    out[region, i] += np.where(np.isnan(log), 0, log)
    return out


def moments(leaves: GaussianLeaves, x: Tensor, flow: Tensor) -> Moments:
    features = leaves.features(x, missing=bool(x.isnan().any()))
    return leaves.moments(flow.sum(2, keepdim=True), flow @ features.mT)


def test_densities_are_those_of_scipy(leaves: GaussianLeaves):
    x = rows(7)
    density = leaves(leaves.features(x, missing=False))
    np.testing.assert_allclose(density, by_scipy(leaves, x), rtol=1e-12, atol=1e-12)


def test_missing_values_are_left_out(leaves: GaussianLeaves):
    x = rows(7)
    x[0, 1], x[3], x[4, 2:] = NAN, NAN, NAN
    density = leaves(leaves.features(x, missing=True))
    np.testing.assert_allclose(density, by_scipy(leaves, x), rtol=1e-12, atol=1e-12)
    assert (density[..., 3] == 0).all()


@pytest.mark.parametrize("missing", [False, True])
def test_a_full_step_gives_weighted_means_and_variances(leaves: GaussianLeaves, missing: bool):
    x, flow = rows(50), torch.rand(4, 3, 50, dtype=torch.float64)
    if missing:
        x[::3, 2] = NAN
    leaves.update(moments(leaves, x, flow), step=1, prior=0, inertia=0)
    for region, scope in enumerate(leaves.scopes.tolist()):
        for place, variable in enumerate(scope):
            if variable < M:
                seen = ~x[:, variable].isnan()
                value, weight = x[seen, variable].numpy(), flow[region, 1, seen].numpy()
                mean = np.average(value, weights=weight)
                assert leaves.mean[region, 1, place].item() == pytest.approx(mean, abs=1e-12)
                variance = np.average((value - mean) ** 2, weights=weight)
                assert leaves.variance[region, 1, place].item() == pytest.approx(variance, abs=1e-12)


def test_a_partial_step_blends_expectation_parameters(leaves: GaussianLeaves):
    x, flow, step = rows(50), torch.rand(4, 3, 50, dtype=torch.float64), 0.3
    full = GaussianLeaves(leaves.scopes, M, 3, 1e-3).double()
    full.load_state_dict(leaves.state_dict())
    full.update(moments(full, x, flow), step=1, prior=0, inertia=0)
    mean = 0.7 * leaves.mean + 0.3 * full.mean
    square = 0.7 * (leaves.variance + leaves.mean**2) + 0.3 * (full.variance + full.mean**2)
    leaves.update(moments(leaves, x, flow), step=step, prior=0, inertia=0)
    torch.testing.assert_close(leaves.mean.data, mean, rtol=0, atol=1e-12)
    filled = leaves.filled.expand_as(mean)
    torch.testing.assert_close(leaves.variance[filled], (square - mean**2)[filled], rtol=0, atol=1e-12)


def test_a_prior_is_rows_seen_before(leaves: GaussianLeaves):
    """Two rows at -1 and two at 1 have mean 0 and variance 1: a prior of four rows of the standard normal."""
    x = rows(20)
    flow = torch.ones(4, 3, 20, dtype=torch.float64)
    more = torch.cat([x, torch.tensor([[-1.0], [-1], [1], [1]], dtype=torch.float64).expand(4, M)])
    other = GaussianLeaves(leaves.scopes, M, 3, 1e-3).double()
    other.update(moments(other, more, torch.ones(4, 3, 24, dtype=torch.float64)), 1, prior=0, inertia=0)
    leaves.update(moments(leaves, x, flow), 1, prior=4, inertia=0)
    filled = leaves.filled.expand_as(leaves.mean)
    torch.testing.assert_close(leaves.mean.data, other.mean.data, rtol=0, atol=1e-12)
    torch.testing.assert_close(leaves.variance[filled], other.variance[filled], rtol=0, atol=1e-12)


def test_a_leaf_that_no_row_visits_does_not_move(leaves: GaussianLeaves):
    before = leaves.mean.clone(), leaves.variance.clone()
    flow = torch.zeros(4, 3, 10, dtype=torch.float64)
    flow[:, 0] = 1e-30
    leaves.update(moments(leaves, rows(10), flow), step=1, prior=0, inertia=1e-12)
    torch.testing.assert_close((leaves.mean.data, leaves.variance.data), before, rtol=0, atol=1e-12)


def test_variances_stay_between_their_bounds(leaves: GaussianLeaves):
    same, apart = torch.zeros(10, M, dtype=torch.float64), 100 * rows(10)
    flow = torch.ones(4, 3, 10, dtype=torch.float64)
    leaves.update(moments(leaves, same, flow), 1, prior=0, inertia=0)
    filled = leaves.filled.expand_as(leaves.mean)
    assert (leaves.variance[filled] == 1e-3).all()
    leaves.update(moments(leaves, apart, flow), 1, prior=0, inertia=0)
    assert (leaves.variance[filled] == MAX_VARIANCE).all()


def test_k_means_finds_two_clusters():
    x = rows(200, seed=2) * 0.1
    x[:80] += 3
    leaves = GaussianLeaves(random_scopes(M, 0, 1, seed=0), M, inputs=2, min_variance=1e-3).double()
    leaves.start(x, torch.Generator().manual_seed(0))
    found = leaves.mean[0, leaves.mean[0, :, 0].argsort()]
    expected = torch.stack([x[80:].mean(0), x[:80].mean(0)])[:, leaves.scopes[0]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert leaves.variance.max() < 0.1


def test_more_inputs_than_rows_start_from_rows_again():
    leaves = GaussianLeaves(random_scopes(M, 1, 2, seed=0), M, inputs=9, min_variance=1e-3).double()
    leaves.start(rows(2), torch.Generator().manual_seed(0))
    assert leaves.mean.isfinite().all()
    assert (leaves.variance > 0).all()


@pytest.fixture
def standardization() -> Standardization:
    return Standardization(2).double()


def test_standardized_rows_have_mean_zero_and_variance_one(standardization: Standardization):
    z = rows(100)[:, :2] * torch.tensor([3.0, 1e-4]) + torch.tensor([1e3, -5.0])
    z[::7, 1] = NAN
    standardization.start(z)
    x = standardization(z)
    np.testing.assert_allclose(np.nanmean(x, axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.nanvar(x, axis=0), 1, rtol=1e-9)
    volume = np.where(np.isnan(z.numpy()), 0, np.log(np.nanstd(z.numpy(), axis=0))).sum(1)
    np.testing.assert_allclose(standardization.log_volume(x), volume, rtol=1e-12)


def test_a_constant_or_missing_variable_keeps_its_unit(standardization: Standardization):
    standardization.start(torch.tensor([[0.1, NAN]] * 7, dtype=torch.float32))
    assert standardization.scale.tolist() == [1, 1]
    assert standardization.centre.tolist() == pytest.approx([0.1, 0])


def test_rows_that_cannot_be_standardized_are_refused(standardization: Standardization):
    with pytest.raises(TrainingError, match="row 2 is not"):
        standardization.start(torch.tensor([[0.0, 1], [NAN, 1], [1, float("inf")]]))
    with pytest.raises(TrainingError, match="no rows"):
        standardization.start(torch.zeros(0, 2))
    with pytest.raises(OptionError, match="built for 2 variables, not 3"):
        standardization(torch.zeros(1, 3))
