"""What a GPU computes is what a CPU computes. None of this was ever run: no machine of the project has a GPU."""

import numpy as np
import pytest
import torch

from rayad import catalog
from rayad.density import em, spn
from rayad.density.em import EM
from rayad.fit import Schedule, batches, fit
from rayad.pipeline.sweep_task import SharedLatents, Task
from rayad.pipeline.trial import learn
from rayad.scoring import dense

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("model", ["cae", "bvae"])
def test_training_and_dense_scoring_agree_with_the_cpu(model: str):
    patches = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    schedule, found = Schedule(epochs=2, batch=16), {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        one = catalog.configure("models", model, {"width": 8, "learning_rate": 1e-4}).build().to(device)
        fit(one, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)
        pixels = np.random.default_rng(0).random((200, 150), dtype=np.float32)
        found[device] = dense.encode(one, pixels, 8).cpu()
    assert torch.allclose(found["cpu"], found["cuda"], rtol=1e-3, atol=1e-3)


def test_the_density_learned_on_a_gpu_is_that_of_the_cpu():
    z = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for device in ("cpu", "cuda"):
        density = catalog.configure("density", "spn", {"inputs": 4, "replicas": 4}).build(8).to(device)
        em.fit(density, z[:300].to(device), z[300:].to(device), EM(epochs=3))
        found[device] = density.log_prob(z.to(device)).cpu()
    assert torch.allclose(found["cpu"], found["cuda"], atol=1e-2)


def test_a_trial_of_a_sweep_ends_on_a_gpu_with_the_value_of_the_cpu():
    rng, found = np.random.default_rng(0), {}
    train, validation = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (300, 100))
    data = SharedLatents(train, validation, classes=rng.integers(-1, 2, 300), names=("fatty", "dense"))
    parts = {"density": spn.Config(roots=2, inputs=4, replicas=4), "em": EM(epochs=3)}
    for device in ("cpu", "cuda"):
        found[device] = learn(Task(parts, {}, "", "bits"), data, {}, 0, lambda _, value: None, device)
    assert found["cpu"] == pytest.approx(found["cuda"], abs=1e-2)
