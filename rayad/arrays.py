"""The letters that arrays have, in the whole package.

n  images, patches or latent vectors     c  channels          h, w  rows, columns (pixels)
m  latents, the variables of a density   gh, gw  rows, columns of a grid of places

Pixels are float32 in [0, 1], the full scale of the stored bits. Scores and negative
log-likelihoods are in nats, and higher always means more anomalous. Rows count from the
top, columns from the left; a patch's place is its centre: the patch of side s at (row,
col) holds the pixels [row - s/2, row + s/2) x [col - s/2, col + s/2).
"""

import numpy as np
from jaxtyping import Bool, Float

Pixels = Float[np.ndarray, "h w"]
Image = Float[np.ndarray, "h w"] | Float[np.ndarray, "h w 3"]
"""Grey, or red, green and blue."""
Mask = Bool[np.ndarray, "h w"]
Grid = Float[np.ndarray, "gh gw"]
GridMask = Bool[np.ndarray, "gh gw"]
