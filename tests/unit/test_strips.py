"""Strips: a row each of patches, reconstructions and draws, the same draws each time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rayad import catalog
from rayad.evaluation.strips import decoded, png, rows, strip


@pytest.mark.parametrize(
    ("name", "number"), [("cae", 3), ("bvae", 3), ("conditional_vae", 3), ("fanogan", 3), ("vqvae", 2), ("lbp", 1)]
)
def test_a_model_shows_what_it_can_draw(name, number):
    torch.manual_seed(0)
    config = catalog.configure("models", name, {} if name == "lbp" else {"width": 4})
    model, x = config.build().eval(), torch.rand(5, 1, 64, 64)
    picture = strip(rows(model, x).values())
    assert picture.shape == (number * 68, 5 * 68, 3)
    assert np.array_equal(picture, strip(rows(model, x).values()))
    assert picture[2:66, 2:66, 0] == pytest.approx(255 * x[0, 0].numpy(), abs=0.51)
    assert (picture[:2] == 255).all()


@pytest.mark.parametrize(
    "name", ["cae", "bvae", "conditional_vae", "vqvae", "implicit_field", "pca", "deep_svdd", "lbp"]
)
def test_latents_of_a_density_are_decoded_where_the_model_can(name):
    config = catalog.configure("models", name, {} if name in ("lbp", "pca", "implicit_field") else {"width": 4})
    model = config.build().eval()
    patches = decoded(model, torch.zeros(3, model.latents))
    assert patches is None if name in ("implicit_field", "pca", "lbp") else patches.shape == (3, 1, 64, 64)


def test_colours_are_shown_as_they_are():
    model = catalog.configure("models", "cae", {"width": 4, "channels": 3}).build().eval()
    x = torch.rand(2, 3, 64, 64)
    shown = np.asarray(Image.open(io.BytesIO(png(strip(rows(model, x).values())))))
    assert shown[2:66, 2:66] == pytest.approx(255 * x[0].permute(1, 2, 0).numpy(), abs=0.51)


def test_a_model_that_is_told_facts_shows_its_pictures_alone():
    """Its patches have a plane more for each fact."""
    config = catalog.configure("models", "conditional_vae", {"width": 4})
    model = config.build().eval()
    x = torch.rand(5, 1 + len(model.classes), 64, 64)
    shown = rows(model, x)
    assert [len(row) for row in shown.values()] == [5, 5, 5]
    assert strip(shown.values()).shape == (3 * 68, 5 * 68, 3)
