"""The network that finds drawn lesions: what is drawn, what it looks at, and that it learns to find them."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats
from sklearn.metrics import roc_auc_score
from workers import in_threads

from rayad.errors import OptionError
from rayad.fit import ALONE, Schedule, batches, fit
from rayad.models import _lesions
from rayad.models._lesions import NUMBERS, with_lesions
from rayad.models.synthetic_lesions import Config, Others, SyntheticLesions, reach
from rayad.scoring import dense

CONTRAST = (0.05, 0.5)
MASS, SPECKS = 1 + 2 * _lesions.CENTRES, 1 + 2 * _lesions.CENTRES + _lesions.MASS_NUMBERS
"""Where the numbers of a mass and of specks begin."""


def numbers(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, NUMBERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tissue(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth healthy patches, nowhere 0."""
    noise = np.random.default_rng(seed).normal(size=(n, 64, 64))
    smooth = ndimage.gaussian_filter(noise, (0, 4, 4))
    return torch.from_numpy(0.3 + 0.1 * smooth / smooth.std())[:, None].clamp(0.01, 1)


def centred(u: torch.Tensor, row: float = 0.5, column: float = 0.5) -> torch.Tensor:
    """With every lesion at one place."""
    u[:, 1 : 1 + 2 * _lesions.CENTRES] = torch.tensor([row, column] * _lesions.CENTRES).to(u)
    return u


def smooth_disc(u: torch.Tensor) -> torch.Tensor:
    """Masses that are discs of 8 px without lobes, spicules or another patch, brighter by 0.2."""
    u = centred(u)
    u[:, 0] = 0
    mass = u[:, MASS:]
    mass[:, 0] = math.log(8) / math.log(8)  # the largest
    mass[:, 1] = 1  # as wide as long
    mass[:, 4], mass[:, 5], mass[:, 7] = 1, 1, 0
    mass[:, 8] = math.log(0.2 / CONTRAST[0]) / math.log(CONTRAST[1] / CONTRAST[0])
    mass[:, 10 : 10 + _lesions.LOBES] = 0
    return u


def test_a_plain_mass_is_a_disc_whose_border_is_a_logistic_function():
    x = torch.full((1, 1, 64, 64), 0.3, dtype=torch.float64)
    u = smooth_disc(numbers(1))
    drawn, truth = with_lesions(x, torch.zeros_like(x), u, "masses", 8.0, CONTRAST)
    softness = 0.03 * (0.5 / 0.03) ** float(u[0, MASS + 3])
    for row, column in ((32, 32), (32, 39), (32, 40), (24, 32), (27, 27), (50, 10)):
        distance = math.hypot(row + 0.5 - 32.5, column + 0.5 - 32.5)
        outline = stats.logistic.cdf((1 - distance / 8) / softness) / stats.logistic.cdf(1 / softness)
        assert float(drawn[0, 0, row, column]) == pytest.approx(0.3 + 0.2 * outline, abs=1e-9)
        assert bool(truth[0, row, column]) == (outline > 0.5)
    assert float(truth.sum()) == pytest.approx(math.pi * 64, rel=0.1)


def test_half_of_the_patches_have_a_lesion_and_the_others_stay_as_they_are():
    x, n = tissue(400), 400
    for kind in ("all", "masses", "specks"):
        drawn, truth = with_lesions(x, x.roll(1, 0), numbers(n), kind, 16.0, CONTRAST)
        marked = truth.flatten(1).any(1)
        changed = (drawn != x).flatten(1).any(1)
        assert stats.binomtest(int(changed.sum()), n, 0.5).pvalue > 1e-3
        assert not (marked & ~changed).any()
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_a_region_of_another_patch_is_faded_in():
    """Without added brightness a lesion is the two patches' mixture, by the share and the outline."""
    x = tissue(64)
    foreign, u = x.roll(7, 0), centred(numbers(64))
    u[:, 0], u[:, MASS + 4], u[:, MASS + 5], u[:, MASS + 7] = 0, 1, 0, 1  # a mass without spicules, faded, not brighter
    u[:, MASS + 3] = 0  # with a sharp border
    drawn, _ = with_lesions(x, foreign, u, "masses", 16.0, CONTRAST)
    share = torch.maximum(u[:, MASS + 6], u[:, MASS + 9].sqrt())[:, None]
    expected = (1 - share) * x[:, :, 32, 32] + share * foreign[:, :, 32, 32]
    torch.testing.assert_close(drawn[:, :, 32, 32], expected, rtol=1e-6, atol=1e-6)


def test_spicules_reach_beyond_the_mass_and_stay_narrow():
    x = torch.full((40, 1, 64, 64), 0.3, dtype=torch.float64)
    plain, spiculated = smooth_disc(numbers(40)), smooth_disc(numbers(40))
    spiculated[:, MASS + 4] = 0
    (_, disc), (_, star) = (with_lesions(x, x, u, "masses", 8.0, CONTRAST) for u in (plain, spiculated))
    assert (star >= disc).all()
    beyond = torch.from_numpy(np.hypot(*np.mgrid[-32:32, -32:32]) > 13)
    assert (star.bool() & beyond).flatten(1).any(1).all()
    assert float((star - disc).sum((1, 2)).max()) < float(disc.sum((1, 2)).min())


def count(mask: np.ndarray) -> int:
    """Connected regions."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, np.ones((3, 3)), output=labels)
    return int(labels.max())


def test_specks_are_few_and_small():
    x, u = torch.full((60, 1, 64, 64), 0.3), centred(numbers(60)).float()
    u[:, 0] = 0
    drawn, truth = with_lesions(x, x, u, "specks", 16.0, CONTRAST)
    for patch, mask in zip(drawn[:, 0].numpy(), truth.numpy(), strict=True):
        assert 1 <= count(mask) <= _lesions.SPECKS
        assert np.ptp(patch) <= CONTRAST[1] + 1e-6
        assert ndimage.maximum_filter(mask, 3).sum() <= 40 * _lesions.SPECKS
    assert np.mean([count(mask) for mask in truth.numpy()]) > 3


def test_a_lesion_lies_in_no_background():
    """Of four places the first that is not 0; three quarters of a patch are 0 here, which all four hit in a third."""
    x = torch.zeros(400, 1, 64, 64)
    x[:, :, 32:, 32:] = 0.4
    u = numbers(400).float()
    u[:, 0] = 0
    places = _lesions._centre(x, u[:, 1 : 1 + 2 * _lesions.CENTRES])
    inside = ((places > 32).all(1)).numpy()
    assert stats.binomtest(int(inside.sum()), 400, 1 - 0.75**4).pvalue > 1e-3


SIDES = [(32, 8), (40, 8), (64, 8), (64, 16), (128, 16), (232, 8), (256, 8)]


@pytest.mark.parametrize(("patch_px", "middle_px"), SIDES)
def test_the_middle_depends_on_nothing_outside_the_patch(patch_px, middle_px):
    torch.manual_seed(0)
    model = Config(width=2, patch_px=patch_px, middle_px=middle_px).build().double().eval()
    side = patch_px + 64
    x = torch.rand(1, 1, side, side, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model.windows(model.log_odds(x), 1)[0, 32, 32], x)
    seen = np.abs(np.argwhere(gradient[0, 0].numpy()) - (side - 1) / 2).max()
    assert patch_px / 5 < seen <= patch_px / 2
    assert seen <= reach(int(math.log2(model.stride))) + middle_px / 2


@pytest.mark.parametrize(("patch_px", "step"), [(64, 8), (64, 4), (64, 12), (64, 5), (32, 8), (128, 16)])
def test_a_whole_image_scores_as_its_patches_do(patch_px, step):
    torch.manual_seed(0)
    model = Config(width=4, patch_px=patch_px).build().double().eval()
    height, width = 620 if step == 8 else 150, patch_px + 37  # of two tiles, or of one
    pixels = np.random.default_rng(0).random((height, width)).astype(np.float32)
    rows, columns = dense.places(height, width, step)
    mask = np.random.default_rng(1).random((len(rows), len(columns))) > 0.7
    patches = dense.patch_scores(model, lambda x: model.scores(x)["lesion"], pixels, step, mask)
    torch.testing.assert_close(dense.pixel_scores(model, "lesion", pixels, step, mask), patches, rtol=1e-10, atol=1e-10)


def test_the_score_is_the_log_odds_of_the_mean_probability():
    torch.manual_seed(0)
    model, x = Config(width=2, middle_px=16).build().double().eval(), tissue(5)
    p = special.expit(model.log_odds(x).detach().numpy())[:, 24:40, 24:40].mean((1, 2))
    np.testing.assert_allclose(model.scores(x)["lesion"].detach().numpy(), special.logit(p), rtol=1e-9)


def test_others_are_of_the_whole_batch():
    x = torch.arange(7.0)[:, None, None, None].expand(-1, 1, 4, 4)
    one = Others().train()(x)
    assert one[:, 0, 0, 0].tolist() == [4, 5, 6, 0, 1, 2, 3]
    seen = {}

    def work(sync) -> None:
        others = Others().train()
        others.sync = sync
        rows = slice(7 * sync.rank // 3, 7 * (sync.rank + 1) // 3)
        seen[sync.rank] = others(x[rows])

    in_threads(3, work)
    assert torch.equal(torch.cat([seen[rank] for rank in range(3)]), one)


@pytest.mark.parametrize("world", [2, 3])
def test_many_workers_learn_what_one_learns(world):
    x = tissue(14)
    schedule = Schedule(epochs=2, batch=7, precision="float64")

    def learned(number: int) -> list[SyntheticLesions]:
        torch.manual_seed(0)
        models = [Config(width=2).build() for _ in range(number)]

        def work(sync) -> None:
            model, own = models[sync.rank], {"sync": sync}
            fit(model, lambda e: batches(x, schedule, e, **own), lambda: batches(x, schedule, **own), schedule, **own)

        in_threads(number, work) if number > 1 else work(ALONE)
        return models

    (one,) = learned(1)
    for model in learned(world):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_it_learns_to_find_what_was_drawn_by_another_hand():
    """Bright Gaussian blobs in patches that it has not seen, drawn here."""
    torch.manual_seed(0)
    model, x = Config(width=4, learning_rate=3e-3).build(), tissue(256).float()
    schedule = Schedule(epochs=6, batch=16, patience=6)
    fit(model, lambda e: batches(x, schedule, e), lambda: batches(x[:64], schedule), schedule)
    healthy = tissue(100, seed=1).float()
    rows, columns = np.mgrid[-32:32, -32:32]
    blob = torch.from_numpy(0.25 * np.exp(-(rows**2 + columns**2) / (2 * 5.0**2))).float()
    scores = [model.scores(patches)["lesion"].detach().numpy() for patches in (healthy, (healthy + blob).clamp(0, 1))]
    assert roc_auc_score(np.repeat([0, 1], 100), np.concatenate(scores)) > 0.9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"faintest": 0.0}, "faintest must be above 0 and below brightest, not 0.0 and 0.5"),
        ({"faintest": 0.6}, "below brightest, not 0.6 and 0.5"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"patch_px": 32, "middle_px": 16}, "middle_px must be even and 18 px less .* not 16 of 32"),
        ({"middle_px": 9}, "middle_px must be even"),
        ({"largest_px": 0.5}, "largest_px must be at least 1 px, not 0.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(OptionError, match=sentence):
        Config(**settings)
