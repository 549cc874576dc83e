"""An image is called anomalous if its score is above a threshold: which threshold, and how often that is right.

Thresholds come from the calibration patients' images alone, none from a label: their mean plus k standard deviations
(Mukesh et al. 2022), a quantile of them, or the p-value that a wanted rate of false alarms allows.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from rayad.evaluation.metrics import Scored
from rayad.evaluation.table import Row
from rayad.scoring.calibrate import Calibration, image_score

DEVIATIONS = (2.0, 3.0)
QUANTILE = 0.95
RATES = (0.05, 0.1)


def rules(calibration: Calibration) -> dict[str, Callable[[float], bool]]:
    """What each rule says of an image's score."""
    scores, weights = calibration.image_scores, calibration.image_weights
    mean = float(np.average(scores, weights=weights))
    deviation = float(np.sqrt(np.average((scores - mean) ** 2, weights=weights)))
    rules_by_name: dict[str, Callable[[float], bool]] = {}
    for k in DEVIATIONS:
        rules_by_name[f"mean + {k:g} sd"] = _above(mean + k * deviation)
    rules_by_name[f"quantile {QUANTILE:g}"] = _above(float(np.quantile(scores, QUANTILE)))
    for rate in RATES:
        rules_by_name[f"p at most {rate:g}"] = lambda score, rate=rate: calibration.image_p(score) <= rate
    return rules_by_name


def rows(detector: str, scored: Sequence[Scored], calibration: Calibration) -> list[Row]:
    """A row a rule: sensitivity, specificity, balanced accuracy and F1 over the images that have a label.

    Intervals of sensitivity and specificity are Wilson's (1927), for single images. A figure whose class is missing is
    null, with the reason.
    """
    diagnosed = [image for image in scored if image.diseased is not None]
    scores = [image_score(image.scores, calibration.top) for image in diagnosed]
    diseased = np.array([bool(image.diseased) for image in diagnosed], dtype=bool)
    verdict_rows = []
    for name, rule in rules(calibration).items():
        called = np.array([rule(score) for score in scores], dtype=bool)
        hits, alarms = int((called & diseased).sum()), int((called & ~diseased).sum())
        sensitivity = _share(hits, int(diseased.sum()), "anomalous")
        specificity = _share(int((~diseased).sum()) - alarms, int((~diseased).sum()), "healthy")
        rates = [sensitivity["value"], specificity["value"]]
        verdict_rows.append(
            {
                "detector": detector,
                "rule": name,
                "saw_labels": False,
                "images": len(diagnosed),
                "sensitivity": sensitivity,
                "specificity": specificity,
                "balanced_accuracy": None if None in rates else float(np.mean(rates)),  # type: ignore[reportArgumentType]
                "f1": 2 * hits / (hits + alarms + int(diseased.sum())) if diseased.any() else None,
            }
        )
    return verdict_rows


def _above(threshold: float) -> Callable[[float], bool]:
    return lambda score: score > threshold


def _share(part: int, total: int, label: str) -> dict[str, object]:
    if not total:
        return {"value": None, "low": None, "high": None, "reason": f"no {label} image"}
    interval = stats.binomtest(part, total).proportion_ci(method="wilson")
    return {"value": part / total, "low": float(interval.low), "high": float(interval.high)}
