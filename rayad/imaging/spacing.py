"""Images and masks at another pixel spacing.

Shrinking is anti-aliased with the Lanczos kernel (three lobes, as wide as the shrinking asks): Gaussian and box
filters either let patterns above the new Nyquist frequency through or blur microcalcifications away.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from rayad import bounds
from rayad.arrays import Mask, Pixels
from rayad.errors import OptionError


def resample(pixels: Pixels, from_mm: float, to_mm: float) -> Float[np.ndarray, "rows columns"]:
    """The image at another spacing; the same array where the spacings are equal.

    Args:
        pixels: an image, float32.
        from_mm: its spacing, mm from pixel to pixel.
        to_mm: the wanted spacing, mm.

    Returns:
        round(h * from_mm / to_mm) rows and likewise columns, at least one, over the same field of view:
        the spacing is met to half a pixel over a whole side. No value leaves the range of the input.

    Raises:
        OptionError: a spacing is not a positive number.
        ImageError: it would have more pixels than an image may.
    """
    for spacing_mm in (from_mm, to_mm):
        if not 0 < spacing_mm < math.inf:
            raise OptionError(f"a spacing is a positive number of mm, not {spacing_mm}")
    if math.isclose(from_mm, to_mm, rel_tol=1e-6):
        return pixels
    ratio = min(from_mm / to_mm, 1e9)  # no image has as many pixels
    height, width = (max(1, round(side * ratio)) for side in pixels.shape)
    bounds.current().require_pixels(height, width, "the image", f" of {to_mm:g} mm, made of {from_mm:g} mm,")
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    resized = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    return resized.clip(pixels.min(), pixels.max())


def resample_mask(mask: Mask, shape: tuple[int, int]) -> Bool[np.ndarray, "rows columns"]:
    """The mask on a grid of another shape over the same field of view; the same array where it has the shape.

    A pixel is in the result where the mask covers half of its surroundings, so what is much thinner than a
    new pixel is lost.
    """
    if mask.shape == shape:
        return mask
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)) >= 128
