"""What every model promises: the battery that each file in rayad/models passes."""

import json
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from rayad import catalog
from rayad.fit import Objective, Pass, Schedule, batches, fit
from rayad.scoring.dense import Decoding
from rayad.scoring.scores import Conditional
from rayad.tensors import Patches

MODELS = catalog.names("models")
CASES = {name: (name, {}) for name in MODELS} | {"bvae with batch_norm": ("bvae", {"batch_norm": True})}
"""What is tested: every model as it is, and with options that change what it is made of."""
SLOW = {"fanogan", "mddpm"}
"""Models whose training in the battery is left to the long tests; their own tests show that they learn."""


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture
def module(case) -> ModuleType:
    return catalog.find("models", CASES[case][0])


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in CASES])
def learner(request) -> nn.Module:
    name, options = CASES[request.param]
    torch.manual_seed(0)
    return replace(narrow(catalog.find("models", name)), **options).build().eval()


@pytest.fixture
def config(case, module) -> Any:
    return replace(narrow(module), **CASES[case][1])


def narrow(module: ModuleType) -> Any:
    """The defaults, but narrow."""
    return replace(module.Config(), **{field.name: 4 for field in fields(module.Config) if field.name == "width"})


PRESETS = [(name, preset) for name in MODELS for preset in catalog.presets(catalog.find("models", name))]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_takes_a_step(name, preset, patches):
    """Of every objective, with the sizes that a command has by --settings preset=NAME."""
    torch.manual_seed(0)
    model, x = catalog.configure("models", name, [f"preset={preset}"]).build(), patches[:2]
    for objective in objectives(model):
        loss = objective.loss(told(model, x), noise(2)).sum()
        gradients = torch.autograd.grad(loss, objective.parameters)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.fixture
def model(config) -> nn.Module:
    torch.manual_seed(0)
    return config.build().eval()


@pytest.fixture(scope="module")
def patches() -> Patches:
    """Soft bright bars at random angles and places: few numbers describe one."""
    random = torch.Generator().manual_seed(0)
    angle, place = 3.14 * torch.rand(48, 1, 1, generator=random), torch.rand(48, 1, 1, generator=random)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    distance = x * angle.cos() + y * angle.sin() - place + 0.5
    return (0.2 + 0.6 * (-8 * distance.square()).exp())[:, None]


def objectives(model: Any) -> list[Objective]:
    return [item for stage in model.stages() for item in stage if isinstance(item, Objective)]


def told(model: Any, x: Patches) -> Patches:
    """The patches as training shows them: with planes of a fact, where the model wants one."""
    if not isinstance(model, Conditional):
        return x
    numbers = torch.tensor(model.planes(model.config.classes.split()[0]))
    return torch.cat([x, numbers[None, :, None, None].expand(len(x), -1, *x.shape[2:])], 1)


def noise(n: int):
    """A draw that is the same each time it is made; row i is that of sample i."""
    random = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(48, *shape, generator=random)[:n]


def trained(model: nn.Module, patches: Patches, epochs: int):
    schedule = Schedule(epochs=epochs, batch=8)
    return fit(model, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)


def test_the_folder_has_models():
    assert {"cae", "bvae"} <= set(MODELS)


def test_a_config_is_a_value_that_json_and_pickle_carry(module, config):
    said = json.loads(json.dumps(asdict(config)))
    assert module.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 1)


def test_shapes(model, patches):
    x = patches[:3]
    assert model.encode(x).shape == (3, model.latents)
    assert {name: score.shape for name, score in model.scores(x).items()} == dict.fromkeys(model.scores(x), (3,))
    if hasattr(model, "reconstruct"):
        assert model.reconstruct(x).shape == x.shape
        assert "reconstruction" in model.scores(x)


def test_no_patches_have_no_scores(model, patches):
    assert model.encode(patches[:0]).shape == (0, model.latents)
    assert all(score.shape == (0,) for score in model.scores(patches[:0]).values())


def test_stages_hold_objectives_and_passes(model):
    for stage in model.stages():
        assert all(isinstance(item, Objective | Pass) for item in stage)
        names = [item.name for item in stage]
        assert len(set(names)) == len(names)


def test_every_parameter_is_trained_in_some_stage(model, patches):
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    moved = set()
    for objective in objectives(model):
        loss = objective.loss(told(model, patches[:8]), noise(8)).sum()
        gradients = torch.autograd.grad(loss, objective.parameters)
        moved |= {id(p) for p, g in zip(objective.parameters, gradients, strict=True) if g.abs().max() > 0}
    assert {name for key, name in trainable.items() if key not in moved} == set()


def test_a_loss_has_a_value_a_sample_that_its_neighbours_do_not_change(model, patches):
    for objective in objectives(model):
        losses = objective.loss(patches[:6], noise(6)).detach()
        assert losses.shape == (6,)
        torch.testing.assert_close(objective.loss(patches[:2], noise(2)).detach(), losses[:2])


def test_a_loss_draws_all_its_noise(model, patches):
    for objective in objectives(model):
        a, b = (objective.loss(patches[:4], noise(4)).detach() for _ in range(2))
        assert torch.equal(a, b)


def test_training_lowers_the_loss(learner, patches):
    history = trained(learner, patches, epochs=15)
    judged = [row for row in history.rows if "validation" in row]
    for stage in {row["stage"] for row in judged}:
        losses = [row["validation"] for row in judged if row["stage"] == stage]
        assert min(losses) < 0.7 * losses[0]


def test_scores_tell_patches_apart(model, patches):
    for score in model.scores(patches).values():
        assert score.isfinite().all()
        assert score.std() > 1e-3 * score.mean().abs()


def test_what_was_never_seen_scores_higher(learner, patches):
    """By the model's own criterion, which stands first; a part of it, such as a divergence, need not see everything."""
    trained(learner, patches, epochs=6)
    strange = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    name, score = next(iter(learner.scores(patches).items()))
    assert score.median() < learner.scores(strange)[name].median()


def test_a_score_does_not_depend_on_the_batch(model, patches):
    """In float64: where latents are found step by step, a unit that rounding turns on or off is seen in float32."""
    model, patches = model.double(), patches.double()
    together, one = model.scores(patches[:8]), model.scores(patches[5:6])
    for name, score in together.items():
        torch.testing.assert_close(score[5:6], one[name])
    torch.testing.assert_close(model.encode(patches[:8])[5:6], model.encode(patches[5:6]))


def test_scores_are_the_same_each_time(model, patches):
    again = model.scores(patches[:4])
    assert all(torch.equal(score, again[name]) for name, score in model.scores(patches[:4]).items())


def test_a_saved_model_gives_equal_scores(model, config, patches):
    data = safetensors.torch.save({name: value.contiguous() for name, value in model.state_dict().items()})
    torch.manual_seed(1)
    other = config.build().eval()
    other.load_state_dict(safetensors.torch.load(data))
    for name, score in model.scores(patches[:4]).items():
        assert torch.equal(other.scores(patches[:4])[name], score)


def test_the_same_seed_builds_the_same_model(model, config):
    torch.manual_seed(0)
    again = config.build()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_double_precision_works(model, patches):
    low, high = model.scores(patches[:2]), model.double().scores(patches[:2].double())
    for name, score in high.items():
        assert score.dtype == torch.float64
        torch.testing.assert_close(low[name].double(), score, rtol=1e-4, atol=1e-6)


def test_a_model_that_decodes_reconstructs_by_that_alone(model, patches):
    """Whole images are scored by it, without asking the model for reconstructions and their score."""
    if isinstance(model, Decoding):
        with torch.no_grad():
            decoded = model.decode(model.encode(patches))
            torch.testing.assert_close(model.reconstruct(patches), decoded)
            errors = (patches - decoded).square().mean((1, 2, 3))
            torch.testing.assert_close(model.scores(patches)["reconstruction"], errors)
