"""The masked diffusion model: schedule and masks by their formulas, and what it draws into a hidden box."""

import math

import pytest
import torch

from rayad import catalog
from rayad.errors import OptionError
from rayad.fit import Schedule, batches, fit
from rayad.models.mddpm import Config, signal, without_band

SMALL = Config(width=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build().eval()


def test_the_schedule_is_the_cosine_from_all_signal_to_none():
    share = torch.linspace(0, 1, 11).double()
    truth = [
        math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2 for u in share
    ]
    assert signal(share).tolist() == pytest.approx([max(t, 1e-5) for t in truth])
    assert signal(share)[0] == 1
    assert (signal(share).diff() < 0).all()


def test_a_hidden_box_is_a_quarter_to_half_of_the_side_and_all_else_stays(model):
    x = torch.rand(200, 1, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    hidden = model._hidden(x, torch.rand(200, 4, generator=torch.Generator().manual_seed(1))) == 0
    rows, columns = hidden.any(3)[:, 0].sum(1), hidden.any(2)[:, 0].sum(1)
    assert (rows * columns == hidden.flatten(1).sum(1)).all()  # a box
    for sides in (rows, columns):
        assert 15 <= sides.min() <= 18
        assert 30 <= sides.max() <= 33
    shown = model._hidden(x, torch.rand(200, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(shown[~hidden], x[~hidden])


def test_a_band_of_frequencies_is_left_out_and_the_mean_stays():
    x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.tensor([[0.25, 0.8], [0.0, 1.0], [0.9, 0.4]], dtype=torch.float64)
    found = without_band(x, uniform)
    torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)))
    spectrum, before = torch.fft.fft2(found[0, 0]), torch.fft.fft2(x[0, 0])
    f = torch.fft.fftfreq(64, dtype=torch.float64)
    radius = 2 * (f[:, None] ** 2 + f**2).sqrt()
    ring = (radius >= 0.25) & (radius < 0.45)
    assert spectrum[ring].abs().max() < 1e-9
    torch.testing.assert_close(spectrum[~ring], before[~ring])


def test_a_box_is_drawn_from_the_rest_alone(model):
    """What lies in a box has no part in how it is drawn."""
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., :32, :32] = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.reconstruct(x)[..., :32, :32], model.reconstruct(other)[..., :32, :32])
    assert not torch.equal(model.reconstruct(x)[..., 32:, :], model.reconstruct(other)[..., 32:, :])


@pytest.mark.parametrize("hidden", ["boxes", pytest.param("frequencies", marks=pytest.mark.long)])
def test_it_learns_to_go_on(hidden):
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    columns = torch.rand(32, 1, 1, 4, generator=random).round().repeat_interleave(16, 3)  # they go on through a box
    bright = (0.2 + 0.6 * columns).expand(32, 1, 64, 64).contiguous()
    model = Config(width=4, hidden=hidden, learning_rate=5e-3).build()
    schedule = Schedule(epochs=12, batch=4, patience=12)
    before = model.eval().scores(bright)["reconstruction"].mean().item()
    fit(model, lambda epoch: batches(bright, schedule, epoch), lambda: batches(bright, schedule), schedule)
    assert model.eval().scores(bright)["reconstruction"].mean() < 0.8 * before


def test_impossible_sizes_are_refused():
    with pytest.raises(OptionError, match="at least 1, not 0"):
        Config(width=0)
    with pytest.raises(OptionError, match="boxes divide 64"):
        Config(boxes=3)
    with pytest.raises(OptionError, match="blocks and each of multiples of a diffusion model must be at least 1"):
        Config(multiples=())
    with pytest.raises(OptionError, match="maps of 40 px cannot be halved 4 times"):
        Config(multiples=(1, 1, 1, 1, 1), patch_px=40)


def test_maps_of_each_size_have_their_blocks_and_multiples():
    model, shapes = Config(width=2, multiples=(1, 3, 2), blocks=2).build().eval(), []
    for block in [*model.down, *model.up]:
        block.register_forward_hook(lambda block, given, maps: shapes.append((given[0].shape[1:], maps.shape[1:])))
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    predicted = model.predict(x, torch.tensor([1.0, 500.0]))
    assert predicted.shape == x.shape
    down = [((2, 64), (2, 64)), ((2, 64), (2, 64)), ((2, 32), (6, 32)), ((6, 32), (6, 32)), ((6, 16), (4, 16))]
    up = [((4, 16), (4, 16)), ((10, 32), (6, 32)), ((6, 32), (6, 32)), ((8, 64), (2, 64)), ((2, 64), (2, 64))]
    assert [(tuple(given[:2]), tuple(maps[:2])) for given, maps in shapes] == [*down, *up]
    assert model.encode(x).shape == (2, model.latents) == (2, 4)


def test_the_sizes_of_the_authors():
    """unet_dim, dim_mults and num_res_blocks of their code."""
    with torch.device("meta"):
        model = catalog.configure("models", "mddpm", ["preset=paper"]).build()
    assert [block.two[2].out_channels for block in model.down] == [128] * 3 + [256] * 6
    assert [block.two[2].out_channels for block in model.up] == [256] * 3 + [128] * 3
