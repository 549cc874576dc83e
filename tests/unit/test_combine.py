"""Aggregation over the tissue around a place."""

import numpy as np
import pytest

from rayad.errors import OptionError
from rayad.scoring.combine import Aggregation, aggregate


def grid() -> tuple[np.ndarray, np.ndarray]:
    """One high place, and no tissue in the last two columns."""
    tissue = np.ones((7, 9), bool)
    tissue[:, 7:] = False
    scores = np.where(tissue, 1.0, np.nan).astype(np.float32)
    scores[3, 3] = 5
    return scores, tissue


@pytest.mark.parametrize("kind", ["none", "gaussian", "maximum"])
def test_only_tissue_has_scores(kind: str):
    scores, tissue = grid()
    assert np.array_equal(~np.isnan(aggregate(scores, tissue, Aggregation(kind, 4.0), step_mm=2.0)), tissue)


def test_a_constant_stays_constant_up_to_the_tissues_edge():
    scores, tissue = grid()
    scores[3, 3] = 1
    smooth = aggregate(scores, tissue, Aggregation("gaussian", 6.0), step_mm=2.0)
    assert smooth[tissue] == pytest.approx(1)


def test_the_maximum_reaches_its_radius_in_mm():
    high = aggregate(*grid(), Aggregation("maximum", 4.0), step_mm=2.0) == 5
    rows, columns = np.ogrid[:7, :9]
    assert np.array_equal(high, (rows - 3) ** 2 + (columns - 3) ** 2 <= 4)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(OptionError, match="none, gaussian, maximum"):
        Aggregation("median")
