"""Distances of masks beside MONAI's, where these are right, and where they are not."""

import numpy as np
import pytest
import torch
from monai import metrics as monai
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from rayad.evaluation import surface

pytestmark = pytest.mark.filterwarnings("ignore")


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth blobs that overlap in part."""
    random = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(random.normal(size=(48, 48)), 5) for _ in range(2)]
    return noise[0] > 0.02, 0.7 * noise[0] + 0.3 * noise[1] > 0.02


def batched(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def points(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_the_hausdorff_distance_is_that_of_scipy_over_all_places(seed):
    a, b = blobs(seed)
    truth = max(directed_hausdorff(points(a), points(b))[0], directed_hausdorff(points(b), points(a))[0])
    assert surface.distances(a, b).hausdorff == pytest.approx(truth)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_surface_distance_is_monais(seed):
    a, b = blobs(seed)
    peer = monai.compute_average_surface_distance(batched(a), batched(b), include_background=True, symmetric=True)
    assert surface.distances(a, b).surface == pytest.approx(float(peer), rel=0.02, abs=0.02)


def test_monai_measures_between_boundaries_so_one_hole_costs_it_the_whole_mask():
    """A mask, and the same without one place in the middle: no place is farther off than 1, but the hole's rim is."""
    a = np.ones((41, 41), dtype=bool)
    b = a.copy()
    b[20, 20] = False
    assert surface.distances(a, b).hausdorff == 1
    peer = monai.compute_hausdorff_distance(batched(b), batched(a), include_background=True)
    assert float(peer) > 15
