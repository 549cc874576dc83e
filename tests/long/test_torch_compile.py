"""torch.compile of a circuit's pass upwards: the numbers of the pass as it is.

In a process of its own, because the checks of array types in this one are no functions that torch can compile.
"""

import subprocess
import sys

SCRIPT = """
import copy, torch
from rayad.density import kernel
from rayad.density.spn import Config

generator = torch.Generator().manual_seed(0)
z = torch.randn(300, 9, generator=generator, dtype=torch.float64)
plain = Config(inputs=4, sums=3, depth=2, replicas=3).build(9).double()
plain.start(z, seed=0)
compiled = copy.deepcopy(plain)
compiled.compile()
holes = z.masked_fill(torch.rand(z.shape, generator=generator) < 0.2, float("nan"))
with kernel.switched(False):
    for rows in (z, holes, z[:0]):
        torch.testing.assert_close(compiled.log_prob(rows), plain.log_prob(rows), rtol=1e-12, atol=1e-12)
    for ours, expected in zip(compiled.statistics(z).tensors(), plain.statistics(z).tensors(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
print("equal", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def test_a_compiled_pass_gives_the_same_likelihoods_and_statistics():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    said, graphs = done.stdout.split()
    assert said == "equal"
    assert int(graphs) > 0
