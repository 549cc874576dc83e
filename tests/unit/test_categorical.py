"""Circuits of codes, and of codes and numbers, against enumeration of all worlds, loops, quadrature and derivatives."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from rayad.density import categorical, queries
from rayad.density.spn import SPN, Config
from rayad.errors import OptionError

NAN = float("nan")
SIZES = [  # variables, states, roots, inputs, sums, depth, replicas
    (1, (4,), 1, 3, 1, 0, 1),
    (3, (2, 5, 3), 2, 2, 1, 0, 3),
    (4, (3,), 1, 3, 1, 1, 2),
    (5, (2, 3, 1, 4, 2), 3, 2, 4, 1, 2),
    (7, (2,), 2, 3, 2, 2, 2),
    (9, (2,), 1, 2, 3, 3, 1),
]
each_size = pytest.mark.parametrize("sizes", SIZES)
MIXED = (0, 3, 0, 2, 4)


def codes(number: int, states: tuple[int, ...], seed: int = 0) -> Tensor:
    """Two clusters of codes, low and high; numbers where a variable has no states."""
    generator = np.random.default_rng(seed)
    high = generator.random((number, 1)) < 0.5
    coded = np.stack([generator.binomial(max(k, 1) - 1, np.where(high[:, 0], 0.8, 0.2)) for k in states], axis=1)
    numbers = generator.standard_normal(coded.shape) + 4 * high
    return torch.from_numpy(np.where(np.array(states) > 0, coded, 3 * numbers + 5))


def circuit(variables: int, states: tuple[int, ...], *sizes: int, **other) -> SPN:
    roots, inputs, sums, depth, replicas = sizes
    options = {"sum_prior": 0, "state_prior": 0} | other
    config = Config(
        roots=roots, inputs=inputs, sums=sums, depth=depth, replicas=replicas, states=states, seed=3, **options
    )
    density = config.build(variables).double()
    density.start(codes(60, config.states_of(variables)), seed=1)
    return density


def worlds(density: SPN) -> Tensor:
    states = density.config.states_of(density.leaves.variables)
    return torch.tensor(list(product(*(range(k) for k in states))), dtype=torch.float64)


def leaf_densities(density: SPN, row: np.ndarray) -> np.ndarray:
    """Each region's and input's probability of one row, looked up one by one."""
    leaves = density.leaves
    mixed = hasattr(leaves, "gaussian")
    coded = leaves.categorical if mixed else leaves
    out = np.ones((len(leaves.scopes), density.config.inputs))
    for region, i in np.ndindex(out.shape):
        for place, v in enumerate(coded.scopes[region].tolist()):
            if v < len(row) and not np.isnan(row[v]):
                out[region, i] *= coded.probabilities[region, place, int(row[v]), i].item()
        for place, v in enumerate(leaves.gaussian.scopes[region].tolist() if mixed else []):
            if v < len(row) and not np.isnan(row[v]):
                mean, variance = (t[region, i, place].item() for t in (leaves.gaussian.mean, leaves.gaussian.variance))
                centre, scale = density.standardization.centre[v].item(), density.standardization.scale[v].item()
                out[region, i] *= norm.pdf(row[v], centre + scale * mean, scale * np.sqrt(variance))
    return out


def by_loops(density: SPN, leaves: Tensor) -> Tensor:
    """log p of a circuit of depth 1 by its definition."""
    left, right = leaves.chunk(2)
    weights = density.root.weights
    terms = (
        density.mixing[c] * weights[c_r[1], c, i, j] * left[c_r[1], i] * right[c_r[1], j]
        for c in range(len(density.mixing))
        for c_r in product([c], range(len(left)))
        for i, j in product(range(left.shape[1]), repeat=2)
    )
    return sum(terms).log()


@each_size
def test_the_probabilities_of_all_worlds_add_up_to_one(sizes):
    density = circuit(*sizes)
    density.update(density.statistics(codes(40, density.config.states_of(sizes[0]))), 0.7)
    everything = worlds(density)
    p = density.log_prob(everything).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    for v in range(sizes[0]):
        known = everything[0].clone()
        known[v] = NAN
        same = (everything == everything[0]).index_fill(1, torch.tensor(v), True).all(1)
        assert density.log_prob(known[None]).exp().item() == pytest.approx(p[same].sum().item(), rel=1e-11)


@pytest.mark.parametrize("states", [(3, 2, 4, 2, 5), (1024, 2, 512, 1024, 3), MIXED])
def test_likelihood_and_statistics_are_those_of_explicit_loops(states):
    density, z = circuit(5, states, 2, 3, 1, 1, 2), codes(6, states, seed=2)
    z[1, 0], z[2, 3], z[4] = NAN, NAN, NAN
    leaves = [torch.tensor(leaf_densities(density, row), requires_grad=True) for row in z.numpy()]
    expected = torch.stack([by_loops(density, leaf) for leaf in leaves])
    np.testing.assert_allclose(density.log_prob(z), expected.detach(), rtol=1e-12, atol=1e-12)
    expected.sum().backward()
    flow = torch.stack([leaf * leaf.grad for leaf in leaves], dim=2).detach()
    statistics, coded = density.statistics(z).leaves, density.leaves
    if states == MIXED:
        statistics, coded = statistics.categorical, density.leaves.categorical
    counts = torch.zeros(coded.probabilities.shape, dtype=torch.float64)
    for region, place in product(range(len(coded.scopes)), range(coded.scopes.shape[1])):
        v = int(coded.scopes[region, place])
        for n, row in enumerate(z):
            if v == 5 or not row[v].isnan():
                counts[region, place, int(row[v]) if v < 5 else 0] += flow[region, :, n]
    mass, table = statistics.tensors()
    torch.testing.assert_close(table, counts, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(mass, counts.sum(2), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sizes", [*SIZES, (5, MIXED, 2, 3, 2, 1, 2)])
@pytest.mark.parametrize("priors", [{}, {"sum_prior": 3.0, "state_prior": 0.5}])
def test_full_steps_never_lower_the_likelihood(sizes, priors):
    density = circuit(*sizes, **priors)
    z = codes(60, density.config.states_of(sizes[0]))
    z[::7, 0] = NAN
    first = density.log_prob(z).sum().item()
    for step in (1, 1, 0.3, 1, 1):
        before = density.log_prob(z).sum().item() + density.log_prior()
        density.update(density.statistics(z), step)
        after = density.log_prob(z).sum().item() + density.log_prior()
        assert after >= before - 1e-9 * abs(before)
    assert density.log_prob(z).sum().item() > first - 1


def test_a_full_step_gives_shares_and_a_prior_is_rows_seen_before():
    """One leaf that sees everything: (counts + a / K) / (n + a)."""
    z = torch.tensor([[0.0], [0], [2], [NAN]], dtype=torch.float64)
    density = Config(inputs=1, depth=0, replicas=1, states=(4,), state_prior=2.0).build(1).double()
    density.start(z, seed=0)
    density.update(density.statistics(z), 1)
    expected = (np.array([2, 0, 1, 0]) + 2 / 4) / (3 + 2)
    np.testing.assert_allclose(density.leaves.probabilities.flatten(), expected, atol=1e-8)


@pytest.mark.parametrize("states", [(6,), MIXED])
@pytest.mark.parametrize("step", [1, 0.2])
def test_counted_rows_and_rows_to_be_counted_take_the_same_step(states, step, monkeypatch):
    """A table, rows as they are, and sums of both: what workers add up is what one worker learns from."""
    density, other = circuit(5, states, 2, 3, 2, 1, 2), circuit(5, states, 2, 3, 2, 1, 2)
    z = codes(80, density.config.states_of(5), seed=5)
    z[3, 1] = NAN
    rows = density.statistics(z)
    monkeypatch.setattr(categorical, "KEPT", 10**9)
    parts = [density.statistics(part) for part in (z[:10], z[10:11], z[11:])]
    whole = parts[0] + parts[1] + parts[2]
    density.update(rows, step)
    other.update(whole, step)
    for mine, its in zip(rows.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
    for mine, its in zip(density.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_a_circuit_of_numbers_and_codes_integrates_to_one():
    density = circuit(2, (0, 3), 1, 3, 1, 1, 2)
    axis = torch.linspace(-60, 80, 8001, dtype=torch.float64)
    total = sum(
        torch.trapezoid(density.log_prob(torch.stack([axis, torch.full_like(axis, k)], 1)).exp(), axis)
        for k in range(3)
    )
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_one_circuit_of_numbers_is_the_same_with_and_without_states():
    z = codes(50, (0,) * 4)
    one, two = (Config(inputs=3, replicas=2, states=states).build(4) for states in ((), (0,)))
    for density in (one, two):
        density.start(z, seed=0)
    assert torch.equal(one.log_prob(z), two.log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("states", [(9,), (9, 0, 9, 0, 9, 9)])
@pytest.mark.parametrize("case", ["constant", "duplicates", "one row", "missing variable"])
def test_learning_survives_and_codes_never_seen_stay_possible(case, states, dtype):
    config = Config(inputs=4, replicas=3, depth=2, sums=2, states=states, state_prior=0)
    z = codes(40, tuple(min(k, 8) for k in config.states_of(6))).to(dtype)
    match case:
        case "constant":
            z[:, 0] = 1
        case "duplicates":
            z = z[:2].repeat(20, 1)
        case "one row":
            z = z[:1]
        case "missing variable":
            z[:, 0] = NAN
    density = config.build(6).to(dtype)
    density.start(z, seed=0)
    for _ in range(10):
        density.update(density.statistics(z), 1)
    unseen = z.clone()
    unseen[:, [0, 2, 4, 5]] = 8
    assert density.log_prob(z).isfinite().all()
    assert density.log_prob(unseen).isfinite().all()
    assert density.log_prob(unseen).max() < density.log_prob(z).min()


@pytest.mark.parametrize("value", [-1.0, 3.0, 0.5, float("inf")])
def test_values_that_are_no_codes_are_refused(value):
    density, z = circuit(3, (3, 4, 0), 1, 2, 1, 1, 1), codes(5, (3, 4, 0))
    z[2, 0] = value
    for refuse in (density.log_prob, density.statistics, lambda z: density.start(z, 0)):
        with pytest.raises(OptionError, match=f"variable 0 of row 2 must be a whole number from 0 to 2.*not {value:g}"):
            refuse(z)


@pytest.mark.parametrize("states", [(2, 3), (-1,)])
def test_states_that_fit_no_variables_are_refused(states):
    with pytest.raises(OptionError, match="states"):
        Config(states=states).build(3)


def test_outliers_of_a_million_deviations_keep_finite_likelihoods_in_their_order():
    """Constant numbers too, beside codes: the further, the less likely."""
    z = codes(60, MIXED).float()
    z[:, 2] = 0.25
    density = Config(inputs=4, replicas=3, states=MIXED).build(5)
    density.start(z, seed=0)
    for _ in range(5):
        density.update(density.statistics(z), 1)
    far = z[:1].repeat(5, 1)
    far[:, 0] += 6 * torch.tensor([0.0, 10, 1e3, 1e6, float("inf")])
    log_prob = density.log_prob(far)
    assert log_prob.isfinite().all()
    assert (log_prob.diff() < 0).all()


@pytest.mark.parametrize("states", [(), (3,)])
def test_statistics_of_many_rows_are_the_sum_over_blocks(states, monkeypatch):
    """As one call, in blocks of its own, and by the caller."""
    density, z = circuit(4, states or (0,), 1, 3, 1, 1, 2), codes(90, (states or (0,)) * 4, seed=4)
    whole = density.statistics(z)
    by_caller = [density.statistics(part) for part in z.split(13)]
    monkeypatch.setattr("rayad.density.spn.ROWS_A_SUM", 20)
    for other in (density.statistics(z), sum(by_caller[1:], by_caller[0])):
        for mine, its in zip(whole.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-11)


def some_holes(z: Tensor) -> Tensor:
    """Every second value missing, at random; the first row has none, the second nothing else."""
    gone = torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    gone[0], gone[1] = False, True
    return z.masked_fill(gone, NAN)


def posterior(density: SPN, row: Tensor) -> Tensor:
    """p(world | the row's codes) of every world."""
    every = worlds(density)
    agrees = ((every == row) | row.isnan()).all(1)
    p = density.log_prob(every).exp() * agrees
    return p / p.sum()


@each_size
def test_queries_of_codes_are_sums_over_worlds(sizes):
    density = circuit(*sizes)
    every, z = worlds(density), some_holes(codes(6, density.config.states_of(sizes[0]), seed=2))
    p = density.log_prob(every).exp()
    expected = torch.stack([torch.where(row.isnan(), posterior(density, row) @ every, row) for row in z])
    np.testing.assert_allclose(queries.conditional_mean(density, z), expected, rtol=1e-9)
    mean, covariance = queries.moments(density)
    np.testing.assert_allclose(mean, p @ every, rtol=1e-9)
    deviation = every - p @ every
    np.testing.assert_allclose(covariance, (deviation * p[:, None]).T @ deviation, atol=1e-10)
    surprises = queries.surprise(density, z)
    for n, v in product(range(len(z)), range(sizes[0])):
        without = z[n].clone()
        without[v] = NAN
        chosen = every[:, v] == z[n, v]
        expected = NAN if z[n, v].isnan() else -posterior(density, without)[chosen].sum().log().item()
        assert surprises[n, v].item() == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@each_size
def test_draws_of_codes_are_as_frequent_as_they_are_probable(sizes):
    density = circuit(*sizes)
    every, z = worlds(density), codes(1, density.config.states_of(sizes[0]), seed=2)[0]
    z[1:] = NAN
    for row in (torch.full_like(z, NAN), z):
        drawn = queries.sample_given(density, row.expand(4000, -1), seed=1)
        seen = (drawn[:, None] == every).all(2).sum(0).numpy()
        expected = 4000 * posterior(density, row).numpy()
        likely = expected >= 5
        assert seen.sum() == 4000
        assert (seen[expected == 0] == 0).all()
        groups = [np.append(x[likely], x[~likely].sum()) for x in (seen, expected)]
        kept = groups[1] > 0
        assert kept.sum() == 1 or chisquare(groups[0][kept], groups[1][kept]).pvalue > 1e-3


@pytest.mark.parametrize("states", [(2, 3, 2, 4), (2, 0, 3, 0)])
def test_the_most_probable_explanation_is_the_best_of_all_paths(states):
    """A path is a root, a replica and a pair of inputs; the best value of a number is the mean of its leaf."""
    density = circuit(4, states, 2, 3, 1, 1, 2)
    z = some_holes(codes(5, states, seed=2))
    modes, heights = density.leaves.modes()
    scale = density.standardization.scale
    for row, ours in zip(z, queries.mpe(density, z), strict=True):
        best, answer = -np.inf, None
        for c, r, i, j in np.ndindex(2, 2, 3, 3):
            path, value = (density.mixing[c] * density.root.weights[r, c, i, j]).log().item(), row.clone()
            for region, node in ((r, i), (r + 2, j)):
                for place, v in enumerate(density.leaves.scopes[region].tolist()):
                    if row[v].isnan():
                        path += (heights[region, node, place]).item()
                        value[v] = modes[region, node, place] * scale[v] + density.standardization.centre[v]
                    else:
                        alone = torch.full_like(row, NAN)
                        alone[v] = row[v]
                        path += np.log(leaf_densities(density, alone.numpy())[region, node]) + scale[v].log().item()
            if path > best:
                best, answer = path, value
        np.testing.assert_allclose(ours, answer, rtol=1e-12)


def test_a_number_among_codes_is_answered_as_by_quadrature():
    states = (3, 0, 2)
    density, z = circuit(3, states, 2, 3, 1, 1, 2), codes(4, states, seed=2)
    grid = torch.linspace(-40, 60, 8001, dtype=torch.float64)
    cells = float(grid[1] - grid[0])

    def on_grid(row: Tensor) -> Tensor:
        along = row.repeat(len(grid), 1)
        along[:, 1] = grid
        return density.log_prob(along).exp()

    holes = z.clone()
    holes[:, 1] = NAN
    surprises, means = queries.surprise(density, z), queries.conditional_mean(density, holes)
    for n, row in enumerate(z):
        p = on_grid(row)
        total = p.sum() * cells
        assert surprises[n, 1].item() == pytest.approx((total.log() - density.log_prob(row[None])).item(), rel=1e-7)
        assert means[n, 1].item() == pytest.approx(((p * grid).sum() * cells / total).item(), rel=1e-7)
        drawn = queries.sample_given(density, holes[n].expand(2000, -1), seed=n)[:, 1]
        below = (p.cumsum(0) * cells / total).numpy()
        assert kstest(drawn, lambda x, below=below: np.interp(x, grid, below)).pvalue > 1e-3


def test_codes_beside_a_number_are_answered_as_by_enumeration():
    states = (3, 0, 2)
    density, z = circuit(3, states, 2, 3, 1, 1, 2), codes(1, states, seed=2)
    every = torch.tensor([[a, z[0, 1], b] for a, b in product(range(3), range(2))])
    share = density.log_prob(every).softmax(0)
    z[0, [0, 2]] = NAN
    np.testing.assert_allclose(queries.conditional_mean(density, z)[0], share @ every, rtol=1e-9)
    drawn = queries.sample_given(density, z.expand(3000, -1), seed=1)
    seen = (drawn[:, None] == every).all(2).sum(0)
    assert chisquare(seen, 3000 * share).pvalue > 1e-3
