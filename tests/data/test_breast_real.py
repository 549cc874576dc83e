"""Breast and muscle masks on real film: against hand-drawn masks of DDSM, and the oddities of mini-MIAS."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from rayad.arrays import Mask
from rayad.imaging import dicom, raster
from rayad.imaging.breast import find_breast, find_pectoral, skin_distance
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Source
from tests.burnt_in import burn

TISSUE_SPACING_MM = 0.25  # 960 rows of about 240 mm of film; the files do not say

LABELED = [
    "A_0002_1.RIGHT_MLO",  # the muscle is three tenths of the breast
    "A_0051_1.RIGHT_MLO",
    "A_0119_1.RIGHT_MLO",
    "B_3649_1.RIGHT_MLO",
    "D_4538_1.RIGHT_MLO",  # one of the worst breast masks of the 66: the background was set to zero
]


def dice(a: Mask, b: Mask) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("name", LABELED)
def test_masks_agree_with_those_drawn_by_hand(real_data: Path, name: str) -> None:
    folder = real_data / "ddsm-tissue-66" / "train_valid"
    pixels = raster.grey(raster.read(str(folder / "fgt_seg" / f"{name}.png")), name)
    labels = raster.read(str(folder / "fgt_seg_labels" / f"{name}_LI.png")).pixels
    breast = find_breast(pixels, TISSUE_SPACING_MM)
    muscle = find_pectoral(pixels, breast, TISSUE_SPACING_MM)
    assert dice(breast, labels > 64) > 0.91
    assert dice(muscle, labels == 255) > 0.85


@pytest.mark.parametrize(
    ("name", "share", "clutter"),
    [
        ("mdb002", 0.36, (160, 770)),  # a label; tape across the top
        ("mdb012", 0.38, (600, 800)),  # the film's white edge at a slant; a label
        ("mdb131", 0.57, (200, 20)),  # a white bar along the side
        ("mdb098", 0.48, (30, 960)),  # no muscle to see; a label
    ],
)
def test_clutter_on_film_is_not_breast(real_data: Path, name: str, share: float, clutter: tuple[int, int]) -> None:
    """The shares are those of masks that were checked by eye."""
    pixels = raster.grey(raster.read(str(real_data / "mini-mias" / f"{name}.png")), name)
    breast = find_breast(pixels, 0.2)
    muscle = find_pectoral(pixels, breast, 0.2)
    assert breast.mean() == pytest.approx(share, abs=0.03)
    assert not breast[clutter]
    assert muscle.any() == (name != "mdb098")
    depth = skin_distance(breast, 0.2)
    assert np.isfinite(depth).all()
    assert 30 < depth.max() < 150  # mm


@pytest.mark.parametrize("height_mm", [2.5, 5])
@pytest.mark.parametrize("name", ["mdb003", "mdb028", "mdb059", "mdb131", "mdb209", "mdb318"])
def test_burnt_in_text_is_not_in_the_tissue_and_painted_over(real_data: Path, name: str, height_mm: float) -> None:
    """In a corner of film that the breast does not reach."""
    pixels = raster.grey(raster.read(str(real_data / "mini-mias" / f"{name}.png")), name)
    breast = find_breast(pixels, 0.2)
    right = bool(breast[:, :512].sum() > breast[:, 512:].sum())
    for top in (0.02, 0.9):
        burnt, text = burn(pixels, top, right, round(height_mm / 0.2))
        near = np.asarray(ndimage.distance_transform_edt(~breast))[text].min() * 0.2
        if near < 4:  # mm
            continue
        seen = Preprocessing(0.2).prepare(Source(burnt, 0.2, "MLO"))
        assert not seen.body[text].any()
        assert (seen.body & breast).sum() > 0.99 * (seen.body | breast).sum()
        assert np.ptp(seen.stored[text]) == 0


def test_the_glow_along_the_edge_of_a_film_is_no_breast(real_data: Path) -> None:
    """The breast lies from 29 to 195 mm; the strip beside it goes on to both ends of the film, at 222 mm."""
    (file,) = (real_data / "cbis-ddsm-dicom" / "sfm-benign-0").glob("*.dcm")
    body = find_breast(dicom.read(str(file)), 0.05)
    rows = np.flatnonzero(body.any(axis=1)) * 0.05
    assert 20 < rows[0] < 36
    assert 188 < rows[-1] < 204
