"""Healthy counterfactuals: of models whose answer is known, and of a tiny one that has learned stripes."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayad import bounds, catalog
from rayad.density import em, spn
from rayad.errors import ImageError, OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Prepared, Source
from rayad.scoring import counterfactual
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor, LatentScore, Part


class Linear(nn.Module):
    """Patches are sums of m patterns without overlap; the latents are their heights, so decoding loses nothing."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.decoder = nn.Sequential(nn.Linear(latents, 64 * 64, bias=False), nn.Unflatten(1, (1, 64, 64)))
        patterns = torch.zeros(latents, 64, 64)
        for i in range(latents):
            patterns[i, i * 64 // latents : (i + 1) * 64 // latents] = 1
        self.decoder[0].weight.data = patterns.flatten(1).T.contiguous()

    def encode(self, x: Tensor) -> Tensor:
        weight = self.decoder[0].weight
        return x.flatten(1) @ weight / weight.square().sum(0)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class Wrapping(nn.Module):
    """Draws what is brighter than 0.8 black."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.8, -3.0, x)


@dataclass(frozen=True)
class Plain:
    """The configuration of a part that is made by hand."""


def standard(mean: Tensor, sd: Tensor) -> spn.SPN:
    """Independent Gaussians."""
    density = spn.Config(inputs=1, depth=0, replicas=1).build(len(mean))
    density.standardization.centre.copy_(mean)
    density.standardization.scale.copy_(sd)
    return density.eval()


def detector(model: nn.Module, density: nn.Module, latents: int) -> Detector:
    preprocessing = Preprocessing(intensity="stored")
    parts = Part("linear", Plain(), model), Part("spn", Plain(), density, latents)
    return Detector("known", LatentScore(*parts), preprocessing)


def prepared(pixels: np.ndarray, tissue: np.ndarray) -> Prepared:
    return Prepared(pixels, pixels, tissue, tissue, 0.4, Source(pixels, 0.4))


def test_only_what_surprises_is_replaced_and_by_its_mean():
    density = standard(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 1.0, 10.0]))
    z = torch.tensor([[1.1, 2.0, 8.0], [1.5, 2.0, 8.0], [1.1, 6.0, -60.0]])  # sd from the mean: 1 0 .5, 5 0 .5, 1 4 6
    expected = torch.tensor([[1.1, 2.0, 8.0], [1.0, 2.0, 8.0], [1.1, 2.0, 3.0]])
    torch.testing.assert_close(counterfactual.healthy(density, z)[0], expected)


def test_the_threshold_is_in_standard_deviations_of_training():
    density = standard(torch.zeros(1), torch.tensor([100.0]))
    limit = np.sqrt(2 * counterfactual.NATS - np.log(2 * np.pi)) * 100
    z = torch.tensor([[limit - 0.1], [limit + 0.1]], dtype=torch.float32)
    assert (counterfactual.healthy(density, z)[0] != 0).tolist() == [[True], [False]]


def test_a_surprising_latent_takes_the_value_that_the_others_expect():
    """Two clusters: the second latent tells which one, though the first, far out, makes it look surprising too."""
    density = spn.Config(inputs=2, depth=0, replicas=1).build(2)
    density.leaves.mean[0] = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    density.leaves.variance[0] = 0.01
    z = torch.tensor([[9.0, -1.0], [9.0, 1.0]])
    torch.testing.assert_close(counterfactual.healthy(density, z, nats=50)[0], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_a_patch_loses_its_lesion_and_nothing_else():
    known = detector(Linear(4), standard(torch.full((4,), 0.5), torch.full((4,), 0.05)), 4)
    x = torch.full((2, 1, 64, 64), 0.5)
    x[:, :, :16] = 0.53
    x[1, :, 32:48] = 0.9
    reconstruction, healthy = counterfactual.patches(known, x)
    torch.testing.assert_close(reconstruction, x)
    torch.testing.assert_close(healthy[0], x[0])
    torch.testing.assert_close(healthy[1], x[0])


def test_an_image_loses_its_lesion_and_is_the_same_elsewhere():
    """One latent, the mean of a patch: the blend of equal patches is their value, whatever the windows."""
    known = detector(Linear(1), standard(torch.tensor([0.5]), torch.tensor([0.05])), 1)
    pixels, tissue = np.full((128, 160), 0.5, np.float32), np.zeros((128, 160), bool)
    pixels[:, 120:], tissue[:, 20:] = 1.0, True
    found = counterfactual.image(known, prepared(pixels, tissue))
    np.testing.assert_array_equal(found.pixels[:, :20], pixels[:, :20])
    np.testing.assert_array_equal(found.change[:, :20], 0)
    np.testing.assert_allclose(found.pixels[:, 20:72], 0.5, atol=1e-6)  # patches here end before the lesion
    np.testing.assert_allclose(found.pixels[:, 156:], 0.5, atol=0.02)
    assert found.change[:, 156:].min() > 0.3
    assert np.array_equal(np.isnan(found.replaced), ~tissue[8::16, 8::16])
    assert found.replaced[:, -1].min() == 1
    assert np.nanmax(found.replaced[:, :4]) == 0


def test_what_is_too_bright_is_so_however_the_decoder_draws_it():
    """A decoder that was never asked for such latents may draw them darker than black."""
    model = Linear(1)
    model.decoder.append(Wrapping())
    known = detector(model, standard(torch.tensor([0.5]), torch.tensor([0.05])), 1)
    pixels = np.full((128, 128), 1.0, np.float32)
    found = counterfactual.image(known, prepared(pixels, np.ones(pixels.shape, bool)))
    np.testing.assert_allclose(found.pixels, 0.5, atol=1e-6)
    np.testing.assert_allclose(found.change, 0.5, atol=1e-6)


def test_windows_are_tapered_so_that_neighbours_join_without_edges():
    known = detector(Linear(1), standard(torch.tensor([0.5]), torch.tensor([10.0])), 1)
    ramp = np.broadcast_to(np.linspace(0, 1, 192, dtype=np.float32), (96, 192)).copy()
    found = counterfactual.image(known, prepared(ramp, np.ones(ramp.shape, bool)))
    assert np.abs(np.diff(found.pixels, axis=1)).max() < 3 / 192
    np.testing.assert_allclose(found.pixels[:, 40:-40], ramp[:, 40:-40], atol=8 / 192)


def stripes(n: int, seed: int) -> Tensor:
    """Patches of vertical waves of random height and phase."""
    generator = torch.Generator().manual_seed(seed)
    height, phase = torch.rand(2, n, 1, 1, 1, generator=generator)
    return (0.5 + 0.2 * height * torch.sin(torch.arange(64) / 6 + 6.28 * phase)).expand(n, 1, 64, 64).contiguous()


@pytest.fixture(scope="module")
def learned() -> Detector:
    """Principal components of stripes, with a bright blob as one more direction, and a circuit over healthy ones."""
    x = stripes(600, 0)
    blob = torch.zeros(64, 64)
    blob[24:40, 24:40] = 1
    components = torch.linalg.svd(x[:60].flatten(1) - 0.5, full_matrices=False)[2][:4]
    directions = torch.cat([components, blob.flatten()[None]])
    basis = torch.linalg.qr(directions.T)[0]  # p 5
    model = Linear(5)
    model.decoder = nn.Sequential(nn.Linear(5, 64 * 64), nn.Unflatten(1, (1, 64, 64)))
    model.decoder[0].weight.data, model.decoder[0].bias.data = basis, torch.full((64 * 64,), 0.5)
    model.encode = lambda x: (x.flatten(1) - 0.5) @ basis
    noise = 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    density = spn.Config(inputs=8, depth=1, replicas=4).build(5)
    with torch.no_grad():
        z = model.encode(x + noise)
    em.fit(density, z[:500], z[500:], em.EM(epochs=20))
    return detector(model, density, 5)


def test_healthy_patches_stay_and_a_blob_goes(learned):
    x = stripes(40, 7)
    ill = x.clone()
    ill[:, :, 24:40, 24:40] += 0.3
    reconstruction, healthy = counterfactual.patches(learned, x)
    assert (healthy - reconstruction).square().mean().sqrt() < 0.01
    reconstruction, healthy = counterfactual.patches(learned, ill)
    before, after = ((y - x)[:, :, 24:40, 24:40].square().mean((1, 2, 3)).sqrt() for y in (reconstruction, healthy))
    assert (before > 0.25).all()
    assert (after < before / 3).float().mean() > 0.9


def test_a_detector_without_decoder_or_density_is_told_so(learned):
    x = stripes(1, 0)
    floor = Detector("glow", Floor("brightness"), Preprocessing())
    with pytest.raises(OptionError, match="'glow' has the score brightness"):
        counterfactual.patches(floor, x)
    (model, density), encoder = (learned.model, learned.density), nn.Identity()
    encoder.latents = density.variables
    blind = replace(learned, score=LatentScore(Part("blind", Plain(), encoder), density))
    with pytest.raises(OptionError, match="the model 'blind' has no decoder"):
        counterfactual.patches(blind, x)
    mixture = catalog.configure("density", "gaussian_mixture").build(density.variables)
    other = replace(learned, score=LatentScore(model, Part("other", Plain(), mixture, density.variables)))
    with pytest.raises(OptionError, match="the density 'other' is no circuit"):
        counterfactual.patches(other, x)
    assert counterfactual.lacking(learned) == ""


def test_a_real_model_has_a_counterfactual():
    torch.manual_seed(0)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    density = spn.Config(inputs=3, replicas=2).build(6)
    density.start(torch.randn(50, 6), 0)
    known = replace(detector(config.build().eval(), density, 6), name="cae-spn")
    pixels = np.random.default_rng(0).random((100, 90), dtype=np.float32)
    found = counterfactual.image(known, prepared(pixels, np.ones(pixels.shape, bool)))
    assert found.pixels.shape == found.change.shape == pixels.shape
    assert np.isfinite(found.pixels).all()


def test_the_healthy_version_of_a_model_that_sees_a_fact_is_that_of_the_image_s_fact():
    torch.manual_seed(0)
    config = catalog.configure("models", "conditional_vae", {"width": 4, "latents": 6})
    module = config.build().eval()
    known = detector(module, standard(torch.zeros(6), torch.full((6,), 1e9)), 6)
    assert counterfactual.lacking(known) == ""
    pixels = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    image = prepared(pixels, np.ones(pixels.shape, bool))
    image = replace(image, source=replace(image.source, density="F"))
    with torch.no_grad():
        (central,) = module.given("F").reconstruct(torch.from_numpy(pixels)[None, None])[0]
    found = counterfactual.image(known, image, step=64)  # one place, and nothing surprises
    np.testing.assert_allclose(found.pixels, central, atol=1e-5)


def striped() -> Prepared:
    """An image of stripes with a bright blob."""
    pixels = np.tile(stripes(1, 5)[0, 0].numpy(), (2, 3)).astype(np.float32)
    pixels[40:60, 60:90] = 1
    return prepared(pixels, np.ones(pixels.shape, bool))


def test_its_places_and_its_time_have_bounds(learned, monkeypatch):
    image = striped()
    with pytest.raises(ImageError, match="took longer than"), bounds.within(0.0, "score_seconds"):
        counterfactual.image(learned, image)
    monkeypatch.setenv(bounds.VARIABLE, '{"places": 3}')
    with pytest.raises(ImageError, match=r"places of the tissue are more than bounds\.places=3"):
        counterfactual.image(learned, image)


def test_latents_that_are_looked_at_in_parts_give_the_same(learned, monkeypatch):
    whole = counterfactual.image(learned, striped())
    monkeypatch.setattr(counterfactual, "TOGETHER", 3)
    parts = counterfactual.image(learned, striped())
    np.testing.assert_allclose(parts.pixels, whole.pixels, atol=1e-6)
    np.testing.assert_array_equal(parts.replaced, whole.replaced)
