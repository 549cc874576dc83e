"""Healthy tissue of a synthetic mammogram: outline, fat, glands, strands, film.

An oblique (MLO) view. Fat and glands are mixed by random fields whose power falls as 1/f^3, the mean for
mammograms (Burgess et al., Med. Phys. 28 (2001) 419), and by clustered lumpy background (Bochud et al.,
Opt. Express 4 (1999) 33); strands run towards the nipple. Where no source is named, a number was chosen by
looking at films beside phantoms. The chest wall is on the left, as a left breast hangs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.fft import next_fast_len

from rayad.arrays import Mask, Pixels

POWER = 3.0
"""Exponent of the power spectrum."""
FAT, GLAND = 0.456, 0.802
"""Attenuation in 1/cm at 20 keV (Johns and Yaffe, Phys. Med. Biol. 32 (1987) 675)."""
MUSCLE = 0.80
GLANDS = {"F": (0.22, 0.75), "G": (0.45, 0.90), "D": (0.72, 1.10)}
"""Tissue class (fatty, fatty-glandular, dense-glandular) -> amount and extent of the glands."""
EDGE_MM = 26.0
"""Width of the rim where the compressed breast rounds off, about half its thickness."""
TRAITS = 12
"""How many numbers in [0, 1] describe a breast's shape."""
FILM_MIDDLE, FILM_LATITUDE = 0.55, 0.13
"""Attenuation that comes out at half brightness, and the scale of the film's S-shaped curve."""

Polar = tuple[Pixels, Pixels]
"""Each pixel's distance in mm and direction in radians from behind the nipple, lightly bent."""


@dataclass(frozen=True)
class Breast:
    """The shape of one breast."""

    inside: Mask
    skin_mm: Pixels
    """Distance from the skin line; 0 outside."""
    muscle_mm: Pixels
    """How deep in the pectoral muscle; negative outside of it."""
    gland: Pixels
    """Distance from the middle of the glands: 1 about where they end."""
    nipple: tuple[float, float]
    """Row and column."""
    spacing_mm: float


def shape_breast(traits: np.ndarray, density: str, size: tuple[int, int], spacing_mm: float) -> Breast:
    """The breast of these traits: nipple's height, reach, neck, fold, muscle, glands.

    Args:
        traits: TRAITS numbers in [0, 1]; the two breasts of a patient have similar ones.
        density: tissue class, F, G or D.
        size: rows and columns of the image.
        spacing_mm: pixel spacing.
    """
    h, w = size
    y, x = (np.arange(h)[:, None] + 0.5) / h, (np.arange(w)[None, :] + 0.5) / w
    level, reach = _between(traits[0], 0.55, 0.65), _between(traits[1], 0.55, 0.85)
    width = _width(y, level, reach, traits[2:6])
    inside = x < width
    skin_mm = distance_mm(inside, spacing_mm)
    foot, top = _between(traits[6], 0.40, 0.62), _between(traits[7], 0.50, 0.80)
    muscle = width[0] * top * np.maximum(1 - y / foot, 0) ** _between(traits[8], 0.85, 1.1)
    muscle_mm = (np.where(y < foot, muscle, -1.0) - x) * w * spacing_mm
    gland = _gland_distance(y - level, x / reach, GLANDS[density][1], traits[9:12])
    maps = (m.astype(np.float32) for m in (skin_mm, muscle_mm, gland))
    return Breast(inside, *maps, nipple=(level * h, reach * w), spacing_mm=spacing_mm)


def attenuation(rng: np.random.Generator, breast: Breast, density: str, pectoral: bool) -> Pixels:
    """What the breast takes from the beam, relative to full thickness of a tissue of 1/cm."""
    size, spacing_mm = breast.inside.shape, breast.spacing_mm
    fine = power_law(rng, size, spacing_mm, POWER, longest_mm=30.0)
    lumps = clustered_lumps(rng, size, spacing_mm)
    bent = _bent_polar(rng, breast)
    long, course = strands(rng, bent, spacing_mm, apart_mm=20.0, along_mm=60.0, width=0.05)
    short, grain = strands(rng, bent, spacing_mm, apart_mm=8.0, along_mm=40.0, width=0.10)
    border = 0.22 * power_law(rng, size, spacing_mm, 4.0, longest_mm=60.0) + 0.1 * course
    cone = smooth_step((1.35 - breast.gland - border) / 0.9)
    texture = 0.55 * fine + 0.35 * lumps + 0.25 * grain
    glands = GLANDS[density][0] * cone * np.exp(0.38 * texture) + 0.10 * np.exp(0.5 * texture)
    glands += 0.20 * long + 0.15 * short * (0.35 + cone)
    share = 1 - np.exp(-1.15 * glands * smooth_step((breast.skin_mm - 3) / 12))  # of gland in the beam's way
    tissue = FAT + (GLAND - FAT) * share
    if pectoral:
        deep = np.maximum(breast.muscle_mm, 0)
        muscle = MUSCLE + 0.015 * fine - 0.16 * np.exp(-deep / 9)
        part = 1 / (1 + np.exp(-np.clip(breast.muscle_mm / 0.9, -30, 30)))
        tissue += part * (np.maximum(muscle, tissue) - tissue)
    thickness = np.sqrt(1 - np.clip(1 - breast.skin_mm / EDGE_MM, 0, 1) ** 2)
    skin = 0.05 * np.exp(-(((breast.skin_mm - 1.0) / 0.8) ** 2))
    return ndimage.gaussian_filter((tissue * thickness + skin) * breast.inside, 0.25 / spacing_mm)


def flatness(attenuation: Pixels) -> float:
    """How much flatter the film's curve is here than at its steepest, 1 to 2: dense tissue hides lesions."""
    bright = 1 / (1 + np.exp((FILM_MIDDLE - attenuation.mean()) / FILM_LATITUDE))
    return float(np.clip(0.25 / (bright * (1 - bright)), 1, 2))


def film(rng: np.random.Generator, attenuation: Pixels) -> Pixels:
    """The developed image, with quantum noise and grain, in 65,535 steps."""
    bright = 1 / (1 + np.exp((FILM_MIDDLE - attenuation) / FILM_LATITUDE))
    quantum = 0.008 * np.sqrt(bright + 0.02) * rng.standard_normal(bright.shape, dtype=np.float32)
    grain = 0.01 * ndimage.gaussian_filter(rng.standard_normal(bright.shape, dtype=np.float32), 0.6)
    steps = np.rint(np.clip(bright + quantum + grain, 0, 1) * 65535)
    return steps.astype(np.float32) / np.float32(65535)


def power_law(
    rng: np.random.Generator, size: tuple[int, int], spacing_mm: float, power: float, longest_mm: float
) -> Pixels:
    """A Gaussian field of mean 0 and variance 1 whose power falls as 1/f^power, flat beyond the longest wave."""
    rows, cols = (int(np.asarray(next_fast_len(int(1.15 * side)))) for side in size)  # more, or it would wrap
    wave = np.fft.rfft2(rng.standard_normal((rows, cols), dtype=np.float32))
    amplitude = _amplitude(rows, cols, spacing_mm, power, longest_mm)
    field = np.fft.irfft2(wave * amplitude, s=(rows, cols))[: size[0], : size[1]]
    return (field - field.mean()) / field.std()


@lru_cache(maxsize=8)
def _amplitude(rows: int, cols: int, spacing_mm: float, power: float, longest_mm: float) -> Pixels:
    """Of each wave; the images of a data set have the same."""
    fy, fx = np.fft.fftfreq(rows, spacing_mm)[:, None], np.fft.rfftfreq(cols, spacing_mm)[None, :]
    return ((fy**2 + fx**2 + longest_mm**-2) ** (-power / 4)).astype(np.float32)


def clustered_lumps(rng: np.random.Generator, size: tuple[int, int], spacing_mm: float) -> Pixels:
    """Clustered lumpy background of mean 0 and variance 1: clusters of blobs of one direction each.

    A blob is exp(-2.1 q^0.5), q its elliptic radius (Bochud et al. 1999).
    """
    reach = int(np.ceil(6 / spacing_mm))
    side = 2 * reach + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] * spacing_mm
    field = np.zeros((size[0] + 2 * reach, size[1] + 2 * reach), np.float32)
    clusters_per_mm2, blobs, spread_mm = 0.009, 18, 4.5
    area_mm2 = size[0] * size[1] * spacing_mm**2
    for _ in range(rng.poisson(clusters_per_mm2 * area_mm2)):
        turn = rng.uniform(0, np.pi)
        q = np.hypot((np.cos(turn) * x + np.sin(turn) * y) / 2.6, (np.cos(turn) * y - np.sin(turn) * x) / 0.9)
        blob = np.exp(-2.1 * np.sqrt(q)).astype(np.float32)
        centre = rng.uniform((0, 0), size)
        places = np.rint(rng.normal(centre, spread_mm / spacing_mm, (rng.poisson(blobs), 2))).astype(int)
        for row, col in places[((places >= 0) & (places < size)).all(1)].tolist():
            field[row : row + side, col : col + side] += blob
    field = field[reach:-reach, reach:-reach]
    return (field - field.mean()) / field.std()


def strands(
    rng: np.random.Generator, polar: Polar, spacing_mm: float, *, apart_mm: float, along_mm: float, width: float
) -> tuple[Pixels, Pixels]:
    """Ligaments, ducts and vessels towards the nipple, 0 to 1, and the field whose zeros they follow.

    Args:
        polar: each pixel's place seen from the nipple.
        spacing_mm: pixel spacing.
        apart_mm: typical distance between strands, 60 mm from the nipple.
        along_mm: typical length over which one stays straight.
        width: of the strands, in standard deviations of the field.
    """
    grid = rng.standard_normal((160, 384), dtype=np.float32)  # 2 mm x 1/60 rad
    grid = ndimage.gaussian_filter(grid, (along_mm / 8, apart_mm / 4), mode="wrap")
    away_mm, angle = polar
    field = ndimage.map_coordinates(grid / grid.std(), [away_mm / 2, angle * 60], order=1, mode="grid-wrap")
    visibility = smooth_step(0.5 + 0.5 * power_law(rng, away_mm.shape, spacing_mm, POWER, longest_mm=25.0))
    return np.exp(-((field / width) ** 2)) * visibility, field


def distance_mm(mask: Mask, spacing_mm: float) -> Pixels:
    """Distance of the mask's pixels from the nearest pixel outside of it; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(mask)) * spacing_mm


def smooth_step(x: Pixels) -> Pixels:
    """0 below 0, 1 above 1, and 3x^2 - 2x^3 between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _bent_polar(rng: np.random.Generator, breast: Breast) -> Polar:
    size, spacing_mm = breast.inside.shape, breast.spacing_mm
    bend = [5 * power_law(rng, size, spacing_mm, 5.5, longest_mm=50.0) for _ in range(2)]
    down = (np.arange(size[0])[:, None] - breast.nipple[0]) * spacing_mm + bend[0]
    out = (np.arange(size[1])[None, :] - breast.nipple[1]) * spacing_mm - 12 + bend[1]
    return np.hypot(down, out), np.arctan2(down, -out)


def _between(share: float, low: float, high: float) -> float:
    return low + float(share) * (high - low)


def _width(y: np.ndarray, level: float, reach: float, traits: np.ndarray) -> np.ndarray:
    """How far each row reaches, as a share of the image: axilla, neck, nipple at `level`, fold below."""
    neck, fold = reach * _between(traits[0], 0.38, 0.70), _between(traits[1], 0.03, 0.12)
    above = np.clip((level - y) / level / _between(traits[2], 0.95, 1.25), 0, 1)
    below = np.clip((y - level) / _between(traits[3], 0.26, 0.32), 0, 1)
    upper = neck + (reach - neck) * (0.65 * (1 + np.cos(np.pi * above)) / 2 + 0.35 * (1 - above**2))
    lower = np.logaddexp(reach * np.sqrt(1 - below**2.2) / 0.02, fold / 0.02) * 0.02
    smooth = ndimage.gaussian_filter1d(np.where(y < level, upper, lower), 0.015 * len(y), axis=0, mode="nearest")
    return smooth + 0.018 * np.exp(-(((y - level) / 0.010) ** 2))


def _gland_distance(y: np.ndarray, x: np.ndarray, extent: float, traits: np.ndarray) -> np.ndarray:
    """Elliptic distance from the middle of the glands, which lie behind the nipple and a little above."""
    turn = _between(traits[0], 0.15, 0.50)
    y, x = y + _between(traits[1], 0.02, 0.10), x - _between(traits[2], 0.50, 0.62)
    long = (np.cos(turn) * y + np.sin(turn) * x) / (0.19 * extent)
    short = (np.cos(turn) * x - np.sin(turn) * y) / (0.40 * extent)
    return np.hypot(long, short)
