"""From the pixels of one mammogram to what every later stage sees: working resolution, breast, tissue.

A function of the image alone, done once an image; the detector bundle keeps its settings.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from rayad.arrays import Mask, Pixels
from rayad.errors import ImageError, OptionError
from rayad.imaging.breast import find_breast, find_pectoral, skin_distance
from rayad.imaging.spacing import resample

PATCH = 64
"""Side of a patch, in pixels of the working resolution."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a mammogram before patches are cut from it."""

    spacing_mm: float = 0.4
    """Working resolution, mm a pixel."""
    remove_pectoral: bool = True
    """Leave the pectoral muscle of MLO views out of the tissue, where its edge is found."""
    intensity: Literal["stored", "relative", "specks"] = "stored"
    """What models see: stored values; how much brighter a place is than its surroundings; or small bright specks."""
    surround_mm: float = 20.0
    """Standard deviation of the Gaussian that averages the surroundings, mm; only for "relative"."""

    def step(self, step_mm: float) -> int:
        """A distance of places in px of the working resolution.

        Raises:
            OptionError: it would be less than a pixel.
        """
        step = round(step_mm / self.spacing_mm)
        if step < 1:
            raise OptionError(f"places {step_mm} mm apart are closer than the pixels, {self.spacing_mm} mm")
        return step


@dataclass(frozen=True)
class Prepared:
    """A mammogram at working resolution."""

    stored: Pixels
    """The image's own values, float32 in [0, 1]."""
    pixels: Pixels
    """What models see of them, float32 in [0, 1]; see `intensity`."""
    breast: Mask
    """The breast with the pectoral muscle, without labels, tape and film edges."""
    tissue: Mask
    """The places that are scored: the breast without the pectoral muscle."""
    spacing_mm: float
    original_shape: tuple[int, int]
    """Rows and columns of the image that came in."""


def prepare(pixels: Pixels, spacing_mm: float, view: str, preprocessing: Preprocessing) -> Prepared:
    """Resample to the working spacing and find the tissue.

    Args:
        pixels: the image at its own resolution.
        spacing_mm: mm a pixel of that image.
        view: MLO, CC or "" where it is not known; only an MLO view shows a pectoral muscle to remove.
        preprocessing: the settings, the same in training and scoring.

    Raises:
        ImageError: the image is smaller than a patch at the working resolution, or shows no breast.
        OptionError: a spacing that is not a positive number.
    """
    if not (spacing_mm > 0 and preprocessing.spacing_mm > 0):
        raise OptionError(f"spacing must be positive mm, not {spacing_mm} and {preprocessing.spacing_mm}")
    working = resample(pixels, spacing_mm, preprocessing.spacing_mm)
    if min(working.shape) < PATCH:
        raise ImageError(
            f"an image of {pixels.shape[0]}x{pixels.shape[1]} px at {spacing_mm} mm is "
            f"{working.shape[0]}x{working.shape[1]} px at {preprocessing.spacing_mm} mm, "
            f"smaller than a {PATCH}-px patch"
        )
    breast = find_breast(working, preprocessing.spacing_mm)
    tissue = breast
    if preprocessing.remove_pectoral and view == "MLO":
        tissue = breast & ~find_pectoral(working, breast, preprocessing.spacing_mm)
    original = (pixels.shape[0], pixels.shape[1])
    seen = intensity(working, tissue, preprocessing)
    return Prepared(working, seen, breast, tissue, preprocessing.spacing_mm, original)


def intensity(stored: Pixels, tissue: Mask, preprocessing: Preprocessing) -> Pixels:
    """What models see of an image at working resolution, in [0, 1].

    A density is two-sided: places darker than healthy tissue are as rare as brighter ones, though lesions
    are bright. So what is dark goes to 0: "relative" is the difference to the Gaussian mean of the tissue
    around, in standard deviations over the tissue, cut to [0, 5] and divided by 5. "specks" is four times
    the white top-hat of 3x3 px, spread by a maximum of 5x5 px, where 7 px around are tissue: at 0.2 mm what
    is smaller than 0.6 mm, as microcalcifications are.
    """
    match preprocessing.intensity:
        case "stored":
            return stored
        case "relative":
            return _relative(stored, tissue, preprocessing.surround_mm / preprocessing.spacing_mm)
        case "specks":
            return _specks(stored, tissue)


def _relative(stored: Pixels, tissue: Mask, sigma: float) -> Pixels:
    weight = ndimage.gaussian_filter(tissue.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(tissue, stored, 0), sigma)
    above = np.where(tissue, stored - total / np.maximum(weight, 1e-6), 0)
    deviation = float(above[tissue].std()) if tissue.any() else 0.0
    return (np.clip(above / max(deviation, 1e-6), 0, 5) / 5).astype(np.float32)


def _specks(stored: Pixels, tissue: Mask) -> Pixels:
    inside = np.asarray(ndimage.binary_erosion(tissue, iterations=7, border_value=1))
    peaks = np.where(inside, np.asarray(ndimage.white_tophat(stored, size=3)), 0)
    return np.clip(4 * ndimage.maximum_filter(peaks, size=5), 0, 1).astype(np.float32)


def context(prepared: Prepared) -> dict[str, Pixels]:
    """Where a place lies in its breast, a map each; nothing of the patch at the place itself.

    ``skin_mm`` is the distance from the skin line; ``rel_row`` and ``rel_col`` the place in the breast's
    bounding box, 0 to 1; ``ring_density`` the mean intensity of the tissue in the 128-px box around the
    place without its 64-px patch (0 where the ring holds no tissue).
    """
    rows, columns = np.nonzero(prepared.breast)
    h, w = prepared.stored.shape
    rel_row = (np.arange(h, dtype=np.float32) - rows.min()) / max(1, np.ptp(rows))
    rel_col = (np.arange(w, dtype=np.float32) - columns.min()) / max(1, np.ptp(columns))
    weight = prepared.tissue.astype(np.float32)
    inside, outside = (
        [ndimage.uniform_filter(a, side, mode="constant") * side**2 for a in (prepared.stored * weight, weight)]
        for side in (PATCH, 2 * PATCH)
    )
    area = outside[1] - inside[1]
    ring = np.where(area > 0.5, (outside[0] - inside[0]) / np.maximum(area, 0.5), 0)
    return {
        "skin_mm": skin_distance(prepared.breast, prepared.spacing_mm).astype(np.float32),
        "rel_row": np.repeat(rel_row[:, None], w, axis=1),
        "rel_col": np.repeat(rel_col[None, :], h, axis=0),
        "ring_density": ring.astype(np.float32),
    }
