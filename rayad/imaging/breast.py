"""The breast in a mammogram: its mask, its skin line and the pectoral muscle.

All is found at 0.8 mm, where labels, tape and noise are easier to tell from tissue, and given back at the resolution
of the image. Nothing is learned; the numbers were chosen on the 66 hand-drawn masks of Tiryaki et al. (DDSM) and by
looking at 232 images of mini-MIAS. Film may end inside the image, so the chest wall need not be the image's border.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label

from rayad.arrays import Mask, Pixels
from rayad.errors import ImageError
from rayad.imaging.spacing import resample, resample_mask

_WORKING_MM = 0.8

_SKIN = 0.1
"""Where the skin line lies on the way from background to tissue: best of 0.02 to 0.4 on the masks, with 0.12."""

_BESIDE_MM = 2.0
"""So far outside the breast's mask the skin may still be brighter than the skin line."""

_FADE_MM = 2.0
"""So far around a letter its blurred edge may be seen."""

_LARGEST_MUSCLE = 0.36
"""Largest share of the breast that is taken for muscle: the largest among the masks is 0.361."""

_CLEAR_EDGE = 0.045
"""Slope (share of the tissue's range a pixel) from which one edge of the muscle is as good as another."""

_CONFIDENCE = 0.12
"""Mean clipped slope along a muscle's edge. The 66 true edges have 0.37 or more; of mini-MIAS's lines the six
below 0.10 are no edges, the four from 0.13 to 0.17 are three edges and a bright corner."""

_OUTERMOST, _CLEAR = 0.05, 0.3
"""Share of the breast's width that its ends are; and by how much more of its height one must have than the other, to be
the chest wall: of 302 films 0.4 at least."""

_STRIP_MM, _SHORTEST_STRIP_MM = 12.0, 15.0
"""Widest and shortest strip of glow at the film's edge."""

_UNEVEN, _FALLING, _DARK = 0.13, 0.5, 0.65
"""A strip's rows differ by less, relative to their mean; its last column is darker than its first by more; and its
first is darker than this share of the breast's median. Chosen on the ends of 19 breasts of film that are as thin and
as long, ten of them with a mask that was drawn by hand."""


def find_breast(pixels: Pixels, spacing_mm: float) -> Mask:
    """Where the breast is, without labels, tape and film edges; the pectoral muscle belongs to it.

    Raises:
        ImageError: nothing in the image looks like a breast, or all of it has the same value.
    """
    small = ndimage.gaussian_filter(resample(pixels, spacing_mm, _WORKING_MM), 1, mode="nearest")
    if small.max() - small.min() < 1e-3:
        raise ImageError(f"no breast in the image: every pixel is {small.max():.3g}")
    bright = _opened(small > _skin_level(small), radius_mm=2.5)
    if not bright.any():
        raise ImageError("no breast in the image: no bright object is thicker than 5 mm")
    object_mask = _without_flares(np.asarray(ndimage.binary_fill_holes(_largest(bright))))
    body = _largest(_opened(object_mask, radius_mm=6))
    near_body = _depth(~body) * _WORKING_MM <= 6  # gives the nipple back
    breast = _largest(object_mask & near_body) if body.any() else body
    if breast.mean() < 0.02:
        raise ImageError(f"no breast in the image: the largest thick object covers {breast.mean():.1%} of it")
    return resample_mask(_without_strips(small, breast), pixels.shape)


def find_clutter(pixels: Pixels, breast: Mask, spacing_mm: float) -> Mask:
    """What is brighter than the skin line and not the breast, and 2 mm around it: labels, burnt-in text, tape, edges.

    What lies within 2 mm of the breast is not told from it.
    """
    small = ndimage.gaussian_filter(resample(pixels, spacing_mm, _WORKING_MM), 1, mode="nearest")
    bright = (pixels > _skin_level(small)) & ~_grown(breast, _BESIDE_MM / spacing_mm)
    return _grown(bright, _FADE_MM / spacing_mm) & ~breast


def find_pectoral(pixels: Pixels, breast: Mask, spacing_mm: float) -> Mask:
    """Where the pectoral muscle of an MLO view is: a bright triangle in the upper corner at the chest wall.

    Its edge is the straight line across that corner with the steepest fall of brightness away from the corner, on the
    mean over its length, longer lines first.

    Returns:
        The part of the breast beyond that line; nothing where no line is clear enough.
    """
    small = resample(pixels, spacing_mm, _WORKING_MM)
    tissue = resample_mask(breast, small.shape)
    if not tissue.any():
        return np.zeros_like(breast)
    mirrored = not _chest_wall_is_left(tissue)
    if mirrored:
        small, tissue = small[:, ::-1], tissue[:, ::-1]
    box = ndimage.find_objects(tissue.astype(int))[0]
    muscle = np.zeros_like(tissue)
    muscle[box] = _corner(small[box], tissue[box])
    return resample_mask(muscle[:, ::-1] if mirrored else muscle, breast.shape) & breast


def chest_wall(breast: Mask) -> str:
    """Where the chest wall is in the picture, left or right: the side at which the breast is higher; empty: unclear."""
    columns = np.flatnonzero(breast.any(axis=0))
    if not columns.size:
        return ""
    width = max(1, round(_OUTERMOST * (columns[-1] - columns[0] + 1)))
    ends = breast[:, columns[:width]], breast[:, columns[-width:]]
    left, right = (float(end.mean(axis=1).sum()) / np.count_nonzero(breast.any(axis=1)) for end in ends)
    if abs(left - right) < _CLEAR:
        return ""
    return "left" if left > right else "right"


def skin_distance(breast: Mask, spacing_mm: float) -> Float[np.ndarray, "h w"]:
    """How far below the skin line each place of the breast is, in mm; 0 outside.

    The skin line is the border of the breast but for its straight sides, where the film or the image ends: at the
    chest wall, the top and the bottom.

    Raises:
        ImageError: the breast fills the image, so there is no skin line.
    """
    if not breast.any():
        return np.zeros(breast.shape, np.float32)
    mirrored = not _chest_wall_is_left(breast)
    inside = _beyond_the_film(breast[:, ::-1] if mirrored else breast, round(3 / spacing_mm))
    if inside.all():
        raise ImageError("no skin line in the image: the breast fills it")
    pixels = _depth(inside) - 0.5  # the line runs between two pixels
    distance = np.where(inside, pixels * spacing_mm, 0).astype(np.float32)
    return np.where(breast, distance[:, ::-1] if mirrored else distance, np.float32(0))


def _skin_level(small: Pixels) -> float:
    """The value between background and tissue at which the skin line is drawn."""
    threshold = float(threshold_otsu(small))
    dark = small[(small < threshold) & (small > 0.002)]
    background = 0.0
    if dark.size > 0.1 * small.size:  # else what is not tissue is black
        counts, edges = np.histogram(dark, bins=256, range=(0, 1))
        background = float(edges[np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 1))]) + 1 / 512
    return background + _SKIN * (float(np.median(small[small > threshold])) - background)


def _opened(mask: Mask, radius_mm: float) -> Mask:
    """What a disc of this radius can reach inside the mask, which goes on beyond the image as in a mirror."""
    radius = radius_mm / _WORKING_MM
    margin = min(int(np.ceil(2 * radius)), min(mask.shape) - 1)
    padded = np.pad(mask, margin, mode="reflect")
    if padded.all():
        return mask
    core = _depth(padded) > radius
    if not core.any():
        return np.zeros_like(mask)
    grown = _depth(~core) <= radius
    height, width = mask.shape
    return grown[margin : margin + height, margin : margin + width] & mask


def _grown(mask: Mask, radius: float) -> Mask:
    """The mask and a square of this half side, in pixels, around each place of it."""
    return np.asarray(ndimage.maximum_filter(mask, 2 * max(1, round(radius)) + 1))


def _largest(mask: Mask) -> Mask:
    """The largest connected part."""
    labels = np.asarray(label(mask, connectivity=1))
    sizes = np.bincount(labels.ravel())[1:]
    return np.equal(labels, 1 + np.argmax(sizes)) if sizes.size else mask


def _depth(mask: Mask) -> Float[np.ndarray, "h w"]:
    """Distance of each pixel of the mask to the nearest pixel outside, in pixels."""
    return np.asarray(ndimage.distance_transform_edt(mask))


def _chest_wall_is_left(mask: Mask) -> bool:
    """Whether the left side of the mask is straighter, that is nearer to its bounding box, than the right one."""
    rows = mask[mask.any(axis=1)]
    left, right = np.argmax(rows, axis=1), np.argmax(rows[:, ::-1], axis=1)
    return bool((left - left.min()).mean() <= (right - right.min()).mean())


def _without_flares(mask: Mask) -> Mask:
    """Cut off what sticks out by more than 12 mm from one row to the third next: tape across the film.

    Seen from the widest of the middle rows, upwards and downwards.
    """
    outward = mask if _chest_wall_is_left(mask) else mask[:, ::-1]
    rows = np.flatnonzero(outward.any(axis=1))
    reach = outward.shape[1] - np.argmax(outward[:, ::-1], axis=1)  # one past the last pixel
    middle_rows = rows[len(rows) // 5 : -(len(rows) // 5) or None]
    start = int(middle_rows[np.argmax(reach[middle_rows])])
    trimmed = outward.copy()
    for path in (np.arange(start, rows[0] - 1, -1), np.arange(start, rows[-1] + 1)):
        jumps = np.flatnonzero(reach[path[3:]] - reach[path[:-3]] > 12 / _WORKING_MM)
        if jumps.size:
            trimmed[path[jumps[0] + 1 :], reach[path[jumps[0]]] :] = False
    return trimmed if outward is mask else trimmed[:, ::-1]


def _without_strips(small: Pixels, breast: Mask) -> Mask:
    """Cut off the glow along the film's edge at the chest wall that goes on above and below some breasts.

    It is thin and long, dark, the same in every row, and falls from the edge. The fold below a breast can look so too,
    but there is none above: what is at one end alone stays.
    """
    mirrored = not _chest_wall_is_left(breast)
    pixels, trimmed = (small[:, ::-1], breast[:, ::-1]) if mirrored else (small, breast)
    trimmed = trimmed.copy()
    rows = np.flatnonzero(trimmed.any(axis=1))
    strips = []
    for inward in (rows, rows[::-1]):
        wide = trimmed[inward].sum(axis=1) * _WORKING_MM > _STRIP_MM
        strips.append(_strip(pixels, trimmed, inward[: int(np.argmax(wide))]))
    if not all(strip.size for strip in strips):
        return breast
    trimmed[np.concatenate(strips)] = False
    return _largest(trimmed[:, ::-1] if mirrored else trimmed)


def _strip(pixels: Pixels, breast: Mask, rows: Int[np.ndarray, " r"]) -> Int[np.ndarray, " s"]:
    """Those of the rows at an end of the breast, from outside inwards, that show a strip at the left; none or most."""
    columns = np.flatnonzero(breast[rows].mean(axis=0) > 0.7) if len(rows) * _WORKING_MM > _SHORTEST_STRIP_MM else []
    if len(columns) < 2:
        return rows[:0]
    strip_pixels = np.maximum(pixels[np.ix_(rows, columns)], 1e-6)
    profile = np.median(strip_pixels, axis=0)
    variation, fall = float((strip_pixels.std(axis=0) / strip_pixels.mean(axis=0)).mean()), 1 - profile[-1] / profile[0]
    if variation > _UNEVEN or fall < _FALLING or profile[0] > _DARK * np.median(pixels[breast]):
        return rows[:0]
    even_rows = np.flatnonzero(np.abs(strip_pixels / profile - 1).mean(axis=1) < _UNEVEN)
    return rows[: even_rows[-1] + 1] if even_rows.size else rows[:0]


def _corner(pixels: Pixels, tissue: Mask) -> Mask:
    """The muscle in an image that is cropped to the breast, whose chest wall is on the left."""
    low, high = np.percentile(pixels[tissue], [2, 98])
    smooth = ndimage.gaussian_filter(pixels, 2, mode="nearest") / max(float(high - low), 1e-6)
    right, down = _lines(tissue)
    if not right.size:
        return np.zeros_like(tissue)
    length = np.hypot(right, down)
    slope = _mean_slope(smooth, _inner(tissue), right, down)
    best = int(np.argmax(slope * np.sqrt(length)))
    if slope[best] < _CONFIDENCE:
        return np.zeros_like(tissue)
    row, column = np.indices(tissue.shape)
    return tissue & (column / right[best] + row / down[best] < 1)


def _lines(tissue: Mask) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Candidate lines: where they meet the top row and the chest wall, in pixels from the corner."""
    top = max(float(tissue[:6].any(axis=0).sum()), 30)
    right, down = (
        axis.ravel() for axis in np.meshgrid(np.linspace(8, top, 32), np.linspace(20, 0.8 * len(tissue), 48))
    )
    steep = down / right
    plausible = (steep > 0.7) & (steep < 7.5) & (right * down / 2 < _LARGEST_MUSCLE * tissue.sum())
    return right[plausible], down[plausible]


def _inner(tissue: Mask) -> Mask:
    """The tissue without the 3 mm next to the skin, whose own slope is the steepest of all."""
    return ndimage.binary_erosion(np.pad(tissue, 4, mode="edge"), iterations=4)[4:-4, 4:-4]


def _mean_slope(
    smooth: Pixels, inner: Mask, right: Float[np.ndarray, " k"], down: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Mean fall of brightness across each line, away from the corner, -1 to 1; -1 where it leaves the tissue."""
    positions = (np.arange(60) + 0.5) / 60
    places = np.stack([down[:, None] * positions, right[:, None] * (1 - positions)])  # 2 k 60, rows and columns
    length = np.hypot(right, down)[:, None]
    by_row, by_column = (
        ndimage.map_coordinates(gradient, places, order=1, mode="nearest") for gradient in np.gradient(smooth)
    )
    fall = -(by_row * right[:, None] + by_column * down[:, None]) / length
    inside = ndimage.map_coordinates(inner.astype(np.uint8), places, order=0, mode="constant") > 0
    clipped = np.clip(fall / _CLEAR_EDGE, -1, 1)
    mean = (clipped * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
    return np.where(inside.mean(axis=1) < 0.6, -1, mean)


def _beyond_the_film(breast: Mask, margin: int) -> Mask:
    """The breast, gone on to the left, the top and the bottom of the image where it ends straight there."""
    inside = breast.copy()
    columns = np.flatnonzero(breast.any(axis=0))
    first = np.argmax(breast, axis=1)
    flat = breast.any(axis=1) & (first <= columns[0] + margin)
    inside |= flat[:, None] & (np.arange(breast.shape[1]) < first[:, None])
    rows = np.flatnonzero(breast.any(axis=1))
    if rows[0] <= margin:
        inside[: rows[0]] = inside[rows[0]]
    if rows[-1] >= len(breast) - 1 - margin:
        inside[rows[-1] :] = inside[rows[-1]]
    return inside
