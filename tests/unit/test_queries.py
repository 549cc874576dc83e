"""Queries against the mixture of all induced trees, written out; quadrature; rejection; and exact distributions.

A circuit with Gaussian leaves is a mixture of Gaussians with diagonal covariances, one for each choice of a root
and of a product at every sum below it. For small circuits all of them can be listed, and then every query is a
line of numpy and scipy.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import kstest, norm, ttest_1samp, ttest_rel
from torch import Tensor

from rayad.density import mixture, queries
from rayad.density.spn import SPN, Config
from rayad.errors import OptionError

NAN = float("nan")
SIZES = [  # variables, roots, inputs, sums, depth, replicas, blocks
    (1, 1, 3, 1, 0, 1),
    (3, 2, 2, 1, 0, 3),
    (5, 3, 2, 4, 1, 2),
    (7, 2, 3, 2, 2, 2),
    (9, 1, 2, 2, 3, 1),
    (7, 1, 3, 4, 2, 2, 2),
]
each_size = pytest.mark.parametrize("sizes", SIZES)


class Trees(NamedTuple):
    """All induced trees t over m variables."""

    log_weight: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    def log_factors(self, z: np.ndarray) -> np.ndarray:
        """t m, 0 where a value is missing."""
        return np.nan_to_num(norm.logpdf(z, self.mean, self.sd))

    def log_joint(self, z: np.ndarray) -> np.ndarray:
        return self.log_weight + self.log_factors(z).sum(1)

    def shares(self, z: np.ndarray) -> np.ndarray:
        joint = self.log_joint(z)
        return np.exp(joint - logsumexp(joint))


def rows(number: int, variables: int, seed: int = 0) -> Tensor:
    """Two clusters, away from zero."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, variables, dtype=torch.float64, generator=generator)
    z[::2] += 2
    return 3 * z + 5


def circuit(variables: int, roots: int, inputs: int, sums: int, depth: int, replicas: int, blocks: int = 0) -> SPN:
    config = Config(roots=roots, inputs=inputs, sums=sums, depth=depth, replicas=replicas, blocks=blocks)
    density = config.build(variables).double()
    density.start(rows(60, variables), seed=1)
    density.mixing.copy_(torch.arange(1.0, roots + 1, dtype=torch.float64) / sum(range(1, roots + 1)))
    return density


def trees(density: SPN) -> list[Trees]:
    """The trees below each root."""
    config, state = density.config, {k: v.numpy() for k, v in density.state_dict().items()}
    centre, scale, last = state["standardization.centre"], state["standardization.scale"], config.depth - 1

    def leaf(region: int, i: int) -> Trees:
        mean, variance = np.zeros((1, len(centre))), np.zeros((1, len(centre)))
        for place, v in enumerate(state["leaves.scopes"][region]):
            if v < len(centre):
                mean[0, v] = centre[v] + scale[v] * state["leaves.mean"][region, i, place]
                variance[0, v] = scale[v] ** 2 * state["leaves.variance"][region, i, place]
        return Trees(np.zeros(1), mean, np.sqrt(variance))

    def either(parts: list[Trees]) -> Trees:
        return Trees(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def both(weight: float, a: Trees, b: Trees) -> Trees:
        pairs = [(x[:, None] + y[None]).reshape(-1, *x.shape[1:]) for x, y in zip(a, b, strict=True)]
        return Trees(pairs[0] + math.log(weight), *pairs[1:])

    def sum_node(level: int, region: int, s: int) -> Trees:
        weights = density.layers()[last - level].weights[region, s].numpy()
        left, right = children(level + 1, region), children(level + 1, region + config.replicas * 2**level)
        return either([both(w, left[i], right[j]) for (i, j), w in np.ndenumerate(weights)])

    def children(level: int, region: int) -> list[Trees]:
        if level == config.depth:
            return [leaf(region, i) for i in range(config.inputs)]
        return [sum_node(level, region, s) for s in range(config.sums)]

    def root(c: int, r: int) -> Trees:
        if config.depth:
            return sum_node(0, r, c)
        weights = density.root.weights[r, c, :, 0].numpy()
        parts = [leaf(r, i) for i in range(config.inputs)]
        return either([Trees(t.log_weight + math.log(w), *t[1:]) for t, w in zip(parts, weights, strict=True)])

    found = [either([root(c, r) for r in range(config.replicas)]) for c in range(config.roots)]
    mixing = density.mixing.log().tolist()
    return [Trees(t.log_weight + log_pi, *t[1:]) for t, log_pi in zip(found, mixing, strict=True)]


def all_trees(density: SPN) -> Trees:
    return Trees(*(np.concatenate(column) for column in zip(*trees(density), strict=True)))


def holes(z: Tensor, seed: int = 0) -> Tensor:
    """Every second value missing, at random; the first row has none, the second nothing else."""
    gone = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone[0], gone[1] = False, True
    return z.masked_fill(gone, NAN)


@each_size
def test_all_weights_of_the_trees_add_to_one(sizes):
    assert logsumexp(all_trees(circuit(*sizes)).log_weight) == pytest.approx(0, abs=1e-12)


@each_size
def test_conditionals_are_ratios_of_the_mixture_of_trees(sizes):
    density, z = circuit(*sizes), rows(4, sizes[0], seed=3)
    found, every = all_trees(density), torch.arange(sizes[0]) % 2 == 0
    known = [np.where(every, row, np.nan) for row in z.numpy()]
    joint = [logsumexp(found.log_joint(row)) for row in z.numpy()]
    expected = [j - logsumexp(found.log_joint(b)) for j, b in zip(joint, known, strict=True)]
    np.testing.assert_allclose(queries.log_conditional(density, z, every), expected, rtol=1e-10)
    by_row = every.expand(len(z), -1).clone()
    by_row[0] = False  # given nothing
    expected[0] = joint[0]
    np.testing.assert_allclose(queries.log_conditional(density, z, by_row), expected, rtol=1e-10)


def test_a_conditional_integrates_to_one():
    density, z = circuit(5, 3, 2, 4, 1, 2), rows(1, 5, seed=3)
    given = torch.tensor([True, True, False, True, True])

    def p(value: float) -> float:
        row = z.clone()
        row[0, 2] = value
        return queries.log_conditional(density, row, given).exp().item()

    assert quad(p, -60, 70, points=[0, 5, 10], limit=200)[0] == pytest.approx(1, abs=1e-7)


@each_size
def test_surprises_are_those_of_leaving_out_one_variable_after_the_other(sizes):
    density, z = circuit(*sizes), holes(rows(5, sizes[0], seed=3))
    ours = queries.surprise(density, z)
    assert torch.equal(ours.isnan(), z.isnan())
    for v in range(sizes[0]):
        without = z.clone()
        without[:, v] = NAN
        expected = density.log_prob(without) - density.log_prob(z)
        seen = ~z[:, v].isnan()
        np.testing.assert_allclose(ours[seen, v], expected[seen], rtol=1e-9, atol=1e-9)


def test_a_surprise_is_the_value_among_all_values_of_its_variable():
    density, z = circuit(4, 1, 3, 1, 1, 2), rows(1, 4, seed=7)

    def p(value: float) -> float:
        row = z.clone()
        row[0, 1] = value
        return density.log_prob(row).exp().item()

    everything = quad(p, -80, 90, points=[0, 5, 10], limit=200, epsabs=0)[0]
    expected = math.log(everything) - math.log(p(z[0, 1].item()))
    assert queries.surprise(density, z)[0, 1].item() == pytest.approx(expected, rel=1e-6)


@each_size
@pytest.mark.parametrize("sigmas", [30.0, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_outlier_is_as_surprising_as_it_is_and_spares_the_others(sizes, sigmas, dtype):
    """In exact arithmetic: the tree with the widest, then nearest leaf at the outlier decides on all the others."""
    density, z = circuit(*sizes), rows(3, sizes[0], seed=3)
    z[:, -1] = density.standardization.centre[-1] + sigmas * density.standardization.scale[-1]
    z, density = z.to(dtype), density.to(dtype)
    found, ours = all_trees(density.double()), queries.surprise(density.to(dtype), z).double().numpy()
    for row, surprises in zip(z.double().numpy(), ours, strict=True):
        factors = found.log_factors(row)
        relative = factors - factors.max(0)
        for v in range(sizes[0]):
            rest = relative.copy()
            rest[:, v] = 0
            without, whole = (logsumexp(found.log_weight + part.sum(1)) for part in (rest, relative))
            tolerance = {"rel": 1e-4, "abs": 1e-4} if dtype == torch.float32 else {"rel": 1e-6, "abs": 1e-6}
            assert surprises[v] == pytest.approx(without - whole - factors[:, v].max(), **tolerance)


def test_the_farthest_outlier_leaves_finite_surprises():
    density = circuit(7, 2, 3, 2, 2, 2).float()
    z = rows(2, 7, seed=3).float()
    z[0, 2], z[1] = 1e30, -1e30
    surprises = queries.surprise(density, z)
    assert surprises.isfinite().all()
    assert surprises[0, 2] > 1e20
    assert surprises[0, [0, 1, 3, 4, 5, 6]].max() < 100


@each_size
def test_conditional_means_are_those_of_the_mixture_of_trees(sizes):
    density, z = circuit(*sizes), holes(rows(5, sizes[0], seed=3))
    found = all_trees(density)
    ours = queries.conditional_mean(density, z).numpy()
    expected = [np.where(np.isnan(row), found.shares(row) @ found.mean, row) for row in z.numpy()]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert np.array_equal(ours[0], z[0].numpy())


@each_size
def test_the_most_probable_explanation_is_the_best_of_all_trees(sizes):
    density, z = circuit(*sizes), holes(rows(6, sizes[0], seed=3))
    found = all_trees(density)
    for ours, row in zip(queries.mpe(density, z).numpy(), z.numpy(), strict=True):
        peaks = np.where(np.isnan(row), norm.logpdf(0, 0, found.sd), found.log_factors(row))
        best = (found.log_weight + peaks.sum(1)).argmax()
        np.testing.assert_allclose(ours, np.where(np.isnan(row), found.mean[best], row), rtol=1e-12)


@each_size
def test_moments_are_those_of_the_mixture_of_trees(sizes):
    density = circuit(*sizes)
    found = all_trees(density)
    weight = np.exp(found.log_weight)
    mean, covariance = queries.moments(density)
    expected = weight @ found.mean
    deviation = found.mean - expected
    np.testing.assert_allclose(mean, expected, rtol=1e-10)
    second = (deviation * weight[:, None]).T @ deviation + np.diag(weight @ found.sd**2)
    np.testing.assert_allclose(covariance, second, rtol=1e-9, atol=1e-9)


@each_size
def test_samples_have_the_distribution_of_the_mixture_of_trees(sizes):
    """Along random directions the mixture is one of univariate Gaussians, whose distribution function is known."""
    density = circuit(*sizes)
    z, found = queries.sample(density, 4000, seed=0).numpy(), all_trees(density)
    random = np.random.default_rng(0)
    for _ in range(4):
        way = random.normal(size=sizes[0])
        mean, sd, weight = found.mean @ way, np.sqrt(found.sd**2 @ way**2), np.exp(found.log_weight)
        grid = np.linspace(mean.min() - 8 * sd.max(), mean.max() + 8 * sd.max(), 501)
        below = np.array([weight @ norm.cdf(x, mean, sd) for x in grid])
        assert kstest(z @ way, lambda x, grid=grid, below=below: np.interp(x, grid, below)).pvalue > 1e-3


def test_samples_given_some_values_are_those_that_rejection_keeps():
    density = circuit(4, 2, 3, 1, 1, 2)
    drawn = queries.sample(density, 100_000, seed=1)
    near = drawn[((drawn[:, 0] - 8).abs() < 0.4) & ((drawn[:, 3] - 6).abs() < 0.8)]
    assert len(near) > 300
    z = near.clone()
    z[:, 1:3] = NAN  # the observed values of each accepted row, so that the windows' widths do not matter
    ours = queries.sample_given(density, z, seed=2)
    assert torch.equal(ours[:, [0, 3]], near[:, [0, 3]])
    for way in ([1, 0], [0, 1], [1, 1], [1, -1]):
        way = torch.tensor(way, dtype=torch.float64)
        assert kstest(ours[:, 1:3] @ way, near[:, 1:3] @ way).pvalue > 1e-3


def test_draws_follow_the_seed():
    density = circuit(7, 2, 3, 2, 2, 2)
    assert torch.equal(queries.sample(density, 9, seed=4), queries.sample(density, 9, seed=4))
    assert not torch.equal(queries.sample(density, 9, seed=4), queries.sample(density, 9, seed=5))


@each_size
def test_every_root_is_a_density_of_its_class(sizes):
    density, z = circuit(*sizes), rows(4, sizes[0], seed=3)
    joint = np.array([[logsumexp(t.log_joint(row)) for t in trees(density)] for row in z.numpy()])
    prior = density.mixing.numpy()
    np.testing.assert_allclose(queries.log_prob_of_class(density, z), joint - np.log(prior), rtol=1e-10)
    posterior = np.exp(joint) / np.exp(joint).sum(1, keepdims=True)
    np.testing.assert_allclose(queries.class_posterior(density, z), posterior, rtol=1e-10)


def test_no_rows_are_no_answers():
    density, nothing = circuit(5, 3, 2, 4, 1, 2), torch.zeros(0, 5, dtype=torch.float64)
    for query in (queries.surprise, queries.conditional_mean, queries.mpe):
        assert query(density, nothing).shape == (0, 5)
    assert queries.sample(density, 0, seed=0).shape == (0, 5)
    assert queries.class_posterior(density, nothing).shape == (0, 3)


def test_a_mixture_answers_as_a_circuit():
    density = mixture.Config(components=4).build(3).double()
    density.start(rows(60, 3), seed=1)
    z = rows(2, 3, seed=3)
    z[:, 0] = NAN
    found = all_trees(density)
    expected = [found.shares(row) @ found.mean[:, 0] for row in z.numpy()]
    np.testing.assert_allclose(queries.conditional_mean(density, z)[:, 0], expected, rtol=1e-9)


def test_another_number_of_variables_is_refused():
    with pytest.raises(OptionError, match="built for 5 variables, not 4"):
        queries.surprise(circuit(5, 3, 2, 4, 1, 2), rows(2, 4))


def test_a_comparison_is_a_paired_t_test_in_bits_a_dimension():
    a, b, z = circuit(5, 1, 3, 1, 1, 3), circuit(5, 1, 2, 1, 0, 1), rows(50, 5, seed=9)
    ours = queries.compare(a, b, z)
    first, second = (density.log_prob(z).numpy() / (5 * np.log(2)) for density in (a, b))
    assert ours.bits == pytest.approx((first - second).mean())
    assert ours.standard_error == pytest.approx((first - second).std(ddof=1) / np.sqrt(50))
    assert ours.p == pytest.approx(ttest_rel(first, second).pvalue)
    assert ours.better == pytest.approx((first > second).mean())


def test_repeated_rows_of_patients_do_not_make_a_comparison_surer():
    a, b, z = circuit(5, 1, 3, 1, 1, 3), circuit(5, 1, 2, 1, 0, 1), rows(20, 5, seed=9)
    once = queries.compare(a, b, z)
    five_times = queries.compare(a, b, z.repeat(5, 1), [str(i) for i in range(20)] * 5)
    assert five_times.standard_error == pytest.approx(once.standard_error)
    difference = (a.log_prob(z) - b.log_prob(z)).numpy()
    assert five_times.p == pytest.approx(ttest_1samp(difference, 0).pvalue)


def test_a_density_is_no_better_than_itself():
    a, z = circuit(5, 1, 3, 1, 1, 3), rows(10, 5)
    assert queries.compare(a, a, z) == queries.Comparison(0.0, 0.0, 1.0, 0.5)
    with pytest.raises(OptionError, match="at least 2 rows or groups, not 1"):
        queries.compare(a, a, z, ["one"] * 10)
    with pytest.raises(OptionError, match="one group a row, not 2 for 10 rows"):
        queries.compare(a, a, z, ["one", "two"])


def test_weights_in_blocks_that_are_too_many_to_multiply_out_are_refused(monkeypatch):
    density, z = circuit(7, 1, 3, 4, 2, 2, 2), rows(3, 7)
    monkeypatch.setattr("rayad.density.sums.MOST_WEIGHTS", 143)
    message = "queries multiply out the weights of sums in blocks, and a level of this circuit has 144: more than 143"
    with pytest.raises(OptionError, match=message):
        queries.surprise(density, z)
    assert density.log_prob(z).isfinite().all()
