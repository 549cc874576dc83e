"""What every detector of latents promises that learns by itself, and each against its peer in scikit-learn."""

import itertools
import json
import math
import pickle
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.svm import OneClassSVM

from rayad import catalog
from rayad.density import deep_belief_network, self_organizing_map
from rayad.errors import OptionError, TrainingError
from rayad.evaluation.metrics import auroc

NAMES = [name for name in catalog.names("density") if hasattr(catalog.find("density", name).Config().build(2), "learn")]
DENSITIES = ["gaussian_mixture", "kernel_density", "mahalanobis"]


@pytest.fixture(params=NAMES)
def module(request) -> ModuleType:
    return catalog.find("density", request.param)


def curved(n: int, seed: int) -> torch.Tensor:
    """Points near a bent line in 8 dimensions."""
    random = torch.Generator().manual_seed(seed)
    t = 2 * torch.rand(n, 1, generator=random) - 1
    powers = torch.cat([t, t**2, t**3, (3 * t).sin()], 1)
    mix = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    return (powers @ mix + 0.05 * torch.randn(n, 8, generator=random)).double()


def learned(module: ModuleType, seed: int = 0, n: int = 600) -> Any:
    density = module.Config().build(8)
    density.learn(curved(n, 1), curved(100, 2), seed)
    return density.eval()


def score(density: Any, z: torch.Tensor) -> torch.Tensor:
    return density.novelty(z) if hasattr(density, "novelty") else -density.log_prob(z)


def test_the_folder_has_detectors_of_latents():
    assert len(NAMES) >= 8
    assert set(DENSITIES) == {n for n in NAMES if hasattr(catalog.find("density", n).Config().build(2), "log_prob")}


def test_a_config_is_a_value_that_json_and_pickle_carry(module):
    said = json.loads(json.dumps(asdict(module.Config())))
    assert module.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}) == module.Config()
    assert pickle.loads(pickle.dumps(module.Config())) == module.Config()


def test_what_lies_off_the_line_scores_higher(module):
    density, usual = learned(module), curved(300, 3)
    low, high = usual.min(0).values, usual.max(0).values
    strange = low + (high - low) * torch.rand(300, 8, generator=torch.Generator().manual_seed(4)).double()
    scores = torch.cat([score(density, usual), score(density, strange)])
    assert scores.isfinite().all()
    assert auroc(scores.numpy(), np.repeat([False, True], 300)) > 0.9


def test_a_score_does_not_depend_on_its_neighbours_nor_on_the_size_of_the_parts(module, monkeypatch):
    density, z = learned(module), curved(40, 5)
    whole = score(density, z)
    torch.testing.assert_close(score(density, z[7:8]), whole[7:8])
    assert score(density, z[:0]).shape == (0,)
    monkeypatch.setattr("rayad.density._arrays.BUDGET", 1)
    torch.testing.assert_close(score(density, z), whole)


def test_the_same_seed_learns_the_same(module):
    z = curved(40, 5)
    assert torch.equal(score(learned(module), z), score(learned(module), z))


def test_a_saved_detector_gives_equal_scores(module):
    density, z = learned(module), curved(40, 5)
    state = safetensors.torch.load(safetensors.torch.save(density.state_dict()))
    other = module.Config().build(8)
    other.load_state_dict(state)
    assert torch.equal(score(other, z), score(density, z))
    with pytest.raises(RuntimeError, match="Missing key"):
        module.Config().build(8).load_state_dict({k: v for k, v in state.items() if k != "centre"})


def test_float32_latents_have_float32_scores_that_are_nearly_the_same(module):
    density, z = learned(module), curved(40, 5)
    low = score(density, z.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), score(density, z), rtol=1e-3, atol=1e-3)


def test_scoring_before_learning_and_latents_that_are_no_numbers_are_refused(module):
    with pytest.raises(RuntimeError, match="has not learned anything"):
        score(module.Config().build(8), curved(3, 0))
    broken = curved(600, 1)
    broken[5, 2] = math.nan
    with pytest.raises(TrainingError, match="not all finite"):
        module.Config().build(8).learn(broken, curved(100, 2), 0)
    with pytest.raises(TrainingError, match="training latents are wanted, not 0"):
        module.Config().build(8).learn(curved(0, 1), curved(100, 2), 0)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_over_the_latents_themselves_integrates_to_one(name):
    density = catalog.find("density", name).Config().build(2)
    random = torch.Generator().manual_seed(0)
    train = torch.randn(400, 2, generator=random).double() * torch.tensor([5.0, 0.3]) + torch.tensor([3.0, -1.0])
    density.learn(train[:300], train[300:], 0)
    x, y = torch.linspace(-40, 46, 801).double(), torch.linspace(-4, 2, 801).double()
    grid = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    p = density.log_prob(grid.reshape(-1, 2)).exp().view(801, 801)
    assert torch.trapezoid(torch.trapezoid(p, y, dim=1), x).item() == pytest.approx(1, abs=1e-3)


def standardized(density: Any, z: torch.Tensor) -> np.ndarray:
    train = curved(600, 1)
    return ((z - train.mean(0)) / train.std(0, correction=0)).numpy()


def peers() -> dict[str, Any]:
    width = learned(catalog.find("density", "kernel_density")).bandwidth.item()
    return {
        "gaussian_mixture": GaussianMixture(10, reg_covar=1e-3, max_iter=200, random_state=0),
        "kernel_density": KernelDensity(bandwidth=width),
        "one_class_svm": OneClassSVM(nu=0.1, gamma="scale"),
        "isolation_forest": IsolationForest(n_estimators=200, max_samples=256, random_state=0),
        "local_outlier_factor": LocalOutlierFactor(20, novelty=True),
    }


@pytest.mark.parametrize(
    "name", ["gaussian_mixture", "kernel_density", "one_class_svm", "isolation_forest", "local_outlier_factor"]
)
def test_scores_are_those_of_scikit_learn(name):
    density, z = learned(catalog.find("density", name)), torch.cat([curved(50, 5), 3 * curved(50, 6)])
    if name == "kernel_density":
        z = z[:50]  # far out scikit-learn's tree loses what the nearest Gaussian leaves
    peer = peers()[name].fit(standardized(density, curved(600, 1)))
    rows = standardized(density, z)
    truth = peer.decision_function(rows) if name == "one_class_svm" else peer.score_samples(rows)
    moved = density.log_determinant.item() if name in DENSITIES else 0.0
    assert -score(density, z).numpy() == pytest.approx(truth + moved, rel=1e-6, abs=1e-6)


def test_a_free_energy_sums_over_all_hidden_states():
    random = torch.Generator().manual_seed(0)
    weight, visible, hidden = (torch.randn(*s, generator=random).double() for s in ((5, 4), (5,), (4,)))
    v = torch.randn(6, 5, generator=random).double()
    for gaussian in (True, False):
        terms = []
        for states in itertools.product([0.0, 1.0], repeat=4):
            h = torch.tensor(states).double()
            own = (v - visible).square().sum(1) / 2 if gaussian else -(v @ visible)
            terms.append(-(own - v @ weight @ h - h @ hidden))
        truth = -torch.stack(terms).logsumexp(0)
        found = deep_belief_network.free_energy(v, weight, visible, hidden, gaussian=gaussian)
        torch.testing.assert_close(found, truth)


def test_a_map_of_one_unit_is_the_mean_and_a_larger_map_is_nearer():
    train = curved(600, 1)
    one = self_organizing_map.Config(rows=1, columns=1).build(8)
    said = one.learn(train, train, 0)
    assert one.units[0].numpy() == pytest.approx(np.zeros(8), abs=1e-9)
    larger = self_organizing_map.Config(rows=8, columns=8).build(8).learn(train, train, 0)
    assert larger["quantization_error"] < 0.5 * said["quantization_error"]
    assert larger["topographic_error"] < 0.3


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gaussian_mixture", {"components": 0}, "at least 1, not 0"),
        ("gaussian_mixture", {"covariance": "round"}, "full, tied or diag"),
        ("kernel_density", {"bandwidth": -1.0}, "at least 0"),
        ("one_class_svm", {"nu": 0.0}, r"in \(0, 1\]"),
        ("isolation_forest", {"trees": 0}, "at least 1 tree"),
        ("local_outlier_factor", {"neighbours": 0}, "at least 1"),
        ("self_organizing_map", {"rows": 0}, "at least 1"),
        ("deep_belief_network", {"hidden": ()}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(name, settings, said):
    with pytest.raises(OptionError, match=said):
        catalog.find("density", name).Config(**settings)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_mixtures_of_every_covariance_are_those_of_scikit_learn(covariance):
    density = catalog.find("density", "gaussian_mixture").Config(components=3, covariance=covariance).build(8)
    density.learn(curved(600, 1), curved(100, 2), 0)
    peer = GaussianMixture(3, covariance_type=covariance, reg_covar=1e-3, max_iter=200, random_state=0)
    peer.fit(standardized(density, curved(600, 1)))
    truth = peer.score_samples(standardized(density, curved(50, 5))) + density.log_determinant.item()
    assert density.log_prob(curved(50, 5)).numpy() == pytest.approx(truth)
