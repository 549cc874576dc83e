"""From the pixels of one mammogram to what every later stage sees: working resolution, breast, tissue.

A function of the image alone, done once an image; the detector bundle keeps its settings.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from scipy import fft, ndimage

from rayad.arrays import Mask, Pixels
from rayad.errors import ImageError, OptionError
from rayad.imaging import plausibility
from rayad.imaging.breast import find_breast, find_clutter, find_pectoral
from rayad.imaging.picture import Prepared, Source
from rayad.imaging.plausibility import Doubt
from rayad.imaging.spacing import resample
from rayad.options import Spacing, Within

SMALLEST_PX = 64
"""Of either side at the working resolution; in fewer pixels no breast is found."""
LARGEST_MM = 200.0
"""Of the surroundings."""
WIDEST_PX = 1000
"""Standard deviation of the Gaussian over the surroundings, px of the working resolution."""
WIDE_PX = 8.0
"""Standard deviation from which on a Gaussian is faster by a cosine transform."""
SMALLEST_GAIN = 1e-30
"""Of a frequency that is kept: products that are no normal numbers take a hundred times as long."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a mammogram before patches are cut from it."""

    spacing_mm: Spacing = 0.4
    """Working resolution, mm a pixel."""
    remove_pectoral: bool = True
    """Leave the pectoral muscle of MLO views out of the tissue, where its edge is found."""
    intensity: Literal["stored", "relative", "specks"] = "stored"
    """Picture that models see: stored values; how much brighter a place is than its surroundings; or small bright
    specks."""
    surround_mm: Annotated[float, Within(0.1, LARGEST_MM)] = 20.0
    """Standard deviation of the Gaussian that averages the surroundings, mm; only for "relative"."""

    def __post_init__(self) -> None:
        if (
            WIDEST_PX * self.spacing_mm < self.surround_mm <= LARGEST_MM and self.spacing_mm > 0
        ):  # else `options` says it
            raise OptionError(
                f"surroundings of {self.surround_mm:g} mm are {self.surround_mm / self.spacing_mm:.4g} px of "
                f"{self.spacing_mm:g} mm, more than {WIDEST_PX}"
            )

    @property
    def channels(self) -> int:
        """Mammograms are grey."""
        return 1

    @property
    def side_px(self) -> int:
        """Mammograms have sizes of their own."""
        return 0

    def prepare(self, source: Source) -> Prepared:
        """Resample to the working spacing, find breast and tissue, and paint over what else is bright.

        Burnt-in text may name the patient, and a patch at the skin line or a picture would show it.

        Raises:
            ImageError: the image is smaller than 64x64 px at the working resolution, has colours, shows no breast, or
                cannot be a mammogram of this spacing.
            OptionError: a spacing that is not a positive number.
        """
        if not (source.spacing_mm > 0 and self.spacing_mm > 0):
            raise OptionError(f"spacing must be positive mm, not {source.spacing_mm} and {self.spacing_mm}")
        if source.pixels.ndim != 2:
            raise ImageError(f"a mammogram is a grey image, this one has {source.pixels.shape[2]} channels")
        doubts = [*source.doubts]
        doubts += plausibility.require_size(source.pixels.shape, source.spacing_mm, source.force)
        pixels, depth = plausibility.true_depth(source.pixels, source.force)
        working = resample(pixels, source.spacing_mm, self.spacing_mm)
        if min(working.shape) < SMALLEST_PX:
            h, w = source.pixels.shape
            raise ImageError(
                f"an image of {h}x{w} px at {source.spacing_mm} mm is {working.shape[0]}x{working.shape[1]} px at "
                f"{self.spacing_mm} mm, smaller than {SMALLEST_PX}x{SMALLEST_PX} px"
            )
        breast = find_breast(working, self.spacing_mm)
        doubts += [*depth, *plausibility.of_mammogram(working, breast, self.spacing_mm, source.force, source.wall)]
        tissue = breast
        if self.remove_pectoral and source.view == "MLO":
            tissue = breast & ~find_pectoral(working, breast, self.spacing_mm)
        hidden = find_clutter(working, breast, self.spacing_mm)
        background = working[~breast & ~hidden]
        stored = np.where(hidden, np.median(background) if background.size else np.float32(0), working)
        picture = intensity(stored, tissue, self)
        other, unreadable = self._other(source.other)
        doubts += unreadable
        return Prepared(stored, picture, breast, tissue, self.spacing_mm, source, hidden, tuple(doubts), other)

    def _other(self, source: Source | None) -> tuple[Prepared | None, list[Doubt]]:
        """The other breast, or why there is none; it is no reason to refuse this one."""
        try:
            return (self.prepare(source) if source else None), []
        except ImageError as error:
            return None, [plausibility.without_other(error)]


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
    weight = _blurred(tissue.astype(np.float32), sigma)
    total = _blurred(np.where(tissue, stored, np.float32(0)), sigma)
    above = np.where(tissue, stored - total / np.maximum(weight, 1e-6), 0)
    deviation = float(above[tissue].std()) if tissue.any() else 0.0
    return (np.clip(above / max(deviation, 1e-6), 0, 5) / 5).astype(np.float32)


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    """The Gaussian mean, the image going on beyond its border as in a mirror.

    A wide one is a product in the cosine transform, whose images go on so: in the same time whatever the width.
    """
    if sigma < WIDE_PX:
        return ndimage.gaussian_filter(pixels, sigma)
    spectrum = np.asarray(fft.dctn(pixels.astype(np.float64), norm="ortho"))
    for axis, side in enumerate(pixels.shape):
        gain = np.exp(-0.5 * (sigma * np.pi * np.arange(side) / side) ** 2)
        gain[gain < SMALLEST_GAIN] = 0
        spectrum *= np.expand_dims(gain, 1 - axis)
    return np.asarray(fft.idctn(spectrum, norm="ortho", overwrite_x=True), np.float32)


def _specks(stored: Pixels, tissue: Mask) -> Pixels:
    inside = np.asarray(ndimage.binary_erosion(tissue, iterations=7, border_value=1))
    peaks = np.where(inside, np.asarray(ndimage.white_tophat(stored, size=3)), 0)
    return np.clip(4 * ndimage.maximum_filter(peaks, size=5), 0, 1).astype(np.float32)
