"""Aggregation over the tissue around a place, and several scores to one."""

import numpy as np
import pytest

from rayad.errors import ImageError, OptionError
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import RULES, Aggregation, aggregate, rarity


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


EXPONENTIAL = calibrate({"a": [np.random.default_rng(0).exponential(size=(500, 400))]})
"""Of an exponential score the share that is higher is exp(-s), so its rarity is the score itself."""


def test_the_rarity_of_an_exponential_score_is_the_score_itself_far_into_the_tail():
    scores = np.array([[0.1, 1.0, 3.0, 4.0, 8.0, 30.0]])
    assert rarity(scores, EXPONENTIAL)[0, :4] == pytest.approx(scores[0, :4], rel=0.05)
    assert rarity(scores, EXPONENTIAL)[0, 4:] == pytest.approx(scores[0, 4:], rel=0.1)


def test_rarity_has_no_ties_beyond_everything_healthy_and_keeps_the_order():
    scores = np.random.default_rng(1).exponential(size=(1, 1000)) * 10
    order = np.argsort(scores[0])
    assert (np.diff(rarity(scores, EXPONENTIAL)[0, order]) > 0).mean() > 0.99
    assert (np.diff(rarity(scores, EXPONENTIAL)[0, order]) >= 0).all()
    assert np.isnan(rarity(np.array([[np.nan]]), EXPONENTIAL)).all()


def test_the_rules_are_their_formulas():
    a, b = np.array([[1.0, 3.0, np.nan, np.nan]]), np.array([[2.0, 1.0, 2.0, np.nan]])
    scored = [(a, EXPONENTIAL), (b, EXPONENTIAL)]
    found = {name: rule(scored)[0] for name, rule in RULES.items()}
    assert found["fisher"][:3] == pytest.approx([3, 4, 4], rel=0.05)  # what one member lacks, the other stands for
    assert found["minimum"][:3] == pytest.approx([2, 3, 2], rel=0.05)
    assert found["mean"][:2] == pytest.approx(
        [1 - (np.exp(-1) + np.exp(-2)) / 2, 1 - (np.exp(-3) + np.exp(-1)) / 2], 0.02
    )
    assert found["spread"][:2] == pytest.approx([0.5, 1.0], rel=0.1)
    assert found["difference"][:2] == pytest.approx([-1, 2])
    assert all(np.isnan(values[3]) for values in found.values())


def test_combining_two_noisy_views_of_a_lesion_is_better_than_either():
    random = np.random.default_rng(2)
    lesion = np.zeros((60, 60), bool)
    lesion[20:30, 20:30] = True
    views = [random.normal(size=(60, 60)) + 1.0 * lesion for _ in range(2)]
    healthy = [calibrate({"a": [random.normal(size=(60, 60))]}) for _ in views]
    both = RULES["fisher"](list(zip(views, healthy, strict=True)))

    def auc(scores: np.ndarray) -> float:
        return float((scores[lesion][:, None] > scores[~lesion]).mean())

    assert auc(both) > max(auc(view) for view in views) + 0.03


def test_an_aggregation_over_very_many_places_is_refused():
    scores, tissue = np.ones((9, 9), np.float32), np.ones((9, 9), bool)
    for kind in ("gaussian", "maximum"):
        aggregate(scores, tissue, Aggregation(kind, 64.0), 1.0)
        with pytest.raises(ImageError, match="100 mm reaches over 100 places, 1 mm apart, more than 64"):
            aggregate(scores, tissue, Aggregation(kind, 100.0), 1.0)
