"""What a heatmap leaves behind, with a counterfactual where the detector has one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rayad import catalog
from rayad.datasets import phantom
from rayad.density import spn
from rayad.errors import ImageError
from rayad.evaluation.heatmap import Request, files_in, named, write_heatmaps
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector, Part


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    density = spn.Config(inputs=3, replicas=2).build(6)
    density.start(torch.randn(50, 6), 0)
    parts = Part("cae", config, config.build().eval()), Part("spn", density.config, density.eval(), 6)
    one = Detector("cae-spn", "likelihood", Preprocessing(spacing_mm=0.8, intensity="relative"), *parts)
    scores = np.random.default_rng(0).normal(size=(2, 9, 9)).astype(np.float32)
    return one.calibrated(calibrate({"a": [scores[0]], "b": [scores[1]]}))


def written(detector: Detector, folder) -> dict[str, np.ndarray]:
    data = phantom.Dataset(patients=1, height=256, width=192, spacing_mm=0.8)
    pixels = (data.pixels(data.exams()[0]) * 65535).astype(np.uint16)
    Image.fromarray(pixels).save(folder / "one.png")
    rows = write_heatmaps(detector, [str(folder / "one.png")], Request(0.8, "MLO"), str(folder / "maps"))
    assert rows[0]["name"] == "one"
    assert (folder / "maps/one.png").read_bytes().startswith(b"\x89PNG")
    with np.load(folder / "maps/one.npz") as arrays:
        return dict(arrays)


def test_a_likelihood_leaves_the_healthy_version_of_the_picture_that_the_model_sees(detector, tmp_path):
    arrays = written(detector, tmp_path)
    for name in ("counterfactual", "change"):
        assert (arrays[name].shape, arrays[name].dtype) == ((256, 192), np.float32), name
        assert np.isfinite(arrays[name]).all(), name
    nothing = arrays["counterfactual"][:, -4:] if arrays["tissue"][:, 0].any() else arrays["counterfactual"][:, :4]
    assert nothing.max() == 0  # "relative" is 0 outside the breast


def test_what_has_no_density_has_no_counterfactual(detector, tmp_path):
    plain = written(replace(detector, score="reconstruction", density=None), tmp_path)
    assert {"counterfactual", "change"}.isdisjoint(plain)


@pytest.mark.parametrize("images", [[], ["empty"]])
def test_no_images_are_said_to_be_none(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=f"no image in {images[0] if images else 'an empty list'}; rayad reads .png"):
        files_in(images)


def test_names_are_those_of_files_and_of_folders_where_two_have_the_same():
    signed = "https://host/a/1.png?signature=b/2.png"
    assert named([signed, "s3://b/left/3.png", "s3://b/right/3.dcm", "/in/1.2.840"]) == [
        (signed, "1"),
        ("s3://b/left/3.png", "left-3"),
        ("s3://b/right/3.dcm", "right-3"),
        ("/in/1.2.840", "1.2.840"),
    ]
