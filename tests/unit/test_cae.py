"""The convolutional autoencoder: the sizes of the paper, and a decoder that reaches every pixel."""

import pytest
import torch
from torch import nn

from rayad.errors import OptionError
from rayad.models._blocks import Decoder, ToPixels, side_of
from rayad.models.cae import Config


def sides(cells: nn.Sequential, x: torch.Tensor) -> list[tuple[int, int]]:
    """Channels and side after each convolution."""
    found = []
    for layer in cells:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            found.append((x.shape[1], x.shape[2]))
    return found


@pytest.mark.parametrize(
    ("padding", "down", "up"),
    [
        ("valid", [(32, 30), (64, 13), (128, 5)], [(64, 13), (32, 30), (1, 64)]),
        ("same", [(32, 32), (64, 16), (128, 8)], [(64, 16), (32, 32), (1, 64)]),
    ],
)
def test_the_layers_have_the_sizes_of_the_paper(padding, down, up):
    model = Config(padding=padding).build()
    x = torch.rand(2, 1, 64, 64)
    assert sides(model.encoder.cells, x) == down
    assert sides(model.decoder.pixels, model.decoder.head(model.encode(x))) == up
    assert model.encoder.head.out_features == 64


def test_cells_of_an_image_contain_those_of_its_patches():
    """A window of 5x5 cells at a distance of 8 px from the next."""
    model = Config(width=4).build().double()
    x = torch.rand(1, 1, 96, 112, dtype=torch.float64)
    cells = model.encoder.cells(x)
    assert cells.shape[2:] == (9, 11)
    torch.testing.assert_close(cells[..., 2:7, 6:11], model.encoder.cells(x[..., 16:80, 48:112]), rtol=0, atol=1e-14)


def test_a_window_does_not_see_the_last_three_pixels():
    model = Config(width=4).build()
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    (seen,) = torch.autograd.grad(model.encoder.cells(x).sum(), x)
    assert (seen[0, 0, :61, :61] != 0).all()
    assert (seen[0, 0, 61:] == 0).all()
    assert (seen[0, 0, :, 61:] == 0).all()


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_pixel_of_a_reconstruction_depends_on_the_latents(padding):
    """With 5x5 kernels and output padding the last row and column would be constants."""
    torch.manual_seed(0)
    decoder = Decoder(1, 8, 16, padding)
    pixels = decoder(torch.randn(200, 16)).detach()[:, 0]
    spread = pixels.std(0)
    assert spread.min() > 0.01 * spread.median()


def test_layers_keep_channels_last():
    """Several times faster on CPUs; a single channel is easily taken for channels first."""
    model, x = Config(width=4).build(), torch.rand(1, 1, 96, 128)
    for layer in model.encoder.cells:
        x = layer(x)
        assert isinstance(layer, nn.Conv2d) <= x.is_contiguous(memory_format=torch.channels_last)


def test_the_score_is_the_mean_squared_error():
    model, x = Config(width=4).build(), torch.rand(3, 1, 64, 64)
    errors = (x - model.reconstruct(x)).detach().numpy() ** 2
    assert model.scores(x)["reconstruction"].tolist() == pytest.approx(errors.mean((1, 2, 3)).tolist(), rel=1e-5)


def test_activations_keep_their_scale_at_the_start():
    torch.manual_seed(0)
    model, x = Config().build(), torch.rand(8, 1, 64, 64)
    assert 0.3 < (model.encoder.cells(x).std() / (x - 0.5).std()).item() < 3
    assert 0.2 < ((model.reconstruct(x) - 0.5).std() / model.encode(x).std()).item() < 5


def test_colour_patches_have_three_channels():
    model, x = Config(width=4, channels=3).build(), torch.rand(2, 3, 64, 64)
    assert model.reconstruct(x).shape == x.shape


def test_other_paddings_are_an_error():
    with pytest.raises(OptionError, match="padding must be valid or same, not 'reflect'"):
        side_of("reflect")


@pytest.mark.parametrize(("kernel", "paddings"), [(6, (0, 0)), (5, (2, 1))])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_a_transposed_convolution(kernel, paddings, channels):
    torch.manual_seed(0)
    usual = nn.ConvTranspose2d(8, channels, kernel, 2, *paddings).double()
    pixels = ToPixels(8, channels, kernel, 2, *paddings).double()
    pixels.load_state_dict(usual.state_dict())
    for n in (3, 0):
        x = torch.randn(n, 8, 7, 7, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(pixels(x), usual(x))
        with torch.no_grad():
            torch.testing.assert_close(pixels(x), usual(x))
        gradients = [
            torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]) for layer in (pixels, usual)
        ]
        torch.testing.assert_close(*gradients)
