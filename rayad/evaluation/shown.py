"""What pictures show, as values; rayad/evaluation/figures.py draws them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image as Picture

from rayad.arrays import Grid, GridMask, Image, Mask, Pixels

THUMBNAIL_PX = 260
"""Height of the pictures in lists of images."""


@dataclass(frozen=True)
class View:
    """An image as pictures show it, with the grid its scores are on."""

    name: str
    pixels: Image
    spacing_mm: float
    rows: Int[np.ndarray, " gh"] | Float[np.ndarray, " gh"]
    """Rows of the places' centers, px of `pixels`."""
    cols: Int[np.ndarray, " gw"] | Float[np.ndarray, " gw"]
    truth: Mask
    """The annotated lesions in px of `pixels`; empty where there are none."""


def reduced(pixels: Image, truth: Mask) -> tuple[UInt8[np.ndarray, "kh kw *c"], Bool[np.ndarray, "kh kw"]]:
    """Picture and lesions of a thumbnail's height, with 8 bits a channel; as they are where they are no higher.

    The brightest thousandth is white; what of a lesion is smaller than a pixel fills one.
    """
    white = max(1e-6, float(np.quantile(pixels, 0.999))) if pixels.ndim == 2 else 1.0
    picture = Picture.fromarray(np.clip(pixels * (255 / white), 0, 255).round().astype(np.uint8))
    factor = max(1.0, picture.height / THUMBNAIL_PX)
    size = max(1, round(picture.width / factor)), max(1, round(picture.height / factor))
    small_truth = Picture.fromarray(truth.astype(np.uint8) * 255).resize(size, Picture.Resampling.BOX)
    return np.asarray(picture.resize(size, Picture.Resampling.BOX)), np.asarray(small_truth) > 0


@dataclass(frozen=True)
class DetectorMap:
    """What one detector says about one view."""

    healthy_quantile: Grid
    """nan outside the tissue."""
    mask: GridMask
    distance: float | None = None
    """Hausdorff distance of the mask and the lesion, px of the grid; None where there is none."""


@dataclass(frozen=True)
class Healthy:
    """What one view would look like if it were healthy, in the picture that the models see."""

    pixels: Pixels
    """The healthy version."""
    change: Pixels
    """The picture minus its healthy version."""
    picture: str
    """Which picture: stored, relative or specks (rayad/imaging/mammogram.py)."""
