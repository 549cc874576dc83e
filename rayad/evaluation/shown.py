"""What pictures show, as values; rayad/evaluation/figures.py draws them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rayad.arrays import Grid, GridMask, Image, Mask, Pixels


@dataclass(frozen=True)
class View:
    """An image as pictures show it, with the grid its scores are on."""

    name: str
    pixels: Image
    spacing_mm: float
    rows: Int[np.ndarray, " gh"]
    """Rows of the places' centers, px of `pixels`."""
    cols: Int[np.ndarray, " gw"]
    truth: Mask
    """The annotated lesions in px of `pixels`; empty where there are none."""


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
