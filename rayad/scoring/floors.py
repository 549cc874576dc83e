"""One-line detectors that learn nothing: a learned one below them has learned nothing useful.

Each maps pixels in [0, 1] and the tissue to a score a pixel, nan outside the tissue; what lies outside does not
count, neither air nor muscle. Lengths are pixels of the working resolution, as the models' patches are, and were
chosen at 0.4 mm: 81 px are 32 mm, 13 px 5 mm and 5 px 2 mm. The box of a patch of side s is rows r - s/2 to
r + s/2 - 1.
"""

import numpy as np
from scipy import ndimage

from rayad.arrays import Mask, Pixels

SURROUNDINGS_PX = 81
"""A box of 40 px to each side."""
SPOT_PX = 13
"""The box whose brightness is compared with its surroundings."""
SPECK_PX = 5
"""A top-hat keeps what is bright and narrower than this: calcifications."""


def brightness(pixels: Pixels, tissue: Mask, spacing_mm: float, patch_px: int = 64) -> Pixels:
    """Mean of the tissue in the box of a patch."""
    return _mean(pixels, tissue, patch_px)


def relative_brightness(pixels: Pixels, tissue: Mask, spacing_mm: float, patch_px: int = 64) -> Pixels:
    """Mean of the tissue in a spot, minus that in its surroundings."""
    return _mean(pixels, tissue, SPOT_PX) - _mean(pixels, tissue, SURROUNDINGS_PX)


def local_deviation(pixels: Pixels, tissue: Mask, spacing_mm: float, patch_px: int = 64) -> Pixels:
    """Standard deviation of the tissue in a spot: how rough it is."""
    centred = pixels.astype(float) - (float(pixels[tissue].mean()) if tissue.any() else 0.0)  # so few digits cancel
    variance = _mean(centred**2, tissue, SPOT_PX) - _mean(centred, tissue, SPOT_PX) ** 2
    return np.sqrt(np.maximum(variance, 0))


def top_hat(pixels: Pixels, tissue: Mask, spacing_mm: float, patch_px: int = 64) -> Pixels:
    """Largest white top-hat of the tissue in the box of a patch."""
    eroded = ndimage.minimum_filter(np.where(tissue, pixels, np.inf), SPECK_PX)
    opened = ndimage.maximum_filter(np.where(tissue, eroded, -np.inf), SPECK_PX)
    specks = np.where(tissue, pixels - opened, 0)
    return np.where(tissue, ndimage.maximum_filter(specks, patch_px, mode="constant"), np.nan)


MAPS = {
    "brightness": brightness,
    "relative-brightness": relative_brightness,
    "local-deviation": local_deviation,
    "top-hat": top_hat,
}
"""Name of the floor -> function of pixels, tissue, the pixels' spacing in mm and the side of a patch in px."""


def _mean(pixels: Pixels, tissue: Mask, side: int) -> Pixels:
    """Mean of the tissue in a box, by normalized convolution."""
    inside = ndimage.uniform_filter(tissue.astype(float), side, mode="constant")
    total = ndimage.uniform_filter(np.where(tissue, pixels.astype(float), 0), side, mode="constant")
    return np.divide(total, inside, out=np.full(pixels.shape, np.nan), where=tissue)
