"""Circuits of codes, and of codes and numbers, against enumeration of all worlds, loops, quadrature and derivatives."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from rayad.density import categorical
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


@pytest.mark.parametrize("sizes", SIZES)
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


@pytest.mark.parametrize("states", [(3, 2, 4, 2, 5), MIXED])
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
