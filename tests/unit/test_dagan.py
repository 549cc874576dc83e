"""DAGAN: its losses by hand, a discriminator that learns to tell, workers that learn what one learns, its collapses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from workers import in_threads

from rayad import catalog
from rayad.errors import OptionError, TrainingError
from rayad.fit import ALONE, Objective, Pass, Schedule, batches, fit
from rayad.models._blocks import BatchNorm
from rayad.models.dagan import Config, DualAutoencoderGAN, SkipGenerator, difference
from rayad.scoring import dense

SMALL = Config(width=4, latents=6)


@pytest.fixture
def model() -> DualAutoencoderGAN:
    torch.manual_seed(0)
    return SMALL.build().double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw(*shape: int) -> torch.Tensor:
    raise AssertionError("nothing is drawn")


def bars(n: int, seed: int) -> torch.Tensor:
    """Patches with one bright soft bar."""
    place = torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(seed))
    y = torch.linspace(-1, 1, 64)[None, :, None].expand(n, 64, 64)
    return (0.2 + 0.6 * (-8 * (y - 2 * place + 1).square()).exp())[:, None]


def root_mean_square(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Patch by patch, by numpy."""
    pairs = zip(a.detach().numpy(), b.detach().numpy(), strict=True)
    return np.array([np.sqrt(np.mean((one - other) ** 2)) for one, other in pairs])


def test_losses_and_scores_are_sums_of_root_mean_square_differences(model, x):
    generated, repeated = model.reconstruct(x), model.decoder(model.encoder(x))
    of_generator, of_discriminator = root_mean_square(x, generated), root_mean_square(x, repeated)
    adversarial = root_mean_square(repeated, model.decoder(model.encoder(generated)))
    assert adversarial.min() > 1e-3
    np.testing.assert_allclose(model.generator_loss(x, draw).detach(), 40 * of_generator + adversarial)
    capped = replace(SMALL, margin=float(adversarial.mean()), adversarial=2.0, contextual=3.0)
    model.config = capped
    np.testing.assert_allclose(model.generator_loss(x, draw).detach(), 3 * of_generator + 2 * adversarial)
    truth = of_discriminator - 2 * np.minimum(adversarial, capped.margin)
    np.testing.assert_allclose(model.discriminator_loss(x, draw).detach(), truth)
    scores = {name: score.detach().numpy() for name, score in model.scores(x).items()}
    np.testing.assert_allclose(scores["reconstruction"], of_generator)
    np.testing.assert_allclose(scores["discriminator"], of_discriminator)


def test_gradients_are_those_of_finite_differences(model, x):
    """Of each loss along a random direction of its own parameters; the other network's have no part in it."""
    for item in model.stages()[0]:
        gradients = torch.autograd.grad(item.loss(x, draw).sum(), item.parameters)
        direction = [torch.randn_like(parameter) for parameter in item.parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for parameter, change in zip(item.parameters, direction, strict=True):
                    parameter += step * change
                values.append(float(item.loss(x, draw).sum()))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3)


def test_each_network_has_its_own_parameters_and_only_the_generator_normalizes(model):
    discriminator, generator = (item.parameters for item in model.stages()[0])
    assert {id(p) for p in discriminator}.isdisjoint({id(p) for p in generator})
    assert len(discriminator) + len(generator) == len(list(model.parameters()))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in [*model.encoder.modules(), *model.decoder.modules()])
    assert all(isinstance(layer, BatchNorm) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_what_is_equal_has_a_difference_of_zero_with_a_gradient_of_zero(x):
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(difference(x, x.detach()).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("side", "widths"), [(64, [4, 8, 16, 32, 32, 32]), (96, [4, 8, 16, 32, 32]), (40, [4, 8, 16])])
def test_maps_are_halved_as_often_as_the_side_allows(side, widths):
    generator = SkipGenerator(3, 4, side)
    assert [layer[-1 if isinstance(layer[-1], nn.Conv2d) else -2].out_channels for layer in generator.down] == widths
    assert generator.eval()(torch.rand(2, 3, side, side)).shape == (2, 3, side, side)


def test_the_paper_has_maps_from_64_to_512_channels_and_weights_40_to_1():
    config = catalog.configure("models", "dagan", ["preset=paper"])
    with torch.device("meta"):
        model = config.build()
    convolutions = [layer for layer in model.generator.down.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 512, 512]
    assert (config.contextual, config.adversarial, config.learning_rate) == (40, 1, 1e-3)


def test_a_handed_over_map_reaches_the_picture_past_the_smallest(model, x):
    """Without skips a patch and its shuffled quarters could not differ where the smallest maps say nothing."""
    for parameter in model.generator.down[-1].parameters():
        parameter.data.zero_()
    assert (model.reconstruct(x) - model.reconstruct(x.flip(3))).abs().max() > 1e-3


@torch.no_grad()
def test_whole_images_get_what_their_patches_get(model):
    pixels, step = np.random.default_rng(0).random((128, 112), np.float32), 16
    rows, columns = dense.places(*pixels.shape, step)
    padded = np.pad(pixels, 32, mode="reflect")
    x = torch.from_numpy(np.stack([padded[r : r + 64, c : c + 64] for r in rows for c in columns]))[:, None].double()
    torch.testing.assert_close(dense.encode(model, pixels, step), model.encode(x))
    for name, truth in model.scores(x).items():
        found = dense.patch_scores(model, lambda x, name=name: model.scores(x)[name], pixels, step)
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def learned(x: torch.Tensor, world: int, schedule: Schedule) -> list[DualAutoencoderGAN]:
    """The models of all workers."""
    torch.manual_seed(0)
    models = [SMALL.build() for _ in range(world)]

    def work(sync) -> None:
        fit(
            models[sync.rank],
            lambda epoch: batches(x, schedule, epoch, sync=sync),
            lambda: batches(x, schedule, sync=sync),
            schedule,
            sync=sync,
        )

    in_threads(world, work) if world > 1 else work(ALONE)
    return models


def test_workers_learn_what_one_learns():
    x, schedule = bars(14, 0), Schedule(epochs=2, batch=7, precision="float64")
    (one,), many = learned(x, 1, schedule), learned(x, 3, schedule)
    for model in many:
        for name, value in one.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_the_discriminator_tells_what_the_generator_made_and_the_generator_comes_closer():
    torch.manual_seed(0)
    model, x, schedule = SMALL.build(), bars(48, 0), Schedule(epochs=20, batch=8, patience=20)
    with torch.no_grad():
        before = model.eval().scores(bars(32, 1))
    history = fit(model, lambda epoch: batches(x, schedule, epoch), lambda: batches(bars(16, 2), schedule), schedule)
    with torch.no_grad():
        after, noise = model.scores(bars(32, 1)), model.scores(torch.rand(32, 1, 64, 64))
    assert after["reconstruction"].mean() < 0.5 * before["reconstruction"].mean()
    assert after["discriminator"].mean() < 0.8 * before["discriminator"].mean()
    assert after["reconstruction"].max() < noise["reconstruction"].min()
    assert after["discriminator"].max() < noise["discriminator"].min()
    assert history.rows[-1]["generator_spread"] > 0.5
    assert history.rows[-1]["discriminator_spread"] > 0.1


@torch.no_grad()
def test_spreads_are_the_variance_of_pictures_beside_that_of_patches(model, x):
    row = model.check_spread([a + b for a, b in zip(model.moments(x[:2]), model.moments(x[2:]), strict=True)])
    variance = x.numpy().var(0).mean()
    assert row["generator_spread"] == pytest.approx(model.reconstruct(x).numpy().var(0).mean() / variance)
    assert row["discriminator_spread"] == pytest.approx(model.discriminate(x).numpy().var(0).mean() / variance)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@torch.no_grad()
def test_a_network_with_one_picture_for_all_ends_training(model, x, network):
    constant = model.generator.up[-1][-1].weight if network == "generator" else model.decoder.head.weight
    constant.zero_()
    with pytest.raises(TrainingError, match=f"collapse: the {network} gives one picture for all 5 patches; lower the"):
        model.check_spread(model.moments(x))


def test_the_check_is_the_last_stage(model):
    assert [[type(item) for item in stage] for stage in model.stages()] == [[Objective, Objective], [Pass]]


def test_a_loss_that_is_not_a_number_ends_training_with_epoch_and_step():
    model, schedule = SMALL.build(), Schedule(epochs=1, batch=4)
    x = bars(8, 0)
    x[3, 0, 5, 5] = torch.nan
    with pytest.raises(TrainingError, match=r"discriminator: loss nan .* in epoch 1, step 1"):
        fit(model, lambda epoch: batches(x, schedule), lambda: batches(x, schedule), schedule)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"latents": 0}, {"contextual": 0.0}, {"adversarial": -1.0}])
def test_impossible_sizes_and_weights_are_refused(wrong):
    with pytest.raises(OptionError, match="at least 1, contextual above 0, adversarial at least 0, not "):
        Config(**wrong)
