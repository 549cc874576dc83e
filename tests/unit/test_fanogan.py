"""f-AnoGAN: sizes of the paper, losses by hand, a critic that learns to tell, an encoder that learns to find."""

import pytest
import torch
from torch import nn

from rayad import catalog
from rayad.errors import OptionError
from rayad.fit import Schedule, batches, fit
from rayad.models.fanogan import Config

SMALL = Config(width=4, latents=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_paper_has_maps_from_64_to_512_channels_and_features_of_4_by_4():
    model = catalog.configure("models", "fanogan", ["preset=paper"]).build().eval()
    assert model.features(torch.zeros(1, 1, 64, 64)).shape == (1, 512, 4, 4)
    assert [block.short.out_channels for block in model.generator.blocks] == [512, 256, 128, 64]
    assert [block.short.out_channels for block in model.features[1:]] == [128, 256, 512, 512]
    assert model.encode(torch.zeros(1, 1, 64, 64)).shape == (1, 128)


def test_the_critic_never_normalizes_over_the_batch(model):
    kinds = {type(layer) for part in (model.features, model.verdict) for layer in part.modules()}
    assert nn.BatchNorm2d not in kinds
    assert nn.GroupNorm in kinds
    assert all(layer.num_groups == 1 for layer in model.features.modules() if isinstance(layer, nn.GroupNorm))


def test_the_penalty_of_a_linear_critic_is_that_of_its_slope(model, x, monkeypatch):
    slope = torch.randn(64 * 64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(model, "critic", lambda patches: patches.flatten(1) @ slope)
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    losses = model.critic_loss(x, lambda *shape: noise[:, : shape[0]])
    with torch.no_grad():
        drawn = model.generator(noise)
    truth = (drawn - (2 * x - 1)).flatten(1) @ slope + 10 * (slope.norm() - 1) ** 2
    torch.testing.assert_close(losses, truth)


def test_the_score_is_the_encoders_loss(model, x):
    again = 2 * model.reconstruct(x) - 1
    pixel = (2 * x - 1 - again).square().mean((1, 2, 3))
    feature = (model.features(2 * x - 1) - model.features(again)).square().mean((1, 2, 3))
    scores = model.scores(x)
    torch.testing.assert_close(scores["reconstruction"], pixel + feature)
    torch.testing.assert_close(model.encoder_loss(x, lambda *shape: torch.zeros(5, *shape)), pixel + feature)
    torch.testing.assert_close(scores["pixel"], pixel)


def test_the_frozen_generator_stays_as_it_is(x):
    model = SMALL.build().train()
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    model.encoder_loss(x, lambda *shape: torch.zeros(5, *shape)).sum().backward()
    assert model.generator.training
    assert all(torch.equal(value, before[name]) for name, value in model.generator.state_dict().items())


def test_running_statistics_are_the_mean_over_workers(model, x):
    values = [value.clone() for value in model.buffers() if value.is_floating_point()]
    one, other = model.statistics(x), [3 * value for value in model.statistics(x)]
    other[0] = torch.ones(1).double()
    model.agree([a + b for a, b in zip(one, other, strict=True)])
    for before, after in zip(values, (v for v in model.buffers() if v.is_floating_point()), strict=True):
        torch.testing.assert_close(after, 2 * before)


def bars(n: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    place = torch.rand(n, 1, 1, generator=random)
    y = torch.linspace(-1, 1, 64)[None, :, None].expand(n, 64, 64)
    return (0.2 + 0.6 * (-8 * (y - 2 * place + 1).square()).exp())[:, None]


def test_the_critic_learns_to_tell_and_the_encoder_to_find():
    torch.manual_seed(0)
    model, patches = SMALL.build(), bars(32)
    schedule = Schedule(epochs=8, batch=8)
    history = fit(model, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)
    with torch.no_grad():
        noise = torch.rand(32, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        assert model.critic(2 * patches - 1).median() > model.critic(2 * noise - 1).median()
    found = [row["validation"] for row in history.rows if row["stage"] == 1]
    assert min(found) < 0.8 * found[0]


def test_impossible_sizes_are_refused():
    with pytest.raises(OptionError, match="at least 1"):
        Config(width=0)
