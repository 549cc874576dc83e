"""Lesions of a synthetic mammogram, with the exact pixels that they change.

Round masses with a soft, slightly lobed edge; spiculated masses, whose lines run out into the tissue;
clusters of microcalcifications. Each is drawn on a small square of its own. A lesion adds to the
attenuation of the tissue that it lies in, moderately: who knows where it is sees it, and healthy islands
of glands are as bright.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rayad.arrays import Mask, Pixels
from rayad.datasets.phantom_breast import Breast, distance_mm, smooth_step

VISIBLE = 0.1
"""Share of its greatest contrast that a pixel of a mass has at least."""


@dataclass(frozen=True)
class Drawing:
    """A lesion on its own square, whose middle pixel is the lesion's centre."""

    contrast: Pixels
    """Attenuation that it adds; nothing outside the mask."""
    mask: Mask
    """The mass; of a cluster the whole of it, between the specks too."""

    @property
    def reach(self) -> int:
        """Pixels from the middle to the side of the square."""
        return self.mask.shape[0] // 2

    @property
    def radius_px(self) -> float:
        """Of the circle about the middle that just holds the mask's pixels."""
        return float(np.hypot(*(np.argwhere(self.mask) - self.reach).T).max())


@dataclass(frozen=True)
class Placed:
    """A drawing with its middle at a row and column of an image."""

    drawing: Drawing
    row: int
    col: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image that the drawing covers."""
        reach = self.drawing.reach
        return slice(self.row - reach, self.row + reach + 1), slice(self.col - reach, self.col + reach + 1)


def round_mass(rng: np.random.Generator, spacing_mm: float) -> Drawing:
    """8 to 17 mm across, its edge soft and a little lobed, as thick as it is wide."""
    radius_mm = rng.uniform(4.0, 8.5)
    r, turn = _polar(1.3 * radius_mm + 2, spacing_mm)
    lobed = radius_mm * _lobes(rng, turn, 0.06)
    dome = np.sqrt(np.clip(1 - (r / lobed) ** 2, 0, 1))
    return _mass(ndimage.gaussian_filter(dome, 0.5 / spacing_mm), rng.uniform(0.055, 0.095), spacing_mm)


def spiculated_mass(rng: np.random.Generator, spacing_mm: float) -> Drawing:
    """A ragged core of 5 to 10 mm and 16 to 28 lines that end 1.6 to 3 core radii from its centre."""
    core_mm = rng.uniform(2.5, 5.0)
    r, turn = _polar(3.2 * core_mm + 2, spacing_mm)
    contrast = smooth_step(1.5 - r / (core_mm * _lobes(rng, turn, 0.12)))
    for _ in range(rng.integers(16, 29)):
        angle, length = rng.uniform(-np.pi, np.pi), core_mm * rng.uniform(1.6, 3.0)
        bend, width = rng.normal(0, 0.25), max(rng.uniform(0.3, 0.6), 0.6 * spacing_mm)
        aside = r * np.abs((turn - angle - bend * r / length + np.pi) % (2 * np.pi) - np.pi)
        line = np.exp(-((aside / width) ** 2)) * np.clip(1 - r / length, 0, 1)
        contrast = np.maximum(contrast, 0.9 * line)
    return _mass(contrast, rng.uniform(0.08, 0.11), spacing_mm)


def cluster(rng: np.random.Generator, spacing_mm: float) -> Drawing:
    """8 to 20 specks of 0.3 to 0.8 mm within 6 to 14 mm."""
    radius_mm = rng.uniform(3.0, 7.0)
    y, x = _grid(2 * radius_mm + 2, spacing_mm)
    contrast = np.zeros(y.shape)
    for _ in range(rng.integers(8, 21)):
        angle, distance = rng.uniform(-np.pi, np.pi), radius_mm * np.sqrt(rng.uniform())
        speck = _speck(y - distance * np.sin(angle), x - distance * np.cos(angle), rng.uniform(0.3, 0.8), spacing_mm)
        contrast = np.maximum(contrast, rng.uniform(0.35, 1.0) * speck)
    specks = contrast > 0.05
    mask = _closed(specks, radius_mm, 0.6, spacing_mm) | specks
    return Drawing((rng.uniform(0.12, 0.18) * contrast * mask).astype(np.float32), mask)


def dust(rng: np.random.Generator, breast: Breast) -> list[Placed]:
    """Up to six stray specks, as dust or single benign calcifications make them: no lesions."""
    specks = []
    for _ in range(rng.integers(0, 7)):
        y, x = _grid(1.5, breast.spacing_mm)
        speck = _speck(y, x, rng.uniform(0.3, 0.8), breast.spacing_mm)
        drawing = Drawing((rng.uniform(0.06, 0.18) * speck).astype(np.float32), speck > 0)
        specks.append(place(rng, breast, drawing))
    return specks


def place(rng: np.random.Generator, breast: Breast, drawing: Drawing) -> Placed:
    """The drawing somewhere in the breast, clear of the skin, the muscle and the image's border.

    Glands are likelier than fat. In a breast too small to be clear of them it lies where it is nearly so.
    """
    reach, radius_mm = drawing.reach, drawing.radius_px * breast.spacing_mm
    room_mm = np.full(breast.inside.shape, -np.inf)
    inner = tuple(slice(reach, side - reach) for side in breast.inside.shape)
    room_mm[inner] = (np.minimum(breast.skin_mm - 8, -breast.muscle_mm) - radius_mm)[inner]
    weight = (room_mm >= min(room_mm.max(), 0)) * (1 + smooth_step(2 - breast.gland))
    heap = np.cumsum(weight)
    row, col = np.unravel_index(np.searchsorted(heap, rng.uniform(0, heap[-1]), side="right"), weight.shape)
    return Placed(drawing, int(row), int(col))


def _grid(reach_mm: float, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    reach = int(np.ceil(reach_mm / spacing_mm))
    side = np.arange(-reach, reach + 1) * spacing_mm
    return np.meshgrid(side, side, indexing="ij")


def _polar(reach_mm: float, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = _grid(reach_mm, spacing_mm)
    return np.hypot(y, x), np.arctan2(y, x)


def _lobes(rng: np.random.Generator, turn: np.ndarray, depth: float) -> np.ndarray:
    """A factor around 1 for the radius in each direction."""
    waves = [rng.normal() / k**0.5 * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)]
    return 1 + depth * np.sum(waves, axis=0)


def _speck(y: np.ndarray, x: np.ndarray, diameter_mm: float, spacing_mm: float) -> np.ndarray:
    """A blurred disc; one smaller than a pixel is fainter in proportion to its area, to a third."""
    sigma_mm = max(diameter_mm / 2.355, 0.45 * spacing_mm)
    filled = max((diameter_mm / 2.355 / sigma_mm) ** 2, 1 / 3)
    return filled * np.exp(-(y**2 + x**2) / (2 * sigma_mm**2))


def _mass(contrast: np.ndarray, amount: float, spacing_mm: float) -> Drawing:
    contrast = contrast / contrast.max()
    mask = _closed(contrast >= VISIBLE, 1.5, 0.0, spacing_mm)
    return Drawing((amount * contrast * mask).astype(np.float32), mask)


def _closed(mask: Mask, by_mm: float, margin_mm: float, spacing_mm: float) -> Mask:
    """The mask with gaps up to twice `by_mm` filled, and a margin around it."""
    grown = distance_mm(~mask, spacing_mm) <= by_mm
    closed = distance_mm(grown, spacing_mm) > by_mm - margin_mm
    return np.asarray(ndimage.binary_fill_holes(closed | mask))
