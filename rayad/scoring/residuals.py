"""Residual operators: how far a patch is from its reconstruction, one number a patch.

A squared error misses a lesion that is small or of little contrast; the greatest difference finds specks, and the
structural dissimilarity what is drawn differently at the same brightness (Hou et al. 2021).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rayad.tensors import Patches, Scores

WINDOW, SIGMA = 11, 1.5
"""Of the Gaussian window of SSIM, px (Wang et al. 2004, section III-C)."""
C1, C2 = 0.01**2, 0.03**2
"""Its constants, for pixels in [0, 1]."""


def squared(x: Patches, reconstruction: Patches) -> Scores:
    """Mean of the squared differences."""
    return (x - reconstruction).square().flatten(1).mean(1)


def maximum(x: Patches, reconstruction: Patches) -> Scores:
    """The greatest absolute difference."""
    return (x - reconstruction).abs().flatten(1).max(1).values


def dissimilarity(x: Patches, reconstruction: Patches) -> Scores:
    """1 - SSIM, the mean over all windows that lie in the patch, and over the channels (Wang et al. 2004, eq. 13)."""
    local = _local_means(x.shape[1], x)
    a, b = local(x), local(reconstruction)
    variance_a, variance_b = local(x.square()) - a.square(), local(reconstruction.square()) - b.square()
    covariance = local(x * reconstruction) - a * b
    luminance = (2 * a * b + C1) / (a.square() + b.square() + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return 1 - (luminance * structure).flatten(1).mean(1)


OPERATORS: dict[str, Callable[[Patches, Patches], Scores]] = {
    "squared": squared,
    "maximum": maximum,
    "ssim": dissimilarity,
}
"""Name of the operator -> function of patches and their reconstructions; higher is more anomalous."""


def _local_means(channels: int, like: Tensor) -> Callable[[Patches], Tensor]:
    """Means under the Gaussian window, one a channel; the window is separable."""
    offset = torch.arange(WINDOW).to(like) - WINDOW // 2
    weights = (-offset.square() / (2 * SIGMA**2)).exp()
    weights = weights / weights.sum()
    column_kernel = weights.view(1, 1, -1, 1).repeat(channels, 1, 1, 1)
    row_kernel = weights.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)

    def means(x: Patches) -> Tensor:
        return functional.conv2d(functional.conv2d(x, column_kernel, groups=channels), row_kernel, groups=channels)

    return means
