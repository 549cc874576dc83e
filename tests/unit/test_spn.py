"""Circuits against explicit loops over the region graph, quadrature and automatic differentiation."""

from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from rayad.density.spn import SPN, Config
from rayad.errors import OptionError

NAN, INF = float("nan"), float("inf")
SIZES = [  # variables, roots, inputs, sums, depth, replicas, blocks
    (1, 1, 3, 1, 0, 1),
    (3, 2, 2, 1, 0, 3),
    (4, 1, 3, 1, 1, 2),
    (5, 3, 2, 4, 1, 2),
    (7, 2, 3, 2, 2, 2),
    (9, 1, 2, 3, 3, 1),
    (7, 2, 3, 4, 2, 2, 2),
    (9, 1, 2, 6, 3, 2, 3),
]


def rows(number: int, variables: int, seed: int = 0) -> Tensor:
    """Two clusters, away from zero."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, variables, dtype=torch.float64, generator=generator)
    z[::2] += 2
    return 3 * z + 5


def circuit(
    variables: int, roots: int, inputs: int, sums: int, depth: int, replicas: int, blocks: int = 0, **other
) -> SPN:
    sizes = {"roots": roots, "inputs": inputs, "sums": sums, "depth": depth, "replicas": replicas, "blocks": blocks}
    density = Config(**(sizes | {"sum_prior": 0} | other)).build(variables).double()
    density.start(rows(60, variables), seed=1)
    density.mixing.copy_(torch.arange(1.0, roots + 1, dtype=torch.float64) / sum(range(1, roots + 1)))
    return density


def leaf_densities(density: SPN, z: np.ndarray) -> np.ndarray:
    """Each region's and input's density of one row, in its own units, by scipy; missing values left out."""
    state = {name: value.numpy() for name, value in density.state_dict().items()}
    centre, scale = state["standardization.centre"], state["standardization.scale"]
    out = np.ones(state["leaves.mean"].shape[:2])
    for region, i in np.ndindex(out.shape):
        for place, v in enumerate(state["leaves.scopes"][region]):
            if v < len(z) and not np.isnan(z[v]):
                mean = centre[v] + scale[v] * state["leaves.mean"][region, i, place]
                sd = scale[v] * np.sqrt(state["leaves.variance"][region, i, place])
                out[region, i] *= norm.pdf(z[v], mean, sd)
    return out


def multiplied_out(density: SPN, tables: list[Tensor]) -> list[Tensor]:
    """The weights of every sum, W_(q,l)ij = U_qli V_qij where they are two factors; a loop over blocks and sums."""
    values, weights = iter(tables), []
    for layer in density.layers():
        factors = [next(values) for _ in layer.tables()]
        if len(factors) == 2:
            outer, inner = factors
            blocks, sums = outer.shape[1:3]
            pairs = [outer[:, q, s, :, None] * inner[:, q] for q in range(blocks) for s in range(sums)]
            factors = [torch.stack(pairs, 1)]
        weights += factors
    return weights


def by_loops(density: SPN, leaves: Tensor, sums: list[Tensor], mixing: Tensor) -> Tensor:
    """log p by the definition: recursion over regions, loops over nodes, nothing in the log domain."""
    config = density.config
    last = config.depth - 1

    def sum_node(level: int, region: int, s: int) -> Tensor:
        w = sums[last - level][region, s]
        left = children(level + 1, region)
        right = children(level + 1, region + config.replicas * 2**level)
        return sum(w[i, j] * left[i] * right[j] for i, j in product(range(len(left)), range(len(right))))

    def children(level: int, region: int) -> list[Tensor]:
        if level == config.depth:
            return list(leaves[region])
        return [sum_node(level, region, s) for s in range(config.sums)]

    def root(c: int, r: int) -> Tensor:
        if config.depth == 0:
            return sum(sums[0][r, c, i, 0] * leaves[r, i] for i in range(config.inputs))
        return sum_node(0, r, c)

    pairs = product(range(config.roots), range(config.replicas))
    return sum(mixing[c] * root(c, r) for c, r in pairs).log()


@pytest.mark.parametrize("sizes", SIZES)
def test_log_likelihood_is_that_of_explicit_loops(sizes: tuple[int, ...]):
    density, z = circuit(*sizes), rows(4, sizes[0], seed=3)
    z[1, 0], z[2] = NAN, 40
    sums = multiplied_out(density, density.tables())
    expected = [
        by_loops(density, torch.from_numpy(leaf_densities(density, row)), sums, density.mixing).item()
        for row in z.numpy()
    ]
    np.testing.assert_allclose(density.log_prob(z), expected, rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_statistics_are_derivatives(sizes: tuple[int, ...]):
    """Expected visits of a node are d log p / d log N, by automatic differentiation of the explicit loops."""
    density, z = circuit(*sizes), rows(3, sizes[0], seed=3)
    statistics = density.statistics(z)
    leaves = [torch.tensor(leaf_densities(density, row), requires_grad=True) for row in z.numpy()]
    tables = [table.detach().clone().requires_grad_() for table in density.tables()]
    sums = multiplied_out(density, tables)
    mixing = density.mixing.detach().clone().requires_grad_()
    torch.stack([by_loops(density, leaf, sums, mixing) for leaf in leaves]).sum().backward()
    for ours, weights in zip([*statistics.sums, statistics.roots], [*tables, mixing], strict=True):
        torch.testing.assert_close(ours, weights * weights.grad, rtol=1e-10, atol=1e-14)
    flow = torch.stack([leaf * leaf.grad for leaf in leaves], dim=2).detach()  # l i n
    x = torch.cat([(z - density.standardization.centre) / density.standardization.scale, torch.zeros(3, 1)], 1)
    values = x.T[density.leaves.scopes]  # l w n
    deviation = values[:, None] - density.leaves.mean[..., None]  # l i w n
    for ours, power in zip(statistics.leaves.tensors(), (0, 1, 2), strict=True):
        expected = (flow[:, :, None] * deviation**power).sum(3) * density.leaves.filled
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("priors", [{}, {"sum_prior": 3.0, "leaf_prior": 0.5}])
def test_full_steps_never_lower_the_likelihood(sizes: tuple[int, ...], priors: dict[str, float]):
    density, z = circuit(*sizes, **priors), rows(60, sizes[0])
    for step in (1, 1, 1, 0.3, 1, 0.1, 1, 1):
        before = density.log_prob(z).sum().item() + density.log_prior()
        density.update(density.statistics(z), step)
        after = density.log_prob(z).sum().item() + density.log_prior()
        assert after >= before - 1e-9 * abs(before)
    assert density.mixing.sum().item() == pytest.approx(1)


def test_full_batch_learning_raises_the_likelihood_with_missing_values():
    density, z = circuit(7, 2, 3, 2, 2, 2), rows(60, 7)
    z[::3, 2], z[1::4, 5], z[7] = NAN, NAN, NAN
    density.start(z, seed=0)
    likelihood = [density.log_prob(z).sum().item()]
    for _ in range(10):
        density.update(density.statistics(z), 1)
        likelihood.append(density.log_prob(z).sum().item())
    assert all(np.diff(likelihood) >= -1e-9)
    assert likelihood[-1] > likelihood[0] + 1


def test_weights_in_blocks_are_those_of_a_dense_circuit():
    """What asks for a layer's weights, as the queries do, asks for the same numbers."""
    blocks, z = circuit(9, 1, 2, 6, 3, 2, 3), rows(20, 9)
    dense = circuit(9, 1, 2, 6, 3, 2)
    dense.load_state_dict(
        blocks.state_dict() | {f"inner.{i}.weights": b.weights for i, b in enumerate(blocks.inner)}, False
    )
    torch.testing.assert_close(dense.log_prob(z), blocks.log_prob(z), rtol=1e-12, atol=0)


def test_as_many_blocks_as_sums_learn_what_a_dense_circuit_learns():
    """Each sum has factors of its own then, and the prior is split between them: without one they are the same."""
    blocks, z = circuit(7, 1, 3, 4, 2, 2, 4), rows(60, 7)
    dense = circuit(7, 1, 3, 4, 2, 2)
    dense.load_state_dict(blocks.state_dict() | {"inner.0.weights": blocks.inner[0].weights}, False)
    for _ in range(5):
        for density in (blocks, dense):
            density.update(density.statistics(z), 1)
    torch.testing.assert_close(blocks.log_prob(z), dense.log_prob(z), rtol=1e-9, atol=0)


def test_float32_in_blocks_agrees_with_float64():
    double, z = circuit(9, 1, 4, 6, 3, 4, 3), rows(300, 9)
    single = Config(inputs=4, sums=6, depth=3, replicas=4, blocks=3).build(9)
    single.load_state_dict(double.state_dict())
    torch.testing.assert_close(single.log_prob(z.float()).double(), double.log_prob(z), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_density_integrates_to_one(depth: int):
    line = circuit(1, 2, 3, 1, 0, 2)
    total, _ = quad(lambda z: line.log_prob(torch.tensor([[z]]).double()).exp().item(), -60, 70, points=[5, 11])
    assert total == pytest.approx(1, abs=1e-7)
    plane = circuit(2, 2, 3, 1, depth, 2)
    axis = torch.linspace(-60, 75, 301, dtype=torch.float64)
    p = plane.log_prob(torch.cartesian_prod(axis, axis)).exp().view(301, 301)
    assert torch.trapezoid(torch.trapezoid(p, axis), axis).item() == pytest.approx(1, abs=1e-9)


def test_a_missing_variable_is_integrated_out():
    density = circuit(5, 1, 3, 2, 2, 2)
    row = rows(1, 5, seed=4)
    axis = torch.linspace(-60, 75, 4001, dtype=torch.float64)
    along = row.repeat(len(axis), 1)
    along[:, 3], row[0, 3] = axis, NAN
    integral = torch.trapezoid(density.log_prob(along).exp(), axis)
    assert density.log_prob(row).exp().item() == pytest.approx(integral.item(), rel=1e-9)
    assert density.log_prob(torch.full((1, 5), NAN)).item() == pytest.approx(0, abs=1e-12)


def test_statistics_of_shards_add_up():
    density, z = circuit(7, 2, 3, 2, 2, 2), rows(600, 7, seed=2)
    z[::5, 1] = NAN
    whole = density.statistics(z)
    parts = [density.statistics(part) for part in (z[:1], z[1:1], z[1:300], z[300:])]
    for total, one in zip(sum(parts[1:], parts[0]).tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(total, one, rtol=1e-12, atol=1e-11)
    assert whole.log_likelihood.item() == pytest.approx(density.log_prob(z).sum().item(), rel=1e-12)
    assert whole.rows.item() == 600


@pytest.mark.parametrize("blocks", [0, 2])
def test_blocks_that_fit_the_cache_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch, blocks: int):
    density, z = circuit(7, 2, 3, 4, 2, 2, blocks), rows(50, 7, seed=2)
    whole = density.statistics(z)
    monkeypatch.setattr("rayad.density.sums.BLOCK", 1)
    monkeypatch.setattr("rayad.density.spn.BUDGET", 1)
    for parts, one in zip(density.statistics(z).tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-12, atol=1e-11)


def test_float32_agrees_with_float64_where_variables_have_offsets():
    z = rows(300, 8) / 30 + 100
    double = Config(inputs=5, replicas=4).build(8).double()
    double.start(z, seed=0)
    for _ in range(3):
        double.update(double.statistics(z), 1)
    single = Config(inputs=5, replicas=4).build(8)
    single.load_state_dict(double.state_dict())
    torch.testing.assert_close(single.log_prob(z).double(), double.log_prob(z), rtol=0, atol=1e-3)


def test_a_row_does_not_depend_on_the_others():
    density, z = circuit(5, 1, 3, 2, 2, 2).float(), rows(1000, 5, seed=5)
    together = density.log_prob(z)
    torch.testing.assert_close(together[700:703], density.log_prob(z[700:703]), rtol=1e-5, atol=1e-5)
    assert density.log_prob(z[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_further_the_less_likely_and_always_finite(dtype: torch.dtype):
    density = circuit(6, 1, 4, 2, 1, 3).to(dtype)
    sizes = [0, 10, 1e4, 1e6, 1e9, 1e12, INF]
    log_prob = density.log_prob(torch.tensor([[5 + 3 * size] * 6 for size in sizes], dtype=dtype))
    assert log_prob.isfinite().all()
    assert (log_prob.diff()[:-1] < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["constant", "duplicates", "one row", "outlier", "missing variable"])
@pytest.mark.parametrize("blocks", [0, 3])
def test_learning_survives(case: str, dtype: torch.dtype, blocks: int):
    z = rows(40, 6).to(dtype)
    match case:
        case "constant":
            z[:, 2] = 0.1
        case "duplicates":
            z = z[:2].repeat(20, 1)
        case "one row":
            z = z[:1]
        case "outlier":
            z[3] += 1e4 * 3
        case "missing variable":
            z[:, 2] = NAN
    density = Config(inputs=5, replicas=3, depth=2, sums=3, blocks=blocks).build(6).to(dtype)
    density.start(z, seed=0)
    for _ in range(20):
        density.update(density.statistics(z), 1)
    assert density.log_prob(z).isfinite().all()
    assert all(value.isfinite().all() for value in density.state_dict().values())


def test_the_deepest_circuit_learns():
    z = rows(50, 64)
    density = Config(inputs=3, sums=2, depth=6, replicas=2).build(64).double()
    density.start(z, seed=0)
    before = density.log_prob(z).mean()
    for _ in range(5):
        density.update(density.statistics(z), 1)
    assert density.log_prob(z).mean() > before


def test_a_circuit_is_rebuilt_from_its_config_and_tensors():
    density = circuit(7, 2, 3, 2, 2, 2)
    data = save(density.state_dict())
    other = Config(roots=2, inputs=3, sums=2, depth=2, replicas=2, seed=9).build(7).double()
    other.load_state_dict(load(data))
    assert torch.equal(other.log_prob(rows(20, 7)), density.log_prob(rows(20, 7)))


def test_a_seed_gives_one_start():
    one, two, three = (Config(inputs=4, replicas=2).build(5) for _ in range(3))
    for density, seed in ((one, 1), (two, 1), (three, 2)):
        density.start(rows(60, 5), seed)
    assert torch.equal(one.leaves.mean, two.leaves.mean)
    assert not torch.equal(one.leaves.mean, three.leaves.mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roots": 0}, "roots of a circuit must be at least 1, not 0"),
        ({"inputs": -1}, "inputs of a circuit must be at least 1, not -1"),
        ({"replicas": 0}, "replicas of a circuit must be at least 1, not 0"),
        ({"sums": 0}, "sums of a circuit must be at least 1, not 0"),
        ({"sums": 20, "blocks": 3}, "blocks of a circuit must divide its sums, which are 20, or be 0, not 3"),
        ({"sums": 20, "blocks": -1}, "blocks of a circuit must divide its sums, which are 20, or be 0, not -1"),
        ({"min_variance": 0.0}, "min_variance must be between 1e-06 and 1, not 0.0"),
        ({"sum_prior": -1.0}, "sum_prior of a circuit must be at least 0 rows, not -1.0"),
        ({"leaf_prior": NAN}, "leaf_prior of a circuit must be at least 0 rows, not nan"),
    ],
)
def test_bad_sizes_are_refused(options: dict[str, float], message: str):
    with pytest.raises(OptionError, match=message):
        Config(**options)


def test_a_circuit_says_what_it_was_built_for():
    with pytest.raises(OptionError, match="depth 4 splits 9 variables"):
        Config(depth=4).build(9)
    with pytest.raises(OptionError, match="built for 5 variables, not 4"):
        circuit(5, 1, 3, 2, 2, 2).log_prob(rows(3, 4))
