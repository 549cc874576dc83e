"""Hashes of images that are alike, against brute force and against what changes an image and what does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import spearmanr

from rayad.imaging.likeness import ALIKE, difference_hash, pairs, ranks


def scene(seed: int, side: int = 120) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(side, side))
    smooth = ndimage.gaussian_filter(noise, 8)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


WHOLE = np.ones((120, 120), dtype=bool)


def apart(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_copies_with_other_contrast_noise_or_border_are_found(seed):
    image = scene(seed)
    of = difference_hash(image, WHOLE)
    noisy = image + np.random.default_rng(9).normal(0, 0.01, image.shape).astype(np.float32)
    framed, body = np.pad(image, 30), np.pad(WHOLE, 30)
    assert apart(of, difference_hash(0.5 * image + 0.2, WHOLE)) <= 1
    assert apart(of, difference_hash(noisy, WHOLE)) <= 3
    assert difference_hash(framed, body) == of
    assert apart(of, difference_hash(scene(seed + 100), WHOLE)) > 10
    for copy, where in ((0.5 * image**1.5 + 0.2, WHOLE), (noisy, WHOLE), (framed, body)):
        rho = float(np.asarray(spearmanr(ranks(image, WHOLE), ranks(copy, where)))[0])
        assert ranks(image, WHOLE) @ ranks(copy, where) == pytest.approx(rho, abs=1e-5)
        assert rho > ALIKE
    assert ranks(image, WHOLE) @ ranks(scene(seed + 100), WHOLE) < 0.9


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=25),
    st.lists(st.tuples(st.integers(0, 24), st.integers(0, 63)), max_size=40),
)
def test_pairs_are_those_of_brute_force(hashes, flips):
    hashes = hashes + [hashes[i % len(hashes)] ^ 1 << bit for i, bit in flips if hashes]
    brute = [
        (i, j, apart(hashes[i], hashes[j]))
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if apart(hashes[i], hashes[j]) <= 3
    ]
    assert pairs(hashes) == brute
