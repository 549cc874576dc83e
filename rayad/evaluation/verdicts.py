"""An image is called anomalous if its score is above a threshold: which threshold, and how often that is right.

Thresholds come from the calibration patients' images alone, none from a label: their mean plus k standard deviations
(Mukesh et al. 2024), a quantile of them, or the p-value that a wanted rate of false alarms allows.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from rayad.evaluation.metrics import Scored
from rayad.evaluation.table import Row
from rayad.scoring.calibrate import Calibration, image_score
from rayad.scoring.rule import Rule

RULES = {
    "mean + 2 sd": Rule("sd", 2.0),
    "mean + 3 sd": Rule("sd", 3.0),
    "quantile 0.95": Rule("quantile", 0.95),
    "p at most 0.05": Rule("fpr", 0.05),
    "p at most 0.1": Rule("fpr", 0.1),
}
"""Name in the table -> rule."""


def thresholds(calibration: Calibration, own: Rule | None = None) -> dict[str, float]:
    """Name -> threshold of each rule, and of a detector's own; infinite where no score can be so rare."""
    rules = RULES | ({str(own): own} if own and own not in RULES.values() else {})
    return {
        name: math.inf if rule.kind == "fpr" and rule.value < calibration.floor else rule.threshold(calibration)
        for name, rule in rules.items()
    }


def rows(detector: str, scored: Sequence[Scored], calibration: Calibration, own: Rule | None = None) -> list[Row]:
    """A row a rule: sensitivity, specificity, balanced accuracy and F1 over the images that have a label.

    Intervals of sensitivity and specificity are Wilson's (1927), for single images. A figure whose class is missing is
    null, with the reason.
    """
    diagnosed = [image for image in scored if image.diseased is not None]
    scores = [image_score(image.scores, calibration.top) for image in diagnosed]
    diseased = np.array([bool(image.diseased) for image in diagnosed], dtype=bool)
    verdict_rows = []
    for name, threshold in thresholds(calibration, own).items():
        called = np.array([score > threshold for score in scores], dtype=bool)
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


def _share(part: int, total: int, label: str) -> dict[str, object]:
    if not total:
        return {"value": None, "low": None, "high": None, "reason": f"no {label} image"}
    interval = stats.binomtest(part, total).proportion_ci(method="wilson")
    return {"value": part / total, "low": float(interval.low), "high": float(interval.high)}
