"""Dense scoring against the definition: the patch of every place, cut out of the image continued by reflection."""

import numpy as np
import pytest
import torch
from torch import nn

from rayad import catalog
from rayad.arrays import Pixels
from rayad.errors import ImageError
from rayad.imaging.picture import Prepared, Source
from rayad.models import bvae, cae, vqvae
from rayad.scoring import dense, residuals
from rayad.scoring.scores import Conditional, ModelScore, Part
from rayad.tensors import Latents, Patches


def image(h: int, w: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).random((h, w), np.float32)


def model(dtype: torch.dtype = torch.float32, **sizes) -> nn.Module:
    torch.manual_seed(1)
    return cae.Config(width=4, latents=6, **sizes).build().to(dtype).eval()


def patch(pixels: Pixels, row: int, column: int) -> Pixels:
    """By the definition in rayad/arrays.py, with the reflection written out."""

    def reflected(i: np.ndarray, n: int) -> np.ndarray:
        return n - 1 - np.abs(n - 1 - np.abs(i))

    rows = reflected(np.arange(row - 32, row + 32), pixels.shape[0])
    columns = reflected(np.arange(column - 32, column + 32), pixels.shape[1])
    return pixels[np.ix_(rows, columns)]


def by_definition(encoder: nn.Module, pixels: Pixels, step: int) -> Latents:
    h, w = pixels.shape
    cut = [patch(pixels, r, c) for r in range(step // 2, h, step) for c in range(step // 2, w, step)]
    x = torch.from_numpy(np.stack(cut))[:, None].to(next(encoder.parameters()))
    with torch.no_grad():
        return torch.cat([encoder.encode(part) for part in x.split(100)])


def difference(a: Latents, b: Latents) -> float:
    """Relative to the scale of the latents."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.std())


SIZES = [(64, 64), (65, 67), (71, 200), (130, 97), (128, 256)]


@pytest.mark.parametrize("step", [8, 16, 24])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_dense_latents_are_those_of_the_patches(h, w, step):
    pixels = image(h, w)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        encoder = model(dtype)
        latents = dense.encode(encoder, pixels, step)
        assert latents.dtype == dtype
        assert difference(latents, by_definition(encoder, pixels, step)) < tolerance


def test_a_full_sized_encoder_is_as_exact():
    torch.manual_seed(0)
    for config in (cae.Config(), bvae.Config()):
        encoder, pixels = config.build().eval(), image(101, 133)
        assert difference(dense.encode(encoder, pixels, 16), by_definition(encoder, pixels, 16)) < 1e-5


def test_bfloat16_is_close():
    pixels = image(130, 97)
    low = dense.encode(model(torch.bfloat16), pixels, 16)
    assert low.dtype == torch.float32
    assert difference(low, dense.encode(model(), pixels, 16)) < 0.1


@pytest.mark.parametrize("step", [5, 12, 16, 100])
def test_the_patch_loop_takes_any_step(step):
    encoder, pixels = model(torch.float64), image(90, 131)
    truth = by_definition(encoder, pixels, step)
    assert difference(dense.encode(encoder, pixels, step), truth) < 1e-12
    assert difference(dense.encode_patches(encoder, pixels, step, batch=7), truth) < 1e-12


@pytest.mark.parametrize("step", [64, 80, 128])
def test_steps_beyond_a_patch_leave_cells_out(step):
    encoder, pixels = model(torch.float64), image(300, 290)
    assert difference(dense.encode(encoder, pixels, step), by_definition(encoder, pixels, step)) < 1e-12


def test_padded_convolutions_go_patch_by_patch():
    encoder, pixels = model(torch.float64, padding="same"), image(70, 90)
    assert difference(dense.encode(encoder, pixels, 16), by_definition(encoder, pixels, 16)) < 1e-12


@pytest.mark.parametrize("tile", [(64, 64), (80, 100), (96, 512)])
def test_tiles_do_not_show(tile, monkeypatch):
    encoder, pixels = model(torch.float64), image(150, 210)
    whole = dense.encode(encoder, pixels, 8)
    monkeypatch.setattr(dense, "TILE", tile)
    assert difference(dense.encode(encoder, pixels, 8), whole) < 1e-12


@pytest.mark.parametrize("step", [8, 12, 16])
def test_a_mask_picks_its_places_row_by_row(step):
    encoder, pixels = model(torch.float64), image(150, 210)
    rows, columns = dense.places(150, 210, step)
    mask = np.zeros((len(rows), len(columns)), bool)
    mask[2:7, 4:9] = np.random.default_rng(2).random((5, 5)) < 0.4
    mask[-1, -1] = True
    everywhere = by_definition(encoder, pixels, step)
    assert difference(dense.encode(encoder, pixels, step, mask), everywhere[mask.ravel()]) < 1e-12


@pytest.mark.parametrize("step", [8, 12, 16])
def test_images_that_are_scored_together_score_as_alone(step, monkeypatch):
    """Of many sizes, in tiles of many sizes, with any mask; 12 px goes patch by patch."""
    monkeypatch.setattr(dense, "TILE", (96, 128))
    encoder, images = model(torch.float64), [image(h, w, seed) for seed, (h, w) in enumerate([*SIZES, (300, 90)])]
    masks = []
    for seed, pixels in enumerate(images):
        rows, columns = dense.places(*pixels.shape, step)
        masks.append(np.random.default_rng(seed).random((len(rows), len(columns))) < 0.5)
    masks[1][:] = False
    together = dense.latent_scores_together(encoder, lambda z: z.sum(1), images, step, masks)
    for pixels, mask, found in zip(images, masks, together, strict=True):
        alone = by_definition(encoder, pixels, step)[mask.ravel()].sum(1)
        assert found.shape == alone.shape
        np.testing.assert_allclose(found, alone, rtol=1e-10, atol=1e-10)


def error(of: nn.Module):
    return lambda x: of.scores(x)["reconstruction"]


def test_an_empty_mask_gives_nothing():
    nowhere = np.zeros((5, 5), bool)
    assert dense.encode(model(), image(80, 80), 16, nowhere).shape == (0, 6)
    assert dense.encode_patches(model(), image(80, 80), 16, nowhere).shape == (0, 6)
    assert dense.patch_scores(model(), error(model()), image(80, 80), 16, nowhere).shape == (0,)


def test_only_tissue_is_convolved(monkeypatch):
    encoder, pixels, seen = model(), image(300, 300), []
    encoder.encoder.cells.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    mask = np.zeros((19, 19), bool)
    mask[3:5, 10:14] = True
    dense.encode(encoder, pixels, 16, mask)
    assert seen == [(1, 1, 16 + 64, 48 + 64)]


def test_latents_do_not_run_the_decoder():
    encoder = model()
    encoder.decoder.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    dense.encode(encoder, image(80, 80), 16)
    dense.encode_patches(encoder, image(80, 80), 16)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_reconstruction_scores_are_those_of_the_patches(padding):
    scorer, pixels = model(torch.float64, padding=padding), image(90, 131)
    mask = np.random.default_rng(3).random((6, 8)) < 0.5
    places = [(8 + 16 * k, 8 + 16 * j) for k, j in np.argwhere(mask)]
    x = torch.from_numpy(np.stack([patch(pixels, r, c) for r, c in places]))[:, None].double()
    with torch.no_grad():
        truth = (x - scorer.reconstruct(x)).square().mean((1, 2, 3))
    found = dense.patch_scores(scorer, error(scorer), pixels, 16, mask, batch=5)
    assert found.numpy() == pytest.approx(truth.numpy(), rel=1e-12)
    decoded = dense.residual_scores(scorer, residuals.squared, pixels, 16, mask)
    assert decoded.numpy() == pytest.approx(truth.numpy(), rel=1e-12)


@pytest.mark.parametrize("name", ["reconstruction", "squared", "maximum", "ssim"])
@pytest.mark.parametrize("plugin", ["cae", "bvae", "vqvae", "conditional_vae"])
def test_residuals_of_what_is_decoded_from_latents_are_the_models_own(plugin, name):
    torch.manual_seed(0)
    config = catalog.configure("models", plugin, {"width": 4})
    module, pixels, tissue = config.build().double().eval(), image(130, 150), np.ones((130, 150), bool)
    source = Source(pixels, 0.4, density="D")
    found = ModelScore(Part(plugin, config, module), name).places(
        Prepared(pixels, pixels, tissue, tissue, 0.4, source), 16, np.ones((8, 9), bool)
    )
    given = module.given("D") if isinstance(module, Conditional) else module
    assert isinstance(given, dense.Decoding)
    x = [patch(pixels, r, c) for r in range(8, 130, 16) for c in range(8, 150, 16)]
    patches = torch.from_numpy(np.stack(x))[:, None].double()
    with torch.no_grad():
        own = given.scores(patches) | {
            n: f(patches, given.reconstruct(patches)) for n, f in residuals.OPERATORS.items()
        }
    np.testing.assert_allclose(found, own[name], rtol=1e-9)


@pytest.mark.parametrize(("h", "w"), [(63, 100), (100, 63), (1, 1)])
def test_an_image_smaller_than_a_patch_is_refused(h, w):
    scores = dense.encode, dense.encode_patches, lambda m, *rest: dense.patch_scores(m, error(m), *rest)
    for score in scores:
        with pytest.raises(ImageError, match=f"64x64 px.*{h}x{w}"):
            score(model(), image(h, w), 16)


def test_places_are_centred_in_their_steps():
    rows, columns = dense.places(33, 64, 16)
    assert rows.tolist() == [8, 24]
    assert columns.tolist() == [8, 24, 40, 56]
    assert dense.places(40, 40, 8)[0].tolist() == [4, 12, 20, 28, 36]


class Mean(nn.Module):
    """A model without convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def encode(self, x: Patches) -> Latents:
        return x.flatten(1).mean(1, keepdim=True) * self.weight


def test_a_model_without_an_encoder_goes_patch_by_patch():
    pixels = image(80, 80)
    means = dense.encode(Mean(), pixels, 40)[:, 0]
    truth = [patch(pixels, r, c).mean() for r in (20, 60) for c in (20, 60)]
    assert means.numpy() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("step", [8, 16, 20])
def test_the_likelihood_in_one_pass_is_that_of_all_latents(step, monkeypatch):
    encoder, pixels = model(torch.float64), image(190, 230)
    mask = np.random.default_rng(0).random([len(p) for p in dense.places(190, 230, step)]) < 0.6

    def log_prob(z):
        return -z.square().sum(1)

    truth = -log_prob(dense.encode(encoder, pixels, step, mask))
    monkeypatch.setattr(dense, "TILE", (96, 128))
    torch.testing.assert_close(dense.likelihood(encoder, log_prob, pixels, step, mask), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [8, 16])
def test_codes_of_a_whole_image_are_those_of_its_patches(step):
    torch.manual_seed(0)
    quantized = vqvae.Config(width=4, codes=16, embedding=8, padding="valid").build().double()
    pixels = image(120, 150)
    assert torch.equal(dense.encode(quantized, pixels, step), dense.encode_patches(quantized, pixels, step))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_colour_images_are_scored_as_their_patches(padding):
    torch.manual_seed(0)
    coloured = cae.Config(width=4, latents=6, channels=3, padding=padding).build().double()
    pixels = np.random.default_rng(4).random((90, 110, 3), dtype=np.float32)
    rows, columns = dense.places(90, 110, 16)
    padded = np.pad(pixels, ((32, 32), (32, 32), (0, 0)), mode="reflect")
    x = torch.stack([torch.from_numpy(padded[r : r + 64, c : c + 64]).movedim(2, 0) for r in rows for c in columns])
    with torch.no_grad():
        truth, errors = coloured.encode(x.double()), coloured.scores(x.double())["reconstruction"]
    torch.testing.assert_close(dense.encode(coloured, pixels, 16), truth)
    torch.testing.assert_close(dense.patch_scores(coloured, error(coloured), pixels, 16), errors)
