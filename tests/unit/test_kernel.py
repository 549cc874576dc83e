"""The compiled kernel against torch in float64, on circuits of every shape."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayad.density import kernel
from rayad.density.spn import SPN, Config
from rayad.density.sums import DenseSums
from tests.conftest import missing

pytestmark = pytest.mark.skipif(kernel.library() is None, reason="no C++ compiler (Debian: apt-get install g++)")

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
SHAPES = {
    "the paper's": (64, Config(), 300),
    "no depth": (13, Config(depth=0, inputs=11, replicas=3, roots=2), 40),
    "a mixture": (7, Config(depth=0, inputs=100, replicas=1), 1),
    "two levels": (64, Config(depth=2, inputs=10, sums=7, replicas=5), 130),
    "odd variables, several roots": (37, Config(depth=3, inputs=5, sums=9, replicas=4, roots=3), 77),
    "as deep as can be": (64, Config(depth=6, inputs=3, sums=4, replicas=2), 3),
    "more nodes than a tile holds": (9, Config(inputs=77, replicas=3, roots=2), 261),
    "many sums": (64, Config(inputs=20, sums=20, depth=4, replicas=3), 150),
    "more sums than inputs": (16, Config(inputs=3, sums=18, depth=3, replicas=2), 33),
}
shapes = pytest.mark.parametrize(("variables", "config", "rows"), SHAPES.values(), ids=SHAPES)


def circuits(variables: int, config: Config, rows: int) -> tuple[SPN, SPN, torch.Tensor]:
    """The same circuit in float32 and in float64, and rows for it."""
    generator = torch.Generator().manual_seed(0)
    single, double = config.build(variables), config.build(variables).double()
    single.start(2 * torch.randn(500, variables, generator=generator) + 1, 0)
    double.load_state_dict(single.state_dict())
    return single, double, 2 * torch.randn(rows, variables, generator=generator) + 1


@shapes
def test_likelihoods_are_those_of_torch_in_float64(variables, config, rows):
    single, double, z = circuits(variables, config, rows)
    assert kernel.packed(single) is not None
    assert kernel.packed(double) is None
    torch.testing.assert_close(single.log_prob(z).double(), double.log_prob(z), rtol=1e-6, atol=1e-4)


@shapes
def test_statistics_are_those_of_torch_in_float64(variables, config, rows):
    single, double, z = circuits(variables, config, rows)
    for mine, truth in zip(single.statistics(z).tensors(), double.statistics(z).tensors(), strict=True):
        scale = float(truth.abs().max())
        torch.testing.assert_close(mine.double(), truth.double(), rtol=1e-4, atol=2e-5 * scale)


@shapes
def test_a_step_is_that_of_torch_in_float64(variables, config, rows):
    single, double, z = circuits(variables, config, rows)
    for density in (single, double):
        density.update(density.statistics(z), 0.3)
    for (name, mine), truth in zip(single.state_dict().items(), double.state_dict().values(), strict=True):
        torch.testing.assert_close(
            mine.double(), truth.double(), rtol=1e-3, atol=2e-5, msg=lambda m, name=name: name + m
        )


@pytest.mark.skipif("avx2" not in CPU, reason="a processor without AVX2")
@pytest.mark.parametrize(
    ("compiler", "processor", "lanes"),
    [
        ("clang++", "x86-64-v3", 8),
        pytest.param("g++", "x86-64-v3", 8, marks=pytest.mark.long),
        pytest.param("g++", "x86-64", 4, marks=pytest.mark.long),
        pytest.param("clang++", "x86-64", 4, marks=pytest.mark.long),
    ],
)
def test_both_compilers_and_processors_with_shorter_vectors_compute_the_same(compiler, processor, lanes):
    """In a process of its own, since a process has one kernel."""
    if shutil.which(compiler) is None:
        missing(f"{compiler} is not installed (Debian: apt-get install g++ clang)")
    code = f"""
import torch
from rayad.density import kernel
kernel.FLAGS = (*kernel.FLAGS, "-march={processor}")
from tests.unit.test_kernel import *
assert kernel.library().lanes() == {lanes}
for shape in SHAPES.values():
    test_likelihoods_are_those_of_torch_in_float64(*shape)
    test_statistics_are_those_of_torch_in_float64(*shape)
    test_a_step_is_that_of_torch_in_float64(*shape)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "CXX": compiler}, check=True)


def test_outliers_keep_their_order_and_stay_finite():
    single, double, _ = circuits(64, Config(), 1)
    z = torch.zeros(7, 64)
    z[:, 0] = torch.tensor([0.0, 1e1, 1e2, 1e3, 1e4, 1e6, 1e20])
    found = single.log_prob(z)
    assert found.isfinite().all()
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found.double(), double.log_prob(z), rtol=1e-5, atol=0)


def test_threads_share_the_rows():
    single, _, z = circuits(20, Config(inputs=9, replicas=4), 1100)
    before, alone = torch.get_num_threads(), (single.log_prob(z), single.statistics(z))
    try:
        torch.set_num_threads(3)
        together = single.log_prob(z), single.statistics(z)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[0])
    for one, other in zip(alone[1].tensors(), together[1].tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


def test_a_step_of_learning_is_seen_by_the_next_likelihood():
    single, double, z = circuits(20, Config(inputs=9, replicas=4), 200)
    for _ in range(3):
        single.update(single.statistics(z), 0.5)
        double.update(double.statistics(z), 0.5)
    torch.testing.assert_close(single.log_prob(z).double(), double.log_prob(z), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_visits_of_any_precision_move_the_weights_of_many_pairs(dtype):
    generator = torch.Generator().manual_seed(0)
    layer, truth = (DenseSums(200, 1, 90, 90, pooled=True) for _ in range(2))
    truth.double()
    visits = torch.empty(layer.weights.shape, dtype=torch.float64).exponential_(generator=generator)
    assert kernel.update_sums(layer, [visits.to(dtype)], 0.3, 1.0, 1e-12)
    truth.update([visits], 0.3, 1.0, 1e-12)
    torch.testing.assert_close(layer.weights.double(), truth.weights, rtol=1e-6, atol=0)
    assert layer.weights.sum(dtype=torch.float64).item() == pytest.approx(1, abs=1e-6)


def test_visits_that_are_no_numbers_are_not_hidden():
    layer = DenseSums(2, 3, 4, 4, pooled=False)
    visits = torch.ones_like(layer.weights)
    visits[1, 2, 0, 0] = torch.nan
    assert kernel.update_sums(layer, [visits], 0.3, 1.0, 1e-12)
    assert layer.weights[1, 2].isnan().all()
    assert layer.weights[0].isfinite().all()


def test_missing_values_go_through_torch():
    single, double, z = circuits(20, Config(inputs=9, replicas=4), 50)
    z[::3, 4] = torch.nan
    torch.testing.assert_close(single.log_prob(z).double(), double.log_prob(z), rtol=1e-6, atol=1e-4)


def test_it_can_be_switched_off():
    single, _, z = circuits(20, Config(inputs=9, replicas=4), 50)
    with kernel.switched(False):
        assert kernel.packed(single) is None
        torch_alone = single.log_prob(z)
    torch.testing.assert_close(single.log_prob(z), torch_alone, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("environment", "warned"), [({"CXX": "false"}, True), ({"PATH": "/nowhere", "CXX": ""}, False)]
)
def test_without_a_compiler_that_works_torch_does_all(environment, warned, tmp_path):
    code = "from rayad.density import kernel; assert kernel.library() is None"
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert ("could not be built" in done.stderr) == warned


def test_two_processes_may_build_it_at_once(tmp_path):
    code = "from rayad.density import kernel; assert kernel.library().lanes() in (4, 8, 16)"
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=variables) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list((tmp_path / "rayad").iterdir())) == 1
